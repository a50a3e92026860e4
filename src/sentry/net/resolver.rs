//! The resolver of the guests: answers for names that a rule is about, and remembers what they stand for.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use simple_dns::rdata::{A, AAAA, OPT, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::rule::Transport;
use super::seeker::{self, Seeker};
use super::upstream::{self, Upstream};
use super::{Network, Verdict, address, policy};
use crate::sentry::asking::About;
use crate::sentry::kernel::Kernel;
use crate::sys::{errno_of, socket};

/// Where guests find it: an address of the loopback that is nobody else's, and the one that programs take where no
/// /etc/resolv.conf says another.
pub const RESOLVERS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), 53),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53),
];

/// Questions in datagrams that are being answered at a time.
const MOST: usize = 128;
/// The same where some of them wait for a person.
const MOST_ASKED: usize = 1024;
/// Streams at a time.
const MOST_STREAMS: usize = 64;
/// Answers that are kept.
const KEPT: usize = 4096;
/// What is said where the records do not say it: for names that are not there.
const NEGATIVE: Duration = Duration::from_secs(10);
/// The longest time for which an answer is kept.
const LONGEST: Duration = Duration::from_secs(3600);
/// What every program can take in a datagram (RFC 1035, 4.2.1), and what goes through all networks (RFC 9715).
const SHORT: usize = 512;
const LONG: u16 = 1232;
/// A stream on which nothing is asked for so long is closed (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// The resolver.
#[derive(Debug)]
pub struct Resolver {
    /// Who is told of refusals. It ends with the run, and with it all this.
    pub(super) kernel: Weak<Kernel>,
    network: Arc<Network>,
    /// What guests' programs call the host that they run on. Immutable.
    own: HashSet<String>,
    /// What the host's /etc/hosts says of names that may be resolved. Immutable.
    hosts: HashMap<String, Vec<IpAddr>>,
    /// A leaf of the lock order.
    cache: Mutex<HashMap<(String, u16), Cached>>,
    places: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Held while it is looked for who asks.
    pub(super) askers: Arc<tokio::sync::Mutex<seeker::Known>>,
}

#[derive(Debug, Clone)]
struct Cached {
    answer: Vec<u8>,
    since: Instant,
    until: Instant,
}

impl Resolver {
    /// One that answers nobody yet.
    pub(super) fn new(kernel: &Arc<Kernel>, network: &Arc<Network>) -> Arc<Resolver> {
        let hosts = hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let asks = kernel.asking().is_some_and(|it| it.is_about(About::NET));
        let may_be = |name: &str| asks || network.policy().resolves(name);
        let hosts: HashMap<_, _> = hosts.into_iter().filter(|(name, _)| may_be(name)).collect();
        // (Others are known when they have been asked about.)
        for (name, addresses) in hosts.iter().filter(|(name, _)| network.policy().resolves(name)) {
            addresses.iter().for_each(|address| network.learn(name, *address, None));
        }
        Arc::new(Resolver {
            kernel: Arc::downgrade(kernel),
            network: Arc::clone(network),
            own: own_names(
                &network.host_name,
                &std::fs::read_to_string(upstream::PLACE).unwrap_or_default(),
            ),
            hosts,
            cache: Mutex::default(),
            places: Arc::new(Semaphore::new(if asks { MOST_ASKED } else { MOST })),
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            askers: Arc::default(),
        })
    }

    /// Begins to answer in the guests' network. Must be called within a runtime.
    pub fn start(kernel: &Arc<Kernel>, network: &Arc<Network>) -> Result<(), Errno> {
        let resolver = Resolver::new(kernel, network);
        for place in RESOLVERS {
            let bound = |kind| -> Result<OwnedFd, Errno> {
                let fd = network.inside.socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK, 0)?;
                socket::bind(fd.as_fd(), &address::bytes(place))?;
                Ok(fd)
            };
            let datagrams = UdpSocket::from_std(bound(libc::SOCK_DGRAM)?.into());
            let streams = bound(libc::SOCK_STREAM)?;
            socket::listen(streams.as_fd(), 128)?;
            let streams = TcpListener::from_std(streams.into());
            let datagrams = datagrams.map_err(|error| errno_of(&error))?;
            let streams = streams.map_err(|error| errno_of(&error))?;
            tokio::spawn(Arc::clone(&resolver).serve_datagrams(datagrams, place));
            tokio::spawn(Arc::clone(&resolver).serve_streams(streams, place));
        }
        Ok(())
    }

    async fn serve_datagrams(self: Arc<Self>, socket: UdpSocket, resolver: SocketAddr) {
        let socket = Arc::new(socket);
        let mut query = vec![0; 4096];
        loop {
            let Ok((length, guest)) = socket.recv_from(&mut query).await else { continue };
            // What is too much is lost, as on any way; a guest asks again.
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { continue };
            let (own, socket, query) =
                (Arc::clone(&self), Arc::clone(&socket), query[..length].to_vec());
            tokio::spawn(async move {
                let room =
                    Packet::parse(&query).ok().and_then(|it| Some(it.opt()?.udp_packet_size));
                let room = room.map_or(SHORT, |room| usize::from(room.min(LONG)).max(SHORT));
                let seeker = Seeker { address: guest, resolver, transport: Transport::Udp };
                if let Some(answer) = own.answer(&query, room, seeker).await {
                    let _ = socket.send_to(&answer, guest).await;
                }
                drop(place);
            });
        }
    }

    async fn serve_streams(self: Arc<Self>, socket: TcpListener, resolver: SocketAddr) {
        loop {
            // (It is never closed.)
            let Ok(place) = Arc::clone(&self.streams).acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, guest)) => {
                    let seeker = Seeker { address: guest, resolver, transport: Transport::Tcp };
                    let served = Arc::clone(&self).serve_stream(stream, seeker);
                    tokio::spawn(async move {
                        served.await;
                        drop(place);
                    });
                }
                // Out of descriptors: those that others hold come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn serve_stream(self: Arc<Self>, mut stream: TcpStream, seeker: Seeker) {
        loop {
            let asked = async {
                let mut query = vec![0; stream.read_u16().await?.into()];
                stream.read_exact(&mut query).await?;
                std::io::Result::Ok(query)
            };
            let Ok(Ok(query)) = tokio::time::timeout(IDLE, asked).await else { return };
            let answer = self.answer(&query, usize::from(u16::MAX), seeker).await;
            let Some(answer) = answer else { return };
            let mut whole = (answer.len() as u16).to_be_bytes().to_vec();
            whole.extend(answer);
            let written = tokio::time::timeout(IDLE, stream.write_all(&whole)).await;
            if !matches!(written, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// The answer to a message, of `room` bytes at most. `None`: to what is no message there is none.
    async fn answer(
        self: &Arc<Self>,
        query: &[u8],
        room: usize,
        seeker: Seeker,
    ) -> Option<Vec<u8>> {
        let Ok(query) = Packet::parse(query) else {
            let id = query.get(..2)?.try_into().ok()?;
            let mut reply = Packet::new_reply(u16::from_be_bytes(id));
            *reply.rcode_mut() = RCODE::FormatError;
            return reply.build_bytes_vec().ok();
        };
        if query.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        let mut reply = Packet::new_reply(query.id());
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
        if query.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        if query.opt().is_some() {
            *reply.opt_mut() = Some(extended());
        }
        reply.questions.clone_from(&query.questions);
        let [question] = query.questions.as_slice() else {
            *reply.rcode_mut() = RCODE::NotImplemented;
            return reply.build_bytes_vec().ok();
        };
        let (rcode, upstream) = match query.opcode() {
            OPCODE::StandardQuery => self.look_up(question, seeker).await,
            _ => (RCODE::NotImplemented, None),
        };
        *reply.rcode_mut() = rcode;
        // (The records live in these bytes.)
        let upstream = upstream.unwrap_or_default();
        if let Ok(records) = Packet::parse(&upstream) {
            reply.answers = records.answers;
            reply.name_servers = records.name_servers;
        }
        let whole = reply.build_bytes_vec_compressed().ok()?;
        if whole.len() <= room {
            return Some(whole);
        }
        reply.answers.clear();
        reply.name_servers.clear();
        reply.set_flags(PacketFlag::TRUNCATION);
        reply.build_bytes_vec_compressed().ok()
    }

    /// What is to be answered: a message whose records are the answer's.
    async fn look_up(
        self: &Arc<Self>,
        question: &Question<'_>,
        seeker: Seeker,
    ) -> (RCODE, Option<Vec<u8>>) {
        let Some(name) = plain(&question.qname) else { return (RCODE::NameError, None) };
        let own = || made(question, &[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        if name == "localhost" || name.ends_with(".localhost") {
            return (RCODE::NoError, own());
        }
        let said = match self.network.policy().decide_name(&name) {
            (true, _) => Ok(None),
            // (Many programs look up what they run on.)
            (false, None) if self.own.contains(&name) => return (RCODE::NoError, own()),
            (false, Some(_)) => Err(policy::DENIED),
            (false, None) => self.ask(&name, seeker).await.map(Some),
        };
        let is_told = said.is_err() && self.is_news(&name);
        let tid = if is_told || self.network.is_recorded() { self.who(seeker).await } else { 0 };
        let answer = match said {
            Ok(answer) => answer,
            Err(why) => {
                self.refuse(tid, &name, why);
                self.network.looked_up(tid, &name, Err(why), None);
                return (RCODE::NameError, None);
            }
        };
        let found = self.resolve(&name, question).await;
        self.network.looked_up(tid, &name, Ok(found.1.as_deref()), answer);
        found
    }

    /// A thread of who asks; 0: it is not known.
    async fn who(self: &Arc<Self>, seeker: Seeker) -> i32 {
        match self.kernel.upgrade() {
            Some(kernel) => self.find_asker(&kernel, seeker).await.tid,
            None => 0,
        }
    }

    /// The network that it answers for.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// What the host says now of a name that may be resolved, which is remembered.
    pub(super) async fn look_up_again(&self, name: &str) -> Vec<IpAddr> {
        let Ok(asked) = Name::new(name) else { return Vec::new() };
        if plain(&asked).as_deref() != Some(name) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for kind in [TYPE::A, TYPE::AAAA] {
            let question = Question::new(asked.clone(), kind.into(), CLASS::IN.into(), false);
            let (_, answer) = self.resolve(name, &question).await;
            found.extend(answer.map(|answer| addresses(&answer)).unwrap_or_default());
        }
        found
    }

    /// What is to be answered to a question about a name that may be resolved.
    async fn resolve(&self, name: &str, question: &Question<'_>) -> (RCODE, Option<Vec<u8>>) {
        match question.qtype {
            // Their hints would be addresses that nobody has looked at.
            QTYPE::TYPE(TYPE::HTTPS | TYPE::SVCB) => return (RCODE::NoError, None),
            QTYPE::TYPE(_) => {}
            _ => return (RCODE::NotImplemented, None),
        }
        if let Some(addresses) = self.hosts.get(name)
            && matches!(question.qtype, QTYPE::TYPE(TYPE::A | TYPE::AAAA))
        {
            addresses.iter().for_each(|address| self.network.learn(name, *address, None));
            return (RCODE::NoError, made(question, addresses));
        }
        let Some(cached) = self.fetch(name, question).await else {
            return (RCODE::ServerFailure, None);
        };
        self.admit(name, &cached)
    }

    /// Asks the host's resolvers, unless the answer is still known.
    async fn fetch(&self, name: &str, question: &Question<'_>) -> Option<Cached> {
        let key = (name.to_owned(), u16::from(question.qtype));
        let now = Instant::now();
        if let Some(cached) = self.lock().get(&key).filter(|it| now < it.until) {
            return Some(cached.clone());
        }
        let mut id = [0; 2];
        crate::sys::random::fill(&mut id).ok()?;
        let mut query = Packet::new_query(u16::from_ne_bytes(id));
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        *query.opt_mut() = Some(extended());
        query.questions.push(question.clone());
        let answer = Upstream::of_host().ask(&query.build_bytes_vec().ok()?).await?;
        let now = Instant::now();
        let cached = Cached { until: now + lifetime(&answer)?, since: now, answer };
        let mut cache = self.lock();
        if cache.len() >= KEPT {
            cache.retain(|_, it| now < it.until);
            if cache.len() >= KEPT {
                cache.clear();
            }
        }
        cache.insert(key, cached.clone());
        Some(cached)
    }

    /// Takes out what the guest is not to know, and remembers the rest.
    fn admit(&self, name: &str, cached: &Cached) -> (RCODE, Option<Vec<u8>>) {
        let Ok(mut answer) = Packet::parse(&cached.answer) else {
            return (RCODE::ServerFailure, None);
        };
        let gone = u32::try_from(cached.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        let mut refused = 0;
        answer.answers.retain_mut(|record| {
            record.ttl = record.ttl.saturating_sub(gone);
            let found: IpAddr = match &record.rdata {
                RData::A(a) => Ipv4Addr::from_bits(a.address).into(),
                RData::AAAA(aaaa) => Ipv6Addr::from_bits(aaaa.address).into(),
                _ => return true,
            };
            let may_be = self.network.may_be_named(found);
            if may_be {
                self.network.learn(name, found, Some(Duration::from_secs(record.ttl.into())));
            } else {
                refused += 1;
            }
            may_be
        });
        if refused > 0 {
            self.note(
                0,
                name,
                "it stands for an address of the host or of networks near it, which no name allows",
                "--allow-net ADDRESS allows it",
            );
        }
        (answer.rcode(), answer.build_bytes_vec().ok())
    }

    fn refuse(&self, tid: i32, name: &str, why: &'static str) {
        // Nobody means to ask for the names of addresses.
        if !name.ends_with(".arpa") {
            self.note(tid, name, why, "--allow-net HOST allows it");
        }
    }

    fn note(&self, tid: i32, name: &str, why: &'static str, remedy: &'static str) {
        if let Some(kernel) = self.kernel.upgrade() {
            kernel.refuse_one_of_many(tid, &format!("the name {name}"), why, remedy);
        }
    }

    /// Whether a refusal of this name has not been noted yet.
    fn is_news(&self, name: &str) -> bool {
        let kernel = self.kernel.upgrade();
        kernel.is_some_and(|it| !it.refusals().has(&format!("the name {name}")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, u16), Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// Whether an allowed name may stand for `address`: those near the host only if they are named themselves, for some
    /// port.
    fn may_be_named(&self, address: IpAddr) -> bool {
        let ports = self.policy.allow.iter().map(|rule| rule.ports.map_or(1, |(first, _)| first));
        let mut asked =
            ports.chain([1]).flat_map(|port| [(port, Transport::Tcp), (port, Transport::Udp)]);
        !super::policy::is_special(address)
            || asked.any(|(port, transport)| {
                let verdict =
                    self.policy.judge(SocketAddr::new(address, port), transport, &[], false);
                verdict == Verdict::Outside
            })
    }
}

/// That longer datagrams are understood (RFC 6891).
fn extended() -> OPT<'static> {
    OPT { opt_codes: Vec::new(), udp_packet_size: LONG, version: 0 }
}

/// A name in lower case; `None`: it has other characters than names of hosts have.
fn plain(name: &Name<'_>) -> Option<String> {
    let text = name.to_string().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (!text.is_empty() && text.bytes().all(known)).then(|| text.to_owned())
}

/// A message whose answers are these addresses.
fn made(question: &Question<'_>, addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let mut message = Packet::new_reply(0);
    for address in addresses {
        let data = match (address, question.qtype) {
            (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A)) => RData::A(A { address: v4.to_bits() }),
            (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA)) => {
                RData::AAAA(AAAA { address: v6.to_bits() })
            }
            _ => continue,
        };
        message.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 60, data));
    }
    message.build_bytes_vec().ok()
}

/// The addresses in an answer.
pub(super) fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let Ok(message) = Packet::parse(answer) else { return Vec::new() };
    let each = message.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(Ipv4Addr::from_bits(a.address).into()),
        RData::AAAA(aaaa) => Some(Ipv6Addr::from_bits(aaaa.address).into()),
        _ => None,
    });
    each.collect()
}

/// How long an answer holds; `None`: it is no message.
fn lifetime(answer: &[u8]) -> Option<Duration> {
    let message = Packet::parse(answer).ok()?;
    let records = message.answers.iter().map(|record| Duration::from_secs(record.ttl.into())).min();
    let failed = !matches!(message.rcode(), RCODE::NoError | RCODE::NameError);
    Some(if failed { Duration::ZERO } else { records.unwrap_or(NEGATIVE).min(LONGEST) })
}

/// Names by which programs look up the host that they run on: its name, also below the domains that are searched
/// (resolv.conf(5)).
fn own_names(host: &str, resolvers: &str) -> HashSet<String> {
    if host.is_empty() {
        return HashSet::new();
    }
    let searched = resolvers
        .lines()
        .filter_map(|line| line.strip_prefix("search").or_else(|| line.strip_prefix("domain")));
    let domains = searched.flat_map(str::split_whitespace).map(|it| it.trim_matches('.'));
    let below = domains.filter(|it| !it.is_empty()).map(|domain| format!("{host}.{domain}"));
    below.chain([host.to_owned()]).map(|name| name.to_ascii_lowercase()).collect()
}

/// The names of hosts(5).
fn hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut found: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            found.entry(name).or_default().push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_names_are_read() {
        let found =
            hosts("127.0.0.1 localhost\n192.0.2.1 A.example a # x\n2001:db8::1 a\n# y\nbad\n");
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(found["a"], expected);
        assert_eq!((found.len(), found["a.example"].len()), (3, 1));
    }

    #[test]
    fn answers_hold_as_long_as_their_shortest_record() {
        let question = Question::new(
            Name::new_unchecked("a.example"),
            TYPE::A.into(),
            CLASS::IN.into(),
            false,
        );
        let answer =
            made(&question, &["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()]).unwrap();
        assert_eq!(Packet::parse(&answer).unwrap().answers.len(), 1);
        assert_eq!(lifetime(&answer), Some(Duration::from_secs(60)));
        assert_eq!(lifetime(&made(&question, &[]).unwrap()), Some(NEGATIVE));
        assert_eq!(lifetime(b"x"), None);
    }

    #[test]
    fn the_host_is_known_by_its_name() {
        let found = own_names("Box", "nameserver 192.0.2.1\nsearch a.example b.\n");
        let expected = ["box", "box.a.example", "box.b"].map(str::to_owned);
        assert_eq!(found, expected.into());
        assert!(own_names("", "search a.example").is_empty());
    }

    #[test]
    fn names_are_plain_or_nobodys() {
        assert_eq!(plain(&Name::new_unchecked("A.Example")), Some("a.example".to_owned()));
        assert_eq!(plain(&Name::new_unchecked("a b.example")), None);
    }
}
