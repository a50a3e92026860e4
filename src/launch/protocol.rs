//! The messages between the supervisor and the guest's init: fixed size, no allocation.
//!
//! Both sides are the same program and the same build, so a message that is not understood is a
//! bug; the reader says so instead of guessing.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::sys::message;

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
    /// Let the stopped program go on.
    Resume {
        /// Bring it to the foreground of its terminal first.
        foreground: bool,
    },
}

/// What init tells the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A stage of the set-up failed: stage, index in it, errno.
    Fault(Stage, u32, i32),
    /// The walls stand but for the filter. Carries the master of the guest's terminal if it has one.
    Ready,
    /// The filter is loaded. Carries its listener.
    Listening,
    /// The program runs. Carries a pidfd of it.
    Started,
    /// The program could not be executed: errno, and the candidate that was tried last.
    NotExecuted(i32, u32),
    /// The program stopped by this signal.
    Stopped(i32),
    /// The program ended with this wait status; init ends now and everything with it.
    Ended(i32),
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
}

impl Stage {
    const ALL: [Stage; 11] = [
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
    ];
}

type Raw = [u8; 16];

fn encode(words: [u32; 4]) -> Raw {
    let mut raw = [0; 16];
    for (bytes, word) in raw.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    raw
}

fn decode(raw: Raw) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(raw.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// Receives one whole message. EPIPE: the other side is gone.
fn receive(socket: BorrowedFd<'_>) -> Result<([u32; 4], Option<OwnedFd>), Errno> {
    let mut raw = [0; 16];
    match message::receive(socket, &mut raw)? {
        (0, _) => Err(Errno::EPIPE),
        (16, fd) => Ok((decode(raw), fd)),
        _ => Err(Errno::EBADMSG),
    }
}

impl Order {
    /// Sends it.
    pub fn send(self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let words = match self {
            Order::Go => [0, 0, 0, 0],
            Order::Filter(count) => [1, count, 0, 0],
            Order::Start { foreground } => [2, u32::from(foreground), 0, 0],
            Order::Group(signal) => [3, signal as u32, 0, 0],
            Order::Resume { foreground } => [4, u32::from(foreground), 0, 0],
        };
        message::send(socket, &encode(words), None)
    }

    /// Waits for one. EPIPE: the supervisor is gone. Child side.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<Order, Errno> {
        let ([tag, a, ..], _) = receive(socket)?;
        Ok(match tag {
            0 => Order::Go,
            1 => Order::Filter(a),
            2 => Order::Start { foreground: a != 0 },
            3 => Order::Group(a as i32),
            4 => Order::Resume { foreground: a != 0 },
            _ => return Err(Errno::EBADMSG),
        })
    }
}

impl Event {
    /// Sends it, with a descriptor where the event carries one. Child side.
    pub fn send(self, socket: BorrowedFd<'_>, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let words = match self {
            Event::Fault(stage, index, errno) => [0, stage as u32, index, errno as u32],
            Event::Ready => [1, 0, 0, 0],
            Event::Listening => [2, 0, 0, 0],
            Event::Started => [3, 0, 0, 0],
            Event::NotExecuted(errno, candidate) => [4, errno as u32, candidate, 0],
            Event::Stopped(signal) => [5, signal as u32, 0, 0],
            Event::Ended(status) => [6, status as u32, 0, 0],
        };
        message::send(socket, &encode(words), fd)
    }

    /// Waits for one. EPIPE: init is gone.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<(Event, Option<OwnedFd>), Errno> {
        let ([tag, a, b, c], fd) = receive(socket)?;
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
            6 => Event::Ended(a as i32),
            _ => return Err(Errno::EBADMSG),
        };
        Ok((event, fd))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (ours, theirs) = message::pair().unwrap();
        let orders = [
            Order::Go,
            Order::Filter(700),
            Order::Start { foreground: true },
            Order::Group(15),
            Order::Resume { foreground: false },
        ];
        for order in orders {
            order.send(ours.as_fd()).unwrap();
            assert_eq!(Order::receive(theirs.as_fd()), Ok(order));
        }
        let mut events = vec![
            Event::Ready,
            Event::Listening,
            Event::Started,
            Event::NotExecuted(2, 7),
            Event::Stopped(20),
            Event::Ended(-1),
        ];
        events.extend(Stage::ALL.map(|stage| Event::Fault(stage, 3, 13)));
        for event in events {
            event.send(theirs.as_fd(), Some(ours.as_fd())).unwrap();
            let (received, fd) = Event::receive(ours.as_fd()).unwrap();
            assert_eq!(received, event);
            assert!(fd.is_some());
        }
    }

    #[test]
    fn an_unknown_or_short_message_is_an_error_and_a_closed_socket_says_so() {
        let (ours, theirs) = message::pair().unwrap();
        message::send(ours.as_fd(), &encode([99, 0, 0, 0]), None).unwrap();
        assert_eq!(Order::receive(theirs.as_fd()), Err(Errno::EBADMSG));
        message::send(ours.as_fd(), b"short", None).unwrap();
        assert_eq!(Order::receive(theirs.as_fd()), Err(Errno::EBADMSG));
        drop(ours);
        assert_eq!(Order::receive(theirs.as_fd()), Err(Errno::EPIPE));
    }

    proptest::proptest! {
        #[test]
        fn whatever_arrives_is_a_message_or_an_error(
            tag in 0u32..12,
            words: [u32; 3],
            length in proptest::sample::select(vec![16, 16, 16, 15, 1, 0]),
        ) {
            let raw = encode([tag, words[0], words[1], words[2]]);
            let arrived = || {
                let (ours, theirs) = message::pair().unwrap();
                message::send(ours.as_fd(), &raw[..length], None).unwrap();
                (ours, theirs)
            };
            // A message of no bytes cannot be told from the end.
            let bad = if length == 0 { Errno::EPIPE } else { Errno::EBADMSG };

            let (ours, theirs) = arrived();
            let order = Order::receive(theirs.as_fd());
            assert_eq!(order.is_ok(), tag <= 4 && length == 16);
            match order {
                Ok(order) => {
                    order.send(ours.as_fd()).unwrap();
                    assert_eq!(Order::receive(theirs.as_fd()), Ok(order));
                }
                Err(errno) => assert_eq!(errno, bad),
            }

            let (ours, theirs) = arrived();
            match Event::receive(theirs.as_fd()) {
                Ok((event, _)) => {
                    assert!(tag <= 6 && length == 16);
                    event.send(ours.as_fd(), None).unwrap();
                    assert_eq!(Event::receive(theirs.as_fd()).unwrap().0, event);
                }
                Err(errno) => assert_eq!(errno, bad),
            }
        }
    }
}
