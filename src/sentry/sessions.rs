//! Threads that are traced for the time of one call, each by a thread of the sentry.
//!
//! Such a thread runs no instruction of its program before its session lets it go: so in a pause it is
//! enough that no session does. Owns which threads these are, whether they are held, and what to think
//! of one that cannot be traced; the sessions are those of [`super::remake`] and [`super::vdso`].

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::call::Call;
use crate::sys::generated;
use crate::sys::nudge::Nudged;
use crate::sys::tracing::{self, Stop};

/// The sessions of one sandbox.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// A leaf of the lock order. A thread is let go under it, so that it is either held or free.
    inner: Mutex<Inner>,
    /// Signalled when `held` ends, and when a thread is asked to stop or has no session any more.
    changed: Condvar,
}

/// Protected by `Sessions::inner`.
#[derive(Debug, Default)]
struct Inner {
    /// The threads, and whether their stop has been asked for.
    threads: HashMap<i32, bool>,
    held: bool,
    /// The threads that wait in a call which is made again, and what waits for each.
    waits: HashMap<i32, Nudged>,
    /// They are let go at once, and none begins.
    yields: bool,
}

/// Why a thread that has made a call gets no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unseized {
    /// It waits for no answer any more: it was killed.
    Ended,
    /// A thread of the sentry traces it: for an exec that has failed, after which it came to this call
    /// before it stopped, or for a pause.
    Sentry,
    /// Init, or a keeper that init has made, gives the clock to the programs that it starts itself.
    Init,
    /// A debugger inside traces it, or it may not be traced.
    Guest,
    /// The host cannot do it now, for lack of memory, say.
    Host,
}

/// How often is looked whether a thread that is held in a pause was killed. No descriptor tells that of
/// one thread before Linux 6.9 (PIDFD_THREAD).
const LOOK: Duration = Duration::from_millis(100);

/// For a thread that does not leave its call (it waits for a disk, say).
const LONGEST_YIELD: Duration = Duration::from_secs(1);

/// How long until those are nudged once more that still wait.
const SHORTEST_NUDGE: Duration = Duration::from_millis(1);

/// So often a thread that nobody traces is tried: its tracer may just have let it go.
const TRIES: u32 = 100;

impl Sessions {
    /// Begins to trace the thread of a call.
    pub(super) fn seize(&self, call: &Call<'_>) -> Result<(), Unseized> {
        let tid = call.received().tid;
        for _ in 0..TRIES {
            match tracing::seize(tid) {
                // (A thread that has taken the number of one that died meanwhile is let go again.)
                Ok(()) => {
                    self.lock().threads.insert(tid, false);
                    return Ok(());
                }
                Err(Errno::ESRCH) => return Err(Unseized::Ended),
                // EPERM is said of one that is about to end, too (ptrace_attach in kernel/ptrace.c).
                Err(_) if !call.trapped().is_valid() => return Err(Unseized::Ended),
                Err(Errno::EPERM) => {}
                Err(_) => return Err(Unseized::Host),
            }
            if let Some(tracer) = tracer_of(tid, call.kernel.init_pid()) {
                return Err(tracer);
            }
        }
        Err(Unseized::Guest)
    }

    /// The same for a call that is to be made again: none begins while all are given up.
    pub(super) fn seize_to_remake(&self, call: &Call<'_>) -> Result<(), Unseized> {
        let yields = self.lock().yields;
        if yields { Err(Unseized::Sentry) } else { self.seize(call) }
    }

    /// Asks a traced thread to stop when it next leaves the kernel.
    pub(super) fn interrupt(&self, tid: i32) {
        let mut inner = self.lock();
        // An error: it has been killed.
        let _ = tracing::interrupt(tid);
        inner.threads.insert(tid, true);
        self.changed.notify_all();
    }

    /// Makes sure that the thread of a call, which the sentry traces for another reason
    /// ([`Unseized::Sentry`]), has been asked to stop, and so stops when the call is answered. `false`:
    /// it is not traced any more.
    pub(super) fn await_interrupt(&self, call: &Call<'_>) -> bool {
        let tid = call.received().tid;
        let mut inner = self.lock();
        while inner.threads.get(&tid) == Some(&false) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        // (It waits for the answer to this call: its session cannot have seen it stop.)
        if inner.threads.contains_key(&tid) {
            return true;
        }
        drop(inner);
        // A pause traces it, and may not have come to asking it.
        let asked =
            call.kernel.tracer().run(move |tracees| tracees.trace(tid).is_ok() && tracees.ask(tid));
        asked.unwrap_or(false)
    }

    /// Lets a stopped thread go, once no pause holds it. One that was killed meanwhile has ended
    /// afterwards.
    pub(super) fn let_go(&self, tid: i32, signal: i32) {
        let mut inner = self.lock();
        while inner.held && !inner.yields {
            let waited = self.changed.wait_timeout(inner, LOOK);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            if tracing::any_has_ended() {
                break;
            }
        }
        inner.threads.remove(&tid);
        inner.waits.remove(&tid);
        self.changed.notify_all();
        let done = tracing::detach(tid, signal);
        drop(inner);
        if done.is_err() {
            reap();
        }
    }

    /// A thread has ended, or has another number: an exec gives it that of its process.
    pub(super) fn renamed(&self, tid: i32, now: Option<i32>) {
        let mut inner = self.lock();
        inner.threads.remove(&tid);
        inner.waits.remove(&tid);
        inner.threads.extend(now.map(|now| (now, true)));
        self.changed.notify_all();
    }

    /// The calling thread is about to wait until a call that `tid` makes again returns, which can be long.
    pub(super) fn waits(&self, tid: i32) {
        if let Ok(nudged) = Nudged::this_thread() {
            self.lock().waits.insert(tid, nudged);
        }
    }

    /// Whether a session that waits is to end its call and let the thread go.
    pub(super) fn is_to_yield(&self) -> bool {
        self.lock().yields
    }

    /// Has all that wait end their calls, as a signal would that does nothing, and let their threads go, which
    /// whoever wants them can trace then. Until [`Sessions::yield_no_more`] no call is made again. Waits for that,
    /// but not for long.
    pub(super) fn give_up_waits(&self) {
        let end = Instant::now() + LONGEST_YIELD;
        let mut inner = self.lock();
        inner.yields = true;
        self.changed.notify_all();
        let mut rest = SHORTEST_NUDGE;
        while !inner.waits.is_empty() && Instant::now() < end {
            // (Under the lock, which each of them takes before it does anything else.)
            inner.waits.values().for_each(|waits| waits.nudge());
            // One that was just about to wait has not been woken.
            let waited = self.changed.wait_timeout(inner, rest);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            rest *= 2;
        }
    }

    /// Undoes that.
    pub(super) fn yield_no_more(&self) {
        self.lock().yields = false;
    }

    /// Holds all of them, or holds them no more.
    pub(super) fn hold(&self, held: bool) {
        self.lock().held = held;
        self.changed.notify_all();
    }

    /// Whether a thread cannot run while all are held.
    pub(super) fn holds(&self, tid: i32) -> bool {
        let inner = self.lock();
        inner.held && inner.threads.contains_key(&tid)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of the thread that the calling one traces, which was killed.
///
/// A thread that is killed in a stop cannot be detached any more (ptrace_freeze_traced in
/// kernel/ptrace.c), and remains as a zombie until its tracer has waited for it. So long its process
/// has not ended for its parent (delay_group_leader in kernel/exit.c), nor does an exec in it come to
/// an end (de_thread in fs/exec.c). Any child is waited for, and not its number: an exec elsewhere in
/// the process can take that away without waking who waits for the number.
fn reap() {
    while let Ok((tid, stop)) = tracing::wait_any() {
        match stop {
            Stop::Gone => return,
            // It was not dead after all.
            _ if tracing::detach(tid, 0).is_ok() => return,
            _ => {}
        }
    }
}

/// Who traces a thread. `None`: nobody, any more.
fn tracer_of(tid: i32, init: i32) -> Option<Unseized> {
    let field = |pid: i32, name: &str| -> Option<i32> {
        let status = generated::text(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    let tracer = field(tid, "TracerPid:").filter(|tracer| *tracer != 0)?;
    if std::path::Path::new(&format!("/proc/self/task/{tracer}")).exists() {
        return Some(Unseized::Sentry);
    }
    let keeper = || field(tracer, "PPid:") == Some(init) && is_copy_of_us(tracer);
    Some(if tracer == init || keeper() { Unseized::Init } else { Unseized::Guest })
}

/// Keepers, like init, are copies of this process.
fn is_copy_of_us(pid: i32) -> bool {
    match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(program) => std::fs::read_link("/proc/self/exe").is_ok_and(|own| own == program),
        // They forbid being looked at (PR_SET_DUMPABLE), which ordinary users' programs do not.
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::spawn::kill;

    /// Traces a process, kills it while it is stopped, and gives the session up. Its parent, which is
    /// somebody else, has to hear of its end.
    #[track_caller]
    fn killed_in_a_session(sessions: &Sessions) {
        let script = "sleep 100 & echo $!; wait $!; echo $?";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = shell.spawn().unwrap();
        let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let pid = lines.next().unwrap().unwrap().parse().unwrap();
        // The thread that traces has no other child, as those of the sentry.
        let session = || {
            tracing::seize(pid).unwrap();
            sessions.interrupt(pid);
            // (Its exec may just be coming to its end.)
            while !matches!(tracing::wait_any(), Ok((_, Stop::Event))) {
                tracing::go_on(pid, 0).unwrap();
                sessions.interrupt(pid);
            }
            kill(pid, libc::SIGKILL).unwrap();
            sessions.let_go(pid, 0);
            assert_eq!(tracing::wait_any(), Err(Errno::ECHILD));
        };
        std::thread::scope(|threads| threads.spawn(session).join().unwrap());
        assert_eq!(lines.next().unwrap().unwrap(), "137");
        shell.wait().unwrap();
    }

    #[test]
    fn a_thread_that_is_killed_in_its_session_has_ended_after_it() {
        killed_in_a_session(&Sessions::default());
    }

    #[test]
    fn a_thread_that_is_killed_while_it_is_held_ends_at_once() {
        let sessions = Sessions::default();
        sessions.hold(true);
        killed_in_a_session(&sessions);
    }
}
