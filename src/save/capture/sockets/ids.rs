//! Numbers of users, groups and processes, from the host's to the guest's.

use super::super::guest_number;
use crate::sys::id_map::IdMap;

/// Of one user namespace.
#[derive(Debug, Default)]
pub(super) struct Ids {
    users: IdMap,
    groups: IdMap,
}

/// Who has no number inside (overflowuid in proc_sys_kernel(5)).
const NOBODY: u32 = 65534;

impl Ids {
    /// No number has one inside.
    pub(super) const NONE: Ids = Ids { users: IdMap::NONE, groups: IdMap::NONE };

    /// Those of a process, by the host's number.
    pub(super) fn of(pid: i32) -> Ids {
        let (users, groups) = (IdMap::of_users(pid), IdMap::of_groups(pid));
        Ids { users: users.unwrap_or_default(), groups: groups.unwrap_or_default() }
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
    pub(super) fn process(pid: i32) -> i32 {
        guest_number(pid).unwrap_or(0)
    }
}
