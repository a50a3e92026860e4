//! The limits of time: `--cpu-time`, CPU time of all processes together, and `--timeout`, wall-clock
//! time of the run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::kernel::Kernel;
use crate::timekeeping::{Consumer, Reading};

/// Keeps the CPU budget of a sandbox.
#[derive(Debug)]
pub(super) struct Budget {
    kernel: Weak<Kernel>,
    soft: Duration,
    hard: Duration,
    /// SIGXCPU has been sent.
    warned: bool,
}

impl Budget {
    pub(super) fn new(kernel: Weak<Kernel>, soft: Duration, hard: Duration) -> Budget {
        Budget { kernel, soft, hard, warned: false }
    }
}

impl Consumer for Budget {
    fn look(&mut self, reading: &Reading<'_>) -> Option<Duration> {
        let kernel = self.kernel.upgrade()?;
        if reading.cpu >= self.soft && !self.warned {
            self.warned = true;
            let limit = Words(self.soft);
            kernel.limit_reached(
                "cpu-time",
                format!("{limit} were used; every process got SIGXCPU"),
                format!("the CPU time limit of {limit} was reached (--cpu-time {})", limit.flag()),
            );
            kernel.signal_everyone(libc::SIGXCPU);
        }
        if reading.cpu >= self.hard {
            // Said first: with the program's end everything may be over.
            let limit = Words(self.hard);
            kernel.limit_reached(
                "cpu-time",
                format!("{limit} were used; every process was killed"),
                format!(
                    "the hard CPU time limit of {limit} was reached and everything was killed \
                     (--cpu-time {}:{})",
                    Words(self.soft).flag(),
                    limit.flag()
                ),
            );
            let _ = kernel.kill(libc::SIGKILL);
            return None;
        }
        let next = if self.warned { self.hard } else { self.soft };
        Some(next.saturating_sub(reading.cpu))
    }
}

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

impl Kernel {
    /// Ends the sandbox when it has run for `limit`, pauses not counted. Runs until then: to be spawned.
    pub async fn keep_timeout(self: Arc<Self>, limit: Duration) {
        self.run_for(limit).await;
        let words = Words(limit);
        self.limit_reached(
            "timeout",
            format!("{words} went by; every process got SIGTERM"),
            format!("the time limit of {words} was reached (--timeout {})", words.flag()),
        );
        self.blocking(|kernel| kernel.signal_everyone(libc::SIGTERM)).await;
        self.run_for(GRACE).await;
        self.limit_reached(
            "timeout",
            format!("{} after SIGTERM something still ran; every process was killed", Words(GRACE)),
            format!(
                "something still ran {} after the time limit and was killed (--timeout {})",
                Words(GRACE),
                words.flag()
            ),
        );
        self.blocking(|kernel| {
            let _ = kernel.kill(libc::SIGKILL);
        })
        .await;
    }

    async fn blocking(self: &Arc<Self>, work: fn(&Kernel)) {
        let kernel = Arc::clone(self);
        // It is cancelled only with the whole runtime.
        let _ = tokio::task::spawn_blocking(move || work(&kernel)).await;
    }

    /// Sleeps for `duration` of time in which the sandbox was not paused.
    async fn run_for(&self, duration: Duration) {
        let mut paused = self.paused();
        let mut left = duration;
        loop {
            if *paused.borrow_and_update() {
                // The sender lives as long as `self`.
                let _ = paused.changed().await;
                continue;
            }
            let since = Instant::now();
            self.accounting.run_time.go_on(since);
            let over = tokio::select! {
                () = tokio::time::sleep(left) => true,
                _ = paused.changed() => false,
            };
            let now = Instant::now();
            self.accounting.run_time.stop(now);
            if over {
                return;
            }
            left = left.saturating_sub(now - since);
        }
    }
}

/// How long a sandbox with `--timeout` has run, pauses not counted. A leaf of the lock order.
#[derive(Debug, Default)]
pub(super) struct RunTime(Mutex<(Duration, Option<Instant>)>);

impl RunTime {
    fn go_on(&self, now: Instant) {
        self.lock().1 = Some(now);
    }

    fn stop(&self, now: Instant) {
        let (before, since) = *self.lock();
        *self.lock() = (before + since.map_or(Duration::ZERO, |since| now - since), None);
    }

    pub(super) fn until(&self, now: Instant) -> Duration {
        let (before, since) = *self.lock();
        before + since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn lock(&self) -> MutexGuard<'_, (Duration, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A duration in a sentence, and as a flag says it.
struct Words(Duration);

impl Words {
    fn flag(&self) -> String {
        self.to_string().replace(' ', "")
    }
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        if micros.is_multiple_of(1_000_000) {
            write!(f, "{} s", micros / 1_000_000)
        } else if micros.is_multiple_of(1_000) {
            write!(f, "{} ms", micros / 1_000)
        } else {
            write!(f, "{micros} us")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_the_flags_say_them() {
        let words = |ms| Words(Duration::from_millis(ms));
        assert_eq!(words(1000).to_string(), "1 s");
        assert_eq!(words(1500).flag(), "1500ms");
        assert_eq!(Words(Duration::from_micros(7)).flag(), "7us");
    }

    #[test]
    fn pauses_are_no_run_time() {
        let (time, start) = (RunTime::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(time.until(at(1)), Duration::ZERO);
        time.go_on(at(1));
        assert_eq!(time.until(at(3)), Duration::from_secs(2));
        time.stop(at(4));
        assert_eq!(time.until(at(9)), Duration::from_secs(3));
        time.go_on(at(9));
        assert_eq!(time.until(at(10)), Duration::from_secs(4));
    }

    #[test]
    fn a_budget_without_a_kernel_is_done_with() {
        let mut budget = Budget::new(Weak::new(), Duration::ZERO, Duration::ZERO);
        let reading = Reading { cpu: Duration::from_secs(1), processes: &[] };
        assert_eq!(budget.look(&reading), None);
    }
}
