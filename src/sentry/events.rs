//! What happened in the sandbox, for the log and for whoever reads events.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::log::{KernelLog, Level};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A guest made a call that is not implemented (or that no row names).
    Unimplemented {
        /// The thread, as the host numbers it.
        tid: i32,
        /// Its name.
        comm: String,
        /// The call, by name where it has one.
        call: String,
    },
    /// A call was refused.
    Refused {
        /// The thread, as the host numbers it.
        tid: i32,
        /// Its name.
        comm: String,
        /// The call.
        call: String,
        /// Why.
        reason: String,
    },
    /// The program of the run was started.
    Started {
        /// As the user named it.
        path: String,
    },
    /// A guest executes another program.
    Exec {
        /// The thread, as the host numbers it.
        tid: i32,
        /// What it executes, as it named it.
        path: String,
    },
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Event::Unimplemented { tid, comm, call } => {
                write!(f, "unimplemented: {call} by {} ({tid})", Plain(comm))
            }
            Event::Refused { tid, comm, call, reason } => {
                write!(f, "refused: {call} to {} ({tid}): {reason}", Plain(comm))
            }
            Event::Started { path } => write!(f, "started: {}", Plain(path)),
            Event::Exec { tid, path } => write!(f, "exec: {} ({tid})", Plain(path)),
        }
    }
}

/// Words that a guest chose, for a terminal: its control characters would move the cursor or forge
/// lines of the supervisor's.
struct Plain<'t>(&'t str);

impl std::fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            c if c.is_control() => write!(f, "\\x{:02x}", c as u32),
            c => f.write_char(c),
        })
    }
}

/// Writes events to the kernel log and to the tracing subscriber; those that a guest can cause at
/// will are limited to 100 a second with a burst of 1000.
#[derive(Debug)]
pub struct Events {
    /// Also printed on stderr as they happen (`-v`). Immutable.
    announce: bool,
    /// A leaf of the lock order.
    limit: Mutex<RateLimit>,
}

impl Events {
    /// Nothing has happened yet.
    pub fn new(announce: bool) -> Self {
        Events { announce, limit: Mutex::new(RateLimit::new(100, 1000)) }
    }

    /// Records `event`.
    pub fn emit(&self, log: &KernelLog, event: &Event) {
        let admitted = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admit(Instant::now())
        };
        let Some(suppressed) = admitted else { return };
        if suppressed > 0 {
            log.write(Level::Warning, &format!("{suppressed} events were suppressed"));
        }
        if self.announce {
            // Line by line as it happens; a terminal in raw mode needs the carriage return. A
            // guest that shares stderr can close its other end or make it non-blocking and fill
            // it: then there is nobody to tell, and nothing else may come of it.
            let _ = write!(std::io::stderr(), "sandbox: {event}\r\n");
        }
        tracing::info!(target: "sandbox::events", "{event}");
        let level = match event {
            Event::Started { .. } | Event::Exec { .. } => Level::Info,
            Event::Unimplemented { .. } | Event::Refused { .. } => Level::Warning,
        };
        log.write(level, &event.to_string());
    }
}

/// A token bucket.
#[derive(Debug)]
struct RateLimit {
    interval: Duration,
    burst: u32,
    tokens: u32,
    /// When `tokens` was last brought up to date; `None` until the first event.
    refilled: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    fn new(per_second: u32, burst: u32) -> Self {
        RateLimit {
            interval: Duration::from_secs(1) / per_second,
            burst,
            tokens: burst,
            refilled: None,
            suppressed: 0,
        }
    }

    /// `Some(how many were suppressed since the last admitted one)`, or `None`.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = *self.refilled.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_nanos() / self.interval.as_nanos();
        if u128::from(self.tokens) + earned >= u128::from(self.burst) {
            self.tokens = self.burst;
            self.refilled = Some(now);
        } else {
            self.tokens += earned as u32;
            self.refilled = Some(since + self.interval * earned as u32);
        }
        if self.tokens == 0 {
            self.suppressed += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_thousand_then_a_hundred_a_second() {
        let mut limit = RateLimit::new(100, 1000);
        let start = Instant::now();
        let admitted = (0..5000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(admitted, 1000);
        let later = start + Duration::from_secs(2);
        assert_eq!(limit.admit(later), Some(4000));
        let admitted = 1 + (0..5000).filter(|_| limit.admit(later).is_some()).count();
        assert_eq!(admitted, 200);
    }

    #[test]
    fn words_of_guests_cannot_steer_a_terminal_or_forge_lines() {
        let evil = || "a\n\x1b[2Jsandbox: \u{9b}5m\x7f".to_owned();
        let reason = "reason".to_owned();
        for event in [
            Event::Exec { tid: 7, path: evil() },
            Event::Started { path: evil() },
            Event::Unimplemented { tid: 7, comm: evil(), call: "call".into() },
            Event::Refused { tid: 7, comm: evil(), call: "call".into(), reason },
        ] {
            let text = event.to_string();
            assert!(!text.contains(char::is_control), "{text:?}");
            assert!(text.contains("a\\x0a\\x1b[2Jsandbox: \\x9b5m\\x7f"), "{text}");
        }
    }

    #[test]
    fn the_bucket_never_holds_more_than_a_burst_and_time_may_stand_still() {
        let mut limit = RateLimit::new(100, 1000);
        let start = Instant::now();
        assert!(limit.admit(start).is_some());
        let much_later = start + Duration::from_secs(1_000_000);
        let admitted = (0..5000).filter(|_| limit.admit(much_later).is_some()).count();
        assert_eq!(admitted, 1000);
        assert_eq!(limit.admit(start), None);
    }
}
