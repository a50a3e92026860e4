//! Programs that were started later than the run's own, by their keepers: what a save has to know of them.
//!
//! What a keeper is to a census is in [`super::census`]; who follows it tells here what it keeps.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::kernel::Kernel;
use crate::sys::fdinfo::FdInfo;
use crate::sys::files;

/// A later program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaterProgram {
    /// Its keeper, as the host numbers it.
    pub keeper: i32,
    /// Itself, likewise; `None`: it does not run yet, or has ended.
    pub program: Option<i32>,
    /// What was executed, as it was asked for.
    pub path: String,
    /// Its container.
    pub container: String,
    /// Which ends with it.
    pub opens_container: bool,
    /// What whoever asked for it gave as its standard streams.
    pub streams: [Option<GivenStream>; 3],
}

/// What a standard stream is open on. No copy of it is kept: the other end of a pipe must hear when it is
/// closed inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenStream {
    /// Device and inode.
    pub inode: (u64, u64),
    /// Through which mount it was opened (mnt_id in proc_pid_fdinfo(5)), which is none of the guest's own; those
    /// of pipes and sockets are the kernel's.
    pub mount: u64,
}

impl LaterProgram {
    /// Its streams, by number.
    pub fn given(&self) -> impl Iterator<Item = (u32, GivenStream)> {
        (0..).zip(self.streams).filter_map(|(number, stream)| Some((number, stream?)))
    }
}

impl GivenStream {
    /// What a descriptor is open on; `None`: that cannot be told.
    pub fn of(fd: &OwnedFd) -> Option<GivenStream> {
        let inode = files::identity(fd.as_fd()).ok()?;
        let mount = FdInfo::of("self", fd.as_raw_fd())?.mount()?;
        Some(GivenStream { inode, mount })
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct LaterPrograms {
    /// By keeper. A leaf of the lock order.
    all: Mutex<BTreeMap<i32, LaterProgram>>,
}

impl LaterPrograms {
    pub(super) fn forget(&self, keeper: i32) {
        self.lock().remove(&keeper);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, LaterProgram>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel {
    /// A keeper that has been added keeps this from now on, until it is removed.
    pub fn keeps(&self, program: LaterProgram) {
        self.later.lock().insert(program.keeper, program);
    }

    /// Those whose keepers are there.
    pub fn later_programs(&self) -> Vec<LaterProgram> {
        let mut all: Vec<LaterProgram> = self.later.lock().values().cloned().collect();
        all.retain(|it| self.is_keeper(it.keeper));
        all
    }
}
