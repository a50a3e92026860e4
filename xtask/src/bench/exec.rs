//! How long another program takes in a sandbox that runs, against nsenter(1) into its namespaces.
//!
//! nsenter joins the namespaces of the sandbox's program and executes: no filter, no wall but the
//! namespaces, no standard streams in between. It is what a join costs at the least.

use std::time::Duration;

use super::contender::{Contender, Contenders};
use super::process::Failure;
use super::row::{Row, Target, Unit};
use super::running::{Guest, Listed, verb};
use super::workload::{Effort, Plan, Reading, Workload};
use super::{Bench, or_note};

/// The name that `--only` knows.
pub(super) const NAME: &str = "exec/into a running sandbox";

const ID: &str = "bench-exec";

/// Two rows: to the end of `true`, and to the first output of `echo`.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    or_note(rows(bench), NAME, |notes| Row {
        name: "exec/true, to its end".to_owned(),
        unit: Unit::Nanoseconds,
        reference: "nsenter",
        target: Target::None,
        columns: Vec::new(),
        notes,
    })
}

fn rows(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let ours = bench.contenders.get("ours");
    let ours = ours.ok_or_else(|| Failure::Failed("there is none".to_owned()))?;
    let script = ["sh", "-c", "echo asleep; exec sleep 300"];
    let _running =
        Guest::start(bench, ours, &["--id", ID], &script, "asleep").map_err(Failure::Failed)?;
    let pid = program(bench, ours)?.to_string();

    let words: Vec<String> =
        ours.verb(&["exec", ID]).iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let nsenter = ["nsenter", "--preserve-credentials", "--all", "--target", &pid, "--"];
    let candidates = vec![
        ("native", vec![Contender::new("native", &[])]),
        ("nsenter", vec![Contender::new("nsenter", &nsenter)]),
        ("ours", vec![Contender::with_flags("ours", &words)]),
    ];
    let contenders = Contenders::those_of(candidates, &bench.workshop, &bench.runner)
        .map_err(|_| Failure::Interrupted)?;

    let mut rows = Vec::new();
    for workload in [
        workload(bench, "true, to its end", Reading::WallTime, &["true"]),
        workload(bench, "echo, to its first output", Reading::FirstOutput, &["echo", "here"]),
    ] {
        // (Only an interruption is an error there.)
        let measured = workload.measure(&contenders, &bench.runner, bench.workshop.path());
        rows.extend(measured.map_err(|_| Failure::Interrupted)?);
    }
    rows[0].notes.extend(contenders.skipped.iter().map(|why| format!("{why}: exec")));
    Ok(rows)
}

/// The host's number of the sandbox's program.
fn program(bench: &Bench, ours: &Contender) -> Result<u32, Failure> {
    let listed = verb(bench, ours, &["ps", ID, "--json"])?.stdout;
    let listed: Vec<Listed> = serde_json::from_str(&listed)
        .map_err(|error| Failure::Failed(format!("cannot read ps {ID} --json: {error}")))?;
    let first = listed.first().ok_or_else(|| Failure::Failed("ps lists nothing".to_owned()))?;
    Ok(first.pid)
}

fn workload(bench: &Bench, title: &str, reading: Reading, argv: &[&str]) -> Workload {
    let argv: Vec<_> = argv.iter().map(Into::into).collect();
    Workload {
        group: "exec",
        title: title.to_owned(),
        flags: &[],
        command: Box::new(move |_| argv.clone()),
        reading,
        plans: vec![Plan {
            name: title.to_owned(),
            key: title.to_owned(),
            unit: Unit::Nanoseconds,
            target: Target::None,
        }],
        contenders: vec!["native", "nsenter", "ours"],
        reference: "nsenter",
        effort: Effort {
            rounds: bench.pick(100, 20),
            slow_rounds: 0,
            budget: Duration::from_secs(bench.pick(20, 4)),
        },
        review: |_: &mut Row| {},
    }
}
