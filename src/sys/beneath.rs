//! Files below a directory that somebody else filled, by names that nobody can make lead elsewhere
//! (openat2(2), Linux 5.6), and their extended attributes (xattr(7)).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};
use nix::errno::Errno;

use super::numbers::{SYS_getxattrat, SYS_listxattrat};

const NO_LINKS: u64 = libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;

/// Opens `path` below `directory`, close-on-exec. EXDEV: it leads to another mount or out; ELOOP: over a
/// symbolic link. A link at its end is opened itself with O_PATH | O_NOFOLLOW.
pub fn open(directory: BorrowedFd<'_>, path: &CStr, flags: c_int) -> Result<OwnedFd, Errno> {
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_XDEV | NO_LINKS;
    openat2(directory.as_raw_fd(), path, flags, resolve)
}

/// What is at `path`, whichever mount it is on, by O_PATH. ELOOP: there is a symbolic link at its end or on
/// the way. Child side.
pub fn place(path: &CStr) -> Result<OwnedFd, Errno> {
    openat2(libc::AT_FDCWD, path, libc::O_PATH, NO_LINKS)
}

/// What is at `path`, as [`place`] finds it, with what is to be mounted there by the looking (autofs does that
/// for directories alone: LOOKUP_DIRECTORY in follow_automount, fs/namei.c). Child side.
pub fn mounted(path: &CStr) -> Result<OwnedFd, Errno> {
    match openat2(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY, NO_LINKS) {
        Err(Errno::ENOTDIR) => place(path),
        done => done,
    }
}

/// A directory, to be listed. ELOOP: there is a symbolic link at its end, or on the way (where openat2(2) is
/// not to be had, as under some containers' filters, at its end).
pub fn directory(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match openat2(libc::AT_FDCWD, path, flags, NO_LINKS) {
        Err(Errno::ENOSYS | Errno::EPERM) => super::files::open(path, flags, 0),
        done => done,
    }
}

fn openat2(directory: RawFd, path: &CStr, flags: c_int, resolve: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: an all-zero open_how is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u32 as u64;
    how.resolve = resolve;
    loop {
        // SAFETY: `path` is NUL-terminated, `how` of the size that is given; both outlive the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                directory,
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match Errno::result(done) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // SAFETY: the kernel has just given this descriptor to us alone.
            done => return done.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    }
}

/// Names of the extended attributes of what is at `path` (followed), as far as they can be seen.
pub fn attribute_names(path: &CStr) -> Result<Vec<Vec<u8>>, Errno> {
    // SAFETY: the kernel writes at most `length` bytes to a buffer of as many.
    whole(|at, length| unsafe { libc::listxattr(path.as_ptr(), at.cast(), length) })
        .map(|list| names(&list))
}

/// The same of what has this name in `directory`, itself. ENOSYS before Linux 6.13 (listxattrat(2)).
pub fn attribute_names_in(directory: BorrowedFd<'_>, name: &CStr) -> Result<Vec<Vec<u8>>, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is NUL-terminated; the kernel writes at most `length` bytes to a buffer of as many.
    whole(|at, length| unsafe {
        libc::syscall(SYS_listxattrat, directory.as_raw_fd(), name.as_ptr(), flags, at, length)
            as isize
    })
    .map(|list| names(&list))
}

fn names(list: &[u8]) -> Vec<Vec<u8>> {
    list.split(|byte| *byte == 0).filter(|it| !it.is_empty()).map(<[u8]>::to_vec).collect()
}

/// The value of an extended attribute of what is at `path` (followed).
pub fn attribute(path: &CStr, name: &CStr) -> Result<Vec<u8>, Errno> {
    // SAFETY: as above.
    whole(|at, length| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), at, length) })
}

/// The same of what is at `path` itself.
pub fn own_attribute(path: &CStr, name: &CStr) -> Result<Vec<u8>, Errno> {
    // SAFETY: as above.
    whole(|at, length| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), at, length) })
}

/// The value of an extended attribute of what has a path from `directory`, read into `room`: how long it is. `follow`:
/// over a link at its end, too. ENOSYS before Linux 6.13 (getxattrat(2)); ERANGE: there is no room for it.
pub fn attribute_in(
    directory: BorrowedFd<'_>,
    path: &CStr,
    follow: bool,
    name: &CStr,
    room: &mut [u8],
) -> Result<usize, Errno> {
    /// struct xattr_args of include/uapi/linux/xattr.h.
    #[repr(C, align(8))]
    struct Args {
        value: u64,
        size: u32,
        flags: u32,
    }
    let value = room.as_mut_ptr() as u64;
    let args = Args { value, size: u32::try_from(room.len()).unwrap_or(u32::MAX), flags: 0 };
    // SAFETY: both strings are NUL-terminated; `args` is of the size that is given, and the kernel writes at most as many
    // bytes as `room` has.
    let done = unsafe {
        libc::syscall(
            SYS_getxattrat,
            directory.as_raw_fd(),
            path.as_ptr(),
            if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW },
            name.as_ptr(),
            &raw const args,
            size_of::<Args>(),
        )
    };
    Errno::result(done).map(|length| length as usize)
}

/// The same of a file that is open, but for O_PATH (EBADF).
pub fn attribute_of(file: BorrowedFd<'_>, name: &CStr, room: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `name` is NUL-terminated; the kernel writes at most as many bytes as `room` has.
    let done = unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), room.as_mut_ptr().cast(), room.len())
    };
    Errno::result(done).map(|length| length as usize)
}

/// Sets an extended attribute of what is at `path` (followed).
pub fn set_attribute(path: &CStr, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated; pointer and length are those of a valid slice.
    let done = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    Errno::result(done).map(drop)
}

/// Removes an extended attribute of what is at `path` (followed).
pub fn remove_attribute(path: &CStr, name: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated and outlive the call.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

fn whole(call: impl Fn(*mut c_void, usize) -> isize) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0u8; 256];
    loop {
        match Errno::result(call(room.as_mut_ptr().cast(), room.len())) {
            Ok(length) => {
                room.truncate(length as usize);
                return Ok(room);
            }
            // XATTR_LIST_MAX and XATTR_SIZE_MAX are 64 KiB (xattr(7)).
            Err(Errno::ERANGE) if room.len() < 64 << 10 => room.resize(64 << 10, 0),
            Err(errno) => return Err(errno),
        }
    }
}
