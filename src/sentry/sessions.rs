//! Threads that are traced for the time of one call, each by a thread of the sentry.
//!
//! Such a thread runs no instruction of its program before its session lets it go: so in a pause it is
//! enough that no session does. Owns which threads these are and whether they are held; the sessions
//! are those of [`super::remake`] and [`super::vdso`].

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::sys::tracing;

/// The sessions of one sandbox.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// A leaf of the lock order. A thread is let go under it, so that it is either held or free.
    inner: Mutex<Inner>,
    /// Signalled when `held` ends.
    released: Condvar,
}

/// Protected by `Sessions::inner`.
#[derive(Debug, Default)]
struct Inner {
    threads: HashSet<i32>,
    held: bool,
}

impl Sessions {
    /// Begins to trace a thread.
    pub(super) fn seize(&self, tid: i32) -> Result<(), Errno> {
        tracing::seize(tid)?;
        self.lock().threads.insert(tid);
        Ok(())
    }

    /// Lets a stopped thread go, once no pause holds it.
    pub(super) fn let_go(&self, tid: i32, signal: i32) {
        let mut inner = self.lock();
        while inner.held {
            inner = self.released.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.threads.remove(&tid);
        // An error: it has been killed.
        let _ = tracing::detach(tid, signal);
    }

    /// A thread has ended, or has another number: an exec gives it that of its process.
    pub(super) fn renamed(&self, tid: i32, now: Option<i32>) {
        let mut inner = self.lock();
        inner.threads.remove(&tid);
        inner.threads.extend(now);
    }

    /// Holds all of them, or holds them no more.
    pub(super) fn hold(&self, held: bool) {
        self.lock().held = held;
        self.released.notify_all();
    }

    /// Whether a thread cannot run while all are held.
    pub(super) fn holds(&self, tid: i32) -> bool {
        let inner = self.lock();
        inner.held && inner.threads.contains(&tid)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
