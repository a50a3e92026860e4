//! The order of a save.

use std::time::Duration;

/// How to save.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The guests go on afterwards; else they are ended once the image is safe.
    pub leave_running: bool,
    /// Level of zstd; none: pages are stored as they are.
    pub compression: Option<i32>,
}

/// How far a save or a restore is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, as far as is known.
    pub total: u64,
}

/// What was saved.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// Bytes of the image.
    pub bytes: u64,
    /// Processes and threads in it.
    pub processes: u64,
    /// See above.
    pub threads: u64,
    /// How long the guests stood still.
    pub pause: Duration,
}
