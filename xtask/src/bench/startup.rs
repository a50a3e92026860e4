//! How long `sandbox -- true` takes, from the spawn to the exit.

use std::time::Duration;

use super::Bench;
use super::row::{Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Workload};

/// Milliseconds on a quiet machine.
const AT_MOST: f64 = 15.0;
/// The same with so many rules about files: one of a hundred is about something.
const AT_MOST_WITH_RULES: f64 = 200.0;
const RULES: usize = 100_000;

/// One workload with two rows, the ratio to bwrap and the time itself; and one with many rules.
///
/// # Errors
/// The profile with the rules cannot be written.
pub(super) fn workloads(bench: &Bench) -> Result<Vec<Workload>, String> {
    let rules: String = (0..RULES)
        .map(|number| format!("    \"secrets/{}/key-{number}\",\n", number % 97))
        .collect();
    bench.workshop.write("rules.toml", &format!("hide = [\n{rules}]\n"))?;
    for number in (0..RULES).step_by(100) {
        bench.workshop.write(&format!("secrets/{}/key-{number}", number % 97), "a secret\n")?;
    }
    let plan = |name: &str, target| Plan {
        name: name.to_owned(),
        key: name.to_owned(),
        unit: Unit::Nanoseconds,
        target,
    };
    let effort = |rounds, quick, seconds| Effort {
        rounds: bench.pick(rounds, quick),
        slow_rounds: bench.pick(20, 3),
        budget: Duration::from_secs(bench.pick(seconds, 6)),
    };
    let many = Workload {
        group: "start-up",
        title: "many rules".to_owned(),
        flags: &["--quiet", "--profile", "./rules.toml"],
        command: Box::new(|_| vec!["true".into()]),
        reading: Reading::WallTime,
        plans: vec![plan("true, with 100,000 rules", Target::AtMost(AT_MOST_WITH_RULES * 1e6))],
        contenders: vec!["ours"],
        reference: "ours",
        effort: effort(20, 5, 20),
        review: |_: &mut Row| {},
    };
    let plain = Workload {
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
        effort: effort(200, 50, 60),
        review: |_: &mut Row| {},
    };
    Ok(vec![plain, many])
}
