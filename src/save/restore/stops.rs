//! Processes that job control had stopped.
//!
//! They are stopped once more, while none of their threads runs an instruction of its program. The signal
//! is always SIGSTOP, which no disposition or group stands in the way of: a parent that has not heard of
//! the stop before hears of that one.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::state::{Process, Sandbox};
use crate::sys::ptrace::{Stop, Stopped};

/// So often a thread may stop for something else on its way.
const MOST_STOPS: usize = 8;

/// Stops the process that these are all threads of, its leader first. They block all other signals.
pub fn stop(all: Vec<Stopped>, who: &str) -> Result<Vec<Stopped>, RestoreError> {
    let failed = |errno: Errno| RestoreError::failed(format!("{who} does not stop"), errno.desc());
    if let Some(leader) = all.first() {
        kill(Pid::from_raw(leader.tid()), Signal::SIGSTOP).map_err(failed)?;
    }
    all.into_iter().map(|thread| halt(thread).map_err(failed)).collect()
}

fn halt(thread: Stopped) -> Result<Stopped, Errno> {
    let mut thread = thread.run()?;
    for _ in 0..MOST_STOPS {
        thread = match thread.why() {
            Stop::Group(_) => return Ok(thread),
            Stop::Signal(libc::SIGSTOP) => thread.run_with(libc::SIGSTOP)?,
            Stop::Asked => thread.run()?,
            _ => return Err(Errno::EPROTO),
        };
    }
    Err(Errno::EPROTO)
}

/// Has a parent wait for the stops of its children that it had heard of before.
pub fn hear(hand: &mut Hand, process: &Process, sandbox: &Sandbox) -> Result<(), RestoreError> {
    let children = sandbox.processes.iter().filter(|it| it.parent == process.pid);
    for child in children.filter(|it| it.stopped.is_some() && !it.stop_unheard) {
        let options = (libc::WUNTRACED | libc::WNOHANG | libc::__WALL) as u64;
        hand.call(libc::SYS_wait4, [child.pid as u64, 0, options, 0])
            .map_err(RestoreError::of(format!("process {}", process.pid)))?;
    }
    Ok(())
}
