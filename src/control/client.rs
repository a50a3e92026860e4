//! A verb's side of the control socket: finds a sandbox, asks it, reads its replies.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;

use super::protocol::{self, PREFIX, ProtocolError, REPLY_MAX, Reply, Request};
use super::state::{self, Listed, StateError};
use crate::sys::{generated, message};

/// How long a request may go unanswered where the answer is due at once.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Why a sandbox did not do what it was asked: one sentence.
#[derive(Debug)]
pub enum ClientError {
    /// It was not found.
    State(StateError),
    /// It has ended with this status.
    Ended(String, i32),
    /// Its supervisor is stopped, as a job of a shell is.
    Stopped(String, i32),
    /// It gave no answer.
    Silent(String, String),
    /// It refused.
    Refused(String, String),
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClientError::State(error) => error.fmt(f),
            ClientError::Ended(id, status) => write!(
                f,
                "the sandbox {id} has ended with status {status}; sandbox wait {id} collects that"
            ),
            ClientError::Stopped(id, pid) => write!(
                f,
                "the sandbox {id} is stopped as a job of its shell; continue it there with fg, or \
                 with kill -CONT {pid}"
            ),
            ClientError::Silent(id, cause) => {
                write!(f, "no answer from the sandbox {id}: {cause}; sandbox ps tells how it is")
            }
            ClientError::Refused(id, reason) => write!(f, "the sandbox {id} refuses: {reason}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl ClientError {
    /// A reply that is none to the request.
    pub fn unexpected(id: &str, reply: &Reply) -> ClientError {
        let words = format!("{reply:?}");
        let words = words.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        ClientError::Silent(id.to_owned(), format!("its reply ({words}) was to another question"))
    }
}

impl From<StateError> for ClientError {
    fn from(error: StateError) -> Self {
        ClientError::State(error)
    }
}

/// A sandbox that is asked something.
#[derive(Debug)]
pub struct Sandbox {
    /// What was found.
    pub listed: Listed,
}

/// A request that has been sent.
#[derive(Debug)]
pub struct Call {
    id: String,
    stream: UnixStream,
}

impl Sandbox {
    /// The sandbox of this id, running or ended.
    ///
    /// # Errors
    /// There is none.
    pub fn find(id: &str) -> Result<Sandbox, ClientError> {
        Ok(Sandbox { listed: state::find(id)? })
    }

    /// Asks, and gives the one reply.
    ///
    /// # Errors
    /// There is none, or it is a refusal.
    pub fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        self.ask_within(request, ANSWER_TIME)
    }

    /// [`Sandbox::ask`] with another limit.
    ///
    /// # Errors
    /// As there.
    pub fn ask_within(&self, request: &Request, limit: Duration) -> Result<Reply, ClientError> {
        let mut call = self.call(request, &[])?;
        let limit = call.stream.set_read_timeout(Some(limit));
        limit.map_err(|error| call.silent(error.to_string()))?;
        call.reply()
    }

    /// Sends a request, with descriptors where it wants them.
    ///
    /// # Errors
    /// The sandbox has ended or cannot be reached.
    pub fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Call, ClientError> {
        let id = self.listed.id.clone();
        if let Some(ended) = &self.listed.ended {
            return Err(ClientError::Ended(id, ended.status));
        }
        let silent = |cause: String| ClientError::Silent(id.clone(), cause);
        let stream = self.listed.connect().map_err(|error| {
            // It may have ended since it was found.
            match state::find(&id).map(|now| now.ended) {
                Ok(Some(ended)) => ClientError::Ended(id.clone(), ended.status),
                _ => silent(error.to_string()),
            }
        })?;
        if is_stopped(self.listed.info.pid) {
            return Err(ClientError::Stopped(id, self.listed.info.pid));
        }
        let bytes = protocol::encode_request(request).map_err(|error| silent(error.to_string()))?;
        let sent = message::send_stream(stream.as_fd(), &bytes, fds).map_err(io::Error::from);
        // Whoever refuses to listen may have said why before it closed.
        match sent.and_then(|sent| (&stream).write_all(&bytes[sent..])) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(silent(error.to_string())),
        }
        Ok(Call { id, stream })
    }
}

impl Call {
    /// The next reply.
    ///
    /// # Errors
    /// There is none, or it is a refusal.
    pub fn reply(&mut self) -> Result<Reply, ClientError> {
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix).map_err(|error| self.unread(&error))?;
        self.body(prefix)
    }

    fn body(&mut self, prefix: [u8; PREFIX]) -> Result<Reply, ClientError> {
        let bad = |error: ProtocolError| ClientError::Silent(self.id.clone(), error.to_string());
        let size = protocol::length(prefix, REPLY_MAX).map_err(bad)?;
        let mut body = vec![0; size];
        self.stream.read_exact(&mut body).map_err(|error| self.unread(&error))?;
        match protocol::decode_reply(&body).map_err(bad)? {
            Reply::Refused(refused) => Err(ClientError::Refused(self.id.clone(), refused.reason)),
            reply => Ok(reply),
        }
    }

    /// The next reply and the descriptors that it brings.
    ///
    /// # Errors
    /// There is none, or it is a refusal.
    pub fn reply_with_descriptors(mut self) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        // They come with the first byte.
        let mut first = [0];
        let (count, descriptors) = loop {
            match message::receive_stream(self.stream.as_fd(), &mut first) {
                Err(Errno::EINTR) => {}
                done => break done.map_err(|errno| self.unread(&errno.into()))?,
            }
        };
        let mut prefix = [first[0], 0, 0, 0];
        if count == 0 {
            return Err(self.unread(&io::ErrorKind::UnexpectedEof.into()));
        }
        self.stream.read_exact(&mut prefix[1..]).map_err(|error| self.unread(&error))?;
        Ok((self.body(prefix)?, descriptors))
    }

    /// Says more on the same connection.
    ///
    /// # Errors
    /// The sandbox has ended.
    pub fn say(&self, request: &Request) -> Result<(), ClientError> {
        let bytes = protocol::encode_request(request);
        let bytes = bytes.map_err(|error| self.silent(error.to_string()))?;
        (&self.stream).write_all(&bytes).map_err(|error| self.unread(&error))
    }

    /// Where a reply can be waited for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn silent(&self, cause: String) -> ClientError {
        ClientError::Silent(self.id.clone(), cause)
    }

    fn unread(&self, error: &io::Error) -> ClientError {
        self.silent(match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "its supervisor has ended".to_owned()
            }
            io::ErrorKind::WouldBlock => "it takes too long".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// Whether a supervisor is stopped (proc_pid_stat(5)): it would not answer. The number is no proof of
/// anything, and nothing but words follows from it.
fn is_stopped(pid: i32) -> bool {
    let stat = generated::text(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 't']))
}
