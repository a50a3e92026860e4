//! Descriptions of files: by name, or with their content where they have none.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;
use nix::sys::statfs::statfs;
use serde_bytes::ByteBuf;

use super::{Capture, Found, Holder};
use crate::save::capture::collector::Content;
use crate::save::error::SaveError;
use crate::save::state::FileKind;

/// include/uapi/linux/magic.h, ipc/mqueue.c
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const MQUEUE_MAGIC: i64 = 0x1980_0202;

/// What the kernel appends to the name of a file that was removed (prepend_path in fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

/// Character devices that can be opened again and are the same then.
const DEVICES: &[(u32, u32)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];
const TTY: (u32, u32) = (5, 0);
const PTMX: (u32, u32) = (5, 2);
/// Slaves of pseudo-terminals (Documentation/admin-guide/devices.txt).
const PTS: std::ops::RangeInclusive<u32> = 136..=143;

impl Holder {
    /// A path of the guest's view, not followed anywhere.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<OwnedFd, nix::errno::Errno> {
        resolve(self.root.as_fd(), path)
    }

    /// Whether a path of the guest's view leads to this inode. What the caller may not see is taken on
    /// trust; who restores looks again.
    pub(super) fn leads_to(&self, path: &[u8], inode: (u64, u64)) -> bool {
        match self.resolve(path).map(fstat) {
            Ok(Ok(stat)) => (stat.st_dev, stat.st_ino) == inode,
            Err(nix::errno::Errno::EACCES) => true,
            _ => false,
        }
    }
}

/// A path below a root, not followed anywhere.
pub(super) fn resolve(
    root: std::os::fd::BorrowedFd<'_>,
    path: &[u8],
) -> Result<OwnedFd, nix::errno::Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

impl Capture<'_, '_> {
    pub(super) fn on_file_system(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        let kind = found.stat.mode() & libc::S_IFMT;
        if found.is_path_only() {
            return self.by_path(found, None);
        }
        let device = (libc::major(found.stat.rdev()), libc::minor(found.stat.rdev()));
        match kind {
            libc::S_IFREG if self.is_on(found, MQUEUE_MAGIC) => self.message_queue(found),
            libc::S_IFREG if found.link.starts_with(b"/secretmem") && found.stat.nlink() == 0 => {
                Err(self.holder.refused(found.fd, "secret memory (memfd_secret)"))
            }
            libc::S_IFREG if found.link.starts_with(b"/memfd:") && found.stat.nlink() == 0 => {
                self.memory(found)
            }
            libc::S_IFREG | libc::S_IFDIR => self.by_path(found, None),
            libc::S_IFIFO => {
                if !self.holder.leads_to(&found.link, found.inode()) {
                    // Nobody finds it any more: it is as good as a pipe.
                    return self.pipe(found, false, None).map(FileKind::Pipe);
                }
                let pipe = self.pipe(found, true, None)?;
                self.by_path(found, Some(pipe))
            }
            libc::S_IFCHR if self.streams.terminal == Some(found.inode()) => {
                Ok(FileKind::OwnTerminal)
            }
            libc::S_IFCHR if device == TTY || device == PTMX => self.terminal(found),
            libc::S_IFCHR if PTS.contains(&device.0) => self.terminal(found),
            libc::S_IFCHR if DEVICES.contains(&device) => self.by_path(found, None),
            _ => {
                let what = format!("the device {}", String::from_utf8_lossy(&found.link));
                Err(self.holder.refused(found.fd, &what))
            }
        }
    }

    fn is_on(&self, found: &Found, magic: i64) -> bool {
        let path = self.holder.path("fd", found.fd);
        statfs(path.as_str()).is_ok_and(|it| it.filesystem_type().0 == magic)
    }

    fn by_path(&mut self, found: &Found, fifo: Option<u32>) -> Result<FileKind, SaveError> {
        let is_changed = found.access()[1];
        if is_changed && self.collector.known.changed_files.contains(&found.inode()) {
            let shown = String::from_utf8_lossy(&found.link);
            let what = format!("{shown}, which was opened by an answer to --ask");
            return Err(self.holder.refused(found.fd, &what));
        }
        let whole = found.link.as_slice();
        let name = whole.strip_suffix(DELETED);
        // A file may really be called so.
        for path in [Some(whole), name].into_iter().flatten() {
            if self.holder.leads_to(path, found.inode()) {
                self.remember_directory(found, path);
                let path = ByteBuf::from(path);
                return Ok(FileKind::Path { path, identity: found.identity(), fifo });
            }
        }
        self.without_name(found, name.unwrap_or(whole))
    }

    /// Where inotify's watched files are looked for first.
    fn remember_directory(&mut self, found: &Found, path: &[u8]) {
        let directories = &mut self.collector.known.directories;
        if found.stat.is_dir() && directories.iter().all(|it| it != path) {
            directories.push(path.to_vec());
        }
    }

    fn without_name(&mut self, found: &Found, path: &[u8]) -> Result<FileKind, SaveError> {
        let shown = String::from_utf8_lossy(path).into_owned();
        if self.is_on(found, PROC_SUPER_MAGIC) {
            let what = format!("{shown}, which is gone with its process");
            return Err(self.holder.refused(found.fd, &what));
        }
        let directory = found.stat.is_dir();
        if !directory && !found.stat.is_file() {
            let what = format!("{shown}, which has been removed");
            return Err(self.holder.refused(found.fd, &what));
        }
        if !directory && found.stat.nlink() > 0 {
            self.collector.notes.push(format!(
                "{} has {shown} open, which has lost that name and kept another: \
                 the image carries a copy of it, and what is written to that does not reach the other name",
                self.holder.name
            ));
        }
        let (file, object) = self.content(found, directory)?;
        let unnamed = found.info.flags as i32 & libc::O_TMPFILE == libc::O_TMPFILE
            || path.ends_with(format!("/#{}", found.stat.ino()).as_bytes());
        let (path, identity) = (ByteBuf::from(path), found.identity());
        Ok(FileKind::Deleted { path, file, object, identity, unnamed, directory })
    }

    /// The number and the object of a file without a name, which all descriptions of it share.
    fn content(&mut self, found: &Found, directory: bool) -> Result<(u32, u32), SaveError> {
        if let Some(known) = self.collector.known.deleted.get(&found.inode()) {
            return Ok(*known);
        }
        let number = self.collector.known.deleted.len() as u32;
        let object = if directory {
            0
        } else {
            let file = self.holder.reopen(found.fd, OFlag::O_RDONLY)?.into();
            let object = self.collector.object();
            let size = found.stat.size();
            self.collector.contents.push(Content::File { object, file, size });
            object
        };
        self.collector.known.deleted.insert(found.inode(), (number, object));
        Ok((number, object))
    }
}
