//! The supervisor's side of making a sandbox: clone, map ids, pass the filter, take the listener.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::init;
use super::plan::Plan;
use super::protocol::{Event, Order, Stage};
use crate::config::{IdRange, RunSpec, Without};
use crate::sys::seccomp::sock_filter;
use crate::sys::{message, spawn};

/// A sandbox in the making: its init process exists and builds the walls from the inside.
pub struct Launch<'p> {
    plan: &'p Plan,
    init: Init,
}

/// The guest's init, as its parent holds it. Dropping it kills it, and with it every guest.
#[derive(Debug)]
struct Init {
    pid: Pid,
    socket: OwnedFd,
    reaped: bool,
}

/// A sandbox whose walls stand; the program has not been started.
#[derive(Debug)]
pub struct Behind {
    init: Init,
    /// The listener of the filter that every guest runs under.
    listener: Option<OwnedFd>,
    /// The supervisor's side of the guest's terminal, if it has one.
    pub master: Option<OwnedFd>,
}

/// Why no sandbox came up: one sentence with operation, object, cause and remedy.
#[derive(Debug)]
pub enum LaunchError {
    /// The host refuses namespaces.
    Namespaces(Errno),
    /// The ids could not be mapped.
    Map(&'static str, Errno),
    /// A stage inside failed.
    Stage {
        /// Which.
        stage: Stage,
        /// What was being done.
        what: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The host has no seccomp user notification.
    Seccomp(Errno),
    /// Init ended without a word.
    Vanished(&'static str),
    /// A call of the supervisor itself failed.
    Own(&'static str, Errno),
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchError::Namespaces(errno) => {
                f.write_str(&super::host::explain_userns_refusal(*errno))
            }
            LaunchError::Map(file, errno) => {
                write!(f, "cannot write {file} of the new user namespace: {}", errno.desc())
            }
            LaunchError::Stage { what, errno, .. } => {
                write!(f, "cannot {what}: {}", errno.desc())
            }
            LaunchError::Seccomp(errno) => {
                f.write_str(&super::host::explain_seccomp_refusal(*errno))
            }
            LaunchError::Vanished(when) => {
                write!(f, "the sandbox's init process ended unexpectedly {when}")
            }
            LaunchError::Own(what, errno) => write!(f, "cannot {what}: {}", errno.desc()),
        }
    }
}

impl std::error::Error for LaunchError {}

impl<'p> Launch<'p> {
    /// Makes the namespaces and sets init to work. The caller must have no other thread yet: the
    /// child's kill-when-the-parent-dies is tied to the calling thread, which has to stay.
    pub fn begin(spec: &RunSpec, plan: &'p Plan) -> Result<Launch<'p>, LaunchError> {
        if spec.without.contains(Without::USER_NAMESPACES) {
            return Err(LaunchError::Namespaces(Errno::EPERM));
        }
        if spec.without.contains(Without::SECCOMP_NOTIFY) {
            return Err(LaunchError::Seccomp(Errno::ENOSYS));
        }
        let (socket, theirs) = message::pair().map_err(|e| LaunchError::Own("make a socket", e))?;
        let start = init::Start { plan, socket: theirs.as_raw_fd(), other_end: socket.as_raw_fd() };
        let pid =
            spawn::spawn(plan.namespaces, &start, init::main).map_err(LaunchError::Namespaces)?;
        drop(theirs);
        let init = Init { pid: Pid::from_raw(pid), socket, reaped: false };
        init.map_ids(spec)?;
        init.order(Order::Go)?;
        Ok(Launch { plan, init })
    }

    /// Passes the filter, and gives the sandbox once its walls stand.
    pub fn finish(self, program: &[sock_filter]) -> Result<Behind, LaunchError> {
        let Launch { plan, init } = self;
        plan.program
            .write_program(program)
            .map_err(|e| LaunchError::Own("pass the filter on", e))?;
        init.order(Order::Filter(program.len() as u32))?;
        let (_, master) = init.expect(plan, Event::Ready, "while it built the walls")?;
        let (_, listener) = init.expect(plan, Event::Listening, "while it loaded the filter")?;
        fcntl(&init.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|e| LaunchError::Own("prepare the socket to the init process", e))?;
        Ok(Behind { init, listener, master })
    }
}

impl Init {
    /// Writes the id maps (user_namespaces(7)). An ordinary user has to give up setgroups(2) first.
    fn map_ids(&self, spec: &RunSpec) -> Result<(), LaunchError> {
        if spec.identity.groups.is_none() {
            self.write_proc("setgroups", b"deny")?;
        }
        self.write_proc("uid_map", map_text(&spec.identity.uid_map).as_bytes())?;
        self.write_proc("gid_map", map_text(&spec.identity.gid_map).as_bytes())
    }

    fn write_proc(&self, file: &'static str, text: &[u8]) -> Result<(), LaunchError> {
        std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/{file}", self.pid))
            .and_then(|mut open| open.write_all(text))
            .map_err(|error| {
                LaunchError::Map(file, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
            })
    }

    fn order(&self, order: Order) -> Result<(), LaunchError> {
        match order.send(self.socket.as_fd()) {
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
    ) -> Result<(Event, Option<OwnedFd>), LaunchError> {
        match Event::receive(self.socket.as_fd()) {
            Ok((received, fd)) if received == event => Ok((received, fd)),
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

    /// The listener, once.
    pub fn take_listener(&mut self) -> Result<OwnedFd, LaunchError> {
        self.listener.take().ok_or(LaunchError::Vanished("without a listener"))
    }

    /// Where events of init can be waited for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.init.socket.as_fd()
    }

    /// Starts the program.
    pub fn start(&self, foreground: bool) -> Result<(), LaunchError> {
        self.init.order(Order::Start { foreground })
    }

    /// Gives an order.
    pub fn order(&self, order: Order) -> Result<(), LaunchError> {
        self.init.order(order)
    }

    /// Takes the next event of init. EAGAIN: there is none yet; EPIPE: init is gone.
    pub fn event(&self) -> Result<(Event, Option<OwnedFd>), Errno> {
        Event::receive(self.socket())
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
    }
}

fn map_text(ranges: &[IdRange]) -> String {
    ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
        .collect()
}

fn fault(plan: &Plan, stage: Stage, index: u32, errno: Errno) -> LaunchError {
    let what = match stage {
        Stage::Files => {
            plan.steps.get(index as usize).map_or("build the file view".into(), |s| s.to_string())
        }
        Stage::Hostname => "set the host name".into(),
        Stage::Loopback => "bring the loopback network up".into(),
        Stage::Time => "make a time namespace (--without time-namespaces does without)".into(),
        Stage::Terminal => "open a terminal for the guest".into(),
        Stage::Stream => format!("pass descriptor {index} on read-only"),
        Stage::Workdir => format!("enter the working directory {}", plan.workdir.to_string_lossy()),
        Stage::Identity => "give up privileges".into(),
        Stage::Filter => return LaunchError::Seccomp(errno),
        Stage::Process => "start the program's process".into(),
        Stage::Clock => "give the program the sandbox's clock (leave --time out)".into(),
    };
    LaunchError::Stage { stage, what, errno }
}
