//! A program as the job that the caller's shell sees: signals, stops, the terminal.
//!
//! What the supervisor of a run and the client of a later program have in common. It decides, and its
//! user carries out: orders go to whoever keeps the program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use tokio::io::unix::AsyncFd;

use super::Error;
use crate::launch::Order;
use crate::sys::generated;
use crate::sys::ready::watch_readable;
use crate::terminal::{Relay, Resume, Terminal};

/// The caller's terminal while it is carried, and what is known of the program's place in it.
#[derive(Debug)]
pub(super) struct Job {
    relay: Option<Relay>,
    /// Whether the program starts in the foreground of its terminal, if it has one.
    foreground: bool,
    /// A SIGINT came to this process itself: it was no key.
    passed_interrupt: bool,
}

/// What a signal of the caller asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// An order to the program's keeper.
    Order(Order),
    /// The same signal to the program's process.
    Pass(i32),
    /// It has been dealt with.
    Done,
}

impl Job {
    /// A job whose terminal is not carried yet.
    pub(super) fn new(terminal: Option<&Terminal>) -> Job {
        let foreground = terminal.is_none_or(Terminal::starts_in_foreground);
        Job { relay: None, foreground, passed_interrupt: false }
    }

    /// How the program is to start.
    pub(super) fn foreground(&self) -> bool {
        self.foreground
    }

    /// Begins to carry the terminal; gives what becomes readable when it is gone.
    pub(super) fn carry(
        &mut self,
        terminal: Terminal,
        master: OwnedFd,
    ) -> Result<AsyncFd<OwnedFd>, Error> {
        let own = |error| Error::Own("carry the terminal", error);
        let relay = self.relay.insert(terminal.relay(master).map_err(own)?);
        watch_readable(relay.notice()).map_err(own)
    }

    /// Shows a question in place of the guest's output. `None`: there is no terminal; `Some(false)`: it is somebody else's
    /// at the moment.
    pub(super) fn ask(&mut self, question: u64, words: String) -> Option<bool> {
        // (That it is gone is told by another way.)
        self.relay.as_mut()?.ask(question, words).ok()
    }

    /// Shows more of it.
    pub(super) fn show_more(&mut self, words: String) {
        if let Some(relay) = &mut self.relay {
            relay.ask_on(words);
        }
    }

    /// The question is closed: the guest's output goes on, behind these words.
    pub(super) fn resume_screen(&mut self, words: String) {
        if let Some(relay) = &mut self.relay {
            relay.resume(words);
        }
    }

    /// Readable when there are keys of who is asked.
    pub(super) fn asked(&self) -> Option<BorrowedFd<'_>> {
        self.relay.as_ref().map(Relay::asked)
    }

    /// These keys, each with the number of the question that it was read for.
    pub(super) fn answers(&self) -> Vec<(u64, u8)> {
        self.relay.as_ref().map(Relay::answers).unwrap_or_default()
    }

    /// Whether the guest fills the screen, as far as can be told.
    pub(super) fn is_drawn_on(&self) -> bool {
        self.relay.as_ref().is_some_and(Relay::is_drawn_on)
    }

    /// Stops this process as a job that wants its terminal, until it is continued. `None`: nobody could bring it to the
    /// foreground.
    pub(super) fn wait_for_foreground(&mut self) -> Option<Order> {
        let resume = self.relay.as_mut()?.suspend(Signal::SIGTTIN).ok()?;
        Some(Order::Resume { foreground: resume.foreground })
    }

    /// Whether a terminal is carried.
    pub(super) fn is_carrying(&self) -> bool {
        self.relay.is_some()
    }

    /// The caller's terminal is gone: the guest sees its own hang up.
    pub(super) fn hang_up(&mut self) {
        self.relay = None;
    }

    /// The program has stopped: so does this process, as the job that its shell sees; when it is
    /// continued, so is the program, by the order that is given.
    pub(super) fn suspend(&mut self, signal: i32) -> Order {
        let signal = Signal::try_from(signal).unwrap_or(Signal::SIGSTOP);
        let resume = match &mut self.relay {
            Some(relay) => match relay.suspend(signal) {
                Ok(resume) => resume,
                Err(_) => {
                    self.relay = None;
                    Resume { foreground: true }
                }
            },
            None => {
                // A stop cannot be caught or blocked, so this returns once somebody continues us.
                let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                Resume { foreground: true }
            }
        };
        Order::Resume { foreground: resume.foreground }
    }

    /// A signal arrived at this process.
    pub(super) fn on_signal(&mut self, signal: &siginfo) -> Reaction {
        let number = signal.ssi_signo as i32;
        self.passed_interrupt |= number == libc::SIGINT;
        match Signal::try_from(number) {
            Ok(Signal::SIGWINCH) => {
                if let Some(relay) = &self.relay {
                    relay.resize();
                }
                Reaction::Done
            }
            Ok(Signal::SIGCONT) => {
                let resume = match &mut self.relay {
                    Some(relay) => relay.continued().ok(),
                    None => Some(Resume { foreground: self.foreground }),
                };
                match resume {
                    Some(Resume { foreground }) => Reaction::Order(Order::Resume { foreground }),
                    None => {
                        self.relay = None;
                        Reaction::Done
                    }
                }
            }
            // A key of the terminal is meant for the whole job, a signal of a process for one.
            _ if signal.ssi_code > 0 => Reaction::Order(Order::Group(number)),
            _ => Reaction::Pass(number),
        }
    }

    /// The program has ended with this wait status: the last output is carried. Gives whether Ctrl-C
    /// on the terminal ended it.
    pub(super) fn finish(self, status: i32) -> bool {
        let interrupted = self.relay.is_some()
            && !self.passed_interrupt
            && libc::WIFSIGNALED(status)
            && libc::WTERMSIG(status) == libc::SIGINT;
        if let Some(relay) = self.relay {
            // The terminal is gone or the user is in a hurry: nobody is left to tell.
            let _ = relay.finish();
        }
        interrupted
    }
}

/// The signals that are meant for the program, read instead of suffered.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) fd: SignalFd,
    /// What was blocked before: the program gets it back.
    pub(super) before: SigSet,
}

impl Signals {
    pub(super) fn take() -> Result<Signals, Error> {
        let own = |errno: nix::errno::Errno| Error::Own("take over the signals", errno.into());
        let ignored = ignored_signals();
        let mut taken = SigSet::empty();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGALRM,
            Signal::SIGTSTP,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGCONT,
            Signal::SIGWINCH,
        ] {
            // What the caller ignores (nohup) stays ignored, inside too.
            if ignored & (1 << (signal as i32 - 1)) == 0 {
                taken.add(signal);
            }
        }
        // SIGCHLD tells the thread that traces guests (`sentry::tracer`) of their stops, so no other
        // thread may swallow it.
        let mut blocked = taken;
        blocked.add(Signal::SIGCHLD);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(own)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&taken, flags).map_err(own)?;
        Ok(Signals { fd, before })
    }

    /// Waits for the next one.
    pub(super) fn watch(&self) -> Result<AsyncFd<OwnedFd>, Error> {
        watch_readable(self.fd.as_fd()).map_err(|error| Error::Own("wait for signals", error))
    }
}

/// The signals that this process ignores (proc_pid_status(5), SigIgn).
fn ignored_signals() -> u64 {
    generated::text("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}
