//! The supervisor's side of the control socket.
//!
//! Owns who may ask (the same user, from the same user namespace: no guest), how many at once and for
//! how long a request may be incomplete. Its tasks run on the supervisor's main thread; what blocks in
//! the kernel runs beside it. What requests do to the sandbox is in `service`.

mod asking;
mod peer;
mod saving;
mod service;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::protocol::{self, Exec, PREFIX, ProtocolError, REQUEST_MAX, Refused, Reply, Request};
use crate::save::pipeline::Facts;
use crate::sentry::{Kernel, Starting};
use crate::sys::message::{DESCRIPTORS_MAX, receive_stream, send_stream};
use peer::UserNamespace;
pub use saving::Farewell;
use saving::Saving;
use service::Service;

/// Connections whose request is not complete: one more, and the oldest of them is dropped. Whoever
/// sends its request at once is served however many others do not.
const INCOMPLETE_MAX: usize = 32;
/// Requests being served that have one answer, which is due at once; more are refused.
const ANSWERED_MAX: usize = 64;
/// Requests being served for as long as the client likes; more are refused.
const FOLLOWED_MAX: usize = 256;
/// How long a request may be incomplete.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long one that asked once may leave its reply unread.
const REPLY_TIME: Duration = Duration::from_secs(10);
/// How long the end of the sandbox waits for its last replies to be read.
const LAST_TIME: Duration = Duration::from_secs(1);
/// How long no connection is accepted after the host had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves one sandbox's control socket until it is closed.
#[derive(Debug)]
pub struct Server {
    closing: watch::Sender<bool>,
    /// Ends when no connection is left.
    connections: mpsc::Receiver<Infallible>,
    farewell: Farewell,
}

/// A program that a client wants, for whoever starts programs.
#[derive(Debug)]
pub struct ExecCall {
    /// Which.
    pub exec: Exec,
    /// The standard streams that came along, in order.
    pub streams: Vec<OwnedFd>,
    /// Keeps pauses away until the program runs: whatever makes it is never stopped.
    pub starting: Starting,
    /// Takes what [`Reply::Kept`] is to bring, or why not.
    pub answer: oneshot::Sender<Result<Vec<OwnedFd>, String>>,
}

/// What every connection shares.
#[derive(Debug)]
struct Shared {
    service: Service,
    own: io::Result<UserNamespace>,
    answered: Semaphore,
    followed: Semaphore,
}

/// Held by each connection.
#[derive(Debug, Clone)]
struct Life {
    closing: watch::Receiver<bool>,
    _alive: mpsc::Sender<Infallible>,
}

impl Server {
    /// Begins to serve. Needs a tokio context.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn start(
        listener: std::os::unix::net::UnixListener,
        kernel: Arc<Kernel>,
        facts: Facts,
        programs: mpsc::Sender<ExecCall>,
    ) -> io::Result<Server> {
        let listener = UnixListener::from_std(listener)?;
        let (closing, closed) = watch::channel(false);
        let (alive, connections) = mpsc::channel(1);
        let farewell = Farewell::default();
        let saving = Saving::new(Arc::clone(&kernel), facts, farewell.clone());
        let shared = Arc::new(Shared {
            service: Service::new(kernel, programs, saving),
            own: UserNamespace::of_this_process(),
            answered: Semaphore::new(ANSWERED_MAX),
            followed: Semaphore::new(FOLLOWED_MAX),
        });
        tokio::spawn(accept(listener, shared, Life { closing: closed, _alive: alive }));
        Ok(Server { closing, connections, farewell })
    }

    /// What is to be said at the end of a run that a save has ended.
    pub fn farewell(&self) -> Option<String> {
        self.farewell.words()
    }

    /// Stops serving: incomplete requests are dropped, what is being served gets a moment to end.
    pub async fn close(mut self) {
        self.closing.send_replace(true);
        // A client that does not read its last reply loses it.
        let _ = timeout(LAST_TIME, self.connections.recv()).await;
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>, life: Life) {
    let mut closing = life.closing.clone();
    // What keeps each incomplete connection, oldest first.
    let mut incomplete: VecDeque<oneshot::Sender<Infallible>> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                incomplete.retain(|kept| !kept.is_closed());
                if incomplete.len() >= INCOMPLETE_MAX {
                    incomplete.pop_front();
                }
                let (keep, kept) = oneshot::channel();
                incomplete.push_back(keep);
                tokio::spawn(serve(stream, kept, Arc::clone(&shared), life.clone()));
            }
            // No descriptors are left, or the client has gone already.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// One connection, from its acceptance to its end.
async fn serve(
    mut stream: UnixStream,
    mut kept: oneshot::Receiver<Infallible>,
    shared: Arc<Shared>,
    mut life: Life,
) {
    if let Err(reason) = shared.admit(&stream) {
        refuse(&mut stream, reason).await;
        return;
    }
    let request = tokio::select! {
        biased;
        request = timeout(REQUEST_TIME, read_request(&stream)) => request,
        _ = &mut kept => return,
        _ = life.closing.wait_for(|closing| *closing) => return,
    };
    drop(kept);
    let (request, descriptors) = match request {
        Ok(Ok(complete)) => complete,
        Ok(Err(Incomplete::Gone)) => return,
        Ok(Err(Incomplete::Bad(error))) => return refuse(&mut stream, error.to_string()).await,
        Err(_) => {
            let reason = format!("the request was not complete after {REQUEST_TIME:?}");
            return refuse(&mut stream, reason).await;
        }
    };
    let limit = if request.is_followed() { &shared.followed } else { &shared.answered };
    let Ok(_permit) = limit.try_acquire() else {
        return refuse(&mut stream, "it serves too many requests already".to_owned()).await;
    };
    shared.service.serve(request, descriptors, &mut stream).await;
}

impl Shared {
    /// Whether whoever connected may ask anything.
    fn admit(&self, stream: &UnixStream) -> Result<(), String> {
        match &self.own {
            Ok(own) => peer::check(stream.as_fd(), own),
            Err(error) => Err(format!("its own user namespace cannot be read: {error}")),
        }
    }
}

/// Why there is no request.
enum Incomplete {
    Gone,
    Bad(ProtocolError),
}

/// Reads one request and what came with it.
async fn read_request(stream: &UnixStream) -> Result<(Request, Vec<OwnedFd>), Incomplete> {
    let mut bytes = Vec::new();
    let mut descriptors = Vec::new();
    let mut room = [0; 4096];
    loop {
        if let Some(prefix) = bytes.first_chunk::<PREFIX>() {
            let size = protocol::length(*prefix, REQUEST_MAX).map_err(Incomplete::Bad)?;
            let body = &bytes[PREFIX..];
            if body.len() >= size {
                let request = protocol::decode_request(body).map_err(Incomplete::Bad)?;
                return Ok((request, descriptors));
            }
        }
        let received = receive(stream, &mut room).await;
        let (count, mut came) = received.map_err(|_| Incomplete::Gone)?;
        if count == 0 {
            return Err(Incomplete::Gone);
        }
        bytes.extend_from_slice(&room[..count]);
        descriptors.append(&mut came);
        // Those that are too many are closed here.
        descriptors.truncate(DESCRIPTORS_MAX);
    }
}

async fn receive(stream: &UnixStream, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    stream
        .async_io(Interest::READABLE, || receive_stream(stream.as_fd(), room).map_err(Into::into))
        .await
}

/// Sends one reply that brings descriptors.
async fn send_with(stream: &mut UnixStream, reply: &Reply, descriptors: &[OwnedFd]) -> bool {
    let Ok(bytes) = protocol::encode_reply(reply) else { return false };
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let first = stream.async_io(Interest::WRITABLE, || {
        send_stream(stream.as_fd(), &bytes, &descriptors).map_err(io::Error::from)
    });
    match first.await {
        Ok(count) => stream.write_all(&bytes[count..]).await.is_ok(),
        Err(_) => false,
    }
}

/// Answers once, if the client takes it in time. `false`: it did not.
async fn answer(stream: &mut UnixStream, reply: &Reply) -> bool {
    matches!(timeout(REPLY_TIME, send(stream, reply)).await, Ok(true))
}

/// Sends one reply. `false`: the client is gone.
async fn send(stream: &mut UnixStream, reply: &Reply) -> bool {
    let bytes = protocol::encode_reply(reply).or_else(|error| {
        protocol::encode_reply(&Reply::Refused(Refused { reason: error.to_string() }))
    });
    match bytes {
        Ok(bytes) => stream.write_all(&bytes).await.is_ok(),
        Err(_) => false,
    }
}

async fn refuse(stream: &mut UnixStream, reason: String) {
    answer(stream, &Reply::Refused(Refused { reason })).await;
}

/// Waits until the client has gone, or says more than it may.
async fn gone(stream: &UnixStream) {
    let mut room = [0; 16];
    let _ = receive(stream, &mut room).await;
}
