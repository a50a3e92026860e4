//! Which addresses and names a run may reach: rules in, a word out.
//!
//! Owns no socket and asks nobody. What a name stands for is told to it ([`Known`]).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::rule::{Net, Rule, Target, Transport};
use super::saved::SavedName;

/// What was asked for by flags. Immutable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// What may be reached.
    pub allow: Vec<Rule>,
    /// What may not be, whatever else says it may.
    pub deny: Vec<Rule>,
}

/// What becomes of a packet or a connection to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays in the sandbox's own network.
    Inside,
    /// It goes out.
    Outside,
    /// It goes nowhere, for this reason.
    Refused(&'static str),
}

pub(super) const UNLISTED: &str = "no rule allows it";
pub(super) const DENIED: &str = "a rule denies it";
const SPECIAL: &str =
    "it is an address of the host or of networks near it, which no name stands for";

/// Addresses that no name and no `*` allows, since a name is in the hands of whoever owns it (IANA's registries of
/// special-purpose addresses; RFC 6890).
const SPECIAL_V4: [(Ipv4Addr, u8); 12] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
const SPECIAL_V6: [(Ipv6Addr, u8); 7] = [
    (Ipv6Addr::UNSPECIFIED, 96),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// The special nets.
fn special_nets() -> impl Iterator<Item = Net> {
    let v4 = SPECIAL_V4.iter().map(|(address, prefix)| (IpAddr::V4(*address), *prefix));
    let v6 = SPECIAL_V6.iter().map(|(address, prefix)| (IpAddr::V6(*address), *prefix));
    v4.chain(v6).filter_map(|(address, prefix)| Net::new(address, prefix))
}

/// Whether `address` is none of the internet at large, or only leads to one that is not (6to4, RFC 3056; NAT64, RFC
/// 6052).
pub(super) fn is_special(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let carried = match address {
        IpAddr::V6(v6) => match v6.segments() {
            [0x2002, high, low, ..] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
            }
            _ => None,
        },
        IpAddr::V4(_) => None,
    };
    special_nets().any(|net| net.contains(address))
        || carried.is_some_and(|v4| is_special(IpAddr::V4(v4)))
}

/// Whether an address is the loopback, or means it (ip(7): a connection to 0.0.0.0 goes there).
pub(super) fn is_loopback(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

impl Policy {
    /// What becomes of what is sent to `address`. `names`: what it is known by. `own`: it is an address of the host's
    /// own interfaces.
    pub fn judge(
        &self,
        address: SocketAddr,
        transport: Transport,
        names: &[String],
        own: bool,
    ) -> Verdict {
        self.decide(address, transport, names, own).0
    }

    /// As [`Policy::judge`], with the rule that says so, if one does.
    pub fn decide(
        &self,
        address: SocketAddr,
        transport: Transport,
        names: &[String],
        own: bool,
    ) -> (Verdict, Option<&Rule>) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let takes = |rule: &Rule| {
            rule.takes_address(address, transport)
                || rule.takes(address.port(), transport)
                    && names.iter().any(|name| rule.target.takes_name(name))
        };
        let everywhere = |rule: &Rule| {
            rule.target == Target::Everything && rule.takes(address.port(), transport)
        };
        let loopback = is_loopback(address.ip());
        if let Some(rule) = self.deny.iter().find(|rule| takes(rule) || everywhere(rule)) {
            // Its own loopback is nobody's to deny.
            let refused = (Verdict::Refused(DENIED), Some(rule));
            return if loopback { (Verdict::Inside, None) } else { refused };
        }
        if own || is_special(address.ip()) {
            let outright = self.allow.iter().find(|rule| {
                rule.takes_address(address, transport) && names_outright(rule, address.ip())
            });
            return match (outright, loopback) {
                (Some(rule), _) => (Verdict::Outside, Some(rule)),
                (None, true) => (Verdict::Inside, None),
                (None, false) => (Verdict::Refused(SPECIAL), None),
            };
        }
        match self.allow.iter().find(|rule| takes(rule) || everywhere(rule)) {
            Some(rule) => (Verdict::Outside, Some(rule)),
            None => (Verdict::Refused(UNLISTED), None),
        }
    }

    /// Whether a name (in lower case, without a dot at its end) may be resolved.
    pub fn resolves(&self, name: &str) -> bool {
        self.decide_name(name).0
    }

    /// As [`Policy::resolves`], with the rule that says so, if one does.
    pub fn decide_name(&self, name: &str) -> (bool, Option<&Rule>) {
        let takes =
            |rule: &&Rule| [name, host_of(name)].iter().any(|it| rule.target.takes_name(it));
        let denied = self.deny.iter().find(|rule| rule.is_about_all() && takes(rule));
        let allowed = self.allow.iter().find(takes);
        (allowed.is_some() && denied.is_none(), denied.or(allowed))
    }
}

/// The host that a name is about: of a service that is looked up (`_http._tcp.pypi.org`, RFC 8552), who offers that. (What it
/// stands for is no address of the host's.)
pub(super) fn host_of(name: &str) -> &str {
    let mut rest = name;
    while let Some((_, behind)) = rest.split_once('.').filter(|(first, _)| first.starts_with('_')) {
        rest = behind;
    }
    rest
}

/// Whether a rule about addresses means this special one, and does not just happen to cover it: it lies in one special
/// net as a whole, or names one address.
fn names_outright(rule: &Rule, address: IpAddr) -> bool {
    let Target::Net(net) = &rule.target else { return false };
    let whole = Net::new(address, if address.is_ipv4() { 32 } else { 128 });
    Some(*net) == whole || special_nets().any(|special| special.contains_all(net))
}

/// What addresses are known by, since a name that may be resolved was found to stand for them.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: HashMap<IpAddr, Vec<(String, Option<Instant>)>>,
}

/// Programs keep an address for a while beyond its time: as long at least as this, an answer counts.
const LEAST: Duration = Duration::from_secs(300);
/// More names of one address are not kept.
const MOST_NAMES: usize = 64;
/// More addresses are not kept: the ones that expire first go.
const MOST: usize = 64 << 10;

impl Known {
    /// `name` stands for `address` for `lifetime` from `now` on; `None`: always.
    pub(super) fn learn(
        &mut self,
        name: &str,
        address: IpAddr,
        lifetime: Option<Duration>,
        now: Instant,
    ) {
        if self.names.len() >= MOST {
            self.forget(now);
        }
        let until =
            lifetime.map(|lifetime| now + lifetime.clamp(LEAST, Duration::from_secs(86_400)));
        let names = self.names.entry(address.to_canonical()).or_default();
        names.retain(|(_, until)| until.is_none_or(|until| now < until));
        if names.len() >= MOST_NAMES {
            // Of those that expire, the one that does so first.
            let first =
                names.iter().enumerate().filter_map(|(at, (_, until))| Some((at, (*until)?)));
            let first = first.min_by_key(|(_, until)| *until).map_or(0, |(at, _)| at);
            names.remove(first);
        }
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = old.zip(until).map(|(old, new)| old.max(new)),
            None => names.push((name.to_owned(), until)),
        }
    }

    /// What `address` is known by.
    pub(super) fn names(&self, address: IpAddr, now: Instant) -> Vec<String> {
        let names = self.names.get(&address.to_canonical());
        let live = |until: &Option<Instant>| until.is_none_or(|until| now < until);
        let live = names.into_iter().flatten().filter(|(_, until)| live(until));
        live.map(|(name, _)| name.clone()).collect()
    }

    /// What is known, and for how long still. (More than there may be addresses are not kept.)
    pub(super) fn saved(&self, now: Instant) -> Vec<SavedName> {
        let all =
            self.names.iter().flat_map(|(address, names)| names.iter().map(|it| (*address, it)));
        let live = all.filter(|(_, (_, until))| until.is_none_or(|until| now < until));
        let saved = live.map(|(address, (name, until))| {
            let left = until.map_or(Duration::ZERO, |until| until.duration_since(now));
            SavedName { name: name.clone(), address, seconds: left.as_secs() }
        });
        saved.take(MOST).collect()
    }

    /// Drops what has expired; if that is nothing, all that expires at all.
    fn forget(&mut self, now: Instant) {
        let before = self.names.len();
        self.retain(|until| until.is_none_or(|until| now < until));
        if self.names.len() == before {
            self.retain(|until| until.is_none());
        }
    }

    fn retain(&mut self, keep: impl Fn(Option<Instant>) -> bool) {
        self.names.retain(|_, names| {
            names.retain(|(_, until)| keep(*until));
            !names.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Inside, Outside};

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let rules = |texts: &[&str]| texts.iter().map(|text| Rule::parse(text).unwrap()).collect();
        Policy { allow: rules(allow), deny: rules(deny) }
    }

    fn ask(policy: &Policy, address: &str, names: &[&str]) -> Verdict {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        policy.judge(address.parse().unwrap(), Transport::Tcp, &names, false)
    }

    #[test]
    fn an_address_is_reached_by_a_rule_about_it_or_its_name() {
        let it =
            policy(&["example.org:443", "8.8.8.0/24:53/udp", "*.net"], &["bad.net", "1.1.1.1"]);
        assert_eq!(ask(&it, "93.184.216.34:443", &["example.org"]), Outside);
        assert_eq!(ask(&it, "[::ffff:93.184.216.34]:443", &["example.org"]), Outside);
        assert_eq!(ask(&it, "93.184.216.34:80", &["example.org"]), Verdict::Refused(UNLISTED));
        assert_eq!(ask(&it, "93.184.216.34:443", &[]), Verdict::Refused(UNLISTED));
        assert_eq!(ask(&it, "8.8.8.8:53", &[]), Verdict::Refused(UNLISTED));
        let dns = "8.8.8.8:53".parse().unwrap();
        assert_eq!(it.judge(dns, Transport::Udp, &[], false), Outside);
        assert_eq!(ask(&it, "5.5.5.5:1", &["good.net"]), Outside);
        assert_eq!(ask(&it, "5.5.5.5:1", &["good.net", "bad.net"]), Verdict::Refused(DENIED));
        assert_eq!(ask(&it, "1.1.1.1:1", &["good.net"]), Verdict::Refused(DENIED));
    }

    #[test]
    fn what_is_near_the_host_is_reached_only_if_it_is_named() {
        let all = policy(&["*", "0.0.0.0/0", "::/0"], &[]);
        for near in [
            "10.1.2.3:80",
            "169.254.169.254:80",
            "192.168.0.1:80",
            "[fe80::1]:80",
            "[fd00::1]:80",
            "[::ffff:10.0.0.1]:80",
            "[64:ff9b::a00:1]:80",
            "[2002:a00:1::]:80",
            "[::10.0.0.1]:80",
        ] {
            assert_eq!(ask(&all, near, &["rebound.example"]), Verdict::Refused(SPECIAL), "{near}");
        }
        assert_eq!(ask(&all, "127.0.0.1:80", &[]), Inside);
        assert_eq!(ask(&all, "0.0.0.0:80", &[]), Inside);
        assert_eq!(ask(&all, "[::1]:80", &[]), Inside);
        let named =
            policy(&["10.1.0.0/16", "169.254.169.254:80", "127.0.0.1:5432"], &["10.1.2.0/24"]);
        assert_eq!(ask(&named, "10.1.3.3:80", &[]), Outside);
        assert_eq!(ask(&named, "10.1.2.3:80", &[]), Verdict::Refused(DENIED));
        assert_eq!(ask(&named, "169.254.169.254:80", &[]), Outside);
        assert_eq!(ask(&named, "127.0.0.1:5432", &[]), Outside);
        assert_eq!(ask(&named, "127.0.0.1:80", &[]), Inside);
        let own = policy(&["*"], &[]);
        let address = "93.184.216.34:22".parse().unwrap();
        assert_eq!(own.judge(address, Transport::Tcp, &[], true), Verdict::Refused(SPECIAL));
        let own = policy(&["93.184.216.34:22"], &[]);
        assert_eq!(own.judge(address, Transport::Tcp, &[], true), Outside);
    }

    #[test]
    fn names_that_may_be_reached_somehow_are_resolved() {
        let it = policy(&["a.org:443", "*.b.org"], &["secret.b.org", "odd.b.org:80"]);
        assert!(it.resolves("a.org") && it.resolves("x.b.org") && it.resolves("odd.b.org"));
        assert!(!it.resolves("b.org") && !it.resolves("secret.b.org") && !it.resolves("c.org"));
        assert!(!policy(&["8.8.8.8"], &[]).resolves("a.org"));
    }

    #[test]
    fn services_are_looked_up_where_their_host_is() {
        assert_eq!(host_of("_http._tcp.a.example"), "a.example");
        assert_eq!((host_of("a._b.example"), host_of("_a._b")), ("a._b.example", "_b"));
        let some = policy(&["a.example:80"], &["b.example"]);
        assert!(some.resolves("_http._tcp.a.example") && !some.resolves("_http._tcp.c.example"));
        let all = policy(&["*"], &["b.example"]);
        assert!(all.resolves("_http._tcp.a.example") && !all.resolves("_http._tcp.b.example"));
        assert!(policy(&["*.a.example"], &[]).resolves("_http._tcp.a.example"));
        // What the name of a service stands for is nobody's.
        assert_eq!(
            ask(&some, "192.0.2.1:80", &["_http._tcp.a.example"]),
            Verdict::Refused(UNLISTED)
        );
    }

    #[test]
    fn names_are_known_for_a_while() {
        let (mut known, now) = (Known::default(), Instant::now());
        let address: IpAddr = "93.184.216.34".parse().unwrap();
        known.learn("a.org", address, Some(Duration::from_secs(1)), now);
        known.learn("b.org", address, None, now);
        assert_eq!(known.names(address, now + LEAST / 2), ["a.org", "b.org"]);
        assert_eq!(known.names(address, now + LEAST), ["b.org"]);
        let saved = |known: &Known, now| {
            let mut saved = known.saved(now);
            saved.sort_by(|one, other| one.name.cmp(&other.name));
            saved.into_iter().map(|it| (it.name, it.seconds)).collect::<Vec<_>>()
        };
        let both = [("a.org".to_owned(), 100), ("b.org".to_owned(), 0)];
        assert_eq!(saved(&known, now + LEAST - Duration::from_secs(100)), both);
        known.forget(now + LEAST);
        assert_eq!(known.names(address, now), ["b.org"]);
        assert_eq!(saved(&known, now + LEAST), [("b.org".to_owned(), 0)]);
    }
}
