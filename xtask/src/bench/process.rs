//! Runs one child to its end, and ends it when it takes too long or the user interrupts.
//!
//! Owns the signals of the bench: SIGINT, SIGTERM and SIGHUP wake a watching thread, which ends the
//! child; the caller then unwinds and removes what it made. They are handled and not blocked, because
//! a child inherits what is blocked through exec and not what is handled (signal(7)). Children are
//! in process groups of their own, so that a terminal's Ctrl-C reaches them through that thread
//! only.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::signal::unix::{self as incoming, SignalKind};

/// How often the watching thread looks at the child's deadline.
const TICK: Duration = Duration::from_millis(500);
/// What a child gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// Starts children one at a time.
pub(super) struct Runner {
    watched: Arc<Mutex<Watched>>,
    /// Where sandboxes keep their sockets ($XDG_RUNTIME_DIR of all children): the user's own are
    /// in another.
    runtime: PathBuf,
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
    /// Until the first byte came out of it; `None` where none did, or when discarded.
    pub(super) first_output: Option<Duration>,
    /// Empty when discarded.
    pub(super) stdout: String,
    /// What it wrote to stderr.
    pub(super) stderr: String,
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
    /// Handles the ending signals from now on and starts the watch.
    pub(super) fn new() -> io::Result<Runner> {
        let reactor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = reactor.enter();
            let on = incoming::signal;
            (on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?)
        };
        let watched = Arc::new(Mutex::new(Watched::default()));
        let shared = Arc::clone(&watched);
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || reactor.block_on(watch(signals, &shared)))?;
        // In memory, as the directory of a session is.
        let parent = match Path::new("/dev/shm").is_dir() {
            true => PathBuf::from("/dev/shm"),
            false => std::env::temp_dir(),
        };
        let runtime = parent.join(format!("sandbox-bench-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&runtime)?;
        Ok(Runner { watched, runtime })
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
        let mut command = self.command(argv, directory);
        command
            .stdout(if output == Output::Keep { Stdio::piped() } else { Stdio::null() })
            .stderr(File::create(&complaints)?);

        let deadline = Instant::now() + limit;
        let start = Instant::now();
        let child = command.spawn().map_err(|error| {
            Failure::Failed(format!("cannot run {}: {error}", argv[0].to_string_lossy()))
        })?;
        let (mut finished, status) = self.finish(child, start, deadline)?;
        self.check_interrupted()?;
        let complaint = std::fs::read(&complaints).unwrap_or_default();
        finished.stderr = String::from_utf8_lossy(&complaint).into_owned();
        if status.success() {
            return Ok(finished);
        }
        let first = finished.stderr.lines().next().unwrap_or("nothing on stderr");
        let late = if finished.wall >= limit { ", stopped at the time limit" } else { "" };
        Err(Failure::Failed(format!("{status}{late}: {first}")))
    }

    /// A child in surroundings as all have them: a process group of its own, nothing to read.
    pub(super) fn command(&self, argv: &[OsString], directory: &Path) -> Command {
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .current_dir(directory)
            .env("LC_ALL", "C")
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .process_group(0)
            .stdin(Stdio::null());
        command
    }

    /// Sleeps in small steps, so that an interruption is noticed.
    pub(super) fn pause(&self, duration: Duration) -> Result<(), Failure> {
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            std::thread::sleep(left.min(TICK));
            self.check_interrupted()?;
        }
        Ok(())
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
    ) -> io::Result<(Finished, ExitStatus)> {
        let pid = Pid::from_raw(child.id().cast_signed());
        self.lock().child = Some((pid, deadline, false));
        let mut stdout = Vec::new();
        let mut first_output = None;
        if let Some(mut pipe) = child.stdout.take() {
            let mut first = [0; 4096];
            let count = pipe.read(&mut first)?;
            if count > 0 {
                first_output = Some(start.elapsed());
                stdout.extend_from_slice(&first[..count]);
                pipe.read_to_end(&mut stdout)?;
            }
        }
        // The zombie stays until the watch has let go of its pid: it must not signal another's.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
        let wall = start.elapsed();
        self.lock().child = None;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        Ok((Finished { wall, first_output, stdout, stderr: String::new() }, child.wait()?))
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        lock(&self.watched)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.runtime) {
            eprintln!("bench: cannot remove {}: {error}", self.runtime.display());
        }
    }
}

impl Failure {
    /// Goes on without this contender, and notes why.
    ///
    /// # Errors
    /// Where the user interrupts.
    pub(super) fn note(self, who: &str, row: &str, notes: &mut Vec<String>) -> Result<(), String> {
        match self {
            Failure::Interrupted => Err("interrupted: nothing was written".to_owned()),
            Failure::Failed(why) => {
                notes.push(format!("{who} gave up in {row}: {why}"));
                Ok(())
            }
        }
    }
}

/// Nothing is left half-changed by a panic while the mutex is held.
fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the process ends.
async fn watch(
    (mut interrupt, mut terminate, mut hangup): (
        incoming::Signal,
        incoming::Signal,
        incoming::Signal,
    ),
    watched: &Mutex<Watched>,
) {
    loop {
        let signalled = tokio::select! {
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
            _ = hangup.recv() => true,
            () = tokio::time::sleep(TICK) => false,
        };
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
