//! Gives programs that are executed inside the sandbox's clock.
//!
//! Owns the ptrace(2) session that lasts from an exec's trap to its end, and telling running
//! programs that the clock was set. What is written into them is `timekeeping`'s affair.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;

use super::call::Call;
use super::kernel::Kernel;
use crate::notify::{Answer, hand_over};
use crate::sys::tracing::{self, Stop};

const WHAT: &str = "the sandbox's clock";
const REMEDY: &str = "it sees the host's time; run it without --time";

/// Lets the exec go on and changes the program's vDSO before the program runs.
pub(super) fn follow_exec(call: &Call<'_>) -> Answer {
    hand_over();
    let tid = call.received().tid;
    let kernel = Arc::clone(call.kernel);
    loop {
        match kernel.time().sessions().seize(tid) {
            // (A thread that has taken the number of one that died meanwhile is let go again.)
            Ok(()) => return Answer::Continue.then(move || attend(&kernel, tid)),
            Err(Errno::EPERM) => match Tracer::of(tid, kernel.init_pid()) {
                Tracer::None if call.trapped().is_valid() => {}
                Tracer::None | Tracer::Sentry | Tracer::Init => return Answer::Continue,
                Tracer::Guest => break,
            },
            Err(_) => return Answer::Continue,
        }
    }
    kernel.refuse(tid, WHAT, "another program of the sandbox traces it", REMEDY);
    Answer::Continue
}

/// Who traces a thread.
enum Tracer {
    /// Nobody, any more.
    None,
    /// A thread of ours: an exec has failed a moment ago, and the thread came to the next one
    /// before it stopped. What attends to the former will see this one's end.
    Sentry,
    /// Init, or a keeper that init has made, gives the clock to the programs that it starts itself.
    Init,
    /// A debugger inside.
    Guest,
}

impl Tracer {
    fn of(tid: i32, init: i32) -> Tracer {
        let field = |pid: i32, name: &str| -> Option<i32> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        match field(tid, "TracerPid:") {
            None | Some(0) => Tracer::None,
            Some(tracer) if std::path::Path::new(&format!("/proc/self/task/{tracer}")).exists() => {
                Tracer::Sentry
            }
            Some(tracer) if tracer == init => Tracer::Init,
            Some(tracer) => {
                let keeper = field(tracer, "PPid:") == Some(init) && is_copy_of_us(tracer);
                if keeper { Tracer::Init } else { Tracer::Guest }
            }
        }
    }
}

/// Keepers, like init, are copies of this process.
fn is_copy_of_us(pid: i32) -> bool {
    match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(program) => std::fs::read_link("/proc/self/exe").is_ok_and(|own| own == program),
        // They forbid being looked at (PR_SET_DUMPABLE), which ordinary users' programs do not.
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// Waits for the end of the exec, whatever it is. The thread that traces is this one.
fn attend(kernel: &Kernel, tid: i32) {
    // Only now: a stop that is asked for earlier would cancel the notification where signals do.
    // It comes to pass when the call returns, that is, if the exec fails.
    let _ = tracing::interrupt(tid);
    let sessions = kernel.time().sessions();
    let signal = match tracing::wait_any() {
        Ok((now, Stop::Exec)) => {
            let (former, tid) = (tid, now);
            sessions.renamed(former, Some(tid));
            let done = kernel.time().patch().map_err(|_| Errno::ENOSYS);
            let done = done.and_then(|patch| patch.map_or(Ok(()), |patch| patch.apply(tid)));
            if done.is_err() {
                kernel.refuse(tid, WHAT, "its file may be executed and not read", REMEDY);
            }
            return sessions.let_go(tid, 0);
        }
        Ok((_, Stop::Signal(signal))) => signal,
        Ok((_, Stop::Event | Stop::Call)) => 0,
        Ok((_, Stop::Gone)) | Err(_) => return sessions.renamed(tid, None),
    };
    sessions.let_go(tid, signal);
}

/// Has every running program ask the sentry for the time of day from here on: the clock was set.
///
/// One word of each process changes, so it does not matter when. A process that is forked meanwhile
/// from one not yet told is found by looking once more, until nobody new is there.
pub(super) fn tell_of_setting(kernel: &Kernel, caller: i32) {
    let Ok(Some(patch)) = kernel.time().patch() else { return };
    let Some(offset) = patch.trapped() else { return };
    let trapped = kernel.time().keeper().numbers().trapped;
    let Ok(namespace) = std::fs::read_link(format!("/proc/{caller}/ns/pid")) else { return };
    let mut told = HashSet::new();
    const MOST_LOOKS: usize = 100;
    for _ in 0..MOST_LOOKS {
        let mut new = false;
        for pid in processes() {
            let inside = || std::fs::read_link(format!("/proc/{pid}/ns/pid"));
            if !told.contains(&pid) && inside().is_ok_and(|found| found == namespace) {
                told.insert(pid);
                new = true;
                if let Err(errno) = tell(pid, offset, trapped) {
                    ::tracing::debug!(pid, %errno, "a program was not told that the clock was set");
                }
            }
        }
        if !new {
            return;
        }
    }
}

impl Kernel {
    /// The program `pid` (as the host numbers it) was just started by a keeper, which knows the clock as
    /// it was when the sandbox began: if it was set since, the program asks the sentry from here on.
    pub fn tell_of_clock(&self, pid: i32) {
        let time = self.time();
        if time.keeper().generation() == 0 {
            return;
        }
        if let Ok(Some(offset)) = time.patch().map(|patch| patch.and_then(|it| it.trapped()))
            && let Err(errno) = tell(pid, offset, time.keeper().numbers().trapped)
        {
            ::tracing::debug!(pid, %errno, "a program was not told that the clock was set");
        }
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
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
