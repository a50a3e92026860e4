//! Addresses of the internet as system calls carry them (ip(7), ipv6(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes of the longest address that a call may carry (struct sockaddr_storage).
pub const LONGEST: usize = size_of::<libc::sockaddr_storage>();

/// An address of the internet, if it is one. One of IPv6 without its last field has scope 0, as the kernel takes it
/// (SIN6_LEN_RFC2133).
pub fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    match i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?)) {
        libc::AF_INET if bytes.len() >= size_of::<libc::sockaddr_in>() => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port()?).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let (flow, scope) = (word(4)?, word(24).unwrap_or(0));
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port()?, flow, scope).into())
        }
        _ => None,
    }
}

/// The family of sockets that reach an address.
pub(super) fn family(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// As a call wants it.
pub(super) fn bytes(address: SocketAddr) -> Vec<u8> {
    let mut bytes = (family(address) as u16).to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(v6.flowinfo().to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// An address of IPv4 in the clothes of IPv6 is what it is.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The address of a family that means any.
pub(super) fn any(family: i32, port: u16) -> SocketAddr {
    match family {
        libc::AF_INET => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        _ => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_as_the_kernel_does() {
        for text in ["192.0.2.1:80", "[::1]:53", "[fe80::1%3]:22", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(parse(&bytes(address)), Some(address));
        }
        let v6 = bytes("[::1]:53".parse().unwrap());
        assert_eq!((v6.len(), parse(&v6[..24])), (28, Some("[::1]:53".parse().unwrap())));
        assert_eq!((parse(&v6[..20]), parse(&[1, 0, b'/', b'x']), parse(&[])), (None, None, None));
        let v4 = bytes("192.0.2.1:80".parse().unwrap());
        assert_eq!((v4.len(), parse(&v4[..15])), (16, None));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_an_address_or_none(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let _ = parse(&bytes);
        }
    }
}
