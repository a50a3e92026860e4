//! `sandbox commit`: what an overlay changes becomes the host's.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::diff::{Row, found, line, notes, sum, words};
use super::progress::Bar;
use super::{OWN_ERROR, fail, print};
use crate::config::quoted;
use crate::overlay::{Glob, Options, Outcome};

/// The host has changed something meanwhile.
const CONFLICTS: i32 = 1;

/// The words of `sandbox commit`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Of which sandbox; or the directory that is overlaid
    #[arg(value_name = "ID|DIR")]
    what: String,
    /// Only paths that GLOB matches; what matches a directory matches all in it
    #[arg(long, value_name = "GLOB")]
    only: Vec<OsString>,
    /// Print what would be applied, and which paths are in conflict; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Apply also what the host has changed meanwhile
    #[arg(long)]
    force: bool,
    /// For programs to read
    #[arg(long)]
    json: bool,
    /// Where overlays are kept
    #[arg(long, value_name = "PATH")]
    overlay_dir: Option<PathBuf>,
}

/// `sandbox commit --json`; docs/control.md names its fields.
#[derive(Debug, Serialize)]
struct Report {
    applied: bool,
    changes: Vec<Row>,
    conflicts: Vec<String>,
    skipped: Vec<String>,
    left: usize,
}

/// Applies the changes. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let options = Options {
        only: command.only.iter().map(|text| Glob::new(text)).collect(),
        dry_run: command.dry_run,
        force: command.force,
    };
    let bar = Bar::new("committing", 0);
    let mut measured: Option<Bar> = None;
    let done = found(&command.what, command.overlay_dir.as_deref()).and_then(|mut kept| {
        kept.settle().map_err(|error| error.to_string())?;
        let done = kept.commit(&options, &mut |progress| {
            let bar = measured.get_or_insert_with(|| Bar::new("committing", progress.total));
            bar.at(progress.done, progress.total);
        });
        done.map_err(|error| error.to_string())
    });
    measured.as_ref().unwrap_or(&bar).clear();
    match done {
        Ok(outcome) => tell(command, &outcome),
        Err(error) => {
            fail(error);
            OWN_ERROR
        }
    }
}

fn tell(command: &Command, outcome: &Outcome) -> i32 {
    let Outcome { committed, conflicts } = outcome;
    let refused = !conflicts.is_empty() && !command.force;
    let applied = !refused && !command.dry_run;
    let status = if refused { CONFLICTS } else { 0 };
    if command.json {
        let names = |paths: &[PathBuf]| paths.iter().map(|path| words(path).0).collect();
        let report = Report {
            applied,
            changes: committed.changes.iter().map(Row::of).collect(),
            conflicts: names(conflicts),
            skipped: names(&committed.skipped),
            left: committed.left,
        };
        return match serde_json::to_string(&report) {
            Ok(text) => print(text + "\n").err().unwrap_or(status),
            Err(error) => fail(error),
        };
    }
    if command.dry_run
        && let Err(status) = print(committed.changes.iter().map(line).collect::<String>())
    {
        return status;
    }
    if refused {
        for path in conflicts {
            eprintln!("sandbox: {} was changed on the host meanwhile", quoted(path));
        }
        fail(format_args!(
            "nothing was committed, because of {}; look at sandbox diff --patch, then leave {} out with \
             --only, or overwrite {} with --force",
            if conflicts.len() == 1 { "that path" } else { "these paths" },
            if conflicts.len() == 1 { "it" } else { "them" },
            if conflicts.len() == 1 { "it" } else { "them" },
        ));
        return status;
    }
    for path in &committed.skipped {
        eprintln!(
            "sandbox: {} is not committed: it is a socket or a device, or stands for a file that could not be read",
            quoted(path)
        );
    }
    notes(&committed.changes);
    if !nix::unistd::geteuid().is_root() {
        let changes = committed.changes.iter().filter(|change| change.believed.is_some());
        let count = changes.count();
        if count > 0 {
            eprintln!(
                "sandbox: of {count} paths the owner, or a set-id bit, was the sandbox's belief (sandbox diff \
                 tells); the host's are yours"
            );
        }
    }
    if applied {
        let left = match committed.left {
            0 => String::new(),
            1 => "; 1 change is left in the overlay".to_owned(),
            left => format!("; {left} changes are left in the overlay"),
        };
        return print(format_args!("committed: {}{left}\n", sum(&committed.changes)))
            .err()
            .unwrap_or(0);
    }
    status
}
