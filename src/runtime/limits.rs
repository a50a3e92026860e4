//! What the sentry is told of the limits of a run.

use crate::config::{Means, RunSpec};
use crate::launch::Behind;
use crate::sentry::{Features, Limits, MemoryLimit, PidsLimit};

/// The limits of `spec`, with the control groups that were made for them.
pub(super) fn of(spec: &RunSpec, behind: &Behind) -> Limits {
    let limits = &spec.limits;
    let mut named: Vec<(&'static str, u64, &'static str)> = Vec::new();
    for (name, bound) in [("memory", limits.memory), ("pids", limits.pids)] {
        named.extend(bound.map(|bound| (name, bound.limit, bound.by.word())));
    }
    let rlimit = Means::Rlimit.word();
    named.extend(limits.cpus.as_ref().map(|cpus| ("cpus", cpus.len() as u64, "affinity")));
    named.extend(limits.open_files.map(|count| ("open-files", count, rlimit)));
    named.extend(limits.file_size.map(|bytes| ("file-size", bytes, rlimit)));
    let sentry = Means::Sentry.word();
    let budget = limits.cpu_time.map(|budget| budget.soft);
    for (name, duration) in [("cpu-time", budget), ("timeout", limits.timeout)] {
        named.extend(duration.map(|duration| (name, duration.as_micros() as u64, sentry)));
    }
    Limits {
        cpu_time: limits.cpu_time.map(|budget| (budget.soft, budget.hard)),
        memory: limits.memory.map(|bound| MemoryLimit {
            bytes: bound.limit,
            group: behind.memory_group().map(Into::into),
        }),
        pids: limits.pids.map(|bound| PidsLimit {
            count: bound.limit,
            group: behind.pids_group().map(Into::into),
        }),
        cpus: limits.cpus.clone(),
        cpu_clock: behind.cpu_clock(),
        measure: spec.features.contains(Features::LEARN).then(|| spec.own_trees()),
        named,
    }
}
