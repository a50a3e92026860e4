//! The clocks of one sandbox: REALTIME, MONOTONIC and BOOTTIME.
//!
//! Each is a [`Clock`] over the clock of the same name as the guest's kernel has it, that is, in the
//! guest's time namespace. It reads the host's clocks and keeps what the guest's own root sets; it
//! does not know which calls ask.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::time::{ClockId, clock_gettime};

use super::SECOND;
use super::clock::{Clock, Pace, Rate, split};
use super::spec::{Start, TimeSpec};
use crate::sys::vdso::{Line, Numbers};

mod saved;

pub use saved::{Passed, SavedClocks};

/// The clocks that a guest can have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockKind {
    /// The time of day.
    Realtime,
    /// The time since the sandbox started.
    Monotonic,
    /// The same with the time that the machine was suspended.
    Boottime,
}

impl ClockKind {
    /// Which of them a `clockid_t` reads (clock_gettime(2)); CPU clocks are none of them.
    pub fn of(id: i32) -> Option<ClockKind> {
        match id {
            libc::CLOCK_REALTIME
            | libc::CLOCK_REALTIME_COARSE
            | libc::CLOCK_REALTIME_ALARM
            | libc::CLOCK_TAI => Some(ClockKind::Realtime),
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => {
                Some(ClockKind::Monotonic)
            }
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Some(ClockKind::Boottime),
            _ => None,
        }
    }
}

/// What the guest's time namespace adds to the host's clocks (time_namespaces(7)), in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespace {
    /// To MONOTONIC.
    pub monotonic: i64,
    /// To BOOTTIME.
    pub boottime: i64,
}

impl Namespace {
    /// One whose clocks start now, with BOOTTIME, the guest's uptime, at zero. The same offset goes
    /// for all monotonic clocks, which have drifted apart: the hindmost starts at zero, so that none
    /// is ever negative.
    pub fn starting_now() -> Namespace {
        let monotonic = [
            ClockId::CLOCK_MONOTONIC_RAW,
            ClockId::CLOCK_MONOTONIC_COARSE,
            ClockId::CLOCK_MONOTONIC,
        ];
        let hindmost = monotonic.map(read).into_iter().fold(i64::MAX, i64::min);
        Namespace { monotonic: -hindmost, boottime: -read(ClockId::CLOCK_BOOTTIME) }
    }

    /// One whose clocks stand at these values now; that of MONOTONIC that goes by ticks and lags does, so that it does
    /// not run backwards.
    pub fn standing_at(monotonic: i64, boottime: i64) -> Namespace {
        let tick = read(ClockId::CLOCK_MONOTONIC_COARSE);
        let lag = read(ClockId::CLOCK_MONOTONIC) - tick;
        Namespace {
            monotonic: monotonic.saturating_sub(tick),
            boottime: boottime.saturating_sub(read(ClockId::CLOCK_BOOTTIME) - lag),
        }
    }

    /// The lines of `/proc/self/timens_offsets`.
    pub fn offsets(&self) -> String {
        let line = |name, offset| {
            let (seconds, nanoseconds) = split(offset);
            format!("{name} {seconds} {nanoseconds}\n")
        };
        line("monotonic", self.monotonic) + &line("boottime", self.boottime)
    }
}

/// The clocks of one sandbox.
#[derive(Debug)]
pub struct Timekeeper {
    /// Immutable.
    pace: Pace,
    /// Immutable.
    namespace: Namespace,
    /// Immutable.
    monotonic: Clock,
    /// Immutable.
    boottime: Clock,
    /// What was there before the run is shown as no newer than this; `None`: as it is. Immutable.
    newest: Option<i64>,
    /// A leaf of the lock order.
    realtime: Mutex<Realtime>,
    /// Grows whenever the time of day is set.
    generation: AtomicU64,
}

/// Protected by `Timekeeper::realtime`.
#[derive(Debug)]
struct Realtime {
    /// The clock.
    current: Clock,
    /// What files were stamped by: this clock and those before it, each from a moment of the host on; never
    /// empty. The first begins with the sandbox. `None`: the sandbox lay in an image.
    clocks: Vec<(i64, Option<Clock>)>,
    /// While updates are paused: the moment of the host that all clocks stand at.
    held: Option<Held>,
}

impl Realtime {
    fn push(&mut self, from: i64, clock: Clock) {
        if self.clocks.len() >= MOST_CLOCKS {
            self.clocks.remove(1);
        }
        self.clocks.push((from, Some(clock)));
        self.current = clock;
    }

    /// The clock of the sandbox at a moment of the host, if it was there then.
    fn stamped_by(&self, host: i64) -> Option<Clock> {
        self.clocks.iter().rev().find(|(from, _)| *from <= host)?.1
    }
}

#[derive(Debug, Clone, Copy)]
struct Held {
    realtime: i64,
    monotonic: i64,
    boottime: i64,
}

/// Nanoseconds, see [`Timekeeper::repeating`]. Long enough for what programs do first on a busy machine; who waits
/// by the clock in a program's first moments waits for up to two seconds longer than that.
const STANDING: i64 = SECOND;

/// A guest that sets its clock over and over forgets how its oldest files were stamped.
const MOST_CLOCKS: usize = 1024;

impl Timekeeper {
    /// Starts the clocks that `spec` describes. Without one they are the host's.
    pub fn new(spec: Option<&TimeSpec>, namespace: Namespace) -> Timekeeper {
        // What the kernel stamps on files comes from the coarse clock, which lags by a tick
        // (ktime_get_coarse_real_ts64 in fs/inode.c): nothing inside is stamped earlier than this.
        let host = read(ClockId::CLOCK_REALTIME_COARSE);
        let hosts = TimeSpec { start: Start::Offset(0), pace: Pace::Runs(Rate::ONE) };
        let spec = spec.unwrap_or(&hosts);
        let guest = match spec.start {
            Start::Offset(offset) => host.saturating_add(offset).max(0),
            Start::At(moment) => moment,
        };
        // A frozen sandbox still waits and measures: only its time of day stands still.
        let steady = match spec.pace {
            Pace::Runs(rate) => Pace::Runs(rate),
            Pace::Frozen => Pace::Runs(Rate::ONE),
        };
        let monotonic = read(ClockId::CLOCK_MONOTONIC) + namespace.monotonic;
        let boottime = read(ClockId::CLOCK_BOOTTIME) + namespace.boottime;
        let current = Clock::new(host, guest, spec.pace);
        Timekeeper {
            pace: spec.pace,
            namespace,
            monotonic: Clock::new(monotonic, monotonic, steady),
            boottime: Clock::new(boottime, boottime, steady),
            newest: None,
            realtime: Mutex::new(Realtime {
                current,
                clocks: vec![(host, Some(current))],
                held: None,
            }),
            generation: AtomicU64::new(0),
        }
    }

    /// The same clocks for a run that is to do the same whenever it is done:
    ///
    /// - no file from before the run is newer than a second before the clock's start, whenever it was made;
    /// - MONOTONIC and BOOTTIME stand still for about [`STANDING`] at least when a program begins, with nanoseconds
    ///   that are chosen for it. From those the C library makes the first name of a temporary file (glibc
    ///   2.34 and later, sysdeps/posix/tempname.c).
    pub fn repeating(mut self) -> Timekeeper {
        let [_, start] = self.lock().current.bases();
        self.newest = Some((start - SECOND).max(0));
        self
    }

    /// Whether it is one of [`Timekeeper::repeating`].
    pub fn repeats(&self) -> bool {
        self.newest.is_some()
    }

    /// What a clock shows.
    pub fn now(&self, kind: ClockKind) -> i64 {
        let realtime = self.lock();
        self.clock(&realtime, kind).at(self.moment(&realtime, kind))
    }

    /// What the clock shows that goes by ticks (CLOCK_REALTIME_COARSE, time(2)): as programs that read it themselves
    /// see it, it lags by up to one, but not behind what the clock was set to. BOOTTIME has no such clock.
    pub fn now_by_ticks(&self, kind: ClockKind) -> i64 {
        let realtime = self.lock();
        let tick = match kind {
            ClockKind::Realtime => read(ClockId::CLOCK_REALTIME_COARSE),
            ClockKind::Monotonic => {
                read(ClockId::CLOCK_MONOTONIC_COARSE) + self.namespace.monotonic
            }
            ClockKind::Boottime => self.kernel_now(kind),
        };
        let clock = self.clock(&realtime, kind);
        let [set, _] = clock.bases();
        clock.at(tick.max(set).min(self.moment(&realtime, kind)))
    }

    /// When, on the clock of the guest's kernel, a guest's deadline is reached; not before zero,
    /// which no kernel takes.
    pub fn deadline(&self, kind: ClockKind, guest: i64) -> i64 {
        let realtime = self.lock();
        let now = self.kernel_now(kind);
        self.clock(&realtime, kind).reaches(guest, now).max(0)
    }

    /// How long the host takes for a span of the guest.
    pub fn host_span(&self, span: i64) -> i64 {
        self.rate().to_host(span)
    }

    /// What passes for the guest in a span of the host.
    pub fn guest_span(&self, span: i64) -> i64 {
        self.rate().to_guest(span)
    }

    /// What is shown for a stamp of a file: what the guest's clock showed then, if that was during this
    /// run; `None` for a stamp from elsewhere, which is shown as it is, or as [`Timekeeper::repeating`] says.
    pub fn file_time(&self, host: i64) -> Option<i64> {
        let made = self.run_time(host);
        made.or_else(|| self.newest.filter(|newest| host > *newest && !self.is_of_run(host)))
    }

    /// Whether a stamp is from this run.
    pub fn is_of_run(&self, host: i64) -> bool {
        host <= read(ClockId::CLOCK_REALTIME) && self.lock().stamped_by(host).is_some()
    }

    fn run_time(&self, host: i64) -> Option<i64> {
        let realtime = self.lock();
        let now = read(ClockId::CLOCK_REALTIME);
        let clock = realtime.stamped_by(host)?;
        (host <= now && !clock.is_hosts()).then(|| clock.at(host))
    }

    /// The same for the time of the last access to a file that was changed at `changed`. When a kernel notes
    /// that depends on when it has done so before (relatime, mount(8)), so where runs are to repeat it is
    /// shown as not later than the change.
    pub fn access_time(&self, host: i64, changed: i64) -> Option<i64> {
        let shown = self.file_time(host)?;
        let Some(newest) = self.newest else { return Some(shown) };
        Some(shown.min(self.file_time(changed).unwrap_or(newest)))
    }

    /// Sets the time of day, which goes on at the same pace.
    pub fn set(&self, guest: i64) {
        let mut realtime = self.lock();
        let host = self.moment(&realtime, ClockKind::Realtime);
        // A file stamped right after this carries the last tick's time (see `new`).
        let from = read(ClockId::CLOCK_REALTIME_COARSE);
        realtime.push(from, Clock::new(host, guest, self.pace));
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the time of day on by a second, if it stands still and runs are to repeat; a guest is about to
    /// sleep for half a second or more.
    ///
    /// A file that was stamped until now, or in this tick, is older; what the guest makes when it has slept is
    /// newer.
    pub fn step(&self) -> bool {
        const SETTLED: i64 = SECOND / 4;
        if !self.repeats() || self.pace != Pace::Frozen {
            return false;
        }
        let mut realtime = self.lock();
        let [host, guest] = realtime.current.bases();
        let from = read(ClockId::CLOCK_REALTIME) + SETTLED;
        realtime.push(from, Clock::new(host, guest.saturating_add(SECOND), self.pace));
        self.generation.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// What the guest's time namespace adds to the host's clocks.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// How often the time of day was set.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Holds every clock that is the sentry's own at this moment, for a pause or a save.
    pub fn pause_updates(&self) {
        let mut realtime = self.lock();
        if realtime.held.is_none() {
            realtime.held = Some(Held {
                realtime: self.kernel_now(ClockKind::Realtime),
                monotonic: self.kernel_now(ClockKind::Monotonic),
                boottime: self.kernel_now(ClockKind::Boottime),
            });
        }
    }

    /// Lets the clocks go on, where the host's have come to meanwhile.
    pub fn resume_updates(&self) {
        self.lock().held = None;
    }

    /// Whether clocks of this kind show something else than the host's.
    pub fn is_virtual(&self, kind: ClockKind) -> bool {
        match kind {
            ClockKind::Realtime => true,
            ClockKind::Monotonic | ClockKind::Boottime => self.rate() != Rate::ONE,
        }
    }

    /// What code inside a program needs to read these clocks itself. Once the clock has been set,
    /// the time of day is asked of the sentry. `nanoseconds`: those that steady clocks stand at first, where
    /// they do ([`Timekeeper::repeating`]).
    pub fn numbers(&self, nanoseconds: u32) -> Numbers {
        let ids = |wanted: &[i32]| {
            let ids = wanted.iter().filter(|id| {
                ClockKind::of(**id).is_some_and(|kind| self.is_virtual(kind) || self.repeats())
            });
            ids.fold(0u32, |ids, id| ids | 1 << id)
        };
        let set = self.generation() > 0;
        let day = ids(&[libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_COARSE]);
        let rare = ids(&[libc::CLOCK_TAI, libc::CLOCK_REALTIME_ALARM, libc::CLOCK_BOOTTIME_ALARM]);
        let steady = ids(&[
            libc::CLOCK_MONOTONIC,
            libc::CLOCK_MONOTONIC_RAW,
            libc::CLOCK_MONOTONIC_COARSE,
            libc::CLOCK_BOOTTIME,
        ]);
        let current = self.lock().current;
        let steady_rate = Pace::Runs(self.rate());
        let standing = |kind| match self.repeats() {
            true => {
                let until = self.now(kind) + STANDING - i64::from(nanoseconds);
                (until.div_euclid(SECOND) + 1) * SECOND + i64::from(nanoseconds)
            }
            false => i64::MIN,
        };
        Numbers {
            trapped: rare | if set { day } else { 0 },
            computed: steady | if set { 0 } else { day },
            original: 0,
            generation: 0,
            clocks: [
                line(current, self.pace, i64::MIN),
                line(self.monotonic, steady_rate, standing(ClockKind::Monotonic)),
                line(self.boottime, steady_rate, standing(ClockKind::Boottime)),
            ],
        }
    }

    /// How fast spans of time pass.
    pub fn rate(&self) -> Rate {
        match self.pace {
            Pace::Runs(rate) => rate,
            Pace::Frozen => Rate::ONE,
        }
    }

    fn clock(&self, realtime: &Realtime, kind: ClockKind) -> Clock {
        match kind {
            ClockKind::Realtime => realtime.current,
            ClockKind::Monotonic => self.monotonic,
            ClockKind::Boottime => self.boottime,
        }
    }

    fn moment(&self, realtime: &Realtime, kind: ClockKind) -> i64 {
        match (&realtime.held, kind) {
            (None, _) => self.kernel_now(kind),
            (Some(held), ClockKind::Realtime) => held.realtime,
            (Some(held), ClockKind::Monotonic) => held.monotonic,
            (Some(held), ClockKind::Boottime) => held.boottime,
        }
    }

    /// What the guest's kernel itself would say.
    fn kernel_now(&self, kind: ClockKind) -> i64 {
        match kind {
            ClockKind::Realtime => read(ClockId::CLOCK_REALTIME),
            ClockKind::Monotonic => read(ClockId::CLOCK_MONOTONIC) + self.namespace.monotonic,
            ClockKind::Boottime => read(ClockId::CLOCK_BOOTTIME) + self.namespace.boottime,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Realtime> {
        self.realtime.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A clock as the code in a program computes it.
fn line(clock: Clock, pace: Pace, least: i64) -> Line {
    let [host, guest] = clock.bases();
    let (guest_rate, host_rate) = match pace {
        Pace::Runs(rate) => rate.terms(),
        Pace::Frozen => (0, 1),
    };
    Line { host, guest, guest_rate: guest_rate.into(), host_rate: host_rate.into(), least }
}

/// A clock of the host. These exist on every kernel (clock_gettime(2)).
fn read(id: ClockId) -> i64 {
    clock_gettime(id).map_or(0, |time| time.tv_sec() * SECOND + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(words: &str) -> Timekeeper {
        let spec = TimeSpec::parse(&[words]).unwrap();
        Timekeeper::new(spec.as_ref(), Namespace::starting_now())
    }

    const DAY: i64 = 86_400 * SECOND;
    const HOUR: i64 = 3_600 * SECOND;

    fn host() -> i64 {
        read(ClockId::CLOCK_REALTIME)
    }

    #[test]
    fn a_moved_clock_leaves_the_others_as_they_are() {
        let keeper = keeper("+3d");
        let off = keeper.now(ClockKind::Realtime) - host();
        assert!((off - 3 * DAY).abs() < HOUR, "{off}");
        let started = keeper.now(ClockKind::Monotonic);
        assert!((0..HOUR).contains(&started), "{started}");
        let deadline = keeper.deadline(ClockKind::Realtime, host() + 3 * DAY + 5 * HOUR);
        assert!((deadline - host() - 5 * HOUR).abs() < HOUR);
        assert_eq!(keeper.host_span(7), 7);
    }

    #[test]
    fn a_frozen_clock_shows_the_same_and_waits_as_long_as_the_hosts() {
        let keeper = keeper("@1000,frozen");
        assert_eq!(keeper.now(ClockKind::Realtime), 1000 * SECOND);
        assert_eq!(keeper.now(ClockKind::Realtime), 1000 * SECOND);
        let away = keeper.deadline(ClockKind::Realtime, 1000 * SECOND + 2 * HOUR) - host();
        assert!((HOUR..3 * HOUR).contains(&away), "{away}");
        assert_eq!(keeper.file_time(host()), Some(1000 * SECOND));
        assert!(keeper.now(ClockKind::Monotonic) < HOUR);
    }

    #[test]
    fn a_rate_is_every_clocks() {
        let keeper = keeper("rate=10");
        assert_eq!((keeper.host_span(100), keeper.guest_span(10)), (10, 100));
        for kind in [ClockKind::Realtime, ClockKind::Monotonic, ClockKind::Boottime] {
            let guest = keeper.now(kind) + 10 * HOUR;
            let away = keeper.deadline(kind, guest) - keeper.kernel_now(kind);
            assert!((away - HOUR).abs() < HOUR / 2, "{kind:?} {away}");
        }
    }

    #[test]
    fn only_stamps_of_this_run_are_shown_in_its_own_time() {
        let keeper = keeper("+3d");
        let made = host();
        assert_eq!(keeper.file_time(made - DAY), None);
        assert_eq!(keeper.file_time(made + DAY), None);
        let shown = keeper.file_time(made).unwrap();
        assert!((shown - made - 3 * DAY).abs() < HOUR);
        // What was stamped in a tick before the one in which the clock was set keeps its face.
        while read(ClockId::CLOCK_REALTIME_COARSE) <= made {}
        keeper.set(5 * DAY);
        assert_eq!(keeper.file_time(made), Some(shown));
        assert!((keeper.file_time(host()).unwrap() - 5 * DAY).abs() < HOUR);
        assert_eq!(keeper.generation(), 1);
    }

    #[test]
    fn where_runs_repeat_no_file_is_newer_than_the_clock_and_steady_clocks_stand_first() {
        let keeper = keeper("@1000000,frozen").repeating();
        let (start, made) = (1_000_000 * SECOND, host());
        assert_eq!(keeper.file_time(made), Some(start));
        for other in [made - DAY, made + DAY, start + 1] {
            assert_eq!(keeper.file_time(other), Some(start - SECOND), "{other}");
        }
        assert_eq!(keeper.file_time(start - SECOND), None);
        assert_eq!(keeper.access_time(made, made), Some(start));
        assert_eq!(keeper.access_time(made, made - DAY), Some(start - SECOND));
        assert_eq!(keeper.access_time(5, made), None);
        // Who sleeps finds the time of day moved, and what was made before as it was.
        assert!(keeper.step());
        assert_eq!(keeper.now(ClockKind::Realtime), start + SECOND);
        assert_eq!(keeper.file_time(host()), Some(start));
        let now = keeper.now(ClockKind::Monotonic);
        let line = keeper.numbers(7).clocks[1];
        assert_eq!(line.least % SECOND, 7);
        assert!(
            (now + STANDING..=now + STANDING + 2 * SECOND).contains(&line.least),
            "{line:?} {now}"
        );
        assert_ne!(keeper.numbers(0).computed & 1 << libc::CLOCK_MONOTONIC, 0);
    }

    #[test]
    fn without_a_wish_every_clock_is_the_hosts() {
        let keeper = Timekeeper::new(None, Namespace::default());
        assert!((keeper.now(ClockKind::Realtime) - host()).abs() < HOUR);
        assert_eq!(keeper.file_time(host()), None);
    }

    #[test]
    fn paused_clocks_stand_and_then_stand_where_the_host_is() {
        let keeper = keeper("+3d");
        keeper.pause_updates();
        let first = keeper.now(ClockKind::Realtime);
        assert_eq!(keeper.now(ClockKind::Realtime), first);
        keeper.resume_updates();
        assert!(keeper.now(ClockKind::Realtime) > first);
    }

    #[test]
    fn ticks_lag_and_never_run_backwards() {
        let keeper = keeper("+3d");
        let mut last = 0;
        for round in 0..1000 {
            if round % 100 == 50 {
                keeper.pause_updates();
            }
            let now = keeper.now_by_ticks(ClockKind::Realtime);
            assert!((last..=keeper.now(ClockKind::Realtime)).contains(&now), "{round}");
            last = now;
            keeper.resume_updates();
        }
        keeper.set(7 * DAY);
        assert!(keeper.now_by_ticks(ClockKind::Realtime) >= 7 * DAY);
    }

    #[test]
    fn setting_without_end_forgets_the_oldest() {
        let keeper = keeper("+0s");
        (0..2 * MOST_CLOCKS as i64).for_each(|time| keeper.set(time));
        assert!(keeper.lock().clocks.len() <= MOST_CLOCKS);
    }

    #[test]
    fn offsets_of_a_namespace_are_written_with_whole_nanoseconds() {
        let namespace = Namespace { monotonic: -1_500_000_000, boottime: 7 };
        assert_eq!(namespace.offsets(), "monotonic -2 500000000\nboottime 0 7\n");
    }
}
