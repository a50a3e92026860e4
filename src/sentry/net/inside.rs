//! Sockets in the guests' network namespace, for the sentry, which is outside of it.
//!
//! A socket belongs to the namespace that its maker was in, whoever uses it. So one small process of ours stays in
//! that namespace, makes sockets, and hands them over; it does nothing else. To bind a low port or to add an
//! address needs no more than that: the supervisor made the user namespace that owns the network, and has every
//! capability in it (cap_capable in security/commoncap.c).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use libc::c_int;
use nix::errno::Errno;

use crate::sys::{message, socket};

/// The sentry's end.
#[derive(Debug)]
pub struct Inside {
    /// One question and its answer at a time. A leaf of the lock order.
    outpost: Mutex<OwnedFd>,
}

const QUESTION: usize = 12;
const ANSWER: usize = 4;

impl Inside {
    /// Speaks to an outpost, which [`serve`]s the other end.
    pub fn new(outpost: OwnedFd) -> Inside {
        Inside { outpost: Mutex::new(outpost) }
    }

    /// socket(2) there. EPIPE: the outpost is gone.
    pub fn socket(&self, family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd, Errno> {
        let outpost = self.outpost.lock().unwrap_or_else(PoisonError::into_inner);
        let question = [family, kind, protocol].map(c_int::to_ne_bytes).concat();
        message::send(outpost.as_fd(), &question, &[])?;
        let mut answer = [0; ANSWER];
        let (length, [fd, ..]) = message::receive(outpost.as_fd(), &mut answer)?;
        match (length, c_int::from_ne_bytes(answer), fd) {
            (ANSWER, 0, Some(fd)) => Ok(fd),
            (ANSWER, errno @ 1.., None) => Err(Errno::from_raw(errno)),
            (0, ..) => Err(Errno::EPIPE),
            _ => Err(Errno::EBADMSG),
        }
    }

    /// Gives the loopback there another address, so that what is sent to it stays there and can be taken by a socket
    /// that is bound to it. Once more does no harm.
    pub fn add_address(&self, address: IpAddr) -> Result<(), Errno> {
        let netlink = self.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let request = socket::Sent { bytes: &new_address(address), ..socket::Sent::default() };
        socket::send(netlink.as_fd(), &request)?;
        let answer = socket::receive(netlink.as_fd(), 4096, 0)?;
        match acknowledgement(&answer.bytes) {
            None => Err(Errno::EBADMSG),
            Some(0) => Ok(()),
            Some(errno) if errno == Errno::EEXIST as i32 => Ok(()),
            Some(errno) => Err(Errno::from_raw(errno)),
        }
    }
}

/// The outpost's work: until the other end is closed. Child side.
pub fn serve(end: BorrowedFd<'_>) {
    loop {
        let mut question = [0; QUESTION];
        let Ok((QUESTION, _)) = message::receive(end, &mut question) else { return };
        let word = |at: usize| {
            c_int::from_ne_bytes([
                question[at],
                question[at + 1],
                question[at + 2],
                question[at + 3],
            ])
        };
        let sent = match socket::socket(word(0), word(4), word(8)) {
            Ok(fd) => message::send(end, &0i32.to_ne_bytes(), &[fd.as_fd()]),
            Err(errno) => message::send(end, &(errno as i32).to_ne_bytes(), &[]),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A request of rtnetlink(7): a whole address of its own for the loopback, which always is device 1
/// (LOOPBACK_IFINDEX).
fn new_address(address: IpAddr) -> Vec<u8> {
    const LOOPBACK: u32 = 1;
    const HOST_SCOPE: u8 = 254;
    let (family, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    // struct ifaddrmsg
    let mut body = vec![family as u8, octets.len() as u8 * 8, libc::IFA_F_NODAD as u8, HOST_SCOPE];
    body.extend(LOOPBACK.to_ne_bytes());
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body.extend((4 + octets.len() as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(&octets);
    }
    // struct nlmsghdr
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
    let mut request = (16 + body.len() as u32).to_ne_bytes().to_vec();
    request.extend(libc::RTM_NEWADDR.to_ne_bytes());
    request.extend((flags as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    request
}

/// The error in an NLMSG_ERROR, as a positive number; 0 is none.
fn acknowledgement(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (i32::from(kind) == libc::NLMSG_ERROR).then_some(error.checked_neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_come_from_the_other_side_and_errors_are_its_own() {
        let (ours, theirs) = message::pair().unwrap();
        let outpost = std::thread::spawn(move || serve(theirs.as_fd()));
        let inside = Inside::new(ours);
        let made = inside.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        let kind = socket::option(made.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE, 4).unwrap();
        assert_eq!(kind, libc::SOCK_DGRAM.to_ne_bytes());
        assert_eq!(inside.socket(-1, 0, 0).unwrap_err(), Errno::EAFNOSUPPORT);
        drop(inside);
        outpost.join().unwrap();
    }

    #[test]
    fn a_request_has_the_length_that_it_says() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let request = new_address(address.parse().unwrap());
            assert_eq!(request[..4], (request.len() as u32).to_ne_bytes());
            assert_eq!(request.len() % 4, 0);
        }
    }
}
