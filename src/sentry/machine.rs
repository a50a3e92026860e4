//! The machine as a guest with limits sees it: memory, load and processors of the sandbox, in the
//! words of the host's files.
//!
//! Only in runs with `--memory` or `--cpus`. What no limit is about stays the host's.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kernel::Kernel;
use super::memory;
use super::stats::Stats;

/// The averages of the load over 1, 5 and 15 minutes.
///
/// Load here is how many processors the guests have kept busy: exact, from the CPU clock, so nothing
/// has to sample while nobody asks. (The host's load also counts those that wait for a processor.)
#[derive(Debug, Default)]
pub(super) struct Load {
    /// A leaf of the lock order.
    inner: Mutex<Averages>,
}

/// Protected by `Load::inner`.
#[derive(Debug, Default)]
struct Averages {
    /// When, and at which reading of the CPU clock, they were brought up to date.
    last: Option<(Instant, Duration)>,
    values: [f64; 3],
}

const SPANS: [f64; 3] = [60.0, 300.0, 900.0];

impl Load {
    pub(super) fn at(&self, now: Instant, cpu: Duration, started: Instant) -> [f64; 3] {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (then, before) = inner.last.unwrap_or((started, Duration::ZERO));
        let elapsed = now.saturating_duration_since(then).as_secs_f64();
        if elapsed > 0.0 {
            let busy = cpu.saturating_sub(before).as_secs_f64() / elapsed;
            for (value, span) in inner.values.iter_mut().zip(SPANS) {
                let kept = decayed(elapsed / span);
                *value = *value * kept + busy * (1.0 - kept);
            }
            inner.last = Some((now, cpu));
        }
        inner.values
    }
}

/// e to the power of `-x`, for `x` from 0 on. The only use of the C library's libm, for which every run
/// would load that: 0.1 ms of its start.
fn decayed(x: f64) -> f64 {
    const HALVINGS: i32 = 10;
    // After 700 spans nothing is left.
    let x = x.min(700.0) / f64::from(1 << HALVINGS);
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..12 {
        term *= -x / f64::from(n);
        sum += term;
    }
    (0..HALVINGS).fold(sum, |power, _| power * power)
}

/// What sysinfo(2) tells, in the kernel's layout but for the padding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SystemInfo {
    pub(super) uptime: u64,
    pub(super) loads: [f64; 3],
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) swap_total: u64,
    pub(super) swap_free: u64,
    pub(super) tasks: u64,
}

impl SystemInfo {
    /// `struct sysinfo` of 64-bit Linux (include/uapi/linux/sysinfo.h); loads have 16 binary places.
    pub(super) fn bytes(&self) -> [u8; 112] {
        let mut bytes = [0; 112];
        let loads = self.loads.map(|load| (load * 65536.0) as u64);
        let words = [self.uptime, loads[0], loads[1], loads[2], self.total, self.free, 0, 0]
            .into_iter()
            .chain([self.swap_total, self.swap_free]);
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let tasks = self.tasks.min(u64::from(u16::MAX)) as u16;
        bytes[80..82].copy_from_slice(&tasks.to_ne_bytes());
        // mem_unit
        bytes[104..108].copy_from_slice(&1u32.to_ne_bytes());
        bytes
    }
}

impl Kernel {
    /// What the file of procfs at `path` says of the sandbox; `None`: what it says of the host is right.
    /// Blocks: it reads /proc.
    pub(super) fn machine_file(&self, path: &[u8]) -> Option<String> {
        let limits = self.accounting.limits()?;
        let host = |path| std::fs::read_to_string(path).ok();
        match path {
            b"/proc/meminfo" => {
                let limit = limits.memory?;
                Some(meminfo(&host("/proc/meminfo")?, limit, self.memory_in_use()))
            }
            b"/proc/stat" => {
                let cpus = limits.cpus.as_deref()?;
                Some(stat(&host("/proc/stat")?, cpus, self.usage().running))
            }
            b"/proc/loadavg" => {
                let stats = self.usage();
                let loads = self.load(&stats).map(|load| format!("{load:.2}")).join(" ");
                let Stats { running, tasks, processes, .. } = stats;
                Some(format!("{loads} {}/{tasks} {processes}\n", running.max(1)))
            }
            _ => None,
        }
    }

    /// What sysinfo(2) says of the sandbox. Blocks: it reads /proc.
    pub(super) fn system_info(&self) -> Option<SystemInfo> {
        let limits = self.accounting.limits()?;
        let host = nix::sys::sysinfo::sysinfo().ok()?;
        let stats = self.usage();
        let mut info = SystemInfo {
            uptime: host.uptime().as_secs(),
            loads: self.load(&stats),
            total: host.ram_total(),
            free: host.ram_unused(),
            swap_total: host.swap_total(),
            swap_free: host.swap_free(),
            tasks: stats.tasks,
        };
        if let Some(limit) = limits.memory {
            info.total = limit;
            info.free = limit.saturating_sub(self.memory_in_use());
            (info.swap_total, info.swap_free) = (0, 0);
        }
        Some(info)
    }

    fn load(&self, stats: &Stats) -> [f64; 3] {
        let cpu = Duration::from_micros(stats.cpu_us);
        self.accounting.load.at(Instant::now(), cpu, self.accounting.started)
    }

    /// Bytes that could not be had by dropping caches.
    fn memory_in_use(&self) -> u64 {
        let group = self.accounting.limits().and_then(|limits| limits.memory_group.as_ref());
        group
            .and_then(|group| memory::unreclaimable(&group.path))
            .unwrap_or_else(|| self.usage().memory)
    }
}

/// The host's lines with the sandbox's numbers; what is not known of the sandbox is nothing.
fn meminfo(host: &str, limit: u64, used: u64) -> String {
    let (total, used) = (limit >> 10, used.min(limit) >> 10);
    let mut text = String::new();
    for name in host.lines().filter_map(|line| line.split(':').next()) {
        let value = match name {
            "MemTotal" | "CommitLimit" => total,
            "MemFree" | "MemAvailable" => total - used,
            "AnonPages" | "Active" | "Active(anon)" | "Committed_AS" => used,
            "VmallocTotal" | "DirectMap4k" | "DirectMap2M" | "DirectMap1G" => continue,
            name if name.starts_with("Huge") => continue,
            _ => 0,
        };
        // A String takes every word.
        let _ = writeln!(text, "{:<16}{value:>8} kB", format!("{name}:"));
    }
    text
}

/// The host's counters of these processors, their sum in the first line, and the guests' own counts.
fn stat(host: &str, cpus: &[usize], running: u64) -> String {
    let number = |line: &str| line.strip_prefix("cpu")?.split(' ').next()?.parse::<usize>().ok();
    let chosen: Vec<&str> = host
        .lines()
        .filter(|line| number(line).is_some_and(|number| cpus.contains(&number)))
        .collect();
    let mut sums: Vec<u64> = Vec::new();
    for line in &chosen {
        for (place, word) in line.split_whitespace().skip(1).enumerate() {
            if place >= sums.len() {
                sums.push(0);
            }
            sums[place] += word.parse::<u64>().unwrap_or(0);
        }
    }
    let mut text = String::from("cpu ");
    sums.iter().for_each(|sum| text.push_str(&format!(" {sum}")));
    text.push('\n');
    for line in chosen {
        text.push_str(line);
        text.push('\n');
    }
    for line in host.lines().filter(|line| !line.starts_with("cpu")) {
        match line.split(' ').next() {
            Some("procs_running") => text.push_str(&format!("procs_running {}", running.max(1))),
            Some("procs_blocked") => text.push_str("procs_blocked 0"),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_limit_leaves() {
        let host = "MemTotal:  99 kB\nMemFree: 9 kB\nCached: 5 kB\nHugePages_Total: 0\n";
        let text = meminfo(host, 100 << 10, 40 << 10);
        assert_eq!(
            text,
            "MemTotal:            100 kB\nMemFree:              60 kB\nCached:                0 kB\n"
        );
    }

    #[test]
    fn counters_are_those_of_the_chosen_processors() {
        let host = "cpu  30 5\ncpu0 10 2\ncpu1 20 3\nintr 7\nprocs_running 9\nprocs_blocked 3\n";
        assert_eq!(
            stat(host, &[1], 2),
            "cpu  20 3\ncpu1 20 3\nintr 7\nprocs_running 2\nprocs_blocked 0\n"
        );
    }

    #[test]
    fn the_load_approaches_what_is_busy_and_decays() {
        let (load, start) = (Load::default(), Instant::now());
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let busy = load.at(start + minutes(10), minutes(20), start);
        assert!(busy[0] > 1.99 && busy[0] <= 2.0 && busy[2] < busy[1] && busy[1] < busy[0]);
        let idle = load.at(start + minutes(20), minutes(20), start);
        assert!(idle[0] < 0.01 && idle[2] > 0.3);
    }

    #[test]
    fn the_kernels_layout_is_kept() {
        let info = SystemInfo {
            uptime: 1,
            loads: [1.0, 0.5, 0.25],
            total: 7,
            free: 6,
            swap_total: 5,
            swap_free: 4,
            tasks: 3,
        };
        let bytes = info.bytes();
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([word(0), word(8), word(16), word(24)], [1, 65536, 32768, 16384]);
        assert_eq!([word(32), word(40), word(64), word(72)], [7, 6, 5, 4]);
        assert_eq!((bytes[80], bytes[104]), (3, 1));
        assert_eq!(size_of::<libc::sysinfo>(), bytes.len());
    }
}
