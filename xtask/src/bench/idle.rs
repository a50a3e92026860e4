//! What a sandbox costs that does nothing: memory, wake-ups, CPU time.
//!
//! The guest prints a line and sleeps, or sleeps in the background. Counted are the supervisor's side
//! (the process that was started and its descendants outside of the guest's pid namespace) and, for
//! wake-ups, the guest's init too; the sleeping guest itself is nobody's cost.

use std::fs;
use std::time::Duration;

use super::Bench;
use super::contender::Contender;
use super::machine::kibibytes;
use super::process::Failure;
use super::processes::{self, Part};
use super::row::{Column, Row, Target, Unit};
use super::running::{Detached, Guest};

/// The names that `--only` knows.
pub(super) const ONE: &str = "idle/memory and wake-ups";
/// The second.
pub(super) const MANY: &str = "idle/many";

/// KiB.
const MOST_MEMORY: f64 = 8192.0;
/// Until start-up is over: what is done once is no wake-up of an idle sandbox.
const SETTLE: Duration = Duration::from_secs(1);
/// Consumers of the ticker, armed and far from what they wait for.
const ARMED: [&str; 6] = ["--cpu-time", "1000", "--memory", "1g", "--timeout", "1h"];

/// What /proc tells of the processes of a sandbox.
#[derive(Debug, Default)]
struct Reading {
    /// Proportional set size of the supervisor's side, KiB; `None` where it may not be read.
    memory: Option<u64>,
    /// Context switches so far of every thread of the supervisor's side and the guest's init.
    switches: u64,
}

/// The rows of ours and bwrap, which sleep at the same time, with one of ours in the background
/// whose limits are armed.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn one(bench: &Bench) -> Result<Vec<Row>, String> {
    let seconds = bench.pick(10, 4);
    let mut notes = Vec::new();
    let mut sleepers = Vec::new();
    let script = ["sh", "-c", "echo asleep; exec sleep 120"];
    for contender in bench.contenders.select(&["bwrap", "ours"]) {
        match Guest::start(bench, contender, &[], &script, "asleep") {
            Ok(sleeper) => sleepers.push(sleeper),
            Err(why) => notes.push(format!("{} gave up in {ONE}: {why}", contender.name)),
        }
    }
    let armed = match bench.contenders.get("ours") {
        Some(ours) => background(bench, ours, 1, &ARMED, ONE, &mut notes)?,
        None => None,
    };
    settle(bench, SETTLE)?;
    let before: Vec<Reading> = sleepers.iter().map(|sleeper| read(sleeper.pid())).collect();
    let armed_before = armed.as_ref().map(|armed| read(armed.supervisors[0]).switches);
    settle(bench, Duration::from_secs(seconds))?;

    let (mut memory, mut wake_ups) = (Vec::new(), Vec::new());
    for (sleeper, before) in sleepers.iter_mut().zip(&before) {
        let after = read(sleeper.pid());
        if !sleeper.lives() {
            notes.push(format!("{} ended while it was to sleep", sleeper.name));
            continue;
        }
        wake_ups.push(single(sleeper.name, after.switches.saturating_sub(before.switches)));
        match after.memory {
            Some(kib) => memory.push(single(sleeper.name, kib)),
            None => notes.push(format!("skipped: no readable smaps_rollup of {}", sleeper.name)),
        }
    }
    let mut armed_wake_ups = Vec::new();
    if let (Some(armed), Some(before)) = (&armed, armed_before) {
        match processes::exists(armed.supervisors[0]) {
            true => {
                let after = read(armed.supervisors[0]).switches;
                armed_wake_ups.push(single("ours", after.saturating_sub(before)));
            }
            false => notes.push("ours with limits ended while it was to sleep".to_owned()),
        }
    }
    let none = || Target::AtMost(0.0);
    let most = Target::AtMost(MOST_MEMORY);
    Ok(vec![
        row("memory (PSS)".to_owned(), Unit::Kibibytes, most, memory, notes),
        row(format!("wake-ups in {seconds} s"), Unit::Count, none(), wake_ups, Vec::new()),
        row(
            format!("wake-ups in {seconds} s, armed"),
            Unit::Count,
            none(),
            armed_wake_ups,
            vec![format!("armed: in the background, with {}", ARMED.join(" "))],
        ),
    ])
}

/// Many in the background at one time.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn many(bench: &Bench) -> Result<Vec<Row>, String> {
    let (count, seconds) = bench.pick((100, 10), (20, 4));
    let mut notes = Vec::new();
    let Some(ours) = bench.contenders.get("ours") else { return Ok(Vec::new()) };
    let Some(detached) = background(bench, ours, count, &[], MANY, &mut notes)? else {
        return Ok(vec![row(
            "CPU time".to_owned(),
            Unit::Nanoseconds,
            Target::None,
            vec![],
            notes,
        )]);
    };
    settle(bench, SETTLE)?;
    // The guests count here: the whole of what runs.
    let family = processes::families(&detached.supervisors);
    let sum = || {
        let times = family.iter().filter_map(|pid| processes::run_time(*pid));
        (times.sum::<u64>(), family.iter().map(|pid| processes::switches(*pid)).sum::<u64>())
    };
    let before = sum();
    settle(bench, Duration::from_secs(seconds))?;
    let after = sum();
    let lost = detached.supervisors.iter().filter(|pid| !processes::exists(**pid)).count();
    if lost > 0 {
        notes.push(format!("{lost} of {count} sandboxes ended while they were to sleep"));
    }
    let mut time = vec![single("ours", after.0.saturating_sub(before.0))];
    if processes::run_time(std::process::id()).is_none() {
        time.clear();
        notes.push("skipped: no schedstat (CONFIG_SCHED_INFO)".to_owned());
    }
    let what = |what: &str| format!("{what} of {count} in {seconds} s");
    let wake_ups = vec![single("ours", after.1.saturating_sub(before.1))];
    Ok(vec![
        row(what("CPU time"), Unit::Nanoseconds, Target::None, time, notes),
        row(what("wake-ups"), Unit::Count, Target::None, wake_ups, Vec::new()),
    ])
}

fn row(name: String, unit: Unit, target: Target, columns: Vec<Column>, notes: Vec<String>) -> Row {
    Row { name: format!("idle/{name}"), unit, reference: "bwrap", target, columns, notes }
}

fn single(contender: &'static str, sample: u64) -> Column {
    Column { contender, rounds: vec![(0, vec![sample as f64])], again: Vec::new() }
}

/// Sandboxes in the background; `None`, with a note, where they cannot be started.
fn background<'a>(
    bench: &'a Bench,
    ours: &'a Contender,
    count: usize,
    flags: &[&str],
    row: &str,
    notes: &mut Vec<String>,
) -> Result<Option<Detached<'a>>, String> {
    match Detached::start(bench, ours, count, flags) {
        Ok(detached) => Ok(Some(detached)),
        Err(failure) => failure.note(ours.name, row, notes).map(|()| None),
    }
}

fn settle(bench: &Bench, duration: Duration) -> Result<(), String> {
    let interrupted = |_: Failure| "interrupted: nothing was written".to_owned();
    bench.runner.pause(duration).map_err(interrupted)
}

fn read(supervisor: u32) -> Reading {
    let mut reading = Reading { memory: Some(0), switches: 0 };
    for pid in processes::family(supervisor) {
        let part = processes::part(pid);
        if part == Part::Supervisor {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
            let kib = rollup.ok().and_then(|text| kibibytes(&text, "Pss"));
            reading.memory = reading.memory.zip(kib).map(|(sum, kib)| sum + kib);
        }
        if part != Part::Guest {
            reading.switches += processes::switches(pid);
        }
    }
    reading
}
