//! Who the guests of a run with `--root` believe to be.
//!
//! Inside, the kernel knows one id: root's, which is the caller. So the sentry keeps what a guest has made of
//! its ids (`rules`), and answers calls about them. Nothing of the host depends on it: a guest that deceives
//! itself about its ids gains no right over anything.
//!
//! What is inherited must be found without seeing forks, which are never trapped. Each set of credentials
//! that a process takes gets a number, and the kernel carries that number: RLIMIT_LOCKS, a limit that it
//! has not looked at since Linux 2.4.25 (getrlimit(2)), is inherited by fork(2) and kept by execve(2). The soft
//! limit is the hard one less the number; a process that never changed has number 0. Only threads of one
//! process that differ from each other are remembered by their own numbers.

mod capabilities;
mod rules;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

pub use capabilities::{ALL, Capability, CapabilitySets};
pub use rules::{Change, Credentials, GROUPS_MAX, Ids};
pub use saved::{SavedBeliefs, SavedCredentials};

use super::census::numbers;
use super::stat::{self, Stat};
use super::task::Status;
use crate::sys::process;

/// Different credentials at most, and supplementary groups in all of them together: a guest that makes up
/// more is told that there is no memory.
const MOST: usize = 1 << 14;
const MOST_GROUPS: usize = 1 << 20;

/// Of threads that differ from their processes so many at least are remembered before those that are gone are
/// forgotten.
const MANY_THREADS: usize = 256;

/// What all guests believe.
#[derive(Debug)]
pub struct Beliefs {
    /// Some guest has been another than root. Never reset.
    changed: AtomicBool,
    /// What every guest begins with.
    root: Arc<Credentials>,
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
}

/// Protected by `Beliefs::inner`.
#[derive(Debug, Default)]
struct Inner {
    /// By number, from 1 on. None: it is free.
    known: Vec<Option<Believed>>,
    free: Vec<u64>,
    numbers: HashMap<Believed, u64>,
    groups: usize,
    threads: HashMap<i32, Thread>,
    /// So many are there when those that are gone are forgotten.
    many: usize,
}

/// Credentials, and the image that they were taken in, where an exec would change them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Believed {
    credentials: Arc<Credentials>,
    image: Option<Image>,
}

/// A thread that differs from its process, known by its number and its start.
#[derive(Debug)]
struct Thread {
    start: u64,
    believed: Believed,
}

/// What tells one program's image from the next: where things lie (proc_pid_stat(5): startcode, startstack,
/// start_brk, arg_start, env_end). A fork keeps all of it.
type Image = [u64; 5];

impl Default for Beliefs {
    fn default() -> Self {
        Beliefs {
            changed: AtomicBool::new(false),
            root: Arc::new(Credentials::root()),
            inner: Mutex::default(),
        }
    }
}

impl Beliefs {
    /// Whether any guest has ever been another than root.
    pub fn changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Who a thread is, which is in a call or stopped.
    pub fn of(&self, tid: i32) -> Arc<Credentials> {
        if !self.changed() {
            return Arc::clone(&self.root);
        }
        self.lock().of(tid, &self.root).credentials
    }

    /// Changes who the calling thread is: `change` is made of a copy, which counts if it succeeds.
    ///
    /// # Errors
    /// What `change` says; ENOMEM where too much was made up; ESRCH where the thread is gone. Blocks: it reads
    /// /proc.
    pub fn change<R>(
        &self,
        tid: i32,
        change: impl FnOnce(&mut Credentials) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        // (Calls of two threads of one process take turns.)
        let mut inner = self.lock();
        let old = inner.of(tid, &self.root);
        let mut new = Credentials::clone(&old.credentials);
        let value = change(&mut new)?;
        if new == *old.credentials {
            return Ok(value);
        }
        let believed = Believed::new(new, tid);
        let number = inner.number(&believed)?;
        inner.take(tid, believed, number, &self.root)?;
        self.changed.store(true, Ordering::Release);
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Believed {
    fn new(credentials: Credentials, tid: i32) -> Believed {
        let lasts = credentials.executed() == credentials;
        let image = if lasts { None } else { image(tid) };
        Believed { credentials: Arc::new(credentials), image }
    }

    /// The same now: an exec may have come between.
    fn now(&self, tid: i32) -> Believed {
        match self.image {
            Some(then) if image(tid).is_some_and(|now| now != then) => {
                Believed { credentials: Arc::new(self.credentials.executed()), image: None }
            }
            _ => self.clone(),
        }
    }
}

impl Inner {
    fn of(&self, tid: i32, root: &Arc<Credentials>) -> Believed {
        let believed = match self.remembered(tid) {
            Some(thread) => &thread.believed,
            None => match number_of(tid).and_then(|number| self.known.get(number)) {
                Some(Some(believed)) => believed,
                _ => return Believed { credentials: Arc::clone(root), image: None },
            },
        };
        believed.now(tid)
    }

    /// What is remembered of a thread that is still there.
    fn remembered(&self, tid: i32) -> Option<&Thread> {
        self.threads.get(&tid).filter(|thread| is_there(tid, thread.start))
    }

    /// The number of these, a new one if need be. Number 0 is root's.
    fn number(&mut self, believed: &Believed) -> Result<u64, Errno> {
        if *believed.credentials == Credentials::root() {
            return Ok(0);
        }
        if let Some(number) = self.numbers.get(believed) {
            return Ok(*number);
        }
        let count = believed.credentials.groups.len();
        if !self.has_room(count) {
            self.free_unused();
            if !self.has_room(count) {
                return Err(Errno::ENOMEM);
            }
        }
        self.groups += count;
        let number = self.free.pop().unwrap_or_else(|| {
            self.known.push(None);
            self.known.len() as u64
        });
        self.known[number as usize - 1] = Some(believed.clone());
        self.numbers.insert(believed.clone(), number);
        Ok(number)
    }

    fn has_room(&self, groups: usize) -> bool {
        (self.known.len() < MOST || !self.free.is_empty()) && self.groups + groups <= MOST_GROUPS
    }

    /// Frees the numbers that no process carries any more.
    fn free_unused(&mut self) {
        let Ok(processes) = numbers("/proc") else { return };
        let used: HashSet<usize> = processes.filter_map(number_of).collect();
        for (at, known) in self.known.iter_mut().enumerate().filter(|(at, _)| !used.contains(at)) {
            if let Some(gone) = known.take() {
                self.groups -= gone.credentials.groups.len();
                self.numbers.remove(&gone);
                self.free.push(at as u64 + 1);
            }
        }
    }

    /// Thread `tid` is this from now on.
    fn take(
        &mut self,
        tid: i32,
        believed: Believed,
        number: u64,
        root: &Arc<Credentials>,
    ) -> Result<(), Errno> {
        self.forget_gone();
        let threads = threads_of(tid);
        if threads.len() <= 1 {
            // What it makes and executes is the same, by its number.
            if set_number(tid, number).is_ok() {
                self.threads.remove(&tid);
                return Ok(());
            }
            return self.remember(tid, believed);
        }
        self.remember(tid, believed.clone())?;
        let same = |inner: &Inner, other: i32| {
            let thread = inner.remembered(other);
            thread.is_some_and(|thread| thread.believed.credentials == believed.credentials)
        };
        if threads.iter().all(|other| same(self, *other)) {
            // The C library has had all threads follow (nptl(7)).
            if set_number(tid, number).is_ok() {
                threads.iter().for_each(|other| drop(self.threads.remove(other)));
            }
            return Ok(());
        }
        if Status::read(tid).is_ok_and(|status| status.tgid == tid) {
            // New threads and processes are most likely made by this one; the others stay what they are.
            for other in threads.iter().filter(|other| **other != tid) {
                if self.remembered(*other).is_none() {
                    let now = self.of(*other, root);
                    self.remember(*other, now)?;
                }
            }
            let _ = set_number(tid, number);
        }
        Ok(())
    }

    fn remember(&mut self, tid: i32, believed: Believed) -> Result<(), Errno> {
        let start = Stat::read(tid).ok_or(Errno::ESRCH)?.start;
        self.threads.insert(tid, Thread { start, believed });
        Ok(())
    }

    fn forget_gone(&mut self) {
        if self.threads.len() >= self.many.max(MANY_THREADS) {
            self.threads.retain(|tid, thread| is_there(*tid, thread.start));
            self.many = 2 * self.threads.len();
        }
    }
}

/// The place in the list of what a process is, by its number; none for that of root.
fn number_of(tid: i32) -> Option<usize> {
    let (soft, hard) = process::limit(tid, CARRIER).ok()?;
    usize::try_from(hard.checked_sub(soft)?.checked_sub(1)?).ok()
}

fn set_number(tid: i32, number: u64) -> Result<(), Errno> {
    let (_, hard) = process::limit(tid, CARRIER)?;
    let soft = hard.checked_sub(number).ok_or(Errno::ERANGE)?;
    process::set_limit(tid, CARRIER, (soft, hard))
}

/// The limit that carries the number.
const CARRIER: u32 = libc::RLIMIT_LOCKS;

/// The threads of the process of a thread.
fn threads_of(tid: i32) -> Vec<i32> {
    numbers(&format!("/proc/{tid}/task")).into_iter().flatten().collect()
}

fn is_there(tid: i32, start: u64) -> bool {
    Stat::read(tid).is_some_and(|stat| stat.start == start)
}

/// `None`: it is gone.
fn image(tid: i32) -> Option<Image> {
    stat::fields(tid, [26, 28, 47, 48, 51])
}
