//! Modes, times and extended attributes of files, where no mount keeps them: chmod(2), utimensat(2), setxattr(2) and
//! their kin.
//!
//! Landlock does not look at these calls. So in a run that lives in the host's namespaces the sentry finds the file,
//! asks whether guests may change it (`sentry::grounds`), and makes the change itself, with the rights of the guests'
//! user and by a descriptor: memory is read once, and what was looked at is what is changed.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use libc::timespec;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode as Bits, SFlag, fstat};

use super::args::{
    AtFlags, DirFd, Fd, Flags, Gid, In, InBuf, Len, Mode, Path, Str, TimespecPair, TimevalPair,
    Uid, Utimbuf,
};
use super::attributes::{FOLLOW, NO_FOLLOW, Subject};
use super::{attributes, modes, own_copies, watch};
use crate::notify::{Answer, hand_over};
use crate::sentry::Features;
use crate::sentry::beliefs::flags_of;
use crate::sentry::call::Call;
use crate::sentry::file_log::{View, own_descriptor};
use crate::sentry::paths::Start;
use crate::sys::{attributes as kernel, spawn};

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);

/// Whether the sentry has to do these things.
pub(super) fn are_ours(call: &Call<'_>) -> bool {
    call.kernel.features().contains(Features::NO_NAMESPACES)
}

/// Serves chmod(2).
pub fn chmod(call: &Call<'_>, path: Path, mode: Mode) -> Answer {
    if !are_ours(call) {
        return modes::chmod(call, path, mode);
    }
    watch::chmod(call, path, mode);
    change_mode(call, CURRENT, path, mode, AtFlags(0))
}

/// Serves fchmodat(2), of which the kernel takes three arguments.
pub fn fchmodat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode) -> Answer {
    if !are_ours(call) {
        return modes::fchmodat(call, dirfd, path, mode);
    }
    watch::fchmodat(call, dirfd, path, mode);
    change_mode(call, dirfd, path, mode, AtFlags(0))
}

/// Serves fchmodat2(2).
pub fn fchmodat2(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, flags: AtFlags) -> Answer {
    if !are_ours(call) {
        return modes::fchmodat2(call, dirfd, path, mode, flags);
    }
    watch::fchmodat2(call, dirfd, path, mode, flags);
    change_mode(call, dirfd, path, mode, flags)
}

/// Serves fchmod(2).
pub fn fchmod(call: &Call<'_>, fd: Fd, mode: Mode) -> Answer {
    if !are_ours(call) {
        return modes::fchmod(call, fd, mode);
    }
    change(call, || opened(call, fd), |file| set_mode(file, mode))
}

fn change_mode(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, flags: AtFlags) -> Answer {
    change(call, || find(call, dirfd, path, flags), |file| set_mode(file, mode))
}

fn set_mode(file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    // The setuid bit has been refused before (the table does); a symbolic link has no mode (chmod_common in
    // fs/open.c).
    match is_link(file)? {
        true => Err(Errno::EOPNOTSUPP),
        false => kernel::set_mode(file.as_fd(), mode.0 & 0o3777),
    }
}

/// Changes the owner of what a path leads to ([`super::owners`]).
pub(super) fn change_owner(
    call: &Call<'_>,
    (dirfd, path, flags): (DirFd, Path, AtFlags),
    (owner, group): (Uid, Gid),
) -> Answer {
    let find = || find(call, dirfd, path, flags);
    change(call, find, |file| kernel::set_owner(file.as_fd(), owner.0, group.0))
}

/// The same of a descriptor.
pub(super) fn change_owner_of(call: &Call<'_>, fd: Fd, owner: Uid, group: Gid) -> Answer {
    let set = |file: &OwnedFd| kernel::set_owner(file.as_fd(), owner.0, group.0);
    change(call, || opened(call, fd), set)
}

/// Serves utime(2).
pub fn utime(call: &Call<'_>, path: Path, times: In<Utimbuf>) -> Answer {
    if !are_ours(call) {
        return own_copies::utime(call, path, times);
    }
    watch::utime(call, path, times);
    let read = || two(call, times.address, 8, |words| time(words[0], 0));
    change_times(call, (CURRENT, path, AtFlags(0)), read)
}

/// Serves utimes(2).
pub fn utimes(call: &Call<'_>, path: Path, times: In<TimevalPair>) -> Answer {
    if !are_ours(call) {
        return own_copies::utimes(call, path, times);
    }
    watch::utimes(call, path, times);
    change_times(call, (CURRENT, path, AtFlags(0)), || microseconds(call, times.address))
}

/// Serves futimesat(2).
pub fn futimesat(call: &Call<'_>, dirfd: DirFd, path: Path, times: In<TimevalPair>) -> Answer {
    if !are_ours(call) {
        return own_copies::futimesat(call, dirfd, path, times);
    }
    watch::futimesat(call, dirfd, path, times);
    if path.0 == 0 && dirfd.0 != libc::AT_FDCWD {
        let read = || microseconds(call, times.address);
        return change_times_of(call, Fd(dirfd.0), read);
    }
    change_times(call, (dirfd, path, AtFlags(0)), || microseconds(call, times.address))
}

/// Serves utimensat(2).
pub fn utimensat(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    times: In<TimespecPair>,
    flags: AtFlags,
) -> Answer {
    if !are_ours(call) {
        return own_copies::utimensat(call, dirfd, path, times, flags);
    }
    watch::utimensat(call, dirfd, path, times, flags);
    let read = || two(call, times.address, 16, |words| time(words[0], words[1]));
    // Without a path it is futimens(3) (do_utimes in fs/utimes.c).
    if path.0 == 0 && dirfd.0 != libc::AT_FDCWD {
        return match flags.0 {
            0 => change_times_of(call, Fd(dirfd.0), read),
            _ => Answer::Fail(Errno::EINVAL),
        };
    }
    change_times(call, (dirfd, path, flags), read)
}

type Times = Option<[timespec; 2]>;

fn change_times(
    call: &Call<'_>,
    (dirfd, path, flags): (DirFd, Path, AtFlags),
    read: impl FnOnce() -> Result<Times, Errno>,
) -> Answer {
    let set = |file: &OwnedFd| kernel::set_times(file.as_fd(), read()?.as_ref());
    change(call, || find(call, dirfd, path, flags), set)
}

fn change_times_of(call: &Call<'_>, fd: Fd, read: impl FnOnce() -> Result<Times, Errno>) -> Answer {
    let set = |file: &OwnedFd| kernel::set_times(file.as_fd(), read()?.as_ref());
    change(call, || opened(call, fd), set)
}

fn time(seconds: i64, nanoseconds: i64) -> Option<timespec> {
    Some(timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}

fn microseconds(call: &Call<'_>, address: u64) -> Result<Times, Errno> {
    two(call, address, 16, |words| {
        let micros = Some(words[1]).filter(|it| (0..1_000_000).contains(it))?;
        time(words[0], micros * 1000)
    })
}

/// Two times of `size` bytes each, if there are some; `None` of `make`: they are impossible.
fn two(
    call: &Call<'_>,
    address: u64,
    size: usize,
    make: impl Fn([i64; 2]) -> Option<timespec>,
) -> Result<Times, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let mut bytes = [0; 32];
    let bytes = &mut bytes[..2 * size];
    call.memory().read(address, bytes)?;
    let word = |at: usize| {
        let eight = bytes.get(at..at + 8).and_then(|it| it.try_into().ok());
        eight.map_or(0, i64::from_ne_bytes)
    };
    let one = |at: usize| make([word(at), if size > 8 { word(at + 8) } else { 0 }]);
    Ok(Some([one(0).ok_or(Errno::EINVAL)?, one(size).ok_or(Errno::EINVAL)?]))
}

/// Serves setxattr(2).
pub fn setxattr(
    call: &Call<'_>,
    path: Path,
    name: Str,
    value: InBuf,
    size: Len,
    flags: Flags,
) -> Answer {
    set_extended(call, Subject::Path(path, FOLLOW), name, (value, size), flags)
}

/// Serves lsetxattr(2).
pub fn lsetxattr(
    call: &Call<'_>,
    path: Path,
    name: Str,
    value: InBuf,
    size: Len,
    flags: Flags,
) -> Answer {
    set_extended(call, Subject::Path(path, NO_FOLLOW), name, (value, size), flags)
}

/// Serves fsetxattr(2).
pub fn fsetxattr(
    call: &Call<'_>,
    fd: Fd,
    name: Str,
    value: InBuf,
    size: Len,
    flags: Flags,
) -> Answer {
    set_extended(call, Subject::Open(fd), name, (value, size), flags)
}

/// Serves removexattr(2).
pub fn removexattr(call: &Call<'_>, path: Path, name: Str) -> Answer {
    remove_extended(call, Subject::Path(path, FOLLOW), name)
}

/// Serves lremovexattr(2).
pub fn lremovexattr(call: &Call<'_>, path: Path, name: Str) -> Answer {
    remove_extended(call, Subject::Path(path, NO_FOLLOW), name)
}

/// Serves fremovexattr(2).
pub fn fremovexattr(call: &Call<'_>, fd: Fd, name: Str) -> Answer {
    remove_extended(call, Subject::Open(fd), name)
}

fn set_extended(
    call: &Call<'_>,
    subject: Subject,
    name: Str,
    (value, size): (InBuf, Len),
    flags: Flags,
) -> Answer {
    if !are_ours(call) {
        return attributes::set(call, subject, name, (value, size), flags);
    }
    change(
        call,
        || subject_file(call, subject),
        |file| {
            let name = name_of_attribute(call, file, name)?;
            let bytes = attributes::value_of(call, value, size)?;
            kernel::set_extended(file.as_fd(), &name, &bytes, flags.0 as i32)
        },
    )
}

fn remove_extended(call: &Call<'_>, subject: Subject, name: Str) -> Answer {
    if !are_ours(call) {
        return attributes::remove(call, subject, name);
    }
    change(
        call,
        || subject_file(call, subject),
        |file| {
            let name = name_of_attribute(call, file, name)?;
            kernel::remove_extended(file.as_fd(), &name)
        },
    )
}

fn subject_file(call: &Call<'_>, subject: Subject) -> Result<OwnedFd, Errno> {
    match subject {
        Subject::Path(path, flags) => find(call, CURRENT, path, flags),
        Subject::Open(fd) => opened(call, fd),
    }
}

fn name_of_attribute(call: &Call<'_>, file: &OwnedFd, name: Str) -> Result<CString, Errno> {
    let name = CString::new(call.memory().read_string(name.0)?).map_err(|_| Errno::EINVAL)?;
    // Those of a symbolic link are root's (xattr_permission in fs/xattr.c).
    if is_link(file)? { Err(Errno::EPERM) } else { Ok(name) }
}

/// Finds a file, asks whether it may be changed, and changes it.
fn change(
    call: &Call<'_>,
    find: impl FnOnce() -> Result<OwnedFd, Errno>,
    set: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
) -> Answer {
    // A file system of the host may take its time.
    hand_over();
    let attempt = || {
        let file = find()?;
        // What was found by the thread's number is its own only if it still waits.
        if !call.trapped().is_valid() {
            return Err(Errno::ESRCH);
        }
        // The mounts of other runs give the same answer.
        if !call.kernel.grounds().is_some_and(|grounds| grounds.may_change(&file)) {
            return Err(Errno::EROFS);
        }
        set(&file)
    };
    as_guest(attempt).map(|()| 0).into()
}

/// With no more rights than the guests': root's have no capabilities.
pub(super) fn as_guest<T>(act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    spawn::without_capabilities(act)?
}

/// What a path of the guest's leads to (O_PATH).
pub(super) fn find(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    flags: AtFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags.0 as i32;
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let text = call.memory().read_string(path.0)?;
    if text.is_empty() {
        return match (flags & libc::AT_EMPTY_PATH, dirfd.0) {
            (0, _) => Err(Errno::ENOENT),
            (_, libc::AT_FDCWD) => found(call, Start::Directory, b".", true),
            (_, fd) => handle(call, fd),
        };
    }
    found(call, Start::of(dirfd.0), &text, flags & libc::AT_SYMLINK_NOFOLLOW == 0)
}

/// The same of a path that has been read.
pub(super) fn found(
    call: &Call<'_>,
    start: Start,
    text: &[u8],
    follow: bool,
) -> Result<OwnedFd, Errno> {
    let tid = call.received().tid;
    if let Some(fd) = own_descriptor(text).filter(|_| follow) {
        return handle(call, fd);
    }
    if let (Start::Descriptor(fd), false) = (start, text.starts_with(b"/"))
        && flags_of(tid, fd).is_none()
    {
        return Err(Errno::EBADF);
    }
    // (What nobody can tell from outside, or what the kernel makes up, is none to be changed.)
    View::of(tid)
        .and_then(|view| view.handle_of(tid, start, text, follow))
        .unwrap_or(Err(Errno::EACCES))
}

/// What stands for the file behind a descriptor of the caller's.
fn handle(call: &Call<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    let link = format!("/proc/{}/fd/{fd}", call.received().tid);
    let done = open(link.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Bits::empty());
    done.map_err(|errno| if errno == Errno::ENOENT { Errno::EBADF } else { errno })
}

/// The same where one that only stands for a path is none (O_PATH in open(2)).
fn opened(call: &Call<'_>, fd: Fd) -> Result<OwnedFd, Errno> {
    match flags_of(call.received().tid, fd.0) {
        Some(flags) if flags & libc::O_PATH == 0 => handle(call, fd.0),
        _ => Err(Errno::EBADF),
    }
}

fn is_link(file: &OwnedFd) -> Result<bool, Errno> {
    let format = SFlag::from_bits_truncate(fstat(file.as_fd())?.st_mode) & SFlag::S_IFMT;
    Ok(format == SFlag::S_IFLNK)
}
