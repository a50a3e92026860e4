//! Sandboxes and other guests that go on while something is measured.
//!
//! Owns their ends: each is ended when it is dropped, whatever became of the measurement, and each
//! guest ends by itself after a while, should the bench be killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Bench;
use super::contender::Contender;
use super::process::{Failure, Output};
use super::processes;

/// How long a verb may take.
const LIMIT: Duration = Duration::from_secs(30);
/// What a guest gets between SIGTERM and SIGKILL, and a supervisor to be gone.
const GRACE: Duration = Duration::from_secs(3);

/// A child of ours that has printed a line and sleeps.
pub(super) struct Guest {
    /// The contender's name.
    pub(super) name: &'static str,
    /// What it has printed.
    pub(super) line: String,
    child: Child,
}

impl Guest {
    /// Starts it and waits until it runs: for its first line, which begins with `word`.
    ///
    /// # Errors
    /// It could not be started, or ended or printed something else: a clause.
    pub(super) fn start(
        bench: &Bench,
        contender: &Contender,
        flags: &[&str],
        argv: &[&str],
        word: &str,
    ) -> Result<Guest, String> {
        let argv: Vec<_> = argv.iter().map(Into::into).collect();
        let argv = contender.wrap_with(flags, &argv);
        let child = bench
            .runner
            .command(&argv, bench.workshop.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", argv[0].to_string_lossy()))?;
        let mut guest = Guest { name: contender.name, line: String::new(), child };
        if let Some(pipe) = &mut guest.child.stdout {
            // Ends at the latest when the guest does.
            let _ = BufReader::new(pipe).read_line(&mut guest.line);
        }
        let begins = guest.line.split_whitespace().next() == Some(word);
        if begins { Ok(guest) } else { Err("its guest said nothing".to_owned()) }
    }

    /// The process that was started: of a sandbox the supervisor.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(super) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let deadline = Instant::now() + GRACE;
        // The child is not reaped before it is waited for, so the group is still its own.
        if self.lives() {
            let _ = killpg(group, Signal::SIGTERM);
            let _ = killpg(group, Signal::SIGCONT);
        }
        while self.lives() {
            if Instant::now() >= deadline {
                let _ = killpg(group, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Sandboxes in the background, asleep.
pub(super) struct Detached<'a> {
    bench: &'a Bench,
    ours: &'a Contender,
    ids: Vec<String>,
    /// Their supervisors, as `ps` lists them.
    pub(super) supervisors: Vec<u32>,
}

impl<'a> Detached<'a> {
    /// Starts `count` of them with these flags.
    ///
    /// # Errors
    /// As of a child that failed; those that run already are ended.
    pub(super) fn start(
        bench: &'a Bench,
        ours: &'a Contender,
        count: usize,
        flags: &[&str],
    ) -> Result<Detached<'a>, Failure> {
        let mut detached = Detached { bench, ours, ids: Vec::new(), supervisors: Vec::new() };
        let flags: Vec<&str> = ["--detach"].into_iter().chain(flags.iter().copied()).collect();
        let argv = ours.wrap_with(&flags, &["sleep".into(), "120".into()]);
        for _ in 0..count {
            let finished = bench.runner.run(&argv, bench.workshop.path(), LIMIT, Output::Keep)?;
            detached.ids.push(finished.stdout.trim().to_owned());
        }
        let listed = detached.verb(&["ps", "--json"])?;
        let listed: Vec<Listed> = serde_json::from_str(&listed)
            .map_err(|error| Failure::Failed(format!("cannot read ps --json: {error}")))?;
        let mine = listed.iter().filter(|it| detached.ids.contains(&it.id));
        detached.supervisors = mine.map(|it| it.pid).collect();
        if detached.supervisors.len() < count {
            let found = detached.supervisors.len();
            return Err(Failure::Failed(format!("{found} of {count} sandboxes are listed")));
        }
        Ok(detached)
    }

    fn verb(&self, words: &[&str]) -> Result<String, Failure> {
        verb(self.bench, self.ours, words).map(|finished| finished.stdout)
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        // Not through the runner, which starts nothing more after an interruption.
        let verb = |words: &[&str]| {
            let argv = self.ours.verb(words);
            self.bench.runner.command(&argv, self.bench.workshop.path()).output()
        };
        // Also one that was interrupted before it could say its id: the directory is the bench's own.
        let listed = verb(&["ps", "--json"]).map(|output| output.stdout).unwrap_or_default();
        let listed: Vec<Listed> = serde_json::from_slice(&listed).unwrap_or_default();
        self.ids.extend(listed.into_iter().filter(|it| it.detached).map(|it| it.id));
        self.ids.sort_unstable();
        self.ids.dedup();
        for id in &self.ids {
            let _ = verb(&["kill", id, "KILL"]);
        }
        for id in &self.ids {
            // Collects the status, so that nothing of it is kept.
            let _ = verb(&["wait", id]);
        }
        let deadline = Instant::now() + GRACE;
        while self.supervisors.iter().any(|pid| processes::exists(*pid)) {
            if Instant::now() >= deadline {
                eprintln!("bench: sandboxes are left that were killed: {}", self.ids.join(" "));
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A sandbox as `ps --json` lists it, or a process as `ps ID --json` does.
#[derive(serde::Deserialize)]
pub(super) struct Listed {
    #[serde(default)]
    id: String,
    #[serde(default)]
    detached: bool,
    /// As the host numbers it.
    pub(super) pid: u32,
}

/// Runs a verb of ours to its end.
///
/// # Errors
/// As of a child that failed.
pub(super) fn verb(
    bench: &Bench,
    ours: &Contender,
    words: &[&str],
) -> Result<super::process::Finished, Failure> {
    bench.runner.run(&ours.verb(words), bench.workshop.path(), LIMIT, Output::Keep)
}
