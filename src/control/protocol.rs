//! The messages on the control socket: length-prefixed CBOR (docs/control.md).
//!
//! A connection carries one request, which may bring descriptors along, and one reply or a stream of
//! them. Owns the form of the messages and their bounds; who may send them is the server's business.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;

use crate::sentry::asking::{Choice, Outcome, Question};
use crate::sentry::net::publish::Published;
use crate::sentry::{ProcessInfo, Record, Sockets, Stats};

/// The version of the protocol. Raised whenever a message changes its meaning or shape.
pub const VERSION: u32 = 4;
/// Bytes in a request at most.
///
/// As much as a program's arguments and environment may have together (execve(2): 2 MiB where the stack
/// has its usual limit), and room for the rest.
pub const REQUEST_MAX: usize = 4 << 20;
/// Bytes in a reply at most.
pub const REPLY_MAX: usize = 16 << 20;
/// Bytes of a length.
pub const PREFIX: usize = 4;
/// How deep values may be nested: ours are not, and a decoder that recurses has a stack.
const DEPTH_MAX: usize = 16;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How it stands: [`Reply::Standing`].
    Standing,
    /// Its processes: [`Reply::Processes`].
    Processes,
    /// Send a signal: [`Reply::Done`].
    Signal {
        /// To whom.
        target: Target,
        /// Which.
        signal: i32,
    },
    /// Stop every task: [`Reply::Done`] once all have stopped.
    Pause,
    /// Let them go on: [`Reply::Done`].
    Resume,
    /// Its end: [`Reply::Ended`] when it comes.
    Wait,
    /// What it has used: [`Reply::Stats`].
    Stats,
    /// Which ports of the host lead to it: [`Reply::Ports`].
    Ports,
    /// Its sockets: [`Reply::Sockets`].
    Sockets,
    /// What it asks (`--ask`): [`Reply::Questions`] once; or as it asks, [`Reply::Question`] for each and
    /// [`Reply::Settled`] when it is closed, then [`Reply::Done`].
    Questions {
        /// Until the sandbox ends. As long as that is followed, somebody is there who answers.
        follow: bool,
    },
    /// Answer a question: [`Reply::Done`].
    Answer {
        /// Which.
        number: u64,
        /// How.
        choice: Choice,
        /// It is written down, too.
        written: bool,
    },
    /// Its kernel log: [`Reply::Log`], once or as it grows, then [`Reply::Done`].
    Log {
        /// Until the sandbox ends.
        follow: bool,
    },
    /// Start another program, with the standard streams that come along: [`Reply::Kept`].
    Exec(Box<Exec>),
    /// Its events: [`Reply::Event`] for each, then [`Reply::Done`].
    Events {
        /// Until the sandbox ends.
        follow: bool,
    },
    /// Save all of it into the file that comes along: [`Reply::Progress`] again and again, then
    /// [`Reply::Written`]. Then the client sends [`Request::Commit`] on the same connection and is told
    /// [`Reply::Done`]. If it does not, nothing is ended.
    Save(Box<Save>),
    /// The image has its name: only after [`Reply::Written`], on the same connection.
    Commit,
}

/// How to save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Save {
    /// The guests go on afterwards.
    pub leave_running: bool,
    /// Connections in the host's network are refused; else they are found reset.
    pub strict: bool,
    /// Level of zstd; none: pages are stored as they are.
    pub compression: Option<i32>,
    /// What the image will be called, for people; none: it goes to a pipe or the like.
    pub name: Option<String>,
}

impl Request {
    /// Whether it is answered for as long as the client likes.
    pub fn is_followed(&self) -> bool {
        match self {
            Request::Wait | Request::Save(_) => true,
            Request::Log { follow }
            | Request::Events { follow }
            | Request::Questions { follow } => *follow,
            _ => false,
        }
    }
}

/// A program to be started in a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<ByteBuf>,
    /// Variables, name and value, that are set beside those of the run's program.
    pub variables: Vec<(ByteBuf, ByteBuf)>,
    /// The program gets no others.
    pub clear_env: bool,
    /// Where it starts; none: where the run's program did.
    pub workdir: Option<ByteBuf>,
    /// The container; none: that of the run's program.
    pub container: Option<String>,
    /// The container is a new one.
    pub opens_container: bool,
    /// Which of the standard streams come along, in order.
    pub open: [bool; 3],
    /// Settings of the terminal that it gets ([`crate::terminal::Settings::to_words`]), and in place of
    /// which standard streams.
    pub terminal: Option<(Vec<u32>, [bool; 3])>,
    /// It starts in the foreground of that terminal.
    pub foreground: bool,
}

/// Who gets a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The program of the run.
    Program,
    /// Every guest.
    All,
    /// One process, as the guest numbers it.
    Process(i32),
    /// Every guest of a container.
    Container(String),
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done; there is nothing more to say.
    Done,
    /// See [`Standing`].
    Standing(Standing),
    /// Processes, by guest pid.
    Processes(Vec<ProcessInfo>),
    /// The program has ended.
    Ended {
        /// Exit status; 128+N if signal N ended it.
        status: i32,
    },
    /// What it has used.
    Stats(Stats),
    /// The ports of the host that lead to it.
    Ports(Vec<Published>),
    /// Its sockets.
    Sockets(Sockets),
    /// The program is about to be started. Brings the socket on which its events arrive, and the master
    /// of its terminal if it has one.
    Kept,
    /// Lines of the kernel log.
    Log(String),
    /// Something happened.
    Event(Record),
    /// The questions that are open.
    Questions(Vec<Question>),
    /// One that was asked.
    Question(Question),
    /// One is closed.
    Settled {
        /// Which.
        number: u64,
        /// What became of it; none: that is not known any more.
        outcome: Option<Outcome>,
    },
    /// How far a save is, in bytes.
    Progress {
        /// Written.
        done: u64,
        /// To be written in all, as far as is known.
        total: u64,
    },
    /// The image is complete, and on the disk if it is in a file.
    Written(Summary),
    /// It is not done, and why. The shape of this reply is the same in all versions.
    Refused(Refused),
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Bytes of the image.
    pub bytes: u64,
    /// Processes in it.
    pub processes: u64,
    /// Threads in it.
    pub threads: u64,
    /// How long the guests stood still, microseconds.
    pub pause_us: u64,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A sentence, without the name of the sandbox.
    pub reason: String,
}

/// How a sandbox stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// All tasks are stopped.
    pub paused: bool,
    /// Guest processes.
    pub processes: u64,
    /// Guest threads.
    pub tasks: u64,
}

/// What goes over the wire for a request: its version can be read whatever the request is.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<R> {
    version: u32,
    request: R,
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolError {
    /// More bytes than a message may have.
    TooLarge(u64),
    /// Not CBOR, or not a message of ours.
    Malformed,
    /// The other side speaks this version.
    Version(u32),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::TooLarge(size) => {
                write!(f, "the message has {size} bytes, which is too many")
            }
            ProtocolError::Malformed => f.write_str("the message cannot be understood"),
            ProtocolError::Version(theirs) => write!(
                f,
                "the command speaks version {theirs} of the control protocol and the sandbox \
                 version {VERSION}; use the program that started the sandbox"
            ),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// The bytes of a request.
///
/// # Errors
/// It is too large.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, ProtocolError> {
    frame(&Envelope { version: VERSION, request }, REQUEST_MAX)
}

/// The bytes of a reply.
///
/// # Errors
/// It is too large.
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, ProtocolError> {
    frame(reply, REPLY_MAX)
}

/// The request in the bytes behind a length.
///
/// # Errors
/// They are none, or one of another version.
pub fn decode_request(bytes: &[u8]) -> Result<Request, ProtocolError> {
    let envelope: Envelope<ciborium::Value> = decode(bytes)?;
    if envelope.version != VERSION {
        return Err(ProtocolError::Version(envelope.version));
    }
    envelope.request.deserialized().map_err(|_| ProtocolError::Malformed)
}

/// The reply in the bytes behind a length.
///
/// # Errors
/// They are none.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, ProtocolError> {
    decode(bytes)
}

/// How many bytes follow a length, of which a message may have `most`.
///
/// # Errors
/// More than that.
pub fn length(prefix: [u8; PREFIX], most: usize) -> Result<usize, ProtocolError> {
    let size = u32::from_be_bytes(prefix);
    if size as usize > most { Err(ProtocolError::TooLarge(size.into())) } else { Ok(size as usize) }
}

fn frame(value: &impl Serialize, most: usize) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = vec![0; PREFIX];
    ciborium::into_writer(value, &mut bytes).map_err(|_| ProtocolError::Malformed)?;
    let size = bytes.len() - PREFIX;
    if size > most {
        return Err(ProtocolError::TooLarge(size as u64));
    }
    bytes[..PREFIX].copy_from_slice(&(size as u32).to_be_bytes());
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, ProtocolError> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH_MAX)
        .map_err(|_| ProtocolError::Malformed)?;
    if bytes.is_empty() { Ok(value) } else { Err(ProtocolError::Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sentry::Event;
    use crate::sentry::asking::Subject;

    fn body(frame: &[u8], most: usize) -> &[u8] {
        let (prefix, body) = frame.split_at(PREFIX);
        assert_eq!(length(prefix.try_into().unwrap(), most), Ok(body.len()));
        body
    }

    #[test]
    fn messages_come_back_as_they_were() {
        for request in [
            Request::Standing,
            Request::Wait,
            Request::Ports,
            Request::Log { follow: true },
            Request::Signal { target: Target::Program, signal: 15 },
            Request::Signal { target: Target::Container("x".into()), signal: 64 },
            Request::Signal { target: Target::Process(7), signal: 9 },
            Request::Save(Box::new(Save {
                leave_running: true,
                strict: true,
                compression: Some(-3),
                name: Some("x".into()),
            })),
            Request::Questions { follow: true },
            Request::Answer { number: 1 << 40, choice: Choice::Never, written: true },
            Request::Commit,
        ] {
            let frame = encode_request(&request).unwrap();
            assert_eq!(decode_request(body(&frame, REQUEST_MAX)), Ok(request));
        }
        let event = Event::Exec { tid: 7, path: "/bin/x".into() };
        for reply in [
            Reply::Done,
            Reply::Ended { status: 137 },
            Reply::Event(Record { time: 5, event }),
            Reply::Question(Question {
                number: 1 << 40,
                since: 5,
                subject: Subject::Read { path: "/x".into() },
                address: None,
                guest_pid: 2,
                comm: "x".into(),
            }),
            Reply::Settled { number: 1, outcome: Some(Outcome::Answered(Choice::Once)) },
            Reply::Progress { done: 1, total: 1 << 40 },
            Reply::Written(Summary { bytes: 1, processes: 2, threads: 3, pause_us: 4 }),
            Reply::Refused(Refused { reason: "because".into() }),
        ] {
            let frame = encode_reply(&reply).unwrap();
            assert_eq!(decode_reply(body(&frame, REPLY_MAX)), Ok(reply));
        }
    }

    #[test]
    fn another_version_is_named_whatever_its_request_is() {
        let frame = frame(&Envelope { version: 9, request: ["unheard", "of"] }, REQUEST_MAX);
        let error = decode_request(&frame.unwrap()[PREFIX..]).unwrap_err();
        assert_eq!(error, ProtocolError::Version(9));
        let words = error.to_string();
        assert!(
            words.contains("version 9") && words.contains(&format!("version {VERSION}")),
            "{words}"
        );
    }

    #[test]
    fn what_is_too_large_or_too_deep_or_too_long_is_refused() {
        assert!(length(u32::MAX.to_be_bytes(), REQUEST_MAX).is_err());
        assert_eq!(length((REQUEST_MAX as u32).to_be_bytes(), REQUEST_MAX), Ok(REQUEST_MAX));
        let name = "x".repeat(REQUEST_MAX);
        let request = Request::Signal { target: Target::Container(name), signal: 1 };
        assert!(matches!(encode_request(&request), Err(ProtocolError::TooLarge(_))));
        // Arrays of one element, each in the other.
        assert_eq!(decode_request(&[0x81; 60_000]), Err(ProtocolError::Malformed));
        // An array and a string that claim to have 2^60 elements.
        for first in [0x9b, 0x7b, 0x5b, 0xbb] {
            let bytes = [first, 0x10, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(decode_request(&bytes), Err(ProtocolError::Malformed));
        }
        let mut frame = encode_request(&Request::Wait).unwrap();
        frame.push(0);
        assert_eq!(decode_request(&frame[PREFIX..]), Err(ProtocolError::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = decode_reply(&bytes);
            if let Ok(request) = decode_request(&bytes) {
                prop_assert!(encode_request(&request).is_ok());
            }
        }

        #[test]
        fn a_damaged_message_is_a_message_or_an_error(
            at in any::<prop::sample::Index>(),
            value: u8,
            keep in any::<prop::sample::Index>(),
        ) {
            let request = Request::Signal { target: Target::Container("main".into()), signal: 9 };
            let mut bytes = encode_request(&request).unwrap().split_off(PREFIX);
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = decode_request(&bytes);
            let _ = decode_request(&bytes[..keep.index(bytes.len())]);
        }
    }
}
