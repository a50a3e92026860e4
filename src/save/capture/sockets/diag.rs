//! What the kernel says of all unix sockets of a network namespace (sock_diag(7), UNIX_DIAG).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use crate::sys::netlink;
use crate::sys::socket::{self, Sent};

/// include/uapi/linux/sock_diag.h, netlink.h, unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// UDIAG_SHOW_NAME, _VFS, _PEER, _ICONS, _RQLEN.
const SHOW: u32 = 0x1f;
/// struct unix_diag_msg.
const MESSAGE: usize = 16;

/// A unix socket, as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// TCP_*.
    pub(super) state: u8,
    /// The file that it is bound to: inode and device (as the kernel encodes it inside).
    pub(super) file: Option<(u32, u32)>,
    /// The inode of the socket that it is connected to; 0: one that nobody holds.
    pub(super) peer: Option<u32>,
    /// Of those whose connections it has not accepted.
    pub(super) pending: Vec<u32>,
    /// Bytes (connections, if it listens) that wait, and what it sent (its backlog).
    pub(super) queues: (u32, u32),
    /// Directions that are closed.
    pub(super) shutdown: u8,
}

/// All of them, by inode. Those that nobody has accepted have none and are not told of (sk_diag_dump in
/// net/unix/diag.c).
pub(super) type Listing = HashMap<u64, Entry>;

/// Asks `diag`, a netlink socket of NETLINK_SOCK_DIAG.
pub(super) fn list(diag: BorrowedFd<'_>) -> Result<Listing, Errno> {
    // struct unix_diag_req: family, protocol, states, inode, what to show, cookie.
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, 0, SHOW, u32::MAX, u32::MAX] {
        body.extend(word.to_ne_bytes());
    }
    let request =
        netlink::framed(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &body);
    socket::send(diag.as_fd(), &Sent { bytes: &request, ..Sent::default() })?;
    let mut listing = Listing::default();
    loop {
        // The kernel answers at once and as long as somebody reads (netlink_dump).
        let answer = socket::receive(diag.as_fd(), 64 << 10, libc::MSG_DONTWAIT)?.bytes;
        let mut end = None;
        netlink::messages(&answer, |kind, body| match kind {
            NLMSG_DONE => end = Some(Ok(())),
            NLMSG_ERROR => end = Some(Err(netlink::error(body).unwrap_or(Errno::EBADMSG))),
            SOCK_DIAG_BY_FAMILY => add(&mut listing, body),
            _ => {}
        });
        if let Some(end) = end {
            return end.map(|()| listing);
        }
    }
}

fn add(listing: &mut Listing, message: &[u8]) {
    let word = |bytes: &[u8], at| netlink::word(bytes, at).unwrap_or(0);
    let inode = word(message, 4);
    let mut entry = Entry { state: message.get(2).copied().unwrap_or(0), ..Entry::default() };
    for (kind, value) in netlink::attributes(message.get(MESSAGE..).unwrap_or_default()) {
        match kind {
            1 => entry.file = Some((word(value, 0), word(value, 4))),
            2 => entry.peer = Some(word(value, 0)),
            3 => entry.pending = value.chunks_exact(4).map(|it| word(it, 0)).collect(),
            4 => entry.queues = (word(value, 0), word(value, 4)),
            6 => entry.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
    }
    listing.insert(u64::from(inode), entry);
}
