//! When the ticker looks: every 10 ms of a fixed grid while something runs, sooner if a consumer wishes
//! so, and not at all while nothing runs.
//!
//! Pure: it is told the time and what was seen.

use std::time::{Duration, Instant};

/// One tick.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// A consumer that wants to look at once waits so long all the same.
const SHORTEST: Duration = Duration::from_micros(200);

/// After so many ticks new processes are looked for although none was announced.
const TICKS_BETWEEN_LOOKS: u32 = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// The grid's first point.
    origin: Instant,
    /// When the next sample is due; `None`: parked.
    next: Option<Instant>,
    /// What the clock said last.
    seen: Option<Duration>,
    /// Ticks since new processes were looked for.
    since_look: u32,
    /// A look that is due because something was announced: that many ticks from now on.
    announced: u32,
}

/// What a sample means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Tick,
    /// Nothing has run since the last tick: park, if nothing is about to run.
    Park,
}

impl Pace {
    /// The first sample is due at once.
    pub(super) fn new(now: Instant) -> Pace {
        Pace { origin: now, next: Some(now), seen: None, since_look: 0, announced: 2 }
    }

    /// How long to wait; `None`: until somebody wakes the ticker.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.next.map(|next| next.saturating_duration_since(now))
    }

    /// Whether the next sample has to look for new processes.
    pub(super) fn has_to_look(&self) -> bool {
        self.announced > 0 || self.since_look >= TICKS_BETWEEN_LOOKS
    }

    /// A process is about to be made. It may not be there yet at the next tick, so two have to look.
    pub(super) fn announce(&mut self) {
        self.announced = 2;
    }

    /// The clock says `seen`, and a consumer has to look again in `wish` of wall-clock time.
    pub(super) fn sampled(
        &mut self,
        now: Instant,
        seen: Duration,
        looked: bool,
        wish: Option<Duration>,
    ) -> Verdict {
        let before = self.seen.replace(seen);
        self.since_look = if looked { 0 } else { self.since_look + 1 };
        let idle = before == Some(seen) && self.announced == 0;
        if looked {
            self.announced = self.announced.saturating_sub(1);
        }
        let grid = self.grid_after(now);
        let wished = wish.map(|wish| now + wish.max(SHORTEST));
        self.next = Some(wished.map_or(grid, |wished| wished.min(grid)));
        if idle { Verdict::Park } else { Verdict::Tick }
    }

    /// Nothing is looked at any more until [`Pace::woken`].
    pub(super) fn parked(&mut self) {
        self.next = None;
    }

    /// Something runs again: the next sample is due at the next point of the grid.
    pub(super) fn woken(&mut self, now: Instant) {
        if self.next.is_none() {
            self.next = Some(self.grid_after(now));
            self.announced = self.announced.max(1);
        }
    }

    /// The first point of the grid after `now`: ticks that were missed are not made up for, since a
    /// sample reads the clocks themselves.
    fn grid_after(&self, now: Instant) -> Instant {
        let elapsed = now.saturating_duration_since(self.origin);
        let points = elapsed.as_nanos() / TICK.as_nanos() + 1;
        self.origin + Duration::from_nanos(TICK.as_nanos() as u64 * points as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn samples_fall_on_the_grid_however_late_they_come() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.wait(start), Some(Duration::ZERO));
        pace.sampled(start + ms(1), ms(1), true, None);
        assert_eq!(pace.wait(start + ms(1)), Some(ms(9)));
        // The supervisor was starved: one sample, not a hundred.
        pace.sampled(start + ms(1003), ms(2), true, None);
        assert_eq!(pace.wait(start + ms(1003)), Some(ms(7)));
        pace.sampled(start + ms(1010), ms(3), true, None);
        assert_eq!(pace.wait(start + ms(1010)), Some(ms(10)));
    }

    #[test]
    fn a_consumer_may_look_sooner_and_never_later() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.sampled(start, ms(1), true, Some(ms(3)));
        assert_eq!(pace.wait(start), Some(ms(3)));
        pace.sampled(start, ms(2), true, Some(ms(300)));
        assert_eq!(pace.wait(start), Some(ms(10)));
        pace.sampled(start, ms(3), true, Some(Duration::ZERO));
        assert_eq!(pace.wait(start), Some(SHORTEST));
    }

    #[test]
    fn parks_one_tick_after_the_last_that_ran_and_wakes_on_the_grid() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let sample = |pace: &mut Pace, at, cpu| pace.sampled(start + ms(at), ms(cpu), true, None);
        assert_eq!(sample(&mut pace, 0, 5), Verdict::Tick);
        assert_eq!(sample(&mut pace, 10, 9), Verdict::Tick);
        assert_eq!(sample(&mut pace, 20, 9), Verdict::Park);
        pace.parked();
        assert_eq!(pace.wait(start + ms(20)), None);
        pace.woken(start + ms(74));
        assert_eq!(pace.wait(start + ms(74)), Some(ms(6)));
        assert!(pace.has_to_look());
        // Woken twice is woken once.
        pace.woken(start + ms(79));
        assert_eq!(pace.wait(start + ms(79)), Some(ms(1)));
        assert_eq!(sample(&mut pace, 80, 30), Verdict::Tick);
    }

    #[test]
    fn an_announced_process_is_looked_for_twice_before_parking() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for at in 0..2 {
            pace.sampled(start + ms(10 * at), ms(1), true, None);
        }
        assert!(!pace.has_to_look());
        pace.announce();
        assert!(pace.has_to_look());
        assert_eq!(pace.sampled(start + ms(20), ms(1), true, None), Verdict::Tick);
        assert_eq!(pace.sampled(start + ms(30), ms(1), true, None), Verdict::Tick);
        assert_eq!(pace.sampled(start + ms(40), ms(1), false, None), Verdict::Park);
        for at in 5..=TICKS_BETWEEN_LOOKS as u64 + 4 {
            assert!(!pace.has_to_look() || at > 18);
            pace.sampled(start + ms(10 * at), ms(at), false, None);
        }
        assert!(pace.has_to_look());
    }
}
