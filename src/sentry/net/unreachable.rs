//! Tells the kernel inside that a connection cannot be made: by the message of ICMP that a router or the host itself would
//! send (RFC 792, RFC 4443), which names the segment that it is about.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::address::{self, family};
use super::inside::Inside;
use super::metered::Waiting;
use crate::sys::socket;

/// Tells the guest's socket, which waits for a connection to `target`, why there is none.
pub(super) fn tell(
    inside: &Inside,
    target: SocketAddr,
    waiting: Waiting,
    why: Errno,
) -> Result<(), Errno> {
    let protocol = if target.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
    let message = message(target, waiting, why).ok_or(Errno::EAFNOSUPPORT)?;
    let raw = inside.socket(family(target), libc::SOCK_RAW, protocol)?;
    let to = address::bytes(SocketAddr::new(waiting.address.ip(), 0));
    let sent = socket::Sent { bytes: &message, to: &to, ..socket::Sent::default() };
    socket::send(raw.as_fd(), &sent).map(drop)
}

/// The message, whose sum the kernel completes for IPv6 (raw(7), ipv6(7)). `None`: the addresses are of two families.
fn message(target: SocketAddr, waiting: Waiting, why: Errno) -> Option<Vec<u8>> {
    let (kind, code, header) = match (waiting.address.ip(), target.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // icmp_err_convert in net/ipv4/icmp.c
            let code = match why {
                Errno::ENETUNREACH => 0,
                Errno::ECONNREFUSED => 3,
                _ => 1,
            };
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, libc::IPPROTO_TCP as u8, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            (3, code, header)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // tab_unreach in net/ipv6/icmp.c
            let code = match why {
                Errno::ENETUNREACH => 0,
                Errno::ECONNREFUSED => 4,
                Errno::EACCES => 1,
                _ => 3,
            };
            let mut header = vec![0x60, 0, 0, 0, 0, 20, libc::IPPROTO_TCP as u8, 64];
            header.extend(from.octets());
            header.extend(to.octets());
            (1, code, header)
        }
        _ => return None,
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(header);
    // The segment, as far as anybody looks at it: ports and number.
    message.extend(waiting.address.port().to_be_bytes());
    message.extend(target.port().to_be_bytes());
    message.extend(waiting.number.to_be_bytes());
    message.extend([0; 12]);
    if target.is_ipv4() {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    Some(message)
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])));
    let sum: u32 = words.sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    !((folded + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_segment_and_has_its_sum() {
        let waiting =
            |address: &str| Waiting { address: address.parse().unwrap(), number: 0x0102_0304 };
        let (target, own) = ("192.0.2.7:443".parse().unwrap(), waiting("192.0.0.8:50000"));
        let told = message(target, own, Errno::ECONNREFUSED).unwrap();
        assert_eq!((told[0], told[1], checksum(&told), told.len()), (3, 3, 0, 48));
        assert_eq!(told[28..36], [0xc3, 0x50, 1, 187, 1, 2, 3, 4]);
        let (target, own) = ("[2001:db8::7]:443".parse().unwrap(), waiting("[fd5b::1]:50000"));
        let told = message(target, own, Errno::EHOSTUNREACH).unwrap();
        assert_eq!((told[0], told[1], told.len()), (1, 3, 68));
        assert_eq!(message(target, waiting("192.0.0.8:1"), Errno::ECONNREFUSED), None);
    }
}
