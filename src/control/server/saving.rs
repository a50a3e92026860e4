//! A save, asked for over the control socket.
//!
//! Owns the conversation: progress, the news that the image is complete, the client's word that it has its
//! name, and only then the end of the guests. A client that vanishes before leaves the guests as they
//! were. What a save is, is [`pipeline`]'s business; it runs on a thread beside the main one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

use super::super::protocol::{Refused, Reply, Request, Save, Summary};
use super::{answer, gone, read_request, send};
use crate::save::error::SaveError;
use crate::save::pipeline::{self, Facts, Options, Progress, Saved, Tell};
use crate::sentry::Kernel;

/// How long the client may take to give the image its name: the guests stand still meanwhile.
const COMMIT_TIME: Duration = Duration::from_secs(60);

/// What to tell whoever started the run, if a save ends it.
#[derive(Debug, Clone, Default)]
pub struct Farewell(Arc<Mutex<Option<String>>>);

impl Farewell {
    fn set(&self, words: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// A sentence, if a save has ended the run.
    pub(super) fn words(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Saves one sandbox.
#[derive(Debug)]
pub(super) struct Saving {
    kernel: Arc<Kernel>,
    facts: Arc<Facts>,
    /// One save at a time.
    turn: Arc<Semaphore>,
    farewell: Farewell,
}

/// The ends of the conversation that the saving thread holds.
struct Teller {
    progress: watch::Sender<Progress>,
    written: Option<oneshot::Sender<Saved>>,
    committed: Option<oneshot::Receiver<()>>,
    /// What to say of the run's end, if this ends it.
    words: Option<String>,
    farewell: Farewell,
}

impl Saving {
    pub(super) fn new(kernel: Arc<Kernel>, facts: Facts, farewell: Farewell) -> Saving {
        Saving { kernel, facts: Arc::new(facts), turn: Arc::new(Semaphore::new(1)), farewell }
    }

    /// Saves, and answers.
    pub(super) async fn serve(
        &self,
        save: Save,
        descriptors: Vec<OwnedFd>,
        stream: &mut UnixStream,
    ) {
        let reply = match self.save(save, descriptors, stream).await {
            Ok(()) => Reply::Done,
            Err(reason) => Reply::Refused(Refused { reason }),
        };
        answer(stream, &reply).await;
    }

    async fn save(
        &self,
        save: Save,
        descriptors: Vec<OwnedFd>,
        stream: &mut UnixStream,
    ) -> Result<(), String> {
        let out = output(descriptors)?;
        let turn = Arc::clone(&self.turn).try_acquire_owned();
        let turn = turn.map_err(|_| "it is being saved already; wait for the end of that save")?;
        let (progress, mut heard) = watch::channel(Progress::default());
        let (written, mut complete) = oneshot::channel();
        let (commit, committed) = oneshot::channel();
        let Save { leave_running, strict, compression, .. } = save;
        let options = Options { leave_running, strict, compression };
        let mut teller = Teller {
            progress,
            written: Some(written),
            committed: Some(committed),
            words: (!save.leave_running).then(|| words(save.name.as_deref())),
            farewell: self.farewell.clone(),
        };
        let (kernel, facts) = (Arc::clone(&self.kernel), Arc::clone(&self.facts));
        let work = tokio::task::spawn_blocking(move || {
            // Given back when the work is done, although the client may be gone by then.
            let _turn = turn;
            teller.save(&kernel, &facts, out, options)
        });
        let ended = |done: Result<Result<(), String>, _>| {
            done.unwrap_or_else(|_| Err("the save failed unexpectedly".to_owned()))
        };
        let saved = loop {
            tokio::select! {
                biased;
                saved = &mut complete => match saved {
                    Ok(saved) => break saved,
                    // It has ended without.
                    Err(_) => return ended(work.await),
                },
                Ok(()) = heard.changed() => {
                    let Progress { done, total } = *heard.borrow_and_update();
                    if !send(stream, &Reply::Progress { done, total }).await {
                        return Ok(());
                    }
                }
                // `commit` goes with this, and with it the permission to end anything.
                () = gone(stream) => return Ok(()),
            }
        };
        if !send(stream, &Reply::Written(summary(&saved))).await {
            return Ok(());
        }
        let said = timeout(COMMIT_TIME, read_request(stream)).await;
        match said {
            Ok(Ok((Request::Commit, _))) => drop(commit.send(())),
            _ => drop(commit),
        }
        let done = ended(work.await);
        if done.is_ok() && !leave_running {
            // Whoever hears of it may restore it at once: by then the id is free, and so is an overlay.
            tokio::select! {
                biased;
                _ = self.kernel.wait_exited() => {}
                () = gone(stream) => {}
            }
        }
        done
    }
}

impl Teller {
    /// The saving thread's work.
    fn save(
        &mut self,
        kernel: &Arc<Kernel>,
        facts: &Facts,
        out: File,
        options: Options,
    ) -> Result<(), String> {
        let (written, committed) = (&mut self.written, &mut self.committed);
        let (words, farewell) = (&mut self.words, &self.farewell);
        let progress = self.progress.clone();
        let tell: Tell = Arc::new(move |so_far| {
            // Before there is an image there is nothing to show.
            if so_far.total > 0 {
                progress.send_replace(so_far);
            }
            // Whoever asked listens until the image is complete.
            !progress.is_closed()
        });
        let mut commit = |saved: &Saved| {
            let left = || SaveError::refused("whoever asked for the image did not keep it");
            if let Some(written) = written.take() {
                written.send(saved.clone()).map_err(|_| left())?;
            }
            if let Some(committed) = committed.take() {
                committed.blocking_recv().map_err(|_| left())?;
            }
            // Before anything ends: who tells of the end finds it.
            farewell.set(words.take());
            Ok(())
        };
        let done = pipeline::save(kernel, facts, out, options, &tell, &mut commit);
        done.map(drop).map_err(|error| {
            self.farewell.set(None);
            error.to_string()
        })
    }
}

/// The one descriptor that came along, if it can be written to.
fn output(descriptors: Vec<OwnedFd>) -> Result<File, String> {
    let [out] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|_| "a save needs one descriptor to write the image to")?;
    let flags = fcntl(&out, FcntlArg::F_GETFL).map_err(|errno| errno.desc().to_owned())?;
    let flags = OFlag::from_bits_truncate(flags);
    if flags.contains(OFlag::O_PATH) || flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err("the descriptor for the image cannot be written to".to_owned());
    }
    Ok(File::from(out))
}

fn summary(saved: &Saved) -> Summary {
    Summary {
        bytes: saved.bytes,
        processes: saved.processes,
        threads: saved.threads,
        pause_us: saved.pause.as_micros() as u64,
    }
}

/// What whoever started the run reads.
fn words(name: Option<&str>) -> String {
    match name {
        Some(name) => {
            // It comes from a client, and goes to a terminal.
            let name = crate::config::quoted(name);
            format!("saved to {name} and ended; sandbox restore {name} goes on from there")
        }
        None => "saved and ended; sandbox restore goes on from there".to_owned(),
    }
}
