//! What a run may use: the limits of the command line, read and checked.
//!
//! Owns the words (sizes, durations, counts), what they must not be, and by which means of this host
//! each limit is kept. Carrying them out is the launch's and the sentry's work.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use super::cgroups::{Cgroups, Controller};
use super::error::refuse;
use super::{ConfigError, Host, Identity};
use crate::sentry::net::Allowance;

/// The limits as the user wrote them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitWishes {
    /// `--memory SIZE`
    pub memory: Option<String>,
    /// `--pids N`
    pub pids: Option<String>,
    /// `--cpus N`
    pub cpus: Option<String>,
    /// `--open-files N`
    pub open_files: Option<String>,
    /// `--file-size SIZE`
    pub file_size: Option<String>,
    /// `--cpu-time SOFT[:HARD]`
    pub cpu_time: Option<String>,
    /// `--timeout DURATION`
    pub timeout: Option<String>,
    /// `--net-rate IN[:OUT]`
    pub net_rate: Option<String>,
    /// `--net-total SIZE`
    pub net_total: Option<String>,
}

/// What a run may use. Immutable, part of the [`super::RunSpec`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory of all processes together, and how the host keeps to it.
    pub memory: Option<Bound>,
    /// Processes and threads at one time, the sandbox's own init not counted.
    pub pids: Option<Bound>,
    /// The processors that the guest may use, in ascending order; never empty.
    pub cpus: Option<Vec<usize>>,
    /// Open descriptors of one process.
    pub open_files: Option<u64>,
    /// Bytes in a file that a guest writes.
    pub file_size: Option<u64>,
    /// CPU time of all processes together.
    pub cpu_time: Option<CpuBudget>,
    /// Wall-clock time of the whole run, pauses not counted.
    pub timeout: Option<Duration>,
    /// What its network may carry.
    pub network: Allowance,
    /// Where control groups of the run are made, one for each hierarchy that is of use.
    pub cgroups: Vec<CgroupPlan>,
}

/// A limit that a host keeps in one of several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// How much.
    pub limit: u64,
    /// By which means.
    pub by: Means,
}

/// Who keeps a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// The kernel, for all processes together.
    Cgroup,
    /// The kernel, by a resource limit.
    Rlimit,
    /// The sentry, which looks at the processes while they run.
    Sentry,
}

impl Means {
    /// One word for people and programs.
    pub fn word(self) -> &'static str {
        match self {
            Means::Cgroup => "cgroup",
            Means::Rlimit => "rlimit",
            Means::Sentry => "sentry",
        }
    }
}

/// CPU time that a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuBudget {
    /// Then every process gets SIGXCPU, once.
    pub soft: Duration,
    /// Then every process is killed.
    pub hard: Duration,
}

/// A control group to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlan {
    /// The directory in which the run's own group is made.
    pub parent: PathBuf,
    /// What is written into it: (file, content). A file that the kernel does not have is left out.
    pub settings: Vec<(&'static str, String)>,
    /// It counts the CPU time of the run, in this file.
    pub cpu_usage: Option<CpuFile>,
    /// It keeps the memory limit: the group's events can be watched.
    pub memory: bool,
    /// It keeps the limit of processes: the same.
    pub pids: bool,
}

/// Where a control group says how much CPU time it has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuFile {
    /// `cpuacct.usage` of version 1: nanoseconds.
    Usage,
    /// `usage_usec` in `cpu.stat` of version 2.
    Stat,
}

impl Limits {
    /// Something has to look at the CPU clocks of the guests while they run.
    pub fn need_ticker(&self) -> bool {
        self.cpu_time.is_some() || self.memory.is_some_and(|bound| bound.by == Means::Sentry)
    }

    /// The guest is shown a machine of its own size.
    pub fn show_machine(&self) -> bool {
        self.cpus.is_some() || self.memory.is_some()
    }
}

/// The limits that `wishes` describe on `host`.
pub(crate) fn choose(
    wishes: &LimitWishes,
    host: &Host,
    identity: &Identity,
) -> Result<Limits, ConfigError> {
    if *wishes == LimitWishes::default() {
        return Ok(Limits::default());
    }
    let cgroups =
        match wishes.memory.is_some() || wishes.pids.is_some() || wishes.cpu_time.is_some() {
            true => host.cgroups(),
            false => Cgroups::default(),
        };
    let read = |flag: &str, text: &Option<String>, parse: fn(&str) -> Option<u64>, how: &str| {
        text.as_ref().map(|text| amount(flag, text, parse, how)).transpose()
    };
    let memory = read("--memory", &wishes.memory, size, SIZES)?;
    let pids = read("--pids", &wishes.pids, count, COUNTS)?;
    let open_files = read("--open-files", &wishes.open_files, count, COUNTS)?;
    let file_size = read("--file-size", &wishes.file_size, size, SIZES)?;
    if let Some(bytes) = memory.filter(|bytes| *bytes < LEAST_MEMORY) {
        return Err(refuse!(
            "cannot use --memory {bytes}: no program starts in less than {}; give it more",
            Bytes(LEAST_MEMORY)
        ));
    }
    if let Some(wished) = open_files {
        check_hard_limit("--open-files", wished, host.open_files_limit)?;
    }
    if let Some(wished) = file_size {
        check_hard_limit("--file-size", wished, host.file_size_limit)?;
    }
    let memory = memory.map(|limit| Bound {
        limit,
        by: if cgroups.has(Controller::Memory) { Means::Cgroup } else { Means::Sentry },
    });
    let pids = pids.map(|limit| keep_pids(limit, &cgroups, host, identity)).transpose()?;
    let cpu_time = wishes.cpu_time.as_deref().map(cpu_budget).transpose()?;
    let mut limits = Limits {
        memory,
        pids,
        cpus: wishes.cpus.as_deref().map(|text| cpus(text, &host.cpus)).transpose()?,
        open_files,
        file_size,
        cpu_time,
        timeout: wishes.timeout.as_deref().map(timeout).transpose()?,
        network: allowance(wishes)?,
        cgroups: Vec::new(),
    };
    limits.cgroups = cgroups.plan(&limits);
    Ok(limits)
}

const LEAST_MEMORY: u64 = 1 << 20;
const SIZES: &str = "write bytes, or a number with k, m, g or t behind it, as in 512m";
/// Bytes a second.
const LEAST_RATE: u64 = 100;
const RATES: &str = "write bytes a second, or a number with k, m or g behind it, for what comes in and, behind a colon, for \
                     what goes out, as in 2m:500k";
const COUNTS: &str = "write a whole number of at least 1";
const DURATIONS: &str = "write seconds, or a number with ms, s, m or h behind it, as in 500ms";

fn amount(
    flag: &str,
    text: &str,
    parse: fn(&str) -> Option<u64>,
    how: &str,
) -> Result<u64, ConfigError> {
    match parse(text) {
        Some(0) => Err(refuse!("cannot use {flag} {text}: nothing can run with none; {how}")),
        Some(amount) => Ok(amount),
        None => Err(refuse!("cannot use {flag} {}: it is no amount; {how}", text.escape_debug())),
    }
}

/// How much a limit allows, soft and hard, to compare two wishes for the same one.
pub(crate) fn weigh(key: &str, text: &str) -> Result<[u64; 2], ConfigError> {
    // Durations are read in microseconds, and below 2^60 of them.
    let micros = |span: Duration| span.as_micros() as u64;
    let flag = format!("--{key}");
    let amount = match key {
        "memory" | "file-size" | "net-total" => amount(&flag, text, size, SIZES)?,
        "cpu-time" => {
            let CpuBudget { soft, hard } = cpu_budget(text)?;
            return Ok([micros(soft), micros(hard)]);
        }
        "timeout" => micros(timeout(text)?),
        "net-rate" => return rates(text),
        _ => amount(&flag, text, count, COUNTS)?,
    };
    Ok([amount; 2])
}

/// A resource limit can be lowered by everybody, and raised by nobody inside.
fn check_hard_limit(flag: &str, wished: u64, hard: u64) -> Result<(), ConfigError> {
    if wished <= hard {
        return Ok(());
    }
    Err(refuse!(
        "cannot use {flag} {wished}: your own hard limit is {hard}, and a sandbox does not raise it; \
         ask for less, or raise yours first (see prlimit(1))"
    ))
}

fn keep_pids(
    limit: u64,
    cgroups: &Cgroups,
    host: &Host,
    identity: &Identity,
) -> Result<Bound, ConfigError> {
    if cgroups.has(Controller::Pids) {
        return Ok(Bound { limit, by: Means::Cgroup });
    }
    // copy_process (kernel/fork.c) lets the host's user 0 pass RLIMIT_NPROC, whatever its rights.
    let outside = identity.uid_map.iter().find_map(|range| {
        let offset =
            identity.uid.checked_sub(range.inside).filter(|offset| *offset < range.count)?;
        Some(range.outside + offset)
    });
    if outside == Some(0) && host.uid == 0 {
        return Err(refuse!(
            "cannot use --pids {limit}: this host gives no pids control group to make a sub-group in, \
             and the kernel's own limit (RLIMIT_NPROC) does not bind root; choose another user with \
             --user, or run the sandbox as one"
        ));
    }
    Ok(Bound { limit, by: Means::Rlimit })
}

/// The lowest of the processors that the caller itself may use.
fn cpus(text: &str, own: &[usize]) -> Result<Vec<usize>, ConfigError> {
    let wished = amount("--cpus", text, count, COUNTS)?;
    match own.get(..usize::try_from(wished).unwrap_or(usize::MAX)) {
        Some(lowest) => Ok(lowest.to_vec()),
        None => Err(refuse!(
            "cannot use --cpus {text}: there {} for this process; ask for no more",
            match own.len() {
                1 => "is 1 CPU".to_owned(),
                n => format!("are {n} CPUs"),
            }
        )),
    }
}

/// `SOFT[:HARD]`
fn cpu_budget(text: &str) -> Result<CpuBudget, ConfigError> {
    let bad = |cause: &str| {
        refuse!("cannot use --cpu-time {}: {cause}; {DURATIONS}", text.escape_debug())
    };
    let (soft, hard) = match text.split_once(':') {
        Some((soft, hard)) => (soft, Some(hard)),
        None => (text, None),
    };
    let read = |part: &str| duration(part).ok_or_else(|| bad("it is no duration"));
    let soft = read(soft)?;
    let hard = hard.map(read).transpose()?.unwrap_or(soft + Duration::from_secs(1));
    if soft.is_zero() {
        return Err(bad("nothing can run in no time"));
    }
    if hard < soft {
        return Err(bad("the hard limit is below the soft one"));
    }
    Ok(CpuBudget { soft, hard })
}

fn allowance(wishes: &LimitWishes) -> Result<Allowance, ConfigError> {
    let rates = wishes.net_rate.as_deref().map(rates).transpose()?;
    let total = wishes.net_total.as_deref().map(|text| weigh("net-total", text)).transpose()?;
    Ok(Allowance {
        rate_in: rates.and_then(|[rate, _]| NonZeroU64::new(rate)),
        rate_out: rates.and_then(|[_, rate]| NonZeroU64::new(rate)),
        total: total.and_then(|[total, _]| NonZeroU64::new(total)),
    })
}

/// `IN[:OUT]`, bytes a second.
fn rates(text: &str) -> Result<[u64; 2], ConfigError> {
    let (inward, outward) = text.split_once(':').unwrap_or((text, text));
    let read = |part: &str| match size(part) {
        Some(rate @ LEAST_RATE..) => Ok(rate),
        Some(_) => Err(refuse!(
            "cannot use --net-rate {}: it is less than {LEAST_RATE} bytes a second; {RATES}",
            text.escape_debug()
        )),
        None => {
            Err(refuse!("cannot use --net-rate {}: it is no rate; {RATES}", text.escape_debug()))
        }
    };
    Ok([read(inward)?, read(outward)?])
}

fn timeout(text: &str) -> Result<Duration, ConfigError> {
    let bad =
        |cause: &str| refuse!("cannot use --timeout {}: {cause}; {DURATIONS}", text.escape_debug());
    match duration(text) {
        Some(Duration::ZERO) => Err(bad("nothing can run in no time")),
        Some(duration) => Ok(duration),
        None => Err(bad("it is no duration")),
    }
}

fn count(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `512m`, `1.5g`, `4096`; units are powers of 1024, with or without `b`, `ib`.
fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    scaled(number, 1 << shift)
}

/// `2m`, `1.5s`, `500ms`, `3` (seconds).
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    // About thirty thousand years: sums of a few never overflow.
    scaled(number, micros).filter(|micros| *micros < 1 << 60).map(Duration::from_micros)
}

/// A decimal number times `unit`, exactly, rounded down.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 9 || part.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let numerator: u128 = if part.is_empty() { 0 } else { part.parse().ok()? };
    let fraction = numerator * u128::from(unit) / 10u128.pow(part.len() as u32);
    whole.checked_mul(unit)?.checked_add(fraction as u64)
}

/// A size for people: exact where a unit fits, in bytes otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// A duration for people, as a flag could say it.
#[derive(Debug, Clone, Copy)]
pub struct Span(pub Duration);

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        for (unit, name) in [(60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")] {
            if micros >= unit && micros.is_multiple_of(unit) {
                return write!(f, "{} {name}", micros / unit);
            }
        }
        write!(f, "{micros} us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::config::testing::{TestHost, options};

    fn limits(change: impl FnOnce(&mut LimitWishes)) -> Result<Limits, String> {
        let mut wishes = LimitWishes::default();
        change(&mut wishes);
        let options = Options { limits: wishes, ..options(&[]) };
        TestHost::ordinary().resolve(&options).map(|spec| spec.limits)
    }

    #[test]
    fn sizes_and_durations_are_read_exactly() {
        assert_eq!(
            ["512m", "1.5g", "4096", "1KiB", "0.5k"].map(size),
            [512 << 20, 1536 << 20, 4096, 1024, 512].map(Some)
        );
        assert_eq!(["", "m", "1x", "-1", "1..2", "1e3", "99999999999t"].map(size), [None; 7]);
        assert_eq!(
            ["1s", "500ms", "2m", "3", "1.5h", "0.25"].map(duration),
            [1000, 500, 120_000, 3000, 5_400_000, 250].map(|ms| Some(Duration::from_millis(ms)))
        );
        assert_eq!(["", "s", "1y", "-1s", "99999999999d"].map(duration), [None; 5]);
    }

    #[test]
    fn rates_are_of_both_ways_unless_two_are_named() {
        let network = |rate: &str, total: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            limits(|it| (it.net_rate, it.net_total) = (given(rate), given(total)))
                .map(|limits| limits.network)
        };
        let of = |rate_in, rate_out, total| Allowance {
            rate_in: NonZeroU64::new(rate_in),
            rate_out: NonZeroU64::new(rate_out),
            total: NonZeroU64::new(total),
        };
        assert_eq!(network("2m", "").unwrap(), of(2 << 20, 2 << 20, 0));
        assert_eq!(network("2m:500", "1g").unwrap(), of(2 << 20, 500, 1 << 30));
        for bad in ["", "0", "99", "x", "1m:", ":1m", "1m:1m:1m", "1m/s"] {
            let error = limits(|it| it.net_rate = Some(bad.into())).unwrap_err();
            assert!(error.contains("--net-rate"), "{bad:?}: {error}");
        }
        assert!(network("", "0").unwrap_err().contains("--net-total"));
    }

    #[test]
    fn a_budget_has_a_hard_limit_a_second_later_unless_it_names_one() {
        let seconds = |soft, hard| CpuBudget {
            soft: Duration::from_secs(soft),
            hard: Duration::from_secs(hard),
        };
        let budget = |text: &str| limits(|it| it.cpu_time = Some(text.into()));
        assert_eq!(budget("2s").unwrap().cpu_time, Some(seconds(2, 3)));
        assert_eq!(budget("2:2m").unwrap().cpu_time, Some(seconds(2, 120)));
        for bad in ["", "0", "2:1", "x", "1:", "1:x"] {
            assert!(budget(bad).unwrap_err().contains("--cpu-time"), "{bad:?}");
        }
    }

    #[test]
    fn impossible_limits_are_named() {
        let error = |change: fn(&mut LimitWishes)| limits(change).unwrap_err();
        assert!(error(|it| it.memory = Some("lots".into())).contains("--memory"));
        assert!(error(|it| it.memory = Some("4k".into())).contains("1 MiB"));
        assert!(error(|it| it.pids = Some("0".into())).contains("--pids"));
        assert!(error(|it| it.cpus = Some("3".into())).contains("2 CPUs"));
        assert!(error(|it| it.open_files = Some("2000".into())).contains("hard limit is 1024"));
        assert!(error(|it| it.timeout = Some("soon".into())).contains("--timeout"));
    }

    #[test]
    fn without_control_groups_the_sentry_and_resource_limits_keep_them() {
        let found = limits(|it| {
            it.memory = Some("64m".into());
            it.pids = Some("20".into());
            it.cpus = Some("1".into());
        });
        let found = found.unwrap();
        assert_eq!(found.memory, Some(Bound { limit: 64 << 20, by: Means::Sentry }));
        assert_eq!(found.pids, Some(Bound { limit: 20, by: Means::Rlimit }));
        assert_eq!(found.cpus, Some(vec![0]));
        assert!(found.need_ticker() && found.show_machine());
        let none = limits(|_| {}).unwrap();
        assert!(!none.need_ticker() && !none.show_machine());
    }

    #[test]
    fn root_without_a_control_group_is_told_what_to_do() {
        let wishes = LimitWishes { pids: Some("5".into()), ..LimitWishes::default() };
        let mut asked = Options { limits: wishes, ..options(&[]) };
        let host = TestHost::root();
        assert!(host.resolve(&asked).unwrap_err().contains("--user"));
        asked.user = Some("me".into());
        assert_eq!(host.resolve(&asked).unwrap().limits.pids.unwrap().by, Means::Rlimit);
    }

    #[test]
    fn amounts_are_shown_as_flags_say_them() {
        assert_eq!(Bytes(512 << 20).to_string(), "512 MiB");
        assert_eq!(Bytes(1000).to_string(), "1000 bytes");
        assert_eq!(Span(Duration::from_millis(1500)).to_string(), "1500 ms");
        assert_eq!(Span(Duration::from_secs(120)).to_string(), "2 min");
    }
}
