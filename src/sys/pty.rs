//! Pseudoterminals, the side of a new session (pty(7), tty_ioctl(4)). Child side.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, pid_t};
use nix::errno::Errno;

use super::files;

/// A new pty of the devpts at /dev/pts: (master, slave).
pub fn open_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let master = files::open(c"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
    let unlock: c_int = 0;
    // SAFETY: the ioctl reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: plain numbers (TIOCGPTPEER, Linux 4.13).
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let slave = Errno::result(slave)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave) }))
}

/// Makes `terminal` the controlling terminal of the caller's session, which it leads.
pub fn control(terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Puts a process group into the terminal's foreground (tcsetpgrp(3)).
pub fn set_foreground(terminal: BorrowedFd<'_>, group: pid_t) -> Result<(), Errno> {
    // SAFETY: the ioctl reads one pid_t.
    let done =
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSPGRP, &group as *const pid_t) };
    Errno::result(done).map(drop)
}

/// The process group in the terminal's foreground (tcgetpgrp(3)).
pub fn foreground(terminal: BorrowedFd<'_>) -> Result<pid_t, Errno> {
    let mut group: pid_t = 0;
    // SAFETY: the ioctl writes one pid_t.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPGRP, &mut group) };
    Errno::result(done).map(|_| group)
}
