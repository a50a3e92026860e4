//! The socket that a trapped call is about.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use libc::c_int;
use nix::errno::Errno;

use super::address;
use super::unhurried::Unhurried;
use crate::notify::Trapped;
use crate::sentry::task::copy_descriptor;
use crate::sys::{errno_of, files, socket};

/// Since Linux 5.14 (include/uapi/asm-generic/socket.h).
const SO_NETNS_COOKIE: c_int = 71;
/// include/net/tcp_states.h
const TCP_CLOSE: u8 = 7;

/// A guest's socket, as it was when its descriptor was looked up: what is done to `fd` is done to this one, whatever
/// the guest does with the number meanwhile.
#[derive(Debug)]
pub struct GuestSocket {
    /// A copy of it.
    pub fd: Unhurried,
    /// AF_*
    pub family: c_int,
    /// SOCK_*
    pub kind: c_int,
    /// IPPROTO_*
    pub protocol: c_int,
    /// The network namespace that it belongs to.
    pub cookie: u64,
    /// What its links in /proc/PID/fd say.
    pub inode: u64,
}

impl GuestSocket {
    /// The socket behind descriptor `number` of the calling thread. EBADF, ENOTSOCK: as the call itself would say;
    /// ESRCH: the thread is gone.
    pub fn of(trapped: &Trapped, number: c_int) -> Result<GuestSocket, Errno> {
        GuestSocket::of_copy(copy(trapped, number)?)
    }

    /// A socket that is about to be a guest's.
    pub(super) fn new(fd: BorrowedFd<'_>) -> Result<GuestSocket, Errno> {
        GuestSocket::of_copy(fd.try_clone_to_owned().map_err(|error| errno_of(&error))?)
    }

    fn of_copy(copy: OwnedFd) -> Result<GuestSocket, Errno> {
        let fd = Unhurried::from(copy);
        let option = |name, room| socket::option(fd.as_fd(), libc::SOL_SOCKET, name, room);
        let number = |name| option(name, 4).map(|bytes| word(&bytes));
        let cookie = option(SO_NETNS_COOKIE, 8)?;
        Ok(GuestSocket {
            family: number(libc::SO_DOMAIN)?,
            kind: number(libc::SO_TYPE)?,
            protocol: number(libc::SO_PROTOCOL)?,
            cookie: cookie.try_into().map_or(0, u64::from_ne_bytes),
            inode: files::identity(fd.as_fd())?.1,
            fd,
        })
    }

    /// Whether it is one of TCP, in the clothes of MPTCP maybe.
    pub fn is_tcp(&self) -> bool {
        self.is_inet() && [libc::IPPROTO_TCP, libc::IPPROTO_MPTCP].contains(&self.protocol)
    }

    /// Whether it carries streams by another protocol of the internet (SCTP, SMC).
    pub fn is_other_stream(&self) -> bool {
        let has_streams = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].contains(&self.kind);
        self.is_inet() && has_streams && !self.is_tcp()
    }

    fn is_inet(&self) -> bool {
        [libc::AF_INET, libc::AF_INET6].contains(&self.family)
    }

    /// Whether it is a connection, or on the way to one, or listens.
    pub fn is_taken(&self) -> bool {
        let info = socket::option(self.fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 1);
        // (A socket of MPTCP has no such state; whether it has a peer tells enough.)
        info.map_or_else(
            |_| socket::peer_name(self.fd.as_fd()).is_ok(),
            |info| info.first() != Some(&TCP_CLOSE),
        )
    }

    /// The port that it is bound to; 0: none.
    pub fn port(&self) -> u16 {
        let name = socket::name(self.fd.as_fd()).ok();
        name.and_then(|name| address::parse(&name)).map_or(0, |address| address.port())
    }
}

/// The namespace that a socket made here and now belongs to.
pub(super) fn own_cookie() -> Result<u64, Errno> {
    let probe = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    let cookie = socket::option(probe.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, 8)?;
    cookie.try_into().map(u64::from_ne_bytes).map_err(|_| Errno::EBADMSG)
}

fn word(bytes: &[u8]) -> c_int {
    bytes.try_into().map_or(0, c_int::from_ne_bytes)
}

/// A copy of a descriptor of the calling thread.
pub(super) fn copy(trapped: &Trapped, number: RawFd) -> Result<OwnedFd, Errno> {
    let copied = copy_descriptor(trapped.received().tid, number);
    if trapped.is_valid() { copied } else { Err(Errno::ESRCH) }
}
