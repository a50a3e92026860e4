//! The sockets of the host that lead inside, bound before anything is started.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::super::address::{self, family};
use super::{Published, Wish};
use crate::sentry::net::{Transport, UNPRIVILEGED};
use crate::sys::socket;

/// Connections that may wait to be taken up: as many as the host lets (net.core.somaxconn, listen(2)).
const BACKLOG: u32 = 4096;
/// The doors of a run.
#[derive(Debug, Default)]
pub struct Doors {
    all: Vec<(OwnedFd, Published)>,
}

/// A port cannot be published: one sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorError {
    wish: Wish,
    errno: Errno,
}

impl fmt::Display for DoorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.wish.host;
        write!(f, "cannot publish {}: ", self.wish)?;
        match self.errno {
            Errno::EADDRINUSE => write!(
                f,
                "port {} of {} is in use; name another, or 0 for any that is free",
                host.port(),
                host.ip()
            ),
            Errno::EACCES if host.port() < lowest() => write!(
                f,
                "ports below {} of the host are for root (net.ipv4.ip_unprivileged_port_start); name a higher one",
                lowest()
            ),
            Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT => {
                write!(f, "the host has no address {}; name one of its own", host.ip())
            }
            errno => f.write_str(errno.desc()),
        }
    }
}

impl std::error::Error for DoorError {}

/// The first port that needs no rights, on the host (ip(7)).
fn lowest() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(UNPRIVILEGED)
}

impl Doors {
    /// Binds all of them, and lets connections wait.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn open(wishes: &[Wish]) -> Result<Doors, DoorError> {
        let open = |wish: &Wish| {
            let (fd, host) = bind(wish).map_err(|errno| DoorError { wish: *wish, errno })?;
            Ok((fd, Published { guest: wish.guest, transport: wish.transport, host }))
        };
        Ok(Doors { all: wishes.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What they have come to.
    pub fn published(&self) -> Vec<Published> {
        self.all.iter().map(|(_, published)| *published).collect()
    }

    pub(super) fn into_parts(self) -> Vec<(OwnedFd, Published)> {
        self.all
    }
}

fn bind(wish: &Wish) -> Result<(OwnedFd, SocketAddr), Errno> {
    let kind = match wish.transport {
        Transport::Tcp => libc::SOCK_STREAM,
        Transport::Udp => libc::SOCK_DGRAM,
    };
    let fd = socket::socket(family(wish.host), kind | libc::SOCK_NONBLOCK, 0)?;
    if wish.host.is_ipv6() {
        // [::] and 0.0.0.0 are two wishes.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if wish.transport == Transport::Tcp {
        // What remains of connections of an earlier run is not in the way (socket(7)).
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    socket::bind(fd.as_fd(), &address::bytes(wish.host))?;
    match wish.transport {
        Transport::Tcp => socket::listen(fd.as_fd(), BACKLOG)?,
        // Answers are to come from where the question went to.
        Transport::Udp if wish.host.is_ipv4() => setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?,
        Transport::Udp => setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    let host = address::parse(&socket::name(fd.as_fd())?).ok_or(Errno::EBADMSG)?;
    Ok((fd, host))
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_named() {
        let doors = Doors::open(&parse("80").unwrap()).unwrap();
        let [Published { host, guest: 80, transport: Transport::Tcp }] = doors.published()[..]
        else {
            panic!("{doors:?}");
        };
        assert!(host.ip().is_loopback() && host.port() != 0);
        let error = Doors::open(&parse(&format!("{}:81", host.port())).unwrap()).unwrap_err();
        let expected = format!("port {} of 127.0.0.1 is in use", host.port());
        assert!(error.to_string().contains(&expected), "{error}");
        // The same port of UDP is another.
        Doors::open(&parse(&format!("{}:81/udp", host.port())).unwrap()).unwrap();
        let error = Doors::open(&parse("192.0.2.1:0:80").unwrap()).unwrap_err();
        assert!(error.to_string().contains("no address 192.0.2.1"), "{error}");
    }
}
