//! Backing calls out, so that their tasks can stop.
//!
//! A task inside a received notification sits in a killable wait: a stop that ptrace(2) asks for does
//! not happen until the notification is answered. So it is answered with ERESTARTNOINTR: the task
//! stops, and when it goes on the kernel makes the call again, which arrives as a new notification
//! (checked on 6.18). Without a pending stop the code would leak into the guest as errno 513: the
//! stop is asked for first, and the task is *stopping* for the gate after that.
//!
//! A call that a handler serves synchronously simply finishes. A parked future is dropped at its
//! await, which by the rules of [`super::engine`] loses no progress. A call that arrives from a
//! stopping task is not served at all.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::notification::Answer;

/// The answer that backs a call out: -ERESTARTNOINTR (include/linux/errno.h).
pub(super) const BACKED_OUT: Answer = Answer::Restart(513);

/// The calls that can be backed out.
#[derive(Debug, Default)]
pub struct Gate {
    /// Whether any task is stopping or passing: spares a lock for every call. A call that misses a change is
    /// served as if it had come before; parking looks again.
    any: AtomicBool,
    /// A leaf: held for a few instructions.
    inner: Mutex<Inner>,
}

/// Protected by `Gate::inner`.
#[derive(Debug, Default)]
struct Inner {
    /// Threads whose stop has been asked for.
    stopping: HashSet<i32>,
    /// Threads whose calls are the sentry's own ([`Gate::pass`]).
    passing: HashSet<i32>,
    /// Parked calls by thread. (Without WAIT_KILLABLE_RECV a thread can have a cancelled one beside
    /// its current one.)
    parked: HashMap<i32, Vec<(u64, oneshot::Sender<()>)>>,
}

/// A call that is parked. Dropping it tells the gate that the call is no longer.
#[derive(Debug)]
pub(super) struct Parked {
    gate: Arc<Gate>,
    tid: i32,
    id: u64,
    /// Says that the call is to be backed out.
    pub(super) back_out: oneshot::Receiver<()>,
}

impl Gate {
    /// These threads have been asked to stop: what they wait for is backed out, and what they still
    /// ask for is too, until [`Gate::open`]. Does not wait for it.
    pub fn back_out(&self, tids: &[i32]) {
        let mut inner = self.lock();
        self.any.store(true, Ordering::SeqCst);
        for tid in tids {
            inner.stopping.insert(*tid);
            for (_, parked) in inner.parked.remove(tid).into_iter().flatten() {
                // Nobody hears it who is done just now.
                let _ = parked.send(());
            }
        }
    }

    /// No task is stopping any more. Comes before the tasks are made to go on.
    pub fn open(&self) {
        let mut inner = self.lock();
        inner.stopping.clear();
        self.any.store(!inner.passing.is_empty(), Ordering::SeqCst);
    }

    /// What these threads call from here on is asked for by the sentry itself, and the host's kernel is
    /// to answer it; until [`Gate::pass_no_more`].
    pub fn pass(&self, tid: i32) {
        let mut inner = self.lock();
        inner.passing.insert(tid);
        self.any.store(true, Ordering::SeqCst);
    }

    /// Undoes [`Gate::pass`] for all.
    pub fn pass_no_more(&self) {
        let mut inner = self.lock();
        inner.passing.clear();
        self.any.store(!inner.stopping.is_empty(), Ordering::SeqCst);
    }

    /// Whether calls of `tid` are the sentry's own.
    pub(super) fn is_passing(&self, tid: i32) -> bool {
        self.any.load(Ordering::SeqCst) && self.lock().passing.contains(&tid)
    }

    /// Whether a call of `tid` that has just arrived is to be backed out.
    pub(super) fn is_stopping(&self, tid: i32) -> bool {
        self.any.load(Ordering::SeqCst) && self.lock().stopping.contains(&tid)
    }

    /// A call is about to be parked; `None`: it is to be backed out instead.
    pub(super) fn park(self: &Arc<Self>, tid: i32, id: u64) -> Option<Parked> {
        let mut inner = self.lock();
        if inner.stopping.contains(&tid) {
            return None;
        }
        let (sender, back_out) = oneshot::channel();
        inner.parked.entry(tid).or_default().push((id, sender));
        Some(Parked { gate: Arc::clone(self), tid, id, back_out })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        if let Some(parked) = inner.parked.get_mut(&self.tid) {
            parked.retain(|(id, _)| *id != self.id);
            if parked.is_empty() {
                inner.parked.remove(&self.tid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_calls_of_stopping_threads_are_told_and_later_ones_are_not_parked() {
        let gate = Arc::new(Gate::default());
        let mut first = gate.park(1, 10).unwrap();
        let mut other = gate.park(2, 11).unwrap();
        gate.back_out(&[1]);
        assert_eq!(first.back_out.try_recv(), Ok(()));
        assert!(other.back_out.try_recv().is_err());
        assert!(gate.is_stopping(1) && !gate.is_stopping(2));
        assert!(gate.park(1, 12).is_none());
        gate.open();
        assert!(!gate.is_stopping(1));
        drop((first, other));
        assert!(gate.lock().parked.is_empty());
    }
}
