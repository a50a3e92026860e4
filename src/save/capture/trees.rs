//! Content of the file systems in memory that a sandbox has for itself: /tmp, /dev/shm and the like.
//!
//! The sentry reads them itself, through /proc/PID/root of a stopped guest: all that could rename
//! something is stopped, and no name leads out of a mount or over a symbolic link
//! ([`crate::sys::beneath`]). What is mounted below (the working directory, say) is not gone into.
//!
//! What is in the layers of overlays is read by the same walk ([`super::layers`]).
//!
//! Not carried: times of change of status and of birth, which nobody can set, and inode flags
//! (chattr(1)). A file that its owner may not read is made readable for a moment, which only its time
//! of change of status tells.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat, fstatat};
use serde_bytes::ByteBuf;

use crate::save::capture::collector::{Collector, Content};
use crate::save::capture::layers;
use crate::save::error::SaveError;
use crate::save::state::{Tree, TreeEntry, TreeKind};
use crate::sys::beneath;
use crate::sys::errno_of;
use crate::sys::id_map::{IdMap, Whose, translate_list};

/// Content up to this size lies beside its entry: an object begins on a page of its own.
const SMALL: u64 = 16 << 10;
/// So much of it in all, of layers: the state takes 1 GiB, and a run can change more files than that.
const INLINE: u64 = 64 << 20;
/// Longest path in an entry: PATH_MAX with what leads to the tree.
const LONGEST: usize = 4095;

/// Captures what is below each of `targets`, mounts of file systems in memory in the view of the stopped
/// guest `pid` (as the host numbers it).
pub fn capture(
    pid: i32,
    targets: &[PathBuf],
    collector: &mut Collector,
) -> Result<Vec<Tree>, SaveError> {
    let ids = Ids::of(pid)?;
    let view = PathBuf::from(collector.known.view_of(pid));
    let capture_one = |target: &PathBuf| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = view.join(target.strip_prefix("/").unwrap_or(target));
        let root = open(&path, flags, Mode::empty()).map_err(|errno| {
            SaveError::failed(format!("cannot open {} of the sandbox", target.display()), errno)
        })?;
        walk(root, target, &ids, collector, Of::Memory)
    };
    targets.iter().map(capture_one).collect()
}

/// What is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::save) enum Of {
    /// A file system in memory.
    Memory,
    /// The layer of an overlay.
    Layer,
}

/// What a guest calls users and groups.
pub(in crate::save) struct Ids {
    users: IdMap,
    groups: IdMap,
}

impl Ids {
    /// Those of a process's user namespace.
    pub(in crate::save) fn of(pid: i32) -> Result<Ids, SaveError> {
        let failed = |map| move |error| SaveError::failed(format!("/proc/{pid}/{map}"), error);
        let users = IdMap::of_users(pid).map_err(failed("uid_map"))?;
        let groups = IdMap::of_groups(pid).map_err(failed("gid_map"))?;
        Ok(Ids { users, groups })
    }

    /// A user by the supervisor's number; all ones: the guest has no word for it.
    pub(super) fn user(&self, outside: u32) -> u32 {
        self.users.inside(outside).unwrap_or(u32::MAX)
    }

    /// A group, likewise.
    pub(super) fn group(&self, outside: u32) -> u32 {
        self.groups.inside(outside).unwrap_or(u32::MAX)
    }
}

/// A walk through one tree.
struct Walk<'w> {
    target: &'w Path,
    ids: &'w Ids,
    collector: &'w mut Collector,
    of: Of,
    root: Arc<OwnedFd>,
    entries: Vec<TreeEntry>,
    /// Directories that are still to be gone into; whether one above was opened up for it.
    pending: Vec<(Vec<u8>, bool)>,
    /// Where files are that have several names.
    names: HashMap<(u64, u64), usize>,
    /// Directories that were opened up, with their former modes.
    opened_up: Vec<(OwnedFd, Mode)>,
}

/// Captures what is below `root`.
pub(in crate::save) fn walk(
    root: OwnedFd,
    target: &Path,
    ids: &Ids,
    collector: &mut Collector,
    of: Of,
) -> Result<Tree, SaveError> {
    let mut walk = Walk {
        target,
        ids,
        collector,
        of,
        root: Arc::new(root),
        entries: Vec::new(),
        pending: vec![(Vec::new(), false)],
        names: HashMap::new(),
        opened_up: Vec::new(),
    };
    let done = walk.run();
    // The last first: above it others may still be open.
    let mut put_back = Ok(());
    while let Some((directory, mode)) = walk.opened_up.pop() {
        let changed = change_mode(&directory, mode)
            .map_err(|errno| walk.failed("put back the mode of a directory in", b"", errno));
        put_back = put_back.and(changed);
    }
    done.and(put_back)?;
    let target = ByteBuf::from(target.as_os_str().as_bytes());
    Ok(Tree { target, entries: walk.entries })
}

impl Walk<'_> {
    fn failed(&self, what: &str, path: &[u8], errno: Errno) -> SaveError {
        let place = self.place(path);
        SaveError::failed(format!("cannot {what} {} of the sandbox", place.display()), errno.desc())
    }

    fn refused(&self, path: &[u8], why: &str) -> SaveError {
        SaveError::refused(format!("{} of the sandbox {why}", self.place(path).display()))
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.target.join(Path::new(std::ffi::OsStr::from_bytes(path)))
    }

    fn run(&mut self) -> Result<(), SaveError> {
        let status =
            fstat(self.root.as_fd()).map_err(|errno| self.failed("look at", b"", errno))?;
        let root = self.root.clone();
        let entry = self.entry(&root, Vec::new(), &status, TreeKind::Directory)?;
        self.entries.push(entry);
        while let Some((path, opened_up)) = self.pending.pop() {
            self.directory(&path, opened_up)?;
        }
        Ok(())
    }

    /// Opens below the root; `path` may be empty.
    fn open(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
        beneath::open(self.root.as_fd(), &path, flags.bits())
    }

    fn directory(&mut self, path: &[u8], opened_up: bool) -> Result<(), SaveError> {
        let (directory, opened_up) = self.open_directory(path, opened_up)?;
        let mut listing = Dir::from_fd(directory).map_err(|it| self.failed("list", path, it))?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(|errno| self.failed("list", path, errno))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        for name in names {
            let below = match path {
                [] => name.to_bytes().to_vec(),
                path => [path, b"/", name.to_bytes()].concat(),
            };
            if self.target.as_os_str().len() + 1 + below.len() > LONGEST {
                return Err(self.refused(&below, "has a path that is too long to be made again"));
            }
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
            match beneath::open(listing.as_fd(), &name, flags.bits()) {
                Ok(found) => self.found(&found, below, opened_up)?,
                // Something is mounted there, which is not part of this file system.
                Err(Errno::EXDEV) => {}
                Err(errno) => return Err(self.failed("open", &below, errno)),
            }
        }
        Ok(())
    }

    /// Opens a directory for listing; one that its owner may not list or search is opened up.
    fn open_directory(&mut self, path: &[u8], above: bool) -> Result<(OwnedFd, bool), SaveError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let open = |walk: &Self| {
            walk.open(path, flags | OFlag::O_NOATIME).or_else(|errno| match errno {
                Errno::EPERM => walk.open(path, flags),
                errno => Err(errno),
            })
        };
        let searched = |directory: OwnedFd| match fstatat(&directory, c".", AtFlags::empty()) {
            Err(Errno::EACCES) => Err(Errno::EACCES),
            _ => Ok(directory),
        };
        match open(self).and_then(searched) {
            Ok(directory) => return Ok((directory, above)),
            Err(Errno::EACCES) => {}
            Err(errno) => return Err(self.failed("open", path, errno)),
        }
        let bare = self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW);
        let opened = bare.and_then(|bare| {
            let mode = permissions(&fstat(bare.as_fd())?);
            change_mode(&bare, mode | Mode::S_IRWXU)?;
            self.opened_up.push((bare, mode));
            open(self)
        });
        opened.map(|it| (it, true)).map_err(|errno| self.failed("open", path, errno))
    }

    /// One file of whatever kind; `file` is only a handle of it.
    fn found(&mut self, file: &OwnedFd, path: Vec<u8>, opened_up: bool) -> Result<(), SaveError> {
        let status = fstat(file).map_err(|errno| self.failed("look at", &path, errno))?;
        let format = status.st_mode & libc::S_IFMT;
        // (Overlayfs makes one whiteout, and links to it.)
        let several = status.st_nlink > 1 && !matches!(format, libc::S_IFDIR | libc::S_IFCHR);
        let identity = (status.st_dev, status.st_ino);
        if format == libc::S_IFREG && self.of == Of::Layer {
            let place = self.place(&path).into_os_string().into_vec();
            self.collector.known.in_layers.insert(place);
        }
        if let Some(first) = self.names.get(&identity).filter(|_| several) {
            let kind = TreeKind::Link(self.entries[*first].path.clone());
            let path = ByteBuf::from(path);
            let first = TreeEntry { path, kind, ..self.entries[*first].clone() };
            self.entries.push(first);
            return Ok(());
        }
        let kind = match format {
            libc::S_IFDIR => TreeKind::Directory,
            libc::S_IFREG => self.content(file, &path, &status, opened_up)?,
            libc::S_IFLNK => {
                let target = readlinkat(file, c"");
                let target = target.map_err(|errno| self.failed("read", &path, errno))?;
                TreeKind::Symlink(ByteBuf::from(target.as_bytes()))
            }
            libc::S_IFIFO => TreeKind::Fifo,
            libc::S_IFSOCK => TreeKind::Socket,
            libc::S_IFCHR if status.st_rdev == 0 => TreeKind::Whiteout,
            _ => return Err(self.refused(&path, "is a device, which cannot be saved; remove it")),
        };
        if kind == TreeKind::Directory {
            self.pending.push((path.clone(), opened_up));
        }
        let entry = self.entry(file, path, &status, kind)?;
        if several {
            self.names.insert(identity, self.entries.len());
        }
        self.entries.push(entry);
        Ok(())
    }

    fn entry(
        &self,
        file: &OwnedFd,
        path: Vec<u8>,
        status: &FileStat,
        kind: TreeKind,
    ) -> Result<TreeEntry, SaveError> {
        let attributes = match kind {
            // It can have none that a guest could set (xattr(7)).
            TreeKind::Symlink(_) => Vec::new(),
            _ => self.attributes(file).map_err(|it| self.failed("look at", &path, it))?,
        };
        let time =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Ok(TreeEntry {
            path: ByteBuf::from(path),
            mode: status.st_mode,
            uid: self.ids.user(status.st_uid),
            gid: self.ids.group(status.st_gid),
            times: [
                time(status.st_atime, status.st_atime_nsec),
                time(status.st_mtime, status.st_mtime_nsec),
            ],
            attributes,
            kind,
        })
    }

    fn content(
        &mut self,
        file: &OwnedFd,
        path: &[u8],
        status: &FileStat,
        opened_up: bool,
    ) -> Result<TreeKind, SaveError> {
        let size = status.st_size.unsigned_abs();
        // Not a block: nothing but a hole, in memory. (Elsewhere it may be yet to get one.)
        if size == 0 || self.of == Of::Memory && status.st_blocks == 0 {
            return Ok(TreeKind::Small { content: ByteBuf::new(), size });
        }
        let name =
            CString::new(path).map_err(|_| self.refused(path, "has a name that cannot be"))?;
        let opened = Content::open_below(&self.root, &name);
        let secret = matches!(opened, Err(Errno::EACCES));
        let opened = opened.or_else(|errno| match errno {
            Errno::EACCES => self.open_secret(file, &name, permissions(status)),
            errno => Err(errno),
        });
        let mut opened: File = opened.map_err(|errno| self.failed("open", path, errno))?;
        // (What is opened already would take a descriptor until it is written.)
        if size <= SMALL && (secret || opened_up || self.has_room(size)) {
            let mut content = Vec::with_capacity(size as usize);
            opened.by_ref().take(size).read_to_end(&mut content).map_err(|error| {
                let errno = errno_of(&error);
                self.failed("read", path, errno)
            })?;
            return Ok(TreeKind::Small { content: ByteBuf::from(content), size });
        }
        let object = self.collector.object();
        self.collector.contents.push(if secret || opened_up {
            Content::File { object, file: opened, size }
        } else {
            let directory = self.root.clone();
            Content::Below { object, directory, path: name, size }
        });
        Ok(TreeKind::File { object, size })
    }

    /// Takes room for small content, if there is any left.
    fn has_room(&mut self, size: u64) -> bool {
        let taken = &mut self.collector.known.inline;
        let has = self.of == Of::Memory || *taken + size <= INLINE;
        if has && self.of == Of::Layer {
            *taken += size;
        }
        has
    }

    /// Opens a file that its owner may not read.
    fn open_secret(&self, file: &OwnedFd, name: &CString, mode: Mode) -> Result<File, Errno> {
        change_mode(file, mode | Mode::S_IRUSR)?;
        let opened = Content::open_below(&self.root, name);
        change_mode(file, mode)?;
        opened
    }

    /// Those that a guest can set: `user.` and access control lists. Of a layer, what the kernel has copied and
    /// marked as well.
    fn attributes(&self, file: &OwnedFd) -> Result<Vec<(ByteBuf, ByteBuf)>, Errno> {
        let path = own_path(file)?;
        let names = match beneath::attribute_names(&path) {
            // A file system in memory without them (before Linux 6.6, or not built in).
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            names => names?,
        };
        let mut found = Vec::new();
        for name in names {
            let list = name.starts_with(b"system.posix_acl_");
            let wanted = match self.of {
                Of::Layer => layers::is_carried(&name),
                Of::Memory => list || name.starts_with(b"user."),
            };
            if !wanted {
                continue;
            }
            let word = CString::new(name.clone()).map_err(|_| Errno::EINVAL)?;
            let mut value = match beneath::attribute(&path, &word) {
                // It may not be read by its owner: the mode says so for attributes as well.
                Err(Errno::EACCES) => {
                    let mode = permissions(&fstat(file)?);
                    change_mode(file, mode | Mode::S_IRUSR)?;
                    let value = beneath::attribute(&path, &word);
                    change_mode(file, mode)?;
                    value?
                }
                value => value?,
            };
            if list {
                self.translate(&mut value);
            }
            found.push((ByteBuf::from(name), ByteBuf::from(value)));
        }
        Ok(found)
    }

    /// Gives an access control list the guest's ids.
    fn translate(&self, list: &mut [u8]) {
        translate_list(list, |whose, id| match whose {
            Whose::User => self.ids.user(id),
            Whose::Group => self.ids.group(id),
        });
    }
}

fn permissions(status: &FileStat) -> Mode {
    Mode::from_bits_truncate(status.st_mode & 0o7777)
}

/// A descriptor by name: fchmod(2) and the calls of extended attributes take none that is only a
/// handle (O_PATH).
fn own_path(file: &OwnedFd) -> Result<CString, Errno> {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EINVAL)
}

fn change_mode(file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    let path = own_path(file)?;
    fchmodat(nix::fcntl::AT_FDCWD, path.as_c_str(), mode, FchmodatFlags::FollowSymlink)
}
