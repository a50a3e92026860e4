//! SIGTRAP of a process in which a hand works.
//!
//! A hand's calls end in a breakpoint. That forces SIGTRAP on the thread, and takes the process's action of it away
//! if the signal is blocked, as all are for a hand, or ignored (force_sig_info_to_task in kernel/signal.c). From then
//! on the thread does not block it, and one that waits would be taken for the breakpoint: two of a number never
//! wait in one queue (legacy_queue). Owns keeping both, action and what waits, until the last breakpoint, and putting
//! them back by calls that force nothing ([`remote_call`]).

use nix::errno::Errno;

use super::remote::{bit, remote_call, to_its_signal};
use super::{HandError, own, read, write};
use crate::save::capture::status::Status;
use crate::sys::ptrace::{Stopped, signal_bytes};

/// sizeof(sigset_t) of the kernel.
const SET: u64 = 8;
/// sizeof(struct sigaction) of the kernel: the handler, flags, what returns from it, what is blocked meanwhile.
const ACTION: usize = 32;

/// What a process and a thread of it have to get back.
#[derive(Debug, Default)]
pub struct Traps {
    /// The action of the process, unless it is the default one, which nothing takes away.
    pub action: Option<[u64; 4]>,
    /// What waits for the process.
    pub of_process: Vec<libc::siginfo_t>,
    /// What waits for the thread.
    pub of_thread: Vec<libc::siginfo_t>,
}

impl Traps {
    /// Those of a stopped thread, which blocks all signals, and its process. What waits is taken out.
    /// `room`: where a call may write.
    pub(super) fn take(
        stopped: Stopped,
        status: &Status,
        instruction: u64,
        room: u64,
    ) -> Result<(Stopped, Result<Traps, Errno>), HandError> {
        let (mut stopped, mut traps) = (stopped, Traps::default());
        if has(status.acts) {
            let arguments = [libc::SIGTRAP as u64, 0, room, SET, 0, 0];
            let (now, done) = remote_call(stopped, instruction, libc::SYS_rt_sigaction, arguments)?;
            stopped = now;
            let mut bytes = [0; ACTION];
            let done = done.and_then(|_| read(stopped.tid(), room, &mut bytes));
            if let Err(errno) = done {
                return Ok((stopped, Err(errno)));
            }
            let (words, _) = bytes.as_chunks::<8>();
            let mut action = [0; 4];
            action.iter_mut().zip(words).for_each(|(to, word)| *to = u64::from_ne_bytes(*word));
            traps.action = Some(action).filter(|it| it[0] != libc::SIG_DFL as u64);
        }
        let stopped = traps.take_waiting(stopped, status)?;
        Ok((stopped, Ok(traps)))
    }

    /// What waits for the thread alone, or for its process in the meantime, likewise.
    pub(super) fn take_of_thread(
        stopped: Stopped,
        status: &Status,
    ) -> Result<(Stopped, Traps), HandError> {
        let mut traps = Traps::default();
        let stopped = traps.take_waiting(stopped, status)?;
        Ok((stopped, traps))
    }

    /// (What comes later than `status` is a stray: [`Traps::add`].)
    fn take_waiting(
        &mut self,
        mut stopped: Stopped,
        status: &Status,
    ) -> Result<Stopped, HandError> {
        if !has(status.pending | status.shared_pending) {
            return Ok(stopped);
        }
        // (Of each queue one, unless something outside sends more.)
        const ATTEMPTS: usize = 16;
        for _ in 0..ATTEMPTS {
            let waits = |shared| -> Result<bool, HandError> {
                let all = stopped.pending_signals(shared).map_err(own("read its signals"))?;
                Ok(all.iter().any(|it| it.si_signo == libc::SIGTRAP))
            };
            // The thread is given its own ones first (dequeue_signal).
            let queue = match (waits(false)?, waits(true)?) {
                (true, _) => &mut self.of_thread,
                (false, true) => &mut self.of_process,
                (false, false) => break,
            };
            stopped.set_signal_mask(!bit(libc::SIGTRAP)).map_err(own("block its signals"))?;
            stopped = to_its_signal(stopped, libc::SIGTRAP)?;
            queue.push(stopped.signal_information().map_err(own("read its signal"))?);
            stopped.set_signal_mask(u64::MAX).map_err(own("block its signals"))?;
        }
        Ok(stopped)
    }

    /// Takes what was sent while hands worked as well.
    pub fn add(&mut self, strays: Vec<libc::siginfo_t>) {
        // Which queue it was in nothing tells; tgkill(2) is for a thread.
        let (of_thread, of_process): (Vec<_>, Vec<_>) =
            strays.into_iter().partition(|it| it.si_code == libc::SI_TKILL);
        self.of_thread.extend(of_thread);
        self.of_process.extend(of_process);
    }

    /// Whether there is nothing to put back.
    pub fn is_empty(&self) -> bool {
        self.action.is_none() && self.of_process.is_empty() && self.of_thread.is_empty()
    }

    /// Puts all of it back by calls of a stopped thread, which blocks all signals from here on. No breakpoint may come
    /// any more. `room`: memory of its own that nothing uses.
    pub fn put_back(
        &self,
        mut stopped: Stopped,
        instruction: u64,
        room: u64,
    ) -> Result<Stopped, HandError> {
        if self.is_empty() {
            return Ok(stopped);
        }
        stopped.set_signal_mask(u64::MAX).map_err(own("block its signals"))?;
        for (number, arguments, bytes) in self.calls(stopped.tid(), room)? {
            write(stopped.tid(), room, &bytes).map_err(own("write to its memory"))?;
            let (now, done) = remote_call(stopped, instruction, number, arguments)?;
            done.map_err(own("give SIGTRAP back to it"))?;
            stopped = now;
        }
        Ok(stopped)
    }

    /// The calls, and what lies in the room for each.
    fn calls(&self, tid: i32, room: u64) -> Result<Vec<Call>, HandError> {
        let signal = libc::SIGTRAP as u64;
        let mut calls = Vec::new();
        // The first: one that ignores the signal makes the kernel forget what waits (do_sigaction).
        if let Some(action) = self.action {
            let bytes = action.iter().flat_map(|word| word.to_ne_bytes()).collect();
            calls.push((libc::SYS_rt_sigaction, [signal, room, 0, SET, 0, 0], bytes));
        }
        if self.of_process.is_empty() && self.of_thread.is_empty() {
            return Ok(calls);
        }
        let Status { process, thread, .. } = Status::read(tid).ok_or(HandError::Killed)?;
        let (process, thread) = (process as u64, thread as u64);
        // Of itself a thread may say what it likes, by its own number (do_rt_sigqueueinfo); any thread's stands for
        // the process as well.
        for information in &self.of_process {
            let arguments = [thread, signal, room, 0, 0, 0];
            calls.push((libc::SYS_rt_sigqueueinfo, arguments, signal_bytes(information).into()));
        }
        for information in &self.of_thread {
            let arguments = [process, thread, signal, room, 0, 0];
            calls.push((libc::SYS_rt_tgsigqueueinfo, arguments, signal_bytes(information).into()));
        }
        Ok(calls)
    }
}

/// Number, arguments, and what lies in the room.
type Call = (libc::c_long, [u64; 6], Vec<u8>);

/// Calls that put SIGTRAP of the process with these threads back, as far as is known before it is asked: for its own
/// seccomp filters to be asked first.
pub fn calls_for(tids: &[i32], room: u64) -> Vec<(&'static str, libc::c_long, [u64; 6])> {
    let all: Vec<Status> = tids.iter().filter_map(|tid| Status::read(*tid)).collect();
    let signal = libc::SIGTRAP as u64;
    let mut calls = Vec::new();
    if all.iter().any(|it| has(it.acts)) {
        calls.push(("rt_sigaction", libc::SYS_rt_sigaction, [signal, 0, room, SET, 0, 0]));
        calls.push(("rt_sigaction", libc::SYS_rt_sigaction, [signal, room, 0, SET, 0, 0]));
    }
    for Status { process, thread, pending, shared_pending, .. } in all {
        let (process, thread) = (process as u64, thread as u64);
        if has(shared_pending) {
            let arguments = [thread, signal, room, 0, 0, 0];
            calls.push(("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, arguments));
        }
        if has(pending) {
            let arguments = [process, thread, signal, room, 0, 0];
            calls.push(("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, arguments));
        }
    }
    calls
}

/// Whether SIGTRAP is in a set of signals.
fn has(set: u64) -> bool {
    set & bit(libc::SIGTRAP) != 0
}
