//! The state of pseudo-terminals: ioctl_tty(2), TCXONC of ioctl_tty(2), and descriptors of other processes.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong, c_void};
use nix::errno::Errno;

use super::process;

/// Bytes of struct termios2 (include/uapi/asm-generic/termbits.h): four words of flags, a byte for the
/// line discipline, 19 of keys, two words of speeds.
pub const SETTINGS: usize = 44;
/// Bytes of struct winsize.
pub const SIZE: usize = 8;

/// Something that a terminal says by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The number of the pty in /dev/pts; of a master only (TIOCGPTN).
    Index,
    /// The device number of the terminal that is meant (TIOCGDEV, Linux 2.6.38).
    Device,
    /// Whether the slave is locked; of a master only (TIOCGPTLCK, Linux 3.8).
    Locked,
    /// Whether the master reads in packets (TIOCGPKT, Linux 3.8).
    Packet,
    /// Whether it can be opened no more (TIOCGEXCL, Linux 3.8).
    Exclusive,
}

/// Something that is switched at a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// TIOCSPTLCK, of a master.
    Lock(bool),
    /// TIOCPKT, of a master.
    Packet(bool),
    /// TIOCEXCL, TIOCNXCL.
    Exclusive(bool),
    /// TCXONC with TCOON or TCOOFF.
    Output(bool),
}

fn ioctl(fd: BorrowedFd<'_>, request: c_ulong, at: *mut c_void) -> Result<(), Errno> {
    // SAFETY: the callers below pass numbers, or pointers to as much as the request reads or writes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, at) }).map(drop)
}

/// Asks.
pub fn ask(fd: BorrowedFd<'_>, question: Question) -> Result<u32, Errno> {
    let request = match question {
        Question::Index => libc::TIOCGPTN,
        Question::Device => 0x8004_5432,
        Question::Locked => 0x8004_5439,
        Question::Packet => 0x8004_5438,
        Question::Exclusive => 0x8004_5440,
    };
    let mut number: c_int = 0;
    ioctl(fd, request, (&raw mut number).cast())?;
    Ok(number as u32)
}

/// Switches.
pub fn switch(fd: BorrowedFd<'_>, switch: Switch) -> Result<(), Errno> {
    let mut on: c_int = 1;
    let mut off: c_int = 0;
    let mut number = |is_on: bool| if is_on { (&raw mut on).cast() } else { (&raw mut off).cast() };
    match switch {
        Switch::Lock(on) => ioctl(fd, libc::TIOCSPTLCK, number(on)),
        Switch::Packet(on) => ioctl(fd, libc::TIOCPKT, number(on)),
        Switch::Exclusive(true) => ioctl(fd, libc::TIOCEXCL, std::ptr::null_mut()),
        Switch::Exclusive(false) => ioctl(fd, libc::TIOCNXCL, std::ptr::null_mut()),
        // These two go by value.
        Switch::Output(on) => {
            let action = if on { libc::TCOON } else { libc::TCOOFF };
            ioctl(fd, libc::TCXONC, action as usize as *mut c_void)
        }
    }
}

/// Its settings (TCGETS2).
pub fn settings(fd: BorrowedFd<'_>) -> Result<[u8; SETTINGS], Errno> {
    let mut bytes = [0; SETTINGS];
    ioctl(fd, libc::TCGETS2, bytes.as_mut_ptr().cast())?;
    Ok(bytes)
}

/// Changes its settings at once; what waits in it stays (TCSETS2).
pub fn set_settings(fd: BorrowedFd<'_>, bytes: &[u8; SETTINGS]) -> Result<(), Errno> {
    ioctl(fd, libc::TCSETS2, bytes.as_ptr().cast_mut().cast())
}

/// Its size (TIOCGWINSZ).
pub fn size(fd: BorrowedFd<'_>) -> Result<[u8; SIZE], Errno> {
    let mut bytes = [0; SIZE];
    ioctl(fd, libc::TIOCGWINSZ, bytes.as_mut_ptr().cast())?;
    Ok(bytes)
}

/// Changes its size (TIOCSWINSZ).
pub fn set_size(fd: BorrowedFd<'_>, bytes: &[u8; SIZE]) -> Result<(), Errno> {
    ioctl(fd, libc::TIOCSWINSZ, bytes.as_ptr().cast_mut().cast())
}

/// A copy of a descriptor of another process (pidfd_getfd(2), Linux 5.6).
pub fn copy_of(pid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    let process = process::pidfd_open(pid, false)?;
    // SAFETY: plain numbers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    // SAFETY: the kernel has just given this descriptor to us alone.
    Errno::result(copy).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}
