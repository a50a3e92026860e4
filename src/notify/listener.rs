//! The listener: the descriptor on which every trap of the guests arrives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::notification::{Notification, Received};
use crate::sys::seccomp;

/// What the listener may use of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The filter was loaded with WAIT_KILLABLE_RECV: signals do not cancel notifications.
    pub wait_killable: bool,
    /// SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP may be tried.
    pub sync_wake_up: bool,
    /// process_vm_readv(2) may be tried.
    pub process_vm: bool,
}

/// The listener of one filter. Immutable after construction.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    options: Options,
    sync_wake_up: bool,
}

impl Listener {
    /// Takes the listener over and switches on what the kernel offers.
    pub fn new(fd: OwnedFd, options: Options) -> Arc<Listener> {
        let sync_wake_up = options.sync_wake_up && seccomp::set_sync_wake_up(fd.as_fd()).is_ok();
        Arc::new(Listener { fd, options, sync_wake_up })
    }

    /// Whether signals cannot cancel a received notification.
    pub fn wait_killable(&self) -> bool {
        self.options.wait_killable
    }

    /// Whether the kernel wakes the receiver on the guest's own CPU.
    pub fn sync_wake_up(&self) -> bool {
        self.sync_wake_up
    }

    /// Whether guest memory may be read with process_vm_readv(2).
    pub fn process_vm(&self) -> bool {
        self.options.process_vm
    }

    /// Blocks until a guest traps; `None` once no guest is left.
    ///
    /// Before Linux 6.11 the end of the last guest does not wake a blocked receiver
    /// (seccomp_notify_release is all there was); such a thread ends with the process.
    pub fn receive(self: &Arc<Self>) -> Result<Option<Notification>, Errno> {
        let mut raw = seccomp::empty_notification();
        loop {
            match seccomp::receive(self.fd.as_fd(), &mut raw) {
                Ok(()) => {
                    return Ok(Some(Notification::new(Arc::clone(self), Received::from(&raw))));
                }
                // The task died between wake-up and read, or nobody is left.
                Err(Errno::ENOENT) if self.hung_up() => return Ok(None),
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Whether a guest waits to be received, or does within this time.
    pub fn is_ready(&self, within: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, within);
        ready == Ok(1) && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
    }

    /// Whether no task uses the filter any more (POLLHUP, Linux 5.9).
    fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        let ready = poll(&mut fds, PollTimeout::ZERO);
        ready == Ok(1) && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
