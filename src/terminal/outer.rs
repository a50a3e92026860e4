//! The user's terminal: our own way to it, its raw mode, and the promise to put it back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpgrp};

use crate::sys::terminal as sys;

/// The outer terminal. Dropping it restores its attributes.
#[derive(Debug)]
pub(super) struct Outer {
    fd: OwnedFd,
    /// Whether `fd` is an open file description of our own, and so non-blocking. The inherited one
    /// is shared with the user's shell and must not become so.
    own_description: bool,
    /// Whether it is the controlling terminal of this process, that is, under job control.
    controlling: bool,
    /// Whether programs outside the sandbox write to it while the guest runs; their newlines need
    /// the output processing that raw mode would turn off.
    shared: bool,
}

impl Outer {
    /// Opens the terminal that `stream` is once more, for ourselves.
    ///
    /// Fails only where it can neither be opened nor is already open for reading and writing.
    pub(super) fn open(stream: BorrowedFd, controlling: bool, shared: bool) -> nix::Result<Outer> {
        // /dev/tty can be opened by anyone who has a controlling terminal; the device itself
        // belongs to whoever logged in, which after su(1) is somebody else.
        let by_number = format!("/proc/self/fd/{}", stream.as_raw_fd());
        let ways: &[&str] =
            if controlling { &["/dev/tty", &by_number] } else { &[by_number.as_str()] };
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        for way in ways {
            if let Ok(fd) = open(*way, flags, Mode::empty()) {
                return Ok(Outer { fd, own_description: true, controlling, shared });
            }
        }
        let access = OFlag::from_bits_truncate(fcntl(stream, FcntlArg::F_GETFL)?);
        if access & OFlag::O_ACCMODE != OFlag::O_RDWR {
            return Err(Errno::EACCES);
        }
        let fd = stream.try_clone_to_owned().map_err(|_| Errno::last())?;
        Ok(Outer { fd, own_description: false, controlling, shared })
    }

    /// How much may be written at once without risking to block. On a description that is not our
    /// own that is what poll(2) promised: room for something.
    pub(super) fn write_limit(&self) -> usize {
        if self.own_description { usize::MAX } else { 1 }
    }

    /// Whether a write is allowed only after poll(2) announced room.
    pub(super) fn blocks(&self) -> bool {
        !self.own_description
    }

    /// Whether this process is in the foreground of the terminal, so that it may read keys and
    /// change modes. A terminal that is not the controlling one knows no foreground: always.
    ///
    /// An error (EIO) means that the terminal was hung up.
    pub(super) fn is_foreground(&self) -> nix::Result<bool> {
        match sys::foreground_group(self.fd.as_raw_fd()) {
            Ok(group) => Ok(Pid::from_raw(group) == getpgrp()),
            Err(Errno::ENOTTY) => Ok(!self.controlling),
            Err(error) => Err(error),
        }
    }

    /// Raw mode: every key is a byte for the guest, whose own pty gives it a meaning. Remembers
    /// the attributes found, unless the terminal is raw through us already.
    pub(super) fn make_raw(&self) -> nix::Result<()> {
        let found = sys::attributes(self.fd.as_fd())?;
        let raw = raw(found, self.shared);
        if RESCUE.is_armed_for(self.fd.as_raw_fd()) && same_modes(&found, &raw) {
            return Ok(());
        }
        let _held = HeldSigttou::new();
        RESCUE.arm(self.fd.as_raw_fd(), &found);
        sys::set_attributes(self.fd.as_raw_fd(), &raw).inspect_err(|_| RESCUE.disarm())
    }

    /// Puts the attributes back that [`Outer::make_raw`] found. If somebody else has the
    /// foreground by now, the modes are theirs and stay as they are.
    pub(super) fn restore(&self) {
        // Another `Outer` may be in charge: looking for the terminal a second time must not, when
        // that one is dropped, end the raw mode of the first.
        if RESCUE.is_armed_for(self.fd.as_raw_fd()) {
            restore_now();
            RESCUE.disarm();
        }
    }
}

impl AsFd for Outer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Puts the outer terminal's attributes back, if a relay has made it raw.
///
/// For the way out that runs no destructors: a fatal signal, an abort, `process::exit`. Takes no
/// lock, allocates nothing, is async-signal-safe and may be called any number of times.
pub fn restore_now() {
    let Some((fd, termios)) = RESCUE.load() else { return };
    let _held = HeldSigttou::new();
    match sys::foreground_group(fd) {
        Ok(group) if Pid::from_raw(group) != getpgrp() => {}
        // There is nobody to tell: the terminal is gone, or it is as it was.
        _ => drop(sys::set_attributes(fd, &termios)),
    }
}

/// What [`restore_now`] needs, where a signal handler can reach it.
///
/// `fd` is -1 while there is nothing to restore. `words` is written only then, so that whoever sees
/// a descriptor sees the attributes that belong to it (release in `arm`, acquire in `load`).
struct Rescue {
    fd: AtomicI32,
    words: [AtomicU32; WORDS],
}

/// Four flag words, the line discipline, `NCCS` control characters, two speeds.
const WORDS: usize = 7 + libc::NCCS;

/// One for the process: only one terminal can be in front of its user.
static RESCUE: Rescue =
    Rescue { fd: AtomicI32::new(-1), words: [const { AtomicU32::new(0) }; WORDS] };

impl Rescue {
    fn arm(&self, fd: RawFd, termios: &libc::termios) {
        self.disarm();
        let modes = [termios.c_iflag, termios.c_oflag, termios.c_cflag, termios.c_lflag];
        let rest = [termios.c_line.into(), termios.c_ispeed, termios.c_ospeed];
        let keys = termios.c_cc.iter().map(|&key| u32::from(key));
        for (word, value) in self.words.iter().zip(modes.into_iter().chain(rest).chain(keys)) {
            word.store(value, Ordering::Relaxed);
        }
        self.fd.store(fd, Ordering::Release);
    }

    fn is_armed_for(&self, fd: RawFd) -> bool {
        self.fd.load(Ordering::Relaxed) == fd
    }

    fn disarm(&self) {
        self.fd.store(-1, Ordering::Release);
    }

    fn load(&self) -> Option<(RawFd, libc::termios)> {
        let fd = self.fd.load(Ordering::Acquire);
        if fd < 0 {
            return None;
        }
        let word = |index: usize| self.words[index].load(Ordering::Relaxed);
        let termios = libc::termios {
            c_iflag: word(0),
            c_oflag: word(1),
            c_cflag: word(2),
            c_lflag: word(3),
            c_line: word(4) as u8,
            c_ispeed: word(5),
            c_ospeed: word(6),
            c_cc: std::array::from_fn(|index| word(7 + index) as u8),
        };
        Some((fd, termios))
    }
}

/// The raw version of `termios`: nothing is interpreted, echoed or (unless `shared`) changed on
/// its way out. Character size, parity and flow control of the line stay: they are the line's.
fn raw(mut termios: libc::termios, shared: bool) -> libc::termios {
    termios.c_iflag &= !(libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IUCLC
        | libc::IXON);
    termios.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    if !shared {
        termios.c_oflag &= !libc::OPOST;
    }
    termios.c_cc[libc::VMIN] = 1;
    termios.c_cc[libc::VTIME] = 0;
    termios
}

fn same_modes(a: &libc::termios, b: &libc::termios) -> bool {
    (a.c_iflag, a.c_oflag, a.c_cflag, a.c_lflag, a.c_cc)
        == (b.c_iflag, b.c_oflag, b.c_cflag, b.c_lflag, b.c_cc)
}

/// While it lives, this thread has SIGTTOU blocked: tcsetattr(3) then works from the background
/// instead of stopping us (`__tty_check_change` in the kernel's tty_jobctrl.c), should the
/// foreground be taken away between our look and our act.
struct HeldSigttou(Option<SigSet>);

impl HeldSigttou {
    fn new() -> HeldSigttou {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTTOU);
        HeldSigttou(set.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for HeldSigttou {
    fn drop(&mut self) {
        if let Some(former) = self.0 {
            // Cannot fail: the mask is one that was in force.
            let _ = former.thread_set_mask();
        }
    }
}
