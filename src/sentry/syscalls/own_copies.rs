//! Calls that change a file, or give it another name, where the guest takes itself for root: what of it is somebody
//! else's and lies in an overlay is made the user's own first, and then the kernel goes on with the call.
//!
//! What the path leads to by then is the kernel's to find: a guest that changes it meanwhile gets the kernel's error.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::args::{
    AtFlags, DirFd, Flags, In, Mode, Offset, OpenFlags, Path, TimespecPair, TimevalPair, Utimbuf,
};
use super::believed::as_guest;
use super::creations::create;
use super::modes::SET_ID;
use super::{believed, paths, watch};
use crate::notify::{Answer, Descriptor};
use crate::sentry::beliefs::Real;
use crate::sentry::call::Call;
use crate::sys::files;
use crate::sys::seccomp::Place;

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);
const NO_FOLLOW: i32 = libc::AT_SYMLINK_NOFOLLOW;

/// Makes what a path leads to the user's own. It decides nothing: the kernel makes the call in any case.
fn prepare(call: &Call<'_>, dirfd: DirFd, path: Path, flags: i32) -> Option<OwnedFd> {
    // (A descriptor alone, as with AT_EMPTY_PATH, stays one of the file that it has been opened for.)
    let file = believed::target(call, dirfd, path, flags & NO_FOLLOW)?;
    if paths::refuses_change(call, &file) {
        return None;
    }
    believed::own(call, call.kernel.beliefs()?, file)?.ok()
}

/// Has what open(2) and its kin are about be the user's own, before the kernel opens it for writing. Gives an answer
/// where the kernel is not to: a new file would be set-id, or is somebody else's than root's, or the file stands for a
/// device that guests have.
pub(super) fn before_open(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    flags: OpenFlags,
    mode: Mode,
) -> Option<Answer> {
    const NEW: i32 = libc::O_CREAT | libc::O_EXCL;
    let flags = flags.0 as i32;
    let changes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
    let opens_none = flags & libc::O_PATH != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    let makes = flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) != 0;
    if makes && mode.0 & SET_ID != 0 && call.kernel.beliefs().is_some() {
        // It would be the case on the host.
        return Some(Answer::Fail(Errno::EPERM));
    }
    let beliefs = call.kernel.beliefs().filter(|_| changes && !opens_none)?;
    if flags & libc::O_CREAT != 0
        && let Some(answer) = create(call, beliefs, dirfd, path, flags, mode.0)
    {
        return Some(answer);
    }
    if flags & NEW == NEW {
        return None;
    }
    let follow = if flags & libc::O_NOFOLLOW != 0 { NO_FOLLOW } else { 0 };
    let file = prepare(call, dirfd, path, follow)?;
    let real = Real::of(&fstat(&file).ok()?);
    let path = files::descriptor_path(file.as_fd());
    let shown = as_guest(call, beliefs, || Ok(beliefs.shown(&path, &real))).ok()?;
    let device = shown.device.filter(|_| shown.mode & libc::S_IFMT == libc::S_IFCHR)?;
    // The nodes that every guest has in its /dev (linux/Documentation/admin-guide/devices.txt).
    let name = match (libc::major(device), libc::minor(device)) {
        (1, 3) => "null",
        (1, 5) => "zero",
        (1, 7) => "full",
        (1, 8) => "random",
        (1, 9) => "urandom",
        _ => return None,
    };
    let node = beliefs.in_view(format!("/dev/{name}").as_bytes())?;
    if !fstat(&node).is_ok_and(|it| it.st_rdev == device) {
        return None;
    }
    let open = flags & (libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK) | libc::O_NOCTTY;
    let fd = as_guest(call, beliefs, || files::open_descriptor(node.as_fd(), open)).ok()?;
    let cloexec = flags & libc::O_CLOEXEC != 0;
    Some(Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: false }))
}

/// Serves creat(2).
pub fn creat(call: &Call<'_>, path: Path, mode: Mode) -> Answer {
    watch::creat(call, path, mode);
    let flags = OpenFlags((libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u32);
    before_open(call, CURRENT, path, flags, mode).unwrap_or(Answer::Continue)
}

/// Handlers that make what one path leads to the user's own.
macro_rules! preparing {
    ($($name:ident ( $($arg:ident : $ty:ty),* ) => ($dirfd:expr, $path:ident, $flags:expr);)*) => {$(
        #[doc = concat!("Serves ", stringify!($name), "(2).")]
        pub fn $name(call: &Call<'_>, $($arg: $ty),*) -> Answer {
            watch::$name(call, $($arg),*);
            let _ = prepare(call, $dirfd, $path, $flags);
            Answer::Continue
        }
    )*};
}

preparing! {
    truncate(path: Path, length: Offset) => (CURRENT, path, 0);
    utime(path: Path, times: In<Utimbuf>) => (CURRENT, path, 0);
    utimes(path: Path, times: In<TimevalPair>) => (CURRENT, path, 0);
    futimesat(dirfd: DirFd, path: Path, times: In<TimevalPair>) => (dirfd, path, 0);
    utimensat(dirfd: DirFd, path: Path, times: In<TimespecPair>, flags: AtFlags)
        => (dirfd, path, flags.0 as i32);
    rename(old: Path, new: Path) => (CURRENT, old, NO_FOLLOW);
    renameat(from: DirFd, old: Path, to: DirFd, new: Path) => (from, old, NO_FOLLOW);
    link(old: Path, new: Path) => (CURRENT, old, NO_FOLLOW);
    linkat(from: DirFd, old: Path, to: DirFd, new: Path, flags: AtFlags)
        => (from, old, if flags.0 as i32 & libc::AT_SYMLINK_FOLLOW == 0 { NO_FOLLOW } else { 0 });
}

/// Serves renameat2(2).
pub fn renameat2(
    call: &Call<'_>,
    from: DirFd,
    old: Path,
    to: DirFd,
    new: Path,
    flags: Flags,
) -> Answer {
    watch::renameat2(call, from, old, to, new, flags);
    let _ = prepare(call, from, old, NO_FOLLOW);
    if flags.0 & libc::RENAME_EXCHANGE != 0 {
        let _ = prepare(call, to, new, NO_FOLLOW);
    }
    Answer::Continue
}
