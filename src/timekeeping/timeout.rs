//! Timeouts as calls carry them: spans and deadlines in the structures of the kernel.

use std::time::Duration;

use super::SECOND;
use super::timekeeper::{ClockKind, Timekeeper};

/// How a timeout lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `struct timespec`.
    Timespec,
    /// `struct timeval`.
    Timeval,
    /// `struct itimerspec`: interval and value.
    Itimerspec,
    /// `struct itimerval`: interval and value.
    Itimerval,
}

impl Form {
    /// How many words.
    pub fn words(self) -> usize {
        if self.is_timer() { 4 } else { 2 }
    }

    fn unit(self) -> i64 {
        match self {
            Form::Timespec | Form::Itimerspec => 1,
            Form::Timeval | Form::Itimerval => 1000,
        }
    }

    fn is_timer(self) -> bool {
        matches!(self, Form::Itimerspec | Form::Itimerval)
    }
}

/// A timeout, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    form: Form,
    /// Of a timer that repeats.
    interval: i64,
    value: i64,
}

impl Timeout {
    /// A span in a form.
    pub fn of(form: Form, span: i64) -> Timeout {
        Timeout { form, interval: 0, value: span }
    }

    /// What lies in memory. `None`: the kernel will refuse it (timespec64_valid in
    /// include/linux/time64.h), or it is longer than can be counted, which nobody will see the end of.
    pub fn of_words(form: Form, words: &[u64]) -> Option<Timeout> {
        let pair = |at: usize| {
            let (seconds, rest) = (*words.get(at)? as i64, *words.get(at + 1)? as i64);
            if seconds < 0 || !(0..SECOND / form.unit()).contains(&rest) {
                return None;
            }
            seconds.checked_mul(SECOND)?.checked_add(rest * form.unit())
        };
        Some(match form.is_timer() {
            true => Timeout { form, interval: pair(0)?, value: pair(2)? },
            false => Timeout { form, interval: 0, value: pair(0)? },
        })
    }

    /// The words again, rounded up to the form's unit.
    pub fn words(&self) -> Vec<u64> {
        let unit = self.form.unit();
        let pair = |time: i64| {
            let whole = time.max(0).saturating_add(unit - 1) / unit;
            [(whole / (SECOND / unit)) as u64, (whole % (SECOND / unit)) as u64]
        };
        match self.form.is_timer() {
            true => [pair(self.interval), pair(self.value)].concat(),
            false => pair(self.value).to_vec(),
        }
    }

    /// For the host, a span of the guest. A timer of zero is none, so no other one becomes zero.
    pub fn span_to_host(self, time: &Timekeeper) -> Timeout {
        Timeout {
            interval: time.host_span(self.interval),
            value: time.host_span(self.value),
            ..self
        }
    }

    /// For the host, a deadline on a clock of the guest.
    pub fn deadline_to_host(self, time: &Timekeeper, clock: ClockKind) -> Timeout {
        let value = match (self.form.is_timer(), self.value) {
            (true, 0) => 0,
            (true, value) => time.deadline(clock, value).max(1),
            (false, value) => time.deadline(clock, value),
        };
        Timeout { interval: time.host_span(self.interval), value, ..self }
    }

    /// For the guest, a span of the host.
    pub fn to_guest(self, time: &Timekeeper) -> Timeout {
        Timeout {
            interval: time.guest_span(self.interval),
            value: time.guest_span(self.value),
            ..self
        }
    }

    /// A span of time that is waited for; `None`: it is none that a clock of the host comes to.
    pub fn duration(&self) -> Option<Duration> {
        u64::try_from(self.value).ok().map(Duration::from_nanos)
    }

    /// Seconds left, as alarm(2) gives them: rounded to the nearest, and not zero while there are any
    /// (alarm_setitimer in kernel/time/itimer.c).
    pub fn seconds_left(&self) -> u64 {
        let (seconds, rest) = (self.value / SECOND, self.value % SECOND);
        let up = (seconds == 0 && rest > 0) || rest >= SECOND / 2;
        (seconds + i64::from(up)) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::timekeeping::{Namespace, TimeSpec};

    fn keeper(words: &str) -> Timekeeper {
        let spec = TimeSpec::parse(&[words]).unwrap();
        Timekeeper::new(spec.as_ref(), Namespace::default())
    }

    proptest! {
        #[test]
        fn any_words_are_a_timeout_or_none_and_come_back(words: [u64; 4], timer: bool, micro: bool) {
            let form = match (timer, micro) {
                (true, true) => Form::Itimerval,
                (true, false) => Form::Itimerspec,
                (false, true) => Form::Timeval,
                (false, false) => Form::Timespec,
            };
            let small = words.map(|word| word % 1_000_000);
            let kept = Timeout::of_words(form, &small).unwrap().words();
            prop_assert_eq!(&kept[..], &small[..form.words()]);
            if let Some(timeout) = Timeout::of_words(form, &words) {
                let keeper = keeper("rate=0.001");
                timeout.span_to_host(&keeper).words();
                timeout.to_guest(&keeper).words();
                timeout.deadline_to_host(&keeper, ClockKind::Realtime).words();
            }
        }
    }

    #[test]
    fn ten_times_as_fast() {
        let keeper = keeper("rate=10");
        let second = Timeout::of_words(Form::Timespec, &[1, 5]).unwrap();
        assert_eq!(second.span_to_host(&keeper).words(), [0, 100_000_001]);
        let timer = Timeout::of_words(Form::Itimerval, &[10, 0, 0, 1]).unwrap();
        assert_eq!(timer.span_to_host(&keeper).words(), [1, 0, 0, 1]);
        assert_eq!(second.to_guest(&keeper).words(), [10, 50]);
        assert_eq!(second.seconds_left(), 1);
    }

    #[test]
    fn a_deadline_long_past_is_past_and_no_timer_is_disarmed_by_it() {
        let keeper = keeper("@4000000000");
        let past = Timeout::of_words(Form::Itimerspec, &[0, 0, 5, 0]).unwrap();
        assert_eq!(past.deadline_to_host(&keeper, ClockKind::Realtime).words(), [0, 0, 0, 1]);
        let off = Timeout::of_words(Form::Itimerspec, &[3, 0, 0, 0]).unwrap();
        assert_eq!(off.deadline_to_host(&keeper, ClockKind::Realtime).words(), [3, 0, 0, 0]);
    }
}
