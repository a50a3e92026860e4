//! Waking a thread of this process that waits in the kernel.

use std::sync::OnceLock;

use libc::c_int;
use nix::errno::Errno;
use nix::unistd::gettid;

/// A thread that can be nudged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nudged(libc::pid_t);

/// The signal: none that the supervisor uses for anything else (timers of CPU clocks have SIGRTMAX).
pub(super) fn signal() -> c_int {
    libc::SIGRTMAX() - 1
}

extern "C" fn nothing(_: c_int) {}

/// Whether the handler is there, which does nothing, but without which the signal would end the process.
pub(super) fn handle() -> Result<(), Errno> {
    static HANDLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    *HANDLED.get_or_init(|| {
        // SAFETY: an all-zero sigaction is valid: no flags (so that calls end with EINTR), an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as usize;
        // SAFETY: the handler touches nothing, and the signal is nobody else's.
        Errno::result(unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) }).map(drop)
    })
}

impl Nudged {
    /// The calling thread, from now on.
    pub fn this_thread() -> Result<Nudged, Errno> {
        handle()?;
        Ok(Nudged(gettid().as_raw()))
    }

    /// What the thread waits for in the kernel ends with EINTR. If it does not wait just now, nothing
    /// happens: who wants to be sure nudges again.
    pub fn nudge(self) {
        // SAFETY: numbers; a thread of this very process gets a signal that has a handler.
        let _ = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, signal()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_waits_is_woken() {
        let (told, nudged) = channel();
        let (ended, end) = channel();
        std::thread::spawn(move || {
            told.send(Nudged::this_thread().unwrap()).unwrap();
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
            ended.send(Errno::last()).unwrap();
        });
        let nudged = nudged.recv().unwrap();
        let woken = loop {
            nudged.nudge();
            if let Ok(errno) = end.recv_timeout(Duration::from_millis(1)) {
                break errno;
            }
        };
        assert_eq!(woken, Errno::EINTR);
    }
}
