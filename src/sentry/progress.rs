//! What the thread that traces tells those who wait for stops.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How many held tracees have not stopped yet.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// A leaf of the lock order.
    running: Mutex<usize>,
    changed: Condvar,
}

impl Progress {
    /// Waits until every held tracee has stopped, but not longer than `limit`.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(running, limit, |running| *running > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }

    pub(super) fn set(&self, count: usize) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = count;
        if count == 0 {
            self.changed.notify_all();
        }
    }
}
