//! The time stamps of files, in a sandbox with a clock of its own: stat(2) and its kin.
//!
//! The kernel stamps files with the host's time of day. A stamp from this run is shown in the
//! guest's time; one from before it, or from elsewhere, as it is. The kernel makes the whole answer;
//! only such stamps in it are changed as the call returns (`sentry::remake`). Since that costs far
//! more than the call, the sentry looks first whether the file has any: a look that errs costs time
//! or shows the host's time, and decides nothing else.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode};

use super::args::{AtFlags, DirFd, Fd, Flags, Out, Path, Stat, Statx};
use super::believed::{self, Form};
use super::watch;
use crate::notify::{Answer, hand_over};
use crate::sentry::Features;
use crate::sentry::beliefs::place_of;
use crate::sentry::call::Call;
use crate::sentry::remake::{STAT, STATX, Stamps, show_stamps};
use crate::timekeeping::SECOND;

/// Serves stat(2).
pub fn stat(call: &Call<'_>, pathname: Path, statbuf: Out<Stat>) -> Answer {
    serve(call, libc::AT_FDCWD, Some(pathname), 0, Form::Stat(statbuf.address))
}

/// Serves lstat(2).
pub fn lstat(call: &Call<'_>, pathname: Path, statbuf: Out<Stat>) -> Answer {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    serve(call, libc::AT_FDCWD, Some(pathname), flags, Form::Stat(statbuf.address))
}

/// Serves fstat(2).
pub fn fstat(call: &Call<'_>, fd: Fd, statbuf: Out<Stat>) -> Answer {
    serve(call, fd.0, None, 0, Form::Stat(statbuf.address))
}

/// Serves newfstatat(2).
pub fn newfstatat(
    call: &Call<'_>,
    dirfd: DirFd,
    pathname: Path,
    statbuf: Out<Stat>,
    flags: AtFlags,
) -> Answer {
    serve(call, dirfd.0, Some(pathname), flags.0 as i32, Form::Stat(statbuf.address))
}

/// Serves statx(2).
pub fn statx(
    call: &Call<'_>,
    dirfd: DirFd,
    pathname: Path,
    flags: AtFlags,
    mask: Flags,
    statxbuf: Out<Statx>,
) -> Answer {
    let form = Form::Statx(statxbuf.address, mask.0);
    serve(call, dirfd.0, Some(pathname), flags.0 as i32, form)
}

fn serve(call: &Call<'_>, dirfd: i32, path: Option<Path>, flags: i32, form: Form) -> Answer {
    if let Some(path) = path {
        watch::note_stat(call, dirfd, path, flags);
    }
    if let Some(answer) = believed::show(call, dirfd, path, flags, form) {
        return answer;
    }
    let stamps = match form {
        Form::Stat(address) => Stamps { address, at: STAT },
        Form::Statx(address, _) => Stamps { address, at: STATX },
    };
    if !call.kernel.features().contains(Features::VIRTUAL_TIME)
        || call.kernel.time().remade().has(call.received())
    {
        return Answer::Continue;
    }
    // A file system of the host may take its time.
    hand_over();
    match look(call, dirfd, path, flags) {
        Ok(stat) if !has_own_stamps(call, &stat) => Answer::Continue,
        // The kernel is about to say the same, or something better.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::EBADF | Errno::ESRCH) => {
            Answer::Continue
        }
        _ => show_stamps(call, stamps),
    }
}

/// Whether one of the stamps is to be shown as another. (A time of birth is not later than the others.)
///
/// Where what was there before the run is shown as older than it ([`Timekeeper::repeating`]), only the time of
/// its content counts: the others of the machine's own files are as good as random, and to change those
/// would cost at every look at one.
///
/// [`Timekeeper::repeating`]: crate::timekeeping::Timekeeper::repeating
fn has_own_stamps(call: &Call<'_>, stat: &FileStat) -> bool {
    let keeper = call.kernel.time().keeper();
    let stamp = |seconds: i64, rest: i64| seconds.checked_mul(SECOND)?.checked_add(rest);
    let changed = stamp(stat.st_mtime, stat.st_mtime_nsec);
    let others =
        [stamp(stat.st_atime, stat.st_atime_nsec), stamp(stat.st_ctime, stat.st_ctime_nsec)];
    let is_shown_otherwise = |stamp: &i64| keeper.file_time(*stamp).is_some();
    changed.as_ref().is_some_and(is_shown_otherwise)
        || others.iter().flatten().any(|it| keeper.is_of_run(*it) && is_shown_otherwise(it))
}

/// What the call is about to look at, as far as that can be told from outside: ELOOP where it
/// cannot.
pub(super) fn look(
    call: &Call<'_>,
    dirfd: i32,
    path: Option<Path>,
    flags: i32,
) -> Result<FileStat, Errno> {
    let tid = call.received().tid;
    let path = match path {
        // statx(2) takes a null path for an empty one (Linux 6.11).
        Some(Path(0)) | None => Vec::new(),
        Some(path) => call.memory().read_string(path.0)?,
    };
    if path.is_empty() {
        return nix::sys::stat::stat(place_of(tid, dirfd).as_str());
    }
    // What these show depends on who looks.
    if path.starts_with(b"/proc") || path.starts_with(b"/dev") {
        return Err(Errno::ELOOP);
    }
    let mut how = OFlag::O_PATH | OFlag::O_CLOEXEC;
    if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
        how |= OFlag::O_NOFOLLOW;
    }
    // An absolute symlink leads through the guest's root, which only an absolute path is sure to
    // pass.
    let (base, resolve) = match path.starts_with(b"/") {
        true => (format!("/proc/{tid}/root"), ResolveFlag::RESOLVE_IN_ROOT),
        false => (place_of(tid, dirfd), ResolveFlag::RESOLVE_NO_SYMLINKS),
    };
    let base = open_path(&base)?;
    let how = OpenHow::new().flags(how).resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = openat2(base.as_fd(), OsStr::from_bytes(&path), how)?;
    nix::sys::stat::fstat(file.as_fd())
}

fn open_path(path: &str) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}
