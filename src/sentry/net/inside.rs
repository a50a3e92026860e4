//! Sockets in the guests' network namespace, for the sentry, which is outside of it.
//!
//! A socket belongs to the namespace that its maker was in, whoever uses it. So one small process of ours stays in
//! that namespace, makes sockets, and hands them over; it does nothing else. To bind a low port or to add an
//! address needs no more than that: the supervisor made the user namespace that owns the network, and has every
//! capability in it (cap_capable in security/commoncap.c).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use libc::c_int;
use nix::errno::Errno;

use crate::sys::{message, netlink, socket};

/// The sentry's end.
#[derive(Debug)]
pub struct Inside {
    /// One question and its answer at a time. A leaf of the lock order.
    outpost: Mutex<OwnedFd>,
    /// What the loopback there has been lent. Taken before `outpost`.
    lent: Mutex<Loans>,
}

#[derive(Debug, Default)]
struct Loans {
    /// How many need each.
    needed: HashMap<(Loan, IpAddr), usize>,
    /// Routes that nobody needs, which are still there; the oldest comes first.
    idle: VecDeque<IpAddr>,
}

/// So many routes stay when nobody needs them: behind a connection that was closed the kernel may still have to bring what
/// was said, for as long as the other side takes to read it.
const MOST_IDLE: usize = 1024;

/// What the loopback there can be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Loan {
    /// An address, which programs find among those of its own.
    Address,
    /// A route: what is sent to an address stays there.
    Route,
}

/// Something that the loopback there has for as long as somebody needs it.
#[derive(Debug)]
pub(super) struct Lent {
    inside: Arc<Inside>,
    loan: Loan,
    address: IpAddr,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut lent = self.inside.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let lent = &mut *lent;
        let Entry::Occupied(mut needed) = lent.needed.entry((self.loan, self.address)) else {
            return;
        };
        *needed.get_mut() -= 1;
        if *needed.get() > 0 {
            return;
        }
        let mut over = Some(self.address);
        if self.loan == Loan::Route {
            lent.idle.push_back(self.address);
            over = if lent.idle.len() > MOST_IDLE { lent.idle.pop_front() } else { None };
        }
        if let Some(over) = over {
            lent.needed.remove(&(self.loan, over));
            // (What stays there makes an address unreachable by another way only.)
            let _ = self.inside.change(self.loan, over, false);
        }
    }
}

const QUESTION: usize = 12;
const ANSWER: usize = 4;

impl Inside {
    /// Speaks to an outpost, which [`serve`]s the other end.
    pub fn new(outpost: OwnedFd) -> Inside {
        Inside { outpost: Mutex::new(outpost), lent: Mutex::default() }
    }

    /// Gives the loopback there an address, so that what is sent to it stays there and can be taken by a socket that is
    /// bound to it, until what is returned is dropped. (It has those of its own anyway.)
    pub(super) fn lend(self: &Arc<Self>, address: IpAddr) -> Result<Option<Lent>, Errno> {
        self.borrow(Loan::Address, address)
    }

    /// The same of an address that programs are not to take for one of their own. It may lead there for longer.
    pub(super) fn lend_route(self: &Arc<Self>, address: IpAddr) -> Result<Option<Lent>, Errno> {
        self.borrow(Loan::Route, address)
    }

    fn borrow(self: &Arc<Self>, loan: Loan, address: IpAddr) -> Result<Option<Lent>, Errno> {
        if address.is_loopback() {
            return Ok(None);
        }
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let lent = &mut *lent;
        match lent.needed.entry((loan, address)) {
            Entry::Occupied(mut needed) => {
                *needed.get_mut() += 1;
                if loan == Loan::Route && *needed.get() == 1 {
                    lent.idle.retain(|idle| *idle != address);
                }
            }
            Entry::Vacant(needed) => {
                self.change(loan, address, true)?;
                needed.insert(1);
            }
        }
        Ok(Some(Lent { inside: Arc::clone(self), loan, address }))
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

    /// Gives the loopback there another address, or takes it away. Once more does no harm.
    pub(super) fn change_address(&self, address: IpAddr, add: bool) -> Result<(), Errno> {
        self.change(Loan::Address, address, add)
    }

    fn change(&self, loan: Loan, address: IpAddr, add: bool) -> Result<(), Errno> {
        let netlink = self.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let request = request(loan, address, add);
        socket::send(
            netlink.as_fd(),
            &socket::Sent { bytes: &request, ..socket::Sent::default() },
        )?;
        let answer = socket::receive(netlink.as_fd(), 4096, 0)?;
        let mut done = Err(Errno::EBADMSG);
        netlink::messages(&answer.bytes, |kind, body| {
            if c_int::from(kind) == libc::NLMSG_ERROR {
                done = match netlink::error(body) {
                    None => Ok(()),
                    Some(Errno::EEXIST) if add => Ok(()),
                    Some(errno) => Err(errno),
                };
            }
        });
        done
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

/// A request of rtnetlink(7) about a whole address, for the loopback, which always is device 1 (LOOPBACK_IFINDEX).
fn request(loan: Loan, address: IpAddr, add: bool) -> Vec<u8> {
    const LOOPBACK: u32 = 1;
    let (family, octets) = netlink::octets(address);
    let bits = octets.len() as u8 * 8;
    let (kinds, body) = match loan {
        Loan::Address => {
            // struct ifaddrmsg
            let mut body = vec![family, bits, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_HOST];
            body.extend(LOOPBACK.to_ne_bytes());
            for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
                body.extend(netlink::attribute(kind, &octets));
            }
            ((libc::RTM_NEWADDR, libc::RTM_DELADDR), body)
        }
        Loan::Route => {
            // struct rtmsg; the protocol tells it from the one that an address has (fib_magic in net/ipv4/fib_frontend.c).
            let (table, scope) = (libc::RT_TABLE_LOCAL, libc::RT_SCOPE_HOST);
            let mut body = vec![family, bits, 0, 0, table];
            body.extend([libc::RTPROT_STATIC, scope, libc::RTN_LOCAL, 0, 0, 0, 0]);
            body.extend(netlink::attribute(libc::RTA_DST, &octets));
            body.extend(netlink::attribute(libc::RTA_OIF, &LOOPBACK.to_ne_bytes()));
            ((libc::RTM_NEWROUTE, libc::RTM_DELROUTE), body)
        }
    };
    let (kind, more) = if add { (kinds.0, libc::NLM_F_CREATE) } else { (kinds.1, 0) };
    netlink::framed(kind, libc::NLM_F_REQUEST | libc::NLM_F_ACK | more, &body)
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
    fn routes_lead_to_the_loopback_there_until_others_have_come() {
        let (ours, theirs) = message::pair().unwrap();
        // (The thread's own network, where no ordinary user may change anything.)
        let outpost = std::thread::spawn(move || {
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
            let ip = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            if made && ip.is_ok_and(|it| it.success()) {
                serve(theirs.as_fd());
            }
        });
        let inside = Arc::new(Inside::new(ours));
        let leads = |address: IpAddr| {
            let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let probe = inside.socket(family, libc::SOCK_DGRAM, 0).unwrap();
            let to = super::super::address::bytes((address, 9).into());
            socket::connect(probe.as_fd(), &to).is_ok()
        };
        let number = |at: u32| IpAddr::from(std::net::Ipv4Addr::from(0xc633_6400 + at));
        if inside.socket(libc::AF_INET, libc::SOCK_DGRAM, 0).is_err() {
            println!("skipped: no network of a test's own");
            return;
        }
        let held = inside.lend_route(number(0)).unwrap();
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        assert!(leads(number(0)) && !leads(number(1)) && !leads(v6));
        let both = [v6, number(1)].map(|it| inside.lend_route(it).unwrap());
        let again = inside.lend_route(number(1)).unwrap();
        drop(both);
        assert!(leads(v6) && leads(number(1)));
        // The one that is still needed does not make way, nor one that is needed again; the oldest does.
        for at in 2..MOST_IDLE as u32 + 1 {
            drop(inside.lend_route(number(at)).unwrap());
        }
        assert!(leads(v6) && leads(number(2)));
        drop(inside.lend_route(v6).unwrap());
        drop(again);
        assert!(leads(v6) && !leads(number(2)) && leads(number(3)));
        drop(inside.lend_route(number(2)).unwrap());
        assert!(leads(number(0)) && leads(v6) && leads(number(2)) && !leads(number(3)));
        drop(held);
        drop(inside);
        outpost.join().unwrap();
    }

    #[test]
    fn a_request_has_the_length_that_it_says() {
        for (loan, add) in [(Loan::Address, true), (Loan::Route, true), (Loan::Route, false)] {
            for address in ["192.0.2.1", "2001:db8::1"] {
                let request = request(loan, address.parse().unwrap(), add);
                assert_eq!(request[..4], (request.len() as u32).to_ne_bytes());
                assert_eq!(request.len() % 4, 0);
            }
        }
    }
}
