//! Gives programs that are executed inside the sandbox's clock, and ends those that rules are against.
//!
//! Owns the ptrace(2) session that lasts from an exec's trap to its end, and telling running
//! programs that the clock was set. What is written into them is `timekeeping`'s affair.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::call::Call;
use super::features::Features;
use super::kernel::Kernel;
use super::sessions::Unseized;
use super::stat::Stat;
use crate::notify::{Answer, hand_over};
use crate::sys::process;
use crate::sys::tracing::{self, Stop};

const WHAT: &str = "the sandbox's clock";
const REMEDY: &str = "it sees the host's time; run it without --time";

/// Lets the exec go on and changes the program's vDSO before the program runs.
pub(super) fn follow_exec(call: &Call<'_>) -> Answer {
    if call.kernel.time().is_growing() {
        return Answer::Continue;
    }
    hand_over();
    let tid = call.received().tid;
    let kernel = Arc::clone(call.kernel);
    match kernel.time().sessions().seize(call) {
        Ok(()) => return Answer::Continue.then(move || attend(&kernel, tid)),
        // What attends to an exec that has failed sees the end of this one.
        Err(Unseized::Ended | Unseized::Sentry | Unseized::Init) => {}
        Err(Unseized::Guest) if kernel.features().contains(Features::VIRTUAL_TIME) => {
            kernel.let_through(tid, WHAT, "another program of the sandbox traces it", REMEDY);
        }
        Err(Unseized::Host) if kernel.features().contains(Features::VIRTUAL_TIME) => {
            kernel.let_through(tid, WHAT, "the host does not let it be traced", REMEDY);
        }
        Err(Unseized::Guest | Unseized::Host) => {}
    }
    Answer::Continue
}

/// Waits for the end of the exec, whatever it is. The thread that traces is this one.
fn attend(kernel: &Kernel, tid: i32) {
    // Only now: a stop that is asked for earlier would cancel the notification where signals do.
    // It comes to pass when the call returns, that is, if the exec fails.
    let sessions = kernel.time().sessions();
    sessions.interrupt(tid);
    let signal = match tracing::wait_any() {
        Ok((now, Stop::Exec)) => {
            let (former, tid) = (tid, now);
            sessions.renamed(former, Some(tid));
            if kernel.paths().is_some_and(|paths| paths.forbids_running(tid)) {
                // It has not run an instruction, and will not: it can be let go after that.
                let _ = process::signal_thread(tid, libc::SIGKILL);
            } else if kernel.features().contains(Features::VIRTUAL_TIME) {
                give_clock(kernel, tid);
            }
            return sessions.let_go(tid, 0);
        }
        Ok((_, Stop::Signal(signal))) => signal,
        Ok((_, Stop::Event | Stop::Call)) => 0,
        Ok((_, Stop::Gone)) | Err(_) => return sessions.renamed(tid, None),
    };
    sessions.let_go(tid, signal);
}

/// Changes a program that has been executed and is stopped before its first instruction.
fn give_clock(kernel: &Kernel, tid: i32) {
    let keeper = kernel.time().keeper();
    let begin = kernel.randomness().map(|it| it.executed(kernel, tid)).transpose();
    let was_set = keeper.generation() > 0;
    let done = begin.and_then(|begin| {
        let patch = kernel.time().patch(begin).map_err(|_| Errno::ENOSYS)?;
        patch.map_or(Ok(()), |patch| patch.apply(tid, Duration::ZERO))
    });
    match done {
        // Set in between: whoever tells all programs of that may have come to this one too early.
        Ok(()) if !was_set && keeper.generation() > 0 => kernel.tell_of_clock(tid),
        // It has been killed.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(_) => {
            kernel.let_through(tid, WHAT, "its file may be executed and not read", REMEDY);
        }
    }
}

/// Has every running program ask the sentry for the time of day from here on: the clock was set. Once is enough:
/// what is executed later does so from its beginning.
///
/// One word of each process changes, so it does not matter when. A process that is forked meanwhile
/// from one not yet told is found by looking once more, until nobody new is there.
pub(super) fn tell_of_setting(kernel: &Kernel, caller: i32) {
    // (Who sets it meanwhile waits, and finds its own program told.)
    kernel.time().told.get_or_init(|| tell_all(kernel, caller));
}

fn tell_all(kernel: &Kernel, caller: i32) {
    const MOST_LOOKS: usize = 100;
    let mut told = HashSet::new();
    for _ in 0..MOST_LOOKS {
        let Ok(members) = kernel.members() else {
            return kernel.let_through(caller, WHAT, "the programs cannot be listed", REMEDY);
        };
        let new: Vec<i32> =
            members.iter().map(|it| it.pid).filter(|pid| told.insert(*pid)).collect();
        if new.is_empty() {
            return;
        }
        new.into_iter().for_each(|pid| kernel.tell_of_clock(pid));
    }
    kernel.let_through(caller, WHAT, "more programs are made than can be told", REMEDY);
}

impl Kernel {
    /// The program `pid` (as the host numbers it) may know the clock as it was when the sandbox began: if it was set
    /// since, the program asks the sentry from here on.
    pub fn tell_of_clock(&self, pid: i32) {
        let time = self.time();
        if time.keeper().generation() == 0 {
            return;
        }
        let Some(offset) = time.trapped() else { return };
        let trapped = time.keeper().numbers(0).trapped;
        // Its memory is another one's while it executes a program, which is told by who follows that.
        let told = (0..3).any(|_| tell(pid, offset, trapped).is_ok());
        if !told && Stat::read(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X')) {
            self.let_through(pid, WHAT, "its memory cannot be changed", REMEDY);
        }
    }
}

fn tell(pid: i32, offset: u64, trapped: u32) -> Result<(), Errno> {
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(io)?;
    let base = maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .and_then(|line| u64::from_str_radix(line.split('-').next()?, 16).ok());
    let Some(base) = base else { return Ok(()) };
    let memory = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .map_err(io)?;
    let mut known = [0; 4];
    memory.read_exact_at(&mut known, base + offset).map_err(io)?;
    // A program that was never given the sandbox's clock has nothing there.
    if u32::from_ne_bytes(known) != 0 {
        memory.write_all_at(&trapped.to_ne_bytes(), base + offset).map_err(io)?;
    }
    Ok(())
}
