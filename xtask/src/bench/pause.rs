//! How long it takes to stop every task of a sandbox, and to let all of them go on.
//!
//! `sandbox pause` and `sandbox resume` are measured as whole commands. Beside them `halt.c` sends
//! SIGSTOP to as many processes outside of any sandbox, one after another, and waits until /proc
//! shows all of their threads stopped; it is a whole command too.

use std::ffi::OsString;
use std::time::Duration;

use super::Bench;
use super::contender::Contender;
use super::process::{Failure, Output};
use super::processes::{self, Part};
use super::row::{Column, Row, Target, Unit};
use super::running::Guest;

/// The name that `--only` knows.
pub(super) const NAME: &str = "pause/stop and go";

/// What sleeps.
const CROWDS: [(&str, u32); 5] = [
    ("processes", 1),
    ("processes", 100),
    ("processes", 1000),
    ("threads", 100),
    ("threads", 1000),
];
const ID: &str = "bench-pause";
const LIMIT: Duration = Duration::from_secs(60);

/// Samples by the number of their round.
type Rounds = Vec<(usize, Vec<f64>)>;

/// The commands of one side, and what they took.
struct Side {
    stop: Vec<OsString>,
    go: Vec<OsString>,
    stops: Rounds,
    goes: Rounds,
}

/// Two rows for each crowd.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (kind, count) in CROWDS {
        let mut notes = Vec::new();
        match crowd(bench, kind, count, &mut notes) {
            Ok(pair) => rows.extend(pair),
            Err(failure) => {
                failure.note("ours", &format!("pause of {count} {kind}"), &mut notes)?;
                let mut empty = row("stop", kind, count, Vec::new());
                empty.notes = notes;
                rows.push(empty);
            }
        }
    }
    Ok(rows)
}

fn row(what: &str, kind: &str, count: u32, columns: Vec<Column>) -> Row {
    let kind = if count == 1 { "process" } else { kind };
    Row {
        name: format!("pause/{what}, {count} {kind}"),
        unit: Unit::Nanoseconds,
        reference: "kill",
        target: Target::None,
        columns,
        notes: Vec::new(),
    }
}

fn crowd(
    bench: &Bench,
    kind: &str,
    count: u32,
    notes: &mut Vec<String>,
) -> Result<[Row; 2], Failure> {
    let get = |name: &str| {
        let missing = || Failure::Failed(format!("there is no {name}"));
        bench.contenders.get(name).ok_or_else(missing)
    };
    let (ours, native) = (get("ours")?, get("native")?);
    let guest = bench.workshop.file("crowd");
    let (guest, count_word) = (guest.to_string_lossy(), count.to_string());
    let argv = [&*guest, kind, &count_word];
    let start = |contender: &Contender, flags: &[&str]| {
        Guest::start(bench, contender, flags, &argv, "ready").map_err(Failure::Failed)
    };
    let (inside, outside) = (start(ours, &["--id", ID])?, start(native, &[])?);

    let halt = |word: &str| {
        let pids = outside.line.split_whitespace().skip(1).map(Into::into);
        [bench.workshop.file("halt"), word.into()].into_iter().chain(pids).collect()
    };
    let side = |stop, go| Side { stop, go, stops: Vec::new(), goes: Vec::new() };
    let mut mine = side(ours.verb(&["pause", ID]), ours.verb(&["resume", ID]));
    let mut theirs = side(halt("stop"), halt("go"));
    let mut again = side(halt("stop"), halt("go"));
    // The first of each is a warm-up.
    let rounds = 1 + bench.pick(20, 4);
    for round in 0..rounds {
        let looked = (round == 0).then_some(&inside);
        let mut turns: [(&mut Side, Option<&Guest>); 3] =
            [(&mut mine, looked), (&mut theirs, None), (&mut again, None)];
        turns.rotate_left(round % 3);
        for (side, looked) in turns {
            turn(bench, side, round, looked, notes)?;
        }
    }

    let columns = |samples: fn(&Side) -> &Rounds| {
        let of = |side: &Side| samples(side)[1..].to_vec();
        let column = |contender, rounds, again| Column { contender, rounds, again };
        vec![column("kill", of(&theirs), of(&again)), column("ours", of(&mine), Vec::new())]
    };
    let mut stop = row("stop", kind, count, columns(|side| &side.stops));
    stop.notes.append(notes);
    Ok([stop, row("go on", kind, count, columns(|side| &side.goes))])
}

/// Stops one crowd and lets it go on.
fn turn(
    bench: &Bench,
    side: &mut Side,
    round: usize,
    looked: Option<&Guest>,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let timed = |argv: &[OsString]| {
        let finished = bench.runner.run(argv, bench.workshop.path(), LIMIT, Output::Discard)?;
        Ok::<f64, Failure>(finished.wall.as_nanos() as f64)
    };
    let stop = timed(&side.stop)?;
    if let Some(sandbox) = looked {
        let family = processes::family(sandbox.pid()).into_iter();
        let guests = family.filter(|pid| processes::part(*pid) == Part::Guest);
        let moving: usize = guests.map(processes::moving).sum();
        if moving > 0 {
            notes.push(format!("after a pause {moving} threads of the sandbox were not stopped"));
        }
    }
    let go = timed(&side.go)?;
    side.stops.push((round, vec![stop]));
    side.goes.push((round, vec![go]));
    Ok(())
}
