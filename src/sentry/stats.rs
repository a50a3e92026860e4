//! What a sandbox has used so far.

use serde::{Deserialize, Serialize};

use super::kernel::Kernel;

/// Use of the host's resources by all guests together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Since the sandbox was started, in microseconds.
    pub uptime_us: u64,
    /// All tasks are stopped.
    pub paused: bool,
    /// CPU time of the guests that live, in microseconds.
    pub cpu_us: u64,
    /// Guest processes.
    pub processes: u64,
    /// Guest threads.
    pub tasks: u64,
    /// Processes that run or want to.
    pub running: u64,
    /// Resident bytes.
    pub memory: u64,
    /// The most there was of `memory` when somebody looked.
    pub peak_memory: u64,
    /// Calls that the sentry has served.
    pub traps: u64,
    /// The limits of the run.
    pub limits: Vec<LimitState>,
}

/// A limit and how near it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// As its flag names it.
    pub name: String,
    /// What is allowed.
    pub limit: u64,
    /// What is used of it, where that is known.
    pub used: Option<u64>,
    /// How it is enforced: `cgroup`, `rlimit`, `sentry`.
    pub by: String,
}

impl Kernel {
    /// What the guests have used. Blocks: it reads /proc.
    pub fn stats(&self) -> Stats {
        let processes = self.census().unwrap_or_default();
        let memory = processes.iter().map(|process| process.memory).sum();
        Stats {
            uptime_us: self.log().age().as_micros() as u64,
            paused: self.is_paused(),
            cpu_us: processes.iter().map(|process| process.cpu_us).sum(),
            processes: processes.len() as u64,
            tasks: processes.iter().map(|process| u64::from(process.threads)).sum(),
            running: processes.iter().filter(|process| process.state == 'R').count() as u64,
            memory,
            peak_memory: memory,
            traps: self.trap_counts().iter().map(|(_, count)| count).sum(),
            limits: Vec::new(),
        }
    }
}
