//! `sandbox save`: all of a running sandbox becomes an image.
//!
//! Owns the file: it is opened here, so that relative names and this user's permissions hold, gets its
//! name here once the sandbox says that it is whole, and vanishes here if that comes to nothing.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use super::progress::{Bar, short};
use super::table::bytes;
use super::{OWN_ERROR, fail, print};
use crate::config::quoted;
use crate::control::ClientError;
use crate::control::client::{Call, Sandbox};
use crate::control::protocol::{Reply, Request, Save, Summary};
use crate::save::image::{Durable, ImageError};

/// What zstd is asked for where nobody says it.
const LEVEL: i32 = 3;

/// The words of `sandbox save`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// The image; - is the standard output
    #[arg(short, long, value_name = "IMAGE|-")]
    output: PathBuf,
    /// Let the sandbox go on afterwards, instead of ending it
    #[arg(long)]
    leave_running: bool,
    /// Refuse TCP connections with the host, or through published ports, which a restored program finds reset
    #[arg(long)]
    strict: bool,
    /// Pack memory and files; such an image is smaller, and slower to go on from
    #[arg(long, value_name = "zstd[:LEVEL]", value_parser = compression, allow_hyphen_values = true)]
    compress: Option<i32>,
    /// Print what was saved, for programs to read
    #[arg(long)]
    json: bool,
}

/// `sandbox save --json`; docs/control.md names its fields.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    image: String,
    bytes: u64,
    processes: u64,
    threads: u64,
    pause_us: u64,
    ended: bool,
}

/// Why there is no image, or what went wrong with it.
enum Failure {
    Client(ClientError),
    Image(ImageError),
    Words(String),
    /// The user wants it to end.
    Signal(Signal),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Failure {
        Failure::Image(error)
    }
}

/// Saves. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    match save(command) {
        Ok(row) if command.json => match serde_json::to_string(&row) {
            Ok(text) => print(text + "\n").err().unwrap_or(0),
            Err(error) => fail(error),
        },
        Ok(_) => 0,
        Err(Failure::Client(error)) => fail(error),
        Err(Failure::Image(error)) => fail(format_args!("cannot save {}: {error}", command.id)),
        Err(Failure::Words(sentence)) => fail(sentence),
        Err(Failure::Signal(signal)) => {
            // Nothing is left behind by now: as if it had not been held back.
            let _ = SigSet::from_iter([signal]).thread_unblock();
            let _ = raise(signal);
            OWN_ERROR
        }
    }
}

fn save(command: &Command) -> Result<Row<'_>, Failure> {
    let sandbox = Sandbox::find(&command.id)?;
    if let Some(ended) = &sandbox.listed.ended {
        return Err(ClientError::Ended(command.id.clone(), ended.status).into());
    }
    let signals = Signals::hold()?;
    let to_stdout = command.output == Path::new("-");
    let stdout = std::io::stdout();
    let durable = match to_stdout {
        true if command.json => {
            return Err(Failure::Words(
                "cannot print JSON and the image on the same standard output: leave --json out, or \
                 name a file with -o"
                    .to_owned(),
            ));
        }
        true if stdout.is_terminal() => {
            return Err(Failure::Words(
                "cannot write an image to a terminal: redirect the standard output, or name a file \
                 with -o"
                    .to_owned(),
            ));
        }
        true => None,
        false => Some(Durable::create(&command.output)?),
    };
    let name = durable.as_ref().map(|durable| shown(durable.target()));
    let request = Request::Save(Box::new(Save {
        leave_running: command.leave_running,
        strict: command.strict,
        compression: command.compress,
        name: name.clone(),
    }));
    let out = durable.as_ref().map_or(stdout.as_fd(), |durable| durable.file().as_fd());
    let mut call = sandbox.call(&request, &[out])?;
    let summary = written(&mut call, &command.id, &signals)?;
    // Whoever ends between this and the next word has an image that is whole, and a sandbox that goes on.
    if let Some(durable) = durable {
        durable.commit()?;
    }
    finish(&mut call, command, name.as_deref())?;
    Ok(Row {
        id: &command.id,
        image: name.unwrap_or_else(|| "-".to_owned()),
        bytes: summary.bytes,
        processes: summary.processes,
        threads: summary.threads,
        pause_us: summary.pause_us,
        ended: !command.leave_running,
    })
}

/// Follows the save until the image is whole.
fn written(call: &mut Call, id: &str, signals: &Signals) -> Result<Summary, Failure> {
    let bar = Bar::new("saving", 0);
    let mut measured = None;
    loop {
        signals.wait(call.socket())?;
        match call.reply() {
            Ok(Reply::Progress { done, total }) => {
                measured.get_or_insert_with(|| Bar::new("saving", total)).at(done, total);
            }
            Ok(Reply::Written(summary)) => {
                let pause = short(Duration::from_micros(summary.pause_us));
                let Summary { bytes: size, processes, threads, .. } = summary;
                let counted = |count, one: &str, many: &str| match count {
                    1 => format!("1 {one}"),
                    count => format!("{count} {many}"),
                };
                measured.as_ref().unwrap_or(&bar).say(&format!(
                    "saved {} with {} ({}); they stood still for {pause}",
                    counted(processes, "process", "processes"),
                    counted(threads, "thread", "threads"),
                    bytes(size),
                ));
                return Ok(summary);
            }
            Ok(other) => return Err(ClientError::unexpected(id, &other).into()),
            Err(error) => {
                measured.as_ref().unwrap_or(&bar).clear();
                return Err(error.into());
            }
        }
    }
}

/// The image has its name: the guests may end.
fn finish(call: &mut Call, command: &Command, name: Option<&str>) -> Result<(), Failure> {
    let said = call.say(&Request::Commit).and_then(|()| call.reply());
    let id = &command.id;
    match said {
        Ok(Reply::Done) => Ok(()),
        Ok(other) => Err(ClientError::unexpected(id, &other).into()),
        // With the guests the supervisor ends, which may be sooner than its last word.
        Err(ClientError::Silent(..)) if !command.leave_running => Ok(()),
        Err(error) => Err(Failure::Words(match name {
            Some(name) => format!(
                "{} is whole, but the sandbox did not end as it should: {error}",
                quoted(name)
            ),
            None => {
                format!("the image is whole, but the sandbox did not end as it should: {error}")
            }
        })),
    }
}

/// The image's name for people elsewhere: absolute.
fn shown(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.to_string_lossy().into_owned()
}

/// Signals that would end this process while a file has no name yet.
struct Signals(SignalFd);

impl Signals {
    fn hold() -> Result<Signals, Failure> {
        let own = |errno: Errno| Failure::Words(format!("cannot hold signals: {}", errno.desc()));
        let ignored = ignored_signals();
        let ending = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        // A signal that is ignored, as under nohup(1), would be kept once it is blocked.
        let held: SigSet =
            ending.into_iter().filter(|it| ignored >> (*it as i32 - 1) & 1 == 0).collect();
        held.thread_block().map_err(own)?;
        SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Signals)
            .map_err(own)
    }

    /// Waits for the socket, or for one of them.
    fn wait(&self, socket: BorrowedFd<'_>) -> Result<(), Failure> {
        let mut fds = [
            PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(Failure::Words(format!("cannot wait for the image: {}", errno.desc())));
            }
        }
        match self.0.read_signal() {
            Ok(Some(info)) => match Signal::try_from(info.ssi_signo as i32) {
                Ok(signal) => Err(Failure::Signal(signal)),
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The signals that this process was started to ignore (SigIgn in proc_pid_status(5)), a bit each.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// `zstd[:LEVEL]`
fn compression(word: &str) -> Result<i32, String> {
    let (name, level) = match word.split_once(':') {
        Some((name, level)) => (name, Some(level)),
        None => (word, None),
    };
    if name != "zstd" {
        return Err("the one compression is zstd; write zstd or zstd:LEVEL".to_owned());
    }
    let Some(level) = level else { return Ok(LEVEL) };
    let found = level.parse().ok().filter(|level| *level != 0 && (-7..=22).contains(level));
    found.ok_or_else(|| "a level is 1 to 22, or -1 to -7 for speed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::compression;

    #[test]
    fn compressions_are_named() {
        assert_eq!(compression("zstd"), Ok(3));
        assert_eq!(compression("zstd:19"), Ok(19));
        assert_eq!(compression("zstd:-5"), Ok(-5));
        for bad in ["", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:-8", "zstd:x", "ZSTD"] {
            assert!(compression(bad).is_err(), "{bad}");
        }
    }
}
