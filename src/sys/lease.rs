//! Leases on files (F_SETLEASE of fcntl(2)): who is about to change the file waits until the holder is done.

use std::os::fd::{AsFd, AsRawFd};

use libc::c_int;
use nix::errno::Errno;

/// Takes a read lease; the calling thread gets `signal`, which it must have blocked, when somebody wants to
/// write to the file or to shorten it. Whoever does waits for [`give_up`], at most
/// /proc/sys/fs/lease-break-time seconds. Gives whether that has not happened already.
///
/// # Errors
/// EACCES: the file is another user's. EAGAIN: somebody has it open for writing. EINVAL: its file system has
/// no leases.
pub fn take_read(file: impl AsFd, signal: c_int) -> Result<bool, Errno> {
    let fd = file.as_fd().as_raw_fd();
    /// struct f_owner_ex and F_OWNER_TID (include/uapi/asm-generic/fcntl.h).
    #[repr(C)]
    struct Owner {
        kind: c_int,
        pid: libc::pid_t,
    }
    const F_OWNER_TID: c_int = 0;
    const F_SETOWN_EX: c_int = 15;
    const F_SETSIG: c_int = 10;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, signal) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) })?;
    let owner = Owner { kind: F_OWNER_TID, pid: nix::unistd::gettid().as_raw() };
    // The lease has made the process the owner (lease_setup in fs/locks.c), of which any thread may get it.
    // SAFETY: `owner` outlives the call, which only reads it.
    Errno::result(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // SAFETY: plain numbers.
    let left = Errno::result(unsafe { libc::fcntl(fd, libc::F_GETLEASE) })?;
    Ok(left == libc::F_RDLCK)
}

/// Gives the lease up.
pub fn give_up(file: impl AsFd) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    #[test]
    fn a_writer_is_told_of_and_waits() {
        let path = std::env::temp_dir().join(format!("lease-{}", std::process::id()));
        std::fs::write(&path, "content").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut set = SigSet::empty();
        set.add(Signal::SIGURG);
        set.thread_block().unwrap();
        match take_read(&file, libc::SIGURG) {
            Ok(is_whole) => assert!(is_whole),
            Err(errno) => {
                println!("skipped: no leases in {}: {errno}", path.display());
                std::fs::remove_file(&path).unwrap();
                return;
            }
        }
        let mut writer = OpenOptions::new();
        writer.write(true).custom_flags(libc::O_NONBLOCK);
        let refused = writer.open(&path).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(set.wait().unwrap(), Signal::SIGURG);
        give_up(&file).unwrap();
        writer.open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
