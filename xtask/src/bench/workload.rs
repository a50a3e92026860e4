//! A workload, and how contenders take turns at it.
//!
//! Owns warm-up, order, rounds and budgets. A contender that fails leaves the workload with a
//! note, and the others go on.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use super::contender::{Contender, Contenders};
use super::process::{Failure, Finished, Output, Runner};
use super::row::{Column, Row, Target, Unit};

/// A child that takes longer than this is stopped.
const LIMIT: Duration = Duration::from_secs(120);
/// After so much warm-up the caches that contenders share are warm.
const WARM: Duration = Duration::from_secs(1);
/// Rounds that are run whatever the budget says: fewer have no spread.
const LEAST_ROUNDS: usize = 3;

/// Says the command that a contender is to run.
pub(super) type CommandFor = dyn Fn(&Contender) -> Vec<OsString>;

/// What one run of a guest told: samples by the name of their row.
pub(super) type Samples = Vec<(String, f64)>;

/// How samples are won from a run.
pub(super) enum Reading {
    /// The wall time of the whole command, in nanoseconds, for all rows of the workload.
    WallTime,
    /// From the start until the guest has printed something, in nanoseconds, for all rows.
    FirstOutput,
    /// The guest prints its own figures; says why where it cannot make sense of them.
    Stdout(fn(&str) -> Result<Samples, String>),
}

/// What is planned for one row.
pub(super) struct Plan {
    /// The row's name.
    pub(super) name: String,
    /// The name that the guest's figures carry.
    pub(super) key: String,
    /// What the samples count.
    pub(super) unit: Unit,
    /// What ours is compared with.
    pub(super) target: Target,
}

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// How often each contender runs.
    pub(super) rounds: usize,
    /// How often a slow contender runs; 0 leaves it out.
    pub(super) slow_rounds: usize,
    /// When no further round is begun, once there are enough.
    pub(super) budget: Duration,
}

/// One command and the rows that it fills.
pub(super) struct Workload {
    /// The group: `trap`, `syscalls`, `commands`, ...
    pub(super) group: &'static str,
    /// Names the workload in its group.
    pub(super) title: String,
    /// Flags for contenders that take some.
    pub(super) flags: &'static [&'static str],
    /// The command for a contender, which may make it smaller for a slow one.
    pub(super) command: Box<CommandFor>,
    /// How figures come out.
    pub(super) reading: Reading,
    /// The rows.
    pub(super) plans: Vec<Plan>,
    /// Who takes part, if present here.
    pub(super) contenders: Vec<&'static str>,
    /// Whom ours is compared with; it runs twice in each round, which tells the noise.
    pub(super) reference: &'static str,
    /// How often.
    pub(super) effort: Effort,
    /// Looks at a finished row and adds what its reader must know.
    pub(super) review: fn(&mut Row),
}

/// One contender's part in a workload while it is measured.
struct Entry<'a> {
    contender: &'a Contender,
    /// The second run of the reference.
    again: bool,
    /// By plan, then by round.
    samples: Vec<Vec<(usize, Vec<f64>)>>,
    failed: bool,
}

impl Workload {
    /// The group and the title.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.group, self.title)
    }

    /// What `--only` can choose it by: its own name and those of its rows.
    pub(super) fn names(&self) -> Vec<String> {
        let rows = self.plans.iter().map(|plan| format!("{}/{}", self.group, plan.name));
        let mut names: Vec<String> = std::iter::once(self.name()).chain(rows).collect();
        names.dedup();
        names
    }

    /// Measures all rows.
    ///
    /// # Errors
    /// Only where the user interrupts.
    pub(super) fn measure(
        &self,
        contenders: &Contenders,
        runner: &Runner,
        directory: &Path,
    ) -> Result<Vec<Row>, String> {
        let mut notes = Vec::new();
        let mut entries = self.entries(contenders);
        let begin = Instant::now();
        for entry in entries.iter_mut().filter(|entry| !entry.contender.slow && !entry.again) {
            if begin.elapsed() > WARM {
                break;
            }
            self.turn(entry, None, runner, directory, &mut notes)?;
        }
        let begin = Instant::now();
        let enough = self.effort.rounds.min(LEAST_ROUNDS);
        for round in 0..self.effort.rounds {
            if round >= enough && begin.elapsed() >= self.effort.budget {
                break;
            }
            // Another one is first in each round: whoever follows a heavy contender finds a
            // machine that is warm, throttled or still cleaning up.
            let count = entries.len().max(1);
            entries.rotate_left(round.min(1) % count);
            for entry in &mut entries {
                let rounds =
                    if entry.contender.slow { self.effort.slow_rounds } else { self.effort.rounds };
                if round < rounds && !entry.failed {
                    self.turn(entry, Some(round), runner, directory, &mut notes)?;
                }
            }
        }
        Ok(self.rows(&entries, &notes))
    }

    fn entries<'a>(&self, contenders: &'a Contenders) -> Vec<Entry<'a>> {
        let entry = |contender, again| Entry {
            contender,
            again,
            samples: self.plans.iter().map(|_| Vec::new()).collect(),
            failed: false,
        };
        let mut entries = Vec::new();
        for contender in contenders.select(&self.contenders) {
            entries.push(entry(contender, false));
        }
        if let Some(reference) = contenders.get(self.reference) {
            entries.push(entry(reference, true));
        }
        entries
    }

    /// Runs the command once; without a round it is a warm-up, whose figures are dropped.
    fn turn(
        &self,
        entry: &mut Entry<'_>,
        round: Option<usize>,
        runner: &Runner,
        directory: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(), String> {
        let argv = entry.contender.wrap_with(self.flags, &(self.command)(entry.contender));
        let output = match self.reading {
            Reading::WallTime => Output::Discard,
            Reading::FirstOutput | Reading::Stdout(_) => Output::Keep,
        };
        let outcome = runner
            .run(&argv, directory, LIMIT, output)
            .and_then(|finished| self.read(&finished).map_err(Failure::Failed));
        match outcome {
            Ok(samples) => {
                let Some(round) = round else { return Ok(()) };
                for (plan, rounds) in self.plans.iter().zip(&mut entry.samples) {
                    let mine = samples.iter().filter(|(name, _)| *name == plan.key);
                    rounds.push((round, mine.map(|(_, sample)| *sample).collect()));
                }
                Ok(())
            }
            Err(failure) => {
                entry.failed = true;
                failure.note(entry.contender.name, &self.name(), notes)
            }
        }
    }

    fn read(&self, finished: &Finished) -> Result<Samples, String> {
        match self.reading {
            Reading::WallTime => {
                let nanoseconds = finished.wall.as_nanos() as f64;
                Ok(self.plans.iter().map(|plan| (plan.key.clone(), nanoseconds)).collect())
            }
            Reading::FirstOutput => match finished.first_output {
                Some(span) => {
                    let sample = |plan: &Plan| (plan.key.clone(), span.as_nanos() as f64);
                    Ok(self.plans.iter().map(sample).collect())
                }
                None => Err("the guest printed nothing".to_owned()),
            },
            Reading::Stdout(parse) => {
                let samples = parse(&finished.stdout)?;
                let missing = self
                    .plans
                    .iter()
                    .find(|plan| !samples.iter().any(|(name, _)| *name == plan.key));
                match missing {
                    None => Ok(samples),
                    Some(plan) => Err(format!("the guest printed no figure for {}", plan.key)),
                }
            }
        }
    }

    fn rows(&self, entries: &[Entry<'_>], notes: &[String]) -> Vec<Row> {
        let row = |(index, plan): (usize, &Plan)| {
            let of = |name: &str, again: bool| {
                entries
                    .iter()
                    .find(|entry| entry.contender.name == name && entry.again == again)
                    .map(|entry| entry.samples[index].clone())
                    .filter(|rounds| !rounds.is_empty())
            };
            let column = |&name: &&'static str| {
                let again = of(name, true).unwrap_or_default();
                of(name, false).map(|rounds| Column { contender: name, rounds, again })
            };
            let mut row = Row {
                name: format!("{}/{}", self.group, plan.name),
                unit: plan.unit,
                reference: self.reference,
                target: plan.target,
                columns: self.contenders.iter().filter_map(column).collect(),
                // Once is enough for all rows of a workload.
                notes: if index == 0 { notes.to_vec() } else { Vec::new() },
            };
            (self.review)(&mut row);
            row
        };
        self.plans.iter().enumerate().map(row).collect()
    }
}

/// Reads lines of a name and a number, as the C guests print them; other lines are not figures.
///
/// # Errors
/// None: what is missing is found by the caller.
pub(super) fn named_numbers(stdout: &str) -> Result<Samples, String> {
    let figure = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    Ok(stdout.lines().filter_map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_name_and_a_number_are_figures() {
        let samples = named_numbers("getppid 210.5\nanswer syslog 131072\n\nread 1\n");
        assert_eq!(samples, Ok(vec![("getppid".to_owned(), 210.5), ("read".to_owned(), 1.0)]));
    }
}
