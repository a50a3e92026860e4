//! Stopping every guest thread, and letting all go on.
//!
//! Owns the order of a pause: wait until no program is being started ([`super::starts`]), trace all
//! guest threads and ask each to stop (a sweep through /proc, [`super::sweep`], on the thread of
//! [`super::tracer`]), back out the calls that hold them up ([`crate::notify::Gate`]: after the stop
//! was asked for, never before), wait until all have stopped, and begin anew until a sweep, during
//! which all stand still, meets nothing new. Then there is nothing else.
//!
//! What counts as stopped, beside a thread that ptrace has stopped: the parent in a vfork(2), which
//! the kernel keeps until its child, which is stopped, executes or ends; and a thread that another
//! guest traces (a debugger inside) and has stopped, as long as that tracer is stopped itself. None
//! of them can run an instruction of its program. Anything else that does not stop fails the pause,
//! and all go on: all or nothing.
//!
//! The freezer cgroup is not used: few users have it, and what it has frozen returns EINTR from
//! epoll_wait(2) and its like afterwards. What a stop by ptrace would end so is made again
//! ([`super::rewind`]).
//!
//! Everything here blocks, and a parked call is backed out by the runtime: never call it on a thread
//! that the runtime needs (use `spawn_blocking`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::sync::watch;

use super::events::Event;
use super::kernel::Kernel;
use super::kernel_error::KernelError;
use super::stat::Stat;
use super::task::Status;
use super::tracer::{Tracees, Tracer};
use crate::notify::Gate;
use crate::sys::process;

/// The state of pausing.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Outermost in the lock order: held while all are stopped or let go.
    depth: Mutex<Depth>,
    /// Whether somebody has asked for a pause and has it. Written under `depth`.
    paused: watch::Sender<bool>,
    tracer: Tracer,
    /// Backs calls out. Set once, when notifications begin to be received.
    gate: OnceLock<Arc<Gate>>,
}

/// Protected by `Pause::depth`.
#[derive(Debug, Default)]
struct Depth {
    /// How often [`Kernel::pause`] is in effect.
    asked: u32,
    /// How often all had to be stopped for a moment, by the kernel itself; nobody is told.
    own: u32,
    /// How many tasks were stopped.
    tasks: u64,
    /// How many of them the kernel keeps in vfork(2).
    in_vfork: usize,
    /// How many of them a session of the sentry's holds.
    in_session: usize,
    /// The processes that were found, and maybe keepers, by their numbers for the host.
    found: Vec<i32>,
    /// When the first may have stopped.
    since: Option<Instant>,
}

/// A task that does not stop in this time (it waits for a dead file server, say) fails the pause.
const LONGEST_STOP: Duration = Duration::from_secs(10);

/// What makes processes all the time may be stopped late where hundreds of them want a CPU.
const LONGEST_STORM: Duration = Duration::from_secs(30);

/// A task that may not be traced for this time fails the pause: all others stand still meanwhile.
const LONGEST_REFUSAL: Duration = Duration::from_secs(1);

/// The longest rest between two attempts to find all outside vfork(2).
const LONGEST_VFORK: Duration = Duration::from_millis(256);

/// When it is first looked at what keeps the last ones from stopping, and how long at most until the
/// next look. No descriptor tells that a task sits in vfork(2).
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(20);

impl Kernel {
    /// What backs calls out; once.
    pub fn set_gate(&self, gate: Arc<Gate>) {
        // A second one would be a second engine, which a kernel does not have.
        let _ = self.pausing.gate.set(gate);
    }

    /// What backs calls out, once there is one.
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.pausing.gate.get()
    }

    /// Stops every guest thread and gives their number; returns when the last has stopped. Pauses
    /// nest: each needs its own [`Kernel::unpause`]. An error: all go on.
    pub fn pause(&self) -> Result<u64, KernelError> {
        let mut depth = self.pausing.lock();
        self.stop_if_first(&mut depth)?;
        depth.asked += 1;
        if depth.asked == 1 {
            self.pausing.paused.send_replace(true);
            self.emit(&Event::Paused { tasks: depth.tasks });
        }
        Ok(depth.tasks)
    }

    /// The same at a moment when none sits in vfork(2) or is traced by the sentry for the time of an exec, if
    /// one comes soon: such a thread cannot be looked at by the pause's tracer. Else, and where a pause is in
    /// effect already, as [`Kernel::pause`] does. Those that are traced while they wait in a call are let go for
    /// that ([`super::sessions`]). Gives what `before` found just before all were stopped.
    pub fn pause_outside_vfork<B>(
        &self,
        mut before: impl FnMut() -> Result<B, KernelError>,
    ) -> Result<B, KernelError> {
        let mut rest = FIRST_LOOK;
        loop {
            let found = before()?;
            self.pause_without_waits()?;
            let at_vfork = self.on_tracer(Tracees::finish_calls).inspect_err(|_| {
                let _ = self.unpause();
            })?;
            let is_over = {
                let depth = self.pausing.lock();
                let elsewhere = depth.in_vfork + at_vfork + depth.in_session;
                elsewhere == 0 || depth.asked + depth.own > 1
            };
            if is_over || rest > LONGEST_VFORK {
                return Ok(found);
            }
            self.unpause()?;
            // Nothing tells that a child has executed its program.
            std::thread::sleep(rest);
            rest *= 2;
        }
    }

    /// [`Kernel::pause`], with no thread in a session that waits.
    fn pause_without_waits(&self) -> Result<(), KernelError> {
        let sessions = self.time().sessions();
        sessions.give_up_waits();
        let paused = self.pause().and_then(|_| {
            self.stop_from_sessions().inspect_err(|_| {
                // That pause has been counted. (The first failure is the one to tell.)
                let _ = self.unpause();
            })
        });
        sessions.yield_no_more();
        paused
    }

    /// Where all stood still before the pause in effect: stops those again that sessions have let go.
    fn stop_from_sessions(&self) -> Result<(), KernelError> {
        let mut depth = self.pausing.lock();
        if depth.in_session > 0 && depth.asked + depth.own > 1 {
            let stopped = self.stop_all()?;
            *depth = Depth { asked: depth.asked, own: depth.own, since: depth.since, ..stopped };
        }
        Ok(())
    }

    /// Undoes one [`Kernel::pause`]; with the last, all go on.
    pub fn unpause(&self) -> Result<(), KernelError> {
        let mut depth = self.pausing.lock();
        depth.asked = depth.asked.checked_sub(1).ok_or(KernelError::NotPaused)?;
        let resumed = self.let_go_if_last(&depth);
        if depth.asked == 0 {
            self.pausing.paused.send_replace(false);
            self.emit(&Event::Resumed);
        }
        resumed
    }

    /// Since when all stand still, whoever stopped them.
    pub fn stopped_since(&self) -> Option<Instant> {
        let depth = self.pausing.lock();
        depth.since.filter(|_| depth.asked + depth.own > 0)
    }

    /// The processes that the pause in effect has found, by their numbers for the host, and maybe keepers.
    pub(super) fn found_by_pause(&self) -> Vec<i32> {
        self.pausing.lock().found.clone()
    }

    /// Whether a pause is in effect.
    pub fn is_paused(&self) -> bool {
        *self.pausing.paused.borrow()
    }

    /// Tells whether a pause is in effect, and when that changes.
    pub fn paused(&self) -> watch::Receiver<bool> {
        self.pausing.paused.subscribe()
    }

    /// The thread that does all ptrace work.
    pub fn tracer(&self) -> &Tracer {
        &self.pausing.tracer
    }

    /// Does `work` while no guest runs, without telling anybody of a pause.
    pub fn while_stopped<R>(
        &self,
        work: impl FnOnce() -> Result<R, KernelError>,
    ) -> Result<R, KernelError> {
        let mut depth = self.pausing.lock();
        self.stop_if_first(&mut depth)?;
        depth.own += 1;
        drop(depth);
        let done = work();
        let mut depth = self.pausing.lock();
        depth.own -= 1;
        self.let_go_if_last(&depth)?;
        done
    }

    fn stop_if_first(&self, depth: &mut Depth) -> Result<(), KernelError> {
        if depth.asked + depth.own == 0 {
            if !self.starts.close(LONGEST_STOP) {
                return Err(KernelError::Starting);
            }
            match self.stop_all() {
                Ok(stopped) => {
                    *depth = Depth { asked: depth.asked, own: depth.own, ..stopped };
                    self.time().keeper().pause_updates();
                }
                Err(error) => {
                    // The first failure is the one to tell.
                    let _ = self.let_go();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn let_go_if_last(&self, depth: &Depth) -> Result<(), KernelError> {
        if depth.asked + depth.own == 0 { self.let_go() } else { Ok(()) }
    }

    fn let_go(&self) -> Result<(), KernelError> {
        self.time().keeper().resume_updates();
        // Before any of them runs: see `Gate`.
        if let Some(gate) = self.pausing.gate.get() {
            gate.open();
        }
        self.time().sessions().hold(false);
        let done = self.on_tracer(Tracees::let_go);
        self.starts.open();
        done
    }

    /// Gives what is known of those that have stopped.
    fn stop_all(&self) -> Result<Depth, KernelError> {
        let mut family = self.family();
        family.look_around().map_err(KernelError::Census)?;
        let since = Some(Instant::now());
        self.time().sessions().hold(true);
        self.on_tracer(Tracees::hold)?;
        let deadline = Instant::now() + LONGEST_STORM;
        let mut ended = HashSet::new();
        let mut refused_since = HashMap::new();
        // Once all that are known stand still: how many of them have not stopped and need not.
        let mut excused = None;
        let mut quiet_sweeps = 0;
        loop {
            let swept;
            (family, swept) = self.on_tracer(move |tracees| {
                let swept = tracees.sweep(&mut family);
                (family, swept)
            })?;
            let swept = swept.map_err(KernelError::Census)?;
            self.back_out(&swept.running);
            let refused = self.refused(swept.refused)?;
            let all_ended = swept.ended.into_iter().chain(refused.ended);
            let any_ended = all_ended.filter(|it| ended.insert(*it)).count() > 0;
            let is_quiet = !swept.any_new && !swept.any_missed && !any_ended;
            still_free(&refused.free, &mut refused_since)?;
            if Instant::now() > deadline {
                return Err(KernelError::Storm);
            }
            if !refused.free.is_empty() {
                // Maybe its program is just being started, or its tracer about to stop.
                std::thread::sleep(FIRST_LOOK);
            }
            match excused {
                Some(excused) if is_quiet && refused.free.is_empty() => {
                    quiet_sweeps += 1;
                    if swept.in_order || quiet_sweeps == 2 {
                        let stopped = self.on_tracer(|tracees| tracees.stopped())?;
                        let tasks = (stopped + excused + refused.held) as u64;
                        let (in_vfork, in_session) = (excused, refused.in_session);
                        let found = swept.members;
                        return Ok(Depth {
                            tasks,
                            in_vfork,
                            in_session,
                            found,
                            since,
                            ..Depth::default()
                        });
                    }
                    continue;
                }
                _ => quiet_sweeps = 0,
            }
            excused = if is_quiet {
                Some(self.wait_for_stops(deadline)?)
            } else {
                // What is still to be found may keep them from a CPU: they are not waited for long.
                self.pausing.tracer.progress().wait(FIRST_LOOK).then_some(0)
            };
        }
    }

    fn back_out(&self, tids: &[i32]) {
        if let Some(gate) = self.pausing.gate.get() {
            gate.back_out(tids);
        }
    }

    /// Waits until all that were asked have stopped; gives how many of them need not.
    fn wait_for_stops(&self, latest: Instant) -> Result<usize, KernelError> {
        let deadline = Instant::now() + LONGEST_STOP;
        let mut look = FIRST_LOOK;
        loop {
            if self.pausing.tracer.progress().wait(look) {
                return Ok(0);
            }
            look = (look * 2).min(LONGEST_LOOK);
            let running = self.on_tracer(|tracees| {
                tracees.ask_all();
                tracees.running()
            })?;
            let mut excused = 0;
            let mut late = None;
            for tid in running {
                match Stat::read(tid).map(|stat| stat.state) {
                    // It has ended: its tracer hears of that when the whole process has.
                    None | Some('Z' | 'X') => {}
                    Some('D') if sits_in_vfork(tid) => excused += 1,
                    // It waits for a CPU, and stops when it has one.
                    Some('R') if Instant::now() < latest => late = late.or(Some((tid, latest))),
                    Some(_) => late = Some((tid, deadline)),
                }
            }
            match late {
                None => return Ok(excused),
                Some((task, limit)) if Instant::now() > limit => {
                    let state = Stat::read(task).map_or('?', |stat| stat.state);
                    return Err(KernelError::NotStopping { task, state, call: call(task).0 });
                }
                Some(_) => {}
            }
        }
    }

    /// What to think of those that could not be traced.
    fn refused(&self, refused: Vec<(i32, u64, Errno)>) -> Result<Refused, KernelError> {
        let mut all = Refused::default();
        for (task, start, errno) in refused {
            match Status::read(task).map(|status| (status.state, status.tracer)) {
                Err(_) | Ok((b'Z' | b'X', _)) => all.ended.push((task, start)),
                // It may have been another one's a moment ago: the next attempt tells.
                Ok((_, 0)) => all.free.push((task, KernelError::NotStoppable(task, errno))),
                // It is traced for the time of one call, and not let go from it.
                Ok(_) if self.time().sessions().holds(task) => {
                    all.held += 1;
                    all.in_session += 1;
                }
                Ok((state, tracer)) => {
                    let is_ours = self.on_tracer(move |tracees| tracees.has(tracer))?;
                    if is_ours && state == b't' {
                        all.held += 1;
                    } else {
                        all.free.push((task, KernelError::Traced { task, tracer }));
                    }
                }
            }
        }
        Ok(all)
    }

    fn on_tracer<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tracees) -> R + Send + 'static,
    ) -> Result<R, KernelError> {
        self.pausing.tracer.run(work).map_err(KernelError::Tracer)
    }
}

/// Those that could not be traced.
#[derive(Debug, Default)]
struct Refused {
    /// How many another guest holds, which is stopped itself, or a session of the sentry's.
    held: usize,
    /// How many of those a session does.
    in_session: usize,
    /// Why the others, which may run, could not.
    free: Vec<(i32, KernelError)>,
    /// Those that have ended: only the next sweep shows what they have made.
    ended: Vec<(i32, u64)>,
}

impl Pause {
    fn lock(&self) -> MutexGuard<'_, Depth> {
        self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails with what one says that could not be traced for long; `since` says for how long.
fn still_free(
    free: &[(i32, KernelError)],
    since: &mut HashMap<i32, Instant>,
) -> Result<(), KernelError> {
    since.retain(|task, _| free.iter().any(|(other, _)| other == task));
    for (task, error) in free {
        if since.entry(*task).or_insert_with(Instant::now).elapsed() > LONGEST_REFUSAL {
            return Err(*error);
        }
    }
    Ok(())
}

/// Whether a thread in an uninterruptible wait is the parent in a vfork(2).
///
/// It was asked to stop, so whatever it really waits for there, it does not run its program again
/// before it has stopped.
pub(super) fn sits_in_vfork(tid: i32) -> bool {
    let (number, argument) = call(tid);
    let flags = match number {
        #[cfg(target_arch = "x86_64")]
        Some(libc::SYS_vfork) => return true,
        Some(libc::SYS_clone) => argument,
        // They come first in struct clone_args (clone(2)).
        Some(libc::SYS_clone3) => {
            let mut flags = [0; 8];
            match process::read_memory(tid, argument, &mut flags) {
                Ok(8) => u64::from_ne_bytes(flags),
                _ => 0,
            }
        }
        _ => 0,
    };
    flags & libc::CLONE_VFORK as u64 != 0
}

/// The system call that a thread is in, if that can be read, and its first argument.
fn call(tid: i32) -> (Option<libc::c_long>, u64) {
    let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let number = words.next().and_then(|word| word.parse().ok());
    let argument = words
        .next()
        .and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
        .unwrap_or(0);
    (number, argument)
}
