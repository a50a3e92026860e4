//! The host's own resolvers, asked as a stub does (RFC 1035, 7; resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::time::Duration;

use simple_dns::{Packet, PacketFlag};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::address;
use crate::sys::socket;

/// Where the host says which resolvers it has.
pub(super) const PLACE: &str = "/etc/resolv.conf";
/// As many as the C library takes (MAXNS in resolv.h).
const MOST_SERVERS: usize = 3;
/// The longest answer in a datagram.
const ROOM: usize = 64 << 10;

/// What resolv.conf(5) says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    attempts: u32,
}

impl Upstream {
    /// As the host has it now: it may move from one network to another.
    pub(super) fn of_host() -> Upstream {
        Upstream::parse(&std::fs::read_to_string(Path::new(PLACE)).unwrap_or_default())
    }

    fn parse(text: &str) -> Upstream {
        let mut found =
            Upstream { servers: Vec::new(), timeout: Duration::from_secs(5), attempts: 2 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if found.servers.len() < MOST_SERVERS => {
                    found.servers.extend(words.next().and_then(server));
                }
                Some("options") => words.for_each(|word| found.option(word)),
                _ => {}
            }
        }
        if found.servers.is_empty() {
            found.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
        }
        found
    }

    /// Within the bounds that the C library has.
    fn option(&mut self, word: &str) {
        let number = |value: &str| value.parse::<u32>().ok();
        match word.split_once(':') {
            Some(("timeout", value)) => {
                self.timeout = number(value)
                    .map_or(self.timeout, |it| Duration::from_secs(it.clamp(1, 30).into()));
            }
            Some(("attempts", value)) => {
                self.attempts = number(value).map_or(self.attempts, |it| it.clamp(1, 5));
            }
            _ => {}
        }
    }

    /// Asks; `query` is a whole message. `None`: nobody has answered, or with something else.
    pub(super) async fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        for _ in 0..self.attempts {
            for server in &self.servers {
                let asked = tokio::time::timeout(self.timeout, ask_one(*server, query));
                if let Ok(Some(answer)) = asked.await {
                    return Some(answer);
                }
            }
        }
        None
    }
}

fn server(word: &str) -> Option<SocketAddr> {
    if let Some((address, zone)) = word.split_once('%') {
        let scope = socket::interface(zone).or_else(|| zone.parse().ok())?;
        return Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into());
    }
    Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, 53))
}

/// By a datagram; what is too long for one, by a stream.
async fn ask_one(server: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let any = address::any(address::family(server), 0);
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(query).await.ok()?;
    let mut answer = vec![0; ROOM];
    loop {
        let length = socket.recv(&mut answer).await.ok()?;
        match fits(query, &answer[..length]) {
            Some(true) => return ask_by_stream(server, query).await,
            Some(false) => {
                answer.truncate(length);
                return Some(answer);
            }
            // Somebody else's, or forged.
            None => {}
        }
    }
}

async fn ask_by_stream(server: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let mut whole = u16::try_from(query.len()).ok()?.to_be_bytes().to_vec();
    whole.extend(query);
    stream.write_all(&whole).await.ok()?;
    let mut answer = vec![0; stream.read_u16().await.ok()?.into()];
    stream.read_exact(&mut answer).await.ok()?;
    fits(query, &answer).map(|_| answer)
}

/// Whether an answer is one to this question, and then whether it was cut.
fn fits(query: &[u8], answer: &[u8]) -> Option<bool> {
    let (asked, answered) = (Packet::parse(query).ok()?, Packet::parse(answer).ok());
    let Some(answered) = answered else {
        // What this cannot read may still be cut: the stream tells. (RFC 1035, 4.1.1: id, then flags.)
        let cut = answer.get(..2) == query.get(..2) && answer.get(2).is_some_and(|it| it & 2 != 0);
        return cut.then_some(true);
    };
    let same = asked.id() == answered.id()
        && answered.has_flags(PacketFlag::RESPONSE)
        && asked.questions.len() == answered.questions.len()
        && asked.questions.iter().zip(&answered.questions).all(|(a, b)| {
            let name = |it: &simple_dns::Question<'_>| it.qname.to_string().to_ascii_lowercase();
            name(a) == name(b) && a.qtype == b.qtype && a.qclass == b.qclass
        });
    same.then(|| answered.has_flags(PacketFlag::TRUNCATION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_word_is_read_as_the_library_does() {
        let text = "# x\nnameserver 192.0.2.1\nnameserver ::1\nsearch a b\noptions timeout:1 attempts:9 ndots:2\n";
        let found = Upstream::parse(text);
        assert_eq!(found.servers, ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!((found.timeout, found.attempts), (Duration::from_secs(1), 5));
        assert_eq!(Upstream::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
        let scoped = Upstream::parse("nameserver fe80::1%1").servers;
        assert_eq!(scoped, ["[fe80::1%1]:53".parse().unwrap()]);
    }
}
