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

use nix::time::ClockId;

use super::stat::{self, Stat};

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

/// Protected by `Carried::inner`. Processes and threads are known by their number, and by having started no later than
/// they were brought: all are there then, so that who has such a number later has started later.
#[derive(Debug, Default)]
struct Inner {
    /// Ticks since boot, as in [`Stat::start`].
    brought: u64,
    processes: HashMap<i32, Brought>,
    threads: HashMap<i32, Used>,
}

impl Carried {
    /// Remembers what processes bring, which are there and do not run yet.
    pub fn bring(&self, all: Vec<Brought>) {
        let mut inner = self.lock();
        inner.brought = ticks_since_boot();
        for mut process in all {
            let threads = std::mem::take(&mut process.threads).into_iter();
            inner.threads.extend(threads.filter(|(_, used)| *used != Used::default()));
            inner.processes.insert(process.pid, process);
        }
    }

    /// What a process has brought itself.
    pub fn own(&self, pid: i32) -> Used {
        self.lock().process(pid).map(|process| process.own).unwrap_or_default()
    }

    /// What a thread has.
    pub fn thread(&self, tid: i32) -> Used {
        let inner = self.lock();
        let used = inner.threads.get(&tid).filter(|_| inner.is_there(tid));
        used.copied().unwrap_or_default()
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
        self.processes.get(&pid).filter(|_| self.is_there(pid))
    }

    /// Whether the process or thread is listed, and the same one. A zombie is.
    fn is_there(&self, id: i32) -> bool {
        Stat::read(id).is_some_and(|stat| stat.start <= self.brought)
    }

    /// Adds to a process what those of its children brought that are gone, and forgets them. What they
    /// had waited for themselves comes to it with them. (A child that nobody waits for, because its parent
    /// ignores SIGCHLD, is counted by this and not by the kernel. Nothing tells the two apart.)
    fn inherit(&mut self, parent: i32) {
        let of_parent = self.processes.values().filter(|it| it.parent == parent);
        let gone: Vec<i32> = of_parent
            .filter(|it| it.pid != parent && !self.is_there(it.pid))
            .map(|it| it.pid)
            .collect();
        for pid in gone {
            self.inherit(pid);
            let Some(child) = self.processes.remove(&pid) else { continue };
            if let Some(process) = self.processes.get_mut(&parent) {
                process.children += child.own;
                process.children += child.children;
            }
        }
    }
}

fn ticks_since_boot() -> u64 {
    let now = ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default();
    stat::in_ticks(now)
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
    fn who_has_the_number_of_one_that_has_ended_has_brought_nothing() {
        let mut child = waiting();
        let (pid, own) = (child.id() as i32, used(1, 2));
        let carried = Carried::default();
        let threads = vec![(pid, used(3, 4))];
        carried.bring(vec![Brought { pid, own, threads, ..Brought::default() }]);
        assert_eq!((carried.own(pid), carried.thread(pid)), (own, used(3, 4)));
        let started = Stat::read(pid).unwrap().start;
        assert!(started <= carried.lock().brought);
        carried.lock().brought = started - 1;
        assert_eq!((carried.own(pid), carried.thread(pid)), (Used::default(), Used::default()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn who_brought_nothing_has_nothing() {
        let carried = Carried::default();
        let own = std::process::id() as i32;
        assert_eq!((carried.own(own), carried.children(own)), (Used::default(), Used::default()));
        assert_eq!(carried.thread(own), Used::default());
    }
}
