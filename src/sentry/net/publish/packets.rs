//! Datagrams that come to a published port.
//!
//! Each address that sends some has a *flow*: a socket in the guests' network from which they go on, so that answers find
//! their way back.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::super::address;
use super::super::inside::Lent;
use super::super::meter::Way;
use super::Shared;
use super::peer::{self, Seen};
use crate::sys::{errno_of, socket};

/// A flow that has carried nothing for so long ends (RFC 4787, REQ-5).
const IDLE: Duration = Duration::from_secs(300);
/// The longest datagram.
const ROOM: usize = 64 << 10;

/// Who has sent a datagram, and to which address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Peer {
    from: SocketAddr,
    to: Option<Own>,
}

/// An address of the host, as its packets name it (ip(7), ipv6(7)): where to and which interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Own {
    V4([u8; 4]),
    V6([u8; 16], u32),
}

struct Flow {
    inner: Rc<UdpSocket>,
    /// When it has carried something.
    last: Rc<Cell<Instant>>,
    /// Brings answers back.
    back: AbortHandle,
    /// Gives `inner` its address.
    _lent: Option<Lent>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.back.abort();
    }
}

/// Room for a datagram, for whoever has one in hand: none is kept over an await.
type Room = Rc<RefCell<Vec<u8>>>;

/// Carries datagrams of one port.
pub(super) async fn serve(fd: OwnedFd, guest: u16, shared: Rc<Shared>) {
    let Ok(door) = UdpSocket::from_std(fd.into()) else { return };
    let (door, room) = (Rc::new(door), Rc::new(RefCell::new(vec![0; ROOM])));
    let mut flows: HashMap<Peer, Flow> = HashMap::new();
    loop {
        // Neither what waits nor what tries takes any of a turn: who floods this port would never let others have one.
        consume_budget().await;
        if door.readable().await.is_err() {
            return;
        }
        let turn = shared.turn_of_datagram(Way::In).await;
        let received = door.try_io(Interest::READABLE, || receive(&door, &mut room.borrow_mut()));
        // (An error is about one datagram.)
        let Ok((length, peer)) = received else { continue };
        if turn.is_some_and(|turn| !turn.pay_whole(length)) {
            continue;
        }
        flows.retain(|_, flow| !flow.back.is_finished());
        if !flows.contains_key(&peer) {
            if flows.len() >= shared.flows {
                // The one that has been silent for longest makes way.
                let silent = flows.iter().min_by_key(|(_, flow)| flow.last.get());
                let silent = silent.map(|(peer, _)| *peer);
                silent.and_then(|silent| flows.remove(&silent));
            }
            // What nobody takes is lost, as on any way.
            let first = open(guest, peer.from, &shared, &room.borrow()[..length]);
            let Ok((inner, lent)) = first else { continue };
            let (inner, last) = (Rc::new(inner), Rc::new(Cell::new(Instant::now())));
            let back = bring_back(
                Rc::clone(&inner),
                Rc::clone(&door),
                peer,
                Rc::clone(&last),
                Rc::clone(&room),
                Rc::clone(&shared),
            );
            let back = tokio::task::spawn_local(back).abort_handle();
            flows.insert(peer, Flow { inner, last, back, _lent: lent });
            continue;
        }
        if let Some(flow) = flows.get(&peer) {
            flow.last.set(Instant::now());
            let sent = flow.inner.try_send(&room.borrow()[..length]);
            if sent.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                // Nobody listens any more, or at the other address.
                flows.remove(&peer);
            }
        }
    }
}

/// A socket that reaches the port inside, from which the first datagram was sent, and what gives it the address of `peer`.
fn open(
    guest: u16,
    peer: SocketAddr,
    shared: &Shared,
    first: &[u8],
) -> Result<(UdpSocket, Option<Lent>), Errno> {
    let mut failed = Errno::ECONNREFUSED;
    for place in peer::places(peer, guest) {
        let seen = peer::socket(&shared.inside, libc::SOCK_DGRAM, peer, place);
        let sent = seen.and_then(|Seen { fd, lent }| {
            socket::connect(fd.as_fd(), &address::bytes(place))?;
            // Where nobody listens, it may have that very port itself.
            if address::parse(&socket::name(fd.as_fd())?) == Some(place) {
                return Err(Errno::ECONNREFUSED);
            }
            socket::send(fd.as_fd(), &socket::Sent { bytes: first, ..Default::default() })?;
            // On a loopback who is not there has said so by now.
            let refused = socket::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 4)?;
            match refused.try_into().map_or(0, i32::from_ne_bytes) {
                0 => Ok((fd, lent)),
                errno => Err(Errno::from_raw(errno)),
            }
        });
        match sent {
            Ok((fd, lent)) => {
                let inner = UdpSocket::from_std(fd.into()).map_err(|error| errno_of(&error))?;
                return Ok((inner, lent));
            }
            Err(errno) => failed = errno,
        }
    }
    Err(failed)
}

/// Passes answers on, until nothing has gone either way for a while.
async fn bring_back(
    inner: Rc<UdpSocket>,
    door: Rc<UdpSocket>,
    peer: Peer,
    last: Rc<Cell<Instant>>,
    room: Room,
    shared: Rc<Shared>,
) {
    loop {
        consume_budget().await;
        match tokio::time::timeout_at(last.get() + IDLE, inner.readable()).await {
            Ok(Ok(())) => {
                let turn = shared.turn_of_datagram(Way::Out).await;
                let mut room = room.borrow_mut();
                // (An error is about one datagram: nobody took what was sent before.)
                if let Ok(length) = inner.try_recv(&mut room) {
                    last.set(Instant::now());
                    if turn.is_some_and(|turn| !turn.pay_whole(length)) {
                        continue;
                    }
                    let answer = &room[..length];
                    // (What the host cannot send at once is lost.)
                    let _ = door.try_io(Interest::WRITABLE, || send(&door, answer, peer));
                }
            }
            Ok(Err(_)) => return,
            Err(_) if last.get().elapsed() < IDLE => {}
            Err(_) => return,
        }
    }
}

/// recvmsg(2): the length of a datagram, and whose it is.
fn receive(door: &UdpSocket, into: &mut [u8]) -> io::Result<(usize, Peer)> {
    let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let mut vectors = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(door.as_raw_fd(), &mut vectors, Some(&mut control), flags)?;
    let to = message.cmsgs()?.find_map(|control| match control {
        // (Not ipi_addr: nothing is sent from an address of many, as a broadcast's is.)
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Own::V4(info.ipi_spec_dst.s_addr.to_ne_bytes()))
        }
        // What was sent to many is answered from what address the host chooses.
        ControlMessageOwned::Ipv6PacketInfo(info) if info.ipi6_addr.s6_addr[0] == 0xff => None,
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(Own::V6(info.ipi6_addr.s6_addr, info.ipi6_ifindex))
        }
        _ => None,
    });
    let from = message.address.and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|it| SocketAddr::V4((*it).into()));
        v4.or_else(|| from.as_sockaddr_in6().map(|it| SocketAddr::V6((*it).into())))
    });
    let from = from.ok_or(Errno::EBADMSG)?;
    Ok((message.bytes, Peer { from, to }))
}

/// sendmsg(2): from the address that the peer has sent to.
fn send(door: &UdpSocket, bytes: &[u8], peer: Peer) -> io::Result<()> {
    let (fd, flags) = (door.as_raw_fd(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    let vectors = [IoSlice::new(bytes)];
    let sent = match (peer.from, peer.to) {
        (SocketAddr::V4(to), Some(Own::V4(own))) => {
            let own = libc::in_addr { s_addr: u32::from_ne_bytes(own) };
            let any = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: own, ipi_addr: any };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &vectors, &control, flags, Some(&SockaddrIn::from(to)))
        }
        (SocketAddr::V6(to), Some(Own::V6(own, interface))) => {
            let own = libc::in6_addr { s6_addr: own };
            let info = libc::in6_pktinfo { ipi6_addr: own, ipi6_ifindex: interface };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &vectors, &control, flags, Some(&SockaddrIn6::from(to)))
        }
        (to, _) => {
            let to = SockaddrStorage::from(to);
            sendmsg(fd, &vectors, &[], flags, Some(&to))
        }
    };
    sent.map(drop).map_err(io::Error::from)
}
