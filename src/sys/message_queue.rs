//! POSIX message queues by descriptor (mq_overview(7)).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// mq_maxmsg, mq_msgsize and mq_curmsgs of a queue (mq_getattr(3)).
pub fn attributes(queue: BorrowedFd<'_>) -> Result<[i64; 3], Errno> {
    // SAFETY: an all-zero mq_attr is valid.
    let mut found: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one mq_attr.
    Errno::result(unsafe { libc::mq_getattr(queue.as_raw_fd(), &mut found) })?;
    Ok([found.mq_maxmsg, found.mq_msgsize, found.mq_curmsgs])
}

/// Takes the next message: its length and priority. EAGAIN: there is none, if the description does not
/// wait.
pub fn receive(queue: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, u32), Errno> {
    let mut priority = 0;
    // SAFETY: the kernel writes at most as many bytes as given, and one unsigned int.
    let done = unsafe {
        libc::mq_receive(queue.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), &mut priority)
    };
    Errno::result(done).map(|length| (length as usize, priority))
}

/// Adds a message.
pub fn send(queue: BorrowedFd<'_>, message: &[u8], priority: u32) -> Result<(), Errno> {
    let (at, length) = (message.as_ptr().cast(), message.len());
    // SAFETY: the kernel reads as many bytes as given.
    Errno::result(unsafe { libc::mq_send(queue.as_raw_fd(), at, length, priority) }).map(drop)
}
