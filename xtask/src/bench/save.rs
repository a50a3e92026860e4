//! How long guests stand still while they are saved, how long a save takes, and a restore.
//!
//! The pause is what `sandbox save --leave-running --json` tells; beside it stands a bare fork(2) of a
//! process with as much memory. A whole save stands beside a process that writes as many bytes to a file
//! of the same file system in memory; a restore, until the command has returned (detached), beside a
//! process that maps the image privately and touches each page, which is no restore (memory that is given
//! away would not be zero afterwards) but the least that reading so much can cost.

use std::path::PathBuf;
use std::time::Duration;

use super::Bench;
use super::process::{Failure, Output};
use super::row::{Column, Row, Target, Unit};
use super::running::Guest;

/// The name that `--only` knows.
pub(super) const NAME: &str = "save/pause, save and restore";

const ID: &str = "bench-save";
const RESTORED: &str = "bench-restored";
const LIMIT: Duration = Duration::from_secs(120);
const MILLISECOND: f64 = 1e6;

/// Samples by the number of their round.
type Rounds = Vec<(usize, Vec<f64>)>;

/// All rows.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    let image = Image::new();
    let mut rows = Vec::new();
    let sizes: &[u32] = bench.pick(&[0, 1024, 4096], &[0, 256]);
    for size in sizes {
        note(heap(bench, *size, &image), &format!("save of {size} MiB"), &mut rows)?;
    }
    let size = bench.pick(1024, 256);
    note(zeros(bench, size, &image), "save of zeros", &mut rows)?;
    note(crowd(bench, &image), "save of a crowd", &mut rows)?;
    Ok(rows)
}

fn note(done: Result<Vec<Row>, Failure>, what: &str, rows: &mut Vec<Row>) -> Result<(), String> {
    match done {
        Ok(more) => rows.extend(more),
        Err(failure) => {
            let mut empty = row(what.to_owned(), "fork", Target::None, Vec::new(), Vec::new());
            failure.note("ours", what, &mut empty.notes)?;
            rows.push(empty);
        }
    }
    Ok(())
}

/// Where images are: in memory. Removed when dropped.
struct Image(PathBuf);

impl Image {
    fn new() -> Image {
        Image(PathBuf::from(format!("/dev/shm/sandbox-bench-image-{}", std::process::id())))
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn row(name: String, reference: &'static str, target: Target, theirs: Rounds, ours: Rounds) -> Row {
    let column = |contender, rounds| Column { contender, rounds, again: Vec::new() };
    Row {
        name: format!("save/{name}"),
        unit: Unit::Nanoseconds,
        reference,
        target,
        columns: vec![column(reference, theirs), column("ours", ours)],
        notes: Vec::new(),
    }
}

/// What a save has told.
#[derive(serde::Deserialize)]
struct Told {
    bytes: u64,
    pause_us: f64,
}

/// One save that leaves the guests running: what it told, and its time in all.
fn save(bench: &Bench, image: &Image) -> Result<(Told, f64), Failure> {
    let words = ["save", ID, "-o", image.name(), "--leave-running", "--json"];
    let (out, wall) = verb(bench, &words)?;
    let told = serde_json::from_str(&out)
        .map_err(|error| Failure::Failed(format!("cannot read what save --json says: {error}")))?;
    Ok((told, wall))
}

fn verb(bench: &Bench, words: &[&str]) -> Result<(String, f64), Failure> {
    let ours = bench.contenders.get("ours");
    let ours = ours.ok_or_else(|| Failure::Failed("there is no sandbox".to_owned()))?;
    let argv = ours.verb(words);
    let done = bench.runner.run(&argv, bench.workshop.path(), LIMIT, Output::Keep)?;
    Ok((done.stdout, done.wall.as_nanos() as f64))
}

/// Restores the image, and ends what it made. Gives the time of the restore.
fn restore(bench: &Bench, image: &Image) -> Result<f64, Failure> {
    let words = ["restore", image.name(), "--detach", "--id", RESTORED, "--quiet"];
    let (_, wall) = verb(bench, &words)?;
    verb(bench, &["kill", RESTORED, "KILL"])?;
    Ok(wall)
}

/// Figures that `heap.c` prints.
fn heap_says(bench: &Bench, words: &[&str]) -> Result<Vec<f64>, Failure> {
    let argv: Vec<_> =
        std::iter::once(bench.workshop.file("heap")).chain(words.iter().map(Into::into)).collect();
    let done = bench.runner.run(&argv, bench.workshop.path(), LIMIT, Output::Keep)?;
    Ok(done.stdout.lines().filter_map(|line| line.parse().ok()).collect())
}

fn hold(bench: &Bench, argv: &[&str]) -> Result<Guest, Failure> {
    let ours = bench.contenders.get("ours");
    let ours = ours.ok_or_else(|| Failure::Failed("there is no sandbox".to_owned()))?;
    Guest::start(bench, ours, &["--id", ID], argv, "ready").map_err(Failure::Failed)
}

/// Pause, save and restore of so many MiB of random bytes.
fn heap(bench: &Bench, size: u32, image: &Image) -> Result<Vec<Row>, Failure> {
    let (size_word, heap) = (size.to_string(), bench.workshop.file("heap"));
    let guest = hold(bench, &[&heap.to_string_lossy(), "hold", &size_word, "random"])?;
    let [mut forks, mut pauses, mut copies, mut saves, mut maps, mut restores] =
        [const { Rounds::new() }; 6];
    for round in 0..bench.pick(5, 3) {
        forks.push((round, heap_says(bench, &["fork", &size_word])?));
        if size > 0 {
            copies.push((round, heap_says(bench, &["copy", &size_word, image.name()])?));
        }
        let (told, wall) = save(bench, image)?;
        pauses.push((round, vec![told.pause_us * 1e3]));
        if size == 0 {
            continue;
        }
        saves.push((round, vec![wall]));
        maps.push((round, heap_says(bench, &["map", &size_word, image.name()])?));
        restores.push((round, vec![restore(bench, image)?]));
    }
    drop(guest);
    let name = |what: &str| match size {
        0 => format!("{what}, nothing"),
        size => format!("{what}, {size} MiB"),
    };
    if size == 0 {
        let target = Target::AtMost(3.0 * MILLISECOND);
        return Ok(vec![row(name("pause"), "fork", target, forks, pauses)]);
    }
    let mut pause = row(name("pause"), "fork", Target::Ratio(1.5), forks, pauses);
    pause.notes.push("the pause may take 5 ms more than 1.5 forks".to_owned());
    Ok(vec![
        pause,
        row(name("whole"), "copy", Target::Ratio(1.3), copies, saves),
        row(name("restore"), "mapping", Target::None, maps, restores),
    ])
}

/// A save of touched zeros.
fn zeros(bench: &Bench, size: u32, image: &Image) -> Result<Vec<Row>, Failure> {
    let (size_word, heap) = (size.to_string(), bench.workshop.file("heap"));
    let guest = hold(bench, &[&heap.to_string_lossy(), "hold", &size_word, "zero"])?;
    let (mut saves, mut bytes) = (Rounds::new(), 0);
    for round in 0..bench.pick(5, 3) {
        let (told, wall) = save(bench, image)?;
        bytes = bytes.max(told.bytes);
        saves.push((round, vec![wall]));
    }
    drop(guest);
    let target = Target::AtMost(100.0 * MILLISECOND);
    let mut row = row(format!("whole, {size} MiB of zeros"), "copy", target, Vec::new(), saves);
    row.notes.push(format!("the image of {size} MiB of zeros has {bytes} bytes"));
    Ok(vec![row])
}

/// Many processes and threads.
fn crowd(bench: &Bench, image: &Image) -> Result<Vec<Row>, Failure> {
    let crowd = bench.workshop.file("crowd");
    let mut rows = Vec::new();
    for (kind, count) in [("processes", "200"), ("threads", "500")] {
        let guest = hold(bench, &[&crowd.to_string_lossy(), kind, count])?;
        let (mut pauses, mut restores) = (Rounds::new(), Rounds::new());
        for round in 0..bench.pick(5, 3) {
            pauses.push((round, vec![save(bench, image)?.0.pause_us * 1e3]));
            restores.push((round, vec![restore(bench, image)?]));
        }
        drop(guest);
        for (what, rounds) in [("pause", pauses), ("restore", restores)] {
            let name = format!("{what}, {count} {kind}");
            rows.push(row(name, "fork", Target::None, Vec::new(), rounds));
        }
    }
    Ok(rows)
}
