//! The story of one run: plan, launch, take the listener, serve, reap, status.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use crate::config::{Network, RunSpec, Voice, Without};
use crate::launch::{Behind, Event, Launch, LaunchError, Order, Plan, PlanError};
use crate::notify::filter::{self, FilterError};
use crate::notify::{Engine, Listener, Options};
use crate::sentry::{self, Kernel, KernelArgs, KernelError, Time};
use crate::sys::process;
use crate::sys::ready::watch_readable;
use crate::terminal::{Relay, Resume, Terminal};
use crate::timekeeping::Namespace;

mod network;

use network::RefusedPackets;

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit status for the caller: the guest's own, or 128+N if signal N ended it.
    pub status: i32,
    /// What was refused and what would allow it, a sentence each.
    pub notes: Vec<String>,
    /// The program was ended by Ctrl-C on a terminal that the sandbox carried. Without a sandbox
    /// the key would have reached the whole job: the shell's loop, the script around it.
    pub interrupted: bool,
}

/// Why there was no run: one sentence with operation, object, cause and remedy.
#[derive(Debug)]
pub enum Error {
    /// There is no plan.
    Plan(PlanError),
    /// No sandbox came up.
    Launch(LaunchError),
    /// No filter could be made.
    Filter(FilterError),
    /// The kernel refused its arguments.
    Kernel(KernelError),
    /// The program could not be executed.
    NotExecuted {
        /// As the user named it.
        program: String,
        /// Why.
        errno: Errno,
    },
    /// A call of the supervisor itself failed.
    Own(&'static str, io::Error),
}

impl Error {
    /// The exit status that stands for this error: 127 not found, 126 found but not executable,
    /// 125 otherwise.
    pub fn status(&self) -> i32 {
        match self {
            Error::NotExecuted { errno: Errno::ENOENT | Errno::ENOTDIR, .. } => 127,
            Error::NotExecuted { .. } => 126,
            _ => 125,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Plan(error) => error.fmt(f),
            Error::Launch(error) => error.fmt(f),
            Error::Filter(error) => error.fmt(f),
            Error::Kernel(error) => error.fmt(f),
            Error::NotExecuted { program, errno } => match errno {
                Errno::ENOENT | Errno::ENOTDIR => {
                    write!(f, "{program}: not found inside the sandbox; check the name and PATH")
                }
                Errno::EACCES if std::path::Path::new(program).is_dir() => {
                    write!(f, "{program}: is a directory, not a program")
                }
                Errno::EACCES => write!(
                    f,
                    "{program}: found, but may not be executed; check its permissions (chmod +x)"
                ),
                Errno::ENOEXEC => {
                    write!(f, "{program}: is not built for this machine; use a native build of it")
                }
                errno => write!(f, "{program}: cannot be executed: {}", errno.desc()),
            },
            Error::Own(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($kind:ident($error:ty)),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::$kind(error)
            }
        }
    )*};
}
from!(Plan(PlanError), Launch(LaunchError), Filter(FilterError), Kernel(KernelError));

/// Runs `spec` to its end. Call it on the main thread, before there is any other: the sandbox ends
/// when this thread does.
pub fn run(spec: &RunSpec) -> Result<Finished, Error> {
    let signals = Signals::take()?;
    let terminal = Terminal::of_standard_streams();
    let settings = terminal.as_ref().map(|terminal| (terminal.settings(), terminal.streams()));
    let namespace = match spec.without.contains(Without::TIME_NAMESPACES) {
        true => Namespace::default(),
        false => Namespace::starting_now(),
    };
    let time = Time::new(spec.time, namespace, spec.identity.uid == 0);
    let plan = Plan::new(spec, settings, signals.before, &time)?;
    let launch = Launch::begin(spec, &plan)?;

    // All this while init builds the walls.
    let program = filter::generate(&Kernel::rules(spec.features))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Own("start the runtime", error))?;

    let behind = launch.finish(&program)?;
    let finished = runtime.block_on(async {
        Supervisor::new(spec, &plan, behind, time)?.run(signals, terminal).await
    });
    // A parked future of a task that was killed has nobody to answer.
    runtime.shutdown_background();
    finished
}

/// Ends this process and its job by SIGINT, as the key would have without a sandbox. Returns only
/// if that signal is ignored.
pub fn interrupt_job() {
    // Still blocked since the run: the whole job gets it, this process when it lets it through.
    let _ = nix::sys::signal::kill(Pid::from_raw(0), Signal::SIGINT);
    let _ = SigSet::from_iter([Signal::SIGINT]).thread_unblock();
}

/// What keeps a started sandbox going.
struct Supervisor<'p> {
    spec: &'p RunSpec,
    plan: &'p Plan,
    behind: Behind,
    kernel: Arc<Kernel>,
    relay: Option<Relay>,
    /// Whether the program starts in the foreground of its terminal, if it has one.
    foreground: bool,
    packets: Option<RefusedPackets>,
    /// A SIGINT came to the supervisor itself: it was no key.
    passed_interrupt: bool,
    /// Signals that arrived before the program was known to run.
    early: Vec<i32>,
}

/// What happened next.
enum Next {
    Init(Event, Option<OwnedFd>),
    Signal(siginfo),
    TerminalGone,
    Nothing,
}

impl<'p> Supervisor<'p> {
    /// Starts receiving notifications: from here on guests can be served.
    fn new(
        spec: &'p RunSpec,
        plan: &'p Plan,
        mut behind: Behind,
        time: Time,
    ) -> Result<Self, Error> {
        let kernel = Kernel::new(KernelArgs {
            features: spec.features,
            init: process::pidfd_open(behind.init_pid(), false).ok(),
            init_pid: behind.init_pid(),
            banner: format!("sandbox {} started", env!("CARGO_PKG_VERSION")),
            announce: spec.voice == Voice::Verbose,
            time,
        })?;
        let listener = behind.take_listener()?;
        let options = Options {
            wait_killable: plan.wait_killable(),
            sync_wake_up: !spec.without.contains(Without::SYNC_WAKE_UP),
            process_vm: !spec.without.contains(Without::PROCESS_VM),
        };
        let engine = Engine::start(
            Listener::new(listener, options),
            Arc::clone(&kernel),
            tokio::runtime::Handle::current(),
        )
        .map_err(|error| Error::Own("start the receiving thread", error))?;
        kernel.set_gate(engine.gate());
        let packets = (spec.network == Network::None)
            .then(|| RefusedPackets::watch(behind.init_pid()))
            .flatten();
        let (relay, foreground, early) = (None, true, Vec::new());
        let passed_interrupt = false;
        Ok(Supervisor {
            spec,
            plan,
            behind,
            kernel,
            relay,
            foreground,
            packets,
            passed_interrupt,
            early,
        })
    }

    /// Starts the program and follows it to its end.
    async fn run(
        mut self,
        signals: Signals,
        terminal: Option<Terminal>,
    ) -> Result<Finished, Error> {
        self.foreground = terminal.as_ref().is_none_or(Terminal::starts_in_foreground);
        self.behind.start(terminal.is_some() && self.foreground)?;

        let own = |error| Error::Own("wait for the sandbox", error);
        let mut terminal = terminal.zip(self.behind.master.take());
        let mut sources = Sources {
            signalled: watch_readable(signals.fd.as_fd()).map_err(own)?,
            signals: signals.fd,
            init: watch_readable(self.behind.socket()).map_err(own)?,
            terminal: None,
        };
        let status = loop {
            match sources.next(&self.behind, self.relay.is_some()).await? {
                Next::Init(event, fd) => {
                    let started = matches!(event, Event::Started);
                    if let Some(status) = self.on_event(event, fd)? {
                        break status;
                    }
                    // Not before the program runs: a key that the guest's pty turned into a signal
                    // would find nobody there. Until then the outer terminal does that, and what it
                    // sends to the supervisor is passed on in order.
                    if let (true, Some((terminal, master))) = (started, terminal.take()) {
                        sources.terminal = Some(self.carry(terminal, master)?);
                    }
                }
                Next::Signal(signal) => self.on_signal(&signal)?,
                // The guest sees its own terminal hang up.
                Next::TerminalGone => self.relay = None,
                Next::Nothing => {}
            }
        };
        Ok(self.finish(status))
    }

    /// Begins to carry the terminal; gives what becomes readable when it is gone.
    fn carry(&mut self, terminal: Terminal, master: OwnedFd) -> Result<AsyncFd<OwnedFd>, Error> {
        let own = |error| Error::Own("carry the terminal", error);
        let relay = self.relay.insert(terminal.relay(master).map_err(own)?);
        watch_readable(relay.notice()).map_err(own)
    }

    /// Gives the program's wait status once it has ended.
    fn on_event(&mut self, event: Event, fd: Option<OwnedFd>) -> Result<Option<i32>, Error> {
        match event {
            Event::Started => {
                let pid = fd.as_ref().and_then(|fd| process::pid_of(fd.as_fd())).unwrap_or(0);
                self.kernel.start(fd)?;
                let path = self.spec.argv[0].to_string_lossy().into_owned();
                let container = sentry::FIRST_CONTAINER.to_owned();
                self.kernel.emit(&sentry::Event::Started { pid, path, container });
                for signal in std::mem::take(&mut self.early) {
                    self.signal(signal)?;
                }
            }
            Event::Stopped(signal) => self.suspend(signal)?,
            Event::Ended(status) => return Ok(Some(status)),
            Event::NotExecuted(errno, _) => {
                return Err(Error::NotExecuted {
                    program: self.spec.argv[0].to_string_lossy().into_owned(),
                    errno: Errno::from_raw(errno),
                });
            }
            Event::Fault(stage, index, errno) => {
                return Err(self.behind.fault(self.plan, stage, index, errno).into());
            }
            Event::Ready | Event::Listening => {}
        }
        Ok(None)
    }

    /// The program has stopped: so does the supervisor, as the job that its shell sees; when it is
    /// continued, so is the program.
    fn suspend(&mut self, signal: i32) -> Result<(), Error> {
        let signal = Signal::try_from(signal).unwrap_or(Signal::SIGSTOP);
        let resume = match &mut self.relay {
            Some(relay) => match relay.suspend(signal) {
                Ok(resume) => resume,
                Err(_) => {
                    self.relay = None;
                    Resume { foreground: true }
                }
            },
            None => {
                // A stop cannot be caught or blocked, so this returns once somebody continues us.
                let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                Resume { foreground: true }
            }
        };
        Ok(self.behind.order(Order::Resume { foreground: resume.foreground })?)
    }

    fn on_signal(&mut self, signal: &siginfo) -> Result<(), Error> {
        let number = signal.ssi_signo as i32;
        self.passed_interrupt |= number == libc::SIGINT;
        match Signal::try_from(number) {
            Ok(Signal::SIGWINCH) => {
                if let Some(relay) = &self.relay {
                    relay.resize();
                }
            }
            Ok(Signal::SIGCONT) => {
                let resume = match &mut self.relay {
                    Some(relay) => relay.continued().ok(),
                    None => Some(Resume { foreground: self.foreground }),
                };
                match resume {
                    Some(Resume { foreground }) => {
                        self.behind.order(Order::Resume { foreground })?;
                    }
                    None => self.relay = None,
                }
            }
            // A key of the terminal is meant for the whole job, a signal of a process for one.
            _ if signal.ssi_code > 0 => self.behind.order(Order::Group(number))?,
            _ => self.signal(number)?,
        }
        Ok(())
    }

    /// Sends a signal to the program. One that comes before init has told of the start waits.
    fn signal(&mut self, number: i32) -> Result<(), Error> {
        match self.kernel.signal(number) {
            Err(KernelError::NoTasks) => self.early.push(number),
            // It has ended; init is about to say so.
            Err(KernelError::Signal(Errno::ESRCH)) => {}
            done => done?,
        }
        Ok(())
    }

    /// Everything inside ends with init; then the last output is carried.
    fn finish(mut self, status: i32) -> Finished {
        self.behind.wait();
        self.kernel.exited(status);
        let interrupted = self.relay.is_some()
            && !self.passed_interrupt
            && libc::WIFSIGNALED(status)
            && libc::WTERMSIG(status) == libc::SIGINT;
        if let Some(relay) = self.relay.take() {
            // The terminal is gone or the user is in a hurry: nobody is left to tell.
            let _ = relay.finish();
        }
        if let Some(packets) = &self.packets {
            packets.note(self.kernel.refusals());
        }
        let notes = self.kernel.refusals().all().iter().map(ToString::to_string).collect();
        Finished { status: exit_status(status), notes, interrupted }
    }
}

/// What the supervisor waits for.
struct Sources {
    signals: SignalFd,
    signalled: AsyncFd<OwnedFd>,
    init: AsyncFd<OwnedFd>,
    terminal: Option<AsyncFd<OwnedFd>>,
}

impl Sources {
    async fn next(&self, behind: &Behind, terminal_wanted: bool) -> Result<Next, Error> {
        let terminal_gone = async {
            match &self.terminal {
                Some(gone) if terminal_wanted => gone.readable().await.map(drop),
                _ => std::future::pending().await,
            }
        };
        let own = |error| Error::Own("wait for the sandbox", error);
        tokio::select! {
            biased;
            ready = self.signalled.readable() => {
                let mut ready = ready.map_err(own)?;
                if let Ok(Some(signal)) = self.signals.read_signal() {
                    return Ok(Next::Signal(signal));
                }
                ready.clear_ready();
            }
            ready = self.init.readable() => {
                let mut ready = ready.map_err(own)?;
                match behind.event() {
                    Ok((event, fd)) => return Ok(Next::Init(event, fd)),
                    Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(errno) => return Err(lost(errno)),
                }
            }
            ready = terminal_gone => return ready.map(|()| Next::TerminalGone).map_err(own),
        }
        Ok(Next::Nothing)
    }
}

fn lost(errno: Errno) -> Error {
    Error::Launch(match errno {
        Errno::EPIPE | Errno::ECONNRESET => LaunchError::Vanished("while the program ran"),
        errno => LaunchError::Own("hear from the sandbox's init process", errno),
    })
}

/// The signals that are meant for the program, read instead of suffered.
struct Signals {
    fd: SignalFd,
    /// What was blocked before: the program gets it back.
    before: SigSet,
}

impl Signals {
    fn take() -> Result<Signals, Error> {
        let own = |errno: Errno| Error::Own("take over the signals", errno.into());
        let ignored = ignored_signals();
        let mut taken = SigSet::empty();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGALRM,
            Signal::SIGTSTP,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGCONT,
            Signal::SIGWINCH,
        ] {
            // What the caller ignores (nohup) stays ignored, inside too.
            if ignored & (1 << (signal as i32 - 1)) == 0 {
                taken.add(signal);
            }
        }
        // SIGCHLD tells the thread that traces guests (`sentry::tracer`) of their stops, so no other
        // thread may swallow it.
        let mut blocked = taken;
        blocked.add(Signal::SIGCHLD);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(own)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&taken, flags).map_err(own)?;
        Ok(Signals { fd, before })
    }
}

/// The signals that this process ignores (proc_pid_status(5), SigIgn).
fn ignored_signals() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}

/// The status for the caller that a wait status stands for (wait(2)).
fn exit_status(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(exit_status(0x0300), 3);
        assert_eq!(exit_status(libc::SIGKILL), 137);
        assert_eq!(exit_status(libc::SIGSEGV | 0x80), 139);
    }

    #[test]
    fn errors_have_the_statuses_of_the_contract() {
        let not_executed = |errno| Error::NotExecuted { program: "x".into(), errno };
        assert_eq!(not_executed(Errno::ENOENT).status(), 127);
        assert_eq!(not_executed(Errno::EACCES).status(), 126);
        assert_eq!(Error::Kernel(KernelError::NoInit).status(), 125);
    }
}
