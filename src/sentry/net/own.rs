//! Which addresses are the host's own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::datagrams;
use crate::sys::{netlink, socket};

/// So many ways are remembered at a time.
const MOST_WAYS: usize = 1024;

/// The addresses of the host's interfaces, and which others the host takes for its own. Both are asked for anew when the
/// kernel says that something has changed: each connection is judged by them.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    /// What was found last. A leaf of the lock order.
    last: Mutex<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    /// On which the kernel tells of changes since.
    changes: OwnedFd,
    addresses: Vec<IpAddr>,
    /// Addresses that no interface has, and whether the host takes them for its own all the same.
    ways: HashMap<SocketAddr, bool>,
}

impl OwnAddresses {
    /// Whether this is an address of the host's own: an interface has it, or the kernel takes what is sent there for its
    /// own (ip-route(8), local). What cannot be told counts as one.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(Last::has_changed) {
            // (What changes while they are read is told, too.)
            let changes = socket::routing_changes();
            let Ok(addresses) = socket::own_addresses() else { return true };
            let ways = HashMap::new();
            let Ok(changes) = changes else {
                *last = None;
                return addresses.contains(&address.ip()) || is_local(address);
            };
            *last = Some(Last { changes, addresses, ways });
        }
        last.as_mut().is_none_or(|it| it.has(address))
    }
}

impl Last {
    fn has(&mut self, address: SocketAddr) -> bool {
        if self.addresses.contains(&address.ip()) {
            return true;
        }
        if self.ways.len() >= MOST_WAYS {
            self.ways.clear();
        }
        *self.ways.entry(address).or_insert_with(|| is_local(address))
    }

    /// Whether anything was told, or could not be (ENOBUFS in netlink(7)).
    fn has_changed(&self) -> bool {
        let told = recv(self.changes.as_raw_fd(), &mut [0; 16], MsgFlags::MSG_DONTWAIT);
        told != Err(Errno::EAGAIN)
    }
}

/// Whether the kernel takes what is sent to an address for its own.
fn is_local(address: SocketAddr) -> bool {
    match netlink::route_kind(address) {
        Ok(kind) => kind == libc::RTN_LOCAL,
        Err(errno) => !matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH),
    }
}

/// Whether the host has a way to addresses of IPv6 at all.
pub(super) fn has_v6() -> bool {
    // An address of the internet that nobody has (RFC 3849 reserves it for documentation).
    let far = SocketAddr::new(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 53);
    datagrams::flow_to(far).is_ok()
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
            assert!(!has(&own, "198.51.100.9"));
            ip("route add local 198.51.100.0/24 dev lo")?;
            assert!(has(&own, "198.51.100.9") && has(&own, "198.51.100.9"));
            ip("route del local 198.51.100.0/24 dev lo")?;
            assert!(!has(&own, "198.51.100.9"));
            ip("route add local 198.51.100.0/24 dev lo")?;
            assert!(has(&own, "198.51.100.9"));
            // If a rule says that the table is looked at.
            ip("rule del pref 0")?;
            assert!(!has(&own, "198.51.100.9"));
            ip("rule add pref 0 table local")?;
            assert!(has(&own, "198.51.100.9"));
            ip("-6 route add local 2001:db8:7::/64 dev lo")?;
            assert!(has(&own, "2001:db8:7::1"));
            Some(())
        };
        if std::thread::spawn(in_own_network).join().unwrap().is_none() {
            println!("skipped: no network of a test's own");
        }
    }
}
