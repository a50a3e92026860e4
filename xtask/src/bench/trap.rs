//! What one trapped system call costs, against a bare supervisor with the same kernel flags.
//!
//! The call is syslog(SYSLOG_ACTION_SIZE_BUFFER): in a default run the sentry answers it with a
//! number and touches no memory of the guest, so what is measured is the engine alone.
//!
//! The target is against the bare floor, in one session with its guest. Beside it is the floor whose
//! guest has a session of its own, as the sandbox's has: that is a wall of the sandbox, and where the
//! scheduler groups by session (sched_autogroup, sched(7)) it costs what the difference shows.

use std::time::Duration;

use super::Bench;
use super::report::figure;
use super::row::{Column, Row, Target, Unit};
use super::stats::Summary;
use super::workload::{Effort, Plan, Reading, Workload, named_numbers};

/// Guest threads that make the call at the same time.
const THREADS: [u32; 4] = [1, 2, 4, 16];
/// Below this many times the native cost, no process was asked for the answer.
const LEAST_TRAP: f64 = 3.0;

/// One workload for each number of threads.
pub(super) fn workloads(bench: &Bench) -> Vec<Workload> {
    let loops = bench.workshop.file("loops");
    let workload = |threads: u32| {
        let guest = loops.clone();
        let title = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
        Workload {
            group: "trap",
            title: title.clone(),
            flags: &[],
            command: Box::new(move |contender| {
                // A slow contender takes as long: the guest fills a time, not a count.
                let rounds = if contender.slow { "2" } else { "3" };
                let words = [&threads.to_string(), rounds, "15", "syslog"];
                std::iter::once(guest.clone()).chain(words.map(Into::into)).collect()
            }),
            reading: Reading::Stdout(named_numbers),
            plans: vec![Plan {
                name: title,
                key: "syslog".to_owned(),
                unit: Unit::Nanoseconds,
                target: Target::Ratio(1.25),
            }],
            contenders: vec!["native", "floor", "floor+session", "ours", "strace", "runsc"],
            reference: "floor",
            effort: Effort {
                rounds: bench.pick(60, 8),
                slow_rounds: bench.pick(3, 1),
                budget: Duration::from_secs(bench.pick(20, 3)),
            },
            review,
        }
    };
    THREADS.map(workload).into()
}

/// A call that was not trapped must not look like a fast engine.
fn review(row: &mut Row) {
    let summary = |name: &str| row.column(name).and_then(Column::summary);
    let (native, floor, ours) = (summary("native"), summary("floor"), summary("ours"));
    if let Some(Summary { min, median, .. }) = floor {
        row.notes.push(format!(
            "{}: the floor of one trapped call on this machine is {} (least {})",
            row.name,
            figure(median, row.unit),
            figure(min, row.unit)
        ));
    }
    let of_session = row.ratio("floor+session", "floor");
    let with_session = row.ratio("ours", "floor+session");
    if let (Some(session), Some(ours)) = (of_session, with_session) {
        row.notes.push(format!(
            "{}: a session of the guest's own, which is a wall of the sandbox, makes the floor {:.3} \
             times as much ({}); ours is {:.3} times the floor with one",
            row.name,
            session.median,
            grouping(),
            ours.median
        ));
    }
    if let (Some(native), Some(ours)) = (native, ours)
        && ours.median < LEAST_TRAP * native.median
    {
        row.target = Target::None;
        row.notes.push(format!("{}: ours did not trap syslog(2): no verdict", row.name));
    }
}

/// Whether the scheduler has a group for each session (kernel/sched/autogroup.c).
fn grouping() -> &'static str {
    match std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled").as_deref() {
        Ok("1\n") => "kernel.sched_autogroup_enabled is 1",
        Ok(_) => "kernel.sched_autogroup_enabled is 0",
        Err(_) => "no sched_autogroup here",
    }
}
