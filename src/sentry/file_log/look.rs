//! Looking at files as the guests see them.
//!
//! A path is followed from the guests' root, which they all share (none may change it while files are recorded:
//! `syscalls::identity`). What procfs shows depends on who looks, so nothing is looked for there.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlink, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::Touch;
use crate::sentry::paths::{Guest, Start, owner_of};
use crate::sys::files::{descriptor_path, open_descriptor};

/// What a path leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, FIFO or socket.
    Special,
    /// Below /proc.
    Kernel,
    /// Nobody has looked.
    #[default]
    Unknown,
}

/// Something that is there.
#[derive(Debug)]
pub(super) struct There {
    /// Its own path.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Stands for it (O_PATH).
    pub file: Option<OwnedFd>,
    /// Where a symbolic link leads.
    pub target: Option<Vec<u8>>,
}

/// What has been found.
#[derive(Debug)]
pub(super) enum Found {
    /// It is there.
    There(There),
    /// Nothing has this path.
    Missing(Vec<u8>),
    /// The way there leads through a directory that this user may not look into.
    Closed(Vec<u8>),
}

/// The guests' file view. It lasts as long as this value.
#[derive(Debug)]
pub(in crate::sentry) struct View {
    root: OwnedFd,
    /// Without it the mounts would go with the last guest.
    _namespace: OwnedFd,
}

const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl View {
    /// That of a guest; `None` while it cannot be looked at.
    pub(in crate::sentry) fn of(tid: i32) -> Option<View> {
        let root = open(format!("/proc/{tid}/root").as_str(), HANDLE, Mode::empty()).ok()?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = open(format!("/proc/{tid}/ns/mnt").as_str(), flags, Mode::empty()).ok()?;
        Some(View { root, _namespace: namespace })
    }

    /// What a guest's path leads to, and the symbolic links that it passes at its end. `None`: nobody can tell from
    /// outside.
    pub(super) fn find(
        &self,
        tid: i32,
        start: Start,
        path: &[u8],
        follow: bool,
    ) -> Option<(Vec<There>, Found)> {
        /// MAXSYMLINKS of include/linux/namei.h.
        const MOST: usize = 40;
        let mut path = absolute(tid, start, path)?;
        let mut links = Vec::new();
        for _ in 0..=MOST {
            if let Some(fd) = own_descriptor(&path) {
                // Where it was opened it was told of, if it is a file.
                let stands_for = readlink(format!("/proc/{tid}/fd/{fd}").as_str()).ok()?.into_vec();
                if !stands_for.starts_with(b"/") || is_below_proc(&stands_for) {
                    let (kind, file, target) = (Kind::Kernel, None, None);
                    return Some((links, Found::There(There { path, kind, file, target })));
                }
                path = stands_for;
            }
            if is_below_proc(&path) {
                return kernels(path).map(|there| (links, Found::There(there)));
            }
            let there = match self.handle(&path, false) {
                Ok(file) => there(file)?,
                Err(Errno::ENOENT | Errno::ENOTDIR) => {
                    return Some((links, Found::Missing(self.missing(&path))));
                }
                Err(Errno::EACCES) => return Some((links, Found::Closed(self.missing(&path)))),
                Err(_) => return None,
            };
            let (Kind::Link, true, Some(target)) = (there.kind, follow, &there.target) else {
                return Some((links, Found::There(there)));
            };
            let parent = there.path.rsplitn(2, |it| *it == b'/').nth(1).unwrap_or_default();
            path = clean_if_proc(&joined(parent, target));
            links.push(there);
        }
        None
    }

    /// What has this path of its own now.
    pub(super) fn at(&self, path: &[u8]) -> Option<There> {
        if is_below_proc(path) {
            return None;
        }
        there(self.handle(path, false).ok()?)
    }

    /// What stands for a guest's file (O_PATH), or why there is none. `None`: nobody can tell from outside.
    pub(in crate::sentry) fn handle_of(
        &self,
        tid: i32,
        start: Start,
        path: &[u8],
        follow: bool,
    ) -> Option<Result<OwnedFd, Errno>> {
        let path = absolute(tid, start, path).filter(|path| !is_below_proc(path))?;
        Some(self.handle(&path, follow))
    }

    /// Opens a guest's file for reading.
    pub(super) fn open(&self, tid: i32, start: Start, path: &[u8]) -> Option<File> {
        let path = absolute(tid, start, path).filter(|path| !is_below_proc(path))?;
        let there = there(self.handle(&path, true).ok()?)?;
        there.file.filter(|_| there.kind == Kind::File).and_then(|file| reopen(&file))
    }

    /// The program that a process runs.
    pub(super) fn program(&self, pid: i32) -> Option<Vec<u8>> {
        readlink(format!("/proc/{pid}/exe").as_str()).ok().map(OsStringExt::into_vec)
    }

    fn handle(&self, path: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
        let flags = if follow { HANDLE } else { HANDLE | OFlag::O_NOFOLLOW };
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        // With `..` in a path that may not leave a tree, whatever is renamed meanwhile makes it fail (openat2(2)).
        const ATTEMPTS: usize = 100;
        for _ in 1..ATTEMPTS {
            match openat2(self.root.as_fd(), OsStr::from_bytes(path), how) {
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                done => return done,
            }
        }
        openat2(self.root.as_fd(), OsStr::from_bytes(path), how)
    }

    /// The path of what cannot be found: that of its directory, if there is one, is its own.
    fn missing(&self, path: &[u8]) -> Vec<u8> {
        let path = clean(path);
        let mut parts = path.rsplitn(2, |it| *it == b'/');
        let (Some(name), Some(parent)) = (parts.next(), parts.next()) else { return path };
        let parent = if parent.is_empty() { b"/" } else { parent };
        match self.handle(parent, true).ok().and_then(there) {
            Some(there) => joined(&there.path, name),
            None => path,
        }
    }
}

/// Opens what a handle stands for, for reading: nobody waits for the other end of a FIFO there.
pub(super) fn reopen(handle: &OwnedFd) -> Option<File> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    open_descriptor(handle.as_fd(), flags).ok().map(File::from)
}

/// The descriptor of the looking process itself that a path stands for.
pub(in crate::sentry) fn own_descriptor(path: &[u8]) -> Option<i32> {
    const PLACES: [&[u8]; 3] = [b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/"];
    let number = PLACES.iter().find_map(|place| path.strip_prefix(*place))?;
    std::str::from_utf8(number).ok()?.parse().ok().filter(|fd| *fd >= 0)
}

/// Device and number of a file.
pub(super) fn identity(file: &OwnedFd) -> Option<(u64, u64)> {
    fstat(file.as_fd()).ok().map(|it| (it.st_dev, it.st_ino))
}

/// Whether a guest thread may read a file, as far as its permission bits tell, where the sentry may read all. (Access
/// control lists can allow more: then the file has no hash.)
pub(super) fn may_read(tid: i32, file: &OwnedFd) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return true;
    }
    let Ok(stat) = fstat(file.as_fd()) else { return false };
    let bit = match owner_of(Guest { tid, is_valid: &|| true }) {
        Ok(reader) if reader.uid == stat.st_uid => libc::S_IRUSR,
        Ok(reader) if reader.gid == stat.st_gid || reader.groups.contains(&stat.st_gid) => {
            libc::S_IRGRP
        }
        _ => libc::S_IROTH,
    };
    stat.st_mode & bit != 0
}

/// A file that the kernel makes up. What descriptors and links of a process stand for is told by no path.
fn kernels(path: Vec<u8>) -> Option<There> {
    const LINKS: [&[u8]; 6] = [b"fd", b"cwd", b"root", b"exe", b"map_files", b"fdinfo"];
    let mut parts = path.split(|it| *it == b'/').skip(2);
    let of_process = parts.next().is_some_and(|it| {
        it == b"self" || it == b"thread-self" || it.iter().all(u8::is_ascii_digit) && !it.is_empty()
    });
    if of_process && parts.any(|it| LINKS.contains(&it)) {
        return None;
    }
    Some(There { path, kind: Kind::Kernel, file: None, target: None })
}

fn there(file: OwnedFd) -> Option<There> {
    let format = SFlag::from_bits_truncate(fstat(file.as_fd()).ok()?.st_mode) & SFlag::S_IFMT;
    // By whatever path: such files have no end, or do something when they are opened.
    if is_made_up(&file) {
        return kernels(name_of(&file)?);
    }
    let kind = match format {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Directory,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Special,
    };
    let target = match kind {
        // An empty path stands for the descriptor (readlinkat(2)).
        Kind::Link => readlinkat(file.as_fd(), c"").ok().map(OsStringExt::into_vec),
        _ => None,
    };
    Some(There { path: name_of(&file)?, kind, file: Some(file), target })
}

fn name_of(file: &OwnedFd) -> Option<Vec<u8>> {
    readlink(&*descriptor_path(file.as_fd())).ok().map(OsStringExt::into_vec)
}

/// Whether it lies in procfs, sysfs or their like.
fn is_made_up(file: &OwnedFd) -> bool {
    use nix::sys::statfs::{
        CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC,
        fstatfs,
    };
    const ALL: [FsType; 5] =
        [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC];
    fstatfs(file).is_ok_and(|it| ALL.contains(&it.filesystem_type()))
}

fn absolute(tid: i32, start: Start, path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return Some(clean_if_proc(path));
    }
    let start = match start {
        Start::Directory => format!("/proc/{tid}/cwd"),
        Start::Descriptor(fd) => format!("/proc/{tid}/fd/{fd}"),
    };
    let start = readlink(start.as_str()).ok()?.into_vec();
    if !start.starts_with(b"/") || start.ends_with(b" (deleted)") {
        return None;
    }
    Some(clean_if_proc(&joined(&start, path)))
}

/// Where no link is followed, `.` and `..` are what they look like.
fn clean_if_proc(path: &[u8]) -> Vec<u8> {
    let cleaned = clean(path);
    if is_below_proc(&cleaned) { cleaned } else { path.to_vec() }
}

fn is_below_proc(path: &[u8]) -> bool {
    path == b"/proc" || path.starts_with(b"/proc/")
}

fn joined(directory: &[u8], path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let mut all = directory.to_vec();
    if !all.ends_with(b"/") {
        all.push(b'/');
    }
    all.extend_from_slice(path);
    all
}

/// Without empty parts, `.` and `..`.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|it| *it == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut all = Vec::with_capacity(path.len());
    for part in &parts {
        all.push(b'/');
        all.extend_from_slice(part);
    }
    if parts.is_empty() { b"/".to_vec() } else { all }
}

/// What opening with these flags does (open(2)).
pub fn touch_of_open(flags: i32) -> (Touch, bool, bool) {
    let creates = flags & libc::O_CREAT != 0;
    let follow = flags & libc::O_NOFOLLOW == 0 && !(creates && flags & libc::O_EXCL != 0);
    if flags & libc::O_PATH != 0 {
        return (Touch::INSPECTED, follow, false);
    }
    // A file without a name is made in a directory.
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return (Touch::INSPECTED, follow, false);
    }
    let writes = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Touch::READ,
        libc::O_WRONLY => Touch::WRITTEN,
        _ if flags & libc::O_TRUNC != 0 => Touch::WRITTEN,
        _ => Touch::READ | Touch::WRITTEN,
    };
    let truncates = if flags & libc::O_TRUNC != 0 { Touch::WRITTEN } else { Touch::empty() };
    (writes | truncates, follow, creates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_they_read() {
        for (path, expected) in [
            ("/", "/"),
            ("//a/./b//c", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("/..", "/"),
            ("/proc/../etc", "/etc"),
        ] {
            assert_eq!(clean(path.as_bytes()), expected.as_bytes(), "{path}");
        }
        assert_eq!(joined(b"/", b"a"), b"/a");
        assert_eq!(joined(b"/a", b"/b"), b"/b");
        assert!(is_below_proc(b"/proc/1/stat") && !is_below_proc(b"/process"));
    }

    #[test]
    fn what_an_open_does_is_told_by_its_flags() {
        let of = |flags| touch_of_open(flags);
        assert_eq!(of(libc::O_RDONLY), (Touch::READ, true, false));
        assert_eq!(of(libc::O_RDWR), (Touch::READ | Touch::WRITTEN, true, false));
        assert_eq!(of(libc::O_RDWR | libc::O_TRUNC | libc::O_CREAT), (Touch::WRITTEN, true, true));
        let new = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        assert_eq!(of(new), (Touch::WRITTEN, false, true));
        assert_eq!(of(libc::O_PATH | libc::O_NOFOLLOW), (Touch::INSPECTED, false, false));
        assert_eq!(of(libc::O_TMPFILE | libc::O_RDWR), (Touch::INSPECTED, true, false));
    }
}
