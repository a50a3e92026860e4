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
mod asking;
mod datagrams;
mod guest_socket;
mod inside;
mod ledger;
mod log;
mod metered;
mod meter;
mod options;
mod own;
mod policy;
pub mod publish;
mod replace;
mod resolver;
mod rule;
mod saved;
mod seeker;
mod tcp;
mod unhurried;
mod unreachable;
mod upstream;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use nix::errno::Errno;

pub use address::{LONGEST, parse as parse_address};
use datagrams::{Carried, Relays};
pub use guest_socket::GuestSocket;
pub use inside::{Inside, serve};
pub use ledger::HostTraffic;
use ledger::{Key, Ledger};
pub use log::NetLog;
use log::{Record, Who};
pub use meter::{Allowance, Meter};
pub use metered::Metered;
use own::OwnAddresses;
use policy::{Known, is_loopback};
pub use policy::{Policy, Verdict};
pub use resolver::{RESOLVERS, Resolver};
pub use rule::{Rule, Target, Transport};
pub use saved::{SavedName, SavedNetwork};
pub use tcp::connect;

use super::asking::Choice;
use super::block::Interrupted;
use super::call::TaskCall;
use super::kernel::Kernel;
use super::task::comm;
use crate::notify::Trapped;
use crate::sys::socket;
use replace::Watchers;

/// From where on anybody may listen in a new network (ip_unprivileged_port_start in ip(7)), and on most hosts.
pub const UNPRIVILEGED: u16 = 1024;

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
    /// What guests are told that their host is called (uname(2)). Immutable.
    host_name: String,
    /// What tells sockets of the host's network from those of the guests'. Immutable.
    outside: u64,
    relays: Relays,
    own: OwnAddresses,
    /// Made when the first socket is replaced that an epoll instance watches.
    watchers: OnceLock<Option<Watchers>>,
    ledger: Arc<Ledger>,
    /// Carries what goes out, where that is limited. Immutable.
    metered: Option<Metered>,
    /// What is decided is written down here. Immutable.
    log: Option<Arc<NetLog>>,
}

/// Why nothing goes out any more.
const USED_UP: &str = "all that --net-total allows has been carried";

/// What has allowed something: a rule, or an answer.
type Said = (Option<String>, Option<Choice>);

/// Who asks for something.
struct Asked<'k> {
    kernel: &'k Kernel,
    tid: i32,
}

impl<'k> Asked<'k> {
    fn by(call: &'k TaskCall) -> Asked<'k> {
        Asked { kernel: &call.kernel, tid: call.received().tid }
    }
}

/// The only address that a guest's interfaces have beside the loopback's: programs that ask whether there is a network
/// of IPv4 (AI_ADDRCONFIG in getaddrinfo(3)) look for such a one. It means no host anywhere (RFC 7600).
const OWN_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 0, 8));
/// Likewise, of IPv6, for hosts that have that; a random net of RFC 4193.
const OWN_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd5b, 0x73a6, 0x0e62, 0, 0, 0, 0, 1));

impl Network {
    /// A network under `policy`, whose sockets inside come from `inside`, and in which guests may listen at ports from
    /// `lowest_port` on. `host_name`: what they are told that their host is called. `metered`: what it carries is limited.
    pub fn new(
        policy: Policy,
        inside: Arc<Inside>,
        lowest_port: u16,
        host_name: String,
        metered: Option<Metered>,
        log: Option<NetLog>,
    ) -> Result<Network, Errno> {
        let outside = guest_socket::own_cookie()?;
        inside.change_address(OWN_V4, true)?;
        if own::has_v6() {
            // (The guests' own kernel may be without: then programs see none.)
            let _ = inside.change_address(OWN_V6, true);
        }
        let log = log.map(Arc::new);
        Ok(Network {
            ledger: Ledger::new(log.clone()),
            log,
            policy,
            known: Mutex::default(),
            inside,
            lowest_port,
            host_name,
            metered,
            outside,
            relays: Relays::default(),
            own: OwnAddresses::default(),
            watchers: OnceLock::new(),
        })
    }

    /// Whether what it carries is limited.
    pub fn is_limited(&self) -> bool {
        self.metered.is_some()
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

    /// The first name that `address` is known by.
    pub(super) fn name(&self, address: IpAddr) -> Option<String> {
        self.names(address).into_iter().next()
    }

    /// What becomes of what is sent to `address`, and where that is recorded, the rule that says so.
    fn judge(&self, address: SocketAddr, transport: Transport) -> (Verdict, Option<String>) {
        let address = address::canonical(address);
        let ip = address.ip();
        if [OWN_V4, OWN_V6].contains(&ip) {
            return (Verdict::Inside, None);
        }
        // (The loopback is the sandbox's own unless a rule says else, whosever else it is.)
        let own = !is_loopback(ip) && self.own.has(address);
        let names = self.names(ip);
        let (verdict, rule) = self.policy.decide(address, transport, &names, own);
        let flag = if verdict == Verdict::Outside { "--allow-net" } else { "--deny-net" };
        let rule = rule.filter(|_| self.log.is_some()).map(|rule| format!("{flag} {rule}"));
        (verdict, rule)
    }

    /// Whom something that goes to `address` is counted for.
    fn key(&self, address: SocketAddr, transport: Transport) -> Key {
        let name = self.name(address.ip());
        Key {
            host: name.unwrap_or_else(|| address.ip().to_canonical().to_string()),
            port: Some(address.port()),
            transport: transport.word(),
        }
    }

    /// Writes down what was decided about `address`.
    fn record(&self, tid: i32, address: SocketAddr, transport: Transport, record: Record<'_>) {
        if let Some(log) = &self.log {
            let name = self.name(address.ip());
            log.write(&Record {
                event: if transport == Transport::Tcp { "connect" } else { "datagrams" },
                who: Who::of(tid),
                name: name.as_ref(),
                address: Some(address.ip().to_canonical()),
                port: Some(address.port()),
                protocol: Some(transport.word()),
                ..record
            });
        }
    }

    /// A connection to `address` is about to be made with this socket, which a guest will get.
    fn begin(&self, tid: i32, address: SocketAddr, (rule, answer): Said, fresh: BorrowedFd<'_>) {
        let address = address::canonical(address);
        let key = self.key(address, Transport::Tcp);
        self.ledger.allowed(&key);
        let answer = answer.map(Choice::word);
        let allowed = Record { decision: Some("allowed"), rule, answer, ..Record::default() };
        self.record(tid, address, Transport::Tcp, allowed);
        if let Some(cookie) = cookie(fresh) {
            self.ledger.opened(cookie, key, address);
        }
    }

    /// Where the connection goes that was begun with this socket. `None`: not known any more.
    fn recorded(&self, socket: BorrowedFd<'_>) -> Option<SocketAddr> {
        self.ledger.address(cookie(socket)?)
    }

    /// Tells of a refusal, once for each address.
    fn refuse(
        &self,
        asked: &Asked<'_>,
        address: SocketAddr,
        transport: Transport,
        why: &'static str,
        rule: Option<String>,
    ) {
        self.count_refusal(asked.tid, address, transport, why, rule);
        let names = self.names(address.ip());
        let name = names.first().map(|name| format!(" ({name})")).unwrap_or_default();
        asked.kernel.refuse_one_of_many(
            asked.tid,
            &format!("the address {address}/{transport}{name}"),
            why,
            "--allow-net HOST:PORT, or ADDRESS:PORT, allows it",
        );
    }

    /// Tells that nothing goes out any more.
    fn refuse_more(
        &self,
        metered: &Metered,
        tid: i32,
        address: SocketAddr,
        transport: Transport,
        rule: Option<String>,
    ) {
        self.count_refusal(tid, address, transport, USED_UP, rule);
        metered.meter().tell_of_end();
    }

    fn count_refusal(
        &self,
        tid: i32,
        address: SocketAddr,
        transport: Transport,
        why: &'static str,
        rule: Option<String>,
    ) {
        self.ledger.refused(&self.key(address, transport));
        let refused =
            Record { decision: Some("refused"), rule, reason: Some(why), ..Record::default() };
        self.record(tid, address, transport, refused);
    }

    /// A connection or a flow of datagrams was allowed.
    fn admitted(&self, kernel: &Kernel, tid: i32, address: SocketAddr, transport: Transport) {
        kernel.emit_of_many(|| super::events::Event::Connected {
            tid,
            comm: comm(tid).unwrap_or_default(),
            address: address.to_string(),
            transport: transport.to_string(),
            name: self.name(address.ip()),
        });
    }

    /// Whether a socket of a guest's belongs to the host's network.
    pub fn is_outside(&self, socket: &GuestSocket) -> bool {
        socket.cookie == self.outside
    }

    /// Sees to it that datagrams to `address` are carried, if they may be. If not, or if the host has no way there, the
    /// guests' own network knows none either. `connects`: nothing is sent yet.
    ///
    /// # Errors
    /// Somebody was asked, and the task does not wait any more.
    pub async fn carry(
        &self,
        call: &TaskCall,
        address: SocketAddr,
        connects: bool,
    ) -> Result<(), Interrupted> {
        let address = address::canonical(address);
        if self.relays.has(address) {
            return Ok(());
        }
        let (verdict, rule) = self.judge(address, Transport::Udp);
        match verdict {
            Verdict::Outside => self.begin_to_carry(&Asked::by(call), address, rule, None),
            Verdict::Inside => {}
            Verdict::Refused(why) => {
                match self.ask(call, (address, Transport::Udp), why, connects).await? {
                    Ok(granted) => {
                        self.begin_to_carry(&Asked::by(call), address, None, Some(granted.choice));
                        granted.settle();
                    }
                    Err(why) => {
                        self.refuse(&Asked::by(call), address, Transport::Udp, why, rule);
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_to_carry(
        &self,
        asked: &Asked<'_>,
        address: SocketAddr,
        rule: Option<String>,
        answer: Option<Choice>,
    ) {
        let tid = asked.tid;
        let key = self.key(address, Transport::Udp);
        let full = self.metered.as_ref().filter(|metered| metered.meter().is_used_up());
        if let Some(full) = full {
            return self.refuse_more(full, tid, address, Transport::Udp, rule);
        }
        let meter = self.metered.as_ref().map(|metered| Arc::clone(metered.meter()));
        let counts = Carried { counts: self.ledger.datagrams(&key), meter };
        let ends = answer == Some(Choice::Once);
        if self.relays.open(&self.inside, address, &counts, ends) == Ok(true) {
            self.ledger.allowed(&key);
            let answer = answer.map(Choice::word);
            let allowed = Record { decision: Some("allowed"), rule, answer, ..Record::default() };
            self.record(tid, address, Transport::Udp, allowed);
            self.admitted(asked.kernel, tid, address, Transport::Udp);
        }
    }

    /// Whether what is decided is written down.
    fn is_recorded(&self) -> bool {
        self.log.is_some()
    }

    /// A name was looked up by thread `tid` (0: it is not known). `answers`: the message that came, if one did; an error: it was refused, for this reason.
    /// `answer`: what was said when it was asked about.
    fn looked_up(
        &self,
        tid: i32,
        name: &str,
        answers: Result<Option<&[u8]>, &'static str>,
        answer: Option<Choice>,
    ) {
        let key = Key { host: name.to_owned(), port: None, transport: "dns" };
        match answers {
            Ok(_) => self.ledger.allowed(&key),
            Err(_) => self.ledger.refused(&key),
        }
        let Some(log) = &self.log else { return };
        let (is_allowed, rule) = self.policy.decide_name(name);
        let flag = if is_allowed { "--allow-net" } else { "--deny-net" };
        let mut found = answers.map(|message| message.map(resolver::addresses).unwrap_or_default());
        let more = found.as_ref().map_or(0, |found| found.len().saturating_sub(log::MOST_ANSWERS));
        let _ = found.as_mut().map(|found| found.truncate(log::MOST_ANSWERS));
        log.write(&Record {
            event: "lookup",
            who: Who::of(tid),
            decision: Some(if found.is_ok() { "allowed" } else { "refused" }),
            rule: rule.map(|rule| format!("{flag} {rule}")),
            reason: found.as_ref().err().copied(),
            answer: answer.map(Choice::word),
            name: Some(&key.host),
            answers: found.ok(),
            more: (more > 0).then_some(more),
            ..Record::default()
        });
    }

    /// What went where so far. Blocks: it asks the host's kernel for all connections.
    pub(super) fn traffic(&self) -> Vec<HostTraffic> {
        self.ledger.traffic()
    }

    /// The cookies of the connections that guests were given.
    pub(super) fn flow_cookies(&self) -> HashSet<u64> {
        self.ledger.cookies()
    }

    /// A socket of the guests' network: AF_*, SOCK_*.
    pub fn socket_inside(&self, family: i32, kind: i32) -> Result<OwnedFd, Errno> {
        self.inside.socket(family, kind, 0)
    }

    /// A socket that asks about the guests' network (sock_diag(7)).
    pub(super) fn diag_socket(&self) -> Result<OwnedFd, Errno> {
        self.inside.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)
    }

    /// The guests have ended: the record is completed.
    ///
    /// # Errors
    /// It is not whole.
    pub async fn finish(&self) -> std::io::Result<()> {
        self.ledger.finish().await;
        let Some(log) = self.log.clone() else { return Ok(()) };
        let done = tokio::task::spawn_blocking(move || log.finish()).await;
        done.unwrap_or_else(|error| Err(std::io::Error::other(error)))
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

/// The number of a socket for as long as the host runs. (Every socket has one.)
fn cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let cookie = socket::option(socket, libc::SOL_SOCKET, libc::SO_COOKIE, 8).ok()?;
    cookie.try_into().ok().map(u64::from_ne_bytes)
}
