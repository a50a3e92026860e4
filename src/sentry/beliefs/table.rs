//! What is believed of files that take no attribute.
//!
//! Files go without telling, so the table would only grow: when it is full, those are looked for that are there still
//! (`gone`), and what is believed of the others is forgotten.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Belief, is_descriptor};
use crate::sys::look;

/// More in the table would cost the sentry too much memory.
pub(super) const MOST: usize = 1 << 18;

/// A file as long as it is there: device, inode, and when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device: u64,
    inode: u64,
    born: (i64, u32),
}

impl Key {
    /// That of the file at `path`: where that is a place in procfs, of what it stands for, else of what has that name
    /// itself.
    pub(super) fn of(path: &CStr) -> Result<Key, Errno> {
        let flags = if is_descriptor(path) { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
        look::statx(path, flags, Key::MASK).map(|found| Key::told_by(&found))
    }

    /// What statx(2) has to be asked for.
    pub(super) const MASK: u32 = libc::STATX_INO | libc::STATX_BTIME;

    /// That of the file that statx(2) has told this of.
    pub(super) fn told_by(found: &libc::statx) -> Key {
        let device = libc::makedev(found.stx_dev_major, found.stx_dev_minor);
        let born = (found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
        Key { device, inode: found.stx_ino, born }
    }

    /// That of the file with these numbers.
    pub(super) fn of_number(device: u64, inode: u64, born: (i64, u32)) -> Key {
        Key { device, inode, born }
    }

    /// Its numbers, where no later file can have the same ones.
    pub(super) fn number(&self) -> Option<(u64, u64, (i64, u32))> {
        (self.born != (0, 0)).then_some((self.device, self.inode, self.born))
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    /// A leaf of the lock order.
    believed: Mutex<HashMap<Key, Belief>>,
    /// There is something in it.
    any: AtomicBool,
    /// So many at most. Immutable.
    most: usize,
    /// Held while files are looked for. Until when that need not be tried again: it found most of them last time.
    rest: Mutex<Option<Instant>>,
}

impl Table {
    pub(super) fn with(most: usize) -> Table {
        Table {
            believed: Mutex::default(),
            any: AtomicBool::new(false),
            most,
            rest: Mutex::new(None),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// All that is in it.
    pub(super) fn all(&self) -> HashMap<Key, Belief> {
        self.lock().clone()
    }

    pub(super) fn get(&self, key: &Key) -> Option<Belief> {
        self.lock().get(key).copied()
    }

    /// ENOSPC: it is full.
    pub(super) fn set(&self, key: Key, belief: Belief) -> Result<(), Errno> {
        let mut table = self.lock();
        match belief.is_nothing() {
            true => drop(table.remove(&key)),
            false if table.len() >= self.most && !table.contains_key(&key) => {
                return Err(Errno::ENOSPC);
            }
            false => drop(table.insert(key, belief)),
        }
        self.any.store(!table.is_empty(), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets those that are gone, by the word of `gone`, where the table is full. ENOSPC: that was done a moment ago and
    /// has not helped. Takes as long as `gone` does.
    pub(super) fn forget(
        &self,
        gone: impl FnOnce(HashSet<Key>) -> Result<HashSet<Key>, Errno>,
    ) -> Result<(), Errno> {
        /// Files are looked for in a part of the time that is no larger than one in so many, where they are there still.
        const SELDOM: u32 = 20;
        const SHORTEST: Duration = Duration::from_millis(10);
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let all: HashSet<Key> = self.lock().keys().copied().collect();
        if all.len() < self.most {
            // Somebody else has just done it.
            return Ok(());
        }
        let begin = Instant::now();
        if rest.is_some_and(|until| begin < until) {
            return Err(Errno::ENOSPC);
        }
        let gone = gone(all);
        let few = gone.as_ref().map_or(0, HashSet::len) < self.most.div_ceil(8);
        *rest = few.then(|| Instant::now() + begin.elapsed().max(SHORTEST) * SELDOM);
        let gone = gone.map_err(|_| Errno::ENOSPC)?;
        let mut table = self.lock();
        table.retain(|key, _| !gone.contains(key));
        self.any.store(!table.is_empty(), Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Belief>> {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
