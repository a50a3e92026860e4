//! Waiting for descriptors in the async runtime.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches for `fd` to become readable, through a descriptor of its own. Needs a tokio context.
pub fn watch_readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd.try_clone_to_owned()?, Interest::READABLE)
}

/// Watches `file` for what poll(2) calls POLLPRI: a file of a control group has changed. Needs a tokio
/// context.
pub fn watch_changes(file: File) -> io::Result<AsyncFd<OwnedFd>> {
    watch(file.into(), Interest::PRIORITY)
}

/// Watches a socket of the caller's own for both directions. Needs a tokio context.
pub fn watch_socket(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::READABLE | Interest::WRITABLE)
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same until it is dropped, and AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
