//! How messages of netlink(7) are laid out, and the one answer that is asked of rtnetlink(7).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use libc::c_int;
use nix::errno::Errno;

use super::socket::{self, Sent};

/// struct nlmsghdr
const HEADER: usize = 16;
/// struct rtmsg; where the kind of a route (RTN_*) is.
const ROUTE: usize = 12;
const ROUTE_KIND: usize = 7;
/// include/uapi/linux/rtnetlink.h
const RTA_IP_PROTO: u16 = 27;
const RTA_DPORT: u16 = 29;
/// More than the answer about a route has (rt_fill_info in net/ipv4/route.c, rt6_fill_node in net/ipv6/route.c).
const ROOM: usize = 8 << 10;

/// A message of this kind: its header, and what is behind that.
pub fn framed(kind: u16, flags: c_int, body: &[u8]) -> Vec<u8> {
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// An attribute (struct rtattr), filled up for the next one.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut attribute = (length as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(length.next_multiple_of(4), 0);
    attribute
}

/// Gives the kind and the body of every message.
pub fn messages<'b>(mut bytes: &'b [u8], mut each: impl FnMut(u16, &'b [u8])) {
    while let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let Some(body) = bytes.get(HEADER..length as usize) else { return };
        each(kind, body);
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The attributes behind a message: kind and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (half(bytes, 0)?, half(bytes, 2)?);
        let value = bytes.get(4..length.into())?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The error in the body of an NLMSG_ERROR; `None`: it only acknowledges.
pub fn error(body: &[u8]) -> Option<Errno> {
    match word(body, 0).map_or(libc::EBADMSG, |errno| errno.cast_signed().wrapping_neg()) {
        0 => None,
        errno => Some(Errno::from_raw(errno)),
    }
}

/// The family (AF_*) and the bytes of an address, as the kernel is told of one.
pub fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

/// What kind of route (RTN_*) leads from the caller's network namespace to an address, for datagrams to its port.
///
/// # Errors
/// What connect(2) would say: ENETUNREACH, EHOSTUNREACH.
pub fn route_kind(address: SocketAddr) -> Result<u8, Errno> {
    let (family, octets) = octets(address.ip());
    let mut body = vec![0; ROUTE];
    body[0] = family;
    body[1] = octets.len() as u8 * 8;
    body.extend(attribute(libc::RTA_DST, &octets));
    body.extend(attribute(RTA_IP_PROTO, &[libc::IPPROTO_UDP as u8]));
    body.extend(attribute(RTA_DPORT, &address.port().to_be_bytes()));
    let request = framed(libc::RTM_GETROUTE, libc::NLM_F_REQUEST, &body);
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    socket::send(netlink.as_fd(), &Sent { bytes: &request, ..Sent::default() })?;
    // (It has answered when the request is sent: netlink_rcv_skb in net/netlink/af_netlink.c.)
    let answer = socket::receive(netlink.as_fd(), ROOM, libc::MSG_DONTWAIT)?;
    let mut found = Err(Errno::EBADMSG);
    messages(&answer.bytes, |kind, body| match kind {
        libc::RTM_NEWROUTE => found = body.get(ROUTE_KIND).copied().ok_or(Errno::EBADMSG),
        _ if c_int::from(kind) == libc::NLMSG_ERROR => {
            found = Err(error(body).unwrap_or(Errno::EBADMSG))
        }
        _ => {}
    });
    found
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The number of 32 bits at this place of a message.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_framed_is_read() {
        let body = [attribute(1, &[1, 2, 3, 4, 5]), attribute(2, &[])].concat();
        let both = [framed(20, 1, &body), framed(21, 1, &[])].concat();
        let mut seen = Vec::new();
        messages(&both, |kind, body| seen.push((kind, attributes(body).collect::<Vec<_>>())));
        assert_eq!(seen, [(20, vec![(1, &[1, 2, 3, 4, 5][..]), (2, &[])]), (21, vec![])]);
        assert_eq!(error(&0i32.to_ne_bytes()), None);
        assert_eq!(error(&(-libc::EPERM).to_ne_bytes()), Some(Errno::EPERM));
        assert_eq!(error(&[]), Some(Errno::EBADMSG));
    }

    #[test]
    fn the_loopback_is_local() {
        for address in ["127.0.0.1:80", "127.3.2.1:0", "[::1]:80"] {
            match route_kind(address.parse().unwrap()) {
                Ok(kind) => assert_eq!(kind, libc::RTN_LOCAL, "{address}"),
                Err(errno) => println!("skipped: no loopback for {address} ({errno})"),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_left(bytes: Vec<u8>) {
            messages(&bytes, |_, body| { attributes(body).for_each(drop); error(body); });
        }
    }
}
