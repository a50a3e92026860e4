//! `sandbox top`: what the sandboxes use, once a second for as long as somebody looks.
//!
//! The view is a table that is printed anew, so it needs no library of widgets: raw mode, the
//! alternate screen and the key q are all there is. Rates are differences between two looks.

use std::collections::HashMap;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, SetArg, Termios};

use super::stats;
use super::table::{bytes, columns, cpu, plain, span};
use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::control::state;
use crate::sentry::{ProcessInfo, Stats};

/// How often the view is renewed.
const INTERVAL: Duration = Duration::from_secs(1);

/// The words of `sandbox top`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The sandbox whose processes to show
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// One look, for programs to read
    #[arg(long)]
    json: bool,
}

/// Shows it. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    if command.json {
        return look(command.id.as_deref()).and_then(|look| look.json()).map_or_else(fail, shown);
    }
    if !stdout().is_terminal() || !stdin().is_terminal() {
        let look = look(command.id.as_deref());
        return look.map_or_else(fail, |look| shown(look.text(&Previous::default())));
    }
    match View::open() {
        Ok(view) => view.show(command.id.as_deref()).map_or_else(fail, |()| 0),
        Err(errno) => fail(format_args!("cannot use the terminal: {}", errno.desc())),
    }
}

fn shown(text: String) -> i32 {
    print(text).err().unwrap_or(0)
}

/// What was there at one moment.
struct Look {
    at: Instant,
    sandboxes: Vec<(String, Option<Stats>)>,
    /// Of the one that was asked for.
    processes: Option<Vec<ProcessInfo>>,
}

/// CPU time of each row at the look before, and when that was.
#[derive(Default)]
struct Previous {
    at: Option<Instant>,
    cpu: HashMap<String, u64>,
}

fn look(id: Option<&str>) -> Result<Look, ClientError> {
    let at = Instant::now();
    let Some(id) = id else {
        let living = state::list()?.into_iter().filter(|listed| listed.ended.is_none());
        let sandboxes = living.map(|listed| {
            let id = listed.id.clone();
            (id, stats::ask(&Sandbox { listed }).ok())
        });
        return Ok(Look { at, sandboxes: sandboxes.collect(), processes: None });
    };
    let sandbox = Sandbox::find(id)?;
    let stats = stats::ask(&sandbox)?;
    match sandbox.ask(&Request::Processes)? {
        Reply::Processes(processes) => Ok(Look {
            at,
            sandboxes: vec![(id.to_owned(), Some(stats))],
            processes: Some(processes),
        }),
        other => Err(ClientError::unexpected(id, &other)),
    }
}

impl Look {
    fn json(&self) -> Result<String, ClientError> {
        let sandboxes: Vec<_> = self
            .sandboxes
            .iter()
            .map(|(id, stats)| serde_json::json!({ "id": id, "stats": stats }))
            .collect();
        let whole = serde_json::json!({ "sandboxes": sandboxes, "processes": self.processes });
        Ok(format!("{whole}\n"))
    }

    fn text(&self, previous: &Previous) -> String {
        let mut rows: Vec<(u64, [String; 7])> = Vec::new();
        for (id, stats) in &self.sandboxes {
            let Some(stats) = stats else { continue };
            let state = if stats.paused { "paused" } else { "running" };
            let share = self.share(previous, id, stats.cpu_us);
            let cells = [
                plain(id),
                state.to_owned(),
                percent(share),
                cpu(stats.cpu_us),
                bytes(stats.memory),
                format!("{}/{}", stats.running, stats.tasks),
                span(stats.uptime_us),
            ];
            rows.push((share, cells));
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.0));
        let rows: Vec<_> = rows.into_iter().map(|(_, cells)| cells).collect();
        let head = ["ID", "STATE", "%CPU", "CPU", "MEMORY", "TASKS", "UPTIME"];
        let mut text = columns(head, &rows);
        if let Some(processes) = &self.processes {
            text.push('\n');
            text.push_str(&self.processes_text(processes, previous));
        }
        text
    }

    fn processes_text(&self, processes: &[ProcessInfo], previous: &Previous) -> String {
        let mut rows: Vec<(u64, [String; 7])> = processes
            .iter()
            .map(|it| {
                let share = self.share(previous, &key(it), it.cpu_us);
                let cells = [
                    it.guest_pid.to_string(),
                    it.state.to_string(),
                    percent(share),
                    cpu(it.cpu_us),
                    bytes(it.memory),
                    it.threads.to_string(),
                    plain(&it.command),
                ];
                (share, cells)
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.0));
        let rows: Vec<_> = rows.into_iter().map(|(_, cells)| cells).collect();
        columns(["PID", "STATE", "%CPU", "CPU", "MEMORY", "THREADS", "COMMAND"], &rows)
    }

    /// CPU time since the look before, in thousandths of the time that has passed.
    fn share(&self, previous: &Previous, key: &str, cpu_us: u64) -> u64 {
        let (Some(at), Some(before)) = (previous.at, previous.cpu.get(key)) else { return 0 };
        let passed = (self.at - at).as_micros().max(1) as u64;
        cpu_us.saturating_sub(*before) * 1000 / passed
    }

    fn remember(&self) -> Previous {
        let sandboxes = self.sandboxes.iter();
        let sandboxes =
            sandboxes.filter_map(|(id, stats)| Some((id.clone(), stats.as_ref()?.cpu_us)));
        let processes = self.processes.iter().flatten().map(|it| (key(it), it.cpu_us));
        Previous { at: Some(self.at), cpu: sandboxes.chain(processes).collect() }
    }
}

/// A process, so that another one of the same number is another row.
fn key(process: &ProcessInfo) -> String {
    format!("{} {}", process.guest_pid, process.started_us)
}

fn percent(thousandths: u64) -> String {
    format!("{}.{}", thousandths / 10, thousandths % 10)
}

/// The terminal in raw mode, on its alternate screen; put back when dropped.
struct View {
    settings: Termios,
    ends: SignalFd,
    /// The last text, to be printed again when the window changes.
    height: usize,
}

impl View {
    fn open() -> Result<View, Errno> {
        let signals =
            [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH];
        let signals = SigSet::from_iter(signals);
        signals.thread_block()?;
        let ends = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let settings = termios::tcgetattr(stdin())?;
        let mut raw = settings.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin(), SetArg::TCSADRAIN, &raw)?;
        let mut view = View { settings, ends, height: 24 };
        view.say("\x1b[?1049h\x1b[?25l");
        view.measure();
        Ok(view)
    }

    fn say(&self, text: &str) {
        // A terminal that is gone says so when the keys are read.
        let mut stdout = stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    fn measure(&mut self) {
        self.height = crate::sys::terminal::window_size(stdout().as_fd())
            .map_or(24, |size| usize::from(size.ws_row))
            .max(2);
    }

    fn show(mut self, id: Option<&str>) -> Result<(), ClientError> {
        let mut previous = Previous::default();
        loop {
            let look = look(id)?;
            let text = look.text(&previous);
            previous = look.remember();
            self.draw(&text);
            if self.key_within(INTERVAL) {
                return Ok(());
            }
        }
    }

    /// As many lines as there is room for; each is cut by the terminal (no wrapping).
    fn draw(&self, text: &str) {
        let mut screen = String::from("\x1b[?7l\x1b[H");
        for line in text.lines().take(self.height - 1) {
            screen.push_str(line);
            screen.push_str("\x1b[K\r\n");
        }
        screen.push_str("\x1b[J\x1b[?7h");
        self.say(&screen);
    }

    /// Waits so long; `true` if the user wants no more of it.
    fn key_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let input = stdin();
            let mut both = [poll_for(input.as_fd()), poll_for(self.ends.as_fd())];
            match poll(&mut both, left) {
                Ok(0) => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
            let [keys, signals] = both.map(|it| it.any().unwrap_or(false));
            if signals {
                match self.ends.read_signal() {
                    Ok(Some(signal)) if signal.ssi_signo as i32 == libc::SIGWINCH => {
                        self.measure();
                        return false;
                    }
                    _ => return true,
                }
            }
            // All that was typed: what were left in a buffer here would wait for the next key.
            let mut typed = [0; 256];
            if keys {
                match input.lock().read(&mut typed) {
                    Ok(count @ 1..)
                        if !typed[..count].iter().any(|key| b"qQ\x03".contains(key)) => {}
                    // q, Ctrl-C, the end of the terminal.
                    _ => return true,
                }
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.say("\x1b[?25h\x1b[?1049l");
        let _ = termios::tcsetattr(stdin(), SetArg::TCSADRAIN, &self.settings);
    }
}

fn poll_for(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}
