//! TCP connections whose other side an image cannot have: it is in the host's network, or the sandbox itself.
//!
//! Such a connection is saved as one that is over. What was received and not read is kept, and comes before the end: that
//! the other side had sent its end, or else that the connection was broken off.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::tcp::{CLOSE, CLOSE_WAIT, CLOSING, Info, LAST_ACK, LISTEN, SYN_SENT, unread};
use super::{Around, Gathered, Held, Whose};
use crate::save::error::SaveError;
use crate::save::sockets::{Endpoint, Ends, Tcp, TcpState, endpoint};
use crate::sentry::held_sides;
use crate::sentry::net::{RESOLVERS, parse_address};
use crate::sys::socket;

/// A socket of the host's network, and which directions of it are closed by itself.
pub(super) fn capture(
    who: &Whose,
    fd: BorrowedFd<'_>,
    around: &Around,
) -> Result<(Tcp, u8), SaveError> {
    let failed = who.failed("ask the socket");
    let state = Info::of(fd).map_err(&failed)?.state;
    let events = socket::events(fd).map_err(&failed)?;
    let local = socket::name(fd).map_err(&failed)?;
    let local = endpoint(&local).is_some_and(|(_, port)| port != 0).then(|| ByteBuf::from(local));
    let over = events & libc::POLLRDHUP != 0;
    let has_end = matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING);
    let state = match state {
        // (Guests cannot have one listen there.)
        LISTEN => {
            return Err(who.refuse("a socket that listens in the host's network; close it first"));
        }
        CLOSE if over => TcpState::Ended(unread(who, fd)?, events & libc::POLLERR != 0),
        CLOSE => TcpState::Closed,
        SYN_SENT => TcpState::Connecting,
        _ if around.strict => return Err(refuse(who, fd)),
        _ => TcpState::Ended(unread(who, fd)?, !has_end),
    };
    let remote = match state {
        // (getpeername(2) does not tell of a connection that is not there yet: inet_getname in net/ipv4/af_inet.c.)
        TcpState::Connecting => around.network.as_ref().and_then(|it| it.destination(fd)),
        _ => socket::peer_name(fd).ok(),
    };
    let closed_by_itself = over && !has_end && matches!(state, TcpState::Ended(..));
    // (One that never was a connection is made inside, where it has no address of the host's.)
    let local = local.filter(|_| !matches!(state, TcpState::Closed));
    let remote = remote.map(ByteBuf::from);
    Ok((Tcp { local, remote, state, outside: true }, u8::from(closed_by_itself)))
}

/// A socket of the guests' own network, as it was found. If it is under way to the host's, which it reaches by way of the
/// sentry, it is to be begun again as those that reach it themselves are.
pub(super) fn where_to(tcp: Tcp, fd: BorrowedFd<'_>, around: &Around) -> Tcp {
    let network = around.network.as_ref().filter(|_| tcp.state == TcpState::Connecting);
    match network.and_then(|it| it.carried_to(fd)) {
        Some(target) => Tcp { remote: Some(ByteBuf::from(target)), outside: true, ..tcp },
        None => tcp,
    }
}

/// That a connection would be lost is a reason not to save it.
pub(super) fn refuse(who: &Whose, fd: BorrowedFd<'_>) -> SaveError {
    let peer = socket::peer_name(fd).ok().and_then(|peer| parse_address(&peer));
    let peer = peer.map(|peer| format!(" to {peer}")).unwrap_or_default();
    who.refuse(format!(
        "a TCP connection in the host's network{peer}, which cannot be saved; close it first, or save without --strict"
    ))
}

/// The same of one whose other side is the sandbox itself, which leads it to or from the host. (Whoever asks the resolver
/// asks again.)
pub(super) fn refuse_if_strict(
    held: &Held,
    gathered: &Gathered,
    remote: Endpoint,
) -> Result<(), SaveError> {
    let Held { copy, who } = held;
    if !gathered.around.strict || RESOLVERS.iter().any(|it| of(*it) == remote) {
        return Ok(());
    }
    let network = gathered.around.network.as_ref();
    if network.is_some_and(|it| it.carried_to(copy.as_fd()).is_some()) {
        return Err(refuse(who, copy.as_fd()));
    }
    Err(who.refuse(
        "a TCP connection that has come through a published port, which cannot be saved; close it first, or save \
         without --strict",
    ))
}

/// The connections in the guests' network of which the sentry is one side: its own end of each, then the other one.
pub(super) fn sides_of_sentry(gathered: &Gathered) -> Result<HashSet<Ends>, SaveError> {
    let (true, Some(lister)) = (gathered.around.takes_part, &gathered.lister) else {
        return Ok(HashSet::new());
    };
    let held = match held_sides(lister.as_fd()) {
        Ok(held) => held,
        // (Then they count as connections whose other side is gone.)
        Err(Errno::ENOENT) => return Ok(HashSet::new()),
        Err(errno) => {
            let what = "cannot list the TCP connections of the sandbox";
            return Err(SaveError::failed(what, errno.desc()));
        }
    };
    // All that guests hold has been met.
    let foreign = held.into_iter().filter(|it| !gathered.held.contains_key(&it.inode));
    Ok(foreign.map(|it| (of(it.local), of(it.peer))).collect())
}

fn of(address: SocketAddr) -> Endpoint {
    let octets = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    (octets, address.port())
}
