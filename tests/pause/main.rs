//! Pausing a sandbox, listing what runs in it and signalling it from the outside.
//!
//! It has its own `main` instead of the usual harness: this binary is also the supervisor of its
//! sandboxes (`supervisor`), which has to be made before any other thread exists and with SIGCHLD
//! blocked in all.

mod cases;
mod going_on;
mod signals;
mod supervisor;
mod user;

#[path = "../common/mod.rs"]
mod common;

use std::panic::catch_unwind;
use std::process::ExitCode;

/// A test and its name.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    if std::env::var_os(supervisor::CONTROL).is_some() {
        supervisor::main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if flag("--exact") { *f == name } else { name.contains(*f) })
    };
    let mut failed = false;
    let all = cases::ALL.iter().chain(going_on::ALL).chain(signals::ALL);
    for (name, case) in all.filter(|(name, _)| wanted(name)) {
        if flag("--list") {
            println!("{name}: test");
        } else if catch_unwind(case).is_ok() {
            println!("test {name} ... ok");
        } else {
            println!("test {name} ... FAILED");
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
