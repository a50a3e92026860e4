//! Telling guests from other processes, one by one, while they come and go.
//!
//! What is a guest is said in [`super::census`], which reads all of /proc first and thinks then. Here
//! a process is judged at once, by as few looks as it takes, since it may be gone in some
//! microseconds.
//!
//! What was found out of a number holds as long as no number is given a second time: the kernel gives
//! them in ascending order, and begins anew after the largest (alloc_pid in kernel/pid.c). A
//! [`Family`] watches for that.

use std::collections::{BTreeMap, HashMap, HashSet};

use nix::errno::Errno;

use super::census::{Kept, last_number, numbers};
use super::stat::Stat;

/// What a number in /proc stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kin {
    /// A guest process.
    Guest(Birth),
    /// What is left of a guest process: none of its threads is alive.
    Ended(Birth),
    /// No guest.
    Other,
    /// Nothing any more. It may have been a guest.
    Gone,
}

/// Where a process comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Birth {
    /// When it was made (starttime in proc_pid_stat(5)).
    pub(super) start: u64,
    /// Its parent of now.
    pub(super) parent: i32,
}

/// Tells them apart.
#[derive(Debug)]
pub(super) struct Family {
    init: i32,
    keepers: BTreeMap<i32, Kept>,
    /// Whether a process descends from init.
    known: HashMap<i32, bool>,
    /// Those that are no guests, or have ended: there is nothing more to learn of them.
    settled: HashSet<i32>,
    /// The last number that was given, when it was looked at last.
    last: Option<i32>,
}

/// A chain of parents is no longer than there are numbers (PID_MAX_LIMIT in
/// include/linux/threads.h): what was read at different times may be a circle.
const MOST_PARENTS: usize = 1 << 22;

impl Family {
    pub(super) fn new(init: i32, keepers: BTreeMap<i32, Kept>) -> Family {
        let last = last_number();
        Family { init, keepers, known: HashMap::new(), settled: HashSet::new(), last }
    }

    /// Judges all that are there. What was found out need not be found out again while guests stand still,
    /// however many other processes the host has.
    pub(super) fn look_around(&mut self) -> Result<(), Errno> {
        numbers("/proc")?.for_each(|pid| {
            self.judge(pid);
        });
        Ok(())
    }

    /// Those that descend from init, as far as is known, ended ones and keepers among them, and init.
    pub(super) fn members(&self) -> Vec<i32> {
        let descend = self.known.iter().filter(|(_, descends)| **descends).map(|(pid, _)| *pid);
        descend.chain([self.init]).collect()
    }

    /// Whether numbers have ascended since the last time this was asked. If they have not, or the
    /// kernel does not tell, all is forgotten that was found out.
    pub(super) fn in_order(&mut self) -> bool {
        let before = std::mem::replace(&mut self.last, last_number());
        let in_order = matches!((before, self.last), (Some(before), Some(last)) if last >= before);
        if !in_order {
            self.known.clear();
            self.settled.clear();
        }
        in_order
    }

    /// The last number that was given, if the kernel tells.
    pub(super) fn last(&self) -> Option<i32> {
        self.last
    }

    /// Whether `pid` was judged before to be no guest, or to have ended.
    pub(super) fn is_settled(&self, pid: i32) -> bool {
        self.settled.contains(&pid)
    }

    pub(super) fn judge(&mut self, pid: i32) -> Kin {
        let kin = self.look_at(pid);
        if matches!(kin, Kin::Other | Kin::Ended(_)) {
            self.settled.insert(pid);
        }
        kin
    }

    fn look_at(&mut self, pid: i32) -> Kin {
        let Some(stat) = Stat::read(pid).filter(Stat::is_there) else { return Kin::Gone };
        if pid == self.init || self.keepers.get(&pid).is_some_and(|kept| kept.is(stat.start)) {
            return Kin::Other;
        }
        let birth = Birth { start: stat.start, parent: stat.parent };
        match self.descends(pid, stat.parent) {
            None => Kin::Gone,
            Some(false) => Kin::Other,
            Some(true) if stat.has_ended() && stat.threads <= 1 => Kin::Ended(birth),
            Some(true) => Kin::Guest(birth),
        }
    }

    /// Whether `pid`, whose parent was `parent` just now, descends from init; `None`: it is gone.
    fn descends(&mut self, pid: i32, mut parent: i32) -> Option<bool> {
        let mut path = vec![pid];
        let found = loop {
            if parent == self.init {
                break true;
            }
            if parent == 0 || path.len() > MOST_PARENTS {
                break false;
            }
            if let Some(known) = self.known.get(&parent) {
                break *known;
            }
            match Stat::read(parent).filter(Stat::is_there) {
                Some(stat) => {
                    path.push(parent);
                    parent = stat.parent;
                }
                // It has ended meanwhile, and its children have another parent.
                None => {
                    path.truncate(1);
                    parent = Stat::read(pid).filter(Stat::is_there)?.parent;
                }
            }
        };
        self.known.extend(path.into_iter().map(|pid| (pid, found)));
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn descendants_are_kin_until_they_are_gone() {
        let own = std::process::id() as i32;
        let family = || Family::new(own, BTreeMap::new());
        let mut cat = Command::new("cat");
        let mut child = cat.stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let birth = Birth { start: Stat::read(pid).unwrap().start, parent: own };
        let mut one = family();
        assert_eq!((one.judge(pid), one.is_settled(pid)), (Kin::Guest(birth), false));
        assert_eq!((one.judge(1), one.is_settled(1)), (Kin::Other, true));
        one.last = Some(i32::MAX);
        assert_eq!((one.in_order(), one.is_settled(1)), (false, false));
        assert_eq!(family().judge(own), Kin::Other);
        // Seen from another process it is none.
        assert_eq!(Family::new(pid, BTreeMap::new()).judge(own), Kin::Other);
        one.look_around().unwrap();
        let mut members = one.members();
        members.retain(|it| [own, pid, 1].contains(it));
        members.sort_unstable();
        let mut expected = [own, pid];
        expected.sort_unstable();
        assert_eq!(members, expected);
        drop(child.stdin.take());
        while family().judge(pid) == Kin::Guest(birth) {
            std::thread::yield_now();
        }
        assert_eq!(family().judge(pid), Kin::Ended(birth));
        child.wait().unwrap();
        assert_eq!(family().judge(pid), Kin::Gone);
    }
}
