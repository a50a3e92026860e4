//! UDP sockets, see udp(7).

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::{Whose, queue};
use crate::save::error::SaveError;
use crate::save::sockets::{Message, Udp, endpoint};
use crate::sys::socket;

/// A socket. What the messages that wait in it say beside their bytes and their sender (IP_PKTINFO,
/// IP_TTL and so on) is made anew when they are.
pub(super) fn capture(who: &Whose, fd: BorrowedFd<'_>) -> Result<Udp, SaveError> {
    let failed = who.failed("ask the socket");
    // What was sent over the loopback is charged to nobody any more (loopback_xmit in
    // drivers/net/loopback.c), so what is still charged has not been sent (UDP_CORK, MSG_MORE).
    if socket::to_send(fd).map_err(&failed)? > 0 {
        return Err(who.refuse_for_now(
            "a UDP socket with a datagram that is not complete (UDP_CORK), which cannot be saved; \
             send it first",
        ));
    }
    let local = socket::name(fd).map_err(&failed)?;
    let local = endpoint(&local).is_some_and(|(_, port)| port != 0).then(|| ByteBuf::from(local));
    let remote = match socket::peer_name(fd) {
        Ok(name) => Some(ByteBuf::from(name)),
        Err(Errno::ENOTCONN) => None,
        Err(errno) => return Err(failed(errno)),
    };
    let found = queue::messages(fd, false);
    let found = found.map_err(who.failed("look at what waits in the socket"))?;
    let queue = found.into_iter().map(|it| Message {
        bytes: ByteBuf::from(it.bytes),
        from: Some(ByteBuf::from(it.from)),
        ..Message::default()
    });
    Ok(Udp { local, remote, queue: queue.collect() })
}

/// Which directions are closed (datagram_poll in net/core/datagram.c tells of one and of both).
pub(super) fn closed(fd: BorrowedFd<'_>) -> u8 {
    match socket::events(fd).unwrap_or(0) {
        events if events & libc::POLLHUP != 0 => 3,
        events if events & libc::POLLRDHUP != 0 => 1,
        _ => 0,
    }
}
