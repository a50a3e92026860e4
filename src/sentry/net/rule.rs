//! Rules about the network, as a user writes them: `HOST`, `*.HOST`, `ADDRESS`, `NET/PREFIX` or `*`, each with
//! `:PORT` or `:PORT-PORT` and `/tcp` or `/udp` behind it.
//!
//! Owns their words and what each is about; which of several counts is the policy's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is about.
    pub target: Target,
    /// The first and the last port; `None`: all.
    pub ports: Option<(u16, u16)>,
    /// `None`: both.
    pub transport: Option<Transport>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every name, and every address of the internet.
    Everything,
    /// A name, in lower case and without a dot at its end.
    Name(String),
    /// All names below this one, not itself.
    Below(String),
    /// Addresses.
    Net(Net),
}

/// A range of addresses: the first `prefix` bits of each are those of `address`, the rest of which are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

impl Net {
    /// The net of `prefix` bits that `address` is in; none if that has fewer bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Net> {
        let address = match (address, prefix) {
            (IpAddr::V4(v4), 0..=32) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            (IpAddr::V6(v6), 0..=128) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Net { address, prefix })
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Net::new(address, self.prefix).as_ref() == Some(self)
    }

    /// Whether all of `other` does.
    pub fn contains_all(&self, other: &Net) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

impl Rule {
    /// Reads one. The error is the end of a sentence that begins with the rule.
    pub fn parse(text: &str) -> Result<Rule, String> {
        if text.contains("://") {
            return Err("is the address of a page; write its host, and :PORT".to_owned());
        }
        let (rest, transport) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Transport::Tcp)),
            Some((rest, "udp")) => (rest, Some(Transport::Udp)),
            _ => (text, None),
        };
        let (target, ports) = split_ports(rest)?;
        let ports = ports.map(parse_ports).transpose()?;
        Ok(Rule { target: Target::parse(target)?, ports, transport })
    }

    /// Whether it is about this port.
    pub fn takes(&self, port: u16, transport: Transport) -> bool {
        self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
            && self.transport.is_none_or(|it| it == transport)
    }

    /// Whether it is about all ports.
    pub fn is_about_all(&self) -> bool {
        self.ports.is_none() && self.transport.is_none()
    }

    /// Whether it is about this address, as such.
    pub fn takes_address(&self, address: SocketAddr, transport: Transport) -> bool {
        matches!(self.target, Target::Net(net) if net.contains(address.ip()))
            && self.takes(address.port(), transport)
    }
}

/// What stands in front of the ports, and the ports.
fn split_ports(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(inside) = text.strip_prefix('[') {
        let Some((address, rest)) = inside.split_once(']') else {
            return Err("has a [ and no ]".to_owned());
        };
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((address, Some(ports))),
            None if rest.is_empty() => Ok((address, None)),
            None => Err(format!("has {rest:?} behind the ]; write :PORT there")),
        };
    }
    match text.rsplit_once(':') {
        // An address of IPv6 has more than one.
        Some((host, ports)) if !host.contains(':') => Ok((host, Some(ports))),
        _ => Ok((text, None)),
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| plain && *port > 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("has the ports {text:?}; write :PORT or :PORT-PORT, of 1 to 65535")),
    }
}

impl Target {
    fn parse(text: &str) -> Result<Target, String> {
        if text == "*" {
            return Ok(Target::Everything);
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        if let Ok(address) = address.parse::<IpAddr>() {
            let address = address.to_canonical();
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Some(whole), |prefix| prefix.parse().ok());
            let net = prefix.and_then(|prefix| Net::new(address, prefix));
            return net
                .map(Target::Net)
                .ok_or_else(|| format!("has a prefix that is no number of 0 to {whole}"));
        }
        if prefix.is_some() {
            return Err("has a / and is no range of addresses; write 192.0.2.0/24, or /tcp or /udp at the end"
                .to_owned());
        }
        match text.strip_prefix("*.") {
            Some(name) => check_name(name).map(Target::Below),
            None => check_name(text).map(Target::Name),
        }
    }

    /// Whether it is about this name, which is in lower case and has no dot at its end.
    pub fn takes_name(&self, name: &str) -> bool {
        match self {
            Target::Everything => true,
            Target::Name(own) => own == name,
            Target::Below(own) => name
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Target::Net(_) => false,
        }
    }
}

/// A name of the DNS (RFC 1035, 2.3.4), in lower case.
fn check_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let sound = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(known)
    };
    if !name.is_ascii() {
        return Err("has letters that the DNS does not know; write it as xn--...".to_owned());
    }
    if name.contains('*') {
        return Err("has a * elsewhere than in front; write *.HOST, or * for everything".to_owned());
    }
    if name.len() > 253 || !name.split('.').all(sound) {
        return Err("is no name of a host and no address".to_owned());
    }
    // What inet_aton(3) takes for an address is one to many programs, and a name to none.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return Err("is an address that is not written in full; write 192.0.2.1".to_owned());
    }
    Ok(name)
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        match self.prefix == whole {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.target {
            Target::Everything => f.write_str("*")?,
            Target::Name(name) => f.write_str(name)?,
            Target::Below(name) => write!(f, "*.{name}")?,
            Target::Net(net) if net.address.is_ipv6() && self.ports.is_some() => {
                write!(f, "[{net}]")?
            }
            Target::Net(net) => write!(f, "{net}")?,
        }
        match self.ports {
            Some((first, last)) if first == last => write!(f, ":{first}")?,
            Some((first, last)) => write!(f, ":{first}-{last}")?,
            None => {}
        }
        match self.transport {
            Some(Transport::Tcp) => f.write_str("/tcp"),
            Some(Transport::Udp) => f.write_str("/udp"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for (text, written) in [
            ("pypi.org", "pypi.org"),
            ("PyPI.org.", "pypi.org"),
            ("*.crates.io:443", "*.crates.io:443"),
            ("host:80-90/tcp", "host:80-90/tcp"),
            ("*:443", "*:443"),
            ("*", "*"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.77/24:53/udp", "192.0.2.0/24:53/udp"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0/tcp", "0.0.0.0/0/tcp"),
            ("::1", "::1"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::5]:22", "[2001:db8::5]:22"),
            ("[2001:db8::5/64]:22/tcp", "[2001:db8::/64]:22/tcp"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
        ] {
            let rule = Rule::parse(text).unwrap_or_else(|error| panic!("{text} {error}"));
            assert_eq!(rule.to_string(), written);
            assert_eq!(Rule::parse(written), Ok(rule));
        }
    }

    #[test]
    fn what_is_no_rule_is_told_why() {
        for (text, part) in [
            ("", "no name"),
            ("host:", "ports"),
            ("host:0", "ports"),
            ("host:+5", "ports"),
            ("host:90-80", "ports"),
            ("host:65536", "ports"),
            ("host/sctp", "has a /"),
            ("192.0.2.0/33", "prefix"),
            ("2001:db8::/129", "prefix"),
            ("[::1", "no ]"),
            ("[::1]22", "behind the ]"),
            ("a.*.b", "elsewhere"),
            ("127.1", "in full"),
            ("0x7f000001", "in full"),
            ("2130706433", "in full"),
            ("a b", "no name"),
            ("a..b", "no name"),
            ("http://host", "write its host"),
            ("b\u{fc}cher.example", "xn--"),
        ] {
            let error = Rule::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_taken_whole() {
        let below = Rule::parse("*.example.org").unwrap().target;
        assert!(below.takes_name("a.example.org") && below.takes_name("a.b.example.org"));
        assert!(!below.takes_name("example.org") && !below.takes_name("badexample.org"));
        assert!(!below.takes_name(".example.org"));
        let one = Rule::parse("example.org").unwrap().target;
        assert!(one.takes_name("example.org") && !one.takes_name("a.example.org"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in "[a-z0-9.:/*\\[\\]-]{0,24}") {
            if let Ok(rule) = Rule::parse(&text) {
                proptest::prop_assert_eq!(Rule::parse(&rule.to_string()), Ok(rule));
            }
        }

        #[test]
        fn a_net_contains_what_begins_as_it_does(bits: u32, prefix in 0u8..=32, other: u32) {
            let net = Net::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), prefix).unwrap();
            let same = (bits ^ other).leading_zeros() >= u32::from(prefix);
            proptest::prop_assert_eq!(net.contains(IpAddr::V4(Ipv4Addr::from_bits(other))), same);
        }
    }
}
