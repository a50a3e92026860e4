//! Finding the file that a guest's call is about, in the guest's own file view.
//!
//! What is found stands for a file (O_PATH) through the guests' mounts, so what is done to it is what the guest could
//! do. A path that shows each process something else (what procfs knows of descriptors, say) is followed as far as the
//! sentry can stand in for the guest; all else is left to the kernel, which says at least whether it is there.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlink};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::{FileBeliefs, copy_of};
use crate::sys::fdinfo::FdInfo;
use crate::sys::{files, generated};

const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Where a file is, or could be made.
#[derive(Debug)]
pub(in crate::sentry) struct Spot {
    /// The directory.
    pub(in crate::sentry) parent: OwnedFd,
    /// Its name there.
    pub(in crate::sentry) name: OsString,
}

impl Spot {
    /// What has the name now.
    pub(in crate::sentry) fn look(&self) -> Result<FileStat, Errno> {
        fstatat(&self.parent, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Stands for what has the name now.
    pub(in crate::sentry) fn handle(&self) -> Result<OwnedFd, Errno> {
        openat(&self.parent, self.name.as_os_str(), HANDLE | OFlag::O_NOFOLLOW, Mode::empty())
    }
}

/// What a descriptor of a guest stands for, O_PATH too.
pub(in crate::sentry) fn find_open(tid: i32, fd: i32) -> Option<OwnedFd> {
    handle(&place_of(tid, fd)).ok()
}

/// The path by which the sentry knows a guest's descriptor, or its working directory.
pub(in crate::sentry) fn place_of(tid: i32, fd: i32) -> String {
    match fd {
        libc::AT_FDCWD => format!("/proc/{tid}/cwd"),
        fd => format!("/proc/{tid}/fd/{fd}"),
    }
}

/// What a guest's path leads to. `None`: the kernel has to say.
pub(in crate::sentry) fn find(tid: i32, dirfd: i32, path: &[u8], follow: bool) -> Option<OwnedFd> {
    if path.is_empty() {
        return None;
    }
    // (Under another root that is some other place.)
    if let Some((base, rest)) = own_place(tid, path, follow)
        && root_path(tid)? == b"/"
    {
        let base = handle(&base).ok()?;
        return match rest {
            b"" => Some(base),
            rest => below(tid, base, rest, follow, None),
        };
    }
    if path.starts_with(b"/") {
        return in_root(&root(tid)?, path, follow).ok();
    }
    let place = place_of(tid, dirfd);
    below(tid, base_of(tid, dirfd)?, path, follow, Some(&place))
}

/// What a relative path begins at. It has to be closed before the call is answered ([`copy_of`]).
pub(in crate::sentry) fn base_of(tid: i32, dirfd: i32) -> Option<OwnedFd> {
    copy_of(tid, dirfd).or_else(|_| handle(&place_of(tid, dirfd))).ok()
}

/// The directory that a guest's path names something in, and the name. `None`: the kernel has to say.
pub(in crate::sentry) fn find_spot(tid: i32, dirfd: i32, path: &[u8]) -> Option<Spot> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (parent, name) = (&path[..start], &path[start..end]);
    if name == b"." || name == b".." {
        return None;
    }
    let parent = match (parent, dirfd) {
        (b"", dirfd) => handle(&place_of(tid, dirfd)).ok()?,
        (parent, dirfd) => find(tid, dirfd, parent, true)?,
    };
    Some(Spot { parent, name: OsString::from_vec(name.to_vec()) })
}

/// A relative path. Where an absolute link is on the way, it is followed from the guest's root, which
/// only an absolute path is sure to pass.
fn below(
    tid: i32,
    base: OwnedFd,
    path: &[u8],
    follow: bool,
    place: Option<&str>,
) -> Option<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS;
    // Its parents end at the guest's root, which is not known by the directory.
    let may_leave = path.split(|byte| *byte == b'/').any(|name| name == b"..");
    if !may_leave || root_path(tid)? == b"/" {
        match resolved(base.as_fd(), path, follow, resolve) {
            Ok(file) => return Some(file),
            Err(Errno::ELOOP) => {}
            Err(_) => return None,
        }
    }
    let own = files::descriptor_path(base.as_fd());
    let place = place.map_or_else(|| readlink(&*own), readlink).ok()?.into_vec();
    let all = [inside(&place, &root_path(tid)?)?, b"/", path].concat();
    in_root(&root(tid)?, &all, follow).ok()
}

/// A path of the file view as who has this root knows it. `None`: it is not below.
fn inside<'p>(place: &'p [u8], root: &[u8]) -> Option<&'p [u8]> {
    match root {
        b"/" => Some(place),
        root => place.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with(b"/")),
    }
}

/// Where a guest's root is in the file view.
fn root_path(tid: i32) -> Option<Vec<u8>> {
    readlink(format!("/proc/{tid}/root").as_str()).ok().map(OsString::into_vec)
}

fn in_root(root: &OwnedFd, path: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
    resolved(root.as_fd(), path, follow, ResolveFlag::RESOLVE_IN_ROOT)
}

fn resolved(
    base: BorrowedFd<'_>,
    path: &[u8],
    follow: bool,
    resolve: ResolveFlag,
) -> Result<OwnedFd, Errno> {
    let flags = if follow { HANDLE } else { HANDLE | OFlag::O_NOFOLLOW };
    let how = OpenHow::new().flags(flags).resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    /// With `..` in a path that may not leave a tree, whatever is renamed meanwhile makes it fail (openat2(2)).
    const ATTEMPTS: usize = 100;
    for _ in 1..ATTEMPTS {
        match openat2(base, OsStr::from_bytes(path), how) {
            Err(Errno::EAGAIN) => std::thread::yield_now(),
            done => return done,
        }
    }
    openat2(base, OsStr::from_bytes(path), how)
}

fn root(tid: i32) -> Option<OwnedFd> {
    handle(&format!("/proc/{tid}/root")).ok()
}

fn handle(path: &str) -> Result<OwnedFd, Errno> {
    open(path, HANDLE, Mode::empty())
}

/// What a path stands for that begins with a place in procfs of the looking process's own, and the rest of it.
fn own_place(tid: i32, path: &[u8], follow: bool) -> Option<(String, &[u8])> {
    let stream = match path {
        b"/dev/stdin" => Some(0),
        b"/dev/stdout" => Some(1),
        b"/dev/stderr" => Some(2),
        _ => None,
    };
    if let Some(fd) = stream.filter(|_| follow) {
        return Some((place_of(tid, fd), b""));
    }
    const DESCRIPTORS: [&[u8]; 3] = [b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/"];
    if let Some(rest) = DESCRIPTORS.iter().find_map(|place| path.strip_prefix(*place)) {
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let fd = std::str::from_utf8(&rest[..end]).ok()?.parse::<u16>().ok()?;
        let rest = rest[end..].strip_prefix(b"/").unwrap_or_default();
        // Looked at itself it is a link of procfs.
        return (follow || end < path.len() && !rest.is_empty())
            .then(|| (place_of(tid, fd.into()), rest));
    }
    for name in ["cwd", "root"] {
        let place = format!("/proc/self/{name}/");
        if let Some(rest) = path.strip_prefix(place.as_bytes()) {
            return Some((format!("/proc/{tid}/{name}"), rest));
        }
    }
    None
}

/// With what flags a descriptor is open, if it is (proc_pid_fdinfo(5)).
pub(in crate::sentry) fn flags_of(tid: i32, fd: i32) -> Option<i32> {
    FdInfo::of(tid, fd).map(|info| info.flags as i32)
}

impl FileBeliefs {
    /// Where a file is that has been found: its directory and its name there. `None`: it has none, or is out of sight.
    pub(in crate::sentry) fn spot_of(&self, file: BorrowedFd<'_>) -> Option<Spot> {
        let path = readlink(&*files::descriptor_path(file)).ok()?;
        let path = Path::new(&path);
        let (parent, name) = (path.parent()?, path.file_name()?);
        // A path of the whole view, whatever root this guest has chosen for itself.
        let view = self.view.get()?;
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let parent = resolved(view.as_fd(), parent.as_os_str().as_bytes(), true, resolve).ok()?;
        let spot = Spot { parent, name: name.to_owned() };
        let (there, wanted) = (spot.look().ok()?, fstat(file).ok()?);
        ((there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)).then_some(spot)
    }

    /// What has an absolute path of the whole view.
    pub(in crate::sentry) fn in_view(&self, path: &[u8]) -> Option<OwnedFd> {
        in_root(self.view.get()?, path, false).ok()
    }

    /// Whether to look at a file takes no longer than the kernel needs for it: nothing in the file view is served by
    /// another machine or by a program. (Nobody can mount anything there.)
    pub(in crate::sentry) fn is_fast(&self, tid: i32) -> bool {
        if let Some(known) = self.fast.get() {
            return *known;
        }
        // (A thread that has ended tells nothing.)
        let mounts = generated::text(format!("/proc/{tid}/mountinfo")).unwrap_or_default();
        !mounts.is_empty() && *self.fast.get_or_init(|| mounts.lines().all(is_fast))
    }

    /// Notes the root of the file view, while no guest has another one. `is_valid`: the thread is a guest still.
    pub(in crate::sentry) fn note_view(&self, tid: i32, is_valid: impl FnOnce() -> bool) {
        if self.view.get().is_some() {
            return;
        }
        // (A thread that has ended tells nothing.)
        let mounts = generated::contents(format!("/proc/{tid}/mountinfo")).unwrap_or_default();
        if mounts.is_empty() {
            return;
        }
        if let Some(root) = root(tid).filter(|_| is_valid()) {
            let _ =
                self.writable.set(mounts.split(|it| *it == b'\n').filter_map(writable).collect());
            let _ = self.view.set(root);
        }
    }
}

/// Where a mount is that files can be made or changed in, by its line of mountinfo (proc_pid_mountinfo(5)).
fn writable(line: &[u8]) -> Option<Vec<u8>> {
    const OF_THE_KERNEL: [&[u8]; 8] =
        [b"proc", b"sysfs", b"cgroup", b"cgroup2", b"debugfs", b"tracefs", b"securityfs", b"bpf"];
    let mut words = line.split(|byte| *byte == b' ');
    let (place, options) = (words.nth(4)?, words.next()?);
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    let is_writable = options.split(|byte| *byte == b',').any(|option| option == b"rw");
    (is_writable && !OF_THE_KERNEL.contains(&kind)).then(|| generated::unescape(place))
}

/// Whether a line of mountinfo (proc_pid_mountinfo(5)) is of a file system on a disk, in memory or in the kernel.
fn is_fast(line: &str) -> bool {
    const FAST: [&str; 27] = [
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "f2fs",
        "zfs",
        "vfat",
        "exfat",
        "squashfs",
        "erofs",
        "iso9660",
        "tmpfs",
        "ramfs",
        "overlay",
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "mqueue",
        "cgroup",
        "cgroup2",
        "hugetlbfs",
        "securityfs",
        "debugfs",
        "tracefs",
        "bpf",
    ];
    let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
    kind.is_some_and(|kind| FAST.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_the_looking_process_are_those_of_the_guest() {
        let of = |path: &'static str, follow| own_place(7, path.as_bytes(), follow);
        let rest = |text: &'static str| text.as_bytes();
        assert_eq!(of("/dev/stdin", true), Some(("/proc/7/fd/0".into(), rest(""))));
        assert_eq!(of("/dev/stdin", false), None);
        assert_eq!(of("/proc/self/fd/12", true), Some(("/proc/7/fd/12".into(), rest(""))));
        assert_eq!(of("/proc/self/fd/12", false), None);
        assert_eq!(of("/dev/fd/3/a/b", false), Some(("/proc/7/fd/3".into(), rest("a/b"))));
        assert_eq!(of("/proc/self/fd/-1", true), None);
        assert_eq!(of("/proc/self/cwd/x", false), Some(("/proc/7/cwd".into(), rest("x"))));
        assert_eq!(of("/proc/12/fd/1", true), None);
    }

    #[test]
    fn only_what_is_below_a_root_has_a_path_there() {
        assert_eq!(inside(b"/cell/a", b"/cell"), Some(&b"/a"[..]));
        assert_eq!(inside(b"/cell", b"/cell"), Some(&b""[..]));
        assert_eq!(inside(b"/cellar/a", b"/cell"), None);
        assert_eq!(inside(b"/a", b"/"), Some(&b"/a"[..]));
    }

    #[test]
    fn what_may_take_long_is_told_by_its_type() {
        assert!(is_fast("22 1 0:25 / / rw shared:1 - ext4 /dev/sda rw"));
        assert!(!is_fast("22 1 0:25 / / rw - fuse.sshfs host:/ rw") && !is_fast("no line of it"));
    }

    #[test]
    fn what_is_mounted_to_be_written_to_is_known() {
        let of = |line: &str| writable(line.as_bytes());
        let place = Some(b"/a b".to_vec());
        assert_eq!(of(r"22 1 0:25 / /a\040b rw,nosuid shared:1 - ext4 /dev/sda ro"), place);
        assert_eq!(of("22 1 0:25 / /a ro,nosuid - ext4 /dev/sda rw"), None);
        assert_eq!(of("22 1 0:25 / /proc rw - proc proc rw"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn a_path_is_followed_from_the_guests_own_places() {
        let own = std::process::id() as i32;
        let found = find(own, libc::AT_FDCWD, b"/proc/self/root/usr", true).unwrap();
        let (found, wanted) = (fstat(&found).unwrap(), nix::sys::stat::stat("/usr").unwrap());
        assert_eq!((found.st_dev, found.st_ino), (wanted.st_dev, wanted.st_ino));
        assert!(find(own, libc::AT_FDCWD, b"", true).is_none());
        assert!(find_spot(own, libc::AT_FDCWD, b"/usr/..").is_none());
        let spot = find_spot(own, libc::AT_FDCWD, b"//usr///bin//").unwrap();
        assert_eq!(spot.name, "bin");
        assert_eq!(spot.look().unwrap().st_ino, nix::sys::stat::lstat("/usr/bin").unwrap().st_ino);
    }
}
