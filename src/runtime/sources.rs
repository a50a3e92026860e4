//! What is waited for while a program runs: signals, events of who keeps it, the end of the terminal.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signalfd::siginfo;
use tokio::io::unix::AsyncFd;

use super::Error;
use super::job::Signals;
use crate::launch::{Behind, Event, Keeper, LaunchError};
use crate::sys::message::Descriptors;
use crate::sys::ready::watch_readable;

/// Who tells of a program: init, a keeper, or the supervisor on behalf of one.
pub(super) trait Teller {
    /// Where its events can be waited for.
    fn socket(&self) -> BorrowedFd<'_>;
    /// The next event. EAGAIN: there is none yet; EPIPE: it is gone.
    fn event(&self) -> Result<(Event, Descriptors), Errno>;
}

impl Teller for Behind {
    fn socket(&self) -> BorrowedFd<'_> {
        Behind::socket(self)
    }
    fn event(&self) -> Result<(Event, Descriptors), Errno> {
        Behind::event(self)
    }
}

impl Teller for Keeper {
    fn socket(&self) -> BorrowedFd<'_> {
        Keeper::socket(self)
    }
    fn event(&self) -> Result<(Event, Descriptors), Errno> {
        Keeper::event(self)
    }
}

/// What happened next.
pub(super) enum Next {
    /// The teller told something.
    Told(Event, Descriptors),
    /// This process got a signal.
    Signal(siginfo),
    /// The caller's terminal is gone.
    TerminalGone,
    /// Nothing yet, after all.
    Nothing,
}

/// What is waited for.
pub(super) struct Sources {
    signals: Signals,
    signalled: AsyncFd<OwnedFd>,
    told: AsyncFd<OwnedFd>,
    /// Readable when the terminal that is carried is gone.
    pub(super) terminal: Option<AsyncFd<OwnedFd>>,
}

impl Sources {
    /// Needs a tokio context.
    pub(super) fn new(signals: Signals, teller: &impl Teller) -> Result<Sources, Error> {
        let told = watch_readable(teller.socket()).map_err(own)?;
        Ok(Sources { signalled: signals.watch()?, signals, told, terminal: None })
    }

    /// Waits. Nothing is lost when the wait is given up.
    pub(super) async fn next(
        &self,
        teller: &impl Teller,
        terminal_wanted: bool,
    ) -> Result<Next, Error> {
        let terminal_gone = async {
            match &self.terminal {
                Some(gone) if terminal_wanted => gone.readable().await.map(drop),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ready = self.signalled.readable() => {
                let mut ready = ready.map_err(own)?;
                if let Ok(Some(signal)) = self.signals.fd.read_signal() {
                    return Ok(Next::Signal(signal));
                }
                ready.clear_ready();
            }
            ready = self.told.readable() => {
                let mut ready = ready.map_err(own)?;
                match teller.event() {
                    Ok((event, fds)) => return Ok(Next::Told(event, fds)),
                    Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(errno) => return Err(lost(errno)),
                }
            }
            ready = terminal_gone => return ready.map(|()| Next::TerminalGone).map_err(own),
        }
        Ok(Next::Nothing)
    }
}

fn own(error: std::io::Error) -> Error {
    Error::Own("wait for the sandbox", error)
}

fn lost(errno: Errno) -> Error {
    Error::Launch(match errno {
        Errno::EPIPE | Errno::ECONNRESET => LaunchError::Vanished("while the program ran"),
        errno => LaunchError::Own("hear from the sandbox's init process", errno),
    })
}
