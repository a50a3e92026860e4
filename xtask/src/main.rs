//! The project's own chores: `cargo xtask ci | tidy | codegen | bench | guests`.
//!
//! Each chore is one module with one public `run`. What a host must have installed for them is not
//! known here but in scripts/setup.

mod bench;
mod ci;
mod codegen;
mod guests;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own chores.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check the format, the lints and the house rules, and run every test.
    Ci(ci::Arguments),
    /// Check the house rules that a program can check.
    Tidy,
    /// Write the files that are generated from the syscall table.
    Codegen(codegen::Arguments),
    /// Measure the sandbox against native runs, other sandboxes and the kernel's floor.
    Bench(bench::Options),
    /// Compile the guest programs of tests/guests.
    Guests(guests::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Ci(arguments) => ci::run(&repository(), &arguments),
        Chore::Tidy => tidy::run(&repository()),
        Chore::Codegen(arguments) => codegen::run(&repository(), &arguments),
        Chore::Bench(options) => bench::run(options).map_err(|error| error.to_string()),
        Chore::Guests(arguments) => guests::run(&repository(), &arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn repository() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}
