//! What the guests have used, and what they may.
//!
//! Owns the CPU clock and, where a limit needs one, the ticker; the limits as the sentry keeps or
//! reports them; and the sentences that explain at the end which limit was reached. How a limit is kept
//! stands in [`super::budget`], [`super::memory`] and [`super::pids`].

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::budget::{Budget, RunTime};
use super::events::Event;
use super::kernel::Kernel;
use super::machine::Load;
use super::measure::{Measure, Peaks};
use super::memory::{self, MemoryWatch};
use super::pids::{self, Pids, PidsLimit, PidsWatch};
use super::stats::LimitState;
use crate::sys::generated;
use crate::sys::process;
use crate::sys::spawn::CpuMask;
use crate::timekeeping::{Consumer, CpuClock, GroupClock, Relative, Ticker};

/// The limits of a run, as far as the sentry has to do with them.
#[derive(Debug, Default)]
pub struct Limits {
    /// CPU time of all processes: SIGXCPU, SIGKILL.
    pub cpu_time: Option<(Duration, Duration)>,
    /// Bytes of all processes.
    pub memory: Option<MemoryLimit>,
    /// Processes and threads.
    pub pids: Option<PidsLimit>,
    /// The processors that guests may use.
    pub cpus: Option<Vec<usize>>,
    /// A control group that counts the CPU time.
    pub cpu_clock: Option<GroupClock>,
    /// What the guests use is measured, with what lies in these directories in memory.
    pub measure: Option<Vec<PathBuf>>,
    /// All limits by name, with who keeps each: for those who ask.
    pub named: Vec<(&'static str, u64, &'static str)>,
}

/// A limit of memory.
#[derive(Debug)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// The control group that keeps it; `None`: the sentry does.
    pub group: Option<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Accounting {
    /// Outermost in the lock order: held while /proc is read. Shared with the ticker.
    pub(super) clock: Arc<Mutex<CpuClock>>,
    /// Set once, where something has to look at the clock while guests run.
    ticker: OnceLock<Ticker>,
    /// Set once. Without limits it stays empty.
    limits: OnceLock<InForce>,
    /// The most memory ever seen in use, in bytes.
    pub(super) peak_memory: AtomicU64,
    pub(super) load: Load,
    pub(super) peaks: Peaks,
    pub(super) run_time: RunTime,
    /// Immutable.
    pub(super) started: Instant,
    /// Sentences for the end. A leaf of the lock order.
    notes: Mutex<Vec<String>>,
}

/// What stays of [`Limits`]. Immutable.
#[derive(Debug)]
pub(super) struct InForce {
    cpu_mask: Option<CpuMask>,
    pub(super) cpus: Option<Vec<usize>>,
    pub(super) memory: Option<u64>,
    pub(super) memory_group: Option<memory::Group>,
    pub(super) pids: Option<Pids>,
    named: Vec<(&'static str, u64, &'static str)>,
}

impl Accounting {
    pub(super) fn new(init: i32) -> Accounting {
        Accounting {
            clock: Arc::new(Mutex::new(CpuClock::new(init))),
            ticker: OnceLock::new(),
            limits: OnceLock::new(),
            peak_memory: AtomicU64::new(0),
            load: Load::default(),
            peaks: Peaks::default(),
            run_time: RunTime::default(),
            started: Instant::now(),
            notes: Mutex::default(),
        }
    }

    pub(super) fn clock(&self) -> MutexGuard<'_, CpuClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> Option<&InForce> {
        self.limits.get()
    }
}

impl InForce {
    /// Each limit, with what is used of it where that is known.
    pub(super) fn states(&self, used: impl Fn(&str) -> Option<u64>) -> Vec<LimitState> {
        self.named
            .iter()
            .map(|(name, limit, by)| LimitState {
                name: (*name).to_owned(),
                limit: *limit,
                used: used(name),
                by: (*by).to_owned(),
            })
            .collect()
    }
}

impl Kernel {
    /// Puts limits in force. Once, before the program starts.
    pub fn limit(self: &Arc<Self>, limits: Limits) -> std::io::Result<()> {
        let Limits { cpu_time, memory, pids, cpus, cpu_clock, measure, named } = limits;
        if let Some(group) = cpu_clock {
            self.accounting.clock().use_group(group)?;
        }
        let mut consumers: Vec<Box<dyn Consumer>> = Vec::new();
        if let Some((soft, hard)) = cpu_time {
            consumers.push(Box::new(Budget::new(Arc::downgrade(self), soft, hard)));
        }
        let (bytes, group) = memory.map_or((None, None), |it| (Some(it.bytes), it.group));
        if let (Some(bytes), None) = (bytes, &group) {
            consumers.push(Box::new(MemoryWatch::new(Arc::downgrade(self), bytes)));
        }
        let watched = group.clone();
        if let Some(PidsLimit { count, group: None }) = &pids {
            consumers.push(Box::new(PidsWatch::new(Arc::downgrade(self), *count)));
        }
        let watched_pids = pids.as_ref().and_then(|it| it.group.clone());
        consumers.extend(
            measure.map(|trees| -> Box<dyn Consumer> { Box::new(Measure::new(self, trees)) }),
        );
        let cpu_mask = cpus.as_deref().map(CpuMask::new);
        // A second call would be a bug of the caller's, and changes nothing.
        let _ = self.accounting.limits.set(InForce {
            cpu_mask,
            cpus,
            memory: bytes,
            memory_group: group.map(memory::Group::new),
            pids: pids.map(Pids::new),
            named,
        });
        if let Some(group) = watched {
            memory::watch_group(self, &group)?;
        }
        if let Some(group) = watched_pids {
            pids::watch_group(self, &group)?;
        }
        if !consumers.is_empty() {
            let ticker = Ticker::start(Arc::clone(&self.accounting.clock), consumers)?;
            let _ = self.accounting.ticker.set(ticker);
        }
        Ok(())
    }

    /// A process is about to be made, or one that stood still goes on.
    pub fn note_activity(&self) {
        if let Some(ticker) = self.accounting.ticker.get() {
            ticker.announce();
        }
    }

    /// A limit was reached: an event, and a sentence that explains it at the end.
    pub fn limit_reached(&self, limit: &str, consequence: String, explanation: String) {
        self.emit(&Event::Limit { limit: limit.to_owned(), consequence });
        self.accounting.notes.lock().unwrap_or_else(PoisonError::into_inner).push(explanation);
    }

    /// Every guest has ended: notes limits of which nobody has told yet.
    pub fn look_at_limits(&self) {
        memory::final_look(self);
        self.look_at_pids_group();
    }

    /// Which limits were reached, a sentence each.
    pub fn limit_notes(&self) -> Vec<String> {
        self.accounting.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// CPU time of all guests, those that have ended included. Blocks: it reads /proc.
    pub fn cpu_time(&self) -> Duration {
        self.accounting.clock().look().unwrap_or_default()
    }

    /// The guests have used so much before, elsewhere.
    pub fn begin_cpu_time_at(&self, before: Duration) {
        self.accounting.clock().begin_at(before);
    }

    /// The processors that guests may use, if that is limited.
    pub(super) fn allowed_cpus(&self) -> Option<&CpuMask> {
        self.accounting.limits()?.cpu_mask.as_ref()
    }

    /// Sends a signal to the guests among `processes`, once to each that is still there.
    pub(super) fn signal_relatives(&self, processes: &[Relative], signal: i32) -> usize {
        let mut sent = 0;
        for relative in processes.iter().filter(|it| !self.is_keeper(it.pid)) {
            // Opened first, looked up afterwards: the number was the same process's all the while.
            let Ok(pidfd) = process::pidfd_open(relative.pid, false) else { continue };
            if relative.is_still_there() && relative.state != 'Z' {
                sent += usize::from(process::pidfd_send_signal(pidfd.as_fd(), signal).is_ok());
            }
        }
        sent
    }

    /// Sends a signal to every guest, also to those that are made meanwhile. Blocks.
    pub(super) fn signal_everyone(&self, signal: i32) {
        let found = {
            let mut clock = self.accounting.clock();
            let _ = clock.look();
            clock.processes().to_vec()
        };
        self.signal_relatives(&found, signal);
    }
}

impl Kernel {
    /// The thread that the guest numbers `guest_tid`, as the host does; `caller` is looked at first.
    pub(super) fn find_thread(&self, caller: i32, guest_tid: i32) -> Option<i32> {
        if guest_tid_of(caller) == Some(guest_tid) {
            return Some(caller);
        }
        let processes = {
            let mut clock = self.accounting.clock();
            clock.look().ok()?;
            clock.processes().to_vec()
        };
        processes.iter().filter(|it| !self.is_keeper(it.pid)).find_map(|process| {
            super::census::numbers(&format!("/proc/{}/task", process.pid))
                .ok()?
                .find(|tid| guest_tid_of(*tid) == Some(guest_tid))
        })
    }
}

/// A thread's number in its own, innermost pid namespace (proc_pid_status(5), NSpid).
fn guest_tid_of(tid: i32) -> Option<i32> {
    let text = generated::text(format!("/proc/{tid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}
