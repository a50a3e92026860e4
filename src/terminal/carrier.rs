//! The thread that carries bytes between the outer terminal and the guest's pty.
//!
//! One poll(2) loop with a bounded buffer each way: a side that does not take its bytes stops the
//! reading of the other side and nothing else, so a key always finds its way past a flood of
//! output. It waits without a limit and without a timer; orders reach it through an eventfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};

use crate::sys::terminal as sys;

use super::outer::Outer;
use super::words::Words;

/// What the supervisor's main thread can ask of the carrier.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// Carry output, and keys as well if `keys`.
    Carry { keys: bool },
    /// The errand of that number: carry what the guest has written so far, then rest.
    Settle { errand: u64 },
    /// Show these words, and then carry nothing but the answer to the question of that number: a key at a time, to
    /// whoever asks.
    Ask { question: u64, words: String },
    /// Show these words, between what the guest has written and what it writes from here on.
    Say { words: String },
    /// End the errand as soon as the outer terminal takes nothing more.
    Hurry,
}

/// What the two threads share.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) outer: Outer,
    pub(super) master: OwnedFd,
    /// Our own hold on the guest's end: without one, the master reports EIO and POLLHUP whenever
    /// no guest happens to have the slave open, which is not the end (pty(7)).
    _slave: OwnedFd,
    /// Readable when there are orders.
    wake: EventFd,
    /// Readable when an errand was completed or the carrier ended.
    pub(super) done: EventFd,
    /// Readable, for good, once the carrier ended by itself: the outer terminal is gone.
    pub(super) notice: EventFd,
    /// Readable when there are keys for whoever asks.
    pub(super) asked: EventFd,
    /// The last errand that ended.
    completed: AtomicU64,
    /// Whether that one ended in a hurry, with bytes left.
    cut_short: AtomicBool,
    ended: AtomicBool,
}

impl Link {
    /// Takes the guest's pty over. EINVAL or ENOTTY when `master` is none.
    pub(super) fn new(outer: Outer, master: OwnedFd) -> nix::Result<Link> {
        let slave = sys::open_slave(master.as_fd())?;
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Link {
            outer,
            master,
            _slave: slave,
            wake: event()?,
            done: event()?,
            notice: event()?,
            asked: event()?,
            completed: AtomicU64::new(0),
            cut_short: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// Makes the carrier look at its orders.
    pub(super) fn wake(&self) {
        raise(&self.wake);
    }

    /// Whether `errand` was completed, or never will be.
    pub(super) fn is_completed(&self, errand: u64) -> bool {
        self.has_ended() || self.completed.load(Ordering::Acquire) >= errand
    }

    /// Whether the last errand ended with bytes left that the outer terminal did not take.
    pub(super) fn was_cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Acquire)
    }

    /// Whether the carrier has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn complete(&self, errand: u64, cut_short: bool) {
        self.cut_short.store(cut_short, Ordering::Release);
        self.completed.store(errand, Ordering::Release);
        raise(&self.done);
    }
}

/// Adds one to an eventfd of ours. It fails only when the counter is full, and then it is readable,
/// which is all that matters.
fn raise(event: &EventFd) {
    let _ = event.write(1);
}

/// Makes an eventfd of ours unreadable again. It fails only when it is so already.
pub(super) fn lower(event: &EventFd) {
    let _ = event.read();
}

/// The body of the carrier's thread: ends when told to, when the other end of `orders` is dropped,
/// or when the outer terminal is gone.
pub(super) fn carry(
    link: Arc<Link>,
    orders: Receiver<Order>,
    answers: Sender<(u64, u8)>,
    keys: bool,
) {
    // Also on a panic: the main thread must never wait for a carrier that is no more.
    let _ending = Ending(&link);
    let mut carrier = Carrier {
        link: &link,
        orders,
        answers,
        question: 0,
        words: Words::default(),
        asks: None,
        keys,
        stage: Stage::Carrying,
        hurried: false,
        guest_gone: false,
        to_guest: Buffer::new(KEYS),
        to_outer: Buffer::new(OUTPUT),
    };
    if carrier.run() == End::HungUp {
        raise(&link.notice);
    }
}

struct Ending<'a>(&'a Link);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        raise(&self.0.done);
        if std::thread::panicking() {
            raise(&self.0.notice);
        }
    }
}

/// Bytes on their way to the guest: as much as a line discipline holds (N_TTY_BUF_SIZE).
const KEYS: usize = 4096;
/// Bytes on their way to the user. Small, so that what was written after a Ctrl-C is soon seen.
const OUTPUT: usize = 16 * 1024;
/// An errand carries at most this much from the guest's pty. The kernel holds far less (8 KiB of
/// flip buffers and a line discipline's 4 KiB), so only a writer that goes on is cut short.
const LEFTOVERS: usize = 1024 * 1024;
/// A question waits for as much: what was written before it was asked lies in the kernel.
const BEFORE: usize = 16 * 1024;

#[derive(Debug, PartialEq, Eq)]
enum End {
    Ordered,
    HungUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Until further notice.
    Carrying,
    /// Until the guest's pty is dry and the user has it all; at most `left` bytes more.
    Settling { errand: u64, left: usize },
    /// Somebody is asked: keys are for whoever asks, and what the guest writes waits; but for what it had written before,
    /// at most `left` bytes more.
    Asking { left: usize },
    /// Nothing at all, until told otherwise.
    Resting,
}

struct Carrier<'a> {
    link: &'a Link,
    orders: Receiver<Order>,
    /// Takes the keys of who is asked, each with the number of the question that it was read for.
    answers: Sender<(u64, u8)>,
    /// The number of the last question.
    question: u64,
    /// What is to be shown between the guest's output.
    words: Words,
    /// The question, as long as what the guest had written before is not all there.
    asks: Option<String>,
    /// Whether keys are read from the outer terminal: only in the foreground.
    keys: bool,
    stage: Stage,
    hurried: bool,
    /// The master said EIO: no guest can ever write again.
    guest_gone: bool,
    to_guest: Buffer,
    to_outer: Buffer,
}

/// What poll(2) found.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    keys: bool,
    room: bool,
    output: bool,
}

impl Carrier<'_> {
    fn run(&mut self) -> End {
        let mut ready = Ready::default();
        loop {
            if self.take_orders().is_err() {
                return End::Ordered;
            }
            // Keys first: they are few, and one of them may stop the flood.
            let step = self.carry_keys(ready).and_then(|()| self.carry_output(ready));
            if step.is_err() {
                return End::HungUp;
            }
            self.settle();
            ready = match self.wait() {
                Ok(ready) => ready,
                Err(_) => return End::HungUp,
            };
        }
    }

    /// Obeys what was ordered; an error when there is nothing more to do.
    fn take_orders(&mut self) -> Result<(), TryRecvError> {
        lower(&self.link.wake);
        loop {
            match self.orders.try_recv() {
                Ok(Order::Carry { keys }) => {
                    (self.keys, self.stage) = (keys, Stage::Carrying);
                }
                Ok(Order::Settle { errand }) => {
                    self.stage = Stage::Settling { errand, left: LEFTOVERS };
                }
                Ok(Order::Ask { question, words }) => {
                    (self.stage, self.question) = (Stage::Asking { left: BEFORE }, question);
                    self.asks = Some(words);
                }
                Ok(Order::Say { words }) => {
                    match &mut self.asks {
                        Some(asks) => asks.push_str(&words),
                        None => self.words.add(&words),
                    }
                    continue;
                }
                Ok(Order::Hurry) => {
                    self.hurried = true;
                    continue;
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(error) => return Err(error),
            }
            self.hurried = false;
        }
    }

    /// Ends an errand whose time has come: the pty is dry and the user has it all, or there is a
    /// hurry and the outer terminal has just taken less than there was. A question comes when the pty is dry.
    fn settle(&mut self) {
        if !matches!(self.stage, Stage::Asking { left: 1.. })
            && let Some(words) = self.asks.take()
        {
            self.words.ask(&words);
        }
        let Stage::Settling { errand, left } = self.stage else { return };
        let stuck = !self.to_outer.is_empty() || !self.words.is_empty();
        if (left == 0 && !stuck) || (self.hurried && stuck) {
            self.stage = Stage::Resting;
            self.link.complete(errand, stuck);
        }
    }

    /// Waits until something can be done.
    fn wait(&mut self) -> Result<Ready, HungUp> {
        let reading_keys = match self.stage {
            Stage::Carrying => self.keys && self.to_guest.has_room(),
            stage => matches!(stage, Stage::Asking { .. }),
        };
        let reading_output = self.stage == Stage::Carrying && self.to_outer.has_room();
        let outer = when(reading_keys, PollFlags::POLLIN)
            | when(!self.to_outer.is_empty() || !self.words.is_empty(), PollFlags::POLLOUT);
        let guest = when(reading_output, PollFlags::POLLIN)
            | when(!self.to_guest.is_empty(), PollFlags::POLLOUT);
        let mut fds = [
            PollFd::new(self.link.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.link.outer.as_fd(), outer),
            PollFd::new(self.link.master.as_fd(), guest),
        ];
        // POLLHUP cannot be masked: a guest's pty that is dead must not be asked, or we spin.
        let rests = match self.stage {
            Stage::Asking { .. } => self.to_guest.is_empty(),
            stage => stage == Stage::Resting,
        };
        let watched = if self.guest_gone || rests { 2 } else { 3 };
        let timeout = match self.stage {
            // The pty is read until it is dry rather than until it is announced to be.
            Stage::Settling { left: 1.., .. } | Stage::Asking { left: 1.. }
                if self.to_outer.has_room() && self.words.is_empty() =>
            {
                PollTimeout::ZERO
            }
            _ => PollTimeout::NONE,
        };
        match poll(&mut fds[..watched], timeout) {
            Ok(_) => {}
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(Ready::default()),
            Err(_) => return Err(HungUp),
        }
        let found = |index: usize| fds[index].revents().unwrap_or(PollFlags::empty());
        let broken = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        if found(1).intersects(broken) {
            return Err(HungUp);
        }
        Ok(Ready {
            keys: reading_keys && found(1).contains(PollFlags::POLLIN),
            room: found(1).contains(PollFlags::POLLOUT),
            output: found(2).intersects(PollFlags::POLLIN | PollFlags::POLLHUP),
        })
    }

    /// From the outer terminal to the guest's pty.
    fn carry_keys(&mut self, ready: Ready) -> Result<(), HungUp> {
        if ready.keys && matches!(self.stage, Stage::Asking { .. }) {
            self.take_answer()?;
        }
        if ready.keys && self.keys && self.stage == Stage::Carrying {
            match self.to_guest.fill(self.link.outer.as_fd()) {
                Ok(0) => self.carry_end_of_file()?,
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                // EIO also says that we are not in the foreground any more (SIGTTIN is blocked
                // here, `__tty_check_change`): the keys are for somebody else.
                Err(Errno::EIO) if self.link.outer.is_foreground() == Ok(false) => {
                    self.keys = false;
                }
                Err(_) => return Err(HungUp),
            }
        }
        if self.guest_gone || self.stage == Stage::Resting {
            return Ok(());
        }
        match self.to_guest.drain(self.link.master.as_fd(), usize::MAX) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.guest_is_gone(),
        }
        Ok(())
    }

    /// What is typed while somebody is asked. What came too soon after the question was shown, or after another key, to
    /// be an answer to it, and what is more than one key, was meant for the guest; so are the keys that stop or end it.
    fn take_answer(&mut self) -> Result<(), HungUp> {
        const STOP: u8 = 0x1a;
        const QUIT: u8 = 0x1c;
        let mut typed = [0; 256];
        let count = match read(self.link.outer.as_fd(), &mut typed) {
            Ok(0) => return sys::attributes(self.link.outer.as_fd()).map(drop).map_err(|_| HungUp),
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            // As in `carry_keys`. Whoever asks shows the question again when this is in the foreground once more.
            Err(Errno::EIO) if self.link.outer.is_foreground() == Ok(false) => {
                self.stage = Stage::Carrying;
                self.keys = false;
                return Ok(());
            }
            Err(_) => return Err(HungUp),
        };
        let were_read = self.asks.is_none() && self.words.were_read();
        // Whoever types on does not look at the screen.
        self.words.read_anew();
        match typed[..count] {
            [key] if were_read && ![STOP, QUIT].contains(&key) => {
                let _ = self.answers.send((self.question, key));
                raise(&self.link.asked);
            }
            ref keys if self.keys => {
                for key in keys {
                    if self.to_guest.has_room() {
                        self.to_guest.push(*key);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A read of nothing: a terminal that was hung up, or one that somebody made canonical again
    /// under us and whose user typed the end of a file.
    fn carry_end_of_file(&mut self) -> Result<(), HungUp> {
        match sys::attributes(self.link.outer.as_fd()) {
            Ok(termios) => {
                self.to_guest.push(termios.c_cc[libc::VEOF]);
                Ok(())
            }
            Err(_) => Err(HungUp),
        }
    }

    /// From the guest's pty to the outer terminal.
    fn carry_output(&mut self, ready: Ready) -> Result<(), HungUp> {
        let wanted = match self.stage {
            Stage::Carrying => ready.output,
            Stage::Settling { left, .. } | Stage::Asking { left } => left > 0,
            Stage::Resting => false,
        };
        if wanted && self.to_outer.has_room() && self.words.is_empty() {
            match self.to_outer.fill(self.link.master.as_fd()) {
                Ok(0) => self.guest_is_gone(),
                Ok(count) => self.count_down(count),
                Err(Errno::EINTR) => {}
                // The pty is dry: n_tty_read() lets what is on its way arrive before it says so.
                Err(Errno::EAGAIN) => self.count_down(usize::MAX),
                Err(_) => self.guest_is_gone(),
            }
        }
        let is_dry = self.to_outer.is_empty() && self.words.is_empty();
        if is_dry || (self.link.outer.blocks() && !ready.room) {
            return Ok(());
        }
        let (outer, limit) = (self.link.outer.as_fd(), self.link.outer.write_limit());
        let done = match self.to_outer.is_empty() {
            true => self.words.drain(outer, limit),
            false => {
                self.to_outer.drain(outer, limit).inspect(|last| self.words.after(*last)).map(drop)
            }
        };
        match done {
            Ok(()) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(_) => Err(HungUp),
        }
    }

    fn count_down(&mut self, count: usize) {
        if let Stage::Settling { left, .. } | Stage::Asking { left } = &mut self.stage {
            *left = left.saturating_sub(count);
        }
    }

    fn guest_is_gone(&mut self) {
        self.guest_gone = true;
        self.to_guest.clear();
        self.count_down(usize::MAX);
    }
}

/// The outer terminal is gone.
#[derive(Debug)]
struct HungUp;

fn when(condition: bool, flags: PollFlags) -> PollFlags {
    if condition { flags } else { PollFlags::empty() }
}

/// Bytes read from one side and not yet taken by the other.
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new(capacity: usize) -> Buffer {
        Buffer { bytes: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn has_room(&self) -> bool {
        self.end < self.bytes.len()
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Adds a byte, for which there is room.
    fn push(&mut self, byte: u8) {
        self.bytes[self.end] = byte;
        self.end += 1;
    }

    /// Reads once, as much as there is room for.
    fn fill(&mut self, from: BorrowedFd) -> nix::Result<usize> {
        let count = read(from, &mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// Writes once, at most `limit` bytes. Gives the last byte that was taken.
    fn drain(&mut self, to: BorrowedFd, limit: usize) -> nix::Result<Option<u8>> {
        let end = self.end.min(self.start.saturating_add(limit));
        if self.start == end {
            return Ok(None);
        }
        self.start += write(to, &self.bytes[self.start..end])?;
        let last = self.start.checked_sub(1).map(|at| self.bytes[at]);
        if self.is_empty() {
            self.clear();
        }
        Ok(last)
    }
}
