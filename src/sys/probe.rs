//! Finding out what the host's kernel grants, by trying it.
//!
//! Owns the throw-away child in which a facility is tried and the tries themselves. A try takes
//! milliseconds, needs no privilege and leaves nothing behind: what it creates (namespaces,
//! mounts, filters) dies with the child. What an answer means, and what to do about it, is decided
//! in `launch::host`.
//!
//! A child is forked without the C library's knowledge, perhaps from a process with many threads,
//! and so makes raw system calls only: it allocates nothing, takes no lock and never returns.
#![allow(unsafe_code)]

mod calls;
mod notify;
mod overlays;
mod walls;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

pub use calls::{
    FilterFlag, NotifySizes, chrooted, clone3_known, close_range_known, filter_flag, landlock_abi,
    mount_setattr_known, namespaces, notify_sizes, open_tree_known, pidfd_open, pidfd_thread,
    user_notify_known,
};
pub use notify::{Notify, rehearse_notify};
pub use overlays::{OverlayPlaces, rehearse_overlays};
pub use walls::{EVERY_KIND, Kind, Walls, rehearse_walls};

/// What came of trying one facility.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It did what its manual page says.
    Works,
    /// The kernel refused it.
    Refused(Errno),
    /// The child ended before it came to this: something it rests on was refused first.
    NotReached,
}

impl Tried {
    /// Whether it can be used.
    #[must_use]
    pub fn works(self) -> bool {
        self == Tried::Works
    }

    /// The kernel's error, where it gave one.
    #[must_use]
    pub fn errno(self) -> Option<Errno> {
        match self {
            Tried::Refused(errno) => Some(errno),
            Tried::Works | Tried::NotReached => None,
        }
    }
}

impl From<Result<(), Errno>> for Tried {
    fn from(outcome: Result<(), Errno>) -> Self {
        match outcome {
            Ok(()) => Tried::Works,
            Err(errno) => Tried::Refused(errno),
        }
    }
}

/// How many outcomes one child can leave.
const SLOTS: usize = 24;
/// A slot that nobody has written: no errno is negative.
const BLANK: i32 = -1;

/// The page on which a child leaves its outcomes, shared with the process that started it.
struct Board([AtomicI32; SLOTS]);

impl Board {
    /// Leaves one outcome; called in the child.
    fn put(&self, slot: usize, outcome: Result<(), Errno>) -> bool {
        let code = outcome.err().map_or(0, |errno| errno as i32);
        if let Some(cell) = self.0.get(slot) {
            cell.store(code, Ordering::Release);
        }
        code == 0
    }
}

/// The outcomes of a child that has ended.
struct Outcomes([i32; SLOTS]);

impl Outcomes {
    /// Those of a child that was refused one thing and reached nothing else.
    fn refused_at(slot: usize, errno: Errno) -> Self {
        let mut codes = [BLANK; SLOTS];
        if let Some(code) = codes.get_mut(slot) {
            *code = errno as i32;
        }
        Outcomes(codes)
    }

    fn at(&self, slot: usize) -> Tried {
        match self.0.get(slot) {
            Some(0) => Tried::Works,
            Some(&code) if code != BLANK => Tried::Refused(Errno::from_raw(code)),
            _ => Tried::NotReached,
        }
    }
}

/// Runs `job` in a child of its own and waits for the end of it. Where not even a child can be
/// had, every outcome is the error that prevented it.
///
/// `job` must make raw system calls only (see the module's description).
fn in_child(job: impl FnOnce(&Board)) -> Outcomes {
    try_in_child(job).unwrap_or_else(|errno| Outcomes([errno as i32; SLOTS]))
}

fn try_in_child(job: impl FnOnce(&Board)) -> Result<Outcomes, Errno> {
    let page = SharedPage::new()?;
    let board = page.board();
    // SAFETY: the child branch runs `job`, which by contract makes raw system calls only, and then
    // exits, so no lock or buffer that another thread held at the fork is ever touched in it.
    match unsafe { fork_raw() }? {
        None => {
            let _never_return = ExitOnDrop;
            settle();
            job(board);
            exit(0);
        }
        Some(child) => {
            reap(child);
        }
    }
    let mut outcomes = [BLANK; SLOTS];
    for (outcome, cell) in outcomes.iter_mut().zip(&board.0) {
        *outcome = cell.load(Ordering::Acquire);
    }
    Ok(Outcomes(outcomes))
}

/// Makes the child harmless: it ends with its parent and never leaves a core file, also where a
/// filter of the host kills it for a call.
fn settle() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take plain numbers or a pointer to a live structure.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
    }
}

/// Forks without the C library's fork handlers: `None` in the child.
///
/// The child has no exit signal, so neither a SIGCHLD handler of the caller nor an ignored SIGCHLD
/// (which would reap it early; wait(2), NOTES) ever hears of it.
///
/// # Safety
/// The child may make raw system calls only and must not return from the function that called
/// this.
unsafe fn fork_raw() -> Result<Option<libc::pid_t>, Errno> {
    // SAFETY: without CLONE_VM this is fork(2); all arguments are zero, so their order, which
    // differs between architectures (clone(2)), does not matter.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    match checked(pid)? {
        0 => Ok(None),
        // A pid fits: the kernel's are positive ints.
        pid => Ok(Some(pid as libc::pid_t)),
    }
}

/// Waits for the end of a child made by [`fork_raw`] and gives its exit status, -1 if a signal
/// ended it.
fn reap(child: libc::pid_t) -> i32 {
    let mut status = 0;
    loop {
        // __WALL, because a child without an exit signal is no ordinary one (wait(2)).
        // SAFETY: `status` is a live int.
        let waited = unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) };
        if waited != -1 || Errno::last() != Errno::EINTR {
            break;
        }
    }
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

/// Ends the child at once: no destructor, no buffer, no exit handler.
fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

/// Ends the child should its job unwind: the parent's code must never run twice.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit(101);
    }
}

/// The result of a raw call, or what `errno` says of it.
fn checked(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 { Err(Errno::last()) } else { Ok(result) }
}

/// [`checked`] for calls that give nothing but their success.
fn done(result: libc::c_int) -> Result<(), Errno> {
    if result == -1 { Err(Errno::last()) } else { Ok(()) }
}

/// An anonymous page that stays common to parent and child over a fork.
struct SharedPage(NonNull<Board>);

impl SharedPage {
    fn new() -> Result<Self, Errno> {
        // SAFETY: a fresh anonymous mapping touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Board>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let page = SharedPage(NonNull::new(address.cast()).ok_or(Errno::ENOMEM)?);
        for cell in &page.board().0 {
            cell.store(BLANK, Ordering::Release);
        }
        Ok(page)
    }

    fn board(&self) -> &Board {
        // SAFETY: the mapping is page-aligned, large enough, zero-filled by the kernel (a valid
        // value of atomics) and lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Board>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_leaves_outcomes_and_is_gone() {
        let mut child = 0;
        let seen = &raw mut child;
        let outcomes = in_child(|board| {
            board.put(0, Ok(()));
            board.put(1, Err(Errno::EXDEV));
            // Written in the child's own copy of memory.
            // SAFETY: `child` outlives the closure.
            unsafe { *seen = 7 };
        });
        assert_eq!(child, 0, "the job ran in this process");
        assert_eq!(outcomes.at(0), Tried::Works);
        assert_eq!(outcomes.at(1), Tried::Refused(Errno::EXDEV));
        assert_eq!(outcomes.at(2), Tried::NotReached);
        assert_eq!(outcomes.at(SLOTS), Tried::NotReached);
    }

    #[test]
    fn a_child_that_is_killed_leaves_what_it_had_reached() {
        let outcomes = in_child(|board| {
            board.put(0, Ok(()));
            // SAFETY: a process may kill itself.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            board.put(1, Ok(()));
        });
        assert_eq!(outcomes.at(0), Tried::Works);
        assert_eq!(outcomes.at(1), Tried::NotReached);
    }
}
