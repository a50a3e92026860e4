//! Sockets as the kernel lists them (sock_diag(7)): requests, and what comes back.
//!
//! Whoever asks is told of the network namespace that the asking socket belongs to, and needs no rights for that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::c_int;
use nix::errno::Errno;

use crate::sys::netlink::{attributes, framed, messages, word};
use crate::sys::{netlink, socket};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sentry) enum Class {
    /// Sockets of the internet: AF_*, IPPROTO_*.
    Inet(c_int, c_int),
    /// Unix sockets.
    Unix,
}

/// All that are listed.
pub(in crate::sentry) const CLASSES: [Class; 7] = [
    Class::Inet(libc::AF_INET, libc::IPPROTO_TCP),
    Class::Inet(libc::AF_INET6, libc::IPPROTO_TCP),
    Class::Inet(libc::AF_INET, libc::IPPROTO_UDP),
    Class::Inet(libc::AF_INET6, libc::IPPROTO_UDP),
    Class::Inet(libc::AF_INET, libc::IPPROTO_RAW),
    Class::Inet(libc::AF_INET6, libc::IPPROTO_RAW),
    Class::Unix,
];

/// Connections of the caller's own network.
pub(in crate::sentry) const CONNECTIONS: [Class; 2] = [CLASSES[0], CLASSES[1]];

/// Where one end of a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sentry) enum End {
    /// Nowhere, or it cannot be told.
    None,
    /// An address of the internet.
    Address(SocketAddr),
    /// The name of a unix socket; an abstract one begins with a zero.
    Name(Vec<u8>),
    /// Another unix socket, by its number.
    Number(u64),
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sentry) struct Listed {
    /// As it was asked for.
    pub class: Class,
    /// SOCK_* of a unix socket.
    pub kind: c_int,
    /// include/net/tcp_states.h
    pub state: u8,
    /// Its number in /proc/PID/fd; 0: no process holds it any more.
    pub inode: u64,
    /// Its number for as long as the host runs (SO_COOKIE).
    pub cookie: u64,
    /// Bytes to be read, or of one that listens connections to be accepted.
    pub recv_queue: u64,
    /// Bytes that are not acknowledged, or of one that listens the most connections to be accepted.
    pub send_queue: u64,
    /// Its own end.
    pub local: End,
    /// The other one.
    pub peer: End,
    /// What a connection has carried.
    pub carried: Option<Carried>,
}

impl Carried {
    /// Adds what another one has.
    pub(in crate::sentry) fn add(&mut self, other: Carried) {
        self.sent = self.sent.saturating_add(other.sent);
        self.received = self.received.saturating_add(other.received);
    }
}

/// Bytes that a connection has carried, headers and repetitions left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::sentry) struct Carried {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// As much as the kernel puts into one message (netlink_dump in net/netlink/af_netlink.c).
const ROOM: usize = 32 << 10;
/// include/uapi/linux/inet_diag.h
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_PROTOCOL: u16 = 10;
/// include/uapi/linux/unix_diag.h
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const SHOW_NAME: u32 = 1;
const SHOW_PEER: u32 = 4;
const SHOW_QUEUES: u32 = 16;
/// include/net/tcp_states.h: the other side has sent its end.
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;
/// enum sknetlink_groups in include/uapi/linux/sock_diag.h
const TCP_DESTROY: u32 = 1;
const TCP6_DESTROY: u32 = 3;

/// A socket that asks about the caller's own network.
pub(in crate::sentry) fn open() -> Result<OwnedFd, Errno> {
    socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)
}

/// A socket on which the kernel tells of every TCP socket of the caller's own network that ends, and what that has
/// carried. Everybody may listen (NL_CFG_F_NONROOT_RECV in diag_net_init, net/core/sock_diag.c; Linux 4.3).
pub(in crate::sentry) fn ends() -> Result<OwnedFd, Errno> {
    const NETLINK_ADD_MEMBERSHIP: c_int = 1;
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
    let fd = socket::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG)?;
    // (As much as the host allows everybody, since many may end at once.)
    let room = (1u32 << 20).to_ne_bytes();
    socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &room)?;
    // struct sockaddr_nl. (One without a number of its own is told nothing: do_one_broadcast in net/netlink/af_netlink.c.)
    let mut any = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    any.resize(12, 0);
    socket::bind(fd.as_fd(), &any)?;
    for group in [TCP_DESTROY, TCP6_DESTROY] {
        let group = group.to_ne_bytes();
        socket::set_option(fd.as_fd(), libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group)?;
    }
    Ok(fd)
}

/// Gives `each` every socket of a class. ENOENT: the host's kernel cannot list them.
pub(in crate::sentry) fn dump(
    netlink: BorrowedFd<'_>,
    class: Class,
    mut each: impl FnMut(Listed),
) -> Result<(), Errno> {
    socket::send(netlink, &socket::Sent { bytes: &request(class), ..socket::Sent::default() })?;
    loop {
        let received = socket::receive(netlink, ROOM, 0)?;
        let mut end = None;
        messages(&received.bytes, |kind, body| match i32::from(kind) {
            libc::NLMSG_DONE => end = Some(word(body, 0).unwrap_or(0).cast_signed()),
            libc::NLMSG_ERROR => end = Some(word(body, 0).unwrap_or(0).cast_signed()),
            _ if kind == SOCK_DIAG_BY_FAMILY => {
                if let Some(listed) = listed(class, body) {
                    each(listed);
                }
            }
            _ => {}
        });
        match end {
            Some(errno) if errno < 0 => return Err(Errno::from_raw(-errno)),
            Some(_) => return Ok(()),
            None if received.length == 0 => return Err(Errno::EBADMSG),
            None => {}
        }
    }
}

/// The inode of the socket of TCP or of UDP that `own` and `other` are the addresses of; one that takes what comes from
/// anywhere is found, too. ENOENT: there is none.
pub(in crate::sentry) fn find(
    netlink: BorrowedFd<'_>,
    is_tcp: bool,
    own: SocketAddr,
    other: SocketAddr,
) -> Result<u64, Errno> {
    let protocol = if is_tcp { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // (Of UDP the kernel takes them the other way round: udp_dump_one in net/ipv4/udp_diag.c.)
    let (source, target) = if is_tcp { (own, other) } else { (other, own) };
    // struct inet_diag_req_v2, without a cookie (INET_DIAG_NOCOOKIE)
    let mut body = vec![family as u8, protocol as u8, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(source.port().to_be_bytes());
    body.extend(target.port().to_be_bytes());
    for end in [source, target] {
        let (_, mut octets) = netlink::octets(end.ip());
        octets.resize(16, 0);
        body.extend(octets);
    }
    body.extend([0; 4]);
    body.extend([0xff; 8]);
    let request = framed(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST, &body);
    socket::send(netlink, &socket::Sent { bytes: &request, ..socket::Sent::default() })?;
    let received = socket::receive(netlink, ROOM, 0)?;
    let mut found = Err(Errno::EBADMSG);
    messages(&received.bytes, |kind, body| match i32::from(kind) {
        libc::NLMSG_ERROR => found = Err(netlink::error(body).unwrap_or(Errno::EBADMSG)),
        _ if kind == SOCK_DIAG_BY_FAMILY => {
            let inode = inet(Class::Inet(family, protocol), body).map(|it| it.inode);
            // (One that nobody holds any more has none.)
            found = inode.filter(|inode| *inode != 0).ok_or(Errno::ENOENT);
        }
        _ => {}
    });
    found
}

/// The TCP sockets that a message of [`ends`] tells of: their cookies and what they have carried.
pub(in crate::sentry) fn ended(bytes: &[u8], mut each: impl FnMut(u64, Carried)) {
    messages(bytes, |kind, body| {
        let protocol = attributes(body.get(INET..).unwrap_or_default())
            .find(|(kind, _)| *kind == INET_DIAG_PROTOCOL)
            .and_then(|(_, value)| value.first().copied());
        let is_tcp = protocol.is_none_or(|it| i32::from(it) == libc::IPPROTO_TCP);
        if kind == SOCK_DIAG_BY_FAMILY
            && is_tcp
            && let Some(Listed { cookie, carried: Some(carried), .. }) = inet(CLASSES[0], body)
        {
            each(cookie, carried);
        }
    });
}

/// struct inet_diag_msg
const INET: usize = 72;
/// struct unix_diag_msg
const UNIX: usize = 16;

fn request(class: Class) -> Vec<u8> {
    const ALL: u32 = u32::MAX;
    let mut body = Vec::new();
    match class {
        Class::Inet(family, protocol) => {
            // struct inet_diag_req_v2
            body.extend([family as u8, protocol as u8, 1 << (INET_DIAG_INFO - 1), 0]);
            body.extend(ALL.to_ne_bytes());
            body.extend([0; 48]);
        }
        Class::Unix => {
            // struct unix_diag_req
            body.extend([libc::AF_UNIX as u8, 0, 0, 0]);
            body.extend(ALL.to_ne_bytes());
            body.extend([0; 4]);
            body.extend((SHOW_NAME | SHOW_PEER | SHOW_QUEUES).to_ne_bytes());
            body.extend([0; 8]);
        }
    }
    framed(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &body)
}

fn listed(class: Class, body: &[u8]) -> Option<Listed> {
    match class {
        Class::Inet(..) => inet(class, body),
        Class::Unix => unix(body),
    }
}

fn inet(class: Class, body: &[u8]) -> Option<Listed> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes(body.get(port..port + 2)?.try_into().ok()?);
        let ip: IpAddr = match i32::from(family) {
            libc::AF_INET => {
                Ipv4Addr::from(<[u8; 4]>::try_from(body.get(address..address + 4)?).ok()?).into()
            }
            _ => {
                Ipv6Addr::from(<[u8; 16]>::try_from(body.get(address..address + 16)?).ok()?).into()
            }
        };
        Some(SocketAddr::new(ip, port))
    };
    let (local, peer) = (end(4, 8)?, end(6, 24)?);
    let info = attributes(body.get(INET..)?).find(|(kind, _)| *kind == INET_DIAG_INFO);
    let has_peer = peer.port() != 0 || !peer.ip().is_unspecified();
    Some(Listed {
        class,
        kind: 0,
        state,
        cookie: u64::from(word(body, 44)?) | u64::from(word(body, 48)?) << 32,
        recv_queue: word(body, 56)?.into(),
        send_queue: word(body, 60)?.into(),
        inode: word(body, 68)?.into(),
        local: End::Address(local),
        peer: if has_peer { End::Address(peer) } else { End::None },
        carried: info.and_then(|(_, info)| carried(state, info)),
    })
}

/// What struct tcp_info says (include/uapi/linux/tcp.h; bytes_sent since Linux 4.19).
fn carried(state: u8, info: &[u8]) -> Option<Carried> {
    const RECEIVED: usize = 128;
    const SENT: usize = 200;
    const REPEATED: usize = 208;
    let received = long(info, RECEIVED)?;
    // The end that the other side has sent counts as a byte (tcp_rcv_nxt_update in net/ipv4/tcp_input.c).
    let has_end = [TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING].contains(&state);
    Some(Carried {
        sent: long(info, SENT)?.saturating_sub(long(info, REPEATED)?),
        received: received.saturating_sub(u64::from(has_end)),
    })
}

fn unix(body: &[u8]) -> Option<Listed> {
    let mut listed = Listed {
        class: Class::Unix,
        kind: (*body.get(1)?).into(),
        state: *body.get(2)?,
        inode: word(body, 4)?.into(),
        cookie: u64::from(word(body, 8)?) | u64::from(word(body, 12)?) << 32,
        recv_queue: 0,
        send_queue: 0,
        local: End::None,
        peer: End::None,
        carried: None,
    };
    for (kind, value) in attributes(body.get(UNIX..)?) {
        match kind {
            UNIX_DIAG_NAME => {
                // (Of one with a path the zero at its end may be counted.)
                let is_abstract = value.first() == Some(&0);
                let path = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                let name = if is_abstract { value } else { &value[..path] };
                listed.local = End::Name(name.to_vec());
            }
            UNIX_DIAG_PEER => {
                // (One that was not accepted yet has no number.)
                let number = word(value, 0).filter(|number| *number != 0);
                listed.peer = number.map_or(End::None, |it| End::Number(it.into()));
            }
            UNIX_DIAG_RQLEN => {
                listed.recv_queue = word(value, 0).unwrap_or(0).into();
                listed.send_queue = word(value, 4).unwrap_or(0).into();
            }
            _ => {}
        }
    }
    Some(listed)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn cookie(fd: BorrowedFd<'_>) -> u64 {
        let bytes = socket::option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, 8).unwrap();
        u64::from_ne_bytes(bytes.try_into().unwrap())
    }

    fn find(class: Class, cookie: u64) -> Option<Listed> {
        let (netlink, mut found) = (open().unwrap(), None);
        dump(netlink.as_fd(), class, |it| {
            if it.cookie == cookie {
                found = Some(it);
            }
        })
        .unwrap();
        found
    }

    #[test]
    fn connections_are_listed_with_what_they_have_carried_and_told_of_at_their_end() {
        let told = ends().unwrap();
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        let (mut other, _) = listening.accept().unwrap();
        one.write_all(&[1; 1000]).unwrap();
        other.read_exact(&mut [0; 1000]).unwrap();
        other.write_all(&[1; 7]).unwrap();
        one.read_exact(&mut [0; 3]).unwrap();
        let number = cookie(one.as_fd());
        let found = find(CLASSES[0], number).unwrap();
        assert_eq!(found.local, End::Address(one.local_addr().unwrap()));
        assert_eq!(found.peer, End::Address(one.peer_addr().unwrap()));
        assert_eq!(found.carried, Some(Carried { sent: 1000, received: 7 }));
        assert_eq!((found.state, found.recv_queue), (1, 4));
        assert_eq!(found.inode, crate::sys::files::identity(one.as_fd()).unwrap().1);
        let listening = find(CLASSES[0], cookie(listening.as_fd())).unwrap();
        assert_eq!((listening.state, listening.peer), (10, End::None));
        drop((one, other));
        let mut end = None;
        while end.is_none() {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            let mut fds = [PollFd::new(told.as_fd(), PollFlags::POLLIN)];
            assert!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap() > 0);
            let message = socket::receive(told.as_fd(), ROOM, libc::MSG_DONTWAIT).unwrap();
            ended(&message.bytes, |cookie, carried| {
                if cookie == number {
                    end = Some(carried);
                }
            });
        }
        let end = end.unwrap();
        assert_eq!(end.sent, 1000);
        assert!(end.received == 7 || end.received == 8, "{end:?}");
    }

    #[test]
    fn one_socket_is_found_by_its_addresses() {
        use std::net::UdpSocket;
        let inode = |fd: BorrowedFd<'_>| crate::sys::files::identity(fd).unwrap().1;
        let netlink = open().unwrap();
        let found = |is_tcp, own, other| super::find(netlink.as_fd(), is_tcp, own, other);
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listening.local_addr().unwrap();
        let one = TcpStream::connect(there).unwrap();
        let here = one.local_addr().unwrap();
        assert_eq!(found(true, here, there), Ok(inode(one.as_fd())));
        let asked = UdpSocket::bind("127.0.0.1:0").unwrap();
        let there = asked.local_addr().unwrap();
        // One that is connected, one that is not, and one of IPv6 that speaks IPv4 as well.
        for (own, is_connected) in [("127.0.0.1:0", true), ("0.0.0.0:0", false), ("[::]:0", false)]
        {
            let Ok(one) = UdpSocket::bind(own) else { continue };
            if is_connected {
                one.connect(there).unwrap();
            }
            let here =
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), one.local_addr().unwrap().port());
            assert_eq!(found(false, here, there), Ok(inode(one.as_fd())), "{own}");
            drop(one);
            assert_eq!(found(false, here, there), Err(Errno::ENOENT));
        }
    }

    #[test]
    fn unix_sockets_have_names_and_peers() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
        let (one, other) = UnixStream::pair().unwrap();
        let found = find(Class::Unix, cookie(one.as_fd())).unwrap();
        let peer = crate::sys::files::identity(other.as_fd()).unwrap().1;
        assert_eq!((found.kind, found.peer), (libc::SOCK_STREAM, End::Number(peer)));
        let name = format!("sandbox-diag-{}", std::process::id());
        let bound = SocketAddr::from_abstract_name(&name).unwrap();
        let bound = UnixDatagram::bind_addr(&bound).unwrap();
        let found = find(Class::Unix, cookie(bound.as_fd())).unwrap();
        assert_eq!(found.local, End::Name([b"\0", name.as_bytes()].concat()));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_read_or_left(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            ended(&bytes, |_, _| {});
            messages(&bytes, |_, body| {
                let _ = (inet(CLASSES[0], body), unix(body));
            });
            let _ = (inet(CLASSES[0], &bytes), unix(&bytes));
        }
    }
}
