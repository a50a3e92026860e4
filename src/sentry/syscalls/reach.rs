//! Where guests want to send something, watched for `sandbox learn`. All continue: the network of the run, or its
//! absence, decides. sendmsg(2) is not watched: init hands the listener over by it, when the filter is in force and
//! nobody answers yet.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::args::{Fd, In, InBuf, InOut, Int, Len, MMsgHdr, MsgFlags, SockAddr, UInt};
use crate::notify::Answer;
use crate::sentry::call::Call;

/// Watches connect(2).
pub fn connect(call: &Call<'_>, _fd: Fd, addr: In<SockAddr>, len: Int) -> Answer {
    note(call, addr.address, len.0 as i64);
    Answer::Continue
}

/// Watches sendto(2).
pub fn sendto(
    call: &Call<'_>,
    _fd: Fd,
    _buf: InBuf,
    _len: Len,
    _flags: MsgFlags,
    addr: In<SockAddr>,
    len: Int,
) -> Answer {
    note(call, addr.address, len.0 as i64);
    Answer::Continue
}

/// Watches sendmmsg(2).
pub fn sendmmsg(
    call: &Call<'_>,
    _fd: Fd,
    messages: InOut<MMsgHdr>,
    count: UInt,
    _flags: MsgFlags,
) -> Answer {
    /// More are not looked at: a guest is not to keep anybody busy.
    const MOST: u64 = 64;
    const SIZE: u64 = size_of::<libc::mmsghdr>() as u64;
    for number in 0..u64::from(count.0).min(MOST) {
        note_message(call, messages.address.wrapping_add(number * SIZE));
    }
    Answer::Continue
}

/// The address that a `struct msghdr` begins with (sendmsg(2)).
fn note_message(call: &Call<'_>, message: u64) {
    let mut head = [0; 12];
    if message != 0 && call.memory().read(message, &mut head).is_ok() {
        let [name, length] = [&head[..8], &head[8..]];
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, it| sum << 8 | u64::from(*it));
        note(call, number(name), number(length) as i64);
    }
}

fn note(call: &Call<'_>, address: u64, length: i64) {
    let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
    let length = usize::try_from(length).unwrap_or(0).min(bytes.len());
    if address != 0
        && call.memory().read(address, &mut bytes[..length]).is_ok()
        && let Some(address) = parse(&bytes[..length])
    {
        call.kernel.note_address(address);
    }
}

/// An address of the internet (ip(7), ipv6(7)), if it is one.
fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::from((Ipv4Addr::from(ip), port)))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::from((Ipv6Addr::from(ip), port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_does() {
        let mut v4 = [0; 16];
        v4[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        v4[2..8].copy_from_slice(&[0, 80, 192, 0, 2, 1]);
        assert_eq!(parse(&v4), Some("192.0.2.1:80".parse().unwrap()));
        let mut v6 = [0; 28];
        v6[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        v6[3] = 53;
        v6[23] = 1;
        assert_eq!(parse(&v6), Some("[::1]:53".parse().unwrap()));
        assert_eq!((parse(&v6[..20]), parse(&[1, 0, b'/', b'x']), parse(&[])), (None, None, None));
    }
}
