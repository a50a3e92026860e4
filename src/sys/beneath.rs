//! Files below a directory that somebody else filled, by names that nobody can make lead elsewhere
//! (openat2(2), Linux 5.6), and their extended attributes (xattr(7)).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};
use nix::errno::Errno;

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
    let list = whole(|at, length| unsafe { libc::listxattr(path.as_ptr(), at.cast(), length) })?;
    Ok(list.split(|byte| *byte == 0).filter(|it| !it.is_empty()).map(<[u8]>::to_vec).collect())
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
