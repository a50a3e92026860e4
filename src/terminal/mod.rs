//! The outer terminal and the relay between it and the guest's own pty.
//!
//! Where standard streams of the supervisor are a terminal, the guest gets a pty of its own in
//! their place and this module carries bytes, window size and stops between the two, so that the
//! guest never holds a descriptor of the terminal that the user's shell lives on (TIOCSTI and its
//! relatives have nothing to reach) and still behaves as if it did: Ctrl-C and Ctrl-Z are keys that
//! the guest's pty turns into signals for the guest, a guest that stops takes the supervisor's job
//! with it, `fg` continues both.
//!
//! Owns: finding the outer terminal, its raw mode and the promise that it is always put back, the
//! thread that carries bytes, the suspension of the supervisor's own job. Deliberately does not:
//! create the guest's pty, choose the foreground process group of that pty or continue the guest
//! (only a process of the guest's session can: the guest's init does it, told by [`Resume`]); nor
//! read signals (the supervisor's main thread does and calls [`Relay::resize`] and its siblings).
//!
//! | event, seen by the supervisor's main thread | its answer |
//! |---|---|
//! | SIGWINCH | [`Relay::resize`] |
//! | the guest's program stopped | [`Relay::suspend`], then continue it as [`Resume`] says |
//! | SIGCONT | [`Relay::continued`], then place it as [`Resume`] says |
//! | SIGINT, SIGQUIT, SIGTSTP | send the same to the guest: it is in the background of its pty |
//! | a question for the user | [`Relay::ask`], [`Relay::answers`] as [`Relay::asked`] is readable, [`Relay::resume`] |
//! | [`Relay::notice`] readable, or an error from `suspend` or `continued` | drop the relay: that hangs the guest's pty up |
//! | the guest ended | [`Relay::finish`] |
//! | dying without unwinding | [`restore_now`] |

mod carrier;
mod job;
mod outer;
mod relay;
mod words;

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;
use nix::sys::termios::tcgetsid;

use crate::sys::terminal as sys;

use outer::Outer;

pub use outer::restore_now;
pub use relay::{Relay, Resume};

/// The outer terminal, as found on the supervisor's standard streams.
#[derive(Debug)]
pub struct Terminal {
    outer: Outer,
    streams: [bool; 3],
    settings: Settings,
    starts_in_foreground: bool,
}

/// Attributes and window size of a terminal: plain data that a forked child can carry.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    termios: libc::termios,
    window: libc::winsize,
}

impl Settings {
    /// As plain numbers, for a message.
    pub fn to_words(&self) -> Vec<u32> {
        let Settings { termios: t, window: w } = self;
        let mut words = vec![t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, u32::from(t.c_line)];
        words.extend([t.c_ispeed, t.c_ospeed, u32::from(w.ws_row), u32::from(w.ws_col)]);
        words.extend(t.c_cc.map(u32::from));
        words
    }

    /// What [`Settings::to_words`] gave, or `None`.
    pub fn from_words(words: &[u32]) -> Option<Settings> {
        let (head, keys) = words.split_first_chunk::<9>()?;
        let [iflag, oflag, cflag, lflag, line, ispeed, ospeed, row, column] = *head;
        let byte = |word: &u32| u8::try_from(*word).ok();
        let keys: Vec<u8> = keys.iter().map(byte).collect::<Option<_>>()?;
        let termios = libc::termios {
            c_iflag: iflag,
            c_oflag: oflag,
            c_cflag: cflag,
            c_lflag: lflag,
            c_line: byte(&line)?,
            c_cc: keys.try_into().ok()?,
            c_ispeed: ispeed,
            c_ospeed: ospeed,
        };
        let window = libc::winsize {
            ws_row: u16::try_from(row).ok()?,
            ws_col: u16::try_from(column).ok()?,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Some(Settings { termios, window })
    }

    /// Gives the pty `fd` (either end of it) these attributes and this window size. Two ioctls, no
    /// allocation. The caller must be in the foreground of that pty, or it must not be the
    /// caller's controlling terminal, or SIGTTOU must be blocked: otherwise it stops.
    pub fn apply(&self, fd: BorrowedFd) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        sys::set_attributes(fd.as_raw_fd(), &self.termios)?;
        sys::set_window_size(fd, &self.window)
    }
}

impl Terminal {
    /// The terminal on the standard streams; `None` when none of the three is one.
    ///
    /// When they are different terminals, the controlling one is meant, else the first; a stream
    /// that is some other terminal is left alone.
    pub fn of_standard_streams() -> Option<Terminal> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        Terminal::among([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
    }

    fn among(streams: [BorrowedFd; 3]) -> Option<Terminal> {
        let mut terminals = streams.iter().filter(|stream| stream.is_terminal());
        let first = terminals.clone().next()?;
        let chosen = terminals.find(|stream| is_controlling(stream)).unwrap_or(first);
        let same = streams.map(|stream| is_same_terminal(stream, *chosen));

        // Where stdout goes elsewhere, other programs of the pipeline may write to this terminal
        // and rely on its output processing.
        let shared = !same[1];
        let outer = Outer::open(*chosen, is_controlling(chosen), shared).ok()?;
        let settings = Settings {
            termios: sys::attributes(*chosen).ok()?,
            window: sys::window_size(*chosen).ok()?,
        };
        let starts_in_foreground = same[0] && same[1] && outer.is_foreground().unwrap_or(false);
        Some(Terminal { outer, streams: same, settings, starts_in_foreground })
    }

    /// Which of the standard streams are this terminal. Only those are to be replaced by the
    /// guest's pty; the others are handed through untouched.
    pub fn streams(&self) -> [bool; 3] {
        self.streams
    }

    /// Attributes and window size for the guest's pty, as they were when the terminal was found.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Whether the guest's program is to start in the foreground of its pty.
    ///
    /// True when the supervisor is in the foreground of the outer terminal and not part of a
    /// pipeline. Otherwise the program starts in the background of its pty and comes to the
    /// foreground once it asks: its first SIGTTIN or SIGTTOU stop goes to [`Relay::suspend`]. So
    /// `a | sandbox -- b` and `sandbox -- a | less` do not fight over the terminal.
    pub fn starts_in_foreground(&self) -> bool {
        self.starts_in_foreground
    }

    /// Begins to carry bytes between this terminal and `master`, the guest's pty, in a thread of
    /// its own, and makes the terminal raw if the guest starts in the foreground.
    ///
    /// `master` becomes non-blocking, so nobody else may use its open file description.
    ///
    /// # Errors
    /// `master` is not a pty master, or the host refuses an eventfd or a thread.
    pub fn relay(self, master: OwnedFd) -> io::Result<Relay> {
        let pipeline = !(self.streams[0] && self.streams[1]);
        Relay::start(self.outer, master, self.starts_in_foreground, pipeline)
    }
}

/// TIOCGSID answers ENOTTY unless the terminal is the caller's controlling one (ioctl_tty(2)).
fn is_controlling(fd: &BorrowedFd) -> bool {
    tcgetsid(fd).is_ok()
}

fn is_same_terminal(a: BorrowedFd, b: BorrowedFd) -> bool {
    if !a.is_terminal() {
        return false;
    }
    // A process has one controlling terminal, and that can be open under two names.
    if is_controlling(&a) && is_controlling(&b) {
        return true;
    }
    match (fstat(a), fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}
