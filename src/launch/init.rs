//! The child side: pid 1 of the guest's pid namespace.
//!
//! Builds the walls from the inside, loads the filter, and then keeps the run's program (`keep`). It runs on a copy of the
//! supervisor's memory and never executes anything itself: no allocation, no lock, no panic
//! message, only the functions of `sys` marked "child side".
//!
//! It is the only process inside that did not come out of an exec under the filter; it cannot be
//! traced or opened through /proc (PR_SET_DUMPABLE), it holds no capability, and the filter holds
//! for it too.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::apart;
use super::keep::Keeping;
use super::landing::Landing;
use super::plan::{Plan, Reopen};
use super::plant;
use super::program::Lists;
use super::protocol::{Event, Order, Stage};
use super::view::{Need, OverlayStep, Step};
use crate::sys::landlock::Ruleset;
use crate::sys::{beneath, files, mount, pty, seccomp, spawn, terminal};

/// What the child is given besides the plan.
pub(super) struct Start<'p> {
    pub(super) plan: &'p Plan,
    /// The child's end of the socket to the supervisor.
    pub(super) socket: RawFd,
    /// The supervisor's end, which the child closes: otherwise it would never see it hung up.
    pub(super) other_end: RawFd,
}

/// A stage that failed: what is reported before the child ends.
pub(super) struct Fault {
    pub(super) stage: Stage,
    pub(super) index: u32,
    pub(super) errno: Errno,
}

/// Says which stage a failed call belongs to.
pub(super) trait At<T> {
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
            let _ = Event::Fault(stage, index, errno as i32).send(socket.as_fd(), &[]);
            1
        }
    };
    if start.plan.confined.get() {
        apart::end_all();
    }
    spawn::exit_now(status)
}

fn live(plan: &Plan, socket: BorrowedFd<'_>) -> Result<(), Fault> {
    // Until the ids are mapped nothing can be made; a supervisor that died meanwhile hangs up.
    if !matches!(Order::receive(socket), Ok((Order::Go, _))) {
        return Ok(());
    }
    let mut way = Way::Plain;
    for (index, step) in plan.steps.iter().enumerate() {
        if matches!(step, Step::Guard) {
            way = Way::Guarded;
        }
        if let Step::Front { place } = step {
            let memory = front(place).at_index(Stage::Files, index)?;
            Event::Front.send(socket, &[memory.as_fd()]).at_index(Stage::Files, index)?;
            if !matches!(Order::receive(socket), Ok((Order::Go, _))) {
                return Ok(());
            }
            continue;
        }
        build(plan, step, way).at_index(Stage::Files, index)?;
    }
    if let Some(name) = &plan.hostname {
        spawn::set_hostname(name).at(Stage::Hostname)?;
    }
    if plan.loopback {
        spawn::raise_loopback().at(Stage::Loopback)?;
    }
    if let Some(offsets) = &plan.time_namespace {
        // For children only: init itself stays outside, the program is inside.
        match spawn::unshare(libc::CLONE_NEWTIME) {
            // It is no wall; EINVAL: not built into this kernel (copy_time_ns without CONFIG_TIME_NS).
            Ok(()) => start_clocks(offsets).at(Stage::Time)?,
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno).at(Stage::Time),
        }
    }
    let terminal = open_terminal(plan)?;
    for reopen in &plan.reopened {
        reopen_read_only(plan, reopen).at_index(Stage::Stream, reopen.fd as usize)?;
    }
    if plan.keep_addresses {
        // Inherited by all programs.
        spawn::keep_addresses().at(Stage::Addresses)?;
    }
    let slave = terminal.as_ref().map(|(_, slave)| slave.as_fd());
    let wall = give_up_privileges(plan, slave).at(Stage::Identity)?;
    files::change_directory(&plan.workdir).at(Stage::Workdir)?;

    if !load_filter(plan, socket, terminal.as_ref().map(|(master, _)| master.as_fd()))? {
        return Ok(());
    }
    // Only the supervisor holds the master from here on: when it lets go, the guest is hung up.
    let terminal = terminal.map(|(_, slave)| slave);
    let keeping = Keeping {
        plan,
        program: Lists(&plan.lists),
        socket,
        terminal: terminal.as_ref().map(AsFd::as_fd),
        is_init: true,
        closed: [false; 3],
    };
    if plan.seed.is_some() {
        return match plant::serve(plan, socket, wall)? {
            Some(grown) => keeping.adopt(grown.program),
            None => Ok(()),
        };
    }
    let Ok((Order::Start { foreground }, _)) = Order::receive(socket) else { return Ok(()) };
    keeping.serve(foreground)
}

impl Need {
    /// What `done` at `target` means for the whole.
    fn of(self, target: &CStr, done: Result<(), Errno>) -> Result<(), Errno> {
        match (self, done) {
            (Need::Optional, Err(_)) | (Need::UnlessGone, Err(Errno::ENOENT)) => Ok(()),
            (Need::UnlessReplaced, Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => Ok(()),
            (Need::UnlessGone | Need::UnlessReplaced, Err(Errno::EACCES))
                if is_out_of_reach(target) =>
            {
                Ok(())
            }
            (_, done) => done,
        }
    }
}

/// Whether it lies in a directory of somebody who is not there inside, and whom it is closed to: then it is to every
/// guest, who is the same user with fewer capabilities. (As with `--root` for the host's root, who sees such places.)
fn is_out_of_reach(target: &CStr) -> bool {
    files::open(target, libc::O_PATH | libc::O_NOFOLLOW, 0).is_err_and(|it| it == Errno::EACCES)
}

/// How the path of a step leads to its place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By what the host has.
    Plain,
    /// Perhaps by what a guest has left, or does just now: over no link ([`Landing`]).
    Guarded,
}

impl Way {
    /// Does something to what is at `path`.
    fn at(self, path: &CStr, act: impl FnOnce(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
        match self {
            Way::Plain => act(path),
            Way::Guarded => act(Landing::at(path)?.path()?),
        }
    }

    /// Makes what is to be at `path`.
    fn make(self, path: &CStr, act: impl FnOnce(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
        match self {
            Way::Plain => act(path),
            Way::Guarded => act(Landing::new_at(path)?.path()?),
        }
    }
}

/// Whatever leads to `target`: over no link.
fn attach(tree: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    let place = beneath::place(target)?;
    // Only mount(2) says it so; here it would be EINVAL (do_move_mount in fs/namespace.c).
    if files::is_directory(tree)? != files::is_directory(place.as_fd())? {
        return Err(Errno::ENOTDIR);
    }
    mount::attach_tree_to(tree, place.as_fd())
}

fn build(plan: &Plan, step: &Step, way: Way) -> Result<(), Errno> {
    match step {
        Step::Private => mount::make_all_private(),
        Step::Clone { tree, source, recursive, attributes } => {
            copy(plan, *tree, source, (*recursive, *attributes))
        }
        Step::Twin { tree, source, attributes } => copy(plan, *tree, source, (false, *attributes)),
        Step::Overlay { tree, layer } => overlay(plan, *tree, layer),
        // (Needs the supervisor: `live`.)
        Step::Front { .. } => Err(Errno::EINVAL),
        Step::Guard => files::change_directory(c"/proc"),
        Step::Enter { tree, old } => match plan.trees[*tree].take() {
            Some(fd) => {
                plan.trees[*old].set(Some(mount::enter_root(fd.as_fd())?));
                Ok(())
            }
            None => Err(Errno::EBADF),
        },
        Step::Leave { old } => match plan.trees[*old].take() {
            Some(fd) => mount::leave_old_root(fd.as_fd()),
            None => Err(Errno::EBADF),
        },
        Step::Attach { tree, target, need } => match plan.trees[*tree].take() {
            Some(fd) => need.of(target, attach(fd.as_fd(), target)),
            None => Err(Errno::EBADF),
        },
        Step::Bind { source, target, need } => {
            let bind = |source: &CStr| way.at(target, |target| mount::bind(source, target));
            need.of(target, way.at(source, bind))
        }
        Step::Nowhere { source, target, need } => need.of(
            target,
            way.make(source, |source| {
                let link = mount::clone_link(source)?;
                let attributes = mount::ATTR_RDONLY | mount::ATTR_NOSUID | mount::ATTR_NODEV;
                mount::set_tree_attributes(link.as_fd(), attributes)?;
                attach(link.as_fd(), target)
            }),
        ),
        Step::Attributes { target, recursive, attributes } => {
            way.at(target, |target| mount::set_attributes(target, *recursive, *attributes))
        }
        Step::Writable { target } => {
            way.at(target, |target| mount::clear_attributes(target, mount::ATTR_RDONLY))
        }
        Step::Mount { kind, target, flags, data, need } => need.of(
            target,
            way.at(target, |target| {
                mount::mount(Some(kind), target, Some(kind), *flags, Some(data))
            }),
        ),
        Step::Directory { path, mode } => way.make(path, |path| files::make_directory(path, *mode)),
        Step::File { path } => way.make(path, files::make_file),
        Step::Content { path, content } => {
            way.make(path, |path| files::make_readable_file(path, content))
        }
        Step::Remove { path } => way.make(path, files::unlink),
        Step::Unmount { target } => way.at(target, mount::detach),
        Step::Symlink { content, path } => {
            way.make(path, |path| files::make_symlink(content, path))
        }
        Step::Setting { path, value } => {
            files::write_whole(files::open(path, libc::O_WRONLY, 0)?.as_fd(), value)
        }
    }
}

/// Mounts memory at `place`; gives what stands for it.
fn front(place: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let open = beneath::place(place)?;
    let at = files::descriptor_path(open.as_fd());
    mount::mount(Some(c"front"), &at, Some(c"tmpfs"), flags, Some(c"mode=0700,nr_inodes=0"))?;
    beneath::directory(place)
}

/// Detaches a copy of a mount. A guest of another run may write to a directory on the way: no link that has come there
/// since `config` looked is followed.
fn copy(
    plan: &Plan,
    tree: usize,
    source: &CStr,
    (recursive, attributes): (bool, u64),
) -> Result<(), Errno> {
    let place = beneath::mounted(source)?;
    let fd = mount::clone_tree(place.as_fd(), recursive)?;
    mount::set_tree_attributes(fd.as_fd(), attributes)?;
    plan.trees[tree].set(Some(fd));
    Ok(())
}

/// Only the very directory that the supervisor meant is shown.
fn overlay(plan: &Plan, tree: usize, layer: &OverlayStep) -> Result<(), Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let lower = files::open(&layer.lower, flags, 0)?;
    if files::identity(lower.as_fd())? != layer.identity {
        return Err(Errno::ESTALE);
    }
    let (upper, work) = (files::open(&layer.upper, flags, 0)?, files::open(&layer.work, flags, 0)?);
    let front = match &layer.front {
        Some(front) => Some(files::open(front, flags, 0)?),
        None => None,
    };
    let lower = (front.as_ref().map(AsFd::as_fd), lower.as_fd());
    let made = mount::overlay(lower, upper.as_fd(), work.as_fd(), layer.attributes)?;
    plan.trees[tree].set(Some(made));
    Ok(())
}

/// MONOTONIC and BOOTTIME begin with the sandbox, and with them the guest's uptime. Only before the
/// namespace has a process (time_namespaces(7)).
fn start_clocks(offsets: &[u8]) -> Result<(), Errno> {
    let file = files::open(c"/proc/self/timens_offsets", libc::O_WRONLY, 0)?;
    files::write_whole(file.as_fd(), offsets)
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

/// Gives the wall for files, if that is to be put in force later ([`plant`]).
fn give_up_privileges(
    plan: &Plan,
    terminal: Option<BorrowedFd<'_>>,
) -> Result<Option<Ruleset>, Errno> {
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
    let plants = plan.seed.is_some();
    if plants {
        spawn::hold_capabilities()?;
    }
    match spawn::limit_bounding_set(plan.capabilities) {
        // In a user namespace of its own init has the right to. An ordinary user outside needs it not: no_new_privs
        // keeps what the set allows from being gained (cap_bprm_creds_from_file in security/commoncap.c).
        Err(Errno::EPERM) if plan.apart => {}
        done => done?,
    }
    if !plan.apart {
        spawn::become_user(plan.uid, plan.gid, plan.groups.as_deref())?;
    }
    if plants {
        // They are given up when everything is planted.
        spawn::hold_capabilities()?;
    } else {
        spawn::limit_capabilities(plan.capabilities)?;
    }
    let wall = plan.confinement.enforce(terminal, plants)?;
    files::close_on_exec_from(3)?;
    for fd in &plan.descriptors {
        files::set_close_on_exec(*fd, false)?;
    }
    // After the last change of ids, which would undo both.
    spawn::forbid_tracing()?;
    if plan.apart {
        // The guests would outlive it: it has to end them first, when its socket tells that nobody is there.
        spawn::become_subreaper()?;
        apart::check_scope()?;
        plan.confined.set(true);
        return Ok(wall);
    }
    spawn::die_with_parent(libc::SIGKILL)?;
    Ok(wall)
}

/// Loads the filter as soon as the supervisor has made it, and hands its listener over, with the master
/// of the guest's terminal.
fn load_filter(
    plan: &Plan,
    socket: BorrowedFd<'_>,
    master: Option<BorrowedFd<'_>>,
) -> Result<bool, Fault> {
    let Ok((Order::Filter(count), _)) = Order::receive(socket) else { return Ok(false) };
    let program = plan.program.program(count as usize).at(Stage::Filter)?;
    let listener = seccomp::load_with_listener(program, plan.wait_killable).at(Stage::Filter)?;
    let sent = match master {
        Some(master) => Event::Listening.send(socket, &[listener.as_fd(), master]),
        None => Event::Listening.send(socket, &[listener.as_fd()]),
    };
    Ok(sent.is_ok())
}
