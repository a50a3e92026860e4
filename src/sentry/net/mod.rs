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
//! it stands for. connect(2) and bind(2) on TCP are refused to guests by Landlock, whatever the sentry says, and listen(2)
//! never goes on in the kernel: the sentry does all three, on the very socket that it has judged. What would make
//! another kind of socket of it, or lead its packets elsewhere, is refused by the filter. All other calls that go on
//! natively can only reach the guests' own network.

mod address;
mod datagrams;
mod guest_socket;
mod inside;
mod options;
mod policy;
pub mod publish;
mod replace;
mod resolver;
mod rule;
mod tcp;
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use nix::errno::Errno;

pub use address::{LONGEST, parse as parse_address};
use datagrams::Relays;
pub use guest_socket::GuestSocket;
pub use inside::{Inside, serve};
use policy::{Known, is_loopback};
pub use policy::{Policy, Verdict};
pub use resolver::{RESOLVERS, Resolver};
pub use rule::{Rule, Transport};
pub use tcp::connect;

use super::kernel::Kernel;
use super::task::comm;
use crate::notify::Trapped;
use crate::sys::socket;
use replace::Watchers;

/// The network of one run.
#[derive(Debug)]
pub struct Network {
    /// Immutable.
    policy: Policy,
    /// What the resolver has found. A leaf of the lock order.
    known: Mutex<Known>,
    inside: Arc<Inside>,
    /// The first port that guests may listen at. Immutable.
    lowest_port: u16,
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
    /// A network under `policy`, whose sockets inside come from `inside`, and in which guests may listen at ports from
    /// `lowest_port` on.
    pub fn new(policy: Policy, inside: Arc<Inside>, lowest_port: u16) -> Result<Network, Errno> {
        let outside = guest_socket::own_cookie()?;
        inside.change_address(OWN_V4, true)?;
        if has_v6() {
            // (The guests' own kernel may be without: then programs see none.)
            let _ = inside.change_address(OWN_V6, true);
        }
        Ok(Network {
            policy,
            known: Mutex::default(),
            inside,
            lowest_port,
            outside,
            relays: Relays::default(),
            watchers: OnceLock::new(),
        })
    }

    /// What the run was told.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The first port that guests may listen at without rights (ip_unprivileged_port_start in ip(7)).
    pub fn lowest_port(&self) -> u16 {
        self.lowest_port
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
        let address = address::canonical(address);
        let ip = address.ip();
        if [OWN_V4, OWN_V6].contains(&ip) {
            return Verdict::Inside;
        }
        // (The loopback is the sandbox's own unless a rule says else, whosever else it is.)
        let own = !is_loopback(ip) && is_own(address);
        self.policy.judge(address, transport, &self.names(ip), own)
    }

    /// Tells of a refusal, once for each address.
    fn refuse(
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

    /// Sees to it that datagrams to `address` are carried, if they may be. If not, or if the host has no way there, the
    /// guests' own network knows none either.
    pub fn carry(&self, kernel: &Kernel, tid: i32, address: SocketAddr) {
        let address = address::canonical(address);
        if self.relays.has(address) {
            return;
        }
        match self.judge(address, Transport::Udp) {
            Verdict::Outside => {
                if self.relays.open(&self.inside, address) == Ok(true) {
                    self.admitted(kernel, tid, address, Transport::Udp);
                }
            }
            Verdict::Inside => {}
            Verdict::Refused(why) => self.refuse(kernel, tid, address, Transport::Udp, why),
        }
    }

    /// Puts `new` in the place of a guest's socket.
    fn replace(
        &self,
        trapped: &Trapped,
        old: &GuestSocket,
        new: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let watchers = self.watchers.get_or_init(|| Watchers::start().ok());
        replace::put(trapped, watchers.as_ref().ok_or(Errno::EAGAIN)?, old, new)
    }
}

/// Whether this is an address of the host's own: an interface has it, or what is sent there comes from it, as the kernel
/// would route it. (A datagram socket sends nothing when it is connected.) What cannot be told counts as one.
fn is_own(address: SocketAddr) -> bool {
    let Ok(own) = socket::own_addresses() else { return true };
    if own.contains(&address.ip()) {
        return true;
    }
    match source_for(address) {
        Ok(source) => source.ip() == address.ip(),
        Err(errno) => !matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH),
    }
}

/// Whether the host has a way to addresses of IPv6 at all.
fn has_v6() -> bool {
    // An address of the internet that nobody has (RFC 3849 reserves it for documentation).
    let far = SocketAddr::new(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 53);
    source_for(far).is_ok()
}

fn source_for(mut address: SocketAddr) -> Result<SocketAddr, Errno> {
    if address.port() == 0 {
        address.set_port(1);
    }
    let probe = datagrams::flow_to(address)?;
    address::parse(&socket::name(probe.as_fd())?).ok_or(Errno::EBADMSG)
}
