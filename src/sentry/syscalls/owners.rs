//! Giving files away: chown(2) and its kin, where the guests' user namespace does not have the ids.
//!
//! To the kernel an id without a name inside is no id (EINVAL, chown_common in fs/open.c). Outside it would be
//! one, and the file just not the caller's to give away (EPERM). Programs know that answer and go on: fakeroot(1), for
//! one, takes it for the sign that it is needed.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::args::{AtFlags, DirFd, Fd, Gid, Path, Uid};
use super::attributes::{self, flags_of};
use super::watch;
use crate::notify::{Answer, hand_over};
use crate::sentry::call::Call;
use crate::sentry::file_log::{Start, View};
use crate::sys::id_map::IdMap;

/// Serves chown(2).
pub fn chown(call: &Call<'_>, path: Path, owner: Uid, group: Gid) -> Answer {
    watch::chown(call, path, owner, group);
    if attributes::are_ours(call) {
        let place = (DirFd(libc::AT_FDCWD), path, AtFlags(0));
        return attributes::change_owner(call, place, (owner, group));
    }
    answer(call, (owner, group), |tid| of_path(call, tid, Start::Directory, path, AtFlags(0)))
}

/// Serves lchown(2).
pub fn lchown(call: &Call<'_>, path: Path, owner: Uid, group: Gid) -> Answer {
    watch::lchown(call, path, owner, group);
    let flags = AtFlags(libc::AT_SYMLINK_NOFOLLOW as u32);
    if attributes::are_ours(call) {
        let place = (DirFd(libc::AT_FDCWD), path, flags);
        return attributes::change_owner(call, place, (owner, group));
    }
    answer(call, (owner, group), |tid| of_path(call, tid, Start::Directory, path, flags))
}

/// Serves fchownat(2).
pub fn fchownat(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    owner: Uid,
    group: Gid,
    flags: AtFlags,
) -> Answer {
    watch::fchownat(call, dirfd, path, owner, group, flags);
    if attributes::are_ours(call) {
        return attributes::change_owner(call, (dirfd, path, flags), (owner, group));
    }
    answer(call, (owner, group), |tid| match dirfd.0 {
        libc::AT_FDCWD => of_path(call, tid, Start::Directory, path, flags),
        fd => of_path(call, tid, Start::Descriptor(fd), path, flags),
    })
}

/// Serves fchown(2).
pub fn fchown(call: &Call<'_>, fd: Fd, owner: Uid, group: Gid) -> Answer {
    if attributes::are_ours(call) {
        return attributes::change_owner_of(call, fd, owner, group);
    }
    answer(call, (owner, group), |tid| of_descriptor(tid, fd.0))
}

/// Ids that are there inside are the kernel's; so is every other wrong argument. `why`: what is wrong with the file.
fn answer(
    call: &Call<'_>,
    (owner, group): (Uid, Gid),
    why: impl FnOnce(i32) -> Option<Errno>,
) -> Answer {
    let tid = call.received().tid;
    let is_there =
        |map: std::io::Result<IdMap>, id: u32| id == u32::MAX || map.is_ok_and(|map| map.has(id));
    if is_there(IdMap::of_users(tid), owner.0) && is_there(IdMap::of_groups(tid), group.0) {
        return Answer::Continue;
    }
    // A file system of the host may take its time.
    hand_over();
    match why(tid) {
        // (Flags that it does not know.)
        Some(Errno::EINVAL) => Answer::Continue,
        why => Answer::Fail(why.unwrap_or(Errno::EPERM)),
    }
}

fn of_path(call: &Call<'_>, tid: i32, start: Start, path: Path, flags: AtFlags) -> Option<Errno> {
    let flags = flags.0 as i32;
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Some(Errno::EINVAL);
    }
    let text = match call.memory().read_string(path.0) {
        Ok(text) => text,
        Err(errno) => return Some(errno),
    };
    if let Start::Descriptor(fd) = start
        && !text.starts_with(b"/")
        && flags_of(tid, fd).is_none()
    {
        return Some(Errno::EBADF);
    }
    match (text.is_empty(), start) {
        (true, Start::Descriptor(_)) if flags & libc::AT_EMPTY_PATH != 0 => return None,
        (true, _) if flags & libc::AT_EMPTY_PATH == 0 => return Some(Errno::ENOENT),
        _ => {}
    }
    match View::of(tid)?.handle_of(tid, start, &text, flags & libc::AT_SYMLINK_NOFOLLOW == 0)? {
        // The kernel looks at the mount first (mnt_want_write).
        Ok(file) => is_read_only(&file).then_some(Errno::EROFS),
        Err(errno) => Some(errno),
    }
}

/// One that only stands for a path is none to fchown(2).
fn of_descriptor(tid: i32, fd: i32) -> Option<Errno> {
    let is_open = flags_of(tid, fd).is_some_and(|flags| flags & libc::O_PATH == 0);
    (!is_open).then_some(Errno::EBADF)
}

fn is_read_only(file: &impl AsFd) -> bool {
    fstatvfs(file).is_ok_and(|it| it.flags().contains(FsFlags::ST_RDONLY))
}
