//! What a socket of the sentry's takes over from the guest's that it stands in for.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, c_int};

use crate::sys::socket;

/// include/uapi/linux/tcp.h
const TCP_NOTSENT_LOWAT: c_int = 25;
const TCP_INQ: c_int = 36;
/// include/uapi/asm-generic/socket.h: whether the sizes of the buffers were chosen (1 of sending, 2 of receiving);
/// Linux 5.14.
const SO_BUF_LOCK: c_int = 72;

/// In the order in which they are set. None of them chooses a way through the host's network.
const COPIED: &[(c_int, c_int)] = &[
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_PRIORITY),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (SOL_SOCKET, libc::SO_BUSY_POLL),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IP, libc::IP_TOS),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CORK),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_SYNCNT),
    (IPPROTO_TCP, libc::TCP_LINGER2),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    (IPPROTO_TCP, TCP_INQ),
];

/// Bytes that the longest value has.
const ROOM: usize = 64;

/// What a new socket has, in the order of [`COPIED`].
type Defaults = Vec<Option<Vec<u8>>>;

fn read(of: BorrowedFd<'_>) -> Defaults {
    COPIED.iter().map(|(level, name)| socket::option(of, *level, *name, ROOM).ok()).collect()
}

/// Gives `to`, which is new, the options of `from` where they are others. What this kernel does not know, or keeps only
/// within limits, stays as it is.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    give(from, to, &read(to));
}

/// Likewise, of a `to` of TCP that was made in the host's network: what such a one of its `family` has to begin with is
/// asked of the first.
pub(super) fn copy_outside(from: BorrowedFd<'_>, to: BorrowedFd<'_>, family: c_int) {
    static V4: OnceLock<Defaults> = OnceLock::new();
    static V6: OnceLock<Defaults> = OnceLock::new();
    let known = if family == libc::AF_INET { &V4 } else { &V6 };
    give(from, to, known.get_or_init(|| read(to)));
}

fn give(from: BorrowedFd<'_>, to: BorrowedFd<'_>, defaults: &Defaults) {
    for ((level, name), default) in COPIED.iter().zip(defaults) {
        let Some(default) = default else { continue };
        if let Ok(value) = socket::option(from, *level, *name, ROOM)
            && value != *default
        {
            let _ = socket::set_option(to, *level, *name, &value);
        }
    }
    let chosen = number(from, SO_BUF_LOCK).unwrap_or(0);
    for (bit, name) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
        if chosen & bit != 0
            && let Some(size) = number(from, name)
        {
            // The kernel doubles what it is given (socket(7)).
            let _ = socket::set_option(to, SOL_SOCKET, name, &(size / 2).to_ne_bytes());
        }
    }
}

fn number(fd: BorrowedFd<'_>, name: c_int) -> Option<c_int> {
    let bytes = socket::option(fd, SOL_SOCKET, name, 4).ok()?;
    Some(c_int::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_set_is_set() {
        let make = || socket::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        let (from, to, other) = (make(), make(), make());
        let set = |level, name, value: i32| {
            socket::set_option(from.as_fd(), level, name, &value.to_ne_bytes()).unwrap();
        };
        set(IPPROTO_TCP, libc::TCP_NODELAY, 1);
        set(IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
        set(SOL_SOCKET, libc::SO_RCVBUF, 20_000);
        // (What the first one has is not what the second is taken to have.)
        copy_outside(make().as_fd(), make().as_fd(), libc::AF_INET6);
        copy_outside(from.as_fd(), other.as_fd(), libc::AF_INET6);
        copy(from.as_fd(), to.as_fd());
        for (level, name) in COPIED.iter().chain(&[(SOL_SOCKET, libc::SO_RCVBUF)]) {
            let value = |fd: BorrowedFd<'_>| socket::option(fd, *level, *name, ROOM);
            assert_eq!(value(from.as_fd()), value(to.as_fd()), "{level} {name}");
            assert_eq!(value(from.as_fd()), value(other.as_fd()), "{level} {name}");
        }
    }
}
