//! Numbers of users, groups and processes, from the host's to the guest's.

use std::path::PathBuf;

use super::super::guest_number;
use crate::sys::id_map::IdMap;

/// Of one user namespace, and one of processes.
#[derive(Debug, Default)]
pub(super) struct Ids {
    users: IdMap,
    groups: IdMap,
    /// What tells that of processes from others.
    processes: Option<PathBuf>,
}

/// Who has no number inside (overflowuid in proc_sys_kernel(5)).
const NOBODY: u32 = 65534;

impl Ids {
    /// No number has one inside.
    pub(super) const NONE: Ids = Ids { users: IdMap::NONE, groups: IdMap::NONE, processes: None };

    /// Those of a process, by the host's number.
    pub(super) fn of(pid: i32) -> Ids {
        let (users, groups) = (IdMap::of_users(pid), IdMap::of_groups(pid));
        let (users, groups) = (users.unwrap_or_default(), groups.unwrap_or_default());
        Ids { users, groups, processes: namespace(pid) }
    }

    /// A user.
    pub(super) fn user(&self, outside: u32) -> u32 {
        self.users.inside(outside).unwrap_or(NOBODY)
    }

    /// A group.
    pub(super) fn group(&self, outside: u32) -> u32 {
        self.groups.inside(outside).unwrap_or(NOBODY)
    }

    /// A process; 0: it has no number inside, or is gone.
    pub(super) fn process(&self, pid: i32) -> i32 {
        // (One outside may be another user's, whose namespaces nobody else is told.)
        let is_inside = namespace(pid) == self.processes;
        guest_number(pid).filter(|_| is_inside).unwrap_or(0)
    }
}

/// pid_namespaces(7).
fn namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}
