//! The messages between the supervisor and the guest's init: fixed size, no allocation.
//!
//! Both sides are the same program and the same build, so a message that is not understood is a
//! bug; the reader says so instead of guessing.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use crate::sys::message::{self, Descriptors};

/// What the supervisor tells init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The id maps are written: set up.
    Go,
    /// The filter lies in shared memory, so many instructions long: load it.
    Filter(u32),
    /// Start the program, in the foreground of its terminal or in the background.
    Start {
        /// See above; without a terminal it has no meaning.
        foreground: bool,
    },
    /// Send a signal to the program's process group.
    Group(i32),
    /// Send a signal to the program's process.
    Signal(i32),
    /// Let the stopped program go on.
    Resume {
        /// Bring it to the foreground of its terminal first.
        foreground: bool,
    },
    /// Make a keeper for another program. Carries the program's lists, the keeper's end of a socket,
    /// and those of the standard streams that are open.
    Keep(Later),
    /// Make a process of this number that executes the seed, to grow into one of an image. Carries what
    /// its first descriptor beside the standard streams is.
    Plant(i32),
    /// All that was planted has grown: keep this one as the program.
    Adopt {
        /// Its number; 0: it has ended, and others that it has left behind have not.
        program: i32,
        /// Its terminal is gone: it is told so, as by one that hangs up.
        hang_up: bool,
    },
    /// Make a keeper of this number, which plants below itself. Carries its end of a socket.
    Shelter(i32),
    /// What was planted so far makes what others only find. Have all that is planted from here on behind the walls of the
    /// run as a whole.
    Confine,
}

/// What a keeper is to start, besides what lies in the program's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Later {
    /// How many words the lists have.
    pub words: u32,
    /// Which of the standard streams are handed over.
    pub open: [bool; 3],
    /// Which of the standard streams are a terminal of the program's own.
    pub terminal: [bool; 3],
}

/// What init tells the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A stage of the set-up failed: stage, index in it, errno.
    Fault(Stage, u32, i32),
    /// A keeper's preparations are done. Carries the master of its program's terminal if it has one.
    Ready,
    /// The walls of the run stand and the filter is loaded. Carries its listener, and the master of the
    /// program's terminal if it has one.
    Listening,
    /// The program runs. Carries a pidfd of it.
    Started,
    /// The program could not be executed: errno, and the candidate that was tried last.
    NotExecuted(i32, u32),
    /// The program stopped by this signal.
    Stopped(i32),
    /// The program ended. Init ends now and everything with it; a keeper when all that the program
    /// has left behind has ended.
    Ended(End),
    /// Init has made the keeper, before or after the keeper says that it is ready. Carries a pidfd of
    /// it.
    Made,
    /// The seed is planted. Carries a pidfd of it.
    Planted,
    /// There is memory for what lies in front of layers. Carries it, to be filled before [`Order::Go`].
    Front,
    /// Whatever is planted from here on has the walls of the run.
    Confined,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// Its wait status (wait(2)).
    pub status: i32,
    /// CPU time of it and of the descendants it has waited for, in microseconds.
    pub cpu_us: u64,
    /// The largest resident set of one process among those, in KiB (getrusage(2), ru_maxrss).
    pub peak_kib: u64,
}

/// Stages of the set-up, for faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// The index is that of a step of the plan.
    Files,
    /// sethostname(2).
    Hostname,
    /// The loopback of the network namespace.
    Loopback,
    /// The time namespace.
    Time,
    /// The guest's terminal.
    Terminal,
    /// The index is the descriptor.
    Stream,
    /// The working directory.
    Workdir,
    /// Ids, capabilities, no_new_privs, limits, keyring, Landlock.
    Identity,
    /// The filter.
    Filter,
    /// The program's process.
    Process,
    /// The program's own way to read clocks.
    Clock,
    /// Addresses that are not randomised.
    Addresses,
    /// A process of an image. The index is its number.
    Seed,
}

impl Stage {
    const ALL: [Stage; 13] = [
        Stage::Files,
        Stage::Hostname,
        Stage::Loopback,
        Stage::Time,
        Stage::Terminal,
        Stage::Stream,
        Stage::Workdir,
        Stage::Identity,
        Stage::Filter,
        Stage::Process,
        Stage::Clock,
        Stage::Addresses,
        Stage::Seed,
    ];
}

const WORDS: usize = 6;
const LENGTH: usize = WORDS * 4;

fn encode(words: [u32; WORDS]) -> [u8; LENGTH] {
    let mut raw = [0; LENGTH];
    for (bytes, word) in raw.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    raw
}

fn decode(raw: [u8; LENGTH]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(raw.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// A message's words: those that are not given are 0.
fn words<const N: usize>(given: [u32; N]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    words[..N].copy_from_slice(&given);
    words
}

/// Receives one whole message. EPIPE: the other side is gone.
fn receive(socket: BorrowedFd<'_>) -> Result<([u32; WORDS], Descriptors), Errno> {
    let mut raw = [0; LENGTH];
    match message::receive(socket, &mut raw)? {
        (0, _) => Err(Errno::EPIPE),
        (LENGTH, descriptors) => Ok((decode(raw), descriptors)),
        _ => Err(Errno::EBADMSG),
    }
}

fn bits(flags: [bool; 3]) -> u32 {
    flags.iter().rev().fold(0, |bits, flag| bits << 1 | u32::from(*flag))
}

fn flags(bits: u32) -> [bool; 3] {
    [0, 1, 2].map(|bit| bits >> bit & 1 != 0)
}

impl Order {
    /// Sends it, with the descriptors where the order carries some.
    pub fn send(self, socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let words = match self {
            Order::Go => words([0]),
            Order::Filter(count) => words([1, count]),
            Order::Start { foreground } => words([2, u32::from(foreground)]),
            Order::Group(signal) => words([3, signal as u32]),
            Order::Resume { foreground } => words([4, u32::from(foreground)]),
            Order::Signal(signal) => words([6, signal as u32]),
            Order::Plant(pid) => words([7, pid as u32]),
            Order::Adopt { program, hang_up } => words([8, program as u32, u32::from(hang_up)]),
            Order::Shelter(pid) => words([9, pid as u32]),
            Order::Confine => words([10]),
            Order::Keep(Later { words: count, open, terminal }) => {
                words([5, count, bits(open), bits(terminal)])
            }
        };
        message::send(socket, &encode(words), descriptors)
    }

    /// Waits for one. EPIPE: the supervisor is gone. Child side.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<(Order, Descriptors), Errno> {
        let ([tag, a, b, c, ..], descriptors) = receive(socket)?;
        let order = match tag {
            0 => Order::Go,
            1 => Order::Filter(a),
            2 => Order::Start { foreground: a != 0 },
            3 => Order::Group(a as i32),
            4 => Order::Resume { foreground: a != 0 },
            6 => Order::Signal(a as i32),
            5 => Order::Keep(Later { words: a, open: flags(b), terminal: flags(c) }),
            7 => Order::Plant(a as i32),
            8 => Order::Adopt { program: a as i32, hang_up: b != 0 },
            9 => Order::Shelter(a as i32),
            10 => Order::Confine,
            _ => return Err(Errno::EBADMSG),
        };
        Ok((order, descriptors))
    }
}

impl Event {
    /// Sends it, with descriptors where the event carries some. Child side.
    pub fn send(self, socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let words = match self {
            Event::Fault(stage, index, errno) => words([0, stage as u32, index, errno as u32]),
            Event::Ready => words([1]),
            Event::Listening => words([2]),
            Event::Started => words([3]),
            Event::NotExecuted(errno, candidate) => words([4, errno as u32, candidate]),
            Event::Stopped(signal) => words([5, signal as u32]),
            Event::Made => words([7]),
            Event::Planted => words([8]),
            Event::Front => words([9]),
            Event::Confined => words([10]),
            Event::Ended(End { status, cpu_us, peak_kib }) => [
                6,
                status as u32,
                cpu_us as u32,
                (cpu_us >> 32) as u32,
                peak_kib as u32,
                (peak_kib >> 32) as u32,
            ],
        };
        message::send(socket, &encode(words), descriptors)
    }

    /// Sends it with the descriptor, if there is one. Child side.
    pub fn send_with(self, socket: BorrowedFd<'_>, fd: Option<&impl AsFd>) -> Result<(), Errno> {
        match fd {
            Some(fd) => self.send(socket, &[fd.as_fd()]),
            None => self.send(socket, &[]),
        }
    }

    /// Waits for one. EPIPE: init is gone.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<(Event, Descriptors), Errno> {
        let ([tag, a, b, c, d, e], descriptors) = receive(socket)?;
        let wide = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let event = match tag {
            0 => {
                let stage = Stage::ALL.get(a as usize).copied().ok_or(Errno::EBADMSG)?;
                Event::Fault(stage, b, c as i32)
            }
            1 => Event::Ready,
            2 => Event::Listening,
            3 => Event::Started,
            4 => Event::NotExecuted(a as i32, b),
            5 => Event::Stopped(a as i32),
            6 => {
                let (cpu_us, peak_kib) = (wide(b, c), wide(d, e));
                Event::Ended(End { status: a as i32, cpu_us, peak_kib })
            }
            7 => Event::Made,
            8 => Event::Planted,
            9 => Event::Front,
            10 => Event::Confined,
            _ => return Err(Errno::EBADMSG),
        };
        Ok((event, descriptors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (ours, theirs) = message::pair().unwrap();
        let orders = [
            Order::Go,
            Order::Filter(700),
            Order::Start { foreground: true },
            Order::Group(15),
            Order::Signal(10),
            Order::Resume { foreground: false },
            Order::Plant(7),
            Order::Adopt { program: 2, hang_up: true },
            Order::Shelter(9),
            Order::Confine,
            Order::Keep(Later {
                words: 9,
                open: [true, false, true],
                terminal: [false, true, true],
            }),
        ];
        for order in orders {
            order.send(ours.as_fd(), &[ours.as_fd(), theirs.as_fd()]).unwrap();
            let (received, fds) = Order::receive(theirs.as_fd()).unwrap();
            assert_eq!(received, order);
            assert_eq!(fds.iter().flatten().count(), 2);
        }
        let mut events = vec![
            Event::Ready,
            Event::Listening,
            Event::Started,
            Event::NotExecuted(2, 7),
            Event::Stopped(20),
            Event::Made,
            Event::Planted,
            Event::Front,
            Event::Confined,
            Event::Ended(End { status: -1, cpu_us: u64::MAX - 5, peak_kib: 1 << 40 }),
        ];
        events.extend(Stage::ALL.map(|stage| Event::Fault(stage, 3, 13)));
        for event in events {
            event.send(theirs.as_fd(), &[ours.as_fd()]).unwrap();
            let (received, fds) = Event::receive(ours.as_fd()).unwrap();
            assert_eq!(received, event);
            assert_eq!(fds.iter().flatten().count(), 1);
        }
    }

    #[test]
    fn what_was_said_before_the_end_is_heard_although_an_order_was_left_unread() {
        let (ours, theirs) = message::pair().unwrap();
        Event::Stopped(7).send(theirs.as_fd(), &[]).unwrap();
        Order::Resume { foreground: true }.send(ours.as_fd(), &[]).unwrap();
        drop(theirs);
        assert_eq!(Event::receive(ours.as_fd()).unwrap().0, Event::Stopped(7));
        assert!(matches!(Event::receive(ours.as_fd()), Err(Errno::EPIPE)));
    }

    #[test]
    fn an_unknown_or_short_message_is_an_error_and_a_closed_socket_says_so() {
        let (ours, theirs) = message::pair().unwrap();
        let received = || Order::receive(theirs.as_fd()).map(|(order, _)| order);
        message::send(ours.as_fd(), &encode(words([99])), &[]).unwrap();
        assert_eq!(received(), Err(Errno::EBADMSG));
        message::send(ours.as_fd(), b"short", &[]).unwrap();
        assert_eq!(received(), Err(Errno::EBADMSG));
        drop(ours);
        assert_eq!(received(), Err(Errno::EPIPE));
    }

    proptest::proptest! {
        #[test]
        fn whatever_arrives_is_a_message_or_an_error(
            tag in 0u32..13,
            rest: [u32; 5],
            length in proptest::sample::select(vec![LENGTH, LENGTH, LENGTH, LENGTH - 1, 1, 0]),
        ) {
            let raw = encode([tag, rest[0], rest[1], rest[2], rest[3], rest[4]]);
            let arrived = || {
                let (ours, theirs) = message::pair().unwrap();
                message::send(ours.as_fd(), &raw[..length], &[]).unwrap();
                (ours, theirs)
            };
            // A message of no bytes cannot be told from the end.
            let bad = if length == 0 { Errno::EPIPE } else { Errno::EBADMSG };

            let (ours, theirs) = arrived();
            let order = Order::receive(theirs.as_fd());
            assert_eq!(order.is_ok(), tag <= 10 && length == LENGTH);
            match order {
                Ok((order, _)) => {
                    order.send(ours.as_fd(), &[]).unwrap();
                    assert_eq!(Order::receive(theirs.as_fd()).unwrap().0, order);
                }
                Err(errno) => assert_eq!(errno, bad),
            }

            let (ours, theirs) = arrived();
            match Event::receive(theirs.as_fd()) {
                Ok((event, _)) => {
                    assert!(tag <= 10 && length == LENGTH);
                    event.send(ours.as_fd(), &[]).unwrap();
                    assert_eq!(Event::receive(theirs.as_fd()).unwrap().0, event);
                }
                Err(errno) => assert_eq!(errno, bad),
            }
        }
    }
}
