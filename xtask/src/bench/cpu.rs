//! Whether the CPU time that a sandbox reports is right, and how exactly a budget of it is kept.
//!
//! The guest computes in several processes and prints what the host's kernel says of them, by
//! wait4(2). That is the yardstick for what the supervisor logs at the end, and for what was used
//! until `--cpu-time` ended it.

use std::ffi::OsString;
use std::time::Duration;

use super::Bench;
use super::contender::Contender;
use super::process::{Failure, Finished, Output};
use super::report::figure;
use super::row::{Column, Row, Target, Unit};
use super::workload::named_numbers;

/// The names that `--only` knows.
pub(super) const REPORT: &str = "cpu-time/reported";
/// The second.
pub(super) const BUDGET: &str = "cpu-time/budget";

/// Processes that compute at the same time, and share the work.
const PROCESSES: [u32; 3] = [1, 2, 8];
/// All of the work, CPU time. What a report leaves out is no share of it, but some milliseconds; so
/// a quick run has as much.
const MILLISECONDS: u32 = 2000;
/// What is reported may be off by so much.
const MOST_PERCENT: f64 = 1.0;
/// What may be used beyond a budget.
const MOST_BEYOND: f64 = 30e6;
/// A budget that no run of these uses up: it makes a control group count, where there is one.
const FAR: [&str; 2] = ["--cpu-time", "1000"];
/// The budget of which the end is measured.
const NEAR: [&str; 2] = ["--cpu-time", "1s:10s"];
const NEAR_NANOSECONDS: f64 = 1e9;
/// Longer than any of it takes, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Two rows for each number of processes: with the clock of a default run, and with a budget's.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn report(bench: &Bench) -> Result<Vec<Row>, String> {
    let Some(ours) = bench.contenders.get("ours") else { return Ok(Vec::new()) };
    let rounds = bench.pick(3, 1);
    let mut rows = Vec::new();
    for count in PROCESSES {
        for (flags, with) in [(&[][..], ""), (&FAR[..], ", budget")] {
            let s = if count == 1 { "" } else { "es" };
            let mut row = row(
                format!("cpu-time/error, {count} process{s}{with}"),
                Unit::Percent,
                MOST_PERCENT,
                source(bench, ours, flags)?,
            );
            for round in 0..rounds {
                match compute(bench, ours, flags, count, MILLISECONDS / count) {
                    Ok((reported, used)) => {
                        let percent = 100.0 * (reported - used).abs() / used;
                        if round == 0 {
                            row.notes.push(format!(
                                "{}: {:.1} ms reported, {:.1} ms by wait4(2)",
                                row.name,
                                reported / 1e6,
                                used / 1e6
                            ));
                        }
                        row.columns[0].rounds.push((round, vec![percent]));
                    }
                    Err(failure) => {
                        failure.note(ours.name, REPORT, &mut row.notes)?;
                        break;
                    }
                }
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// One row: what eight processes have used when a budget of a second is at its end.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn budget(bench: &Bench) -> Result<Vec<Row>, String> {
    let Some(ours) = bench.contenders.get("ours") else { return Ok(Vec::new()) };
    let name = "cpu-time/beyond 1 s, 8 processes".to_owned();
    let mut row = row(name, Unit::Nanoseconds, MOST_BEYOND, source(bench, ours, &NEAR)?);
    for round in 0..bench.pick(10, 3) {
        match compute(bench, ours, &NEAR, 8, 0) {
            Ok((_, used)) if used >= NEAR_NANOSECONDS => {
                row.columns[0].rounds.push((round, vec![used - NEAR_NANOSECONDS]));
            }
            Ok((_, used)) => row.notes.push(format!(
                "{}: round {round} ended {} before the budget did: no sample",
                row.name,
                figure(NEAR_NANOSECONDS - used, row.unit)
            )),
            Err(failure) => {
                failure.note(ours.name, BUDGET, &mut row.notes)?;
                break;
            }
        }
    }
    Ok(vec![row])
}

fn row(name: String, unit: Unit, most: f64, source: String) -> Row {
    let column = Column { contender: "ours", rounds: Vec::new(), again: Vec::new() };
    Row {
        notes: vec![format!("{name}: {source}")],
        name,
        unit,
        reference: "native",
        target: Target::AtMost(most),
        columns: vec![column],
    }
}

/// One run, in which each process uses so much (0: all it gets): the nanoseconds that the sandbox reports, and those that the kernel does.
fn compute(
    bench: &Bench,
    ours: &Contender,
    flags: &[&str],
    count: u32,
    milliseconds: u32,
) -> Result<(f64, f64), Failure> {
    let guest =
        [bench.workshop.file("spin"), count.to_string().into(), milliseconds.to_string().into()];
    let log = ["env", "SANDBOX_LOG=sandbox::runtime=debug"].map(OsString::from);
    let argv: Vec<OsString> = log.into_iter().chain(ours.wrap_with(flags, &guest)).collect();
    let Finished { stdout, stderr, .. } =
        bench.runner.run(&argv, bench.workshop.path(), LIMIT, Output::Keep)?;
    let used = named_numbers(&stdout)
        .ok()
        .and_then(|samples| samples.into_iter().find(|(name, _)| name == "cpu"))
        .map(|(_, nanoseconds)| nanoseconds);
    match (reported(&stderr), used) {
        (Some(microseconds), Some(used)) => Ok((microseconds * 1e3, used)),
        (None, _) => Err(Failure::Failed("no cpu_us in its log".to_owned())),
        (_, None) => Err(Failure::Failed("the guest printed no figure".to_owned())),
    }
}

/// The number behind `cpu_us=` in a log.
fn reported(log: &str) -> Option<f64> {
    let (_, rest) = log.rsplit_once("cpu_us=")?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Who counts, as a dry run explains it; only a budget's source is worth a word there.
fn source(bench: &Bench, ours: &Contender, flags: &[&str]) -> Result<String, String> {
    if flags.is_empty() {
        return Ok("without a budget the processes' CPU clocks count".to_owned());
    }
    let flags: Vec<&str> = ["--dry-run"].into_iter().chain(flags.iter().copied()).collect();
    let argv = ours.wrap_with(&flags, &["true".into()]);
    let mut notes = Vec::new();
    match bench.runner.run(&argv, bench.workshop.path(), LIMIT, Output::Keep) {
        Ok(Finished { stdout, stderr, .. }) => Ok(counted(&format!("{stdout}{stderr}"))
            .unwrap_or_else(|| "a dry run does not say who counts".to_owned())),
        Err(failure) => {
            failure.note(ours.name, "a dry run", &mut notes)?;
            Ok(notes.remove(0))
        }
    }
}

/// `counted by WHOM`, at the end of a line.
fn counted(explanation: &str) -> Option<String> {
    let begin = explanation.find("counted by ")?;
    explanation[begin..].lines().next().map(|line| line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_found_in_a_log() {
        let log = "DEBUG sandbox::runtime: the guests have ended cpu_us=2003117\nanother line\n";
        assert_eq!(reported(log), Some(2_003_117.0));
        assert_eq!(reported("nothing"), None);
    }

    #[test]
    fn the_source_is_found_in_an_explanation() {
        let text =
            "limits\n  cpu-time  1 s  SIGXCPU, SIGKILL at 2 s; counted by a control group\nend";
        assert_eq!(counted(text).as_deref(), Some("counted by a control group"));
        assert_eq!(counted("limits\n  none\n"), None);
    }
}
