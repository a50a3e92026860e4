//! Limits and the clock of a saved run, and what it repeats.
//!
//! Limits are saved as what was wished for and become wishes again, read and checked as those of a
//! command line; a clock is checked as if its words had been read.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::error::refuse;
use super::super::limits;
use super::super::{
    Bound, ConfigError, CpuBudget, Deterministic, Host, Identity, LimitWishes, Limits,
};
use super::SavedSpec;
use crate::sentry::net::Allowance;
use crate::timekeeping::{Pace, Rate, Start, TimeSpec};

/// [`Limits`], as they were wished for: who keeps them is decided anew. Durations in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLimits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The numbers of its processors.
    pub cpus: Option<Vec<u32>>,
    /// Of one process.
    pub open_files: Option<u64>,
    /// Bytes.
    pub file_size: Option<u64>,
    /// Soft, hard.
    pub cpu_time: Option<(u64, u64)>,
    /// Of the whole run.
    pub timeout: Option<u64>,
    /// Bytes a second that come in, and that go out, of its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<(u64, u64)>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_total: Option<u64>,
    /// The image says what of that has been carried. (Who does not know this word may not begin anew.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub net_goes_on: bool,
}

/// [`TimeSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTime {
    /// Nanoseconds from the host's clock.
    pub offset: Option<i64>,
    /// Instead of that: nanoseconds since 1970.
    pub at: Option<i64>,
    /// Seconds of the guest, of the host; none: frozen.
    pub rate: Option<(u32, u32)>,
    /// The image says what the clocks have come to. (Who does not know this word may not start them anew.)
    #[serde(default)]
    pub goes_on: bool,
}

impl SavedLimits {
    pub(super) fn of(limits: &Limits) -> SavedLimits {
        let limit = |bound: Option<Bound>| bound.map(|bound| bound.limit);
        // Limits are read in microseconds, and below 2^60 of them.
        let micros = |span: Duration| span.as_micros() as u64;
        SavedLimits {
            memory: limit(limits.memory),
            pids: limit(limits.pids),
            cpus: limits.cpus.as_ref().map(|cpus| cpus.iter().map(|cpu| *cpu as u32).collect()),
            open_files: limits.open_files,
            file_size: limits.file_size,
            cpu_time: limits.cpu_time.map(|CpuBudget { soft, hard }| (micros(soft), micros(hard))),
            timeout: limits.timeout.map(micros),
            net_rate: rate(limits.network),
            net_total: limits.network.total.map(NonZeroU64::get),
            net_goes_on: limits.network.is_limited(),
        }
    }

    /// They are wishes again, as if they had been written on this host.
    pub(super) fn restore(&self, host: &Host, identity: &Identity) -> Result<Limits, ConfigError> {
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let wishes = LimitWishes {
            memory: number(self.memory),
            pids: number(self.pids),
            cpus: self.cpus.as_ref().map(|cpus| cpus.len().to_string()),
            open_files: number(self.open_files),
            file_size: number(self.file_size),
            cpu_time: self.cpu_time.map(|(soft, hard)| format!("{soft}us:{hard}us")),
            timeout: self.timeout.map(|timeout| format!("{timeout}us")),
            net_rate: self.net_rate.map(|(inward, outward)| format!("{inward}:{outward}")),
            net_total: number(self.net_total),
        };
        let mut limits = limits::choose(&wishes, host, identity)?;
        // The same processors, where this user has them: the guests know their numbers.
        if let Some(cpus) = &self.cpus {
            let cpus: Vec<usize> = cpus.iter().map(|cpu| *cpu as usize).collect();
            if cpus.is_sorted_by(|a, b| a < b) && cpus.iter().all(|cpu| host.cpus.contains(cpu)) {
                limits.cpus = Some(cpus);
            }
        }
        Ok(limits)
    }
}

/// Both rates: a flag names them together.
fn rate(allowance: Allowance) -> Option<(u64, u64)> {
    Some((allowance.rate_in?.get(), allowance.rate_out?.get()))
}

impl SavedTime {
    pub(super) fn of(time: TimeSpec) -> SavedTime {
        let (offset, at) = match time.start {
            Start::Offset(offset) => (Some(offset), None),
            Start::At(at) => (None, Some(at)),
        };
        let rate = match time.pace {
            Pace::Runs(rate) => Some(rate.terms()),
            Pace::Frozen => None,
        };
        SavedTime { offset, at, rate, goes_on: true }
    }

    pub(super) fn restore(self) -> Result<TimeSpec, ConfigError> {
        let bad = |cause: &str| refuse!("cannot restore its clock: {cause}");
        let start = match (self.offset, self.at) {
            (Some(offset), None) => Start::Offset(offset),
            (None, Some(at)) => Start::At(at),
            _ => return Err(bad("it does not start once")),
        };
        let pace = match self.rate {
            Some((guest, host)) => {
                Pace::Runs(Rate::new(guest, host).ok_or_else(|| bad("its rate is none"))?)
            }
            None => Pace::Frozen,
        };
        TimeSpec { start, pace }.checked().map_err(|error| bad(&error.to_string()))
    }
}

/// Bytes of a seed at most: an argument has no more (MAX_ARG_STRLEN, execve(2)).
const SEED_MAX: usize = 128 << 10;

impl SavedSpec {
    /// What it repeats, if it does.
    pub(super) fn repeats(&self) -> Result<Option<Deterministic>, ConfigError> {
        let Some(seed) = &self.deterministic else { return Ok(None) };
        if self.time.is_none() || seed.len() > SEED_MAX {
            return Err(refuse!("cannot restore what it repeats: it has no clock, or no seed"));
        }
        Ok(Some(Deterministic::resumed(seed.to_vec())))
    }
}
