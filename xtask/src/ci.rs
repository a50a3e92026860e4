//! `cargo xtask ci`: everything that must hold before a change is merged.
//!
//! Runs the tests as the current user only; scripts/test also runs them as another user and counts.

use std::path::Path;
use std::process::Command;

use crate::tidy;

/// The command line of `cargo xtask ci`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave out the tests.
    #[arg(long)]
    checks_only: bool,
}

/// Format, lints, house rules, tests, in the order of what is quickest to fail.
pub(crate) fn run(repository: &Path, arguments: &Arguments) -> Result<(), String> {
    cargo(repository, &["fmt", "--all", "--check"])?;
    tidy::run(repository)?;
    cargo(repository, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    if !arguments.checks_only {
        cargo(repository, &["test", "--workspace", "--no-fail-fast"])?;
    }
    Ok(())
}

fn cargo(repository: &Path, words: &[&str]) -> Result<(), String> {
    let said = format!("cargo {}", words.join(" "));
    eprintln!("xtask: {said}");
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(words)
        .current_dir(repository)
        .status()
        .map_err(|error| format!("cannot run {said}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{said} failed")) }
}
