//! Who holds which sockets (proc_pid_fd(5)).

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::super::census::{ProcessInfo, numbers};
use super::super::stat::{Stat, ticks};
use crate::sys::descriptors::{Common, compare_common};
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

/// Sockets by inode.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_inode: HashMap<u64, Vec<Holder>>,
}

impl Held {
    /// All that these processes hold.
    pub(super) fn of(processes: &[ProcessInfo]) -> Held {
        let mut held = Held::default();
        for process in processes {
            let mut found = Vec::new();
            for tid in tables(process.pid) {
                let each = sockets_of(&tid.to_string()).into_iter();
                found.extend(each.map(|(fd, inode)| (tid, fd, inode)));
            }
            // What was read of a number that is another one's meanwhile is not this one's.
            if !is_still(process) {
                continue;
            }
            for (tid, fd, inode) in found {
                held.by_inode.entry(inode).or_default().push(Holder {
                    pid: process.pid,
                    guest_pid: process.guest_pid,
                    comm: process.comm.clone(),
                    fd,
                    tid,
                });
            }
        }
        held
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
    pub(super) fn of_socket(&self, inode: u64) -> &[Holder] {
        self.by_inode.get(&inode).map_or(&[], |holders| holders)
    }
}

/// One thread for each table of descriptors that the threads of a process have: one, mostly. (Its leader may have ended
/// before the others, and has none then.)
fn tables(pid: i32) -> Vec<i32> {
    let mut tables: Vec<i32> = Vec::new();
    for tid in numbers(&format!("/proc/{pid}/task")).into_iter().flatten() {
        // (Where the kernel cannot compare, a process has one.)
        let is_known = tables.iter().any(|known| {
            let compared = compare_common(*known, tid, Common::Descriptors);
            compared.is_ok_and(Ordering::is_eq) || compared == Err(Errno::ENOSYS)
        });
        if !is_known {
            tables.push(tid);
        }
    }
    tables
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
