//! The relay between the outer terminal and a guest's pty, driven through real shells on real ptys.
//!
//! Each test plays the user: it holds the master of an "outer" pty on which a shell runs `box
//! SCRIPT`. `box` is this very binary in the role of a supervisor (`roles`), which starts itself
//! once more as the guest's init on a second pty.
//!
//! It has its own `main` instead of the usual harness: a supervisor blocks its signals before any
//! other thread exists, and the usual harness starts threads first and writes to stdout.

mod cases;
mod roles;
mod user;

use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::var(roles::ROLE).as_deref() {
        Ok("supervisor") => roles::supervisor(),
        Ok("init") => roles::init(),
        _ => run_cases(),
    }
}

/// Understands what `cargo test` users type: name filters, `--exact`, `--list`.
fn run_cases() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if flag("--exact") { *f == name } else { name.contains(*f) })
    };
    let mut failed = Vec::new();
    for (name, case) in cases::ALL.iter().filter(|(name, _)| wanted(name)) {
        if flag("--list") {
            println!("{name}: test");
        } else if catch_unwind(case).is_ok() {
            println!("test {name} ... ok");
        } else {
            println!("test {name} ... FAILED");
            failed.push(*name);
        }
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
