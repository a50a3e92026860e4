//! What system calls cost that the filter lets through: they must be native.
//!
//! The reference is native. Beside it, bwrap shows what the namespaces themselves cost, the time
//! namespace included (its clocks are read through a vDSO page of their own, time_namespaces(7)),
//! and the floor what any seccomp filter costs: with one loaded, every entry into the kernel takes
//! the slow path (`SYSCALL_WORK_SECCOMP`) to look the number up in the filter's bitmap.

use std::time::Duration;

use super::Bench;
use super::row::{Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Workload, named_numbers};

/// The operations of `loops.c`.
const OPERATIONS: [&str; 6] = ["getppid", "read", "write", "stat", "open+close", "clock_gettime"];

/// One workload, whose guest times all operations one after another.
pub(super) fn workloads(bench: &Bench) -> Vec<Workload> {
    let guest = bench.workshop.file("loops");
    let plan = |name: &str| Plan {
        name: name.to_owned(),
        key: name.to_owned(),
        unit: Unit::Nanoseconds,
        target: Target::Ratio(1.02),
    };
    vec![Workload {
        group: "syscalls",
        title: "untrapped".to_owned(),
        flags: &[],
        command: Box::new(move |_| {
            let words = ["1", "3", "4"].into_iter().chain(OPERATIONS).map(Into::into);
            std::iter::once(guest.clone()).chain(words).collect()
        }),
        reading: Reading::Stdout(named_numbers),
        plans: OPERATIONS.map(plan).into(),
        contenders: vec!["native", "floor", "bwrap+time", "ours", "strace", "runsc"],
        reference: "native",
        effort: Effort {
            rounds: bench.pick(80, 12),
            slow_rounds: bench.pick(3, 1),
            budget: Duration::from_secs(bench.pick(45, 7)),
        },
        review: |_: &mut Row| {},
    }]
}
