//! How long `sandbox -- true` takes, from the spawn to the exit.

use std::time::Duration;

use super::Bench;
use super::row::{Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Workload};

/// Milliseconds on a quiet machine.
const AT_MOST: f64 = 15.0;

/// One workload with two rows: the ratio to bwrap, and the time itself.
pub(super) fn workloads(bench: &Bench) -> Vec<Workload> {
    let plan = |name: &str, target| Plan {
        name: name.to_owned(),
        key: name.to_owned(),
        unit: Unit::Nanoseconds,
        target,
    };
    vec![Workload {
        group: "start-up",
        title: "true".to_owned(),
        flags: &[],
        command: Box::new(|_| vec!["true".into()]),
        reading: Reading::WallTime,
        plans: vec![
            plan("true, against bwrap", Target::Ratio(1.5)),
            plan("true, by the clock", Target::AtMost(AT_MOST * 1e6)),
        ],
        contenders: vec!["native", "bwrap", "ours", "strace", "runsc"],
        reference: "bwrap",
        effort: Effort {
            rounds: bench.pick(200, 50),
            slow_rounds: bench.pick(20, 3),
            budget: Duration::from_secs(bench.pick(60, 6)),
        },
        review: |_: &mut Row| {},
    }]
}
