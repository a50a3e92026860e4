//! Runs one child to its end, and ends it when it takes too long or the user interrupts.
//!
//! Owns the signals of the bench: SIGINT, SIGTERM and SIGHUP are blocked and read by a watching
//! thread, which ends the child; the caller then unwinds and removes what it made. Children are
//! in process groups of their own, so that a terminal's Ctrl-C reaches them through that thread
//! only.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How often the watching thread looks at the child's deadline.
const TICK: Duration = Duration::from_millis(500);
/// What a child gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// Starts children one at a time.
pub(super) struct Runner {
    watched: Arc<Mutex<Watched>>,
}

/// Protected by the runner's mutex.
#[derive(Default)]
struct Watched {
    /// The child that runs, its deadline, and whether it was asked to end.
    child: Option<(Pid, Instant, bool)>,
    interrupted: bool,
}

/// Whether the output of a child is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Through a pipe, in full.
    Keep,
    /// To /dev/null.
    Discard,
}

/// A child that ended with status 0.
#[derive(Debug)]
pub(super) struct Finished {
    /// From before it was started until its end was known.
    pub(super) wall: Duration,
    /// Empty when discarded.
    pub(super) stdout: String,
}

/// Why a child gave no figure.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be started, or failed, or took too long: one clause.
    Failed(String),
    /// The user asked the bench to end.
    Interrupted,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(error.to_string())
    }
}

impl Runner {
    /// Blocks the ending signals in this thread (and those that it starts) and starts the watch.
    /// Children are not affected: the standard library starts them with nothing blocked.
    pub(super) fn new() -> io::Result<Runner> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let descriptor = SignalFd::new(&signals)?;
        let watched = Arc::new(Mutex::new(Watched::default()));
        let shared = Arc::clone(&watched);
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&descriptor, &shared))?;
        Ok(Runner { watched })
    }

    /// Runs `argv` in `directory` until it ends or `limit` has passed.
    ///
    /// # Errors
    /// `Failed` also where the status is not 0; the clause then ends with the first line that the
    /// child wrote to stderr.
    pub(super) fn run(
        &self,
        argv: &[OsString],
        directory: &Path,
        limit: Duration,
        output: Output,
    ) -> Result<Finished, Failure> {
        let complaints = directory.join(".stderr");
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .current_dir(directory)
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(if output == Output::Keep { Stdio::piped() } else { Stdio::null() })
            .stderr(File::create(&complaints)?);

        let deadline = Instant::now() + limit;
        let start = Instant::now();
        let child = command.spawn().map_err(|error| {
            Failure::Failed(format!("cannot run {}: {error}", argv[0].to_string_lossy()))
        })?;
        let (wall, status, stdout) = self.finish(child, start, deadline)?;
        self.check_interrupted()?;
        if status.success() {
            return Ok(Finished { wall, stdout });
        }
        let complaint = std::fs::read(&complaints).unwrap_or_default();
        let complaint = String::from_utf8_lossy(&complaint);
        let first = complaint.lines().next().unwrap_or("nothing on stderr").to_owned();
        let late = if wall >= limit { ", stopped at the time limit" } else { "" };
        Err(Failure::Failed(format!("{status}{late}: {first}")))
    }

    /// Says whether the user asked the bench to end.
    pub(super) fn check_interrupted(&self) -> Result<(), Failure> {
        if self.lock().interrupted { Err(Failure::Interrupted) } else { Ok(()) }
    }

    fn finish(
        &self,
        mut child: Child,
        start: Instant,
        deadline: Instant,
    ) -> io::Result<(Duration, ExitStatus, String)> {
        let pid = Pid::from_raw(child.id().cast_signed());
        self.lock().child = Some((pid, deadline, false));
        let mut stdout = Vec::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_end(&mut stdout)?;
        }
        // The zombie stays until the watch has let go of its pid: it must not signal another's.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
        let wall = start.elapsed();
        self.lock().child = None;
        Ok((wall, child.wait()?, String::from_utf8_lossy(&stdout).into_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        lock(&self.watched)
    }
}

/// Nothing is left half-changed by a panic while the mutex is held.
fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the process ends.
fn watch(signals: &SignalFd, watched: &Mutex<Watched>) {
    let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX);
    loop {
        let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let signalled = matches!(poll(&mut ready, tick), Ok(count) if count > 0)
            && matches!(signals.read_signal(), Ok(Some(_)));
        let mut watched = lock(watched);
        watched.interrupted |= signalled;
        let interrupted = watched.interrupted;
        let Some((pid, deadline, asked)) = &mut watched.child else { continue };
        let now = Instant::now();
        // ESRCH means that it has just ended, which is what is wanted.
        if !*asked && (interrupted || now >= *deadline) {
            let _ = killpg(*pid, Signal::SIGTERM);
            *asked = true;
            *deadline = now + GRACE;
        } else if *asked && now >= *deadline {
            let _ = killpg(*pid, Signal::SIGKILL);
        }
    }
}
