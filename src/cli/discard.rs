//! `sandbox discard`: what an overlay changes is dropped.

use std::path::PathBuf;

use clap::Args;

use super::diff::found;
use super::fail;

/// The words of `sandbox discard`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Of which sandbox; or the directory that is overlaid
    #[arg(value_name = "ID|DIR")]
    what: String,
    /// Where overlays are kept
    #[arg(long, value_name = "PATH")]
    overlay_dir: Option<PathBuf>,
}

/// Removes the overlay. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    match found(&command.what, command.overlay_dir.as_deref()) {
        Ok(kept) => kept.discard().err().map_or(0, fail),
        Err(sentence) => fail(sentence),
    }
}
