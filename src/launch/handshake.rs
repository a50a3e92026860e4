//! The supervisor's side of making a sandbox: clone, map ids, pass the filter, take the listener.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::apart::Others;
use super::cgroup::{CgroupError, Cgroups};
use super::id_maps::{self, MapError};
use super::init;
use super::outpost::Outpost;
use super::plan::{Plan, PlanError};
use super::program::Program;
use super::protocol::{Event, Later, Order, Stage};
use super::view::Step;
use crate::config::{Identity, RunSpec, View, Without};
use crate::overlay::fill_fronts;
use crate::sys::errno_of;
use crate::sys::memfd::anonymous_file;
use crate::sys::message::{self, Descriptors};
use crate::sys::seccomp::sock_filter;
use crate::sys::{spawn, strings};
use crate::timekeeping::GroupClock;

/// A sandbox in the making: its init process exists and builds the walls from the inside.
pub struct Launch<'p> {
    plan: &'p Plan,
    behind: Behind,
}

/// The guest's init, as its parent holds it. Dropping it kills it, and with it every guest.
#[derive(Debug)]
struct Init {
    pid: Pid,
    /// Stands for it, until it is taken.
    pidfd: Option<OwnedFd>,
    socket: OwnedFd,
    reaped: bool,
}

/// A sandbox as the supervisor holds it.
#[derive(Debug)]
pub struct Behind {
    init: Init,
    /// Behind `init`: ends what that leaves behind, where no pid namespace does.
    others: Option<Others>,
    /// The listener of the filter that every guest runs under.
    listener: Option<OwnedFd>,
    /// The supervisor's side of the guest's terminal, if it has one.
    pub master: Option<OwnedFd>,
    /// What makes sockets in the guests' network, where that is asked for.
    outpost: Option<Outpost>,
    /// Behind `init`: a group is removed once every process in it has ended.
    cgroups: Cgroups,
}

/// The keeper of a program that was started later, as the supervisor holds it. It lasts without this.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
}

/// Why no sandbox came up: one sentence with operation, object, cause and remedy.
#[derive(Debug)]
pub enum LaunchError {
    /// The host refuses namespaces.
    Namespaces(Errno),
    /// The ids could not be mapped.
    Map(MapError),
    /// A stage inside failed.
    Stage {
        /// Which.
        stage: Stage,
        /// What was being done.
        what: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The kernel refuses an overlay.
    Overlay(String, Errno),
    /// In an overlay there is something else than what is to be mounted on.
    Replaced(String, Errno),
    /// A link is on the way to something that had been resolved.
    Moved(String),
    /// The host has no seccomp user notification.
    Seccomp(Errno),
    /// The program cannot be described.
    Program(PlanError),
    /// There is no control group to keep the limits.
    Cgroup(CgroupError),
    /// Init ended without a word.
    Vanished(&'static str),
    /// A call of the supervisor itself failed.
    Own(&'static str, Errno),
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchError::Namespaces(errno) => {
                f.write_str(&super::host::explain_userns_refusal(*errno))?;
                f.write_str("; or take the weaker wall that needs none: --walls landlock")
            }
            LaunchError::Map(error) => error.fmt(f),
            LaunchError::Stage { what, errno, .. } => {
                write!(f, "cannot {what}: {}", why(*errno))
            }
            LaunchError::Overlay(what, errno) => {
                write!(f, "cannot {what}: {}: {}", errno.desc(), why_no_overlay(*errno))
            }
            LaunchError::Replaced(what, errno) => {
                write!(
                    f,
                    "cannot {what}: {}: an earlier run has put something else there in the overlay, or \
                     on the way there; name another --id, or drop it with sandbox discard",
                    errno.desc()
                )
            }
            LaunchError::Moved(what) => {
                write!(
                    f,
                    "cannot {what}: a symbolic link has come to lie on the way there just now; see who \
                     changes the files there, and try again"
                )
            }
            LaunchError::Seccomp(errno) => {
                f.write_str(&super::host::explain_seccomp_refusal(*errno))
            }
            LaunchError::Program(error) => error.fmt(f),
            LaunchError::Cgroup(error) => error.fmt(f),
            LaunchError::Vanished(when) => {
                write!(f, "the sandbox's init process ended unexpectedly {when}")
            }
            LaunchError::Own(what, errno) => write!(f, "cannot {what}: {}", errno.desc()),
        }
    }
}

impl std::error::Error for LaunchError {}

/// An error of the set-up inside in words, with cause and remedy where somebody refused it.
fn why(errno: Errno) -> String {
    match super::host::explain_refusal(errno) {
        Some(cause_and_remedy) => format!("{}: {cause_and_remedy}", errno.desc()),
        None => errno.desc().to_owned(),
    }
}

/// What the kernel means by refusing an overlay (ovl_fill_super in fs/overlayfs/super.c; it says more in its
/// log), and the remedy.
fn why_no_overlay(errno: Errno) -> &'static str {
    match errno {
        Errno::ENODEV => "this kernel has no overlayfs; as root, modprobe overlay",
        Errno::EPERM => {
            "overlays in user namespaces need Linux 5.11 and nobody who forbids them; run it without \
             --overlay, or on a newer kernel"
        }
        Errno::ESTALE => "it was replaced at this moment; try again",
        Errno::ENOENT | Errno::ENOTDIR => {
            "it was removed at this moment; leave it out, or try again"
        }
        Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ELOOP => {
            "its file system cannot be shown through an overlay, or the one that is to keep the changes \
             cannot (dmesg says which); show it with --ro PATH instead, or name a directory on another file \
             system with --overlay-dir"
        }
        _ => "show it with --ro PATH instead, or name another place with --overlay-dir",
    }
}

impl<'p> Launch<'p> {
    /// Makes the namespaces and sets init to work. The caller must have no other thread yet: the
    /// child's kill-when-the-parent-dies is tied to the calling thread, which has to stay.
    pub fn begin(spec: &RunSpec, plan: &'p Plan) -> Result<Launch<'p>, LaunchError> {
        if spec.without.contains(Without::USER_NAMESPACES) && !plan.apart {
            return Err(LaunchError::Namespaces(Errno::EPERM));
        }
        if spec.without.contains(Without::SECCOMP_NOTIFY) {
            return Err(LaunchError::Seccomp(Errno::ENOSYS));
        }
        let others = match plan.apart {
            true => Some(Others::begin().map_err(|e| LaunchError::Own("adopt orphans", e))?),
            false => None,
        };
        let (socket, theirs) = message::pair().map_err(|e| LaunchError::Own("make a socket", e))?;
        let start = init::Start { plan, socket: theirs.as_raw_fd(), other_end: socket.as_raw_fd() };
        let (pid, pidfd) =
            spawn::spawn(plan.namespaces, &start, init::main).map_err(LaunchError::Namespaces)?;
        drop(theirs);
        let init = Init { pid: Pid::from_raw(pid), pidfd: Some(pidfd), socket, reaped: false };
        let cgroups = Cgroups::make(&spec.limits.cgroups, pid).map_err(LaunchError::Cgroup)?;
        if !plan.apart {
            let Identity { uid_map, gid_map, groups, .. } = &spec.identity;
            id_maps::write(init.pid, (uid_map, gid_map), groups.is_none())
                .map_err(LaunchError::Map)?;
        }
        let outpost = spec.needs_outpost().then(|| Outpost::send(init.pid, spec.lowest_port()));
        let outpost = outpost.transpose();
        let outpost = outpost.map_err(|e| LaunchError::Own("reach the sandbox's network", e))?;
        init.order(Order::Go)?;
        if !plan.fronts.is_empty() {
            let [memory, ..] = init.expect(plan, Event::Front, "while it built the walls")?;
            let memory = memory.ok_or(LaunchError::Vanished("without memory"))?;
            fill_fronts(memory.as_fd(), &plan.fronts, &View::of(&spec.mounts))
                .map_err(|errno| LaunchError::Own("make the directories of the overlay", errno))?;
            init.order(Order::Go)?;
        }
        let behind = Behind { init, others, listener: None, master: None, outpost, cgroups };
        Ok(Launch { plan, behind })
    }

    /// Passes the filter on, which init loads when the walls stand.
    pub fn pass_filter(&self, program: &[sock_filter]) -> Result<(), LaunchError> {
        self.plan
            .program
            .write_program(program)
            .map_err(|e| LaunchError::Own("pass the filter on", e))?;
        self.behind.order(Order::Filter(program.len() as u32))
    }

    /// The sandbox in the making: its init exists, and has neither a listener nor a terminal yet.
    pub fn behind(&mut self) -> &mut Behind {
        &mut self.behind
    }

    /// Gives the sandbox once its walls stand and the filter is loaded.
    pub fn finish(self) -> Result<Behind, LaunchError> {
        let Launch { plan, mut behind } = self;
        let init = &behind.init;
        let [listener, master, ..] =
            init.expect(plan, Event::Listening, "while it built the walls")?;
        fcntl(&init.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|e| LaunchError::Own("prepare the socket to the init process", e))?;
        (behind.listener, behind.master) = (listener, master);
        Ok(behind)
    }
}

impl Init {
    fn order(&self, order: Order) -> Result<(), LaunchError> {
        match order.send(self.socket.as_fd(), &[]) {
            // Init may have ended over a fault that it reported just before.
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(LaunchError::Own("talk to the sandbox's init process", errno)),
        }
    }

    fn expect(
        &self,
        plan: &Plan,
        event: Event,
        when: &'static str,
    ) -> Result<Descriptors, LaunchError> {
        match Event::receive(self.socket.as_fd()) {
            Ok((received, descriptors)) if received == event => Ok(descriptors),
            Ok((Event::Fault(stage, index, errno), _)) => {
                Err(fault(plan, stage, index, Errno::from_raw(errno)))
            }
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Err(LaunchError::Vanished(when)),
            Err(errno) => Err(LaunchError::Own("hear from the sandbox's init process", errno)),
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

impl Behind {
    /// The host's pid of the guest's init.
    pub fn init_pid(&self) -> i32 {
        self.init.pid.as_raw()
    }

    /// What stands for the guest's init, once.
    pub fn take_init(&mut self) -> Option<OwnedFd> {
        self.init.pidfd.take()
    }

    /// What speaks to the process that makes sockets in the guests' network, once, if there is one.
    pub fn take_outpost(&mut self) -> Option<OwnedFd> {
        self.outpost.as_mut().and_then(Outpost::take)
    }

    /// The listener, once.
    pub fn take_listener(&mut self) -> Result<OwnedFd, LaunchError> {
        self.listener.take().ok_or(LaunchError::Vanished("without a listener"))
    }

    /// Where events of init can be waited for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.init.socket.as_fd()
    }

    /// The clock of the control group that counts the CPU time of the run, if there is one.
    pub fn cpu_clock(&self) -> Option<GroupClock> {
        self.cgroups.cpu_clock()
    }

    /// The control group that keeps the memory limit, if there is one.
    pub fn memory_group(&self) -> Option<&Path> {
        self.cgroups.memory()
    }

    /// The control group that keeps the limit of processes, if there is one.
    pub fn pids_group(&self) -> Option<&Path> {
        self.cgroups.pids()
    }

    /// Starts the program, as soon as the walls stand and the filter is loaded.
    pub fn start(&self, foreground: bool) -> Result<(), LaunchError> {
        self.init.order(Order::Start { foreground })
    }

    /// Gives an order.
    pub fn order(&self, order: Order) -> Result<(), LaunchError> {
        self.init.order(order)
    }

    /// Has init make a keeper for another program, with these streams, or with a terminal of its own in
    /// their place. The keeper says [`Event::Ready`] or a fault, and waits for [`Order::Start`].
    ///
    /// Its descriptors must have been looked at: they are handed over as they are.
    pub fn keep(
        &self,
        program: &Program<'_>,
        streams: &[Option<OwnedFd>; 3],
        terminal: [bool; 3],
    ) -> Result<Keeper, LaunchError> {
        let own = |what| move |errno| LaunchError::Own(what, errno);
        let lists = program.lists().map_err(LaunchError::Program)?;
        let words = strings::encode(&lists);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut file = anonymous_file(c"program").map_err(own("make a file in memory"))?;
        file.write_all(&bytes)
            .map_err(|error| LaunchError::Own("describe the program", errno_of(&error)))?;
        let (socket, theirs) = message::pair().map_err(own("make a socket"))?;
        let mut descriptors = vec![file.as_fd(), theirs.as_fd()];
        descriptors.extend(streams.iter().flatten().map(AsFd::as_fd));
        let open = [0, 1, 2].map(|fd: usize| streams[fd].is_some());
        Order::Keep(Later { words: words.len() as u32, open, terminal })
            .send(self.socket(), &descriptors)
            .map_err(own("talk to the sandbox's init process"))?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(own("prepare the socket to the keeper"))?;
        Ok(Keeper { socket })
    }

    /// Takes the next event of init. EAGAIN: there is none yet; EPIPE: init is gone.
    pub fn event(&self) -> Result<(Event, Descriptors), Errno> {
        Event::receive(self.socket())
    }

    /// What plants the processes of an image ([`Plan::plant`]).
    pub fn planter(&self) -> Result<Planter, LaunchError> {
        let own = |error: std::io::Error| LaunchError::Own("copy a descriptor", errno_of(&error));
        Ok(Planter { socket: self.init.socket.try_clone().map_err(own)? })
    }

    /// A fault that init reported late, in words.
    pub fn fault(&self, plan: &Plan, stage: Stage, index: u32, errno: i32) -> LaunchError {
        fault(plan, stage, index, Errno::from_raw(errno))
    }

    /// Waits until init and with it every guest has ended.
    pub fn wait(&mut self) {
        loop {
            match waitpid(self.init.pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => break,
                _ => {}
            }
        }
        self.init.reaped = true;
        if let Some(others) = &self.others {
            others.end();
        }
    }
}

/// Has init plant processes, or a keeper, on any thread. Nothing else may be heard from it meanwhile.
#[derive(Debug)]
pub struct Planter {
    socket: OwnedFd,
}

impl Planter {
    /// Plants a seed with this number in the guest, and `first` as its descriptor
    /// [`super::FIRST`]. Gives its number on the host and a descriptor that stands for it.
    pub fn plant(&self, pid: i32, first: BorrowedFd<'_>) -> Result<(i32, OwnedFd), Errno> {
        Order::Plant(pid).send(self.socket.as_fd(), &[first])?;
        self.planted()
    }

    /// Has init make a keeper of this number, with a session of its own. Gives its number on the host, a
    /// descriptor that stands for it, and what plants below it.
    pub fn shelter(&self, pid: i32) -> Result<(i32, OwnedFd, Planter), Errno> {
        let (socket, theirs) = message::pair()?;
        Order::Shelter(pid).send(self.socket.as_fd(), &[theirs.as_fd()])?;
        let (pid, pidfd) = self.planted()?;
        Ok((pid, pidfd, Planter { socket }))
    }

    /// What was planted so far makes what others only find, and does without the wall for files. Whatever comes after
    /// this is behind it.
    pub fn confine(&self) -> Result<(), Errno> {
        Order::Confine.send(self.socket.as_fd(), &[])?;
        match self.hear()? {
            (Event::Confined, _) => Ok(()),
            (Event::Fault(_, _, errno), _) => Err(Errno::from_raw(errno)),
            _ => Err(Errno::EBADMSG),
        }
    }

    /// What has been made: its number on the host, and a descriptor that stands for it.
    fn planted(&self) -> Result<(i32, OwnedFd), Errno> {
        match self.hear()? {
            (Event::Planted, [Some(pidfd), ..]) => {
                let pid = crate::sys::process::pid_of(pidfd.as_fd()).ok_or(Errno::ESRCH)?;
                Ok((pid, pidfd))
            }
            (Event::Fault(_, _, errno), _) => Err(Errno::from_raw(errno)),
            _ => Err(Errno::EBADMSG),
        }
    }

    /// Speaks to the keeper that it has planted with from here on.
    pub fn into_keeper(self) -> Result<Keeper, Errno> {
        fcntl(&self.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Keeper { socket: self.socket })
    }

    /// Everything has grown: who planted gives up what that took, and keeps this one, as the guest numbers
    /// it, as its program (0: none). `hang_up`: which is to hear that its terminal is gone.
    pub fn adopt(&self, program: i32, hang_up: bool) -> Result<(), Errno> {
        Order::Adopt { program, hang_up }.send(self.socket.as_fd(), &[])?;
        match self.hear()? {
            (Event::Started, _) => Ok(()),
            (Event::Fault(_, _, errno), _) => Err(Errno::from_raw(errno)),
            _ => Err(Errno::EBADMSG),
        }
    }

    fn hear(&self) -> Result<(Event, Descriptors), Errno> {
        let mut fds = [nix::poll::PollFd::new(self.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        loop {
            match Event::receive(self.socket.as_fd()) {
                Err(Errno::EAGAIN) => {
                    nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE)?;
                }
                heard => return heard,
            }
        }
    }
}

impl Keeper {
    /// Whoever speaks as a keeper at the other end of this socket.
    pub fn at(socket: OwnedFd) -> Keeper {
        Keeper { socket }
    }

    /// Where its events can be waited for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Gives an order. One that has ended is about to say so.
    pub fn order(&self, order: Order) -> Result<(), LaunchError> {
        match order.send(self.socket(), &[]) {
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(LaunchError::Own("talk to the program's keeper", errno)),
        }
    }

    /// Takes the next event. EAGAIN: there is none yet; EPIPE: it has ended, with all that the program
    /// left behind.
    pub fn event(&self) -> Result<(Event, Descriptors), Errno> {
        Event::receive(self.socket())
    }

    /// A fault that it reported, in words.
    pub fn fault(&self, program: &Program<'_>, stage: Stage, errno: i32) -> LaunchError {
        let what = match stage {
            Stage::Workdir => format!("enter the working directory {}", program.workdir.display()),
            stage => generic(stage).to_owned(),
        };
        LaunchError::Stage { stage, what, errno: Errno::from_raw(errno) }
    }
}

fn fault(plan: &Plan, stage: Stage, index: u32, errno: Errno) -> LaunchError {
    if let (Stage::Files, Some(Step::Overlay { layer, .. })) =
        (stage, plan.steps.get(index as usize))
    {
        return LaunchError::Overlay(layer.to_string(), errno);
    }
    let what = match stage {
        Stage::Files => {
            plan.steps.get(index as usize).map_or("build the file view".into(), |s| s.to_string())
        }
        Stage::Stream => format!("pass descriptor {index} on read-only"),
        Stage::Workdir => format!("enter the working directory {}", plan.workdir.to_string_lossy()),
        Stage::Filter => return LaunchError::Seccomp(errno),
        stage => generic(stage).into(),
    };
    let guard = plan.steps.iter().position(|step| matches!(step, Step::Guard));
    let layer = |step: &Step| matches!(step, Step::Overlay { .. } | Step::Twin { .. });
    let layered = plan.steps.iter().any(layer);
    let guarded = stage == Stage::Files && guard.is_some_and(|guard| index as usize > guard);
    if guarded && layered && matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) {
        return LaunchError::Replaced(what, errno);
    }
    if stage == Stage::Files && errno == Errno::ELOOP {
        return LaunchError::Moved(what);
    }
    LaunchError::Stage { stage, what, errno }
}

/// What is done in a stage whoever is in it.
fn generic(stage: Stage) -> &'static str {
    match stage {
        Stage::Files => "build the file view",
        Stage::Hostname => "set the host name",
        Stage::Loopback => "bring the loopback network up",
        Stage::Time => "make a time namespace (--without time-namespaces does without)",
        Stage::Terminal => "open a terminal for the guest",
        Stage::Stream => "pass the standard streams on",
        Stage::Workdir => "enter the working directory",
        Stage::Identity => "give up privileges",
        Stage::Filter => "load the filter",
        Stage::Process => "start the program's process",
        Stage::Seed => "make the processes of the image",
        Stage::Addresses => "switch the randomisation of addresses off (leave --deterministic out)",
        Stage::Clock => {
            "give the program the sandbox's clock (leave --time and --deterministic out)"
        }
    }
}
