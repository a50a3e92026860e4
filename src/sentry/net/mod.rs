//! The network of a run that may reach some hosts (`--net allow`).
//!
//! Guests live in an empty network of their own, where all of their sockets are made. What may go out does so in one
//! of two ways. A TCP connection is made by the sentry, outside, on a socket of its own, which then takes the place of
//! the guest's: from there on every byte goes by the host kernel alone. A datagram is carried: its address is given
//! to the guests' own loopback, and a socket of the sentry's there, a *relay*, takes what is sent to it and passes
//! it on; so no guest ever holds a socket of UDP that could be pointed elsewhere. Names are looked up by the sentry
//! alone, and only those that a rule is about.
//!
//! A guest that holds a socket of the host's network must not be able to use it for anything but the connection that
//! it stands for. connect(2) on TCP is refused to guests by Landlock, whatever the sentry says, and listen(2) never
//! goes on in the kernel: the sentry does both, on the very socket that it has judged. All other calls that go on
//! natively can only reach the guests' own network.

mod address;
mod datagrams;
mod guest_socket;
mod inside;
mod options;
mod policy;
mod replace;
mod resolver;
mod rule;
mod tcp;
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use nix::errno::Errno;

pub use address::{LONGEST, bytes as address_bytes, family, parse as parse_address};
use datagrams::Relays;
pub use guest_socket::GuestSocket;
pub use inside::{Inside, serve};
use policy::Known;
pub use policy::{Policy, Verdict, is_loopback};
pub use resolver::{RESOLVERS, Resolver};
pub use rule::{Rule, Target, Transport};
pub use tcp::connect;

use super::kernel::Kernel;
use super::task::comm;
use crate::sys::socket;
use replace::Watchers;

/// The network of one run.
#[derive(Debug)]
pub struct Network {
    /// Immutable.
    policy: Policy,
    /// What the resolver has found. A leaf of the lock order.
    known: Mutex<Known>,
    inside: Inside,
    /// What tells sockets of the host's network from those of the guests'. Immutable.
    outside: u64,
    relays: Relays,
    /// Made when the first socket is replaced that an epoll instance watches.
    watchers: OnceLock<Option<Watchers>>,
}

/// The only address that a guest's interfaces have beside the loopback's: programs that ask whether there is a network
/// of IPv4 (AI_ADDRCONFIG in getaddrinfo(3)) look for such a one. It means no host anywhere (RFC 7600).
const OWN_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 0, 8));
/// Likewise, of IPv6, for hosts that have that; a random net of RFC 4193.
const OWN_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd5b, 0x73a6, 0x0e62, 0, 0, 0, 0, 1));

impl Network {
    /// A network under `policy`, whose sockets inside come from `inside`.
    pub fn new(policy: Policy, inside: Inside) -> Result<Network, Errno> {
        let outside = guest_socket::own_cookie()?;
        inside.add_address(OWN_V4)?;
        if has_v6() {
            // (The guests' own kernel may be without: then programs see none.)
            let _ = inside.add_address(OWN_V6);
        }
        Ok(Network {
            policy,
            known: Mutex::default(),
            inside,
            outside,
            relays: Relays::default(),
            watchers: OnceLock::new(),
        })
    }

    /// What the run was told.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// `name` was found to stand for `address`.
    pub fn learn(&self, name: &str, address: IpAddr, lifetime: Option<std::time::Duration>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.learn(name, address, lifetime, Instant::now());
    }

    /// What `address` is known by.
    fn names(&self, address: IpAddr) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.names(address, Instant::now())
    }

    /// What becomes of what is sent to `address`.
    pub fn judge(&self, address: SocketAddr, transport: Transport) -> Verdict {
        let ip = address.ip();
        if is_loopback(ip)
            && self.policy.allow.iter().all(|rule| !rule.takes_address(address, transport))
        {
            return Verdict::Inside;
        }
        if [OWN_V4, OWN_V6].contains(&ip.to_canonical()) {
            return Verdict::Inside;
        }
        self.policy.judge(address, transport, &self.names(ip), is_own(address))
    }

    /// Tells of a refusal, once for each address.
    pub fn refuse(
        &self,
        kernel: &Kernel,
        tid: i32,
        address: SocketAddr,
        transport: Transport,
        why: &'static str,
    ) {
        let names = self.names(address.ip());
        let name = names.first().map(|name| format!(" ({name})")).unwrap_or_default();
        kernel.refuse_one_of_many(
            tid,
            &format!("the address {address}/{transport}{name}"),
            why,
            "--allow-net HOST:PORT, or ADDRESS:PORT, allows it",
        );
    }

    /// A connection or a flow of datagrams was allowed.
    fn admitted(&self, kernel: &Kernel, tid: i32, address: SocketAddr, transport: Transport) {
        kernel.emit(&super::events::Event::Connected {
            tid,
            comm: comm(tid).unwrap_or_default(),
            address: address.to_string(),
            transport: transport.to_string(),
            name: self.names(address.ip()).into_iter().next(),
        });
    }

    /// Whether a socket of a guest's belongs to the host's network.
    pub fn is_outside(&self, socket: &GuestSocket) -> bool {
        socket.cookie == self.outside
    }

    /// Carries datagrams to an address that may be reached.
    pub fn relay(
        &self,
        kernel: &std::sync::Arc<Kernel>,
        tid: i32,
        address: SocketAddr,
    ) -> Result<(), Errno> {
        if self.relays.open(&self.inside, address)? {
            self.admitted(kernel, tid, address, Transport::Udp);
        }
        Ok(())
    }

    fn watchers(&self) -> Result<&Watchers, Errno> {
        self.watchers.get_or_init(|| Watchers::start().ok()).as_ref().ok_or(Errno::EAGAIN)
    }
}

/// Whether this is an address of the host's own: what is sent there comes from it, as the kernel would route it.
/// (A datagram socket sends nothing when it is connected.)
fn is_own(address: SocketAddr) -> bool {
    source_for(address)
        .is_some_and(|source| source.ip().to_canonical() == address.ip().to_canonical())
}

/// Whether the host has a way to addresses of IPv6 at all.
fn has_v6() -> bool {
    // An address of the internet that nobody has (RFC 3849 reserves it for documentation).
    let far = SocketAddr::new(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 53);
    source_for(far).is_some()
}

fn source_for(address: SocketAddr) -> Option<SocketAddr> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let probe = socket::socket(family, libc::SOCK_DGRAM, 0).ok()?;
    let port = if address.port() == 0 { 1 } else { address.port() };
    let address = SocketAddr::new(address.ip(), port);
    socket::connect(probe.as_fd(), &address::bytes(address)).ok()?;
    address::parse(&socket::name(probe.as_fd()).ok()?)
}
