//! The descendants of one process, found again and again at little cost.
//!
//! A descendant is a process whose chain of parents, as `/proc/PID/stat` shows it to everybody, reaches
//! the root of the family. Processes that are none are remembered, so that only what is new since the
//! last look is read: the entry of a process in /proc has an inode number of its own, and a later
//! process of the same number gets another one (proc_pid_make_inode in fs/proc/base.c).
//!
//! One look is no snapshot; who wants to be sure looks again.

use std::collections::HashMap;
use std::os::unix::fs::DirEntryExt;
use std::time::Duration;
use std::{fs, io};

/// A descendant, as its `stat` described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// Its process number.
    pub pid: i32,
    /// Tells processes apart that had the number one after the other.
    pub inode: u64,
    /// Its parent.
    pub parent: i32,
    /// One letter, as in ps(1).
    pub state: char,
    /// Threads.
    pub threads: u32,
    /// CPU time of the descendants that it has waited for, in whole ticks of the host.
    pub children: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Family {
    root: i32,
    tick: Duration,
    /// Processes that are no descendants: pid and inode.
    strangers: HashMap<i32, u64>,
}

impl Family {
    /// The family of `root`.
    pub fn new(root: i32) -> Family {
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        let per_second = per_second.ok().flatten().unwrap_or(100).max(1) as u32;
        Family { root, tick: Duration::from_secs(1) / per_second, strangers: HashMap::new() }
    }

    /// The root's own line, and all descendants that there are now.
    pub fn look(&mut self) -> io::Result<(Option<Relative>, Vec<Relative>)> {
        let mut seen = HashMap::new();
        let mut listed = HashMap::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let inode = entry.ino();
            listed.insert(pid, inode);
            if self.strangers.get(&pid) != Some(&inode)
                && let Some(relative) = self.read(pid, inode)
            {
                seen.insert(pid, relative);
            }
        }
        let root = seen.get(&self.root).copied();
        let mut found = Vec::new();
        let mut strangers = Vec::new();
        for relative in seen.values() {
            match self.descends(relative, &seen) {
                Some(true) => found.push(*relative),
                Some(false) => strangers.push((relative.pid, relative.inode)),
                // A parent has ended between the two looks: the next one tells.
                None => {}
            }
        }
        self.strangers.retain(|pid, inode| listed.get(pid) == Some(inode));
        self.strangers.extend(strangers);
        Ok((root, found))
    }

    /// `None`: it cannot be told now.
    fn descends(&self, of: &Relative, seen: &HashMap<i32, Relative>) -> Option<bool> {
        if of.pid == self.root {
            return None;
        }
        let mut parent = of.parent;
        // What was read at different times may even be a circle.
        for _ in 0..=seen.len() {
            if parent == self.root {
                return Some(true);
            }
            if parent == 0 || self.strangers.contains_key(&parent) {
                return Some(false);
            }
            parent = seen.get(&parent)?.parent;
        }
        None
    }

    /// What `/proc/PID/stat` says (proc_pid_stat(5)).
    fn read(&self, pid: i32, inode: u64) -> Option<Relative> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        self.parse(pid, inode, &text)
    }

    fn parse(&self, pid: i32, inode: u64, text: &[u8]) -> Option<Relative> {
        // The name is the guest's to choose and may hold anything; nothing behind it does.
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        // The first of these is field 3, the state.
        let fields: Vec<&str> = rest.split_whitespace().take(20).collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u32>().ok();
        Some(Relative {
            pid,
            inode,
            parent: fields.get(1)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            threads: number(20)?,
            children: self.tick * (number(16)?.saturating_add(number(17)?)),
        })
    }
}

impl Relative {
    /// Whether one of its threads runs or could run.
    pub fn is_running(&self) -> bool {
        if self.state == 'R' || self.threads <= 1 {
            return self.state == 'R';
        }
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        threads.flatten().any(|thread| {
            fs::read(thread.path().join("stat")).is_ok_and(|text| {
                let close = text.iter().rposition(|byte| *byte == b')');
                close.is_some_and(|at| text.get(at + 2) == Some(&b'R'))
            })
        })
    }

    /// Whether the number still is this process's.
    pub fn is_still_there(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(format!("/proc/{}", self.pid)).is_ok_and(|now| now.ino() == self.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_line_is_read_whatever_the_name_says() {
        let family = Family { tick: Duration::from_millis(10), ..Family::new(1) };
        let text =
            b"41 (a) b (\nc) R 1) S 40 41 7 0 -1 4194560 1 2 3 4 150 50 9 8 20 0 3 0 12345 8 9";
        let relative = family.parse(41, 7, text).unwrap();
        assert_eq!((relative.parent, relative.state, relative.threads), (40, 'S', 3));
        assert_eq!(relative.children, Duration::from_millis(170));
        assert_eq!(family.parse(41, 7, b"41 (x) S 40"), None);
    }

    #[test]
    fn descendants_are_found_while_they_live_and_strangers_are_not() {
        let own = std::process::id() as i32;
        let mut family = Family::new(own);
        let mut child =
            Command::new("sh").args(["-c", "cat; :"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let find = |family: &mut Family| {
            let (root, found) = family.look().unwrap();
            assert_eq!(root.unwrap().pid, own);
            found.into_iter().find(|relative| relative.pid == pid)
        };
        let relative = find(&mut family).unwrap();
        assert_eq!(relative.parent, own);
        assert!(relative.is_still_there());
        assert!(!family.strangers.is_empty());
        // Again, now that the others are known.
        assert_eq!(find(&mut family).unwrap().inode, relative.inode);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!relative.is_still_there());
        assert_eq!(find(&mut family), None);
    }
}
