//! The story of one run: plan, launch, take the listener, serve, reap, status.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::siginfo;
use nix::unistd::Pid;
use tokio::sync::mpsc;

use crate::config::{Network, RunSpec, Walls, Without};
use crate::control::{Control, ExecCall, Server};
use crate::launch::{Apart, Behind, End, Event, Launch, LaunchError, Order, Plan, Program};
use crate::notify::filter;
use crate::notify::{Engine, Listener, Options};
use crate::overlay::Saver;
use crate::save::pipeline::{Facts, ItsTerminal};
use crate::save::restore::Grown;
use crate::save::spec;
use crate::sentry::net::publish::{Doors, Publisher};
use crate::sentry::{self, Kernel, KernelError, Measured, Starting, Time};
use crate::sys::descriptors;
use crate::sys::message::Descriptors;
use crate::sys::process::{self, exit_status};
use crate::terminal::Terminal;
use crate::timekeeping::Namespace;

mod asking;
mod attend;
mod beginning;
mod beside;
mod error;
mod files;
mod job;
mod lazy;
mod later;
mod limits;
mod measure;
mod network;
mod restore;
mod sources;

use asking::Desk;
use beginning::{NO_CONTENT, fetch_program, make_kernel};
use job::{Job, Reaction, Signals};
use network::{Entrance, RefusedPackets, answer_lookups, make_network};
use sources::{Next, Sources};

pub use attend::Caller;
pub use beside::{AtEnd, Beside};
pub use error::Error;
pub use later::{Later, Started, Wish};
pub use restore::{Fill, Restored};

/// How a run ended.
#[derive(Debug, Default)]
pub struct Finished {
    /// The exit status for the caller: the guest's own, or 128+N if signal N ended it.
    pub status: i32,
    /// Which limits were reached, what was refused and what would allow it, a sentence each.
    pub notes: Vec<String>,
    /// The program was ended by Ctrl-C on a terminal that the sandbox carried. Without a sandbox
    /// the key would have reached the whole job: the shell's loop, the script around it.
    pub interrupted: bool,
    /// Why something that was to be done at the end could not be ([`Beside::at_end`]).
    pub undone: Option<String>,
    /// What it has used, if that was measured (`Features::LEARN`).
    pub measured: Option<Measured>,
}

/// Runs `spec` to its end. Call it on the main thread, before there is any other: the sandbox ends
/// when this thread does. It can be spoken to through `control`, if there is one.
pub fn run(
    spec: &RunSpec,
    beside: Beside<'_>,
    control: Option<&mut Control>,
) -> Result<Finished, Error> {
    begin(spec, beside, None, control)
}

/// Brings up what an image holds, under `spec`, and follows it to its end. As [`run`] otherwise.
pub fn restore(
    spec: &RunSpec,
    image: Restored,
    beside: Beside<'_>,
    control: Option<&mut Control>,
) -> Result<Finished, Error> {
    begin(spec, beside, Some(image), control)
}

fn begin(
    spec: &RunSpec,
    beside: Beside<'_>,
    image: Option<Restored>,
    mut control: Option<&mut Control>,
) -> Result<Finished, Error> {
    let signals = Signals::take()?;
    let apart = (spec.walls == Walls::Landlock).then(|| Apart::new(spec)).transpose()?;
    let completed = apart.as_ref().map(|apart| apart.complete(spec));
    let spec = completed.as_ref().unwrap_or(spec);
    let terminal = Terminal::of_standard_streams();
    let settings = terminal.as_ref().map(|terminal| (terminal.settings(), terminal.streams()));
    let namespace = match (spec.without.contains(Without::TIME_NAMESPACES), &image) {
        (true, _) => Namespace::default(),
        (false, None) => Namespace::starting_now(),
        (false, Some(image)) => image.clocks(),
    };
    let time = match &image {
        Some(image) => image.time(spec, namespace)?,
        None => {
            let time = Time::new(spec.time, namespace, spec.identity.uid == 0);
            if spec.deterministic.is_some() { time.repeating() } else { time }
        }
    };
    // Whoever cannot have a port is told before anything is made.
    let doors = match beside.doors {
        Some(doors) => doors,
        None => Doors::open(&spec.publish)?,
    };
    let mut plan = Plan::new(spec, beside.layers, settings, signals.before, &time, apart.as_ref())?;
    if let (Some(content), None) = (&beside.content, &image) {
        let program =
            Program { argv: &spec.argv, environment: &spec.environment, workdir: &spec.workdir };
        fetch_program(&**content, &program).map_err(|e| Error::Own(NO_CONTENT, e.into()))?;
    }
    let mut image = image;
    if let Some(image) = &mut image {
        image.options.terminal = terminal.as_ref().map(Terminal::streams);
    }
    let area = image.as_ref().map(|image| image.sow(&mut plan)).transpose()?;
    let mut launch = Launch::begin(spec, &plan)?;
    // What is held for guests at a time is theirs to choose. (Init has been made: they may have what the caller has.)
    descriptors::raise_limit();

    // All this while init builds the walls.
    launch.pass_filter(&filter::generate(&Kernel::rules(spec.features))?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Own("start the runtime", error))?;
    let finished = runtime.block_on(async {
        let kernel = make_kernel(spec, launch.behind(), time, beside.content)?;
        if let Some(apart) = &apart {
            kernel.confine(apart.grounds());
        }
        asking::begin(spec, &kernel, beside.scribe);
        let job = Job::new(terminal.as_ref());
        let starting = kernel.begin_start().await?;
        let mut entrance = match launch.behind().take_outpost() {
            Some(outpost) => Some(make_network(spec, &kernel, outpost, doors, beside.net_log)?),
            None => None,
        };
        // Before the program, which may look a name up at once. Sockets of an image come before both.
        let mut publisher = None;
        if image.is_none() {
            answer_lookups(&kernel)?;
            publisher = entrance.take().map(|it| it.open(&kernel)).transpose()?.flatten();
        }
        // Init need not wait for the supervisor once more: what a guest asks before somebody receives
        // is kept by the kernel, and the guest waits.
        if image.is_none() {
            launch.behind().start(terminal.is_some() && job.foreground())?;
        }
        let packets = (spec.network == Network::None && apart.is_none())
            .then(|| RefusedPackets::watch(launch.behind().init_pid()))
            .flatten();
        let behind = launch.finish()?;
        let supervisor = Supervisor::new(spec, &plan, behind, kernel, job, starting)?;
        let desk = Desk::new(&supervisor.kernel, terminal.is_some());
        let at_end = beside.at_end;
        let mut supervisor =
            Supervisor { packets, entrance, publisher, desk, at_end, ..supervisor };
        supervisor.serve(control.as_deref_mut(), terminal.as_ref(), beside.saver)?;
        supervisor.run(signals, terminal, image.zip(area)).await
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

/// How a run came to its end.
enum Ended {
    /// Init has told how the program ended.
    Told(End),
    /// Everything was killed, and this is the wait status of that.
    Killed(i32),
}

/// What keeps a started sandbox going.
struct Supervisor<'r> {
    spec: &'r RunSpec,
    plan: &'r Plan,
    behind: Behind,
    kernel: Arc<Kernel>,
    /// What it is known by from outside, and what answers there.
    control: Option<&'r mut Control>,
    server: Option<Server>,
    later: Later,
    /// Programs that somebody wants to be started.
    calls: mpsc::Receiver<ExecCall>,
    call: mpsc::Sender<ExecCall>,
    /// The program's process, as the host numbers it; 0 before it runs.
    pid: i32,
    /// While it is being started.
    starting: Option<Starting>,
    job: Job,
    packets: Option<RefusedPackets>,
    /// Published ports that nobody is let in at yet, and those that lead inside.
    entrance: Option<Entrance>,
    publisher: Option<Publisher>,
    /// Where the user is asked.
    desk: Option<Desk>,
    /// Signals that arrived before the program was known to run.
    early: Vec<i32>,
    /// See [`Beside`].
    at_end: Option<AtEnd<'r>>,
    /// The program is being noted ([`files`]).
    noted: Option<tokio::task::JoinHandle<()>>,
}

impl<'r> Supervisor<'r> {
    /// Starts receiving notifications: from here on guests are served.
    fn new(
        spec: &'r RunSpec,
        plan: &'r Plan,
        mut behind: Behind,
        kernel: Arc<Kernel>,
        job: Job,
        starting: Starting,
    ) -> Result<Self, Error> {
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
        let later = Later::new(Arc::clone(&kernel));
        let (call, calls) = mpsc::channel(1);
        Ok(Supervisor {
            spec,
            plan,
            behind,
            kernel,
            later,
            calls,
            call,
            control: None,
            server: None,
            pid: 0,
            starting: Some(starting),
            job,
            packets: None,
            entrance: None,
            publisher: None,
            desk: None,
            early: Vec::new(),
            at_end: None,
            noted: None,
        })
    }

    /// Begins to answer on the control socket.
    fn serve(
        &mut self,
        control: Option<&'r mut Control>,
        terminal: Option<&Terminal>,
        overlay: Option<Arc<Saver>>,
    ) -> Result<(), Error> {
        self.control = control;
        if let Some(listener) = self.control.as_mut().and_then(|it| it.take_listener()) {
            let id = self.control.as_ref().map(|it| it.id().to_owned()).unwrap_or_default();
            let facts = Facts {
                spec: spec::save(self.spec),
                id,
                trees: self.spec.own_trees(),
                overlay,
                terminal: self.own_terminal(terminal)?,
            };
            let kernel = Arc::clone(&self.kernel);
            let server = Server::start(listener, kernel, facts, self.call.clone());
            self.server = Some(server.map_err(|error| Error::Own("serve its socket", error))?);
        }
        Ok(())
    }

    /// The program's terminal, for who saves it: its master, and in place of which streams it is.
    fn own_terminal(&self, terminal: Option<&Terminal>) -> Result<Option<ItsTerminal>, Error> {
        let Some((master, terminal)) = self.behind.master.as_ref().zip(terminal) else {
            return Ok(None);
        };
        let copy = master.try_clone().map_err(|error| Error::Own("copy a descriptor", error))?;
        Ok(Some((Arc::new(copy), terminal.streams())))
    }

    /// Follows the program to its end.
    async fn run(
        mut self,
        signals: Signals,
        terminal: Option<Terminal>,
        image: Option<(Restored, u64)>,
    ) -> Result<Finished, Error> {
        if let Some((image, area)) = image {
            let Grown { program, kept } = image.grow(area, &self.behind, &self.kernel).await?;
            let entrance = self.entrance.take();
            self.publisher = entrance.map(|it| it.open(&self.kernel)).transpose()?.flatten();
            self.started(Some(program))?;
            for kept in kept {
                let followed = self.later.resume(kept);
                followed
                    .map_err(|error| Error::Own("follow what sandbox exec had started", error))?;
            }
            if terminal.is_some() {
                // Whatever it had drawn is not on this terminal, which may have another size.
                self.behind.order(Order::Group(libc::SIGWINCH))?;
            }
        }
        if let Some(limit) = self.spec.limits.timeout {
            tokio::spawn(Arc::clone(&self.kernel).keep_timeout(limit));
        }

        let mut terminal = terminal.zip(self.behind.master.take());
        let mut sources = Sources::new(signals, &self.behind)?;
        if self.starting.is_none()
            && let Some((terminal, master)) = terminal.take()
        {
            sources.terminal = Some(self.job.carry(terminal, master)?);
        }
        let end = loop {
            let next = tokio::select! {
                biased;
                next = sources.next(&self.behind, self.job.is_carrying()) => {
                    match (next, self.kernel.killed()) {
                        (Err(Error::Launch(LaunchError::Vanished(_))), Some(status)) => {
                            break Ended::Killed(status);
                        }
                        (next, _) => next?,
                    }
                }
                () = asking::asked(&mut self.desk) => {
                    self.attend()?;
                    continue;
                }
                // (The other end is held here: it is never closed.)
                Some(call) = self.calls.recv() => {
                    self.start_later(call);
                    continue;
                }
            };
            match next {
                Next::Told(event, fds) => {
                    let started = matches!(event, Event::Started);
                    if let Some(end) = self.on_event(event, fds)? {
                        break Ended::Told(end);
                    }
                    // Not before the program runs: a key that the guest's pty turned into a signal
                    // would find nobody there. Until then the outer terminal does that, and what it
                    // sends to the supervisor is passed on in order.
                    if let (true, Some((terminal, master))) = (started, terminal.take()) {
                        sources.terminal = Some(self.job.carry(terminal, master)?);
                        self.attend()?;
                    }
                }
                Next::Signal(signal) => self.on_signal(&signal)?,
                Next::TerminalGone => {
                    self.job.hang_up();
                    self.attend()?;
                }
                Next::Nothing => {}
            }
        };
        Ok(self.finish(end).await)
    }

    /// Gives how the program ended, once it has.
    fn on_event(&mut self, event: Event, fds: Descriptors) -> Result<Option<End>, Error> {
        match event {
            Event::Started => {
                let [fd, ..] = fds;
                self.started(fd)?;
            }
            // Nobody would continue a detached one, and nothing would answer on its socket.
            Event::Stopped(_) if self.control.as_ref().is_some_and(|it| it.is_detached()) => {}
            Event::Stopped(signal) => {
                self.behind.order(self.job.suspend(signal))?;
                self.show_anew()?;
            }
            Event::Ended(end) => return Ok(Some(end)),
            Event::NotExecuted(errno, _) => {
                return Err(Error::NotExecuted {
                    program: self.spec.argv[0].to_string_lossy().into_owned(),
                    errno: Errno::from_raw(errno),
                });
            }
            Event::Fault(stage, index, errno) => {
                return Err(self.behind.fault(self.plan, stage, index, errno).into());
            }
            Event::Ready
            | Event::Listening
            | Event::Made
            | Event::Planted
            | Event::Front
            | Event::Confined => {}
        }
        Ok(None)
    }

    /// The program runs; `fd` stands for it.
    fn started(&mut self, fd: Option<OwnedFd>) -> Result<(), Error> {
        let pid = fd.as_ref().and_then(|fd| process::pid_of(fd.as_fd())).unwrap_or(0);
        self.pid = pid;
        self.kernel.start(fd)?;
        self.note_program();
        self.starting = None;
        let path = self.spec.argv[0].to_string_lossy().into_owned();
        let container = self.spec.container.clone();
        self.kernel.emit(&sentry::Event::Started { pid, path, container });
        if let Some(control) = &mut self.control {
            let told = control.started();
            told.map_err(|error| Error::Own("tell that the program runs", error))?;
        }
        for signal in std::mem::take(&mut self.early) {
            self.signal(signal)?;
        }
        Ok(())
    }

    fn on_signal(&mut self, signal: &siginfo) -> Result<(), Error> {
        match self.job.on_signal(signal) {
            Reaction::Order(order) if signal.ssi_signo as i32 == libc::SIGCONT => {
                self.behind.order(order)?;
                self.show_anew()?;
            }
            Reaction::Order(order) => self.behind.order(order)?,
            Reaction::Pass(number) => self.signal(number)?,
            Reaction::Done => {}
        }
        Ok(())
    }

    /// Has another program started; whoever asked hears of it in a task of its own.
    fn start_later(&self, call: ExecCall) {
        let ExecCall { exec, streams, starting, answer } = call;
        let mut wish = Wish::new(exec, streams, &self.spec.environment);
        if self.spec.walls == Walls::Landlock && wish.as_ref().is_ok_and(|it| it.terminal.is_some())
        {
            wish = Err("without namespaces (--walls landlock) a later program has no terminal of its own; \
                        redirect its streams (| cat)"
                .to_owned());
        }
        let ready = wish.map(|wish| self.later.start(&self.behind, self.spec, wish, starting));
        tokio::spawn(async move {
            let started = match ready {
                Ok(ready) => ready.await,
                Err(reason) => Err(reason),
            };
            // Whoever asked may have gone; then the keeper is told by the end of its socket.
            let _ = answer.send(started.map(|Started { session, master }| {
                std::iter::once(session).chain(master).collect()
            }));
        });
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
    async fn finish(mut self, ended: Ended) -> Finished {
        // Whoever still waits for a program to be started is told that there will be none.
        self.calls.close();
        while self.calls.try_recv().is_ok() {}
        // Before init is waited for: it knows of those that have ended. Read only where it is used.
        let killed = matches!(ended, Ended::Killed(_));
        let mut measured = self.measured();
        let cpu_us = if killed || tracing::enabled!(tracing::Level::DEBUG) {
            let cpu_us = self.kernel.cpu_time().as_micros() as u64;
            tracing::debug!(cpu_us, "the guests have ended");
            cpu_us
        } else {
            0
        };
        let end = match ended {
            Ended::Told(end) => end,
            // An init that is killed has its children reaped without an account of each (it ignores
            // SIGCHLD then, zap_pid_ns_processes in kernel/pid_namespace.c).
            Ended::Killed(status) => End { status, cpu_us, peak_kib: 0 },
        };
        let status = end.status;
        measured.iter_mut().for_each(|measured| measure::complete(measured, &end));
        self.behind.wait();
        if let Some(publisher) = self.publisher.take() {
            publisher.finish().await;
        }
        self.kernel.look_at_limits();
        self.kernel.emit(&sentry::Event::Exited {
            pid: self.pid,
            container: self.spec.container.clone(),
            status: exit_status(status),
            cpu_us: end.cpu_us,
            peak_memory: end.peak_kib * 1024,
        });
        let unrecorded = match self.kernel.network() {
            Some(network) => network.finish().await.err(),
            None => None,
        };
        let report = self.list_files().await;
        let done = self.at_end.take().map_or(Ok(Vec::new()), |at_end| at_end(report.as_ref()));
        let (kept, undone) = match done {
            Ok(sentences) => (sentences, None),
            Err(sentence) => (Vec::new(), Some(sentence)),
        };
        // Remembered before anybody who waits is told: who comes later finds what is remembered.
        if let Some(control) = &mut self.control {
            control.ended(exit_status(status));
        }
        self.kernel.exited(status);
        let mut farewell = None;
        if let Some(server) = self.server.take() {
            farewell = server.farewell();
            server.close().await;
        }
        self.desk.take().into_iter().for_each(|desk| desk.close(&mut self.job));
        let interrupted = self.job.finish(status);
        if let Some(packets) = &self.packets {
            let refused = packets.note(self.kernel.refusals());
            measured.iter_mut().for_each(|measured| measured.refused = refused);
        }
        let refusals = self.kernel.refusals().all();
        let refusals = refusals.iter().map(ToString::to_string);
        let notes = farewell.into_iter().chain(self.kernel.limit_notes()).chain(refusals);
        let notes = notes.chain(self.kernel.repeat_note());
        let unrecorded = unrecorded.map(|error| {
            format!("the record of --net-log is not whole: {error}; name a file with room for it")
        });
        let notes = notes.chain(unrecorded);
        let notes = notes.chain(kept).collect();
        Finished { status: exit_status(status), notes, interrupted, undone, measured }
    }
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
