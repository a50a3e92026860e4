//! What a socket of the sentry's takes over from the guest's that it stands in for.

use std::os::fd::BorrowedFd;

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

/// Gives `to`, which is new, the options of `from` where they are others. What this kernel does not know, or keeps only
/// within limits, stays as it is.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    for (level, name) in COPIED {
        let Ok(value) = socket::option(from, *level, *name, ROOM) else { continue };
        if socket::option(to, *level, *name, ROOM).is_ok_and(|now| now != value) {
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
        let (from, to) = (make(), make());
        let set = |level, name, value: i32| {
            socket::set_option(from.as_fd(), level, name, &value.to_ne_bytes()).unwrap();
        };
        set(IPPROTO_TCP, libc::TCP_NODELAY, 1);
        set(IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
        set(SOL_SOCKET, libc::SO_RCVBUF, 20_000);
        copy(from.as_fd(), to.as_fd());
        for (level, name) in COPIED.iter().chain(&[(SOL_SOCKET, libc::SO_RCVBUF)]) {
            let value = |fd: BorrowedFd<'_>| socket::option(fd, *level, *name, ROOM);
            assert_eq!(value(from.as_fd()), value(to.as_fd()), "{level} {name}");
        }
    }
}
