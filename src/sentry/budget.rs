//! The limits of time: `--cpu-time`, CPU time of all processes together, and `--timeout`, wall-clock
//! time of the run.

use std::sync::{Arc, Weak};
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
            kernel.kill_everyone();
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
        self.blocking(Kernel::kill_everyone).await;
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
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                _ = paused.changed() => left = left.saturating_sub(since.elapsed()),
            }
        }
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
    fn a_budget_without_a_kernel_is_done_with() {
        let mut budget = Budget::new(Weak::new(), Duration::ZERO, Duration::ZERO);
        let reading = Reading { cpu: Duration::from_secs(1), processes: &[] };
        assert_eq!(budget.look(&reading), None);
    }
}
