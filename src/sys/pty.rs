//! Pseudoterminals, the side of a new session (pty(7), tty_ioctl(4)). Child side.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, pid_t};
use nix::errno::Errno;

use super::files;

/// A new pty of the devpts at /dev/pts: (master, slave).
pub fn open_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let master = files::open(c"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
    let unlock: c_int = 0;
    // SAFETY: the ioctl reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) })?;
    let slave = super::terminal::open_slave(master.as_fd())?;
    Ok((master, slave))
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
