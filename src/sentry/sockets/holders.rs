//! Who holds which sockets (proc_pid_fd(5)).

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::super::census::{ProcessInfo, numbers};
use super::super::stat::{Stat, ticks};
use crate::sys::descriptors::{Common, compare_common, search};
use crate::sys::socket;

/// A descriptor of a guest that stands for a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process, as the host numbers it.
    pub pid: i32,
    /// As the guest does.
    pub guest_pid: i32,
    /// Its name. Chosen by the guest.
    pub comm: String,
    /// The descriptor.
    pub fd: RawFd,
    /// The thread whose descriptor it is.
    #[serde(skip)]
    tid: i32,
}

impl Holder {
    /// What the kernel calls the protocol of the socket.
    pub(super) fn protocol_name(&self) -> Option<String> {
        socket::protocol_name(self.tid, self.fd).ok().filter(|name| !name.is_empty())
    }
}

/// Whether a process is there, and none that has got its number.
pub(super) fn is_still(process: &ProcessInfo) -> bool {
    let start = Stat::read(process.pid).map(|stat| ticks(stat.start).as_micros() as u64);
    start == Some(process.started_us)
}

/// Holders of a socket that are told.
const MOST_HOLDERS: usize = 8;
/// How long is looked for them: guests decide how many descriptors there are.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who holds a socket.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// The first few.
    pub(super) first: Vec<Holder>,
    /// How many there are.
    pub(super) count: u64,
}

/// Sockets by inode.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_inode: HashMap<u64, Holders>,
    /// There was no time for some.
    pub(super) is_cut: bool,
}

impl Held {
    /// All that these processes hold.
    pub(super) fn of(processes: &[ProcessInfo]) -> Held {
        let mut held = Held::default();
        let deadline = Instant::now() + PATIENCE;
        for process in processes {
            for tid in tables(process.pid, deadline) {
                if Instant::now() >= deadline {
                    break;
                }
                let found = sockets_of(&tid.to_string());
                // What was read of a number that is another one's meanwhile is not this one's.
                if !is_still(process) {
                    break;
                }
                found.into_iter().for_each(|(fd, inode)| held.add(process, tid, fd, inode));
            }
            if Instant::now() >= deadline {
                held.is_cut = true;
                break;
            }
        }
        held
    }

    fn add(&mut self, process: &ProcessInfo, tid: i32, fd: RawFd, inode: u64) {
        let holders = self.by_inode.entry(inode).or_default();
        holders.count += 1;
        if holders.first.len() < MOST_HOLDERS {
            holders.first.push(Holder {
                pid: process.pid,
                guest_pid: process.guest_pid,
                comm: process.comm.clone(),
                fd,
                tid,
            });
        }
    }

    /// Whether somebody holds it.
    pub(super) fn has(&self, inode: u64) -> bool {
        self.by_inode.contains_key(&inode)
    }

    /// All of them.
    pub(super) fn inodes(&self) -> impl Iterator<Item = u64> {
        self.by_inode.keys().copied()
    }

    /// Who holds this one.
    pub(super) fn of_socket(&self, inode: u64) -> &Holders {
        const NONE: &Holders = &Holders { first: Vec::new(), count: 0 };
        self.by_inode.get(&inode).unwrap_or(NONE)
    }
}

/// Whether a process holds this socket, as far as can be seen until the deadline.
pub(in crate::sentry) fn holds(pid: i32, inode: u64, deadline: Instant) -> bool {
    let has = |tid: i32| sockets_of(&tid.to_string()).iter().any(|(_, it)| *it == inode);
    // (Mostly there is one table, which is its leader's.)
    Instant::now() < deadline && (has(pid) || tables(pid, deadline).into_iter().any(has))
}

/// One thread for each table of descriptors that the threads of a process have: one, mostly. (Its leader may have ended
/// before the others, and has none then.) Those that were found until the deadline.
fn tables(pid: i32, deadline: Instant) -> Vec<i32> {
    // In the kernel's order.
    let mut tables: Vec<i32> = Vec::new();
    for tid in numbers(&format!("/proc/{pid}/task")).into_iter().flatten() {
        if Instant::now() >= deadline {
            break;
        }
        if let Err(at) = place(&tables, tid) {
            tables.insert(at, tid);
        }
    }
    tables
}

/// Where among these is a thread that has the same table as this one, or else where this one belongs.
fn place(tables: &[i32], tid: i32) -> Result<usize, usize> {
    let same = |one: i32, other: i32| compare_common(one, other, Common::Descriptors);
    match search(tables, |known| same(*known, tid)) {
        Ok(place) => place,
        // Nobody needs one that has ended. If another one has, those beside it are asked one by one.
        Err(Errno::ESRCH) if same(tid, tid).is_err() => Ok(0),
        Err(Errno::ESRCH) => {
            let found = tables.iter().position(|known| same(*known, tid) == Ok(Ordering::Equal));
            let before = |known: &i32| same(*known, tid) == Ok(Ordering::Less);
            found.ok_or_else(|| tables.iter().rposition(before).map_or(0, |at| at + 1))
        }
        // Where the kernel does not compare, a process has one.
        Err(_) => Ok(0),
    }
}

/// The sockets among the descriptors of a thread: number and inode.
fn sockets_of(tid: &str) -> Vec<(RawFd, u64)> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{tid}/fd")) else { return Vec::new() };
    let each = entries.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let link = std::fs::read_link(entry.path()).ok()?;
        Some((number, inode(link.to_str()?)?))
    });
    each.collect()
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The sandbox's own.
pub(super) fn own_inodes() -> HashSet<u64> {
    sockets_of("self").into_iter().map(|(_, inode)| inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_their_links() {
        assert_eq!(inode("socket:[123]"), Some(123));
        assert_eq!(
            (inode("pipe:[123]"), inode("socket:[x]"), inode("/socket:[1]")),
            (None, None, None)
        );
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = crate::sys::files::identity(std::os::fd::AsFd::as_fd(&one)).unwrap().1;
        assert!(own_inodes().contains(&number));
    }
}
