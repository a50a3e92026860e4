//! Calls that the sentry has changed: those that are being made again just now, whose own traps go on, and
//! those of them that a stop has interrupted, which the kernel goes on with by itself.
//!
//! Of the latter the kernel alone knows until when they wait, and what stands where the guest's timeout is does
//! not tell it: that is the guest's time. So it is remembered here for who saves the guests.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::notify::Received;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Remade {
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
}

/// Protected by `Remade::inner`. By thread.
#[derive(Debug, Default)]
struct Inner {
    /// Number and arguments, as they were changed.
    calls: HashMap<i32, (u32, [u64; 6])>,
    interrupted: HashMap<i32, InterruptedWait>,
    /// Calls that could not be changed: each is made once as it is.
    passed: HashMap<i32, (u32, [u64; 6])>,
}

/// A call that waits, was changed, and goes on by restart_syscall(2) if nothing has come of it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptedWait {
    /// Its number.
    pub number: u64,
    /// Its arguments, as the guest made it.
    pub arguments: [u64; 6],
    /// Where the guest goes on.
    pub rip: u64,
    /// Until when it waits at most; `None`: for ever, or until a moment that the arguments tell.
    pub end: Option<Instant>,
}

/// Threads that are no more are forgotten with all others: what is left of a wait is found in another way then.
const MOST: usize = 1 << 16;

impl Remade {
    /// Whether this is a call that has been changed already, or that cannot be.
    pub(super) fn has(&self, received: &Received) -> bool {
        let call = (received.number, received.args);
        let mut inner = self.lock();
        inner.passed.remove(&received.tid) == Some(call)
            || inner.calls.get(&received.tid) == Some(&call)
    }

    /// The next call of a thread, if it is this one, is made as it is.
    pub(super) fn let_pass(&self, tid: i32, call: (u32, [u64; 6])) {
        self.lock().passed.insert(tid, call);
    }

    /// The call that is made again by a thread; `None`: none any more.
    pub(super) fn set(&self, tid: i32, call: Option<(u32, [u64; 6])>) {
        let mut inner = self.lock();
        match call {
            Some(call) => {
                inner.interrupted.remove(&tid);
                inner.calls.insert(tid, call)
            }
            None => inner.calls.remove(&tid),
        };
    }

    /// A call of a thread was interrupted.
    pub(super) fn note(&self, tid: i32, interrupted: InterruptedWait) {
        let mut inner = self.lock();
        if inner.interrupted.len() >= MOST {
            inner.interrupted.clear();
        }
        inner.interrupted.insert(tid, interrupted);
    }

    /// All that were interrupted, and maybe have ended since.
    pub(super) fn interrupted(&self) -> HashMap<i32, InterruptedWait> {
        self.lock().interrupted.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
