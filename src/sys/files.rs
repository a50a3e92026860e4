//! Files and descriptors, for the child side: no allocation, no locks.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_uint, mode_t};
use nix::errno::Errno;

/// open(2), always close-on-exec.
pub fn open(path: &CStr, flags: c_int, mode: mode_t) -> Result<OwnedFd, Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// mkdir(2) that accepts an existing directory. The mode is exact, whatever the umask.
pub fn make_directory(path: &CStr, mode: mode_t) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives both calls.
    match Errno::result(unsafe { libc::mkdir(path.as_ptr(), mode) }) {
        // SAFETY: as above.
        Ok(_) => Errno::result(unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop),
        Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// An empty file to mount over; an existing one is left as it is.
pub fn make_file(path: &CStr) -> Result<(), Errno> {
    open(path, libc::O_CREAT | libc::O_RDONLY | libc::O_NOFOLLOW, 0o644).map(drop)
}

/// A new file with this content that everybody may read, whatever the umask.
pub fn make_readable_file(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    let file = open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644)?;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::fchmod(file.as_raw_fd(), 0o444) })?;
    write_whole(file.as_fd(), content)
}

/// symlink(2).
pub fn make_symlink(content: &CStr, path: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated and outlive the call.
    Errno::result(unsafe { libc::symlink(content.as_ptr(), path.as_ptr()) }).map(drop)
}

/// unlink(2).
pub fn unlink(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::unlink(path.as_ptr()) }).map(drop)
}

/// chdir(2).
pub fn change_directory(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// fchdir(2).
pub fn enter_directory(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: a plain number.
    Errno::result(unsafe { libc::fchdir(directory.as_raw_fd()) }).map(drop)
}

/// Writes all of `bytes` in one write(2), as the files of procfs want it.
pub fn write_whole(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and length are those of a valid slice.
    let done = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    let count = Errno::result(done)?;
    if count as usize == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// Reads once, and again where a signal came first.
pub fn read_once(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the pointer and length are those of a valid exclusive slice.
        let done = unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
        match Errno::result(done) {
            Err(Errno::EINTR) => {}
            done => return done.map(|count| count as usize),
        }
    }
}

/// Makes `target` another name of `source`, without close-on-exec; the same number only loses the
/// flag.
pub fn place(source: RawFd, target: RawFd) -> Result<(), Errno> {
    if source == target {
        // SAFETY: plain numbers.
        return Errno::result(unsafe { libc::fcntl(source, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: plain numbers; whoever owned `target` has given it up.
    Errno::result(unsafe { libc::dup2(source, target) }).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2), Linux 5.11).
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: c_uint = 4;
    // SAFETY: plain numbers.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, first as c_uint, c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    Errno::result(done).map(drop)
}

/// Sets or clears close-on-exec.
pub fn set_close_on_exec(fd: RawFd, on: bool) -> Result<(), Errno> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// A pipe, both ends close-on-exec: (read, write).
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors to the array.
    Errno::result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the kernel has just given both to us alone.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Takes a descriptor over that nobody else owns.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass descriptors that they have just been given and keep no other owner
    // of (launch::init: its own copy of a socket after clone, a fresh signalfd).
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// close(2) of a descriptor that a copy of this process owns.
pub fn close_now(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller runs after clone, and nobody there uses the number again.
    Errno::result(unsafe { libc::close(fd) }).map(drop)
}

/// As [`place`], in one step, and `target` is closed at an exec (dup3(2)). The two are not the same. Child side.
pub fn place_closed(source: RawFd, target: RawFd) -> Result<(), Errno> {
    // SAFETY: plain numbers; whoever owns `target` lets it stand for another file.
    Errno::result(unsafe { libc::dup3(source, target, libc::O_CLOEXEC) }).map(drop)
}

/// Gives up the ownership of a descriptor: its number is all that is left of it.
pub fn leak(fd: OwnedFd) -> RawFd {
    std::os::fd::IntoRawFd::into_raw_fd(fd)
}

/// Closes all descriptors but `keep`, of whoever has just got a table of its own (close_range(2), Linux 5.9). Child
/// side.
pub fn close_all_but(keep: RawFd) -> Result<(), Errno> {
    let close = |first: c_uint, last: c_uint| {
        if first > last {
            return Ok(());
        }
        // SAFETY: plain numbers; nobody else uses this table.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
    };
    let keep = keep as c_uint;
    if keep > 0 {
        close(0, keep - 1)?;
    }
    close(keep + 1, c_uint::MAX)
}

/// Device and inode of an open file.
pub fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    status(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Whether an open file is a directory.
pub fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    status(fd).map(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// The number of the mount that a descriptor (O_PATH too) is on (statx(2), STATX_MNT_ID, Linux 5.8). ENOSYS: the
/// kernel does not tell.
pub fn mount_number(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    // SAFETY: an all-zero statx is valid.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    let (raw, path, mask) = (fd.as_raw_fd(), c"".as_ptr(), libc::STATX_MNT_ID);
    // SAFETY: an empty string and one statx for the kernel to write.
    Errno::result(unsafe { libc::statx(raw, path, flags, mask, &mut found) })?;
    if found.stx_mask & libc::STATX_MNT_ID == 0 { Err(Errno::ENOSYS) } else { Ok(found.stx_mnt_id) }
}

fn status(fd: BorrowedFd<'_>) -> Result<libc::stat, Errno> {
    // SAFETY: an all-zero stat is valid.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one stat.
    Errno::result(unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) })?;
    Ok(stat)
}

/// Opens what a descriptor (O_PATH too) stands for once more, through its mount.
pub fn open_descriptor(fd: BorrowedFd<'_>, flags: c_int) -> Result<OwnedFd, Errno> {
    open(&descriptor_path(fd), flags, 0)
}

/// A path that needs no memory of its own.
#[derive(Debug)]
pub struct DescriptorPath([u8; 32]);

impl std::ops::Deref for DescriptorPath {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        // (There is always a NUL: no number has so many digits.)
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// The name by which /proc knows a descriptor (proc_pid_fd(5)).
pub fn descriptor_path(fd: BorrowedFd<'_>) -> DescriptorPath {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    let mut path = [0u8; 32];
    path[..PREFIX.len()].copy_from_slice(PREFIX);
    let mut digits = [0u8; 10];
    let mut count = 0;
    let mut number = fd.as_raw_fd();
    while number > 0 || count == 0 {
        digits[count] = b'0' + (number % 10) as u8;
        number /= 10;
        count += 1;
    }
    for (place, digit) in path[PREFIX.len()..].iter_mut().zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
    DescriptorPath(path)
}

/// Gives `to` the file offset of `from`.
pub fn copy_offset(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let offset = Errno::result(unsafe { libc::lseek(from, 0, libc::SEEK_CUR) })?;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::lseek(to, offset, libc::SEEK_SET) }).map(drop)
}

/// Whether there is something at `path` that the caller can see.
pub fn exists(path: &CStr) -> bool {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

/// Whether the file begins with these bytes (at most 16).
pub fn starts_with(path: &CStr, bytes: &[u8]) -> bool {
    let mut room = [0; 16];
    open(path, libc::O_RDONLY, 0)
        .and_then(|file| read_once(file.as_fd(), &mut room))
        .is_ok_and(|count| room[..count].starts_with(bytes))
}

/// Another descriptor for the same open file, close-on-exec and none of the standard streams.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    duplicate_above(fd, 3)
}

/// The same, with a number of at least `lowest`.
pub fn duplicate_above(fd: RawFd, lowest: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    let copy = Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Where the next data of a file of `size` bytes begins, from `at` on; its end where there is none (lseek(2),
/// SEEK_DATA). Moves the offset of the description.
pub fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> u64 {
    match nix::unistd::lseek(file, at as i64, nix::unistd::Whence::SeekData) {
        Ok(found) => found as u64,
        Err(Errno::ENXIO) => size,
        Err(_) => at,
    }
    .clamp(at, size)
}

/// Reads as much as there is from an offset on, up to the length of `room`.
pub fn read_whole(file: BorrowedFd<'_>, room: &mut [u8], from: u64) -> Result<usize, Errno> {
    let mut count = 0;
    while count < room.len() {
        match nix::sys::uio::pread(file, &mut room[count..], (from + count as u64) as i64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(count)
}
