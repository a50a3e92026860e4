//! Who has connected: the same user, and no guest.
//!
//! A guest has the same uid as its supervisor, but lives in another user namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;

use crate::sys::{message, process};

/// A user namespace, by device and inode of its file (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UserNamespace(u64, u64);

impl UserNamespace {
    pub(super) fn of_this_process() -> io::Result<UserNamespace> {
        UserNamespace::read("self")
    }

    /// Reading it needs the right to trace the process (ptrace(2), PTRACE_MODE_READ_FSCREDS).
    fn read(process: &str) -> io::Result<UserNamespace> {
        let file = std::fs::metadata(format!("/proc/{process}/ns/user"))?;
        Ok(UserNamespace(file.dev(), file.ino()))
    }
}

/// Whether the process that connected `socket` may ask: why not, as the end of a sentence.
pub(super) fn check(socket: BorrowedFd<'_>, own: &UserNamespace) -> Result<(), String> {
    let gone = || "whoever asked has gone".to_owned();
    let peer = getsockopt(&socket, PeerCredentials).map_err(|_| gone())?;
    if peer.uid() != Uid::effective().as_raw() {
        return Err("it belongs to another user".to_owned());
    }
    // A pid alone may have become somebody else's since; a pidfd cannot.
    let pidfd = match message::peer_pidfd(socket) {
        Ok(pidfd) => Some(pidfd),
        // Before Linux 6.5.
        Err(Errno::ENOPROTOOPT) => None,
        Err(_) => return Err(gone()),
    };
    let pid = match &pidfd {
        Some(pidfd) => process::pid_of(pidfd.as_fd()).ok_or_else(gone)?,
        None => peer.pid(),
    };
    // Zero: it is not in this pid namespace or below it.
    if pid <= 0 {
        return Err("whoever asked lives outside this pid namespace".to_owned());
    }
    let theirs = UserNamespace::read(&pid.to_string());
    // As long as it has not been reaped, the number was its own when the namespace was read.
    if pidfd.is_some_and(|pidfd| process::pid_of(pidfd.as_fd()) != Some(pid)) {
        return Err(gone());
    }
    match theirs {
        Ok(theirs) if theirs == *own => Ok(()),
        _ => Err("whoever asked lives in another user namespace, as guests do".to_owned()),
    }
}
