//! One guest clock: a pure function of a clock of the host.
//!
//! All times are nanoseconds since the host clock's own zero. Arithmetic is done in 128 bits and
//! clamped to what a `timespec` of a real kernel can hold, so that no value of a guest overflows.

use super::SECOND;

/// How many seconds of the guest pass while how many of the host do; in lowest terms, neither zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    guest: u32,
    host: u32,
}

impl Rate {
    /// As fast as the host.
    pub const ONE: Rate = Rate { guest: 1, host: 1 };

    /// `guest` seconds pass while `host` do. `None` if one of them is zero.
    pub fn new(guest: u32, host: u32) -> Option<Rate> {
        let divisor = gcd(guest, host);
        (guest > 0 && host > 0).then(|| Rate { guest: guest / divisor, host: host / divisor })
    }

    /// Guest and host seconds.
    pub fn terms(self) -> (u32, u32) {
        (self.guest, self.host)
    }

    /// What passes for the guest in `span` of the host, rounded down.
    pub fn to_guest(self, span: i64) -> i64 {
        clamp((i128::from(span) * i128::from(self.guest)).div_euclid(i128::from(self.host)))
    }

    /// How long the host takes for `span` of the guest, rounded up: never less than was asked for.
    pub fn to_host(self, span: i64) -> i64 {
        clamp(-((-i128::from(span) * i128::from(self.host)).div_euclid(i128::from(self.guest))))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.guest) / f64::from(self.host))
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

/// The largest time that is ever given: KTIME_MAX (include/linux/ktime.h).
fn clamp(time: i128) -> i64 {
    time.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// How a clock goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At a rate.
    Runs(Rate),
    /// Not at all.
    Frozen,
}

/// A clock. Immutable: setting one makes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    host: i64,
    guest: i64,
    pace: Pace,
}

impl Clock {
    /// Shows `guest` when the host's clock shows `host`, and goes on at `pace`.
    pub fn new(host: i64, guest: i64, pace: Pace) -> Clock {
        Clock { host, guest, pace }
    }

    /// What it shows when the host's clock shows `host`. Monotone in `host`.
    pub fn at(&self, host: i64) -> i64 {
        match self.pace {
            Pace::Runs(rate) => self.guest.saturating_add(rate.to_guest(sub(host, self.host))),
            Pace::Frozen => self.guest,
        }
    }

    /// When, on the host's clock, this one reaches `guest`; rounded up. A frozen clock never moves:
    /// there a moment lies as far from `now` (of the host) as it does on the clock's face.
    pub fn reaches(&self, guest: i64, now: i64) -> i64 {
        let away = sub(guest, self.guest);
        match self.pace {
            Pace::Runs(rate) => self.host.saturating_add(rate.to_host(away)),
            Pace::Frozen => now.saturating_add(away),
        }
    }

    /// What the host's clock shows at a moment, and what this one does.
    pub(super) fn bases(&self) -> [i64; 2] {
        [self.host, self.guest]
    }

    /// Whether it shows what the host's does.
    pub fn is_hosts(&self) -> bool {
        self.pace == Pace::Runs(Rate::ONE) && self.host == self.guest
    }
}

fn sub(a: i64, b: i64) -> i64 {
    a.saturating_sub(b)
}

/// Seconds and nanoseconds, the latter from 0 up to a second.
pub(super) fn split(time: i64) -> (i64, i64) {
    (time.div_euclid(SECOND), time.rem_euclid(SECOND))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clock() -> impl Strategy<Value = Clock> {
        let rate = (1u32..1_000_000, 1u32..1_000_000)
            .prop_map(|(guest, host)| Pace::Runs(Rate::new(guest, host).unwrap()));
        let pace = prop_oneof![9 => rate, 1 => Just(Pace::Frozen)];
        let time = -4_000_000_000 * SECOND..4_000_000_000 * SECOND;
        (time.clone(), time, pace).prop_map(|(host, guest, pace)| Clock::new(host, guest, pace))
    }

    proptest! {
        #[test]
        fn never_runs_backwards(clock in clock(), a: i64, b: i64) {
            prop_assert!(clock.at(a.min(b)) <= clock.at(a.max(b)));
        }

        #[test]
        fn shows_what_it_was_set_to(clock in clock()) {
            prop_assert_eq!(clock.at(clock.host), clock.guest);
        }

        #[test]
        fn a_deadline_is_the_first_moment_at_which_the_clock_shows_it(
            clock in clock(),
            ahead in -1_000_000 * SECOND..1_000_000 * SECOND,
        ) {
            if let Pace::Runs(_) = clock.pace {
                let deadline = clock.guest + ahead;
                let when = clock.reaches(deadline, 0);
                prop_assert!(clock.at(when) >= deadline);
                prop_assert!(clock.at(when - 1) < deadline);
            } else {
                prop_assert_eq!(clock.reaches(clock.guest + ahead, 17), 17 + ahead);
            }
        }

        #[test]
        fn nothing_overflows(clock in clock(), time: i64, now: i64) {
            clock.at(time);
            clock.reaches(time, now);
        }

        #[test]
        fn a_span_is_never_cut_short(guest in 1u32.., host in 1u32.., span in 0i64..1 << 40) {
            let rate = Rate::new(guest, host).unwrap();
            let there = rate.to_host(span);
            prop_assert!(there == i64::MAX || rate.to_guest(there) >= span);
        }
    }

    #[test]
    fn ten_times_as_fast_and_half_as_fast() {
        let fast = Clock::new(100, 1_000, Pace::Runs(Rate::new(10, 1).unwrap()));
        assert_eq!(fast.at(107), 1_070);
        assert_eq!(fast.reaches(1_071, 0), 108);
        let slow = Clock::new(100, 1_000, Pace::Runs(Rate::new(2, 4).unwrap()));
        assert_eq!(slow.at(107), 1_003);
        assert_eq!(slow.reaches(1_003, 0), 106);
        assert_eq!(Rate::new(0, 1), None);
        assert_eq!(Rate::new(1, 2).unwrap().to_string(), "0.5");
    }

    #[test]
    fn only_an_unmoved_clock_at_rate_one_is_the_hosts() {
        assert!(Clock::new(5, 5, Pace::Runs(Rate::ONE)).is_hosts());
        assert!(!Clock::new(5, 6, Pace::Runs(Rate::ONE)).is_hosts());
        assert!(!Clock::new(5, 5, Pace::Frozen).is_hosts());
    }
}
