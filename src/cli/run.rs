//! `sandbox run`: from the words to a running program and its exit status.

use std::io::Write;

use super::args::RunCommand;
use super::{explain, fail, print};
use crate::config::{self, Host, RunSpec, Voice};
use crate::runtime;

/// Resolves the options, says what was decided where that was asked for, and runs the program.
/// Returns the exit status.
pub(super) fn run(command: RunCommand) -> i32 {
    let dry_run = command.dry_run;
    let host = Host::current();
    let spec = match config::resolve(&command.into_options(), &host) {
        Ok(spec) => spec,
        Err(error) => return fail(error),
    };
    if dry_run {
        return print(explain::decisions(&spec)).err().unwrap_or(0);
    }
    if spec.voice == Voice::Verbose {
        let _ = write!(std::io::stderr(), "{}", explain::decisions(&spec));
    }
    match runtime::run(&spec) {
        Ok(finished) => {
            explain_refusals(&spec, &finished.notes);
            if finished.interrupted {
                runtime::interrupt_job();
            }
            finished.status
        }
        Err(error) => {
            let status = error.status();
            fail(error);
            status
        }
    }
}

/// Says once what the program ran into.
fn explain_refusals(spec: &RunSpec, notes: &[String]) {
    if spec.voice == Voice::Quiet {
        return;
    }
    let mut stderr = std::io::stderr().lock();
    for note in notes {
        let _ = writeln!(stderr, "sandbox: {note}");
    }
}
