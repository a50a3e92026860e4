//! The child side: pid 1 of the guest's pid namespace.
//!
//! Builds the walls from the inside, loads the filter, starts the program, and then reaps orphans
//! and carries the supervisor's orders until the program ends. It runs on a copy of the
//! supervisor's memory and never executes anything itself: no allocation, no lock, no panic
//! message, only the functions of `sys` marked "child side".
//!
//! It is the only process inside that did not come out of an exec under the filter; it cannot be
//! traced or opened through /proc (PR_SET_DUMPABLE), it holds no capability, and the filter holds
//! for it too.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use super::plan::{Plan, Reopen};
use super::protocol::{Event, Order, Stage};
use super::view::{Need, Step};
use crate::sys::{files, landlock, mount, process, pty, seccomp, spawn, terminal};

/// What the child is given besides the plan.
pub(super) struct Start<'p> {
    pub(super) plan: &'p Plan,
    /// The child's end of the socket to the supervisor.
    pub(super) socket: RawFd,
    /// The supervisor's end, which the child closes: otherwise it would never see it hung up.
    pub(super) other_end: RawFd,
}

/// A stage that failed: what is reported before the child ends.
struct Fault {
    stage: Stage,
    index: u32,
    errno: Errno,
}

/// Says which stage a failed call belongs to.
trait At<T> {
    fn at(self, stage: Stage) -> Result<T, Fault>;
    fn at_index(self, stage: Stage, index: usize) -> Result<T, Fault>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, stage: Stage) -> Result<T, Fault> {
        self.at_index(stage, 0)
    }

    fn at_index(self, stage: Stage, index: usize) -> Result<T, Fault> {
        self.map_err(|errno| Fault { stage, index: index as u32, errno })
    }
}

/// The child's whole life.
pub(super) fn main(start: &Start<'_>) -> ! {
    let _ = files::close_now(start.other_end);
    let socket = files::adopt(start.socket);
    spawn::set_name(c"sandbox-init");
    let status = match live(start.plan, socket.as_fd()) {
        Ok(()) => 0,
        Err(Fault { stage, index, errno }) => {
            let _ = Event::Fault(stage, index, errno as i32).send(socket.as_fd(), None);
            1
        }
    };
    spawn::exit_now(status)
}

fn live(plan: &Plan, socket: BorrowedFd<'_>) -> Result<(), Fault> {
    // Until the ids are mapped nothing can be made; a supervisor that died meanwhile hangs up.
    if Order::receive(socket) != Ok(Order::Go) {
        return Ok(());
    }
    for (index, step) in plan.steps.iter().enumerate() {
        build(plan, step).at_index(Stage::Files, index)?;
    }
    if let Some(name) = &plan.hostname {
        spawn::set_hostname(name).at(Stage::Hostname)?;
    }
    if plan.loopback {
        spawn::raise_loopback().at(Stage::Loopback)?;
    }
    if plan.time_namespace {
        // For children only: init itself stays outside, the program is inside.
        spawn::unshare(libc::CLONE_NEWTIME).at(Stage::Time)?;
    }
    let terminal = open_terminal(plan)?;
    for reopen in &plan.reopened {
        reopen_read_only(plan, reopen).at_index(Stage::Stream, reopen.fd as usize)?;
    }
    give_up_privileges(plan).at(Stage::Identity)?;
    files::change_directory(&plan.workdir).at(Stage::Workdir)?;

    let ready = Event::Ready.send(socket, terminal.as_ref().map(|(master, _)| master.as_fd()));
    // Only the supervisor holds the master from here on: when it lets go, the guest is hung up.
    let terminal = terminal.map(|(_, slave)| slave);
    if ready.is_err() || !load_filter(plan, socket)? {
        return Ok(());
    }
    let Ok(Order::Start { foreground }) = Order::receive(socket) else { return Ok(()) };
    serve(plan, socket, terminal.as_ref().map(AsFd::as_fd), foreground)
}

impl Need {
    /// What `done` means for the whole.
    fn of(self, done: Result<(), Errno>) -> Result<(), Errno> {
        match (self, done) {
            (Need::Optional, Err(_)) | (Need::UnlessGone, Err(Errno::ENOENT)) => Ok(()),
            (_, done) => done,
        }
    }
}

fn build(plan: &Plan, step: &Step) -> Result<(), Errno> {
    match step {
        Step::Private => mount::make_all_private(),
        Step::Clone { tree, source, recursive, attributes } => {
            let fd = mount::clone_tree(source, *recursive)?;
            mount::set_tree_attributes(fd.as_fd(), *attributes)?;
            plan.trees[*tree].set(Some(fd));
            Ok(())
        }
        Step::Attach { tree, target, need } => match plan.trees[*tree].take() {
            Some(fd) => need.of(mount::attach_tree(fd.as_fd(), target)),
            None => Err(Errno::EBADF),
        },
        Step::Attributes { target, recursive, attributes } => {
            mount::set_attributes(target, *recursive, *attributes)
        }
        Step::Mount { kind, target, flags, data, need } => {
            need.of(mount::mount(Some(kind), target, Some(kind), *flags, Some(data)))
        }
        Step::Directory { path, mode } => files::make_directory(path, *mode),
        Step::File { path } => files::make_file(path),
        Step::Content { path, content } => files::make_readable_file(path, content),
        Step::Unmount { target } => mount::detach(target),
        Step::Symlink { content, path } => files::make_symlink(content, path),
        Step::Setting { path, value } => {
            files::write_whole(files::open(path, libc::O_WRONLY, 0)?.as_fd(), value)
        }
    }
}

/// A session of its own in any case, so that the caller's terminal is out of reach; and its own
/// terminal where the caller's streams are one.
fn open_terminal(plan: &Plan) -> Result<Option<(OwnedFd, OwnedFd)>, Fault> {
    spawn::new_session().at(Stage::Terminal)?;
    let Some((settings, streams)) = &plan.terminal else { return Ok(None) };
    let (master, slave) = pty::open_pair().at(Stage::Terminal)?;
    settings.apply(slave.as_fd()).at(Stage::Terminal)?;
    terminal::make_controlling(slave.as_fd()).at(Stage::Terminal)?;
    for (fd, replaced) in streams.iter().enumerate() {
        if *replaced {
            files::place(slave.as_raw_fd(), fd as RawFd).at(Stage::Terminal)?;
        }
    }
    Ok(Some((master, slave)))
}

/// See [`Reopen`]. Only the very file that the stream is open on is taken.
fn reopen_read_only(plan: &Plan, reopen: &Reopen) -> Result<(), Errno> {
    let Some(tree) = plan.trees[reopen.tree].take() else { return Err(Errno::EBADF) };
    let (device, inode) = files::identity(tree.as_fd())?;
    if (device, inode) != (reopen.device, reopen.inode) {
        return Err(Errno::ESTALE);
    }
    let file = files::open_descriptor(tree.as_fd(), libc::O_RDONLY)?;
    files::copy_offset(reopen.fd, file.as_raw_fd())?;
    plan.trees[reopen.tree].set(Some(files::duplicate(reopen.fd)?));
    files::place(file.as_raw_fd(), reopen.fd)
}

/// The caller's own streams stand where the guest's have come to: `(sandbox -- head -1; cat) < f`.
fn return_offsets(plan: &Plan) {
    for reopen in &plan.reopened {
        if let Some(original) = plan.trees[reopen.tree].take() {
            let _ = files::copy_offset(reopen.fd, original.as_raw_fd());
        }
    }
}

fn give_up_privileges(plan: &Plan) -> Result<(), Errno> {
    match spawn::new_session_keyring() {
        // No keyrings in this kernel, or none allowed here: then there is nothing to leave behind.
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT) => {}
        Err(errno) => return Err(errno),
    }
    if let Some(cpus) = &plan.cpus {
        spawn::set_affinity(cpus)?;
    }
    spawn::soft_core_limit_one()?;
    spawn::no_new_privileges()?;
    spawn::drop_bounding_set()?;
    spawn::become_user(plan.uid, plan.gid, plan.groups.as_deref())?;
    spawn::drop_capabilities()?;
    if plan.landlock_scopes {
        landlock::scope_signals_and_abstract_sockets()?;
    }
    files::close_on_exec_from(3)?;
    for fd in &plan.descriptors {
        files::set_close_on_exec(*fd, false)?;
    }
    // After the last change of ids, which would undo both.
    spawn::forbid_tracing()?;
    spawn::die_with_parent(libc::SIGKILL)
}

/// Loads the filter as soon as the supervisor has made it, and hands its listener over.
fn load_filter(plan: &Plan, socket: BorrowedFd<'_>) -> Result<bool, Fault> {
    let Ok(Order::Filter(count)) = Order::receive(socket) else { return Ok(false) };
    let program = plan.program.program(count as usize).at(Stage::Filter)?;
    let listener = seccomp::load_with_listener(program, plan.wait_killable).at(Stage::Filter)?;
    Ok(Event::Listening.send(socket, Some(listener.as_fd())).is_ok())
}

/// Starts the program, reaps, and carries orders until the program ends.
fn serve(
    plan: &Plan,
    socket: BorrowedFd<'_>,
    terminal: Option<BorrowedFd<'_>>,
    foreground: bool,
) -> Result<(), Fault> {
    let mut taken = SigSet::empty();
    taken.add(Signal::SIGCHLD);
    // A terminal that hangs up tells the leader of its session, which is init (__tty_hangup).
    taken.add(Signal::SIGHUP);
    // Putting the program into the foreground must not stop init.
    taken.add(Signal::SIGTTOU);
    let signals = spawn::signal_descriptor(&taken).at(Stage::Process)?;
    let signals = files::adopt(signals);
    let Some(program) = start_program(plan, socket, terminal, signals.as_fd(), foreground)? else {
        return Ok(());
    };
    let mut aside = None;
    // What became of the program may have been told while it was started.
    let mut told = true;
    loop {
        let (ordered, changed) = match std::mem::take(&mut told) {
            true => (false, true),
            false => spawn::wait_readable([socket, signals.as_fd()]).at(Stage::Process)?,
        };
        if changed {
            while let Some(signal) = spawn::read_signal(signals.as_fd()) {
                if signal == libc::SIGHUP {
                    let _ = spawn::kill(-program, libc::SIGHUP);
                    let _ = spawn::kill(-program, libc::SIGCONT);
                }
            }
            while let Some((pid, status)) = spawn::reap() {
                if pid != program {
                    continue;
                }
                if libc::WIFSTOPPED(status) {
                    let _ = Event::Stopped(libc::WSTOPSIG(status)).send(socket, None);
                } else {
                    return_offsets(plan);
                    let _ = Event::Ended(status).send(socket, None);
                    return Ok(());
                }
            }
        }
        if ordered {
            match Order::receive(socket) {
                Ok(Order::Group(signal)) => {
                    let _ = spawn::kill(-program, signal);
                }
                Ok(Order::Resume { foreground }) => {
                    if let Some(terminal) = terminal {
                        aside = place(terminal, program, foreground, aside);
                    }
                    let _ = spawn::kill(-program, libc::SIGCONT);
                }
                Ok(_) => {}
                // The supervisor is gone: everything ends with init.
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Moves the guest to the foreground of its terminal or to the background, where reading stops it.
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
struct Program<'p> {
    plan: &'p Plan,
    terminal: Option<BorrowedFd<'p>>,
    foreground: bool,
    /// Tells init why it could not be executed; closes by itself when it could.
    report: BorrowedFd<'p>,
}

/// The program's pid, once it runs.
fn start_program(
    plan: &Plan,
    socket: BorrowedFd<'_>,
    terminal: Option<BorrowedFd<'_>>,
    signals: BorrowedFd<'_>,
    foreground: bool,
) -> Result<Option<i32>, Fault> {
    let (result, report) = files::pipe().at(Stage::Process)?;
    let program = Program { plan, terminal, foreground, report: report.as_fd() };
    let pid = spawn::spawn(0, &program, become_program).at(Stage::Process)?;
    drop(report);
    let stopped = await_exec(pid, result.as_fd(), signals).at(Stage::Process)?;
    let mut failure = [0; 8];
    match files::read_once(result.as_fd(), &mut failure).at(Stage::Process)? {
        0 => {
            let pidfd = process::pidfd_open(pid, false).ok();
            let _ = Event::Started.send(socket, pidfd.as_ref().map(AsFd::as_fd));
            if let Some(signal) = stopped {
                let _ = spawn::kill(-pid, signal);
            }
            Ok(Some(pid))
        }
        _ => {
            let [a, b, c, d, e, f, g, h] = failure;
            let errno = i32::from_ne_bytes([a, b, c, d]);
            let candidate = u32::from_ne_bytes([e, f, g, h]);
            let _ = Event::NotExecuted(errno, candidate).send(socket, None);
            Ok(None)
        }
    }
}

/// Waits until the program's process is executed or says why not. The user's keys reach it before
/// that: a process that stopped then would never say anything, so it goes on, and the program gets
/// the signal that is given here.
fn await_exec(
    pid: i32,
    result: BorrowedFd<'_>,
    signals: BorrowedFd<'_>,
) -> Result<Option<i32>, Errno> {
    let mut stopped = None;
    loop {
        let (told, changed) = spawn::wait_readable([result, signals])?;
        if told {
            return Ok(stopped);
        }
        if changed {
            while let Some(signal) = spawn::read_signal(signals) {
                if signal == libc::SIGHUP {
                    let _ = spawn::kill(pid, libc::SIGHUP);
                }
            }
            if let Some(signal) = spawn::stopped(pid) {
                stopped = Some(signal);
                let _ = spawn::kill(pid, libc::SIGCONT);
            }
        }
    }
}

fn become_program(program: &Program<'_>) -> ! {
    let plan = program.plan;
    let _ = spawn::new_process_group();
    if let (Some(terminal), true) = (program.terminal, program.foreground) {
        let _ = pty::set_foreground(terminal, spawn::own_pid());
    }
    spawn::restore_signals(&plan.signal_mask);
    let (errno, candidate) = match limit(plan) {
        Ok(()) => execute(plan),
        Err(errno) => (errno, 0),
    };
    let mut report = [0; 8];
    report[..4].copy_from_slice(&(errno as i32).to_ne_bytes());
    report[4..].copy_from_slice(&(candidate as u32).to_ne_bytes());
    let _ = files::write_whole(program.report, &report);
    spawn::exit_now(127)
}

/// The resource limits of the run. Not init's own: it has to go on whatever they are.
fn limit(plan: &Plan) -> Result<(), Errno> {
    plan.rlimits.iter().try_for_each(|(resource, value)| spawn::set_limit(*resource, *value))
}

/// As execvp(3): the first candidate that can be executed; a file without a known format is a
/// shell script, unless it is an ELF file of a kind that this kernel does not run.
fn execute(plan: &Plan) -> (Errno, usize) {
    let mut outcome = (Errno::ENOENT, 0);
    for (index, candidate) in plan.candidates.iter().enumerate() {
        let errno = match spawn::execute(&candidate.path, &plan.argv, &plan.envp) {
            Errno::ENOEXEC if !files::starts_with(&candidate.path, b"\x7fELF") => {
                spawn::execute(c"/bin/sh", &candidate.by_shell, &plan.envp)
            }
            errno => errno,
        };
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV => {}
            // Another directory of PATH may hold one that can be executed; and a directory that
            // may not be searched holds nothing.
            Errno::EACCES if files::exists(&candidate.path) => outcome = (errno, index),
            Errno::EACCES => {}
            _ => return (errno, index),
        }
    }
    outcome
}
