//! The one way in which a handler waits.
//!
//! A task inside a received notification sits in a killable wait (WAIT_KILLABLE_RECV): a signal
//! does not end it, and no descriptor tells that one has arrived. So the wait looks for a
//! deliverable signal from time to time, less and less often, and answers as the kernel would.

use std::future::Future;
use std::time::Duration;

use nix::errno::Errno;

use super::call::TaskCall;
use super::task::Status;
use crate::notify::Answer;

/// Why a wait ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// The thread has a signal to handle: the call is restarted or fails with EINTR, as its
    /// handler's SA_RESTART says.
    Signal,
    /// A signal for the whole process is pending, and it cannot be told whether the kernel chose
    /// this thread for it or another one, which is about to take it: EINTR, since a restart code
    /// would leak into the guest if nothing were pending for this thread.
    SharedSignal,
    /// The task has died, or (without WAIT_KILLABLE_RECV) the call was cancelled.
    Gone,
}

impl Interrupted {
    /// ERESTARTSYS (include/linux/errno.h): restart unless the handler forbids it.
    const ERESTARTSYS: i32 = 512;
}

impl From<Interrupted> for Answer {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Signal => Answer::Restart(Interrupted::ERESTARTSYS),
            Interrupted::SharedSignal => Answer::Fail(Errno::EINTR),
            // It reaches nobody, and unlike a result it is not kept for the restarted call.
            Interrupted::Gone => Answer::Restart(Interrupted::ERESTARTSYS),
        }
    }
}

const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(20);

impl TaskCall {
    /// Waits for `wanted`, or until the task has to handle a signal or has died.
    ///
    /// Cancelling drops `wanted` at an await: it must not hold progress that would be lost.
    pub async fn block<T>(&self, wanted: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            done = wanted => Ok(done),
            interrupted = self.interrupted() => Err(interrupted),
        }
    }

    async fn interrupted(&self) -> Interrupted {
        let mut pause = FIRST_LOOK;
        let mut shared_before = 0;
        let mut look = 0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
            let status = Status::read(self.received().tid);
            // The number may belong to somebody else by now: what was read counts only if the
            // notification is still valid.
            if !self.trapped().is_valid() {
                return Interrupted::Gone;
            }
            let Ok(status) = status else { continue };
            let shared = status.shared_pending & !status.blocked;
            if status.pending & !status.blocked != 0 {
                return Interrupted::Signal;
            }
            if shared != 0 && self.is_chosen(&status, shared) {
                return Interrupted::Signal;
            }
            if status.threads > 1 && is_stopped(status.tgid, look) {
                return Interrupted::Signal;
            }
            // Seen twice: the thread that the kernel chose for it is a waiting one, maybe ours.
            if shared & shared_before != 0 {
                return Interrupted::SharedSignal;
            }
            shared_before = shared;
            look += 1;
        }
    }

    /// Whether the kernel must have chosen this thread for the signals in `shared`, which are
    /// pending for the whole process: no other thread could be about to take them. Looked at twice,
    /// since a signal may come and go between two looks.
    fn is_chosen(&self, status: &Status, shared: u64) -> bool {
        let tid = self.received().tid;
        let still_pending =
            || Status::read(tid).is_ok_and(|status| status.shared_pending & shared != 0);
        status.threads == 1
            || (status.threads <= MOST_LOOKED_AT
                && (0..2).all(|_| others_leave(tid, status.tgid, shared) && still_pending()))
    }
}

/// In a process with more threads than this, looking at each would take too long.
const MOST_LOOKED_AT: u32 = 64;

/// Whether every other thread of the process leaves these signals alone: it blocks them, or it
/// sleeps although the kernel wakes the thread that it chooses (complete_signal in
/// kernel/signal.c).
fn others_leave(tid: i32, tgid: i32, signals: u64) -> bool {
    threads(tgid).is_ok_and(|mut threads| {
        threads.all(|other| {
            other == tid
                || Status::read(other).is_ok_and(|other| {
                    signals & !other.blocked == 0 || matches!(other.state, b'S' | b'Z' | b'X')
                })
        })
    })
}

/// Whether the process is being stopped, as far as one of its threads shows it; another one each
/// time, since those that wait as this one does show nothing. The stop has reached all threads at
/// once (do_signal_stop in kernel/signal.c marks each as having a signal), and it is complete only
/// when the last of them has left its call.
fn is_stopped(tgid: i32, look: usize) -> bool {
    let all: Vec<i32> = threads(tgid).map(Iterator::collect).unwrap_or_default();
    let one = all.get(look % all.len().max(1));
    one.is_some_and(|one| Status::read(*one).is_ok_and(|status| status.state == b'T'))
}

/// The threads of a process.
fn threads(tgid: i32) -> std::io::Result<impl Iterator<Item = i32>> {
    let entries = std::fs::read_dir(format!("/proc/{tgid}/task"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}
