//! What each request does.
//!
//! Owns no state of the sandbox: it asks the kernel. What blocks there runs on a thread beside the
//! main one, a few at a time.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UnixStream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::protocol::{Exec, Refused, Reply, Request, Standing, Target};
use super::saving::Saving;
use super::{ExecCall, answer, gone, send, send_with};
use crate::sentry::{Event, Kernel, KernelError, Record};
use crate::sys::process::exit_status;

/// Blocking operations of the kernel at once.
const BLOCKING_MAX: usize = 4;

/// Serves the requests of one sandbox.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) kernel: Arc<Kernel>,
    /// Who starts programs.
    programs: mpsc::Sender<ExecCall>,
    blocking: Arc<Semaphore>,
    /// One list of sockets after the other: guests decide how long one takes.
    listing: Arc<Semaphore>,
    /// One pause or resume after the other: each may take as long as a task takes to stop.
    pausing: Arc<Semaphore>,
    /// Whether `sandbox pause` holds the kernel. Changed with the permit of `pausing` only.
    held: Arc<AtomicBool>,
    saving: Saving,
}

impl Service {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        programs: mpsc::Sender<ExecCall>,
        saving: Saving,
    ) -> Service {
        Service {
            saving,
            kernel,
            programs,
            blocking: Arc::new(Semaphore::new(BLOCKING_MAX)),
            listing: Arc::new(Semaphore::new(1)),
            pausing: Arc::new(Semaphore::new(1)),
            held: Arc::default(),
        }
    }

    /// Carries one request out and answers it, unless the client goes away before.
    pub(super) async fn serve(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        stream: &mut UnixStream,
    ) {
        match request {
            Request::Exec(exec) => return self.exec(*exec, descriptors, stream).await,
            Request::Save(save) => return self.saving.serve(*save, descriptors, stream).await,
            _ => {}
        }
        // No other request wants any.
        drop(descriptors);
        match request {
            Request::Wait => self.wait(stream).await,
            Request::Log { follow } => self.log(follow, stream).await,
            Request::Events { follow } => self.events(follow, stream).await,
            Request::Questions { follow: true } => self.questions(stream).await,
            request => {
                let reply = self
                    .once(request)
                    .await
                    .unwrap_or_else(|reason| Reply::Refused(Refused { reason }));
                answer(stream, &reply).await;
            }
        }
    }

    /// The requests that have one answer.
    async fn once(&self, request: Request) -> Result<Reply, String> {
        match request {
            Request::Standing => self.blocking(standing).await,
            Request::Processes => {
                self.blocking(|kernel| kernel.census().map(Reply::Processes)).await
            }
            Request::Signal { target, signal } => {
                let send = move |kernel: &Kernel| send_signal(kernel, &target, signal);
                run(&self.blocking, &self.kernel, send).await
            }
            Request::Stats => self.blocking(|kernel| Ok(Reply::Stats(kernel.stats()))).await,
            Request::Ports => Ok(Reply::Ports(self.kernel.published().to_vec())),
            Request::Sockets => {
                let list = |kernel: &Kernel| {
                    kernel.sockets().map(Reply::Sockets).map_err(|error| error.to_string())
                };
                run(&self.listing, &self.kernel, list).await
            }
            Request::Questions { .. } => Ok(Reply::Questions(self.asking()?.open())),
            Request::Answer { number, choice, written } => {
                let answered = self.kernel.answer(number, choice, written, "control");
                answered.map(|_| Reply::Done)
            }
            Request::Pause => {
                let held = Arc::clone(&self.held);
                run(&self.pausing, &self.kernel, move |kernel| pause(kernel, &held)).await
            }
            Request::Resume => {
                let held = Arc::clone(&self.held);
                run(&self.pausing, &self.kernel, move |kernel| resume(kernel, &held)).await
            }
            Request::Commit => Err("nothing was saved on this connection".to_owned()),
            Request::Wait
            | Request::Exec(_)
            | Request::Save(_)
            | Request::Log { .. }
            | Request::Events { .. } => Err("it has more than one answer".to_owned()),
        }
    }

    /// Runs what blocks in the kernel without holding the main thread up.
    async fn blocking(
        &self,
        operation: impl FnOnce(&Kernel) -> Result<Reply, KernelError> + Send + 'static,
    ) -> Result<Reply, String> {
        let operation = |kernel: &Kernel| operation(kernel).map_err(|error| error.to_string());
        run(&self.blocking, &self.kernel, operation).await
    }

    /// Has a program started, and hands its client what it needs to follow it.
    async fn exec(&self, exec: Exec, streams: Vec<OwnedFd>, stream: &mut UnixStream) {
        let starting = tokio::select! {
            biased;
            starting = self.kernel.begin_start() => starting,
            () = gone(stream) => return,
        };
        let starting = match starting {
            Ok(starting) => starting,
            Err(error) => {
                answer(stream, &Reply::Refused(Refused { reason: error.to_string() })).await;
                return;
            }
        };
        let (answer_to, heard) = oneshot::channel();
        let call = ExecCall { exec, streams, starting, answer: answer_to };
        let ending = "it is about to end".to_owned();
        let started = match self.programs.send(call).await {
            Ok(()) => tokio::select! {
                biased;
                heard = heard => heard.unwrap_or(Err(ending)),
                () = gone(stream) => return,
            },
            Err(_) => Err(ending),
        };
        match started {
            Ok(descriptors) => drop(send_with(stream, &Reply::Kept, &descriptors).await),
            Err(reason) => drop(answer(stream, &Reply::Refused(Refused { reason })).await),
        }
    }

    /// Answers when the program has ended.
    async fn wait(&self, stream: &mut UnixStream) {
        let status = tokio::select! {
            biased;
            status = self.kernel.wait_exited() => status,
            () = gone(stream) => return,
        };
        answer(stream, &Reply::Ended { status: exit_status(status) }).await;
    }

    /// The kernel log, and what is added to it.
    async fn log(&self, follow: bool, stream: &mut UnixStream) {
        let log = self.kernel.log();
        let mut next = 0;
        loop {
            let ended = !follow
                || tokio::select! {
                    biased;
                    () = log.grown(next) => false,
                    _ = self.kernel.wait_exited() => true,
                    () = gone(stream) => return,
                };
            let (text, after) = log.since(next);
            next = after;
            if !text.is_empty() && !send(stream, &Reply::Log(text)).await {
                return;
            }
            if ended {
                break;
            }
        }
        answer(stream, &Reply::Done).await;
    }

    /// What has happened, and what will.
    async fn events(&self, follow: bool, stream: &mut UnixStream) {
        let (past, coming) = self.kernel.events().follow();
        for record in past {
            if !send(stream, &Reply::Event(record)).await {
                return;
            }
        }
        if !follow || self.follow(coming, stream).await {
            answer(stream, &Reply::Done).await;
        }
    }

    /// Events until the sandbox has ended. `false`: the client is gone.
    async fn follow(&self, mut coming: Receiver<Record>, stream: &mut UnixStream) -> bool {
        let mut ended = false;
        loop {
            let record = if ended {
                // The last ones came together with the end.
                coming.try_recv().map_err(|error| match error {
                    TryRecvError::Lagged(count) => RecvError::Lagged(count),
                    TryRecvError::Empty | TryRecvError::Closed => RecvError::Closed,
                })
            } else {
                tokio::select! {
                    biased;
                    record = coming.recv() => record,
                    _ = self.kernel.wait_exited() => {
                        ended = true;
                        continue;
                    }
                    () = gone(stream) => return false,
                }
            };
            let record = match record {
                Ok(record) => record,
                Err(RecvError::Lagged(count)) => suppressed(count),
                Err(RecvError::Closed) => return true,
            };
            if !send(stream, &Reply::Event(record)).await {
                return false;
            }
        }
    }
}

/// What a follower that was too slow is told instead.
fn suppressed(count: u64) -> Record {
    Record { time: super::super::state::now(), event: Event::Suppressed { count } }
}

/// Runs `operation` on a thread beside the main one, once `limit` admits it.
async fn run(
    limit: &Arc<Semaphore>,
    kernel: &Arc<Kernel>,
    operation: impl FnOnce(&Kernel) -> Result<Reply, String> + Send + 'static,
) -> Result<Reply, String> {
    let permit = Arc::clone(limit).acquire_owned().await;
    let kernel = Arc::clone(kernel);
    let done = tokio::task::spawn_blocking(move || {
        // Given back when the work is done, although the client may be gone by then.
        let _permit = permit;
        operation(&kernel)
    });
    done.await.unwrap_or_else(|_| Err("the operation failed unexpectedly".to_owned()))
}

/// The kernel's pauses nest; this verb's do not, so that one resume undoes them.
fn pause(kernel: &Kernel, held: &AtomicBool) -> Result<Reply, String> {
    if held.load(Ordering::Relaxed) {
        return Err("it is paused already; sandbox resume lets it go on".to_owned());
    }
    kernel.pause().map_err(|error| error.to_string())?;
    held.store(true, Ordering::Relaxed);
    Ok(Reply::Done)
}

fn resume(kernel: &Kernel, held: &AtomicBool) -> Result<Reply, String> {
    if !held.swap(false, Ordering::Relaxed) {
        return Err("it is not paused".to_owned());
    }
    kernel.unpause().map(|()| Reply::Done).map_err(|error| error.to_string())
}

fn standing(kernel: &Kernel) -> Result<Reply, KernelError> {
    let processes = kernel.census()?;
    Ok(Reply::Standing(Standing {
        paused: kernel.is_paused(),
        processes: processes.len() as u64,
        tasks: processes.iter().map(|process| u64::from(process.threads)).sum(),
    }))
}

fn send_signal(kernel: &Kernel, target: &Target, signal: i32) -> Result<Reply, String> {
    match target {
        Target::Program => kernel.signal(signal),
        Target::All => kernel.signal_all(signal),
        Target::Process(pid) => kernel.signal_task(*pid, signal),
        Target::Container(name) => kernel.signal_container(name, signal),
    }
    .map(|()| Reply::Done)
    .map_err(|error| match (target, error) {
        (Target::Container(name), KernelError::NoTasks) => {
            format!("nothing runs in a container named {name}; sandbox ps shows what runs where")
        }
        (_, error) => error.to_string(),
    })
}
