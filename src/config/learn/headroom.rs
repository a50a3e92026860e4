//! Limits of what a run has used, with room above.
//!
//! Owns the factors and how figures are rounded: docs/learn.md has the table.

use std::time::Duration;

use super::super::limits::weigh;
use super::super::{Bytes, Host, LimitWishes, Options, resolve};
use crate::sentry::Measured;

/// The keys that are learned.
pub(super) const KEYS: [&str; 4] = ["memory", "pids", "cpu-time", "timeout"];

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) key: &'static str,
    /// As a flag says it.
    pub(super) text: String,
    /// What was seen.
    pub(super) seen: String,
    /// Why no run can have it here, if that is so.
    pub(super) impossible: Option<String>,
}

impl Bound {
    /// Whether `other` allows less.
    pub(super) fn is_above(&self, other: &str) -> bool {
        match (weigh(self.key, &self.text), weigh(self.key, other)) {
            (Ok(own), Ok(other)) => own > other,
            _ => false,
        }
    }

    /// Its value in TOML.
    pub(super) fn value(&self) -> String {
        match self.key {
            "pids" => self.text.clone(),
            _ => format!("\"{}\"", self.text),
        }
    }

    fn set(&self, limits: &mut LimitWishes) {
        let text = Some(self.text.clone());
        match self.key {
            "memory" => limits.memory = text,
            "pids" => limits.pids = text,
            "cpu-time" => limits.cpu_time = text,
            _ => limits.timeout = text,
        }
    }
}

/// Those that the run has not been given already.
pub(super) fn bounds(measured: &Measured, base: &Options, host: &Host) -> Vec<Bound> {
    const MIB: u64 = 1 << 20;
    let bound = |key, text, seen| Bound { key, text, seen, impossible: None };
    let mut all = Vec::new();
    let given = &base.limits;
    if given.memory.is_none() {
        let mib = measured.memory.div_ceil(MIB);
        let seen = format!("at most {} were in use", Bytes(mib * MIB));
        all.push(bound("memory", size(measured.memory), seen));
    }
    if given.pids.is_none() {
        let seen = format!("at most {} at one time", measured.tasks.max(1));
        all.push(bound("pids", count(measured.tasks).to_string(), seen));
    }
    if given.cpu_time.is_none() {
        let text = span(measured.cpu.saturating_mul(4), 10);
        all.push(bound("cpu-time", text, seconds(measured.cpu)));
    }
    if given.timeout.is_none() {
        let text = span(measured.time.saturating_mul(10), 60);
        all.push(bound("timeout", text, seconds(measured.time)));
    }
    for bound in &mut all {
        let mut options = base.clone();
        bound.set(&mut options.limits);
        bound.impossible = resolve(&options, host).err().map(|error| error.to_string());
    }
    all
}

/// At least twice as much, and 64 MiB; a power of two.
fn size(bytes: u64) -> String {
    let mib = bytes.saturating_mul(2).div_ceil(1 << 20).max(64).next_power_of_two();
    match mib % 1024 {
        0 => format!("{}g", mib / 1024),
        _ => format!("{mib}m"),
    }
}

/// At least twice as many, and 64; a power of two.
fn count(tasks: u64) -> u64 {
    tasks.saturating_mul(2).max(64).next_power_of_two()
}

/// At least `least` seconds, in full tens of seconds; above a minute in minutes, above an hour in hours.
fn span(span: Duration, least: u64) -> String {
    let exact = span.as_secs().min(1 << 40) + u64::from(span.subsec_nanos() > 0);
    let seconds = exact.max(least).next_multiple_of(10);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds.div_ceil(60)),
        _ => format!("{}h", seconds.div_ceil(3600)),
    }
}

fn seconds(span: Duration) -> String {
    format!("{:.2} s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_up() {
        assert_eq!(
            (size(0), size(33 << 20), size(500 << 20)),
            ("64m".into(), "128m".into(), "1g".into())
        );
        assert_eq!((count(0), count(32), count(33)), (64, 64, 128));
        let words = |ms, least| span(Duration::from_millis(ms), least);
        assert_eq!(words(1, 10), "10s");
        assert_eq!(words(10_001, 10), "20s");
        assert_eq!(words(50_001, 10), "1m");
        assert_eq!(words(61_000, 10), "2m");
        assert_eq!(words(3_599_000, 60), "1h");
        assert_eq!(words(7_201_000, 60), "3h");
        for text in [size(7 << 30), span(Duration::MAX, 1)] {
            assert!(!text.is_empty());
        }
    }
}
