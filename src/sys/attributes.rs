//! Attributes of a file that a descriptor stands for, be it by O_PATH alone.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, timespec};
use nix::errno::Errno;

use super::files::descriptor_path;

/// chmod(2).
pub fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let link = descriptor_path(file);
    // SAFETY: `link` is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::chmod(link.as_ptr(), mode) }).map(drop)
}

/// chown(2); all ones leaves an id as it is.
pub fn set_owner(file: BorrowedFd<'_>, owner: u32, group: u32) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: an empty path, and plain numbers.
    let done = unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), owner, group, flags) };
    Errno::result(done).map(drop)
}

/// utimensat(2), on a symbolic link too; none: now.
pub fn set_times(file: BorrowedFd<'_>, times: Option<&[timespec; 2]>) -> Result<(), Errno> {
    let times = times.map_or(std::ptr::null(), |times| times.as_ptr());
    // An empty path stands for the descriptor from Linux 5.8 on (do_utimes_path in fs/utimes.c).
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: an empty path, and null or two timespecs that outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_utimensat, file.as_raw_fd(), c"".as_ptr(), times, flags) };
    Errno::result(done).map(drop)
}

/// setxattr(2).
pub fn set_extended(
    file: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
    flags: c_int,
) -> Result<(), Errno> {
    let link = descriptor_path(file);
    // SAFETY: both strings are NUL-terminated; pointer and length are those of a valid slice.
    let done = unsafe {
        libc::setxattr(link.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    };
    Errno::result(done).map(drop)
}

/// removexattr(2).
pub fn remove_extended(file: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let link = descriptor_path(file);
    // SAFETY: both strings are NUL-terminated and outlive the call.
    Errno::result(unsafe { libc::removexattr(link.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Watches what `file` stands for by an inotify(7) descriptor.
pub fn watch(inotify: BorrowedFd<'_>, file: BorrowedFd<'_>, mask: u32) -> Result<c_int, Errno> {
    let link = descriptor_path(file);
    // SAFETY: `link` is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), link.as_ptr(), mask) })
}
