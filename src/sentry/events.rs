//! What happened in the sandbox, for the log and for whoever reads events.
//!
//! An event has a stable name and stable fields (docs/control.md); as JSON it is one object with `time`,
//! `event` and those fields.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::kernel::FIRST_CONTAINER;
use super::log::{KernelLog, Level};

/// Something that happened. Numbers of threads and processes are the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A guest made a call that is not implemented (or that no row names).
    Unimplemented {
        /// The thread.
        tid: i32,
        /// Its name.
        comm: String,
        /// The call, by name where it has one.
        call: String,
    },
    /// Events that guests can cause at will came too fast: so many were left out.
    Suppressed {
        /// How many.
        count: u64,
    },
    /// A call was refused: the first of its kind.
    Refused {
        /// The thread.
        tid: i32,
        /// Its name.
        comm: String,
        /// The call.
        call: String,
        /// Why.
        reason: String,
    },
    /// A guest has begun to connect to a host that may be reached, or to send it datagrams.
    Connected {
        /// The thread.
        tid: i32,
        /// Its name.
        comm: String,
        /// The address, with its port.
        address: String,
        /// `tcp` or `udp`.
        transport: String,
        /// What the address is known by, if anything.
        name: Option<String>,
    },
    /// It is asked whether a guest may do what no rule names (`--ask`).
    Asked {
        /// By which the question is answered.
        number: u64,
        /// The thread that was the first to ask; 0 where nobody knows.
        tid: i32,
        /// Its name.
        comm: String,
        /// What it wants to do.
        what: String,
    },
    /// Such a question is closed.
    Answered {
        /// Which.
        number: u64,
        /// What it was about.
        what: String,
        /// `once`, `always`, `no`, `never`; `nobody` was there to answer; `withdrawn` by who had asked.
        answer: String,
        /// Who has answered: `terminal`, `control`; empty: nobody.
        by: String,
    },
    /// A program was started by the sandbox: the run's own, or one of `sandbox exec`.
    Started {
        /// Its process; 0 where the host gave no number.
        pid: i32,
        /// As the user named it.
        path: String,
        /// The container it belongs to.
        container: String,
    },
    /// A guest executes another program.
    Exec {
        /// The thread.
        tid: i32,
        /// What it executes, as it named it.
        path: String,
    },
    /// A program that the sandbox had started has ended.
    Exited {
        /// Its process.
        pid: i32,
        /// The container it belonged to.
        container: String,
        /// Exit status; 128+N if signal N ended it.
        status: i32,
        /// CPU time of it and of the descendants it has waited for, in microseconds; of all processes
        /// where the sandbox was killed as a whole.
        cpu_us: u64,
        /// The largest resident set of one process among those, in bytes (getrusage(2), ru_maxrss); 0
        /// where the sandbox was killed as a whole.
        peak_memory: u64,
    },
    /// Every task has stopped.
    Paused {
        /// How many.
        tasks: u64,
    },
    /// The tasks go on.
    Resumed,
    /// A limit of the run was reached.
    Limit {
        /// Which, as its flag names it: `cpu-time`, `timeout`, `memory`, `pids`, `net-total`.
        limit: String,
        /// What that meant, in words.
        consequence: String,
    },
}

impl Event {
    /// Whether guests can cause it at will, as often as they like.
    fn is_rate_limited(&self) -> bool {
        matches!(
            self,
            Event::Unimplemented { .. }
                | Event::Refused { .. }
                | Event::Exec { .. }
                | Event::Connected { .. }
                | Event::Asked { .. }
                | Event::Answered { .. }
        )
    }

    fn level(&self) -> Level {
        match self {
            Event::Started { .. }
            | Event::Exec { .. }
            | Event::Connected { .. }
            | Event::Asked { .. }
            | Event::Answered { .. }
            | Event::Exited { .. }
            | Event::Paused { .. }
            | Event::Resumed => Level::Info,
            Event::Unimplemented { .. }
            | Event::Suppressed { .. }
            | Event::Refused { .. }
            | Event::Limit { .. } => Level::Warning,
        }
    }
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since 1970, by the host's clock.
    pub time: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Event::Unimplemented { tid, comm, call } => {
                write!(f, "unimplemented: {call} by {} ({tid})", Plain(comm))
            }
            Event::Suppressed { count } => write!(f, "{count} events were suppressed"),
            Event::Refused { tid, comm, call, reason } => {
                write!(f, "refused: {call} to {} ({tid}): {reason}", Plain(comm))
            }
            Event::Connected { tid, comm, address, transport, name } => {
                let name =
                    name.as_ref().map(|name| format!(" ({})", Plain(name))).unwrap_or_default();
                write!(f, "connected: {} ({tid}) to {address}/{transport}{name}", Plain(comm))
            }
            Event::Asked { number, tid, comm, what } => {
                write!(f, "asked: {number}: {} ({tid}) wants to {}", Plain(comm), Plain(what))
            }
            Event::Answered { number, what, answer, by } if by.is_empty() => {
                write!(f, "answered: {number}: {answer}: {}", Plain(what))
            }
            Event::Answered { number, what, answer, by } => {
                write!(f, "answered: {number}: {answer}, by {by}: {}", Plain(what))
            }
            Event::Started { path, container, .. } => {
                write!(f, "started: {}{}", Plain(path), In(container))
            }
            Event::Exec { tid, path } => write!(f, "exec: {} ({tid})", Plain(path)),
            Event::Exited { pid: 0, container, status, .. } => {
                write!(f, "exited: with status {status}{}", In(container))
            }
            Event::Exited { pid, container, status, .. } => {
                write!(f, "exited: {pid} with status {status}{}", In(container))
            }
            Event::Paused { tasks } => write!(f, "paused: {tasks} tasks"),
            Event::Resumed => f.write_str("resumed"),
            Event::Limit { limit, consequence } => write!(f, "limit {limit}: {consequence}"),
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

/// The container that an event belongs to, unless that is the one that every run has.
struct In<'t>(&'t str);

impl std::fmt::Display for In<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            FIRST_CONTAINER => Ok(()),
            name => write!(f, " (container {})", Plain(name)),
        }
    }
}

/// Keeps events, gives them to those who follow, and writes them to the kernel log; those that a
/// guest can cause at will are limited to 100 a second with a burst of 1000.
#[derive(Debug)]
pub struct Events {
    /// Also printed on stderr as they happen (`-v`). Immutable.
    announce: bool,
    /// A leaf of the lock order.
    limit: Mutex<RateLimit>,
    /// The last events. A leaf of the lock order; whoever follows is told while it is held, so that a
    /// new follower misses none and gets none twice.
    recent: Mutex<VecDeque<Record>>,
    /// Made for the first follower: most runs have none, and its ring is large.
    followers: OnceLock<broadcast::Sender<Record>>,
}

/// How many past events are kept, and how far a follower may fall behind.
const KEPT: usize = 1024;

impl Events {
    /// Nothing has happened yet.
    pub fn new(announce: bool) -> Self {
        Events {
            announce,
            limit: Mutex::new(RateLimit::new(100, 1000)),
            recent: Mutex::default(),
            followers: OnceLock::new(),
        }
    }

    /// Records `event`.
    pub fn emit(&self, log: &KernelLog, event: &Event) {
        if !event.is_rate_limited() || self.admits_one(log) {
            self.record(log, event);
        }
    }

    /// Records one of the kinds of which there are only so many a second, which is not made if it is too many.
    pub fn emit_of_many(&self, log: &KernelLog, event: impl FnOnce() -> Event) {
        if self.admits_one(log) {
            self.record(log, &event());
        }
    }

    /// Whether one more is not too many; records how many were.
    fn admits_one(&self, log: &KernelLog) -> bool {
        let admitted = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admit(Instant::now())
        };
        if let Some(count @ 1..) = admitted {
            self.record(log, &Event::Suppressed { count });
        }
        admitted.is_some()
    }

    /// The last events, oldest first, and all that follow. A follower that falls too far behind loses
    /// events and is told how many.
    pub fn follow(&self) -> (Vec<Record>, broadcast::Receiver<Record>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let followers = self.followers.get_or_init(|| broadcast::Sender::new(KEPT));
        (recent.iter().cloned().collect(), followers.subscribe())
    }

    fn record(&self, log: &KernelLog, event: &Event) {
        if self.announce {
            // Line by line as it happens; a terminal in raw mode needs the carriage return. A
            // guest that shares stderr can close its other end or make it non-blocking and fill
            // it: then there is nobody to tell, and nothing else may come of it.
            let _ = write!(std::io::stderr(), "sandbox: {event}\r\n");
        }
        tracing::info!(target: "sandbox::events", "{event}");
        log.write(event.level(), &event.to_string());
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = Record { time: time.as_micros() as u64, event: event.clone() };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= KEPT {
            recent.pop_front();
        }
        if let Some(followers) = self.followers.get() {
            // Nobody may be following any more.
            let _ = followers.send(record.clone());
        }
        recent.push_back(record);
    }
}

/// A token bucket.
#[derive(Debug)]
pub(super) struct RateLimit {
    interval: Duration,
    burst: u32,
    tokens: u32,
    /// When `tokens` was last brought up to date; `None` until the first event.
    refilled: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        RateLimit {
            interval: Duration::from_secs(1) / per_second,
            burst,
            tokens: burst,
            refilled: None,
            suppressed: 0,
        }
    }

    /// `Some(how many were suppressed since the last admitted one)`, or `None`.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
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
    fn who_follows_gets_what_was_and_what_comes_without_gap_or_repetition() {
        let (events, log) = (Events::new(false), KernelLog::new());
        for _ in 0..KEPT + 5 {
            events.emit(&log, &Event::Resumed);
        }
        events.emit(&log, &Event::Paused { tasks: 1 });
        let (past, mut coming) = events.follow();
        events.emit(&log, &Event::Paused { tasks: 2 });
        assert_eq!(past.len(), KEPT);
        assert_eq!(past.last().unwrap().event, Event::Paused { tasks: 1 });
        assert_eq!(coming.try_recv().unwrap().event, Event::Paused { tasks: 2 });
        assert!(coming.try_recv().is_err());
    }

    #[test]
    fn suppressed_events_are_counted_in_an_event_and_others_are_never_suppressed() {
        let (events, log) = (Events::new(false), KernelLog::new());
        let exec = Event::Exec { tid: 1, path: "/x".into() };
        let left = |tokens| {
            let mut limit = events.limit.lock().unwrap();
            // (None comes back meanwhile.)
            limit.refilled = Some(Instant::now() + Duration::from_secs(3600));
            limit.tokens = tokens;
        };
        let recorded =
            || -> Vec<Event> { events.follow().0.into_iter().map(|record| record.event).collect() };
        left(1);
        (0..3).for_each(|_| events.emit(&log, &exec));
        events.emit_of_many(&log, || unreachable!("nobody would record it"));
        events.emit(&log, &Event::Resumed);
        assert_eq!(recorded(), [exec.clone(), Event::Resumed]);
        left(2);
        events.emit(&log, &exec);
        events.emit_of_many(&log, || exec.clone());
        let suppressed = Event::Suppressed { count: 3 };
        let all = [exec.clone(), Event::Resumed, suppressed, exec.clone(), exec.clone()];
        assert_eq!(recorded(), all);
    }

    #[test]
    fn as_json_an_event_is_flat_and_named() {
        let record = Record { time: 5, event: Event::Exec { tid: 7, path: "/bin/x".into() } };
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(json, r#"{"time":5,"event":"exec","tid":7,"path":"/bin/x"}"#);
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }

    #[test]
    fn words_of_guests_cannot_steer_a_terminal_or_forge_lines() {
        let evil = || "a\n\x1b[2Jsandbox: \u{9b}5m\x7f".to_owned();
        let reason = "reason".to_owned();
        for event in [
            Event::Exec { tid: 7, path: evil() },
            Event::Started { pid: 1, path: evil(), container: "c".into() },
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
