//! Making copies of what is in a layer, beside the place of the host that they are for.
//!
//! Owns how one file, link, pipe or whole new directory is copied: content with its holes, hard links,
//! owner, extended attributes, mode, times. Nothing is put in its place here. Of a layer that goes as a whole,
//! files are linked instead where that can be done; no run may use the layer from then on (`commit`).

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fstat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, ftruncate, linkat, mkfifoat, symlinkat};

use super::believed;
use super::changes::{open_upper_file, set_mode};
use super::entry::{self, Attributes, Type};
use crate::sentry::beliefs::Belief;
use crate::sys::beneath;
use crate::sys::copy::{Tell, copy_content};
use crate::sys::errno_of;

/// Names longer than this (limits.h) lead nowhere for a program; it bounds how deep a copy goes.
pub(super) const PATH_MAX: usize = 4096;
/// Bits that give rights to whoever executes a file.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// The upper directory of a layer, whatever the modes in it are.
pub(super) struct Upper {
    root: OwnedFd,
    /// Modes that were changed: whose, and what they were.
    changed: Vec<(OwnedFd, u32)>,
    modes: HashMap<(u64, u64), u32>,
}

impl Upper {
    pub(super) fn new(root: OwnedFd) -> Upper {
        Upper { root, changed: Vec::new(), modes: HashMap::new() }
    }

    /// Opens itself.
    pub(super) fn open_root(&mut self) -> Result<OwnedFd, Errno> {
        let root = self.root.try_clone().map_err(|error| errno_of(&error))?;
        self.open_up(root)?;
        self.root.try_clone().map_err(|error| errno_of(&error))
    }

    /// Opens a directory below it, step by step.
    pub(super) fn open(&mut self, relative: &Path) -> Result<OwnedFd, Errno> {
        let mut at = self.open_root()?;
        for name in relative {
            at = self.enter(at.as_fd(), name)?;
        }
        Ok(at)
    }

    /// Opens a directory in one of them.
    pub(super) fn enter(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
        self.open_up(entry::open_path(at, name)?)?;
        entry::open_directory(at, name)
    }

    /// Makes a directory one that its owner can read and change, for the time being.
    fn open_up(&mut self, place: OwnedFd) -> Result<(), Errno> {
        let stat = fstat(&place)?;
        if stat.st_mode & libc::S_IRWXU != libc::S_IRWXU && Type::of(&stat) == Type::Directory {
            self.modes.insert((stat.st_dev, stat.st_ino), stat.st_mode);
            set_mode(place.as_fd(), stat.st_mode | libc::S_IRWXU)?;
            self.changed.push((place, stat.st_mode));
        }
        Ok(())
    }

    /// What an entry is to be on the host, with the mode that it had.
    fn wanted(&self, seen: &Seen) -> FileStat {
        let mut stat = seen.stat;
        if let Some(mode) = self.modes.get(&(stat.st_dev, stat.st_ino)) {
            stat.st_mode = *mode;
        }
        believed::wanted(stat, &seen.belief)
    }
}

/// What a layer has at a name.
pub(super) struct Seen {
    stat: FileStat,
    /// The names of its attributes.
    attributes: Vec<Vec<u8>>,
    belief: Belief,
}

impl Seen {
    /// Looks at it, if there is anything.
    pub(super) fn of(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Seen>, Errno> {
        let Some(stat) = entry::look(directory, name)? else { return Ok(None) };
        let attributes = entry::attribute_names_at(directory, name)?;
        let belief = believed::look(directory, name, &stat, &attributes)?;
        Ok(Some(Seen { stat, attributes, belief }))
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        for (place, mode) in self.changed.iter().rev() {
            let _ = set_mode(place.as_fd(), *mode);
        }
    }
}

/// A directory of the host, from which everything below it is reached.
#[derive(Debug)]
pub(super) struct Root(pub(super) OwnedFd);

impl Root {
    /// A directory below it. Nothing is followed, and nothing that is mounted is entered.
    pub(super) fn open(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        beneath::open(self.0.as_fd(), &entry::c_name(path.as_os_str())?, flags)
    }
}

/// Where something of the host is: which layer's directory, and where below it.
pub(super) type Place = (usize, PathBuf);

/// The file of the host that a copy will replace.
pub(super) struct Old {
    mode: u32,
    /// Its attributes of security modules, and its capabilities.
    security: Attributes,
}

impl Old {
    /// What is at a name, if anything.
    pub(super) fn of(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Old>, Errno> {
        let Some(stat) = entry::look(parent, name)? else { return Ok(None) };
        // Those of a link are none that a file should have.
        let security = match Type::of(&stat) {
            Type::Link => Vec::new(),
            _ => entry::security(entry::open_path(parent, name)?.as_fd())?,
        };
        Ok(Some(Old { mode: stat.st_mode, security }))
    }
}

/// Whether a file with these attributes can get another name as it is: in those of security modules and capabilities it
/// is like the file that it replaces there, or where there is none, like the directory, whose they are if they are known.
fn fits(
    own: &Attributes,
    parent: (BorrowedFd<'_>, Option<&Attributes>),
    old: Option<&Old>,
) -> Result<bool, Errno> {
    match (old, parent) {
        (Some(old), _) => Ok(*own == old.security),
        (None, (_, Some(known))) => Ok(own == known),
        (None, (parent, None)) => Ok(*own == entry::security(parent)?),
    }
}

/// What is copied, and what is known of earlier copies.
pub(super) struct Copier<'c> {
    pub(super) roots: &'c HashMap<usize, Root>,
    /// Where on the host a file of a layer is that has more names.
    pub(super) links: HashMap<(u64, u64), Place>,
    /// What of a new directory is left out.
    pub(super) wanted: &'c dyn Fn(usize, &Path) -> bool,
    /// The layer will go: what can be linked need not be copied.
    pub(super) gives: bool,
    /// Files of the host that were given another name: device and inode.
    pub(super) linked: BTreeSet<(u64, u64)>,
    pub(super) tell: &'c mut Tell<'c>,
}

impl Copier<'_> {
    /// Copies `name` of the layer's directory `from`, which was `seen` there, to `temporary` in `to`, which is at `place`'s
    /// parent. `old` is the file that it will replace; `known`: the attributes of security modules that `to` has.
    pub(super) fn copy(
        &mut self,
        upper: &mut Upper,
        seen: Seen,
        from: (BorrowedFd<'_>, &OsStr, &Path),
        to: (BorrowedFd<'_>, &OsStr, Place),
        old: Option<&Old>,
        known: Option<&Attributes>,
    ) -> Result<(), Errno> {
        let (directory, name, relative) = from;
        let (parent, temporary, place) = to;
        let stat = upper.wanted(&seen);
        let identity = (stat.st_dev, stat.st_ino);
        let kind = Type::of(&stat);
        if kind == Type::File
            && stat.st_nlink > 1
            && let Some(other) = self.links.get(&identity).cloned()
            && self.link(&other, parent, temporary, old).is_ok()
        {
            return Ok(());
        }
        match kind {
            Type::File
                if self.gives
                    && self.give(
                        (directory, name),
                        &seen,
                        &stat,
                        (parent, temporary),
                        old,
                        known,
                    )? =>
            {
                return Ok(());
            }
            Type::File => self.file(directory, name, &stat, parent, temporary)?,
            Type::Directory => self.directory(upper, from, &stat, (parent, temporary, &place))?,
            Type::Link => symlinkat(readlinkat(directory, name)?.as_os_str(), parent, temporary)?,
            Type::Fifo => mkfifoat(parent, temporary, Mode::S_IRUSR | Mode::S_IWUSR)?,
            // Nobody is bound to it, and a guest can make no device.
            Type::Socket | Type::Device => return Err(Errno::EOPNOTSUPP),
        }
        if kind == Type::File && stat.st_nlink > 1 {
            self.links.insert(identity, place);
        }
        tracing::trace!(?relative, "copied");
        dress(directory, name, &stat, parent, temporary, old)
    }

    /// Gives a file another name, and makes it what `wanted` says. Where the layer is on the same mount nothing need be
    /// copied: the overlay loses its own name afterwards. `false`: it cannot be.
    fn give(
        &mut self,
        (directory, name): (BorrowedFd<'_>, &OsStr),
        seen: &Seen,
        wanted: &FileStat,
        (parent, temporary): (BorrowedFd<'_>, &OsStr),
        old: Option<&Old>,
        known: Option<&Attributes>,
    ) -> Result<bool, Errno> {
        let security = match seen.attributes.iter().any(|it| entry::is_security(it)) {
            true => entry::security(entry::open_path(directory, name)?.as_fd())?,
            false => Vec::new(),
        };
        if !fits(&security, (parent, known), old)?
            || linkat(directory, name, parent, temporary, AtFlags::empty()).is_err()
        {
            return Ok(false);
        }
        (self.tell)(wanted.st_size as u64);
        let identity = (wanted.st_dev, wanted.st_ino);
        let is_it = |there: &FileStat| match (there.st_dev, there.st_ino) == identity {
            true => Ok(()),
            false => Err(Errno::ESTALE),
        };
        let there = entry::look(parent, temporary)?.ok_or(Errno::ESTALE)?;
        is_it(&there)?;
        let mode = safe_mode(wanted, old.map(|it| it.mode));
        let owner = (wanted.st_uid, wanted.st_gid);
        // (Most are as they are to be.)
        if (there.st_uid, there.st_gid) == owner
            && there.st_mode == mode
            && !seen.attributes.iter().any(|it| entry::is_stripped(it))
        {
            return Ok(true);
        }
        let made = entry::open_path(parent, temporary)?;
        let there = fstat(&made)?;
        is_it(&there)?;
        entry::strip(made.as_fd())?;
        if owner != (there.st_uid, there.st_gid) {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            fchownat(&made, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
        }
        if mode != there.st_mode {
            set_mode(made.as_fd(), mode)?;
        }
        Ok(true)
    }

    fn link(
        &mut self,
        (layer, relative): &Place,
        parent: BorrowedFd<'_>,
        temporary: &OsStr,
        old: Option<&Old>,
    ) -> Result<(), Errno> {
        let root = self.roots.get(layer).ok_or(Errno::ENOENT)?;
        let above = root.open(relative.parent().unwrap_or(Path::new("")))?;
        let name = relative.file_name().ok_or(Errno::EINVAL)?;
        let own = entry::security(entry::open_path(above.as_fd(), name)?.as_fd())?;
        if !fits(&own, (parent, None), old)? {
            return Err(Errno::EXDEV);
        }
        linkat(&above, name, parent, temporary, AtFlags::empty())?;
        if let Some(stat) = entry::look(parent, temporary)? {
            self.linked.insert((stat.st_dev, stat.st_ino));
        }
        Ok(())
    }

    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
        parent: BorrowedFd<'_>,
        temporary: &OsStr,
    ) -> Result<(), Errno> {
        let from = open_upper_file(directory, name, stat, true)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let to = openat(parent, temporary, flags | OFlag::O_CLOEXEC, mode)?;
        let size = stat.st_size as u64;
        ftruncate(&to, size as i64)?;
        copy_content(from.as_fd(), (to.as_fd(), 0), size, self.tell)
    }

    fn directory(
        &mut self,
        upper: &mut Upper,
        (directory, name, relative): (BorrowedFd<'_>, &OsStr, &Path),
        stat: &FileStat,
        (parent, temporary, (layer, place)): (BorrowedFd<'_>, &OsStr, &Place),
    ) -> Result<(), Errno> {
        debug_assert_eq!(Type::of(stat), Type::Directory);
        mkdirat(parent, temporary, Mode::S_IRWXU)?;
        let to = entry::open_directory(parent, temporary)?;
        let from = upper.enter(directory, name)?;
        let security = entry::security(to.as_fd())?;
        for inner in entry::names(from.as_fd())? {
            let below = relative.join(&inner);
            if below.as_os_str().len() > PATH_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            let Some(seen) = Seen::of(from.as_fd(), &inner)? else { continue };
            if entry::is_whiteout(from.as_fd(), &inner, &seen.stat)?
                || matches!(Type::of(&seen.stat), Type::Socket | Type::Device)
                || is_left_out(&seen.belief, &seen.stat)
                || !(self.wanted)(*layer, &below)
            {
                continue;
            }
            let place = (*layer, place.join(&inner));
            let (from, to) = ((from.as_fd(), &*inner, &*below), (to.as_fd(), &*inner, place));
            self.copy(upper, seen, from, to, None, Some(&security))?;
        }
        Ok(())
    }
}

/// It is no file of the host's but in belief.
fn is_left_out(belief: &Belief, stat: &FileStat) -> bool {
    belief.hollow || belief.device_of(stat.st_mode).is_some()
}

/// Gives a copy what it has besides content.
fn dress(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    parent: BorrowedFd<'_>,
    temporary: &OsStr,
    old: Option<&Old>,
) -> Result<(), Errno> {
    let to = entry::open_path(parent, temporary)?;
    let made = fstat(&to)?;
    // Others may be able to change the names in this directory: only what was made here is dressed.
    let own = made.st_uid == nix::unistd::geteuid().as_raw()
        && Type::of(&made) == Type::of(stat)
        && (Type::of(stat) == Type::Directory || made.st_nlink == 1);
    if !own {
        return Err(Errno::ESTALE);
    }
    if (stat.st_uid, stat.st_gid) != (made.st_uid, made.st_gid) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(&to, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    }
    if Type::of(stat) != Type::Link {
        let from = entry::open_path(directory, name)?;
        let security = old.map_or(&[][..], |it| &it.security);
        let wanted = entry::safe_attributes(from.as_fd(), security)?;
        entry::set_attributes(to.as_fd(), &wanted)?;
        set_mode(to.as_fd(), safe_mode(stat, old.map(|it| it.mode)))?;
    }
    set_times(parent, temporary, stat)
}

/// The mode that a copy gets. A set-id bit counts on what had one already: no guest can make one, so it would
/// be somebody else's doing.
pub(super) fn safe_mode(stat: &FileStat, old: Option<u32>) -> u32 {
    match Type::of(stat) {
        Type::Directory => stat.st_mode,
        _ => stat.st_mode & !(SET_ID & !old.unwrap_or(0)),
    }
}

/// Gives something the owner that `stat` has, where it is another.
pub(super) fn own(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    there: &FileStat,
) -> Result<(), Errno> {
    if (stat.st_uid, stat.st_gid) == (there.st_uid, there.st_gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Gives something the times that `stat` has.
pub(super) fn set_times(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
) -> Result<(), Errno> {
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(parent, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
}

/// The name of a copy that is not in its place yet. `token` is new for each commit, so that no guest can
/// have made such a name.
pub(super) fn temporary(token: u64, number: usize) -> OsString {
    OsString::from(format!(".sandbox-commit-{token:016x}.{number}"))
}

/// Whether a name is one of those.
pub(super) fn is_temporary(name: &OsStr) -> bool {
    let parts =
        name.to_str().and_then(|name| name.strip_prefix(".sandbox-commit-")?.split_once('.'));
    parts.is_some_and(|(token, number)| {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let all_digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        token.len() == 16 && token.bytes().all(is_hex) && all_digits
    })
}
