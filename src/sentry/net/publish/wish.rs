//! What `--publish` says.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::sentry::net::Transport;

/// Ports of one run at most: each takes a descriptor, of which many users may have 1024.
pub const MOST: usize = 512;

/// One port that is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Where the host is to listen. Port 0: at any that is free.
    pub host: SocketAddr,
    /// The port inside; not 0.
    pub guest: u16,
    /// What carries the bytes.
    pub transport: Transport,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest, self.transport)
    }
}

/// Reads `[[ADDRESS:]HOSTPORT:]GUESTPORT[/tcp|/udp]`, where ports may be ranges of one length. Without an address it is
/// the host's own loopback.
///
/// # Errors
/// What is wrong, as the rest of a sentence that begins with the value.
pub fn parse(text: &str) -> Result<Vec<Wish>, String> {
    let (ports, transport) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some(_) => return Err("carries something else than /tcp or /udp".to_owned()),
    };
    let (address, ports) = split_address(ports)?;
    let (host, guest) = match ports.split_once(':') {
        Some((host, guest)) => (host, guest),
        None if address.is_some() => {
            return Err("has no port inside; write ADDRESS:HOSTPORT:GUESTPORT".to_owned());
        }
        None => ("", ports),
    };
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (first, last) = range(guest)?;
    if first == 0 {
        return Err("names port 0 inside, where no program listens".to_owned());
    }
    let hosts = match host {
        "" | "0" => None,
        host => Some(range(host)?),
    };
    if let Some((from, to)) = hosts {
        if from == 0 {
            return Err("has a range that begins at port 0".to_owned());
        }
        if to - from != last - first {
            return Err(format!(
                "leads {} ports of the host to {} inside; as many are needed",
                u32::from(to - from) + 1,
                u32::from(last - first) + 1
            ));
        }
    }
    if usize::from(last - first) >= MOST {
        return Err(format!("is about more than {MOST} ports"));
    }
    let wish = |guest: u16| {
        let port = hosts.map_or(0, |(from, _)| from + (guest - first));
        Wish { host: SocketAddr::new(address, port), guest, transport }
    };
    Ok((first..=last).map(wish).collect())
}

/// The address that a value begins with, if it does, and the rest.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    if let Some(inside) = text.strip_prefix('[') {
        let Some((address, rest)) = inside.split_once("]:") else {
            return Err("has a [ and no ]: behind it".to_owned());
        };
        let address = address.parse().map(IpAddr::V6);
        return match address {
            Ok(address) => Ok((Some(address), rest)),
            Err(_) => Err("has no address of IPv6 in its [ ]".to_owned()),
        };
    }
    match text.matches(':').count() {
        0 | 1 => Ok((None, text)),
        2 => {
            let (address, rest) = text.split_once(':').unwrap_or_default();
            match address.parse() {
                Ok(address) => Ok((Some(IpAddr::V4(address)), rest)),
                Err(_) => Err(format!(
                    "names {address:?}, which is no address; write one of the host's own, 127.0.0.1 or 0.0.0.0 for \
                     example"
                )),
            }
        }
        _ => Err("has too many colons; write an address of IPv6 as [::1]:8080:80".to_owned()),
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse().ok().filter(|_| digits);
        port.ok_or_else(|| format!("names {text:?}, which is no port (1 to 65535)"))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match first <= last {
        true => Ok((first, last)),
        false => Err("has a range that ends before it begins".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        parse(text).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_docker_users_write_is_understood() {
        assert_eq!(words("8080:80"), ["127.0.0.1:8080:80/tcp"]);
        assert_eq!(words("80"), ["127.0.0.1:0:80/tcp"]);
        assert_eq!(words("0:80"), ["127.0.0.1:0:80/tcp"]);
        assert_eq!(words("127.0.0.1::80"), ["127.0.0.1:0:80/tcp"]);
        assert_eq!(words("0.0.0.0:53:5353/udp"), ["0.0.0.0:53:5353/udp"]);
        assert_eq!(words("[::1]:8080:80"), ["[::1]:8080:80/tcp"]);
        assert_eq!(words("[::]::80/udp"), ["[::]:0:80/udp"]);
        assert_eq!(words("8000-8001:80-81"), ["127.0.0.1:8000:80/tcp", "127.0.0.1:8001:81/tcp"]);
        assert_eq!(words("65534-65535:1-2").len(), 2);
        assert_eq!(words("1001-1512:1-512").len(), MOST);
        assert_eq!(words("80-81"), ["127.0.0.1:0:80/tcp", "127.0.0.1:0:81/tcp"]);
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        for (text, word) in [
            ("", "no port"),
            ("8080:", "no port"),
            ("8080:0", "port 0 inside"),
            ("8080:80/sctp", "/tcp or /udp"),
            ("localhost:8080:80", "no address"),
            ("::1:8080:80", "[::1]"),
            ("[::1]8080:80", "no ]:"),
            ("[127.0.0.1]:8080:80", "IPv6"),
            ("[::1]:80", "no port inside"),
            ("8000-8002:80-81", "3 ports of the host to 2"),
            ("8000-9000:80", "1001 ports"),
            ("8080:70000", "1 to 65535"),
            ("8080:+80", "1 to 65535"),
            ("82-81:80-81", "ends before"),
            ("0-1:80-81", "begins at port 0"),
            ("1-65535:1-65535", "more than"),
            ("1001-1513:1-513", "more than 512 ports"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_a_wish_or_refused(text in "[-0-9a-z:./\\[\\]]{0,24}") {
            let Ok(wishes) = parse(&text) else { return Ok(()) };
            proptest::prop_assert!((1..=MOST).contains(&wishes.len()));
            for wish in wishes {
                proptest::prop_assert_eq!(parse(&wish.to_string()), Ok(vec![wish]));
            }
        }
    }
}
