//! A small process in the guests' network namespace, which makes sockets there for the sentry.
//!
//! It is in no other namespace of the guests', so none of them sees it, and it runs nothing but [`net::serve`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::sentry::net;
use crate::sys::{errno_of, files, message, spawn};

/// The process, as the supervisor holds it. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Outpost {
    pid: Pid,
    /// What it is spoken to by, until that is taken.
    socket: Option<OwnedFd>,
}

/// What the process is given.
struct Start {
    user: File,
    network: File,
    end: RawFd,
    /// The first port that anybody may listen at, in decimal, if it is not the kernel's own choice.
    lowest_port: Option<String>,
}

impl Outpost {
    /// Sends one to the namespaces of `init`, which has made them and cannot be looked into any more once it has begun
    /// (PR_SET_DUMPABLE). The caller must have no other thread yet. Guests may listen at ports from `lowest_port` on.
    pub(super) fn send(init: Pid, lowest_port: u16) -> Result<Outpost, Errno> {
        let namespace =
            |name| File::open(format!("/proc/{init}/ns/{name}")).map_err(|error| errno_of(&error));
        let (ours, theirs) = message::pair()?;
        let start = Start {
            user: namespace("user")?,
            network: namespace("net")?,
            end: theirs.as_raw_fd(),
            lowest_port: (lowest_port < net::UNPRIVILEGED).then(|| lowest_port.to_string()),
        };
        let (pid, _) = spawn::spawn(0, &start, main)?;
        Ok(Outpost { pid: Pid::from_raw(pid), socket: Some(ours) })
    }

    /// The supervisor's end of the socket, once.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }
}

impl Drop for Outpost {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Child side.
fn main(start: &Start) -> ! {
    spawn::set_name(c"sandbox-network");
    let entered = setns(start.user.as_fd(), CloneFlags::CLONE_NEWUSER)
        .and_then(|()| setns(start.network.as_fd(), CloneFlags::CLONE_NEWNET))
        // Init does so too, later maybe: what is bound to the loopback needs it.
        .and_then(|()| spawn::raise_loopback())
        .map(|()| open_ports(start))
        .and_then(|()| files::close_all_but(start.end))
        // (Only now: a change of ids or capabilities would undo it.)
        .and_then(|()| spawn::forbid_tracing())
        .and_then(|()| spawn::die_with_parent(libc::SIGKILL));
    if entered.is_ok() {
        let end = files::adopt(start.end);
        net::serve(end.as_fd());
    }
    spawn::exit_now(0)
}

/// Lets guests listen at the ports that are published. Where the host shows its /proc/sys read-only (in a container), they
/// are as they were. Child side.
fn open_ports(start: &Start) {
    const FILE: &std::ffi::CStr = c"/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let Some(lowest) = &start.lowest_port else { return };
    if let Ok(file) = files::open(FILE, libc::O_WRONLY, 0) {
        let _ = files::write_whole(file.as_fd(), lowest.as_bytes());
    }
}
