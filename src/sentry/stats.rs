//! What a sandbox uses, at one moment.

use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::kernel::Kernel;
use super::memory;
use super::net::HostTraffic;

/// What a sandbox uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Since its start.
    pub uptime_us: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// CPU time of all processes, those that have ended included.
    pub cpu_us: u64,
    /// Guest processes.
    pub processes: u64,
    /// Guest threads.
    pub tasks: u64,
    /// Guest processes of which a thread runs or could run.
    pub running: u64,
    /// Bytes of memory: what the control group says where one keeps the limit; else anonymous and
    /// shared memory of all processes, each page once (Pss).
    pub memory: u64,
    /// The most of it that was seen. Without a control group: at the times somebody looked.
    pub peak_memory: u64,
    /// System calls that the sentry has answered.
    pub traps: u64,
    /// Limits of the run.
    pub limits: Vec<LimitState>,
    /// What went to which host, with `--net allow`.
    pub hosts: Vec<HostTraffic>,
}

/// One limit of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// As its flag is called, without the dashes.
    pub name: String,
    /// How much: bytes, microseconds or a count.
    pub limit: u64,
    /// How much of it is used, where that is known.
    pub used: Option<u64>,
    /// Who keeps it: `cgroup`, `rlimit`, `sentry`, `affinity`.
    pub by: String,
}

impl Kernel {
    /// What the sandbox uses now. Blocks: it reads /proc, and asks the host's kernel for connections.
    pub fn stats(&self) -> Stats {
        let hosts = self.network().map(|network| network.traffic()).unwrap_or_default();
        Stats { hosts, ..self.usage() }
    }

    /// The same without what went to which host. Blocks: it reads /proc.
    pub(super) fn usage(&self) -> Stats {
        let (cpu, processes) = {
            let mut clock = self.accounting.clock();
            let cpu = clock.look().unwrap_or_default();
            (cpu, clock.processes().to_vec())
        };
        let guests: Vec<_> = processes.iter().filter(|it| !self.is_keeper(it.pid)).collect();
        let limits = self.accounting.limits();
        let group = limits.and_then(|limits| limits.memory_group.as_ref());
        let (by_group, peak) = group.map_or((None, None), |group| memory::of_group(&group.path));
        let used =
            by_group.unwrap_or_else(|| guests.iter().map(|it| memory::proportional(it.pid)).sum());
        let peak_seen = self.accounting.peak_memory.fetch_max(used, Ordering::Relaxed).max(used);
        let (cpu_us, tasks) =
            (cpu.as_micros() as u64, guests.iter().map(|it| u64::from(it.threads)).sum());
        let uptime_us = self.accounting.started.elapsed().as_micros() as u64;
        let of_limit = |name: &str| match name {
            "memory" => Some(used),
            "pids" => Some(tasks),
            "cpu-time" => Some(cpu_us),
            "timeout" => Some(self.accounting.run_time.until(Instant::now()).as_micros() as u64),
            _ => None,
        };
        Stats {
            uptime_us,
            paused: self.is_paused(),
            cpu_us,
            processes: guests.len() as u64,
            tasks,
            running: guests.iter().filter(|it| it.is_running()).count() as u64,
            memory: used,
            peak_memory: peak.unwrap_or(peak_seen),
            traps: self.trap_counts().iter().map(|(_, count)| count).sum(),
            limits: limits.map(|limits| limits.states(of_limit)).unwrap_or_default(),
            hosts: Vec::new(),
        }
    }
}
