//! What a run needs, measured while it runs (`sandbox learn`).
//!
//! Owns the figures from which limits are made. They are looked at every 10 ms while a guest runs, so what
//! lasts for less than that can go unseen; who makes limits of them leaves room for that. Keeps no limit.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::sys::statfs::statfs;

use super::kernel::Kernel;
use super::memory::{own, proportional};
use crate::timekeeping::{Consumer, Reading};

/// What a run has used, or asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// The most memory at one moment, in bytes: anonymous and shared memory of all processes, and what lies in
    /// private directories in memory.
    pub memory: u64,
    /// The most processes and threads at one moment.
    pub tasks: u64,
    /// CPU time of all processes.
    pub cpu: Duration,
    /// From beginning to end.
    pub time: Duration,
    /// Addresses beyond the sandbox's own loopback to which something was to be sent.
    pub addresses: BTreeSet<SocketAddr>,
    /// Packets that its own network had no way for.
    pub refused: u64,
}

/// More addresses are not kept: guests must not use up the sentry's memory.
const MOST_ADDRESSES: usize = 1024;

/// Where the figures are kept.
#[derive(Debug, Default)]
pub(super) struct Peaks {
    /// Bytes.
    memory: AtomicU64,
    tasks: AtomicU64,
    /// A leaf of the lock order.
    addresses: Mutex<BTreeSet<SocketAddr>>,
}

impl Peaks {
    /// A guest wants to send something there.
    pub(super) fn note_address(&self, address: SocketAddr) {
        if stays_inside(&address) {
            return;
        }
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() < MOST_ADDRESSES {
            addresses.insert(address);
        }
    }
}

/// Whether the sandbox's own loopback is meant. A resolver that listens there is the host's.
fn stays_inside(address: &SocketAddr) -> bool {
    const DOMAIN: u16 = 53;
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        ip => ip,
    };
    // To connect to no address is to connect to one's own host (ip(7), INADDR_ANY).
    (ip.is_loopback() || ip.is_unspecified()) && address.port() != DOMAIN
}

/// Looks at the guests at each tick.
#[derive(Debug)]
pub(super) struct Measure {
    kernel: Weak<Kernel>,
    /// Private directories in memory, as the guests see them.
    trees: Vec<PathBuf>,
}

impl Measure {
    pub(super) fn new(kernel: &Arc<Kernel>, trees: Vec<PathBuf>) -> Measure {
        Measure { kernel: Arc::downgrade(kernel), trees }
    }

    /// Bytes in the private directories, as a guest's root shows them.
    fn in_trees(&self, pid: i32) -> u64 {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let used = |tree: &PathBuf| {
            let stat = statfs(&root.join(tree.strip_prefix("/").unwrap_or(tree))).ok()?;
            let blocks = stat.blocks().saturating_sub(stat.blocks_free());
            Some(blocks.saturating_mul(stat.block_size().max(0) as u64))
        };
        self.trees.iter().filter_map(used).sum()
    }
}

impl Consumer for Measure {
    fn look(&mut self, reading: &Reading<'_>) -> Option<Duration> {
        let kernel = self.kernel.upgrade()?;
        let guests: Vec<_> =
            reading.processes.iter().filter(|it| !kernel.is_keeper(it.pid)).collect();
        let tasks = guests.iter().map(|it| u64::from(it.threads)).sum();
        let peaks = &kernel.accounting.peaks;
        peaks.tasks.fetch_max(tasks, Ordering::Relaxed);
        let in_trees = guests.iter().map(|it| self.in_trees(it.pid)).max().unwrap_or(0);
        // At most so much, and cheap to read: pages that processes share count for each.
        let used = guests.iter().map(|it| own(it.pid)).sum::<u64>() + in_trees;
        if used > peaks.memory.load(Ordering::Relaxed) {
            let used = guests.iter().map(|it| proportional(it.pid)).sum::<u64>() + in_trees;
            peaks.memory.fetch_max(used, Ordering::Relaxed);
        }
        // Whatever they use until then, a tick is soon enough.
        Some(Duration::from_secs(1))
    }
}

impl Kernel {
    /// What was measured so far. Blocks: it reads /proc.
    pub fn measured(&self) -> Measured {
        let peaks = &self.accounting.peaks;
        Measured {
            memory: peaks.memory.load(Ordering::Relaxed),
            tasks: peaks.tasks.load(Ordering::Relaxed),
            cpu: self.cpu_time(),
            time: self.accounting.started.elapsed(),
            addresses: peaks.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            refused: 0,
        }
    }

    /// A guest wants to send something to an address.
    pub(super) fn note_address(&self, address: SocketAddr) {
        self.accounting.peaks.note_address(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_inside_is_no_network() {
        let peaks = Peaks::default();
        for address in ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::ffff:127.0.0.2]:1"] {
            peaks.note_address(address.parse().unwrap());
        }
        assert!(peaks.addresses.lock().unwrap().is_empty());
        for address in ["127.0.0.53:53", "192.0.2.1:443", "[2001:db8::1]:80"] {
            peaks.note_address(address.parse().unwrap());
        }
        assert_eq!(peaks.addresses.lock().unwrap().len(), 3);
        for number in 0..2 * MOST_ADDRESSES {
            peaks.note_address(SocketAddr::from(([192, 0, 2, 1], number as u16)));
        }
        assert_eq!(peaks.addresses.lock().unwrap().len(), MOST_ADDRESSES);
    }
}
