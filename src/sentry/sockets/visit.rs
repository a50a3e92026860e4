//! A socket in another network namespace, for one question.
//!
//! A thread cannot enter the guests' user namespace while its process has others (userns_install in
//! kernel/user_namespace.c), so a process does that has nothing but this to do. It shares the caller's descriptors, and
//! leaves the socket under a number that the caller has set aside.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::census::ProcessInfo;
use super::diag;
use super::holders::is_still;
use crate::sys::{errno_of, files, spawn};

struct Errand {
    user: File,
    network: File,
    into: RawFd,
}

/// A socket that asks about the network of a guest: whoever made the sandbox may enter its user namespace. ESRCH: it has
/// ended.
pub(super) fn open(guest: &ProcessInfo) -> Result<OwnedFd, Errno> {
    let namespace = |name| {
        File::open(format!("/proc/{}/ns/{name}", guest.pid)).map_err(|error| errno_of(&error))
    };
    let (user, network) = (namespace("user")?, namespace("net")?);
    if !is_still(guest) {
        return Err(Errno::ESRCH);
    }
    // What this is does not matter: it keeps the number.
    let place = diag::open()?;
    let errand = Errand { user, network, into: place.as_raw_fd() };
    let (child, _) = spawn::spawn(libc::CLONE_FILES, &errand, run)?;
    match waitpid(Pid::from_raw(child), None)? {
        WaitStatus::Exited(_, 0) => Ok(place),
        WaitStatus::Exited(_, status) => Err(Errno::from_raw(status)),
        _ => Err(Errno::ECHILD),
    }
}

/// Child side. Its descriptors are the caller's: it closes none but its own.
fn run(errand: &Errand) -> ! {
    let done = setns(errand.user.as_fd(), CloneFlags::CLONE_NEWUSER)
        // (Whoever has rights in that user namespace; to enter it has made it what the host says: commit_creds.)
        .and_then(|()| spawn::forbid_tracing())
        .and_then(|()| setns(errand.network.as_fd(), CloneFlags::CLONE_NEWNET))
        .and_then(|()| diag::open())
        .and_then(|made| {
            let placed = files::place_closed(made.as_raw_fd(), errand.into);
            drop(made);
            placed
        });
    spawn::exit_now(done.map_or_else(|errno| errno as i32, |()| 0))
}
