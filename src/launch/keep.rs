//! Keeping a program: starting it, reaping, job control, and telling how it ended. Child side.
//!
//! Init keeps the run's own program. For each program that is started later (`sandbox exec`) init makes
//! a *keeper*, a copy of itself with a session, a socket to the supervisor and maybe a terminal of its
//! own. A keeper is a subreaper: what its program leaves behind stays below it, and it lasts until the
//! last of that has ended.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use super::apart;
use super::init::{At, Fault};
use super::plan::Plan;
use super::program::Lists;
use super::protocol::{End, Event, Later, Order, Stage};
use crate::sys::message::Descriptors;
use crate::sys::spawn::Change;
use crate::sys::strings::StringLists;
use crate::sys::tracing::Stop;
use crate::sys::{files, pty, spawn, terminal, tracing};
use crate::timekeeping::Patch;

/// So many candidates are tried in a fraction of a millisecond.
const DIRECTORIES_SOON_SEEN: usize = 32;

/// One program and what it is kept with.
pub(super) struct Keeping<'k> {
    pub(super) plan: &'k Plan,
    pub(super) program: Lists<'k>,
    /// To the supervisor.
    pub(super) socket: BorrowedFd<'k>,
    /// The program's own terminal, if it has one: the controlling one of this session.
    pub(super) terminal: Option<BorrowedFd<'k>>,
    /// Whether this is init, which makes keepers and with which everything ends.
    pub(super) is_init: bool,
    /// Standard streams that the program does not get.
    pub(super) closed: [bool; 3],
}

/// What is waited for besides the supervisor's orders.
fn take_signals() -> Result<OwnedFd, Errno> {
    let mut taken = SigSet::empty();
    taken.add(Signal::SIGCHLD);
    // A terminal that hangs up tells the leader of its session, which is the keeper (__tty_hangup).
    taken.add(Signal::SIGHUP);
    // Putting the program into the foreground must not stop the keeper.
    taken.add(Signal::SIGTTOU);
    spawn::signal_descriptor(&taken).map(files::adopt)
}

impl Keeping<'_> {
    /// Starts the program, reaps, and carries orders until the program ends.
    pub(super) fn serve(&self, foreground: bool) -> Result<(), Fault> {
        let signals = take_signals().at(Stage::Process)?;
        match self.start(signals.as_fd(), foreground)? {
            Some(program) => self.follow(program, signals.as_fd()),
            None => Ok(()),
        }
    }

    /// Keeps a program that runs already.
    pub(super) fn adopt(&self, program: i32) -> Result<(), Fault> {
        let signals = take_signals().at(Stage::Process)?;
        let _ = Event::Started.send(self.socket, &[]);
        self.follow(program, signals.as_fd())
    }

    fn follow(&self, program: i32, signals: BorrowedFd<'_>) -> Result<(), Fault> {
        let mut aside = None;
        // What became of the program may have been told while it was started.
        let mut told = true;
        loop {
            let (ordered, changed) = match std::mem::take(&mut told) {
                true => (false, true),
                false => spawn::wait_readable([self.socket, signals]).at(Stage::Process)?,
            };
            if changed && self.look_around(signals, program) {
                return Ok(());
            }
            if ordered {
                match Order::receive(self.socket) {
                    Ok((Order::Group(signal), _)) => {
                        let _ = spawn::kill(-program, signal);
                    }
                    Ok((Order::Signal(signal), _)) => {
                        let _ = spawn::kill(program, signal);
                    }
                    Ok((Order::Resume { foreground }, _)) => {
                        if let Some(terminal) = self.terminal {
                            aside = place(terminal, program, foreground, aside);
                        }
                        let _ = spawn::kill(-program, libc::SIGCONT);
                    }
                    Ok((Order::Keep(later), descriptors)) if self.is_init => {
                        self.make_keeper(later, descriptors, signals);
                    }
                    Ok(_) => {}
                    // The supervisor is gone: everything ends with init.
                    Err(_) => return Ok(()),
                }
            }
        }
    }

    /// Passes hang-ups on and reaps; says whether the program has ended.
    fn look_around(&self, signals: BorrowedFd<'_>, program: i32) -> bool {
        while let Some(signal) = spawn::read_signal(signals) {
            if signal == libc::SIGHUP {
                let _ = spawn::kill(-program, libc::SIGHUP);
                let _ = spawn::kill(-program, libc::SIGCONT);
            }
        }
        while let Some(Change { pid, status, cpu_us, peak_kib }) = spawn::reap() {
            if pid != program {
                continue;
            }
            if libc::WIFSTOPPED(status) {
                let _ = Event::Stopped(libc::WSTOPSIG(status)).send(self.socket, &[]);
                continue;
            }
            if self.is_init {
                self.plan.return_offsets();
            }
            let _ = Event::Ended(End { status, cpu_us, peak_kib }).send(self.socket, &[]);
            return true;
        }
        false
    }

    /// The program's pid, once it runs.
    fn start(&self, signals: BorrowedFd<'_>, foreground: bool) -> Result<Option<i32>, Fault> {
        let (result, report) = files::pipe().at(Stage::Process)?;
        let program = Starting { keeping: self, foreground, report: report.as_fd() };
        // Keys of a terminal could stop the process before its exec, and so could guests, of which there
        // is none before the run's own program; or its keeper has to trace it; or it has so many
        // directories to look through that somebody outside finds the time to stop it. (A stop in the
        // moment that is left lasts until SIGCONT.)
        let undisturbed = self.is_init
            && self.terminal.is_none()
            && self.plan.vdso.is_none()
            && self.program.candidate(DIRECTORIES_SOON_SEEN).is_none();
        let (pid, pidfd) = match undisturbed {
            true => spawn::spawn_and_wait(&program, become_program),
            false => spawn::spawn(0, &program, become_program),
        }
        .at(Stage::Process)?;
        drop(report);
        let patch = self.plan.vdso.as_ref();
        let Before { stopped, trapped } =
            await_exec(pid, result.as_fd(), signals, patch.is_some()).at(Stage::Process)?;
        let mut failure = [0; 8];
        match files::read_once(result.as_fd(), &mut failure).at(Stage::Process)? {
            0 => {
                if let Some(patch) = patch {
                    // Only the run's own program is the one that it was made for.
                    let made = self.is_init.then_some(self.plan.begun);
                    change_vdso(pid, patch, made, trapped).at(Stage::Clock)?;
                }
                let _ = Event::Started.send(self.socket, &[pidfd.as_fd()]);
                if let Some(signal) = stopped {
                    let _ = spawn::kill(-pid, signal);
                }
                Ok(Some(pid))
            }
            _ => {
                let [a, b, c, d, e, f, g, h] = failure;
                let errno = i32::from_ne_bytes([a, b, c, d]);
                let candidate = u32::from_ne_bytes([e, f, g, h]);
                let _ = Event::NotExecuted(errno, candidate).send(self.socket, &[]);
                Ok(None)
            }
        }
    }

    /// Makes a keeper. What does not work is said on its own socket.
    fn make_keeper(&self, later: Later, descriptors: Descriptors, signals: BorrowedFd<'_>) {
        // Where standard streams of init's are closed, their numbers are the first that are free.
        let lifted = |fd: OwnedFd| match fd.as_raw_fd() {
            0..3 => files::duplicate(fd.as_raw_fd()).ok(),
            _ => Some(fd),
        };
        let descriptors = descriptors.map(|fd| fd.and_then(lifted));
        let [Some(lists), Some(socket), streams @ ..] = descriptors else { return };
        let task = KeeperTask {
            plan: self.plan,
            later,
            lists: lists.as_fd(),
            socket: socket.as_fd(),
            streams: &streams,
            not_its_own: [self.socket.as_raw_fd(), signals.as_raw_fd()],
        };
        let _ = match spawn::spawn(0, &task, keeper) {
            Ok((_, pidfd)) => Event::Made.send(socket.as_fd(), &[pidfd.as_fd()]),
            Err(errno) => Event::Fault(Stage::Process, 0, errno as i32).send(socket.as_fd(), &[]),
        };
    }
}

/// What a keeper begins with.
struct KeeperTask<'k> {
    plan: &'k Plan,
    later: Later,
    lists: BorrowedFd<'k>,
    socket: BorrowedFd<'k>,
    streams: &'k [Option<OwnedFd>],
    /// Init's own descriptors, of which it is a copy.
    not_its_own: [i32; 2],
}

fn keeper(task: &KeeperTask<'_>) -> ! {
    live(task.plan, task.socket, &task.not_its_own, || keep(task))
}

/// A keeper's whole life, of which `keep` is what it is there for. `not_its_own`: init's own descriptors, of which it is a
/// copy.
pub(super) fn live(
    plan: &Plan,
    socket: BorrowedFd<'_>,
    not_its_own: &[RawFd],
    keep: impl FnOnce() -> Result<(), Fault>,
) -> ! {
    spawn::set_name(c"sandbox-keeper");
    let status = match settle(plan, not_its_own).and_then(|()| keep()) {
        Ok(()) => 0,
        Err(Fault { stage, index, errno }) => {
            let _ = Event::Fault(stage, index, errno as i32).send(socket, &[]);
            1
        }
    };
    spawn::exit_now(status)
}

fn settle(plan: &Plan, not_its_own: &[RawFd]) -> Result<(), Fault> {
    // Descriptors that the run's own program was given are not for later ones.
    for fd in not_its_own.iter().chain(&plan.descriptors) {
        let _ = files::close_now(*fd);
    }
    occupy_streams().at(Stage::Stream)?;
    spawn::become_subreaper().at(Stage::Process)?;
    spawn::new_session().at(Stage::Terminal)
}

fn keep(task: &KeeperTask<'_>) -> Result<(), Fault> {
    let terminal = take_streams(task)?;
    // They are in their places: a pipe is not held open beyond that (see below).
    for fd in task.streams.iter().flatten() {
        let _ = files::close_now(fd.as_raw_fd());
    }
    let lists = StringLists::map(task.lists, task.later.words as usize).at(Stage::Process)?;
    let program = Lists(&lists);
    let workdir = program.workdir().at(Stage::Workdir)?;
    files::change_directory(workdir).at(Stage::Workdir)?;

    let _ = Event::Ready.send_with(task.socket, terminal.as_ref().map(|(master, _)| master));
    // Only the other side holds the master from here on: when it lets go, the program is hung up.
    let terminal = terminal.map(|(_, slave)| slave);
    let Ok((Order::Start { foreground }, _)) = Order::receive(task.socket) else { return Ok(()) };
    let keeping = Keeping {
        plan: task.plan,
        program,
        socket: task.socket,
        terminal: terminal.as_ref().map(AsFd::as_fd),
        is_init: false,
        closed: [0, 1, 2].map(|fd| !task.later.open[fd] && !task.later.terminal[fd]),
    };
    keeping.serve(foreground)?;
    // A pipe or terminal that the program is done with is not held open.
    occupy_streams().at(Stage::Stream)?;
    drop(terminal);
    while spawn::await_end().is_ok() {}
    Ok(())
}

/// Puts /dev/null in place of all standard streams: their numbers are never free in a keeper.
fn occupy_streams() -> Result<(), Errno> {
    let null = files::open(c"/dev/null", libc::O_RDWR, 0)?;
    for fd in 0..3 {
        files::place(null.as_raw_fd(), fd)?;
    }
    // It may be one of them.
    if null.as_raw_fd() < 3 {
        std::mem::forget(null);
    }
    Ok(())
}

/// The standard streams: those handed over, or a terminal of its own.
fn take_streams(task: &KeeperTask<'_>) -> Result<Option<(OwnedFd, OwnedFd)>, Fault> {
    let Later { open, terminal: wanted, .. } = task.later;
    let mut given = task.streams.iter().flatten();
    for fd in (0..3).filter(|fd| open[*fd]) {
        let stream = given.next().ok_or(Errno::EBADMSG).at(Stage::Stream)?;
        files::place(stream.as_raw_fd(), fd as i32).at_index(Stage::Stream, fd)?;
    }
    if !wanted.contains(&true) {
        return Ok(None);
    }
    let (master, slave) = pty::open_pair().at(Stage::Terminal)?;
    terminal::make_controlling(slave.as_fd()).at(Stage::Terminal)?;
    for (fd, wanted) in wanted.into_iter().enumerate() {
        if wanted {
            files::place(slave.as_raw_fd(), fd as i32).at(Stage::Terminal)?;
        }
    }
    Ok(Some((master, slave)))
}

/// Moves the program to the foreground of its terminal or to the background, where reading stops it.
/// The group that was in the foreground (a job of a shell, not the program's own) is remembered in
/// the background and comes back.
fn place(
    terminal: BorrowedFd<'_>,
    program: i32,
    foreground: bool,
    aside: Option<i32>,
) -> Option<i32> {
    let own = spawn::own_pid();
    let current = pty::foreground(terminal).unwrap_or(own);
    match (foreground, current == own) {
        (true, true) => {
            if pty::set_foreground(terminal, aside.unwrap_or(program)).is_err() {
                let _ = pty::set_foreground(terminal, program);
            }
            None
        }
        (false, false) => {
            let _ = pty::set_foreground(terminal, own);
            Some(current)
        }
        _ => aside,
    }
}

/// What the program's process needs between its clone and its exec.
struct Starting<'s> {
    keeping: &'s Keeping<'s>,
    foreground: bool,
    /// Tells the keeper why it could not be executed; closes by itself when it could.
    report: BorrowedFd<'s>,
}

/// What came before the program ran.
struct Before {
    /// A signal by which it would have stopped; it gets it now.
    stopped: Option<i32>,
    /// Its exec has been seen to stop it, as that of a traced child.
    trapped: bool,
}

/// Waits until the program's process is executed or says why not. The user's keys reach it before
/// that: a process that stopped then would never say anything, so it goes on, and the program gets
/// the signal that is given here.
fn await_exec(
    pid: i32,
    result: BorrowedFd<'_>,
    signals: BorrowedFd<'_>,
    traced: bool,
) -> Result<Before, Errno> {
    let mut stopped = None;
    loop {
        let (told, changed) = spawn::wait_readable([result, signals])?;
        if told {
            return Ok(Before { stopped, trapped: false });
        }
        if changed {
            while let Some(signal) = spawn::read_signal(signals) {
                if signal == libc::SIGHUP {
                    let _ = spawn::kill(pid, libc::SIGHUP);
                }
            }
            match spawn::stopped(pid) {
                Some(libc::SIGTRAP) if traced => return Ok(Before { stopped, trapped: true }),
                // A traced child stops for every signal, to be given it or to stop for it.
                Some(signal) if traced => {
                    if is_stop(signal) {
                        stopped = Some(signal);
                    }
                    let pass = if is_stop(signal) { 0 } else { signal };
                    let _ = tracing::go_on(pid, pass);
                }
                Some(signal) => {
                    stopped = Some(signal);
                    let _ = spawn::kill(pid, libc::SIGCONT);
                }
                None => {}
            }
        }
    }
}

/// The signals that stop a process by default.
fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// Waits for the stop at the end of the exec, changes the program's vDSO and lets it go. `made`: when the patch was
/// made for this program.
///
/// Whoever keeps the program does this: until the exec it is a copy of init, which the supervisor of an
/// ordinary user may not trace.
fn change_vdso(
    pid: i32,
    patch: &Patch,
    made: Option<Instant>,
    mut trapped: bool,
) -> Result<(), Errno> {
    while !trapped {
        match tracing::wait_child(pid)? {
            Stop::Signal(libc::SIGTRAP) => trapped = true,
            Stop::Signal(signal) => tracing::go_on(pid, signal)?,
            Stop::Gone => return Ok(()),
            Stop::Event | Stop::Exec | Stop::Call => tracing::go_on(pid, 0)?,
        }
    }
    patch.apply(pid, made.map_or(Duration::ZERO, |made| made.elapsed()))?;
    tracing::detach(pid, 0)
}

fn become_program(starting: &Starting<'_>) -> ! {
    let keeping = starting.keeping;
    let _ = spawn::new_process_group();
    if let (Some(terminal), true) = (keeping.terminal, starting.foreground) {
        let _ = pty::set_foreground(terminal, spawn::own_pid());
    }
    spawn::restore_signals(&keeping.plan.signal_mask);
    if keeping.plan.vdso.is_some() {
        // The keeper stops this process between its exec and its first instruction.
        let _ = tracing::trace_me();
    }
    for fd in (0..3).filter(|fd| keeping.closed[*fd]) {
        let _ = files::close_now(fd as i32);
    }
    let (errno, candidate) = limit(keeping.plan)
        .and_then(|()| if keeping.plan.apart { apart::below_keeper() } else { Ok(()) })
        .and_then(|()| execute(keeping.program))
        .unwrap_or_else(|errno| (errno, 0));
    let mut report = [0; 8];
    report[..4].copy_from_slice(&(errno as i32).to_ne_bytes());
    report[4..].copy_from_slice(&(candidate as u32).to_ne_bytes());
    let _ = files::write_whole(starting.report, &report);
    spawn::exit_now(127)
}

/// The resource limits of the run. Not the keeper's own: it has to go on whatever they are.
fn limit(plan: &Plan) -> Result<(), Errno> {
    plan.rlimits.iter().try_for_each(|(resource, value)| spawn::set_limit(*resource, *value))
}

/// As execvp(3): the first candidate that can be executed; a file without a known format is a
/// shell script, unless it is an ELF file of a kind that this kernel does not run. Gives why none
/// could, and the candidate that this is about.
fn execute(program: Lists<'_>) -> Result<(Errno, usize), Errno> {
    let (argv, envp) = (program.argv()?, program.envp()?);
    let mut outcome = (Errno::ENOENT, 0);
    let mut index = 0;
    while let Some(candidate) = program.candidate(index) {
        let errno = match spawn::execute(candidate.path, argv, envp) {
            Errno::ENOEXEC if !files::starts_with(candidate.path, b"\x7fELF") => {
                spawn::execute(c"/bin/sh", candidate.by_shell, envp)
            }
            errno => errno,
        };
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV => {}
            // Another directory of PATH may hold one that can be executed; and a directory that
            // may not be searched holds nothing.
            Errno::EACCES if files::exists(candidate.path) => outcome = (errno, index),
            Errno::EACCES => {}
            _ => return Ok((errno, index)),
        }
        index += 1;
    }
    Ok(outcome)
}
