//! Which addresses are the host's own.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::{address, datagrams};
use crate::sys::socket;

/// The addresses of the host's interfaces. They are read anew when the kernel says that some have changed: each connection
/// is judged by them.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    /// What was read last. A leaf of the lock order.
    last: Mutex<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    /// On which the kernel tells of changes since (rtnetlink(7)).
    changes: OwnedFd,
    addresses: Vec<IpAddr>,
}

impl OwnAddresses {
    /// Whether this is an address of the host's own: an interface has it, or what is sent there comes from it, as the
    /// kernel would route it. (A datagram socket sends nothing when it is connected.) What cannot be told counts as one.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        if self.of_interfaces(address.ip()).unwrap_or(true) {
            return true;
        }
        match source_for(address) {
            Ok(source) => source.ip() == address.ip(),
            Err(errno) => !matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH),
        }
    }

    /// Whether an interface has it.
    fn of_interfaces(&self, ip: IpAddr) -> Result<bool, Errno> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = last.as_ref().filter(|it| !it.has_changed()) {
            return Ok(known.addresses.contains(&ip));
        }
        // (What changes while they are read is told, too.)
        let changes = socket::address_changes();
        let addresses = socket::own_addresses()?;
        let has = addresses.contains(&ip);
        *last = changes.ok().map(|changes| Last { changes, addresses });
        Ok(has)
    }
}

impl Last {
    /// Whether anything was told, or could not be (ENOBUFS in netlink(7)).
    fn has_changed(&self) -> bool {
        let told = recv(self.changes.as_raw_fd(), &mut [0; 16], MsgFlags::MSG_DONTWAIT);
        told != Err(Errno::EAGAIN)
    }
}

/// Whether the host has a way to addresses of IPv6 at all.
pub(super) fn has_v6() -> bool {
    // An address of the internet that nobody has (RFC 3849 reserves it for documentation).
    let far = SocketAddr::new(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 53);
    source_for(far).is_ok()
}

fn source_for(mut address: SocketAddr) -> Result<SocketAddr, Errno> {
    if address.port() == 0 {
        address.set_port(1);
    }
    let probe = datagrams::flow_to(address)?;
    address::parse(&socket::name(std::os::fd::AsFd::as_fd(&probe))?).ok_or(Errno::EBADMSG)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn changes_of_addresses_are_noticed() {
        fn has(own: &OwnAddresses, ip: &str) -> bool {
            own.has(SocketAddr::new(ip.parse().unwrap(), 80))
        }
        assert!(has(&OwnAddresses::default(), "127.0.0.1"));
        // A network of this thread's own, where no ordinary user may change anything.
        let in_own_network = || {
            let own = OwnAddresses::default();
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            let ip = |words: &str| Command::new("ip").args(words.split(' ')).status().ok();
            ip("link set lo up")?.success().then_some(())?;
            assert!(!has(&own, "192.0.2.7") && !has(&own, "192.0.2.7"));
            ip("addr add 192.0.2.7/32 dev lo")?;
            assert!(has(&own, "192.0.2.7"));
            ip("addr del 192.0.2.7/32 dev lo")?;
            assert!(!has(&own, "192.0.2.7"));
            // What is routed to the host itself is its own, too.
            ip("route add local 198.51.100.0/24 dev lo")?;
            assert!(has(&own, "198.51.100.9"));
            Some(())
        };
        if std::thread::spawn(in_own_network).join().unwrap().is_none() {
            println!("skipped: no network of a test's own");
        }
    }
}
