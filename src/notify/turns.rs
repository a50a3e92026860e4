//! One call of a thread after the other, where signals can cancel calls.
//!
//! Without WAIT_KILLABLE_RECV (Linux before 5.19) a signal cancels a call that is still being
//! served, and the restarted one arrives beside it. It is served once the first one is done: by
//! then it is known whether that left a result behind.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Threads with a call that is being served, and the calls that have to wait for its end.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// A leaf: held for a few instructions.
    waiting: Mutex<HashMap<i32, VecDeque<oneshot::Sender<()>>>>,
}

/// The right to serve a call of a thread; the next one may be served when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    tid: i32,
}

impl Turns {
    /// The turn of a call of `tid`, now or when the receiver says so.
    pub(super) fn take(self: &Arc<Self>, tid: i32) -> Result<Turn, oneshot::Receiver<()>> {
        let mut waiting = self.lock();
        match waiting.get_mut(&tid) {
            None => {
                waiting.insert(tid, VecDeque::new());
                Ok(self.turn(tid))
            }
            Some(queue) => {
                let (sender, receiver) = oneshot::channel();
                queue.push_back(sender);
                Err(receiver)
            }
        }
    }

    /// The turn of a call of `tid` that has waited for it.
    pub(super) fn turn(self: &Arc<Self>, tid: i32) -> Turn {
        Turn { turns: Arc::clone(self), tid }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, VecDeque<oneshot::Sender<()>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.turns.lock();
        while let Some(next) = waiting.get_mut(&self.tid).and_then(VecDeque::pop_front) {
            if next.send(()).is_ok() {
                return;
            }
        }
        waiting.remove(&self.tid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_thread_take_turns_and_those_of_others_do_not_wait() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(1).unwrap();
        let mut second = turns.take(1).unwrap_err();
        let given_up = turns.take(1).unwrap_err();
        let mut fourth = turns.take(1).unwrap_err();
        drop(turns.take(2).unwrap());
        assert!(second.try_recv().is_err());
        drop(first);
        assert_eq!(second.try_recv(), Ok(()));
        assert!(fourth.try_recv().is_err());
        drop(given_up);
        drop(turns.turn(1));
        assert_eq!(fourth.try_recv(), Ok(()));
        drop(turns.turn(1));
        assert!(turns.lock().is_empty());
        assert!(turns.take(1).is_ok());
    }
}
