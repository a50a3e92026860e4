//! What a run with `--root` believed of the files in its layers (`sentry::beliefs`), for who compares and applies them.
//!
//! An ordinary user can give nothing away, so a commit of theirs applies of a belief the permissions alone; root's applies
//! the owner, too. A set-id bit that the host's file had not is never applied.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::FileStat;
use nix::unistd::{getegid, geteuid};

use super::entry::{self, Type};
use crate::sentry::beliefs::{Belief, INSTEAD, MODE, NAME};
use crate::sys::{beneath, files};

/// What is believed of a file of a layer, which `fd` stands for (O_PATH too).
pub(super) fn of(fd: BorrowedFd<'_>, stat: &FileStat) -> Belief {
    if !can_have(stat) {
        return Belief::default();
    }
    let value = beneath::attribute(&files::descriptor_path(fd), NAME).ok();
    value.and_then(|value| Belief::parse(&value)).unwrap_or_default()
}

/// Whether anything can be believed of it: by attributes, and of the user's own alone.
fn can_have(stat: &FileStat) -> bool {
    stat.st_uid == geteuid().as_raw() && matches!(Type::of(stat), Type::File | Type::Directory)
}

/// Owner, group and mode as guests saw them: the user is root there.
pub(super) fn seen(stat: &FileStat, belief: &Belief) -> (u32, u32, u32) {
    let inside = |id: u32, own: u32| if id == own { 0 } else { id };
    (
        belief.uid.unwrap_or_else(|| inside(stat.st_uid, geteuid().as_raw())),
        belief.gid.unwrap_or_else(|| inside(stat.st_gid, getegid().as_raw())),
        belief.mode_of(stat.st_mode),
    )
}

/// `stat` with what of a belief the host gets.
pub(super) fn wanted(mut stat: FileStat, belief: &Belief) -> FileStat {
    if let Some(mode) = belief.mode {
        stat.st_mode = stat.st_mode & !MODE | mode;
    }
    if (belief.uid.is_some() || belief.gid.is_some()) && geteuid().is_root() {
        stat.st_uid = belief.uid.unwrap_or(stat.st_uid);
        stat.st_gid = belief.gid.unwrap_or(stat.st_gid);
    }
    stat
}

/// Owner and permissions in words, where they are such as the kernel did not have.
pub(super) fn words(stat: &FileStat, belief: &Belief) -> Option<String> {
    if belief.is_nothing() {
        return None;
    }
    let (uid, gid, mode) = seen(stat, belief);
    let mut words = Vec::new();
    if belief.uid.is_some() || belief.gid.is_some() {
        words.push(format!("{uid}:{gid}"));
    }
    if mode & (libc::S_ISUID | libc::S_ISGID) & !stat.st_mode != 0 {
        words.push(format!("{:o}", mode & MODE));
    }
    if let Some(device) = belief.device_of(stat.st_mode) {
        let (major, minor) = (libc::major(device), libc::minor(device));
        words.push(format!("device {major}:{minor}"));
    }
    if belief.hollow {
        words.push("hollow".to_owned());
    }
    (!words.is_empty()).then(|| words.join(" "))
}

/// The names of attributes that only root can set, and that guests believed they had.
pub(super) fn attributes(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let rest = |name: Vec<u8>| name.strip_prefix(INSTEAD).map(<[u8]>::to_vec);
    Ok(entry::attribute_names(fd)?.into_iter().filter_map(rest).collect())
}

/// The same of what has a name in a directory of a layer, and attributes of these names.
pub(super) fn look(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    attributes: &[Vec<u8>],
) -> Result<Belief, Errno> {
    if attributes.iter().all(|it| it != NAME.to_bytes()) || !can_have(stat) {
        return Ok(Belief::default());
    }
    Ok(of(entry::open_path(directory, name)?.as_fd(), stat))
}
