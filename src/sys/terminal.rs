//! Terminal attributes, window sizes, ptys and stop signals: ioctl_tty(2), termios(3), signal(7).
//!
//! Everything here is one or two system calls and allocates nothing, so that it may be called in a
//! forked child and from a signal handler.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::Result;
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// The attributes of the terminal `fd` (tcgetattr(3)).
pub fn attributes(fd: BorrowedFd) -> Result<libc::termios> {
    let mut termios = MaybeUninit::uninit();
    // SAFETY: `termios` is valid for a write of its type and outlives the call.
    Errno::result(unsafe { libc::tcgetattr(fd.as_raw_fd(), termios.as_mut_ptr()) })?;
    // SAFETY: tcgetattr succeeded, so it filled in the whole structure.
    Ok(unsafe { termios.assume_init() })
}

/// Gives the terminal `fd` new attributes at once, without waiting for its output and without
/// discarding its input (tcsetattr(3) with TCSANOW; async-signal-safe).
///
/// Takes a number, not a borrow: the road of a fatal signal has nothing to borrow from. A number
/// that is no terminal gives EBADF or ENOTTY.
pub fn set_attributes(fd: RawFd, termios: &libc::termios) -> Result<()> {
    // SAFETY: `termios` is a valid reference for the duration of the call.
    Errno::result(unsafe { libc::tcsetattr(fd, libc::TCSANOW, termios) }).map(drop)
}

/// The foreground process group of the controlling terminal `fd` (tcgetpgrp(3);
/// async-signal-safe). ENOTTY when `fd` is not the caller's controlling terminal.
pub fn foreground_group(fd: RawFd) -> Result<libc::pid_t> {
    // SAFETY: takes and returns plain numbers.
    Errno::result(unsafe { libc::tcgetpgrp(fd) })
}

/// The window size of the terminal `fd` (TIOCGWINSZ).
pub fn window_size(fd: BorrowedFd) -> Result<libc::winsize> {
    let mut size = MaybeUninit::uninit();
    // SAFETY: TIOCGWINSZ writes one `winsize` to its argument, which is valid for that.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) })?;
    // SAFETY: the ioctl succeeded, so it filled in the whole structure.
    Ok(unsafe { size.assume_init() })
}

/// Sets the window size of the terminal `fd` (TIOCSWINSZ). The kernel sends SIGWINCH to the
/// foreground process group of that terminal if the size changed.
pub fn set_window_size(fd: BorrowedFd, size: &libc::winsize) -> Result<()> {
    // SAFETY: TIOCSWINSZ reads one `winsize` from its argument, a valid reference.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, ptr::from_ref(size)) })
        .map(drop)
}

/// Opens the slave of the pty `master`, read-write and close-on-exec, without making it a
/// controlling terminal and whatever mount namespace its devpts is in (TIOCGPTPEER, Linux 4.13).
pub fn open_slave(master: BorrowedFd) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes its flags by value.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the terminal `fd` the controlling terminal of the caller's session, which the caller must
/// lead and which must have none yet (TIOCSCTTY; EPERM otherwise).
pub fn make_controlling(fd: BorrowedFd) -> Result<()> {
    // SAFETY: TIOCSCTTY takes its argument by value; 0 means "do not steal".
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// While it lives, `signal` has its default action, whatever this process inherited or installed.
#[derive(Debug)]
pub struct DefaultAction {
    signal: Signal,
    former: libc::sigaction,
}

impl DefaultAction {
    /// Sets the default action (sigaction(2)). EINVAL for SIGKILL and SIGSTOP, which always have it.
    pub fn of(signal: Signal) -> Result<DefaultAction> {
        // SAFETY: all zeroes is a valid `sigaction`: SIG_DFL, no flags, an empty mask.
        let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut former = MaybeUninit::uninit();
        // SAFETY: both pointers are valid for one `sigaction`; the default action runs no code of
        // ours, so no handler can be called in a state it does not expect.
        Errno::result(unsafe {
            libc::sigaction(signal as libc::c_int, &default, former.as_mut_ptr())
        })?;
        // SAFETY: sigaction succeeded, so it filled in the former action.
        Ok(DefaultAction { signal, former: unsafe { former.assume_init() } })
    }
}

impl Drop for DefaultAction {
    fn drop(&mut self) {
        // SAFETY: `former` is what the kernel said was in force, so putting it back is as sound as
        // it was before; a failure is impossible for a signal that was accepted once.
        unsafe { libc::sigaction(self.signal as libc::c_int, &self.former, ptr::null_mut()) };
    }
}

/// Takes `signal` off the pending signals if it is there, without waiting, and says whether it was
/// (sigtimedwait(2)). The caller must have it blocked, or the answer is always no.
pub fn take_pending(signal: Signal) -> bool {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set before sigaddset and sigtimedwait read it; the
    // information pointer may be null.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal as libc::c_int);
        libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &now) == signal as libc::c_int
    }
}
