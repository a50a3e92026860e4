//! The CPU time that guests have brought along from an image.
//!
//! The kernel counts a restored process from zero, and there is no call that sets its clocks. So the sentry
//! remembers what each had used when it was saved, and adds it where a guest asks (`syscalls::usage`). Owns
//! that memory, and when a parent inherits from a child: once it has waited for it (getrusage(2)), which is
//! when /proc does not list it any more.

use std::collections::HashMap;
use std::ops::AddAssign;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stat::Stat;

/// CPU time, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// In the program.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

impl Used {
    /// Both together.
    pub fn total(self) -> Duration {
        Duration::from_micros(self.user.saturating_add(self.system))
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, other: Used) {
        self.user = self.user.saturating_add(other.user);
        self.system = self.system.saturating_add(other.system);
    }
}

/// What a process brings along. All numbers are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brought {
    /// The process.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// It used this itself, in all its threads.
    pub own: Used,
    /// The children that it has waited for did.
    pub children: Used,
    /// Its threads, and what each used.
    pub threads: Vec<(i32, Used)>,
}

/// What all have brought along.
#[derive(Debug, Default)]
pub struct Carried {
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
}

/// Protected by `Carried::inner`. Processes and threads are known by their number and their start.
#[derive(Debug, Default)]
struct Inner {
    processes: HashMap<i32, (u64, Brought)>,
    threads: HashMap<i32, (u64, Used)>,
}

impl Carried {
    /// Remembers what processes bring, which are there and do not run yet.
    pub fn bring(&self, all: Vec<Brought>) {
        let mut inner = self.lock();
        for mut process in all {
            let pid = process.pid;
            for (tid, used) in std::mem::take(&mut process.threads) {
                if used != Used::default() {
                    let stat = Stat::of_thread(pid, tid);
                    inner.threads.extend(stat.map(|stat| (tid, (stat.start, used))));
                }
            }
            // (That of its first thread.)
            let stat = Stat::of_thread(pid, pid);
            inner.processes.extend(stat.map(|stat| (pid, (stat.start, process))));
        }
    }

    /// What a process has brought itself.
    pub fn own(&self, pid: i32) -> Used {
        self.lock().process(pid).map(|process| process.own).unwrap_or_default()
    }

    /// What a thread has.
    pub fn thread(&self, tid: i32) -> Used {
        match self.lock().threads.get(&tid) {
            Some((start, used)) if is_there(tid, *start) => *used,
            _ => Used::default(),
        }
    }

    /// What the children have that the process has waited for, before the save or since.
    pub fn children(&self, pid: i32) -> Used {
        let mut inner = self.lock();
        inner.inherit(pid);
        inner.process(pid).map(|process| process.children).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn process(&self, pid: i32) -> Option<&Brought> {
        self.processes.get(&pid).filter(|(start, _)| is_there(pid, *start)).map(|(_, it)| it)
    }

    /// Adds to a process what those of its children brought that are gone, and forgets them. What they
    /// had waited for themselves comes to it with them. (A child that nobody waits for, because its parent
    /// ignores SIGCHLD, is counted by this and not by the kernel. Nothing tells the two apart.)
    fn inherit(&mut self, parent: i32) {
        let of_parent = self.processes.values().filter(|(_, it)| it.parent == parent);
        let gone: Vec<i32> = of_parent
            .filter(|(start, it)| it.pid != parent && !is_there(it.pid, *start))
            .map(|(_, it)| it.pid)
            .collect();
        for pid in gone {
            self.inherit(pid);
            let Some((_, child)) = self.processes.remove(&pid) else { continue };
            if let Some((_, process)) = self.processes.get_mut(&parent) {
                process.children += child.own;
                process.children += child.children;
            }
        }
    }
}

/// Whether the process or thread is listed, and the same one. A zombie is.
fn is_there(id: i32, start: u64) -> bool {
    Stat::read(id).is_some_and(|stat| stat.start == start)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn used(user: u64, system: u64) -> Used {
        Used { user, system }
    }

    /// A process that waits for its input to end.
    fn waiting() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_parent_inherits_when_it_has_waited() {
        let own = std::process::id() as i32;
        let mut child = waiting();
        let pid = child.id() as i32;
        let carried = Carried::default();
        carried.bring(vec![
            Brought {
                pid: own,
                own: used(1, 2),
                children: used(3, 4),
                threads: vec![(own, used(5, 6))],
                ..Brought::default()
            },
            Brought {
                pid,
                parent: own,
                own: used(10, 20),
                children: used(30, 40),
                ..Brought::default()
            },
        ]);
        assert_eq!((carried.own(own), carried.thread(own)), (used(1, 2), used(5, 6)));
        assert_eq!((carried.children(own), carried.own(pid)), (used(3, 4), used(10, 20)));
        drop(child.stdin.take());
        // It has ended, and nobody has waited for it: (`Child` does that in the next line.)
        let is_zombie = || Stat::read(pid).is_some_and(|stat| stat.has_ended());
        while !is_zombie() {
            std::thread::yield_now();
        }
        assert_eq!(carried.children(own), used(3, 4));
        child.wait().unwrap();
        assert_eq!(carried.children(own), used(43, 64));
        assert_eq!(carried.children(own), used(43, 64));
        assert_eq!(carried.own(pid), Used::default());
    }

    #[test]
    fn who_brought_nothing_has_nothing() {
        let carried = Carried::default();
        let own = std::process::id() as i32;
        assert_eq!((carried.own(own), carried.children(own)), (Used::default(), Used::default()));
        assert_eq!(carried.thread(own), Used::default());
    }
}
