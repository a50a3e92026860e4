//! What making, filling and gathering have in common: looking at one thing, opening a directory whatever its mode,
//! giving one thing the attributes of another.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Gid, Uid, fchownat};

use super::super::changes::set_mode;
use super::super::description::Stamp;
use super::super::entry::{self, Type};
use crate::sys::errno_of;

/// When what a descriptor stands for was made (statx(2), stx_btime).
///
/// # Errors
/// EOPNOTSUPP: its file system does not keep that.
pub(super) fn born(place: BorrowedFd<'_>) -> Result<Stamp, Errno> {
    let place = File::from(place.try_clone_to_owned().map_err(|error| errno_of(&error))?);
    let born = place.metadata().and_then(|found| found.created()).map_err(|_| Errno::EOPNOTSUPP)?;
    stamp(born).ok_or(Errno::EOPNOTSUPP)
}

fn stamp(time: SystemTime) -> Option<Stamp> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since.as_secs()).ok()?;
    Some(Stamp { seconds, nanoseconds: i64::from(since.subsec_nanos()) })
}

/// Opens a directory that its owner may have no right to, and gives the mode that it had where that was changed for
/// it.
pub(super) fn open_up(
    parent: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<(OwnedFd, Option<u32>), Errno> {
    let place = entry::open_path(parent, name)?;
    let mode = fstat(&place)?.st_mode;
    let closed = mode & libc::S_IRWXU != libc::S_IRWXU && !nix::unistd::geteuid().is_root();
    if closed {
        set_mode(place.as_fd(), mode | libc::S_IRWXU)?;
    }
    Ok((entry::open_directory(parent, name)?, closed.then_some(mode)))
}

/// Gives what `to` stands for owner, extended attributes and mode of `from`; not its times, since who makes something
/// in a directory changes them. `keeps`: the owner stays who it is.
pub(super) fn dress(
    to: BorrowedFd<'_>,
    (from, stat): (BorrowedFd<'_>, &FileStat),
    keeps: bool,
) -> Result<(), Errno> {
    let there = fstat(to)?;
    if !keeps && (stat.st_uid, stat.st_gid) != (there.st_uid, there.st_gid) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(to, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    }
    if Type::of(stat) == Type::Link {
        return Ok(());
    }
    let wanted = entry::attributes(from)?;
    if !wanted.is_empty() || Type::of(stat) == Type::Directory {
        // As far as this user and this file system can.
        let _ = entry::set_attributes(to, &wanted);
    }
    // Lists of rights change the mode (posix_acl_update_mode in fs/posix_acl.c), so it comes last.
    set_mode(to, stat.st_mode)
}
