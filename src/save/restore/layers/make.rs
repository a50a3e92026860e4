//! The entries of one layer, made by the sentry.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, ftruncate, linkat, mkfifoat, symlinkat};

use super::damaged;
use crate::config::{IdRange, Identity};
use crate::save::capture::layers::{MARKS, is_carried};
use crate::save::error::RestoreError;
use crate::save::state::{Tree, TreeEntry, TreeKind};
use crate::sys::id_map::{Whose, translate_list};
use crate::sys::{beneath, errno_of, files};

/// Bytes of a mark of overlayfs's at most: each is a letter or two.
const MARK: usize = 16;

/// What the guest's ids are outside.
#[derive(Debug, Clone)]
pub(super) struct Ids {
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

impl Ids {
    pub(super) fn of(identity: &Identity) -> Ids {
        Ids { users: identity.uid_map.clone(), groups: identity.gid_map.clone() }
    }
}

/// The id outside; none where the guest has no such one.
fn outside(map: &[IdRange], inside: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let distance = inside.checked_sub(range.inside).filter(|it| *it < range.count)?;
        range.outside.checked_add(distance)
    })
}

/// Makes a layer.
pub(super) struct Maker<'t> {
    tree: &'t Tree,
    root: OwnedFd,
    ids: Ids,
    /// The directory that was used last, by its path.
    parent: Option<(Vec<u8>, OwnedFd)>,
}

/// A path: the directory that it is in, and the name in that.
fn parts(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Opens a place below a root, over no link and no mount.
fn open(root: BorrowedFd<'_>, path: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    beneath::open(root, &path, flags | libc::O_NOFOLLOW)
}

fn times(entry: &TreeEntry) -> [TimeSpec; 2] {
    entry
        .times
        .map(|time| TimeSpec::new(time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000)))
}

/// Gives a directory its times again, as far as it can be reached.
pub(super) fn settle_times(root: &OwnedFd, entry: &TreeEntry) {
    if let Ok(directory) = open(root.as_fd(), &entry.path, libc::O_PATH) {
        let [accessed, modified] = times(entry);
        let path = files::descriptor_path(directory.as_fd());
        let here = nix::fcntl::AT_FDCWD;
        let _ = utimensat(here, &*path, &accessed, &modified, UtimensatFlags::FollowSymlink);
    }
}

impl<'t> Maker<'t> {
    /// `root`: an empty directory.
    pub(super) fn new(tree: &'t Tree, root: OwnedFd, ids: Ids) -> Maker<'t> {
        Maker { tree, root, ids, parent: None }
    }

    pub(super) fn into_root(self) -> OwnedFd {
        self.root
    }

    pub(super) fn failed(
        &self,
        what: &str,
        index: usize,
        why: impl std::fmt::Display,
    ) -> RestoreError {
        let path = self.tree.entries.get(index).map_or(&[][..], |entry| &entry.path);
        let place = Path::new(OsStr::from_bytes(&self.tree.target)).join(OsStr::from_bytes(path));
        RestoreError::failed(format!("cannot {what} {} in its overlay", place.display()), why)
    }

    /// Bytes of a file.
    pub(super) fn size(&self, index: usize) -> u64 {
        match self.tree.entries.get(index).map(|entry| &entry.kind) {
            Some(TreeKind::File { size, .. }) => *size,
            _ => 0,
        }
    }

    /// Opens a file for its content.
    pub(super) fn open_content(&mut self, index: usize) -> Result<File, RestoreError> {
        let path = &self.tree.entries[index].path;
        let opened = open(self.root.as_fd(), path, libc::O_WRONLY | libc::O_NONBLOCK);
        opened.map(File::from).map_err(|errno| self.failed("write", index, errno.desc()))
    }

    /// The directory that an entry is in.
    fn parent(&mut self, path: &[u8]) -> Result<&OwnedFd, Errno> {
        let (above, _) = parts(path);
        if self.parent.as_ref().is_none_or(|(known, _)| known != above) {
            let opened = open(self.root.as_fd(), above, libc::O_PATH | libc::O_DIRECTORY)?;
            self.parent = Some((above.to_vec(), opened));
        }
        self.parent.as_ref().map(|(_, opened)| opened).ok_or(Errno::ENOENT)
    }

    /// Makes all entries, with modes that let content in.
    pub(super) fn make(&mut self) -> Result<(), RestoreError> {
        for (index, entry) in self.tree.entries.iter().enumerate() {
            check_attributes(entry)?;
            if index > 0 {
                self.make_entry(entry).map_err(|errno| self.failed("make", index, errno.desc()))?;
            }
        }
        Ok(())
    }

    fn make_entry(&mut self, entry: &TreeEntry) -> Result<(), Errno> {
        let name = OsStr::from_bytes(parts(&entry.path).1);
        let own = Mode::S_IRUSR | Mode::S_IWUSR;
        if let TreeKind::Link(first) = &entry.kind {
            let (above, first) = parts(first);
            let from = open(self.root.as_fd(), above, libc::O_PATH | libc::O_DIRECTORY)?;
            let parent = self.parent(&entry.path)?;
            return linkat(&from, OsStr::from_bytes(first), parent, name, AtFlags::empty());
        }
        let parent = self.parent(&entry.path)?;
        match &entry.kind {
            TreeKind::Directory => {
                mkdirat(parent, name, Mode::S_IRWXU)?;
                // Whatever the umask is.
                fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)
            }
            TreeKind::File { size, .. } => make_file(parent, name, &[], *size),
            TreeKind::Small { content, size } => make_file(parent, name, content, *size),
            TreeKind::Symlink(target) => symlinkat(OsStr::from_bytes(target), parent, name),
            TreeKind::Fifo => mkfifoat(parent, name, own),
            // It may belong to a process that binds it anew (`sockets::names`).
            TreeKind::Socket => mknodat(parent, name, SFlag::S_IFSOCK, own, 0),
            // The one device that needs no right (vfs_mknod in fs/namei.c): no other is ever made.
            TreeKind::Whiteout => mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0),
            TreeKind::Link(_) => Ok(()),
        }
    }

    /// Gives everything its owner, attributes, mode and times: what is in a directory before the directory,
    /// which may let nobody in afterwards.
    pub(super) fn dress(&mut self) -> Result<(), RestoreError> {
        for (index, entry) in self.tree.entries.iter().enumerate().rev() {
            if matches!(entry.kind, TreeKind::Link(_) | TreeKind::Whiteout) {
                continue;
            }
            self.dress_entry(entry, index)?;
        }
        self.parent = None;
        Ok(())
    }

    fn dress_entry(&mut self, entry: &TreeEntry, index: usize) -> Result<(), RestoreError> {
        let failed =
            |maker: &Self, what: &str, errno: Errno| maker.failed(what, index, errno.desc());
        let place = match index {
            0 => open(self.root.as_fd(), b"", libc::O_PATH),
            _ => {
                let name = parts(&entry.path).1.to_vec();
                self.parent(&entry.path)
                    .and_then(|parent| open(parent.as_fd(), &name, libc::O_PATH))
            }
        };
        let place = place.map_err(|errno| failed(self, "open", errno))?;
        self.own(&place, entry).map_err(|errno| failed(self, "give an owner to", errno))?;
        let path = files::descriptor_path(place.as_fd());
        for (name, value) in &entry.attributes {
            let mut value = value.to_vec();
            if name.starts_with(b"system.posix_acl_") {
                self.translate(&mut value);
            }
            let done = CString::new(name.to_vec())
                .map_err(|_| Errno::EINVAL)
                .and_then(|name| beneath::set_attribute(&path, &name, &value));
            done.map_err(|errno| {
                let what = format!("set the attribute {} of", String::from_utf8_lossy(name));
                failed(self, &what, errno)
            })?;
        }
        let is_link = matches!(entry.kind, TreeKind::Symlink(_));
        if !is_link {
            let mode = Mode::from_bits_truncate(entry.mode & 0o7777);
            let here = nix::fcntl::AT_FDCWD;
            fchmodat(here, &*path, mode, FchmodatFlags::FollowSymlink)
                .map_err(|errno| failed(self, "set the mode of", errno))?;
        }
        let [accessed, modified] = times(entry);
        let done = match index {
            0 => {
                let here = nix::fcntl::AT_FDCWD;
                utimensat(here, &*path, &accessed, &modified, UtimensatFlags::FollowSymlink)
            }
            _ => {
                let name = OsStr::from_bytes(parts(&entry.path).1);
                self.parent(&entry.path).and_then(|parent| {
                    utimensat(parent, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
                })
            }
        };
        done.map_err(|errno| failed(self, "set the times of", errno))
    }

    /// Whom the guest takes for the owner, it is outside; where there is no such one, it stays the caller's.
    fn own(&self, place: &OwnedFd, entry: &TreeEntry) -> Result<(), Errno> {
        let found = fstat(place)?;
        let user = outside(&self.ids.users, entry.uid).filter(|it| *it != found.st_uid);
        let group = outside(&self.ids.groups, entry.gid).filter(|it| *it != found.st_gid);
        if user.is_none() && group.is_none() {
            return Ok(());
        }
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        fchownat(place, c"", user, group, AtFlags::AT_EMPTY_PATH)
    }

    /// Gives an access control list ids of the outside; all ones, which the kernel refuses, where there is none.
    fn translate(&self, list: &mut [u8]) {
        translate_list(list, |whose, id| {
            let map = match whose {
                Whose::User => &self.ids.users,
                Whose::Group => &self.ids.groups,
            };
            outside(map, id).unwrap_or(u32::MAX)
        });
    }
}

fn make_file(parent: &OwnedFd, name: &OsStr, content: &[u8], size: u64) -> Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let mut file = File::from(openat(parent, name, flags | OFlag::O_CLOEXEC, mode)?);
    fchmod(&file, mode)?;
    file.write_all(content).map_err(|error| errno_of(&error))?;
    ftruncate(&file, size)
}

/// Only attributes that a layer of a run has: others would tell overlayfs to look elsewhere.
fn check_attributes(entry: &TreeEntry) -> Result<(), RestoreError> {
    let is_sound = |(name, value): &(serde_bytes::ByteBuf, serde_bytes::ByteBuf)| {
        let mark = MARKS.contains(&&name[..]);
        is_carried(name) && !name.contains(&0) && (!mark || value.len() <= MARK)
    };
    let can_have = !matches!(entry.kind, TreeKind::Symlink(_));
    match entry.attributes.iter().find(|it| !can_have || !is_sound(it)) {
        None => Ok(()),
        Some((name, _)) => Err(damaged(&format!(
            "an entry of a layer, {}, has the attribute {}, which none of a run has",
            String::from_utf8_lossy(&entry.path),
            String::from_utf8_lossy(name)
        ))),
    }
}
