//! The CPU clock's ticker: lets consumers look at the clock while something runs.
//!
//! One tick is 10 ms. The ticker runs only while it has a consumer and a process of the sandbox runs;
//! it parks one tick after the last one ran and then makes no wake-up at all. What wakes it:
//!
//! - a timer on the CPU clock of each known process (armed only while parked), which tells once the
//!   process is seen running;
//! - [`Ticker::announce`], when a process is about to be made: the new one has no timer yet.
//!
//! A process that runs for less than the host's own clock tick (1 to 4 ms) can be missed by its timer,
//! never by the clock: time that went by unnoticed is there at the next reading.
//!
//! Where a timer cannot be had (RLIMIT_SIGPENDING), the ticker does not park.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::cpu_clock::CpuClock;
use super::family::Relative;
use super::pace::{Pace, Verdict};
use crate::sys::cpu_clock::{CpuTimer, TimerSignals, wait};

/// What a consumer is shown.
#[derive(Debug)]
pub struct Reading<'r> {
    /// CPU time of all processes together.
    pub cpu: Duration,
    /// The processes, as they were when they were last looked for.
    pub processes: &'r [Relative],
}

/// Looks at the clock at each tick.
pub trait Consumer: Send {
    /// `Some`: it has to look again before the processes have used so much more (a tick at most goes
    /// by in any case). `None`: it has no more use for the clock.
    fn look(&mut self, reading: &Reading<'_>) -> Option<Duration>;
}

/// See the module. Dropping it ends its thread.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Outermost: held by whoever reads the clock, while it reads /proc.
    clock: Arc<Mutex<CpuClock>>,
    /// The thread waits without a limit.
    parked: AtomicBool,
    /// A process is about to be made.
    announced: AtomicBool,
    stopped: AtomicBool,
    /// Wakes the thread.
    nudge: EventFd,
}

impl Ticker {
    /// Starts ticking for `consumers`.
    pub fn start(
        clock: Arc<Mutex<CpuClock>>,
        consumers: Vec<Box<dyn Consumer>>,
    ) -> io::Result<Ticker> {
        let shared = Arc::new(Shared {
            clock,
            parked: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            nudge: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("ticker".into()).stack_size(512 << 10).spawn(move || {
            let ended = Worker::new(own, consumers).and_then(|mut worker| worker.work());
            if let Err(error) = ended {
                tracing::error!(%error, "the ticker has ended: limits are not looked at any more");
            }
        })?;
        Ok(Ticker { shared })
    }

    /// A process is about to be made, or something else will run that no timer watches. Cheap: it may
    /// be called for every fork.
    pub fn announce(&self) {
        self.shared.announced.store(true, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            let _ = self.shared.nudge.write(1);
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = self.shared.nudge.write(1);
    }
}

/// The ticker's thread.
struct Worker {
    shared: Arc<Shared>,
    consumers: Vec<Box<dyn Consumer>>,
    signals: TimerSignals,
    timers: HashMap<i32, (u64, CpuTimer)>,
    pace: Pace,
    cpus: u32,
}

impl Worker {
    fn new(shared: Arc<Shared>, consumers: Vec<Box<dyn Consumer>>) -> io::Result<Worker> {
        Ok(Worker {
            shared,
            consumers,
            signals: TimerSignals::of_this_thread()?,
            timers: HashMap::new(),
            pace: Pace::new(Instant::now()),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        })
    }

    fn work(&mut self) -> io::Result<()> {
        while !self.consumers.is_empty() {
            let timeout = self.pace.wait(Instant::now());
            let nudged = if timeout.is_none() {
                wait([self.shared.nudge.as_fd(), self.signals.as_fd()], None)?[0]
            } else {
                wait([self.shared.nudge.as_fd()], timeout)?[0]
            };
            if nudged {
                let _ = self.shared.nudge.read();
            }
            if self.shared.stopped.load(Ordering::SeqCst) {
                return Ok(());
            }
            if timeout.is_none() {
                self.shared.parked.store(false, Ordering::SeqCst);
                self.pace.woken(Instant::now());
            } else if self.pace.wait(Instant::now()) == Some(Duration::ZERO) {
                self.tick()?;
            }
        }
        Ok(())
    }

    fn tick(&mut self) -> io::Result<()> {
        if self.shared.announced.swap(false, Ordering::SeqCst) {
            self.pace.announce();
        }
        let (cpu, looked, wish) = {
            let shared = Arc::clone(&self.shared);
            let mut clock = lock(&shared);
            let (cpu, looked) = match clock.glance().filter(|_| !self.pace.has_to_look()) {
                Some(cpu) => (cpu, false),
                None => (clock.look()?, true),
            };
            let processes = clock.processes().to_vec();
            // A consumer may end or stop what it sees, and read the clock.
            drop(clock);
            (cpu, looked, self.show(&Reading { cpu, processes: &processes }))
        };
        let now = Instant::now();
        // In the worst case all processors run guests.
        let wish = wish.map(|left| left / self.cpus);
        if self.pace.sampled(now, cpu, looked, wish) == Verdict::Park && self.park(cpu)? {
            self.pace.parked();
        }
        Ok(())
    }

    /// The shortest wish of all consumers.
    fn show(&mut self, reading: &Reading<'_>) -> Option<Duration> {
        let mut shortest: Option<Duration> = None;
        self.consumers.retain_mut(|consumer| match consumer.look(reading) {
            Some(wish) => {
                shortest = Some(shortest.map_or(wish, |known| known.min(wish)));
                true
            }
            None => false,
        });
        shortest
    }

    /// Arms a timer for each process, unless something runs; gives whether the thread may wait now.
    fn park(&mut self, cpu: Duration) -> io::Result<bool> {
        let shared = Arc::clone(&self.shared);
        let mut clock = lock(&shared);
        if clock.look()? != cpu || clock.processes().iter().any(Relative::is_running) {
            return Ok(false);
        }
        self.signals.drain();
        let processes = clock.processes().to_vec();
        self.timers.retain(|pid, (inode, _)| {
            processes.iter().any(|process| (process.pid, process.inode) == (*pid, *inode))
        });
        for process in &processes {
            if !self.timers.contains_key(&process.pid) {
                let Ok(timer) = self.signals.timer(process.pid) else { return Ok(false) };
                self.timers.insert(process.pid, (process.inode, timer));
            }
            let (_, timer) = &self.timers[&process.pid];
            if timer.arm().is_err() {
                return Ok(false);
            }
        }
        self.shared.parked.store(true, Ordering::SeqCst);
        // What ran, was announced or came while the timers were armed.
        let same = |now: &[Relative]| {
            now.len() == processes.len()
                && now
                    .iter()
                    .all(|it| processes.iter().any(|p| (p.pid, p.inode) == (it.pid, it.inode)))
        };
        let quiet = clock.look()? == cpu
            && same(clock.processes())
            && !self.shared.announced.load(Ordering::SeqCst);
        if !quiet {
            self.shared.parked.store(false, Ordering::SeqCst);
        }
        Ok(quiet)
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, CpuClock> {
    shared.clock.lock().unwrap_or_else(PoisonError::into_inner)
}
