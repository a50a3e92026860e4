//! Giving files away: chown(2) and its kin, where the guests' user namespace does not have the ids.
//!
//! To the kernel an id without a name inside is no id (EINVAL, chown_common in fs/open.c). Outside it would be
//! one, and the file just not the caller's to give away (EPERM). Programs know that answer and go on: fakeroot(1), for
//! one, takes it for the sign that it is needed.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::args::{AtFlags, DirFd, Fd, Gid, Path, Uid};
use super::{believed, kept, modes, watch};
use crate::notify::{Answer, hand_over};
use crate::sentry::beliefs::{FileBeliefs, Real, flags_of};
use crate::sentry::call::Call;
use crate::sentry::credentials::Capability;
use crate::sentry::file_log::View;
use crate::sentry::paths::Start;
use crate::sys::files::descriptor_path;
use crate::sys::id_map::IdMap;

/// Serves chown(2).
pub fn chown(call: &Call<'_>, path: Path, owner: Uid, group: Gid) -> Answer {
    watch::chown(call, path, owner, group);
    let ids = (owner, group);
    if kept::are_ours(call) {
        return kept::change_owner(call, (CURRENT, path, AtFlags(0)), ids);
    }
    if let Some(done) = give(call, ids, || believed::target(call, CURRENT, path, 0)) {
        return done;
    }
    answer(call, ids, |_| of_path(call, CURRENT, path, AtFlags(0)))
}

/// Serves lchown(2).
pub fn lchown(call: &Call<'_>, path: Path, owner: Uid, group: Gid) -> Answer {
    watch::lchown(call, path, owner, group);
    let flags = AtFlags(libc::AT_SYMLINK_NOFOLLOW as u32);
    if kept::are_ours(call) {
        return kept::change_owner(call, (CURRENT, path, flags), (owner, group));
    }
    let file = || believed::target(call, CURRENT, path, flags.0 as i32);
    if let Some(done) = give(call, (owner, group), file) {
        return done;
    }
    answer(call, (owner, group), |_| of_path(call, CURRENT, path, flags))
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
    if kept::are_ours(call) {
        return kept::change_owner(call, (dirfd, path, flags), (owner, group));
    }
    let file = || believed::target(call, dirfd, path, flags.0 as i32);
    if let Some(done) = give(call, (owner, group), file) {
        return done;
    }
    answer(call, (owner, group), |_| of_path(call, dirfd, path, flags))
}

/// Serves fchown(2).
pub fn fchown(call: &Call<'_>, fd: Fd, owner: Uid, group: Gid) -> Answer {
    if kept::are_ours(call) {
        return kept::change_owner_of(call, fd, owner, group);
    }
    if let Some(done) = give(call, (owner, group), || modes::open_file(call, fd)) {
        return done;
    }
    answer(call, (owner, group), |tid| of_descriptor(tid, fd.0))
}

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);

/// Has a file belong to somebody else in the belief of guests that take themselves for root. `None`: the kernel has to
/// say.
fn give(
    call: &Call<'_>,
    (owner, group): (Uid, Gid),
    file: impl FnOnce() -> Option<OwnedFd>,
) -> Option<Answer> {
    let beliefs = call.kernel.beliefs()?;
    let file = file()?;
    let is_foreign = !beliefs.is_users(&Real::of(&fstat(&file).ok()?));
    if is_foreign {
        // Somebody else's, and already whose it is to be: nothing has to be copied for that.
        let (path, real) = (descriptor_path(file.as_fd()), Real::of(&fstat(&file).ok()?));
        let shown = beliefs.shown(&path, &real);
        let keeps = |wanted: u32, is: u32| wanted == u32::MAX || wanted == is;
        let is_plain = shown.mode & (libc::S_ISUID | libc::S_ISGID) == 0;
        if keeps(owner.0, shown.uid)
            && keeps(group.0, shown.gid)
            && is_plain
            && !is_read_only(&file)
        {
            return Some(Answer::Return(0));
        }
    }
    Some(match believed::own(call, beliefs, file) {
        None if is_foreign => Answer::Fail(Errno::EPERM),
        None => return None,
        Some(Err(errno)) => Answer::Fail(errno),
        Some(Ok(file)) => match may_give(call, beliefs, &file, (owner.0, group.0)) {
            true => {
                let give = || beliefs.give(file.as_fd(), owner.0, group.0);
                believed::change(call, beliefs, give).map(|()| 0).into()
            }
            false => Answer::Fail(Errno::EPERM),
        },
    })
}

/// Whoever is not root may give their files to groups that they are in (chown_ok and chgrp_ok in fs/attr.c).
fn may_give(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    file: &OwnedFd,
    (owner, group): (u32, u32),
) -> bool {
    let credentials = call.kernel.credentials().of(call.received().tid);
    if credentials.has(Capability::Chown) {
        return true;
    }
    let Ok(stat) = fstat(file) else { return false };
    let shown = beliefs.shown(&descriptor_path(file.as_fd()), &Real::of(&stat));
    let in_group = group == credentials.gid.fs || credentials.groups.contains(&group);
    shown.uid == credentials.uid.fs
        && (owner == u32::MAX || owner == shown.uid)
        && (group == u32::MAX || group == shown.gid || in_group)
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

/// What is wrong with the file that a path leads to.
pub(super) fn of_path(call: &Call<'_>, dirfd: DirFd, path: Path, flags: AtFlags) -> Option<Errno> {
    let tid = call.received().tid;
    let start = Start::of(dirfd.0);
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
pub(super) fn of_descriptor(tid: i32, fd: i32) -> Option<Errno> {
    let is_open = flags_of(tid, fd).is_some_and(|flags| flags & libc::O_PATH == 0);
    (!is_open).then_some(Errno::EBADF)
}

fn is_read_only(file: &impl AsFd) -> bool {
    fstatvfs(file).is_ok_and(|it| it.flags().contains(FsFlags::ST_RDONLY))
}
