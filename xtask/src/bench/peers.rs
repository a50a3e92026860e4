//! What others that save and restore processes take for the same guests: CRIU and runsc.
//!
//! Owns their command lines and their guests. In one round a peer starts a guest, saves it, ends it,
//! restores the image and ends that too, so that the memory of a round is free again before the next
//! contender's turn. A peer that does not work here is left out, with a note.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Bench;
use super::contender::Contender;
use super::machine::field;
use super::process::{Failure, Finished, Output};
use super::row::Column;
use super::running::Guest;

const LIMIT: Duration = Duration::from_secs(120);
/// What killed processes get to be gone.
const GRACE: Duration = Duration::from_secs(5);
/// What a peer is tried with: a small process.
const TRIAL: [&str; 4] = ["heap", "hold", "0", "random"];
/// The container of runsc that is saved, and the one that is restored.
const CONTAINERS: [&str; 2] = ["bench-saved", "bench-restored"];

/// Who saves and restores by other means than ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Of processes that run natively.
    Criu,
    /// Of its own containers.
    Runsc,
}

/// What one round took, nanoseconds.
struct Figures {
    /// How long the guest stood still, where the peer tells.
    pause: Option<f64>,
    /// The command that saves.
    whole: f64,
    /// The command that restores, until it returned.
    restore: f64,
}

/// The peers that were asked for and work here.
pub(super) struct Peers {
    working: Vec<Peer>,
    /// What was asked for and does not work, and what a reader must know of what does.
    pub(super) notes: Vec<String>,
}

impl Peers {
    /// Tries each peer with a small process: CRIU where it was asked for, runsc where there is one.
    ///
    /// # Errors
    /// Only where the user interrupts.
    pub(super) fn probe(bench: &Bench) -> Result<Peers, String> {
        let mut peers = Peers { working: Vec::new(), notes: Vec::new() };
        for peer in [Peer::Criu, Peer::Runsc] {
            let asked = match peer {
                Peer::Criu => bench.criu.is_some(),
                Peer::Runsc => bench.contenders.get("runsc").is_some(),
            };
            if !asked {
                continue;
            }
            match peer.trial(bench) {
                Ok(note) => {
                    peers.working.push(peer);
                    peers.notes.push(note);
                }
                Err(failure) => failure.note(peer.name(), "a trial save", &mut peers.notes)?,
            }
        }
        Ok(peers)
    }

    /// Those of `wanted` that work, to be measured with a guest: a program of the workshop and its
    /// arguments.
    pub(super) fn beside<'a>(
        &self,
        bench: &'a Bench,
        wanted: &[Peer],
        guest: &'a [&'a str],
    ) -> Beside<'a> {
        let working = self.working.iter().filter(|peer| wanted.contains(peer));
        let samples = working.map(|peer| (*peer, Vec::new())).collect();
        Beside { bench, guest, samples, notes: Vec::new() }
    }
}

/// Peers that take turns with ours.
pub(super) struct Beside<'a> {
    bench: &'a Bench,
    guest: &'a [&'a str],
    /// By the number of their round.
    samples: Vec<(Peer, Vec<(usize, Figures)>)>,
    /// Who gave up, and why.
    pub(super) notes: Vec<String>,
}

impl Beside<'_> {
    /// One round of each; a peer that fails takes no further turns, and keeps what it has.
    ///
    /// # Errors
    /// `Interrupted` only.
    pub(super) fn turn(&mut self, round: usize) -> Result<(), Failure> {
        for (peer, samples) in &mut self.samples {
            let name = peer.name();
            if samples.len() < round {
                continue;
            }
            match peer.round(self.bench, self.guest) {
                Ok(figures) => samples.push((round, figures)),
                Err(Failure::Interrupted) => return Err(Failure::Interrupted),
                Err(Failure::Failed(why)) => {
                    self.notes.push(format!("{name} gave up on {}: {why}", self.guest.join(" ")));
                }
            }
        }
        Ok(())
    }

    /// How long guests stood still, of the peers that tell.
    pub(super) fn pauses(&self) -> Vec<Column> {
        self.columns(|figures| figures.pause)
    }

    /// Whole saves.
    pub(super) fn wholes(&self) -> Vec<Column> {
        self.columns(|figures| Some(figures.whole))
    }

    /// Restores.
    pub(super) fn restores(&self) -> Vec<Column> {
        self.columns(|figures| Some(figures.restore))
    }

    fn columns(&self, pick: fn(&Figures) -> Option<f64>) -> Vec<Column> {
        let column = |(peer, samples): &(Peer, Vec<(usize, Figures)>)| {
            let picked = samples.iter().filter_map(|(round, it)| Some((*round, vec![pick(it)?])));
            Column { contender: peer.name(), rounds: picked.collect(), again: Vec::new() }
        };
        self.samples.iter().map(column).filter(|column| !column.rounds.is_empty()).collect()
    }
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Criu => "criu",
            Peer::Runsc => "runsc",
        }
    }

    /// Whether it works here. Gives what a reader of its figures must know.
    fn trial(self, bench: &Bench) -> Result<String, Failure> {
        if fs::metadata("/proc/self")?.uid() != 0 {
            return Err(Failure::Failed("the bench does not run as root".to_owned()));
        }
        let note = match self {
            Peer::Criu => {
                let images = Images::new("criu")?;
                criu(bench, &images, &["check"])?;
                let said = criu(bench, &images, &["--version"])?.stdout;
                let version = said.lines().next().unwrap_or_default().replace("Version: ", "");
                format!("criu {version}: its pause is the frozen time that it tells")
            }
            Peer::Runsc => {
                "a checkpoint of runsc ends the container: with --leave-running its command would \
                 not return"
                    .to_owned()
            }
        };
        self.round(bench, &TRIAL)?;
        Ok(note)
    }

    fn round(self, bench: &Bench, guest: &[&str]) -> Result<Figures, Failure> {
        match self {
            Peer::Criu => criu_round(bench, guest),
            Peer::Runsc => runsc_round(bench, guest),
        }
    }
}

/// Where a peer's images are: in memory, as ours. Removed when dropped.
struct Images(PathBuf);

impl Images {
    fn new(peer: &str) -> Result<Images, Failure> {
        let images = format!("/dev/shm/sandbox-bench-{peer}-{}", std::process::id());
        fs::create_dir(&images)?;
        Ok(Images(images.into()))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("bench: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The program of the workshop and its arguments.
fn command_line(bench: &Bench, guest: &[&str]) -> Vec<OsString> {
    let arguments = guest[1..].iter().map(OsString::from);
    std::iter::once(bench.workshop.file(guest[0])).chain(arguments).collect()
}

fn criu_round(bench: &Bench, guest: &[&str]) -> Result<Figures, Failure> {
    let images = Images::new("criu")?;
    let saved = Session::start(bench, guest)?;
    let leader = saved.leader.to_string();
    let dump = ["dump", "--leave-running", "--display-stats", "--tree", &leader];
    let dump = criu(bench, &images, &dump)?;
    // The restored processes get the same numbers.
    let restored = saved.end_and_follow()?;
    let restore = criu(bench, &images, &["restore", "--restore-detached"])?;
    if !restored.lives() {
        return Err(Failure::Failed("what it restored did not live on".to_owned()));
    }
    Ok(Figures {
        pause: Some(frozen(&dump.stdout)?),
        whole: dump.wall.as_nanos() as f64,
        restore: restore.wall.as_nanos() as f64,
    })
}

fn criu(bench: &Bench, images: &Images, words: &[&str]) -> Result<Finished, Failure> {
    let program = bench.criu.clone().unwrap_or_default();
    // Only errors are logged: the log is no part of what is measured.
    let flags = ["--images-dir", images.path(), "--log-file", "criu.log", "-v1"];
    let words = words.iter().chain(&flags).map(OsString::from);
    let argv: Vec<_> = std::iter::once(program.into_os_string()).chain(words).collect();
    let done = bench.runner.run(&argv, bench.workshop.path(), LIMIT, Output::Keep);
    done.map_err(|failure| match (failure, complaint(&images.0.join("criu.log"))) {
        (Failure::Failed(why), Some(complaint)) => Failure::Failed(format!("{why}: {complaint}")),
        (failure, _) => failure,
    })
}

/// The last error that CRIU logged, but for the one that sums up.
fn complaint(log: &Path) -> Option<String> {
    let log = fs::read_to_string(log).ok()?;
    let complaint = log.lines().rfind(|line| line.contains("Error") && !line.contains("FAILED"))?;
    Some(complaint.trim().to_owned())
}

/// `Frozen time: 263771 us`, in nanoseconds.
fn frozen(stats: &str) -> Result<f64, Failure> {
    let figure = stats.lines().find_map(|line| line.trim().strip_prefix("Frozen time:"));
    let microseconds = figure.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    let untold = || Failure::Failed("it does not tell how long it froze its guest".to_owned());
    microseconds.map(|microseconds| microseconds * 1e3).ok_or_else(untold)
}

/// A session of processes outside of any sandbox, which hold no terminal, pipe or file that changes.
/// Killed when dropped.
struct Session {
    leader: Pid,
    /// The leader, where it is a child of the bench and not one that was restored.
    child: Option<Child>,
}

impl Session {
    /// Starts the guest and waits until it has said that it is ready, and so closes its stdout.
    fn start(bench: &Bench, guest: &[&str]) -> Result<Session, Failure> {
        // Not through the runner: setsid(1) would fork in a process group of its own.
        let mut child = Command::new("setsid")
            .args(command_line(bench, guest))
            .current_dir(bench.workshop.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (leader, pipe) = (Pid::from_raw(child.id().cast_signed()), child.stdout.take());
        let session = Session { leader, child: Some(child) };
        let mut said = String::new();
        if let Some(mut pipe) = pipe {
            // Until all of its processes have closed it.
            pipe.read_to_string(&mut said)?;
        }
        bench.runner.check_interrupted()?;
        let silent = || Failure::Failed("its guest said nothing".to_owned());
        said.starts_with("ready").then_some(session).ok_or_else(silent)
    }

    /// Kills all of it and waits until its numbers are free. Gives the session that will have them
    /// again.
    fn end_and_follow(self) -> Result<Session, Failure> {
        let leader = self.leader;
        drop(self);
        let next = Session { leader, child: None };
        if next.exists() {
            return Err(Failure::Failed("its killed guest is still there".to_owned()));
        }
        Ok(next)
    }

    /// Also of processes that have ended and that their parent has not yet collected.
    fn exists(&self) -> bool {
        killpg(self.leader, None).is_ok()
    }

    /// Whether its leader has not ended.
    fn lives(&self) -> bool {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.leader)).unwrap_or_default();
        !matches!(field(&status, "State").chars().next(), None | Some('Z' | 'X'))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = killpg(self.leader, Signal::SIGKILL);
        if let Some(child) = &mut self.child {
            // One that has not come to its session is in none of the group.
            let _ = child.kill().and_then(|()| child.wait());
        }
        // The others are no children of the bench: nothing tells when init has collected them.
        let deadline = Instant::now() + GRACE;
        while self.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn runsc_round(bench: &Bench, guest: &[&str]) -> Result<Figures, Failure> {
    let images = Images::new("runsc")?;
    let bundle = images.path();
    let config = bundle_config(&command_line(bench, guest)).to_string();
    fs::write(images.0.join("config.json"), config)?;
    let containers = Containers { bench, images: &images };
    let [saved, restored] = CONTAINERS;
    let run = containers.runsc(&["run", "--bundle", bundle, saved]);
    let run: Vec<_> = run.iter().map(|word| word.to_string_lossy()).collect();
    let run: Vec<&str> = run.iter().map(AsRef::as_ref).collect();
    let native = Contender::new("runsc", &[]);
    let guest = Guest::start(bench, &native, &[], &run, "ready").map_err(Failure::Failed)?;
    let whole = containers.timed(&["checkpoint", "--image-path", bundle, saved])?;
    drop(guest);
    let restore = ["restore", "--detach", "--bundle", bundle, "--image-path", bundle, restored];
    let restore = containers.timed(&restore)?;
    Ok(Figures { pause: None, whole, restore })
}

/// A container that shows the host's files and has nothing else of it.
fn bundle_config(argv: &[OsString]) -> serde_json::Value {
    let argv: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    let namespaces = ["pid", "network", "ipc", "uts", "mount"];
    serde_json::json!({
        "ociVersion": "1.0.0",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": argv, "cwd": "/" },
        "root": { "path": "/", "readonly": true },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces.map(|name| serde_json::json!({ "type": name })) },
    })
}

/// The containers of one round. Removed when dropped, before their directory is.
struct Containers<'a> {
    bench: &'a Bench,
    images: &'a Images,
}

impl Containers<'_> {
    fn runsc(&self, words: &[&str]) -> Vec<OsString> {
        let state = self.images.0.join("state").into_os_string();
        let flags = ["runsc".into(), "--network=none".into(), "--root".into(), state];
        flags.into_iter().chain(words.iter().map(OsString::from)).collect()
    }

    /// Runs a command of runsc. Gives its wall-clock time in nanoseconds.
    fn timed(&self, words: &[&str]) -> Result<f64, Failure> {
        let (runner, directory) = (&self.bench.runner, self.bench.workshop.path());
        // A restored container keeps the stdout that it is given: a pipe would not end.
        let done = runner.run(&self.runsc(words), directory, LIMIT, Output::Discard)?;
        Ok(done.wall.as_nanos() as f64)
    }
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        for id in CONTAINERS {
            // Not through the runner, which starts nothing more after an interruption.
            let argv = self.runsc(&["delete", "-force", id]);
            let _ = self.bench.runner.command(&argv, self.bench.workshop.path()).output();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_tells_the_frozen_time_among_others() {
        let stats = "Displaying dump stats:\nFreezing time: 3173 us\nFrozen time: 263771 us\n";
        assert_eq!(frozen(stats).ok(), Some(263_771_000.0));
        assert!(frozen("Freezing time: 3173 us\n").is_err());
    }
}
