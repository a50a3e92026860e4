//! What an image knows of a timer of timer_create(2).

use serde::{Deserialize, Serialize};

/// A timer of timer_create(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Its id.
    pub id: i32,
    /// Clock.
    pub clock: i32,
    /// SIGEV_*.
    pub notify: i32,
    /// Signal.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread, for SIGEV_THREAD_ID.
    pub thread: i32,
    /// Interval and what remains, nanoseconds; 0: not armed.
    pub interval: u64,
    /// See above.
    pub remaining: u64,
    /// timer_getoverrun(2).
    pub overrun: i32,
    /// Its signal waits to be taken, the last one of it in the queue that it goes to, and so often it has
    /// expired since: `remaining` is until the next time, and may be longer than `interval`.
    #[serde(default)]
    pub waiting: Option<u64>,
}

impl Timer {
    /// It is on a clock that goes on by itself, unlike those that count the time of processors, which stand
    /// while everything is stopped (clock_getres(2)).
    pub fn is_on_wall_clock(&self) -> bool {
        self.clock >= 0
            && !matches!(self.clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID)
    }

    /// The thread that it tells, if it does not tell the process.
    pub fn told_thread(&self) -> Option<i32> {
        (self.notify & libc::SIGEV_THREAD_ID != 0).then_some(self.thread)
    }

    /// The set of its signal alone (sigset_t).
    pub fn signal_set(&self) -> [u8; 8] {
        (1u64 << ((self.signal as u32).wrapping_sub(1) % 64)).to_ne_bytes()
    }

    /// Whether a pending signal, a siginfo_t, is one of it (sigaction(2)).
    pub fn is_sender_of(&self, signal: &[u8]) -> bool {
        let number = |at: usize| {
            signal.get(at..at + 4).and_then(|it| it.try_into().ok()).map(i32::from_ne_bytes)
        };
        [0, 8, 16].map(number) == [self.signal, libc::SI_TIMER, self.id].map(Some)
    }
}

/// Nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// A struct itimerval or itimerspec: of parts of which a second has `second`.
pub fn times(second: u64, interval: u64, value: u64) -> Vec<u8> {
    let words = [interval / second, interval % second, value / second, value % second];
    words.map(u64::to_ne_bytes).concat()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::Timer;

    /// A timer of the monotonic clock that is not running.
    pub(crate) fn timer(id: i32) -> Timer {
        Timer {
            id,
            clock: libc::CLOCK_MONOTONIC,
            notify: libc::SIGEV_SIGNAL,
            signal: libc::SIGUSR1,
            value: 7,
            thread: 0,
            interval: 0,
            remaining: 0,
            overrun: 0,
            waiting: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::timer;
    use super::*;

    #[test]
    fn a_signal_of_a_timer_is_told_by_its_number_and_the_timers() {
        let notify = libc::SIGEV_SIGNAL | libc::SIGEV_THREAD_ID;
        let timer = Timer { notify, signal: 34, thread: 7, ..timer(3) };
        let signal = |number: i32, code: i32, id: i32| {
            let words = [number, 0, code, 0, id];
            words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()
        };
        assert!(timer.is_sender_of(&signal(34, libc::SI_TIMER, 3)));
        assert!(!timer.is_sender_of(&signal(35, libc::SI_TIMER, 3)));
        assert!(!timer.is_sender_of(&signal(34, libc::SI_QUEUE, 3)));
        assert!(!timer.is_sender_of(&signal(34, libc::SI_TIMER, 2)));
        assert!(!timer.is_sender_of(&signal(34, libc::SI_TIMER, 3)[..19]));
        assert_eq!(timer.told_thread(), Some(7));
    }

    #[test]
    fn a_timer_of_an_older_image_waits_for_nothing() {
        let older =
            [("id", 3), ("clock", 1), ("notify", 0), ("signal", 14), ("value", 0), ("thread", 0)];
        let rest = [("interval", 5), ("remaining", 4), ("overrun", 2)];
        let map: std::collections::BTreeMap<_, _> = older.into_iter().chain(rest).collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&map, &mut bytes).unwrap();
        let timer: Timer = ciborium::from_reader(&bytes[..]).unwrap();
        assert_eq!((timer.overrun, timer.waiting), (2, None));
    }
}
