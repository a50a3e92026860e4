//! One trapped call: what arrived, and the ways to answer it.
//!
//! Answering consumes the [`Notification`]. One that is dropped unanswered would leave a guest
//! stuck for ever, so the drop answers ENOSYS and logs: that is a bug of whoever dropped it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::listener::Listener;
use crate::sys::seccomp::{self, Place, seccomp_notif, seccomp_notif_resp};

/// What the kernel says of a trapped call: a plain copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The notification's own number.
    pub id: u64,
    /// The guest thread, as the supervisor's pid namespace numbers it.
    pub tid: i32,
    /// AUDIT_ARCH_* of the entry that was used.
    pub arch: u32,
    /// The syscall's number.
    pub number: u32,
    /// Where in the guest the call was made.
    pub instruction_pointer: u64,
    /// The six argument registers.
    pub args: [u64; 6],
}

impl From<&seccomp_notif> for Received {
    fn from(raw: &seccomp_notif) -> Self {
        Received {
            id: raw.id,
            tid: raw.pid as i32,
            arch: raw.data.arch,
            number: raw.data.nr as u32,
            instruction_pointer: raw.data.instruction_pointer,
            args: raw.data.args,
        }
    }
}

/// What a handler decided.
#[derive(Debug)]
pub enum Answer {
    /// The call succeeds with this value.
    Return(i64),
    /// The call fails.
    Fail(Errno),
    /// The call fails with one of the kernel's restart codes (ERESTARTSYS and its like): only where
    /// a signal or stop is pending, else the code leaks into the guest.
    Restart(i32),
    /// The host kernel runs the call. Never an answer to a call that pointed-to memory decides:
    /// the memory may change before the kernel reads it.
    Continue,
    /// A copy of a descriptor is installed in the guest, and its number there is the value.
    Descriptor(Descriptor),
    /// An answer, and what is done once it is given.
    Then(Box<Answer>, Sequel),
}

/// What a handler does after its answer, on the thread that it ran on: what belongs to that thread
/// (ptrace(2) does) is still at hand. The handler has called [`hand_over`](super::hand_over).
pub struct Sequel(pub Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Sequel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sequel")
    }
}

impl Answer {
    /// This answer, and then `sequel`.
    pub fn then(self, sequel: impl FnOnce() + Send + 'static) -> Answer {
        Answer::Then(Box::new(self), Sequel(Box::new(sequel)))
    }

    /// The answer itself, and what follows it.
    pub(super) fn split(self) -> (Answer, Option<Sequel>) {
        match self {
            Answer::Then(answer, sequel) => (answer.split().0, Some(sequel)),
            answer => (answer, None),
        }
    }
}

/// A descriptor on its way into a guest. An O_PATH one cannot be installed: the kernel answers
/// EBADF (seccomp_notify_addfd takes the file with fget, which knows no O_PATH files).
#[derive(Debug)]
pub struct Descriptor {
    /// What is installed.
    pub fd: OwnedFd,
    /// Where.
    pub place: Place,
    /// Whether it closes on exec.
    pub cloexec: bool,
    /// Whether a second holder could be noticed (a lock, a pipe's end, a deleted file): then our
    /// copy is closed before the guest runs on. Otherwise installing and answering is one step
    /// (SECCOMP_ADDFD_FLAG_SEND, Linux 5.14).
    pub sole: bool,
}

impl From<Result<i64, Errno>> for Answer {
    fn from(result: Result<i64, Errno>) -> Self {
        match result {
            Ok(value) => Answer::Return(value),
            Err(errno) => Answer::Fail(errno),
        }
    }
}

/// The answer could not be given: the task has died or a signal has cancelled the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

/// A trapped call and the listener it arrived on: the knowledge of it, without the right to answer.
#[derive(Debug, Clone)]
pub struct Trapped {
    listener: Arc<Listener>,
    received: Received,
}

impl Trapped {
    /// What arrived.
    pub fn received(&self) -> &Received {
        &self.received
    }

    /// The listener it arrived on.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Whether the task still waits. Anything found by its pid before is about that task only if
    /// this is true afterwards: a pid can be reused.
    pub fn is_valid(&self) -> bool {
        seccomp::id_valid(self.listener.as_fd(), self.received.id)
    }
}

/// A trapped call that waits for its answer.
#[derive(Debug)]
pub struct Notification {
    trapped: Trapped,
    answered: bool,
}

impl Notification {
    pub(super) fn new(listener: Arc<Listener>, received: Received) -> Self {
        Notification { trapped: Trapped { listener, received }, answered: false }
    }

    /// The call.
    pub fn trapped(&self) -> &Trapped {
        &self.trapped
    }

    /// Answers.
    pub fn answer(mut self, answer: Answer) -> Result<(), Cancelled> {
        self.answered = true;
        match answer {
            Answer::Return(value) => self.send(value, 0, 0),
            Answer::Fail(errno) => self.fail(errno),
            Answer::Restart(code) => self.send(0, -code, 0),
            Answer::Continue => self.send(0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Descriptor(descriptor) => self.install(descriptor),
            // (The engine has taken the sequel.)
            Answer::Then(answer, _) => {
                Notification { trapped: self.trapped.clone(), answered: true }.answer(*answer)
            }
        }
    }

    fn install(&self, descriptor: Descriptor) -> Result<(), Cancelled> {
        let Descriptor { fd, place, cloexec, sole } = descriptor;
        let (listener, id) = (self.trapped.listener.as_fd(), self.trapped.received.id);
        if !sole {
            match seccomp::add_fd(listener, id, fd.as_fd(), place, cloexec, true) {
                Ok(_) => return Ok(()),
                Err(Errno::ENOENT | Errno::EINPROGRESS) => return Err(Cancelled),
                // Linux before 5.14 does not know the one step.
                Err(Errno::EINVAL) => {}
                Err(errno) => return self.fail(errno),
            }
        }
        let installed = seccomp::add_fd(listener, id, fd.as_fd(), place, cloexec, false);
        drop(fd);
        match installed {
            Ok(number) => self.send(i64::from(number), 0, 0),
            Err(Errno::ENOENT) => Err(Cancelled),
            Err(errno) => self.fail(errno),
        }
    }

    fn fail(&self, errno: Errno) -> Result<(), Cancelled> {
        // A number that nix does not know is 0 to it, which would tell the guest of success.
        let errno = if errno == Errno::UnknownErrno { Errno::EIO } else { errno };
        self.send(0, -(errno as i32), 0)
    }

    fn send(&self, val: i64, error: i32, flags: u32) -> Result<(), Cancelled> {
        let id = self.trapped.received.id;
        match seccomp::send(
            self.trapped.listener.as_fd(),
            &seccomp_notif_resp { id, val, error, flags },
        ) {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Err(Cancelled),
            Err(errno) => {
                // EINPROGRESS: answered twice; EINVAL: flags that the kernel does not know.
                tracing::error!(id, %errno, "an answer was refused by the kernel");
                Err(Cancelled)
            }
        }
    }
}

impl Drop for Notification {
    fn drop(&mut self) {
        // (Nobody misses the answer to a task that has died.)
        if !self.answered && self.send(0, -(Errno::ENOSYS as i32), 0).is_ok() {
            tracing::error!(received = ?self.trapped.received, "a notification was dropped unanswered");
        }
    }
}
