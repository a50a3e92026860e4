//! Who has come to a published port, as programs inside see it.
//!
//! The other end of what they are connected to is a socket of the sentry's in their own network. It is given the address
//! of who has come, which for that time leads to their loopback: else everybody would seem to have come from there, and be
//! trusted as it (CVE-2021-20199 of another such program).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::super::address::{self, family};
use super::super::inside::{Inside, Lent};
use super::super::{OWN_V4, OWN_V6};
use crate::sys::socket;

/// include/uapi/linux/in6.h
const IPV6_FREEBIND: i32 = 78;

/// Where programs inside listen: at one of these, or at all addresses.
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A socket inside that has a peer's address, as long as it has.
pub(super) struct Seen {
    /// The socket.
    pub(super) fd: OwnedFd,
    /// Keeps the address leading there.
    pub(super) lent: Option<Lent>,
}

/// Where a port of the programs is looked for: first where a peer can be seen as it is.
pub(super) fn places(peer: SocketAddr, guest: u16) -> [SocketAddr; 2] {
    let mut all = LOOPBACKS.map(|address| SocketAddr::new(address, guest));
    if address::canonical(peer).is_ipv6() {
        all.reverse();
    }
    all
}

/// A socket of this kind (SOCK_*) that is about to reach `place`, as `peer` has reached the host.
///
/// # Errors
/// EAFNOSUPPORT: a kernel without IPv6; others are those of its resources.
pub(super) fn socket(
    inside: &Arc<Inside>,
    kind: i32,
    peer: SocketAddr,
    place: SocketAddr,
) -> Result<Seen, Errno> {
    let fd = inside.socket(family(place), kind | libc::SOCK_NONBLOCK, 0)?;
    let Some(shown) = shown(peer, place.ip()) else { return Ok(Seen { fd, lent: None }) };
    let lent = inside.lend_route(shown.ip())?;
    if shown.is_ipv6() {
        // (Of IPv6 a route alone allows no bind: __inet6_bind in net/ipv6/af_inet6.c.)
        socket::set_option(fd.as_fd(), libc::IPPROTO_IPV6, IPV6_FREEBIND, &1i32.to_ne_bytes())?;
    }
    let bind = |port| socket::bind(fd.as_fd(), &address::bytes(SocketAddr::new(shown.ip(), port)));
    match bind(shown.port()) {
        // A program may have that port itself, at all addresses.
        Err(Errno::EADDRINUSE) => bind(0)?,
        done => done?,
    }
    Ok(Seen { fd, lent })
}

/// The address that programs at `place` see. `None`: that of their loopback, as of who has come from the host's. Where the peer
/// has none that they could, one that means no host anywhere, with any port.
fn shown(peer: SocketAddr, place: IpAddr) -> Option<SocketAddr> {
    let peer = address::canonical(peer);
    match (peer.ip(), place) {
        (ip, _) if ip.is_loopback() => None,
        (IpAddr::V4(_), IpAddr::V4(_)) => Some(peer),
        // (One of a link means nothing without that.)
        (IpAddr::V6(v6), IpAddr::V6(_)) if !v6.is_unicast_link_local() => {
            Some(SocketAddr::new(v6.into(), peer.port()))
        }
        (_, IpAddr::V4(_)) => Some(SocketAddr::new(OWN_V4, 0)),
        (_, IpAddr::V6(_)) => Some(SocketAddr::new(OWN_V6, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_comes_from_the_loopback_is_seen_as_that() {
        let shown = |peer: &str, place: &str| {
            shown(peer.parse().unwrap(), place.parse().unwrap()).map(|it| it.to_string())
        };
        assert_eq!(shown("127.0.0.1:5", "127.0.0.1"), None);
        assert_eq!(shown("127.9.0.1:5", "::1"), None);
        assert_eq!(shown("[::ffff:127.0.0.1]:5", "127.0.0.1"), None);
        assert_eq!(shown("192.0.2.1:5", "127.0.0.1").unwrap(), "192.0.2.1:5");
        assert_eq!(shown("[::ffff:192.0.2.1]:5", "127.0.0.1").unwrap(), "192.0.2.1:5");
        assert_eq!(shown("192.0.2.1:5", "::1").unwrap(), SocketAddr::new(OWN_V6, 0).to_string());
        assert_eq!(shown("[2001:db8::1]:5", "::1").unwrap(), "[2001:db8::1]:5");
        assert_eq!(shown("[2001:db8::1]:5", "127.0.0.1").unwrap(), "192.0.0.8:0");
        assert_eq!(shown("[fe80::1%3]:5", "::1").unwrap(), SocketAddr::new(OWN_V6, 0).to_string());
    }
}
