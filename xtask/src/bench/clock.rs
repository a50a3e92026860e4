//! What the time of day costs under a clock of the sandbox's own.
//!
//! Ours computes it in the program's own vDSO. Beside it are native, libfaketime, which does in a
//! preloaded library what that can reach, and a clock that root inside has set: from then on every
//! reading is trapped.

use std::time::Duration;

use super::Bench;
use super::report::figure;
use super::row::{Column, Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Workload, named_numbers};

/// What `loops.c` calls reading CLOCK_REALTIME.
const OPERATION: &str = "realtime";

/// One workload with one row.
pub(super) fn workloads(bench: &Bench) -> Vec<Workload> {
    let guest = bench.workshop.file("loops");
    vec![Workload {
        group: "clock",
        title: "clock_gettime, --time +0s".to_owned(),
        flags: &["--time", "+0s"],
        command: Box::new(move |contender| {
            let set = if contender.name == "trapped" { &["set-clock"][..] } else { &[] };
            let words = ["1", "3", "10"].iter().chain(set).chain(&[OPERATION]);
            std::iter::once(guest.clone()).chain(words.map(Into::into)).collect()
        }),
        reading: Reading::Stdout(named_numbers),
        plans: vec![Plan {
            name: "clock_gettime, --time +0s".to_owned(),
            key: OPERATION.to_owned(),
            unit: Unit::Nanoseconds,
            target: Target::None,
        }],
        contenders: vec!["native", "ours", "libfaketime", "trapped"],
        reference: "native",
        effort: Effort {
            rounds: bench.pick(40, 8),
            slow_rounds: 0,
            budget: Duration::from_secs(bench.pick(20, 4)),
        },
        review,
    }]
}

/// The table has no column for what is trapped.
fn review(row: &mut Row) {
    if let Some(trapped) = row.column("trapped").and_then(Column::summary) {
        row.notes.push(format!(
            "{}: trapped, once root inside has set the clock, it is {} (least {})",
            row.name,
            figure(trapped.median, row.unit),
            figure(trapped.min, row.unit)
        ));
    }
}
