//! What stat(2) and statx(2) say of a file, as the bytes that the kernel writes for a caller.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_uint};
use nix::errno::Errno;

/// What statx(2) says of the file at `path`. `flags`: AT_STATX_*, and AT_SYMLINK_NOFOLLOW.
pub fn statx(path: &CStr, flags: c_int, mask: c_uint) -> Result<libc::statx, Errno> {
    statx_at(libc::AT_FDCWD, path, flags, mask)
}

/// The same of what has a path from `directory`, which an empty one stands for itself.
pub fn statx_in(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: c_int,
    mask: c_uint,
) -> Result<libc::statx, Errno> {
    statx_at(directory.as_raw_fd(), path, flags | libc::AT_EMPTY_PATH, mask)
}

fn statx_at(
    directory: c_int,
    path: &CStr,
    flags: c_int,
    mask: c_uint,
) -> Result<libc::statx, Errno> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` is NUL-terminated; the kernel writes one statx to room for one.
    let done = unsafe {
        libc::syscall(libc::SYS_statx, directory, path.as_ptr(), flags, mask, found.as_mut_ptr())
    };
    Errno::result(done)?;
    // SAFETY: all bytes were zeros, which is valid, before the kernel wrote to it.
    Ok(unsafe { found.assume_init() })
}

/// A `struct stat` as it lies in memory (include/uapi/asm-generic/stat.h: the C library's is the kernel's on 64 bits).
pub fn bytes_of_stat(stat: &libc::stat) -> &[u8] {
    // SAFETY: plain numbers without room between them (its padding is fields), all of them set.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(stat).cast(), size_of::<libc::stat>()) }
}

/// A `struct statx` as it lies in memory.
pub fn bytes_of_statx(statx: &libc::statx) -> &[u8] {
    // SAFETY: plain numbers without room between them (its padding is fields), all of them set.
    unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(statx).cast(), size_of::<libc::statx>())
    }
}
