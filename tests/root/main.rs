//! `--root`: who the guests believe to be, what programs make of it, and that nothing outside does.

mod escapes;
mod files;
mod identity;
mod programs;
mod rules;
mod sub_ids;
mod systems;

#[path = "../common/mod.rs"]
mod common;

use common::{Outcome, Workspace};

/// Runs `sandbox --root -- ARGV` with a home of its own.
#[track_caller]
fn as_root<S: AsRef<std::ffi::OsStr>>(workspace: &Workspace, argv: &[S]) -> Outcome {
    workspace.inside_with(&["--root"], argv)
}

#[track_caller]
fn as_root_sh(workspace: &Workspace, script: &str) -> Outcome {
    as_root(workspace, &["sh", "-c", script])
}
