//! The front of a layer (`--root`): the host's directories once more, as the user's own.
//!
//! Before the kernel makes a name in a directory, it copies the directory up, with its owner; it cannot where that
//! owner is not there inside (EOVERFLOW, ovl_copy_up_one in fs/overlayfs/copy_up.c). So a second lower layer
//! lies in front of the host's: empty directories of the user's own, each at the place of one of somebody else's. Of
//! those the kernel takes owner and permissions, and the host's names show through. Owners are beliefs
//! (`sentry::beliefs`). The layer that takes the changes has nothing of this that the run has not touched.
//!
//! It lies in memory, in a file system of the sandbox's own that init mounts for a moment: a lower layer may not lie in
//! another one (ovl_check_layer in fs/overlayfs/super.c), on a disk it would have to be removed again, and thus it is
//! never older than the run.
//!
//! Where a directory cannot be searched by the user, nobody inside could use it: it is empty (opaque).

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{AccessFlags, faccessat, getegid, geteuid};

use super::apply::{PATH_MAX, set_times};
use super::changes::open_host;
use super::entry::OPAQUE;
use super::layers::Layer;
use super::store::DIRECTORY;
use crate::config::View;
use crate::sentry::beliefs::{Belief, MODE, NAME};
use crate::sys::{beneath, files};

/// Who the user is.
#[derive(Debug, Clone, Copy)]
struct Own {
    uid: u32,
    gid: u32,
}

impl Own {
    fn is_owner(self, stat: &FileStat) -> bool {
        stat.st_uid == self.uid && stat.st_gid == self.gid
    }

    /// What is believed of a directory of the user's own that stands for this one of the host's, and its permissions.
    fn belief(self, stat: &FileStat) -> (Belief, u32) {
        let inside = |id: u32, own: u32| Some(id).filter(|id| *id != 0 && *id != own);
        let mode = stat.st_mode & MODE;
        let real = mode & !(libc::S_ISUID | libc::S_ISGID) | libc::S_IRWXU;
        let belief = Belief {
            uid: inside(stat.st_uid, self.uid),
            gid: inside(stat.st_gid, self.gid),
            mode: Some(mode).filter(|mode| *mode != real),
            ..Belief::default()
        };
        (belief, real)
    }
}

/// Directories that are still to be looked at.
#[derive(Default)]
struct Queue {
    waiting: Vec<PathBuf>,
    /// Workers that may add more.
    busy: usize,
    failed: Option<Errno>,
}

struct Walk<'w> {
    host: &'w OwnedFd,
    front: &'w OwnedFd,
    own: Own,
    /// What is not of this layer.
    skip: &'w (dyn Fn(&Path) -> bool + Sync),
    queue: Mutex<Queue>,
    more: Condvar,
}

/// Fills `front`, which is empty, for `host`. `skip`: places below `host` that are another layer's. Nothing is followed.
fn fill(
    host: &OwnedFd,
    front: &OwnedFd,
    skip: &(dyn Fn(&Path) -> bool + Sync),
) -> Result<(), Errno> {
    let own = Own { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let queue = Queue { waiting: vec![PathBuf::new()], ..Queue::default() };
    let (queue, more) = (Mutex::new(queue), Condvar::new());
    let walk = Walk { host, front, own, skip, queue, more };
    let workers = std::thread::available_parallelism().map_or(1, |it| it.get().min(8));
    std::thread::scope(|scope| {
        for _ in 1..workers {
            // (Where there can be no more threads, this one does it all.)
            let _ = std::thread::Builder::new().spawn_scoped(scope, || walk.work());
        }
        walk.work();
    });
    let mut queue = walk.queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.failed.take().map_or(Ok(()), Err)
}

/// The upper directory of a layer becomes what its front would be.
pub(super) fn dress_root(host: &OwnedFd, upper: BorrowedFd<'_>) -> Result<(), Errno> {
    let own = Own { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let stat = fstat(host)?;
    dress(own, upper, &stat, false)?;
    set_times(upper, ".".as_ref(), &stat)
}

impl Walk<'_> {
    fn work(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if queue.failed.is_some() {
                return;
            }
            if let Some(next) = queue.waiting.pop() {
                queue.busy += 1;
                drop(queue);
                let done = self.directory(&next);
                queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.busy -= 1;
                match done {
                    Ok(found) => queue.waiting.extend(found),
                    Err(errno) => queue.failed = Some(errno),
                }
                self.more.notify_all();
            } else if queue.busy == 0 {
                return;
            } else {
                queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Makes what is in one directory; gives the directories in it that have to be looked at.
    fn directory(&self, at: &Path) -> Result<Vec<PathBuf>, Errno> {
        let Some(host) = open_below(self.host, at)? else { return Ok(Vec::new()) };
        let Some(front) = open_below(self.front, at)? else { return Ok(Vec::new()) };
        let stat = fstat(&host)?;
        let mut found = Vec::new();
        let mut listing = Dir::from_fd(host)?;
        let host = openat(listing.as_fd(), ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        for entry in listing.iter() {
            let entry = match entry {
                // It has been removed meanwhile (iterate_dir in fs/readdir.c).
                Err(Errno::ENOENT) => break,
                entry => entry?,
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "."
                || name == ".."
                || !matches!(entry.file_type(), Some(Type::Directory) | None)
            {
                continue;
            }
            let below = at.join(name);
            if below.as_os_str().len() > PATH_MAX || (self.skip)(&below) {
                continue;
            }
            let Ok(stat) = fstatat(&host, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            // What is the user's own the kernel can copy up.
            if stat.st_mode & libc::S_IFMT != libc::S_IFDIR || self.own.is_owner(&stat) {
                continue;
            }
            if self.make(&host, &front, name, &stat)? {
                found.push(below);
            }
        }
        if !at.as_os_str().is_empty() {
            set_times(front.as_fd(), ".".as_ref(), &stat)?;
        }
        Ok(found)
    }

    /// Makes one directory; gives whether it has to be looked into.
    fn make(
        &self,
        host: &OwnedFd,
        front: &OwnedFd,
        name: &OsStr,
        stat: &FileStat,
    ) -> Result<bool, Errno> {
        let (belief, mode) = self.own.belief(stat);
        mkdirat(front, name, Mode::from_bits_truncate(mode))?;
        let may = |how| faccessat(host, name, how, AtFlags::AT_EACCESS).is_ok();
        let is_closed = !may(AccessFlags::X_OK);
        // Of most nothing has to be said; what the umask took away has.
        let there = fstatat(front, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if is_closed || !belief.is_nothing() || there.st_mode & MODE != mode {
            let made = openat(front, name, DIRECTORY, Mode::empty())?;
            dress(self.own, made.as_fd(), stat, is_closed)?;
        }
        let looked_into = !is_closed && may(AccessFlags::R_OK);
        if !looked_into {
            set_times(front.as_fd(), name, stat)?;
        }
        Ok(looked_into)
    }
}

/// Gives a directory of the user's own the permissions and beliefs that stand for one of the host's.
fn dress(own: Own, made: BorrowedFd<'_>, stat: &FileStat, is_closed: bool) -> Result<(), Errno> {
    let (belief, mode) = own.belief(stat);
    if fstat(made)?.st_mode & MODE != mode {
        fchmod(made, Mode::from_bits_truncate(mode))?;
    }
    let path = files::descriptor_path(made);
    let opaque = is_closed.then(|| b"y".to_vec());
    for (name, value) in [(NAME, (!belief.is_nothing()).then(|| belief.text())), (OPAQUE, opaque)] {
        let Some(value) = value else { continue };
        match beneath::set_attribute(&path, name, &value) {
            // A file system in memory keeps those of users from Linux 6.6 on.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A directory below another, to be listed; `None` where there is none that can be.
fn open_below(root: &OwnedFd, at: &Path) -> Result<Option<OwnedFd>, Errno> {
    let at = if at.as_os_str().is_empty() { Path::new(".") } else { at };
    let path = CString::new(at.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    match beneath::open(root.as_fd(), &path, flags) {
        Ok(open) => Ok(Some(open)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV | Errno::EACCES) => {
            Ok(None)
        }
        Err(errno) => Err(errno),
    }
}

/// The name of the directory in that of an overlay where init mounts what the fronts are in.
pub(super) const PLACE: &str = "front";

/// Fills the fronts of these layers, each a directory in `memory` by the number that its path ends in.
///
/// # Errors
/// There is no memory for them, or a directory of the host cannot be read.
pub fn fill_fronts(memory: BorrowedFd<'_>, layers: &[Layer], view: &View) -> Result<(), Errno> {
    for layer in layers {
        let Some(name) = layer.front.as_deref().and_then(Path::file_name) else { continue };
        mkdirat(memory, name, Mode::S_IRWXU)?;
        let front = openat(memory, name, DIRECTORY, Mode::empty())?;
        let host = open_host(&layer.lower)?;
        let skip = |below: &Path| {
            let covering = view.covering(&layer.lower.join(below));
            covering.is_none_or(|mount| mount.target != layer.target)
        };
        dress_root(&host, front.as_fd())?;
        fill(&host, &front, &skip)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(uid: u32, gid: u32, mode: u32) -> FileStat {
        let mut stat = nix::sys::stat::stat("/").unwrap();
        (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, libc::S_IFDIR | mode);
        stat
    }

    #[test]
    fn a_front_says_of_a_directory_what_the_host_does() {
        let own = Own { uid: 1000, gid: 100 };
        let of = |uid, gid, mode| {
            let (belief, real) = own.belief(&stat(uid, gid, mode));
            (String::from_utf8(belief.text()).unwrap(), real)
        };
        assert_eq!(of(0, 0, 0o755), (String::new(), 0o755));
        assert_eq!(of(0, 100, 0o755), (String::new(), 0o755));
        assert_eq!(of(0, 8, 0o2775), ("g8 m2775".into(), 0o775));
        assert_eq!(of(42, 0, 0o555), ("u42 m555".into(), 0o755));
        assert_eq!(of(0, 0, 0o1777), (String::new(), 0o1777));
    }

    #[test]
    fn a_front_has_the_directories_of_others() {
        if !geteuid().is_root() {
            return println!("skipped: no root");
        }
        let place = std::env::temp_dir().join(format!("front-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&place);
        for path in ["host/a/b/c", "host/own", "host/gone", "front"] {
            std::fs::create_dir_all(place.join(path)).unwrap();
        }
        for (path, id) in [("a", 7), ("a/b", 7), ("a/b/c", 8), ("gone", 7)] {
            let path = place.join("host").join(path);
            std::os::unix::fs::chown(path, Some(id), Some(id)).unwrap();
        }
        let open = |name: &str| OwnedFd::from(std::fs::File::open(place.join(name)).unwrap());
        let (host, front) = (open("host"), open("front"));
        fill(&host, &front, &|at| at == Path::new("a/b/c")).unwrap();
        let there = |path: &str| place.join("front").join(path).is_dir();
        assert!(there("a/b") && there("gone") && !there("own") && !there("a/b/c"));
        let path = CString::new(place.join("front/a/b").as_os_str().as_bytes()).unwrap();
        assert_eq!(beneath::attribute(&path, NAME).unwrap(), b"u7 g7");
        std::fs::remove_dir_all(&place).unwrap();
    }
}
