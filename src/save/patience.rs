//! Waiting for what a program is about to end by itself.
//!
//! Much of what an image cannot carry is a matter of moments: an event that was not read yet, a connection
//! that was not accepted. Such a refusal ([`SaveError::Passing`]) is met with patience: the guests go on for
//! a moment, and all is tried again. Owns how long and how often. What is done meanwhile is not known here.

use std::time::{Duration, Instant};

use crate::save::error::SaveError;

/// How long a refusal may stay until it counts.
const LONGEST: Duration = Duration::from_secs(2);

/// The first moment, and the longest. What is waited for is in many places, and no descriptor tells
/// that there is nothing to be read from it any more: so it is looked at again, less and less often, since
/// every look stops the guests.
const FIRST_REST: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(128);

/// How long it has been waited.
#[derive(Debug)]
struct Patience {
    /// Since when it is refused.
    since: Option<Instant>,
    tries: u32,
    rest: Duration,
}

impl Patience {
    fn new() -> Patience {
        Patience { since: None, tries: 0, rest: FIRST_REST }
    }

    /// For how long the guests are to go on after a refusal at `now`, before which they stood still for
    /// `stood`; none if that is enough. They go on for at least as long as they stand still.
    fn next(&mut self, now: Instant, stood: Duration) -> Option<Duration> {
        self.tries += 1;
        let since = *self.since.get_or_insert(now);
        let left = LONGEST.checked_sub(now.duration_since(since)).filter(|left| !left.is_zero())?;
        let rest = self.rest.max(stood).min(left);
        self.rest = (self.rest * 2).min(LONGEST_REST);
        Some(rest)
    }

    /// The refusal, and how long it has been met.
    fn words(&self, what: &str, now: Instant) -> String {
        let time = now.duration_since(self.since.unwrap_or(now));
        format!("{what} (so it was in {} tries within {:.1} s)", self.tries, time.as_secs_f64())
    }
}

/// Tries until nothing is refused that may pass, or it stays too long. `rest` lets the guests go on for a
/// time.
pub fn patiently<T>(
    mut attempt: impl FnMut() -> Result<T, SaveError>,
    mut rest: impl FnMut(Duration) -> Result<(), SaveError>,
) -> Result<T, SaveError> {
    let mut patience = Patience::new();
    loop {
        let begun = Instant::now();
        let what = match attempt() {
            Err(SaveError::Passing(what)) => what,
            done => return done,
        };
        let now = Instant::now();
        let Some(time) = patience.next(now, now.duration_since(begun)) else {
            return Err(SaveError::refused(patience.words(&what, now)));
        };
        tracing::debug!(%what, ?time, "the save waits for it");
        rest(time).map_err(|why| SaveError::refused(format!("{what} ({why})")))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_and_end() {
        let (mut patience, begun) = (Patience::new(), Instant::now());
        let mut now = begun;
        let mut rests = Vec::new();
        while let Some(rest) = patience.next(now, Duration::ZERO) {
            rests.push(rest);
            now += rest;
        }
        assert_eq!(now - begun, LONGEST);
        assert!(rests.is_sorted_by(|a, b| a <= b || *b == *rests.last().unwrap()), "{rests:?}");
        assert_eq!(rests[..8], [1, 2, 4, 8, 16, 32, 64, 128].map(Duration::from_millis));
        assert!(patience.words("no", now).ends_with(" tries within 2.0 s)"));
    }

    #[test]
    fn who_stands_still_for_long_goes_on_for_long_and_gets_another_chance() {
        let (mut patience, now) = (Patience::new(), Instant::now());
        let long = Duration::from_millis(700);
        assert_eq!(patience.next(now, long), Some(long));
        let longer = Duration::from_secs(9);
        assert_eq!(patience.next(now + long, longer), Some(LONGEST - long));
        assert_eq!(patience.next(now + LONGEST + longer, long), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let mut tries = 0;
        let passing = patiently(
            || {
                tries += 1;
                if tries < 4 { Err(SaveError::passing("unread")) } else { Ok(tries) }
            },
            |_| Ok(()),
        );
        assert_eq!(passing.unwrap(), 4);
        let lasting = patiently(|| Err::<(), _>(SaveError::refused("a lease")), |_| panic!());
        assert_eq!(lasting.unwrap_err().to_string(), "a lease");
        let unwanted = patiently(
            || Err::<(), _>(SaveError::passing("unread")),
            |_| Err(SaveError::refused("nobody wants it")),
        );
        assert_eq!(unwanted.unwrap_err().to_string(), "unread (nobody wants it)");
    }
}
