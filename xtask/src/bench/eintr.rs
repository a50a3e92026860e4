//! How often a signal interrupts a call that no kernel lets it interrupt.
//!
//! A trapped call can be interrupted between the trap and the RECV, and nothing in user space
//! closes that window (`seccomp_do_user_notification()` sleeps interruptibly until then). fork,
//! dup and close are not trapped in a default run, so they must stay at zero; syslog is, and shows
//! the rate.

use std::time::Duration;

use super::Bench;
use super::row::{Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Workload, named_numbers};

/// Rounds of each call under the storm.
const ROUNDS: &str = "300";

/// One workload with one row for each call.
pub(super) fn workloads(bench: &Bench) -> Vec<Workload> {
    let guest = bench.workshop.file("storm");
    let plan = |key: &str, target| Plan {
        name: format!("{key}, of {ROUNDS}"),
        key: key.to_owned(),
        unit: Unit::Count,
        target,
    };
    vec![Workload {
        group: "eintr",
        title: "storm".to_owned(),
        flags: &[],
        command: Box::new(move |_| vec![guest.clone(), ROUNDS.into()]),
        reading: Reading::Stdout(named_numbers),
        plans: vec![
            plan("fork", Target::AtMost(0.0)),
            plan("dup", Target::AtMost(0.0)),
            plan("close", Target::AtMost(0.0)),
            plan("syslog", Target::None),
            plan("signals", Target::None),
        ],
        contenders: vec!["native", "floor", "bwrap", "ours"],
        reference: "native",
        // One run: a median of several would hide a rare interruption.
        effort: Effort { rounds: 1, slow_rounds: 0, budget: Duration::from_secs(30) },
        review: |_: &mut Row| {},
    }]
}
