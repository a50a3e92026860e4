//! Looking at a file, by whatever stands for it, in as few calls as the kernel allows.
//!
//! A path in procfs is the dearest way: each of its names is looked up and asked about anew. So what is at hand as a
//! descriptor is asked by that.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{AT_FDCWD, AT_SYMLINK_NOFOLLOW};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, stat};

use super::table::Key;
use super::{NAME, is_descriptor};
use crate::sys::{beneath, descriptors, files, look, process};

/// Longer than any belief that is written down.
pub(super) const ROOM: usize = 128;

/// What stands for a file.
#[derive(Debug, Clone, Copy)]
pub(in crate::sentry) enum Sight<'s> {
    /// What a path of procfs leads to.
    Place(&'s CStr),
    /// What has this name in a directory, itself.
    Name(BorrowedFd<'s>, &'s CStr),
    /// A descriptor of the sentry's that stands for it (O_PATH).
    Handle(BorrowedFd<'s>),
    /// A descriptor that may be open, too.
    Open(BorrowedFd<'s>),
}

impl Sight<'_> {
    /// What stat(2) says of it.
    pub(in crate::sentry) fn stat(&self) -> Result<FileStat, Errno> {
        match self {
            Sight::Place(path) => stat(*path),
            Sight::Name(directory, name) => {
                // (As lstat(2) does it: vfs_lstat in include/linux/fs.h.)
                let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
                fstatat(directory, *name, flags)
            }
            Sight::Handle(file) | Sight::Open(file) => fstat(file),
        }
    }

    /// What statx(2) says of it. `flags`: AT_STATX_*, and AT_NO_AUTOMOUNT.
    pub(in crate::sentry) fn statx(&self, flags: i32, mask: u32) -> Result<libc::statx, Errno> {
        match self {
            Sight::Place(path) => look::statx(path, flags, mask),
            Sight::Name(directory, name) => {
                look::statx_in(*directory, name, flags | AT_SYMLINK_NOFOLLOW, mask)
            }
            Sight::Handle(file) | Sight::Open(file) => look::statx_in(*file, c"", flags, mask),
        }
    }

    /// Reads the attribute that a belief is written down in: how long it is. ERANGE: longer than any.
    pub(super) fn attribute(&self, room: &mut [u8; ROOM]) -> Result<usize, Errno> {
        match self {
            Sight::Place(path) => at_path(path, room),
            Sight::Name(directory, name) => in_directory(*directory, name, room),
            Sight::Handle(file) => by_handle(*file, room),
            Sight::Open(file) => match beneath::attribute_of(*file, NAME, room) {
                // It is O_PATH.
                Err(Errno::EBADF) => by_handle(*file, room),
                done => done,
            },
        }
    }

    /// What it is known by in the table.
    pub(super) fn key(&self) -> Result<Key, Errno> {
        let found = self.statx(libc::AT_NO_AUTOMOUNT, Key::MASK)?;
        Ok(Key::told_by(&found))
    }
}

/// What a path stands for: where that is a place in procfs, what it leads to, else what has that name itself.
pub(super) fn at_path(path: &CStr, room: &mut [u8; ROOM]) -> Result<usize, Errno> {
    let value = match is_descriptor(path) {
        true => beneath::attribute(path, NAME),
        false => beneath::own_attribute(path, NAME),
    }?;
    let room = room.get_mut(..value.len()).ok_or(Errno::ERANGE)?;
    room.copy_from_slice(&value);
    Ok(value.len())
}

/// getxattrat(2) is not there (before Linux 6.13), or a filter of the host's is against it.
static WITHOUT: AtomicBool = AtomicBool::new(false);

/// `None`: another way has to be taken.
fn directly(
    directory: BorrowedFd<'_>,
    path: &CStr,
    follow: bool,
    room: &mut [u8; ROOM],
) -> Option<Result<usize, Errno>> {
    if WITHOUT.load(Ordering::Relaxed) {
        return None;
    }
    match beneath::attribute_in(directory, path, follow, NAME, room) {
        // (To read an attribute of users is never EPERM: xattr_permission in fs/xattr.c.)
        Err(Errno::ENOSYS | Errno::EPERM) => {
            WITHOUT.store(true, Ordering::Relaxed);
            None
        }
        done => Some(done),
    }
}

fn in_directory(
    directory: BorrowedFd<'_>,
    name: &CStr,
    room: &mut [u8; ROOM],
) -> Result<usize, Errno> {
    directly(directory, name, false, room).unwrap_or_else(|| {
        let directory = files::descriptor_path(directory);
        let path = [directory.to_bytes(), name.to_bytes()].join(&b'/');
        at_path(&CString::new(path).map_err(|_| Errno::EINVAL)?, room)
    })
}

fn by_handle(file: BorrowedFd<'_>, room: &mut [u8; ROOM]) -> Result<usize, Errno> {
    /// The directory of this process's descriptors. (No process of ours goes on serving as the child of another that
    /// has opened it.)
    static DESCRIPTORS: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let path = files::descriptor_path(file);
    let all = DESCRIPTORS.get_or_init(|| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open("/proc/self/fd", flags, Mode::empty()).ok()
    });
    let number = path.to_bytes_with_nul().rsplit(|byte| *byte == b'/').next();
    let number = number.and_then(|it| CStr::from_bytes_with_nul(it).ok());
    let found = all.as_ref().zip(number);
    let found = found.and_then(|(all, number)| directly(all.as_fd(), number, true, room));
    found.unwrap_or_else(|| at_path(&path, room))
}

/// Threads whose descriptors a thread of the sentry's knows how to copy.
const KNOWN: usize = 16;

thread_local! {
    /// The guest threads that asked last, by their numbers. A pidfd stands for its thread for good: when that has ended,
    /// and somebody else has the number, it copies nothing (ESRCH).
    static THREADS: RefCell<[Option<(i32, OwnedFd)>; KNOWN]> = const { RefCell::new([const { None }; KNOWN]) };
}

/// A copy of a descriptor of a guest thread's, O_PATH too (pidfd_getfd(2)). It is that thread's if the number still is. It
/// has to be closed before the call is answered, so that nobody sees a pipe or a lock held for longer than by the kernel,
/// which holds the file itself meanwhile (fdget in include/linux/file.h).
///
/// # Errors
/// EBADF: there is none; others: it cannot be copied here.
pub(in crate::sentry) fn copy_of(tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    if fd < 0 || fd == AT_FDCWD {
        return Err(Errno::EBADF);
    }
    THREADS.with_borrow_mut(|threads| {
        let place = &mut threads[tid as usize % KNOWN];
        if let Some((of, thread)) = place
            && *of == tid
        {
            match descriptors::copy(thread.as_fd(), fd) {
                Err(Errno::ESRCH) => {}
                done => return done,
            }
        }
        // (Linux before 6.9 has descriptors of processes only: EINVAL.)
        let thread = process::pidfd_open(tid, true)?;
        let copy = descriptors::copy(thread.as_fd(), fd);
        *place = Some((tid, thread));
        copy
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use std::os::fd::AsRawFd;

    use nix::unistd::gettid;

    use super::*;

    fn of(sight: &Sight<'_>) -> Result<Vec<u8>, Errno> {
        let mut room = [0; ROOM];
        sight.attribute(&mut room).map(|length| room[..length].to_vec())
    }

    #[test]
    fn all_ways_to_look_show_the_same() {
        let here = std::env::temp_dir().join(format!("sandbox-sight-{}", std::process::id()));
        fs::create_dir(&here).unwrap();
        let file = here.join("file");
        fs::write(&file, "content").unwrap();
        symlink("file", here.join("link")).unwrap();
        let directory = fs::File::open(&here).unwrap();
        let readable = fs::File::open(&file).unwrap();
        let handle = open(&file, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let path = files::descriptor_path(handle.as_fd());
        let name = Sight::Name(directory.as_fd(), c"file");
        let all = [
            name,
            Sight::Place(&path),
            Sight::Handle(handle.as_fd()),
            Sight::Open(handle.as_fd()),
            Sight::Open(readable.as_fd()),
        ];
        let inode = readable.metadata().unwrap().ino();
        let key = name.key().unwrap();
        for sight in &all {
            assert_eq!(sight.stat().unwrap().st_ino, inode);
            assert_eq!(sight.statx(0, libc::STATX_INO).unwrap().stx_ino, inode);
            assert_eq!(sight.key().unwrap(), key);
            assert_eq!(of(sight), Err(Errno::ENODATA));
        }
        if beneath::set_attribute(&path, NAME, b"u7") == Ok(()) {
            for sight in &all {
                assert_eq!(of(sight).unwrap(), b"u7");
            }
            // The older ways.
            WITHOUT.store(true, Ordering::Relaxed);
            for sight in &all {
                assert_eq!(of(sight).unwrap(), b"u7");
            }
            WITHOUT.store(false, Ordering::Relaxed);
            beneath::set_attribute(&path, NAME, &[b'u'; ROOM + 1]).unwrap();
            for sight in &all {
                assert_eq!(of(sight), Err(Errno::ERANGE));
            }
        }
        let link = Sight::Name(directory.as_fd(), c"link");
        assert_eq!(link.stat().unwrap().st_mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(of(&link), Err(Errno::ENODATA));
        fs::remove_dir_all(&here).unwrap();
    }

    #[test]
    fn a_copy_is_of_the_thread_that_has_the_number() {
        let own = gettid().as_raw();
        let (one, _other) = nix::unistd::pipe().unwrap();
        match copy_of(own, one.as_raw_fd()) {
            Ok(copy) => assert_eq!(fstat(&copy).unwrap().st_ino, fstat(&one).unwrap().st_ino),
            Err(Errno::EINVAL | Errno::EPERM | Errno::ENOSYS) => {
                eprintln!("skipped: no pidfd_getfd");
                return;
            }
            Err(errno) => panic!("{errno}"),
        }
        assert_eq!(copy_of(own, 9_999).err(), Some(Errno::EBADF));
        assert_eq!(copy_of(own, AT_FDCWD).err(), Some(Errno::EBADF));
        // One that has ended copies nothing, and is found out though it is remembered.
        let place = own as usize % KNOWN;
        let gone = std::thread::spawn(|| process::pidfd_open(gettid().as_raw(), true)).join();
        THREADS.with_borrow_mut(|all| all[place] = Some((own, gone.unwrap().unwrap())));
        assert!(copy_of(own, one.as_raw_fd()).is_ok());
    }
}
