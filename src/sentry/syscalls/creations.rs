//! Files that a guest makes while it takes itself for somebody else than root: they are that one's.
//!
//! The sentry makes them in the guest's place, since nobody else could say in the same step whose they are. As long as
//! all guests are root, which they are unless a program drops that, the kernel makes them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{self, Mode as Bits};
use nix::unistd;

use super::args::{DirFd, Mode, Path};
use super::believed::as_guest;
use super::{believed, watch};
use crate::notify::{Answer, Descriptor};
use crate::sentry::beliefs::{FileBeliefs, MODE, Spot, find};
use crate::sentry::call::Call;
use crate::sentry::paths::umask_of;
use crate::sys::seccomp::Place;

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);

/// Whose a new file is, if not root's.
fn maker(call: &Call<'_>) -> Option<(u32, u32)> {
    if !call.kernel.credentials().changed() {
        return None;
    }
    let credentials = call.kernel.credentials().of(call.received().tid);
    let ids = (credentials.uid.fs, credentials.gid.fs);
    (ids != (0, 0)).then_some(ids)
}

/// Has a file that the sentry has made for a guest belong to whoever has asked for it. To be called with the guest's
/// rights (`Paths::with`).
pub(super) fn give_to_maker(call: &Call<'_>, made: &OwnedFd) -> Result<(), Errno> {
    match call.kernel.beliefs().zip(maker(call)) {
        Some((beliefs, (uid, gid))) => beliefs.give(made.as_fd(), uid, gid),
        None => Ok(()),
    }
}

/// Makes what a path names, as `make` does with the place and the permissions, and whoever asks for it its owner. `None`:
/// the kernel is to do it.
fn made(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    mode: u32,
    make: impl FnOnce(BorrowedFd<'_>, &OsStr, Bits) -> Result<(), Errno>,
) -> Option<Answer> {
    // (Where rules are about names, it is made by those who ask them: `paths`.)
    let beliefs = call.kernel.beliefs().filter(|_| call.kernel.paths().is_none())?;
    let (uid, gid) = maker(call)?;
    let text = call.memory().read_string(path.0).ok()?;
    let bits = Bits::from_bits_truncate(mode & 0o1777 & !umask_of(call.received().tid).ok()?);
    let spot = believed::spot(call, beliefs, dirfd, &text)?;
    let done = believed::change(call, beliefs, || {
        make(spot.parent.as_fd(), &spot.name, bits)?;
        beliefs.give(spot.handle()?.as_fd(), uid, gid)
    });
    Some(done.map(|()| 0).into())
}

/// Serves mkdir(2).
pub fn mkdir(call: &Call<'_>, path: Path, mode: Mode) -> Answer {
    watch::mkdir(call, path, mode);
    make_directory(call, CURRENT, path, mode)
}

/// Serves mkdirat(2).
pub fn mkdirat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode) -> Answer {
    watch::mkdirat(call, dirfd, path, mode);
    make_directory(call, dirfd, path, mode)
}

fn make_directory(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode) -> Answer {
    made(call, dirfd, path, mode.0, |parent, name, bits| stat::mkdirat(parent, name, bits))
        .unwrap_or(Answer::Continue)
}

/// A pipe or a plain file, by mknod(2).
pub(super) fn make_node(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode) -> Option<Answer> {
    match mode.0 & libc::S_IFMT {
        libc::S_IFIFO => {
            made(call, dirfd, path, mode.0, |at, name, bits| unistd::mkfifoat(at, name, bits))
        }
        0 | libc::S_IFREG => made(call, dirfd, path, mode.0, |at, name, bits| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            openat(at, name, flags, bits).map(drop)
        }),
        _ => None,
    }
}

/// Serves symlink(2).
pub fn symlink(call: &Call<'_>, target: Path, path: Path) -> Answer {
    watch::symlink(call, target, path);
    make_link(call, target, CURRENT, path)
}

/// Serves symlinkat(2).
pub fn symlinkat(call: &Call<'_>, target: Path, dirfd: DirFd, path: Path) -> Answer {
    watch::symlinkat(call, target, dirfd, path);
    make_link(call, target, dirfd, path)
}

fn make_link(call: &Call<'_>, target: Path, dirfd: DirFd, path: Path) -> Answer {
    let Some(target) = maker(call).and_then(|_| call.memory().read_string(target.0).ok()) else {
        return Answer::Continue;
    };
    let target = OsStr::from_bytes(&target);
    made(call, dirfd, path, 0o777, |parent, name, _| unistd::symlinkat(target, parent, name))
        .unwrap_or(Answer::Continue)
}

/// Makes the file that open(2) is to make. With O_EXCL it is opened as well: the kernel would find it there.
pub(super) fn create(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    dirfd: DirFd,
    path: Path,
    flags: i32,
    mode: u32,
) -> Option<Answer> {
    let (uid, gid) = maker(call).filter(|_| call.kernel.paths().is_none())?;
    let tid = call.received().tid;
    let text = call.memory().read_string(path.0).ok().filter(|text| !text.ends_with(b"/"))?;
    let is_exclusive = flags & libc::O_EXCL != 0;
    // (A link to nowhere is the kernel's to follow.)
    believed::may_take_long(call, beliefs);
    let is_there = || Ok(find(tid, dirfd.0, &text, false).is_some());
    if !is_exclusive && as_guest(call, beliefs, is_there).ok()? {
        return None;
    }
    let mode = mode & 0o1777 & !umask_of(tid).ok()?;
    let spot = believed::spot(call, beliefs, dirfd, &text)?;
    let opened = believed::change(call, beliefs, || {
        let file = open_new(&spot, flags, mode)?;
        beliefs.give(file.as_fd(), uid, gid)?;
        Ok(file)
    });
    match opened {
        _ if !is_exclusive => None,
        Err(errno) => Some(Answer::Fail(errno)),
        Ok(fd) => {
            let cloexec = flags & libc::O_CLOEXEC != 0;
            let place = Place::Lowest;
            Some(Answer::Descriptor(Descriptor { fd, place, cloexec, sole: true }))
        }
    }
}

fn open_new(spot: &Spot, flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
    let own = libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NOCTTY;
    let flags = OFlag::from_bits_retain(flags | own);
    openat(&spot.parent, spot.name.as_os_str(), flags, Bits::from_bits_truncate(mode & MODE))
}
