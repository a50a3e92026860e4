//! The options of sockets that an image keeps: one table for reading and for setting.

use std::os::fd::BorrowedFd;

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP,
    SOCK_DGRAM, SOCK_STREAM, SOL_NETLINK, SOL_SOCKET, c_int,
};
use nix::errno::Errno;
use serde_bytes::ByteBuf;

use crate::save::sockets::SocketOption;
use crate::sys::socket;

/// When an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the socket gets a name.
    Early,
    /// Once its queues are full and it is connected.
    Late,
}

struct Row {
    /// AF_*, SOCK_*; 0: any.
    of: (c_int, c_int),
    level: c_int,
    name: c_int,
    when: When,
    /// What a kernel may not know, or what it keeps only within its limits.
    soft: bool,
}

const fn row(of: (c_int, c_int), level: c_int, name: c_int) -> Row {
    Row { of, level, name, when: When::Late, soft: true }
}

const fn early(of: (c_int, c_int), level: c_int, name: c_int) -> Row {
    Row { of, level, name, when: When::Early, soft: false }
}

const fn late(of: (c_int, c_int), level: c_int, name: c_int) -> Row {
    Row { of, level, name, when: When::Late, soft: false }
}

/// Bytes that the longest value has.
const ROOM: usize = 64;

const ANY: (c_int, c_int) = (0, 0);
const V4: (c_int, c_int) = (AF_INET, 0);
const V6: (c_int, c_int) = (AF_INET6, 0);
const TCP4: (c_int, c_int) = (AF_INET, SOCK_STREAM);
const TCP6: (c_int, c_int) = (AF_INET6, SOCK_STREAM);
const UDP4: (c_int, c_int) = (AF_INET, SOCK_DGRAM);
const UDP6: (c_int, c_int) = (AF_INET6, SOCK_DGRAM);
const UNIX: (c_int, c_int) = (AF_UNIX, 0);
const NETLINK: (c_int, c_int) = (AF_NETLINK, 0);

/// include/uapi/asm-generic/socket.h, where libc has no name.
const SO_PASSPIDFD: c_int = 76;
const SO_PASSRIGHTS: c_int = 83;
/// Whether the sizes of the buffers were chosen (1 of sending, 2 of receiving); Linux 5.14.
const SO_BUF_LOCK: c_int = 72;
/// include/uapi/linux/tcp.h, udp.h, in.h, in6.h.
const TCP_NOTSENT_LOWAT: c_int = 25;
const TCP_INQ: c_int = 36;
const TCP_FASTOPEN_CONNECT: c_int = 30;
const UDP_NO_CHECK6_TX: c_int = 101;
const UDP_NO_CHECK6_RX: c_int = 102;
const UDP_SEGMENT: c_int = 103;
const UDP_GRO: c_int = 104;
const IP_BIND_ADDRESS_NO_PORT: c_int = 24;
const IP_RECVFRAGSIZE: c_int = 25;
const IP_LOCAL_PORT_RANGE: c_int = 51;
const IPV6_AUTOFLOWLABEL: c_int = 70;

/// In the order in which they are set.
const ROWS: &[Row] = &[
    early(ANY, SOL_SOCKET, libc::SO_REUSEADDR),
    early(V4, SOL_SOCKET, libc::SO_REUSEPORT),
    early(V6, SOL_SOCKET, libc::SO_REUSEPORT),
    early(ANY, SOL_SOCKET, libc::SO_BINDTODEVICE),
    early(ANY, SOL_SOCKET, libc::SO_MARK),
    early(V6, IPPROTO_IPV6, libc::IPV6_V6ONLY),
    early(V4, IPPROTO_IP, libc::IP_FREEBIND),
    early(V4, IPPROTO_IP, libc::IP_TRANSPARENT),
    early(V6, IPPROTO_IPV6, libc::IPV6_FREEBIND),
    early(V6, IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    early(V4, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT),
    row(V4, IPPROTO_IP, IP_LOCAL_PORT_RANGE),
    row(ANY, SOL_SOCKET, libc::SO_SNDBUF),
    row(ANY, SOL_SOCKET, libc::SO_RCVBUF),
    row(ANY, SOL_SOCKET, SO_BUF_LOCK),
    late(ANY, SOL_SOCKET, libc::SO_KEEPALIVE),
    late(ANY, SOL_SOCKET, libc::SO_BROADCAST),
    late(ANY, SOL_SOCKET, libc::SO_OOBINLINE),
    late(ANY, SOL_SOCKET, libc::SO_DONTROUTE),
    late(ANY, SOL_SOCKET, libc::SO_PRIORITY),
    late(ANY, SOL_SOCKET, libc::SO_LINGER),
    late(ANY, SOL_SOCKET, libc::SO_RCVLOWAT),
    late(ANY, SOL_SOCKET, libc::SO_RCVTIMEO),
    late(ANY, SOL_SOCKET, libc::SO_SNDTIMEO),
    late(ANY, SOL_SOCKET, libc::SO_TIMESTAMP),
    late(ANY, SOL_SOCKET, libc::SO_TIMESTAMPNS),
    row(ANY, SOL_SOCKET, libc::SO_TIMESTAMPING),
    row(ANY, SOL_SOCKET, libc::SO_RXQ_OVFL),
    row(ANY, SOL_SOCKET, libc::SO_NO_CHECK),
    row(ANY, SOL_SOCKET, libc::SO_BUSY_POLL),
    row(ANY, SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    row(ANY, SOL_SOCKET, libc::SO_ZEROCOPY),
    row(ANY, SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    row(ANY, SOL_SOCKET, libc::SO_PEEK_OFF),
    late(UNIX, SOL_SOCKET, libc::SO_PASSCRED),
    row(UNIX, SOL_SOCKET, libc::SO_PASSSEC),
    row(UNIX, SOL_SOCKET, SO_PASSPIDFD),
    row(UNIX, SOL_SOCKET, SO_PASSRIGHTS),
    late(V4, IPPROTO_IP, libc::IP_TTL),
    late(V4, IPPROTO_IP, libc::IP_TOS),
    late(V4, IPPROTO_IP, libc::IP_MTU_DISCOVER),
    late(V4, IPPROTO_IP, libc::IP_RECVERR),
    late(V4, IPPROTO_IP, libc::IP_PKTINFO),
    late(V4, IPPROTO_IP, libc::IP_RECVTTL),
    late(V4, IPPROTO_IP, libc::IP_RECVTOS),
    late(V4, IPPROTO_IP, libc::IP_RECVOPTS),
    late(V4, IPPROTO_IP, libc::IP_RETOPTS),
    row(V4, IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    row(V4, IPPROTO_IP, IP_RECVFRAGSIZE),
    row(V4, IPPROTO_IP, libc::IP_MINTTL),
    late(UDP4, IPPROTO_IP, libc::IP_MULTICAST_TTL),
    late(UDP4, IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    late(UDP4, IPPROTO_IP, libc::IP_MULTICAST_ALL),
    late(V6, IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    late(V6, IPPROTO_IPV6, libc::IPV6_TCLASS),
    late(V6, IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    late(V6, IPPROTO_IPV6, libc::IPV6_RECVERR),
    late(V6, IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    late(V6, IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    late(V6, IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    row(V6, IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
    row(V6, IPPROTO_IPV6, IPV6_AUTOFLOWLABEL),
    late(UDP6, IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    late(UDP6, IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    late(TCP4, IPPROTO_TCP, libc::TCP_NODELAY),
    late(TCP6, IPPROTO_TCP, libc::TCP_NODELAY),
    late(TCP4, IPPROTO_TCP, libc::TCP_CORK),
    late(TCP6, IPPROTO_TCP, libc::TCP_CORK),
    late(TCP4, IPPROTO_TCP, libc::TCP_KEEPIDLE),
    late(TCP6, IPPROTO_TCP, libc::TCP_KEEPIDLE),
    late(TCP4, IPPROTO_TCP, libc::TCP_KEEPINTVL),
    late(TCP6, IPPROTO_TCP, libc::TCP_KEEPINTVL),
    late(TCP4, IPPROTO_TCP, libc::TCP_KEEPCNT),
    late(TCP6, IPPROTO_TCP, libc::TCP_KEEPCNT),
    row(TCP4, IPPROTO_TCP, libc::TCP_SYNCNT),
    row(TCP6, IPPROTO_TCP, libc::TCP_SYNCNT),
    row(TCP4, IPPROTO_TCP, libc::TCP_LINGER2),
    row(TCP6, IPPROTO_TCP, libc::TCP_LINGER2),
    row(TCP4, IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    row(TCP6, IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    row(TCP4, IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    row(TCP6, IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    row(TCP4, IPPROTO_TCP, libc::TCP_CONGESTION),
    row(TCP6, IPPROTO_TCP, libc::TCP_CONGESTION),
    row(TCP4, IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    row(TCP6, IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    row(TCP4, IPPROTO_TCP, TCP_INQ),
    row(TCP6, IPPROTO_TCP, TCP_INQ),
    row(TCP4, IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
    row(TCP6, IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
    row(UDP6, IPPROTO_UDP, UDP_NO_CHECK6_TX),
    row(UDP6, IPPROTO_UDP, UDP_NO_CHECK6_RX),
    row(UDP4, IPPROTO_UDP, UDP_SEGMENT),
    row(UDP6, IPPROTO_UDP, UDP_SEGMENT),
    row(UDP4, IPPROTO_UDP, UDP_GRO),
    row(UDP6, IPPROTO_UDP, UDP_GRO),
    row(NETLINK, SOL_NETLINK, libc::NETLINK_PKTINFO),
    row(NETLINK, SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR),
    row(NETLINK, SOL_NETLINK, libc::NETLINK_NO_ENOBUFS),
    row(NETLINK, SOL_NETLINK, libc::NETLINK_CAP_ACK),
    row(NETLINK, SOL_NETLINK, libc::NETLINK_EXT_ACK),
    row(NETLINK, SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK),
    late(ANY, SOL_SOCKET, libc::SO_LOCK_FILTER),
];

impl Row {
    fn applies(&self, family: c_int, kind: c_int) -> bool {
        (self.of.0 == 0 || self.of.0 == family) && (self.of.1 == 0 || self.of.1 == kind)
    }
}

/// The options of a socket. What it does not know, it does not have.
pub fn read(fd: BorrowedFd<'_>, family: c_int, kind: c_int) -> Vec<SocketOption> {
    let rows = ROWS.iter().filter(|row| row.applies(family, kind));
    rows.filter_map(|row| {
        let value = socket::option(fd, row.level, row.name, ROOM).ok()?;
        Some(SocketOption { level: row.level, name: row.name, value: ByteBuf::from(value) })
    })
    .collect()
}

/// Sets those of `options` that belong to `when` and differ from what the socket has. Options that the
/// table does not know are no options of an image.
pub fn apply(
    fd: BorrowedFd<'_>,
    options: &[SocketOption],
    when: When,
) -> Result<(), (SocketOption, Errno)> {
    for row in ROWS.iter().filter(|row| row.when == when) {
        let same = |it: &&SocketOption| (it.level, it.name) == (row.level, row.name);
        let Some(option) = options.iter().find(same) else { continue };
        set(fd, row, option).map_err(|errno| (option.clone(), errno))?;
    }
    Ok(())
}

fn set(fd: BorrowedFd<'_>, row: &Row, option: &SocketOption) -> Result<(), Errno> {
    let now = socket::option(fd, row.level, row.name, ROOM);
    if now.as_ref().is_ok_and(|now| now[..] == option.value[..]) {
        return Ok(());
    }
    let mut value = option.value.to_vec();
    if (row.level, row.name) == (SOL_SOCKET, libc::SO_SNDBUF)
        || (row.level, row.name) == (SOL_SOCKET, libc::SO_RCVBUF)
    {
        // The kernel doubles what it is given (socket(7)).
        value = (number(&value) / 2).to_ne_bytes().to_vec();
    }
    match socket::set_option(fd, row.level, row.name, &value) {
        Err(_) if row.soft => Ok(()),
        done => done,
    }
}

fn number(value: &[u8]) -> i32 {
    value.get(..4).and_then(|it| it.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// The value of an option that is a number.
pub fn find(options: &[SocketOption], level: c_int, name: c_int) -> Option<i32> {
    let option = options.iter().find(|it| (it.level, it.name) == (level, name))?;
    Some(number(&option.value))
}

/// An option that is a number, as a socket has it now.
pub fn get(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> Result<i32, Errno> {
    socket::option(fd, level, name, 4).map(|value| number(&value))
}

/// Sets one that is a number.
pub fn put(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: i32) -> Result<(), Errno> {
    socket::set_option(fd, level, name, &value.to_ne_bytes())
}
