//! Numbers of users, groups and processes, from the host's to the guest's.

use crate::sys::generated;

/// Of one user namespace.
#[derive(Debug, Default)]
pub(super) struct Ids {
    users: Vec<[u32; 3]>,
    groups: Vec<[u32; 3]>,
}

/// Who has no number inside (overflowuid in proc_sys_kernel(5)).
const NOBODY: u32 = 65534;

impl Ids {
    /// No number has one inside.
    pub(super) const NONE: Ids = Ids { users: Vec::new(), groups: Vec::new() };

    /// Those of a process, by the host's number.
    pub(super) fn of(pid: i32) -> Ids {
        Ids { users: map(pid, "uid_map"), groups: map(pid, "gid_map") }
    }

    /// A user.
    pub(super) fn user(&self, outside: u32) -> u32 {
        inside(&self.users, outside)
    }

    /// A group.
    pub(super) fn group(&self, outside: u32) -> u32 {
        inside(&self.groups, outside)
    }

    /// A process; 0: it has no number inside, or is gone.
    pub(super) fn process(pid: i32) -> i32 {
        let status = generated::text(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let last = line.and_then(|line| line.split_whitespace().last());
        last.and_then(|pid| pid.parse().ok()).unwrap_or(0)
    }
}

/// user_namespaces(7): inside, outside, how many. As the reader's own namespace numbers "outside".
fn map(pid: i32, file: &str) -> Vec<[u32; 3]> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|it| it.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    };
    text.lines().filter_map(line).collect()
}

fn inside(map: &[[u32; 3]], outside: u32) -> u32 {
    let range = map.iter().find(|[_, first, count]| {
        outside.checked_sub(*first).is_some_and(|distance| distance < *count)
    });
    range.map_or(NOBODY, |[inside, first, _]| inside + (outside - first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_translated_by_the_range_that_it_is_in() {
        let map = [[0, 1000, 1], [1, 100_000, 65536]];
        assert_eq!(inside(&map, 1000), 0);
        assert_eq!(inside(&map, 100_009), 10);
        assert_eq!(inside(&map, 999), NOBODY);
    }
}
