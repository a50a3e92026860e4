//! The relay as the supervisor's main thread handles it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::terminal as sys;

use super::carrier::{Link, Order, carry, lower};
use super::job;
use super::outer::Outer;

/// Carries bytes between the outer terminal and the guest's pty.
///
/// Dropping it restores the outer terminal, discards output that is still on its way and closes
/// the guest's pty, which hangs it up: the leader of the guest's session gets SIGHUP and SIGCONT,
/// and nobody else does. That leader is the guest's init, which has to pass them on; being the
/// first process of a pid namespace it would not even die of them (pid_namespaces(7)).
///
/// Its methods belong to one thread, the one that receives the supervisor's signals.
#[derive(Debug)]
pub struct Relay {
    link: Arc<Link>,
    /// `None` once dropped: that ends the carrier.
    orders: Option<Sender<Order>>,
    carrier: Option<JoinHandle<()>>,
    /// Keys of who is asked.
    answers: Receiver<(u64, u8)>,
    /// Readable while a signal that is to end the supervisor is pending. Never read.
    ending: SignalFd,
    errands: u64,
    /// Whether the guest was last said to be in the foreground of its pty.
    foreground: bool,
    /// Whether other programs may be using the terminal beside the guest.
    pipeline: bool,
}

/// How a guest is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Whether its program's process group is to be the foreground group of the guest's pty.
    pub foreground: bool,
}

impl Relay {
    pub(super) fn start(
        outer: Outer,
        master: OwnedFd,
        foreground: bool,
        pipeline: bool,
    ) -> io::Result<Relay> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let mut endings = SigSet::empty();
        endings.extend([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
        let ending = SignalFd::with_flags(&endings, flags)?;
        let link = Arc::new(Link::new(outer, master)?);
        // The foreground may have been lost since the guest was told; it comes back with a SIGCONT.
        let keys = foreground && link.outer.is_foreground()?;
        if keys {
            link.outer.make_raw()?;
        }

        let (orders, received) = channel();
        let (answer, answers) = channel();
        let shared = Arc::clone(&link);
        // The thread inherits this mask: no signal of the supervisor's may end up in it.
        let former = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let thread = Builder::new().name("terminal".into());
        let carrier = thread.spawn(move || carry(shared, received, answer, keys));
        former.thread_set_mask()?;

        let relay = Relay {
            link,
            orders: Some(orders),
            carrier: Some(carrier?),
            answers,
            ending,
            errands: 0,
            foreground,
            pipeline,
        };
        relay.resize();
        Ok(relay)
    }

    /// Gives the guest's pty the window size of the outer terminal (after SIGWINCH). The kernel
    /// tells the guest if it changed.
    pub fn resize(&self) {
        // A terminal that is gone has no size; that it is gone is told by `notice`.
        if let Ok(size) = sys::window_size(self.link.outer.as_fd()) {
            let _ = sys::set_window_size(self.link.master.as_fd(), &size);
        }
    }

    /// Becomes readable, and stays so, when the outer terminal is gone (hung up, unplugged). The
    /// relay carries nothing any more; drop it to pass the hang-up on to the guest.
    pub fn notice(&self) -> BorrowedFd<'_> {
        self.link.notice.as_fd()
    }

    /// Shows the question of this number: what the guest writes waits from then on, and single keys come to [`Relay::answers`], until
    /// [`Relay::resume`]. (A stop ends it, too.) `false`: the supervisor is in the background, and nothing is shown.
    ///
    /// # Errors
    /// EIO: the outer terminal is gone.
    pub fn ask(&mut self, question: u64, words: String) -> io::Result<bool> {
        if !self.link.outer.is_foreground()? {
            return Ok(false);
        }
        // (In a pipeline it need not be so.)
        self.link.outer.make_raw()?;
        self.order(Order::Ask { question, words });
        Ok(true)
    }

    /// Shows more words, while somebody is asked.
    pub fn ask_on(&mut self, words: String) {
        self.order(Order::Say { words });
    }

    /// Shows words, and goes on carrying.
    pub fn resume(&mut self, words: String) {
        self.order(Order::Say { words });
        if !self.foreground {
            self.link.outer.restore();
        }
        self.order(Order::Carry { keys: self.foreground });
    }

    /// Becomes readable when there are keys of who is asked.
    pub fn asked(&self) -> BorrowedFd<'_> {
        self.link.asked.as_fd()
    }

    /// These keys, each with the number of the question that it was read for.
    pub fn answers(&self) -> Vec<(u64, u8)> {
        lower(&self.link.asked);
        self.answers.try_iter().collect()
    }

    /// Whether the guest takes keys as they come, as programs do that fill the screen.
    pub fn is_drawn_on(&self) -> bool {
        sys::attributes(self.link.master.as_fd()).is_ok_and(|it| it.c_lflag & libc::ICANON == 0)
    }

    /// The guest's program stopped by `signal` (SIGTSTP, SIGSTOP, SIGTTIN, SIGTTOU): says how it is
    /// to go on, after having suspended the supervisor's own job where that is called for.
    ///
    /// A program that wants the terminal (SIGTTIN, SIGTTOU) gets it at once if the supervisor is in
    /// the foreground of it. Otherwise what the guest has written so far is carried, the outer
    /// terminal is restored, and the supervisor's process group stops by the same signal, so that
    /// the user's shell sees a stopped job as after stopping any program. It returns when the job
    /// was continued.
    ///
    /// If SIGTERM, SIGHUP or SIGQUIT is pending while the outer terminal takes no output, it
    /// returns without suspending.
    ///
    /// # Errors
    /// EIO: the outer terminal is gone, or the program wants keys and nobody is left who could ever
    /// bring the supervisor's job to the foreground ("orphaned", setpgid(2)). Drop the relay.
    pub fn suspend(&mut self, signal: Signal) -> io::Result<Resume> {
        let asks = matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU);
        if asks && self.link.outer.is_foreground()? {
            return self.take_terminal();
        }
        if !self.settle() {
            self.order(Order::Carry { keys: self.foreground });
            return Ok(Resume { foreground: self.foreground });
        }
        if self.link.has_ended() {
            return Err(Errno::EIO.into());
        }
        self.link.outer.restore();
        let stopped = job::stop(signal)?;

        if self.link.outer.is_foreground()? {
            // In a pipeline the terminal is left to the others unless the guest asks for it.
            // SIGSTOP counts as asking: programs that catch SIGTTIN stop themselves by it.
            if self.foreground || !self.pipeline || signal != Signal::SIGTSTP {
                return self.take_terminal();
            }
            return Ok(self.leave_terminal());
        }
        let resume = self.leave_terminal();
        match signal {
            // The kernel fails the read of an orphan; a guest whose read would only stop it again
            // must not be sent into that circle.
            Signal::SIGTTIN if !stopped => Err(Errno::EIO.into()),
            // Changing the modes of its own pty harms nobody.
            Signal::SIGTTOU if !stopped => Ok(Resume { foreground: true }),
            _ => Ok(resume),
        }
    }

    /// SIGCONT arrived at the supervisor: says how the guest, which may have gone on all the time,
    /// is to go on. After a stop from outside (SIGSTOP to the supervisor alone) the user's shell
    /// has put its own modes on the terminal and perhaps kept the foreground for itself.
    ///
    /// # Errors
    /// EIO: the outer terminal is gone. Drop the relay.
    pub fn continued(&mut self) -> io::Result<Resume> {
        if self.link.outer.is_foreground()? && (self.foreground || !self.pipeline) {
            return self.take_terminal();
        }
        Ok(self.leave_terminal())
    }

    /// The guest and everything in it ended: carries the last output and restores the terminal.
    ///
    /// What the guests had written is carried to the last byte, also when somebody still has the
    /// guest's pty open. It waits for the outer terminal to take it; only with SIGTERM, SIGHUP or
    /// SIGQUIT pending does it give up once the terminal takes no more.
    ///
    /// # Errors
    /// EINTR: output was given up because of such a signal. EIO: the outer terminal is gone.
    pub fn finish(mut self) -> io::Result<()> {
        let finished = self.settle();
        if self.link.has_ended() {
            return Err(Errno::EIO.into());
        }
        if finished { Ok(()) } else { Err(Errno::EINTR.into()) }
    }

    fn take_terminal(&mut self) -> io::Result<Resume> {
        self.resize();
        self.link.outer.make_raw()?;
        self.order(Order::Carry { keys: true });
        self.foreground = true;
        Ok(Resume { foreground: true })
    }

    fn leave_terminal(&mut self) -> Resume {
        self.resize();
        self.link.outer.restore();
        self.order(Order::Carry { keys: false });
        self.foreground = false;
        Resume { foreground: false }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A carrier that has ended has said so through `notice`.
            let _ = orders.send(order);
            self.link.wake();
        }
    }

    /// Has the carrier carry what the guest has written so far and rest, and waits until it does.
    /// False if that was cut short by a signal that is to end the supervisor.
    fn settle(&mut self) -> bool {
        self.errands += 1;
        self.order(Order::Settle { errand: self.errands });
        let mut hurried = false;
        while !self.link.is_completed(self.errands) {
            let mut fds = [
                PollFd::new(self.link.done.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ending.as_fd(), PollFlags::POLLIN),
            ];
            let watched = if hurried { 1 } else { 2 };
            // An interrupted wait is simply repeated.
            let _ = poll(&mut fds[..watched], PollTimeout::NONE);
            let ending = fds[1].any() == Some(true);
            lower(&self.link.done);
            if ending && !hurried {
                hurried = true;
                self.order(Order::Hurry);
            }
        }
        !self.link.was_cut_short()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.orders = None;
        self.link.wake();
        if let Some(carrier) = self.carrier.take() {
            // It panicked or it did not; either way it is over.
            let _ = carrier.join();
        }
        self.link.outer.restore();
    }
}
