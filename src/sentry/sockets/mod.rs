//! The sockets of a sandbox, as the kernel knows them at one moment.
//!
//! Those of the guests' own network, all; of the host's network, those that guests hold, that the sandbox has made for
//! them, or that it carries their datagrams by. Who holds one is told by /proc/PID/fd.

pub(super) mod diag;
mod holders;
mod visit;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::kernel::Kernel;
use super::kernel_error::KernelError;
use super::net::Network;
use diag::{CLASSES, Class, End, Listed};
use holders::Held;
pub use holders::Holder;
pub(super) use holders::holds;

/// Sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// Those that were found.
    pub sockets: Vec<SocketInfo>,
    /// How many there are beside these.
    pub more: u64,
    /// What could not be listed, as sentences.
    pub untold: Vec<String>,
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketInfo {
    /// `tcp`, `udp`, `raw`, `unix-stream`, `unix-datagram`, `unix-seqpacket`; what is not listed by the kernel is what that
    /// calls its protocol.
    pub kind: String,
    /// As ss(8) calls it.
    pub state: String,
    /// Bytes to be read; of one that listens, connections to be accepted.
    pub recv_queue: u64,
    /// Bytes that the other side has not taken; of one that listens, the most connections to be accepted.
    pub send_queue: u64,
    /// An address, or the name of a unix socket (an abstract one begins with `@`). A name is the guest's to choose.
    pub local: Option<String>,
    /// Likewise, of the other side; a unix socket without a name is `#` and its inode.
    pub peer: Option<String>,
    /// The name by which a guest has looked the other side up.
    pub peer_name: Option<String>,
    /// Whose network it is in: `inside` the guests' own, `outside` the host's.
    pub network: String,
    /// The number in /proc/PID/fd; 0: no process holds it any more.
    pub inode: u64,
    /// Bytes that a connection has sent, repetitions left out.
    pub bytes_out: Option<u64>,
    /// Bytes that it has received.
    pub bytes_in: Option<u64>,
    /// It is the sandbox's own.
    pub own: bool,
    /// Who holds it: the first few.
    pub holders: Vec<Holder>,
    /// How many places hold it.
    pub held: u64,
}

/// More are counted, and not told: a reply has an end.
const MOST: usize = 8 << 10;

impl Kernel {
    /// The sockets of the sandbox. Blocks: it reads /proc.
    pub fn sockets(&self) -> Result<Sockets, KernelError> {
        let processes = self.census()?;
        let held = Held::of(&processes);
        let network = self.network().map(|network| &**network);
        let mut listing =
            Listing { held, network, found: Sockets::default(), seen: HashSet::new() };
        if listing.held.is_cut {
            let what = "all that hold sockets: the programs have too many descriptors to be looked at in time";
            listing.found.untold.push(what.to_owned());
        }
        // (One that has just ended has no network any more.)
        let theirs = processes.iter().find_map(|it| Some((it, network_of(&it.pid.to_string())?)));
        let Some((guest, theirs)) = theirs else { return Ok(Sockets::default()) };
        let has_own_network = Some(theirs) != network_of("self");
        let own = holders::own_inodes();
        if has_own_network {
            let netlink = match network {
                Some(network) => network.diag_socket(),
                None => visit::open(guest),
            };
            let netlink = netlink.map_err(KernelError::Sockets)?;
            // (Not so many that those outside find no place.)
            listing.take(netlink.as_fd(), MOST / 2, "inside", &own, |_, _| true)?;
        }
        // What guests hold of the host's network, what was made for them there, and what carries their datagrams.
        let made = network.map(Network::flow_cookies).unwrap_or_default();
        let has_flows = network.is_some();
        if has_flows || listing.lacks_some() {
            let netlink = diag::open().map_err(KernelError::Sockets)?;
            listing.take(netlink.as_fd(), MOST, "outside", &own, |it, is_held| {
                let is_carrier = has_flows && it.class != Class::Unix && own.contains(&it.inode);
                is_held || made.contains(&it.cookie) || is_carrier
            })?;
        }
        listing.add_unlisted(if has_own_network { "inside" } else { "outside" });
        Ok(listing.finish())
    }
}

/// One side of a TCP connection that some process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldSide {
    /// The number in /proc/PID/fd.
    pub inode: u64,
    /// Its own address.
    pub local: SocketAddr,
    /// That of the other side.
    pub peer: SocketAddr,
}

/// All sides of TCP connections in one network that processes hold, whichever these are. `netlink`: of that network
/// (NETLINK_SOCK_DIAG).
///
/// # Errors
/// ENOENT: the host's kernel cannot list them.
pub fn held_sides(netlink: BorrowedFd<'_>) -> Result<Vec<HeldSide>, Errno> {
    let mut sides = Vec::new();
    for class in diag::CONNECTIONS {
        diag::dump(netlink, class, |it| {
            if let (1.., End::Address(local), End::Address(peer)) = (it.inode, it.local, it.peer) {
                sides.push(HeldSide { inode: it.inode, local, peer });
            }
        })?;
    }
    Ok(sides)
}

/// What is being put together.
struct Listing<'n> {
    held: Held,
    network: Option<&'n Network>,
    found: Sockets,
    /// The inodes of those that were listed, or counted.
    seen: HashSet<u64>,
}

impl Listing<'_> {
    /// Adds what one network lists, if it `belongs` to the sandbox; that is told whether a guest holds it, too. When there
    /// are `most`, more are counted.
    fn take(
        &mut self,
        netlink: BorrowedFd<'_>,
        most: usize,
        network: &str,
        own: &HashSet<u64>,
        belongs: impl Fn(&Listed, bool) -> bool,
    ) -> Result<(), KernelError> {
        let mut all = Vec::new();
        for class in CLASSES {
            let dumped = diag::dump(netlink, class, |it| {
                let is_held =
                    it.inode != 0 && self.held.has(it.inode) && !self.seen.contains(&it.inode);
                if !belongs(&it, is_held) {
                } else if self.found.sockets.len() + all.len() < most {
                    all.push(it);
                } else {
                    self.found.more += 1;
                    self.seen.insert(it.inode);
                }
            });
            match dumped {
                Ok(()) => {}
                // (inet_diag_lock_handler in net/ipv4/inet_diag.c, sock_diag_rcv_msg in net/core/sock_diag.c)
                Err(Errno::ENOENT) => self.lacks(class),
                Err(errno) => return Err(KernelError::Sockets(errno)),
            }
        }
        let unix = all.iter().filter(|it| it.class == Class::Unix);
        let names: HashMap<u64, String> =
            unix.filter_map(|it| Some((it.inode, name(&it.local)?))).collect();
        for it in all {
            self.seen.insert(it.inode);
            let info = self.describe(&it, network, own.contains(&it.inode), &names);
            self.found.sockets.push(info);
        }
        Ok(())
    }

    fn lacks(&mut self, class: Class) {
        let what = match class {
            Class::Unix => "unix sockets: the host's kernel lacks unix_diag",
            Class::Inet(_, libc::IPPROTO_TCP) => "TCP sockets: the host's kernel lacks tcp_diag",
            Class::Inet(_, libc::IPPROTO_UDP) => "UDP sockets: the host's kernel lacks udp_diag",
            // (Rare, and of few guests; they are among those that are found by who holds them.)
            Class::Inet(..) => return,
        };
        if !self.found.untold.iter().any(|it| it == what) {
            self.found.untold.push(what.to_owned());
        }
    }

    /// Whether guests hold sockets that were not listed.
    fn lacks_some(&self) -> bool {
        self.held.inodes().any(|inode| !self.seen.contains(&inode))
    }

    fn describe(
        &self,
        it: &Listed,
        network: &str,
        own: bool,
        names: &HashMap<u64, String>,
    ) -> SocketInfo {
        let holders = self.held.of_socket(it.inode);
        let peer_name = match &it.peer {
            End::Address(peer) => self.network.and_then(|it| it.name(peer.ip())),
            _ => None,
        };
        let peer = match &it.peer {
            End::Number(inode) => Some(names.get(inode).cloned().unwrap_or(format!("#{inode}"))),
            end => name(end),
        };
        SocketInfo {
            kind: kind(it).to_owned(),
            state: state(it).to_owned(),
            recv_queue: it.recv_queue,
            send_queue: it.send_queue,
            local: name(&it.local),
            peer,
            peer_name,
            network: network.to_owned(),
            inode: it.inode,
            bytes_out: it.carried.map(|it| it.sent),
            bytes_in: it.carried.map(|it| it.received),
            own: own && holders.count == 0,
            held: holders.count,
            holders: holders.first.clone(),
        }
    }

    /// What guests hold and the kernel lists nowhere: other kinds, and those of TCP that have neither address nor peer.
    fn add_unlisted(&mut self, network: &str) {
        let unlisted: Vec<u64> =
            self.held.inodes().filter(|inode| !self.seen.contains(inode)).collect();
        for inode in unlisted {
            if self.found.sockets.len() >= MOST {
                self.found.more += 1;
                continue;
            }
            let holders = self.held.of_socket(inode);
            // (Gone meanwhile, most likely.)
            let Some(kind) = holders.first.iter().find_map(Holder::protocol_name) else { continue };
            self.found.sockets.push(SocketInfo {
                kind: kind.strip_suffix("v6").unwrap_or(&kind).to_owned(),
                state: "UNCONN".to_owned(),
                recv_queue: 0,
                send_queue: 0,
                local: None,
                peer: None,
                peer_name: None,
                network: network.to_owned(),
                inode,
                bytes_out: None,
                bytes_in: None,
                own: false,
                held: holders.count,
                holders: holders.first.clone(),
            });
        }
    }

    fn finish(mut self) -> Sockets {
        let order =
            |it: &SocketInfo| (it.kind.clone(), it.network.clone(), it.local.clone(), it.inode);
        self.found.sockets.sort_by_cached_key(order);
        self.found
    }
}

/// What tells network namespaces apart.
fn network_of(pid: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

fn name(end: &End) -> Option<String> {
    match end {
        End::None => None,
        End::Address(address) => Some(address.to_string()),
        End::Name(name) => match name.strip_prefix(b"\0") {
            Some(rest) => Some(format!("@{}", String::from_utf8_lossy(rest))),
            None => Some(String::from_utf8_lossy(name).into_owned()),
        },
        End::Number(inode) => Some(format!("#{inode}")),
    }
}

fn kind(it: &Listed) -> &'static str {
    match (it.class, it.kind) {
        (Class::Inet(_, libc::IPPROTO_TCP), _) => "tcp",
        (Class::Inet(_, libc::IPPROTO_UDP), _) => "udp",
        (Class::Inet(..), _) => "raw",
        (Class::Unix, libc::SOCK_STREAM) => "unix-stream",
        (Class::Unix, libc::SOCK_SEQPACKET) => "unix-seqpacket",
        (Class::Unix, _) => "unix-datagram",
    }
}

/// The words of ss(8) for include/net/tcp_states.h.
fn state(it: &Listed) -> &'static str {
    const NAMES: [&str; 14] = [
        "UNKNOWN",
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "TIME-WAIT",
        "UNCONN",
        "CLOSE-WAIT",
        "LAST-ACK",
        "LISTEN",
        "CLOSING",
        "SYN-RECV",
        "UNCONN",
    ];
    NAMES.get(usize::from(it.state)).copied().unwrap_or(NAMES[0])
}
