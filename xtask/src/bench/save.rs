//! How long guests stand still while they are saved, how long a save takes, and a restore.
//!
//! The pause is what `sandbox save --leave-running --json` tells; beside it stands a bare fork(2) of a
//! process with as much memory. A whole save stands beside a process that writes as many bytes to a file
//! of the same file system in memory, and that of zeros beside a fork that looks at each of them; a
//! restore, until the command has returned (detached), beside a process that maps the image privately and
//! touches each page, which is no restore (memory that is given away would not be zero afterwards) but the
//! least that reading so much can cost. Other programs that save and restore take turns with ours where
//! they work.

use std::path::PathBuf;
use std::time::Duration;

use super::Bench;
use super::peers::{Peer, Peers};
use super::process::{Failure, Output};
use super::row::{Column, Row, Target, Unit};
use super::running::Guest;

/// The name that `--only` knows.
pub(super) const NAME: &str = "save/pause, save and restore";
/// What of it can be chosen alone.
pub(super) const PARTS: [&str; 3] = ["memory", "zeros", "crowds"];

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
    let mut peers = Peers::probe(bench)?;
    let mut rows = Vec::new();
    let [memory, zeroed, crowds] = PARTS.map(|part| bench.wants(&format!("{NAME}/{part}")));
    let sizes: &[u32] = bench.pick(&[0, 1024, 4096], &[0, 256]);
    for size in sizes.iter().filter(|_| memory) {
        note(heap(bench, *size, &image, &peers), &format!("save of {size} MiB"), &mut rows)?;
    }
    if zeroed {
        let size = bench.pick(1024, 256);
        note(zeros(bench, size, &image), "save of zeros", &mut rows)?;
    }
    if crowds {
        note(crowd(bench, &image, &peers), "save of a crowd", &mut rows)?;
    }
    if let Some(first) = rows.first_mut() {
        first.notes.append(&mut peers.notes);
    }
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

/// The row with more columns.
fn with(mut row: Row, columns: Vec<Column>) -> Row {
    row.columns.extend(columns);
    row
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
fn restore(bench: &Bench, image: &Image, flags: &[&str]) -> Result<f64, Failure> {
    let words = ["restore", image.name(), "--detach", "--id", RESTORED, "--quiet"];
    let (_, wall) = verb(bench, &[&words, flags].concat())?;
    verb(bench, &["kill", RESTORED, "KILL"])?;
    // (Its status is that of a killed one.) Until it is gone, nobody else can have its name.
    let _ = verb(bench, &["wait", RESTORED]);
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
fn heap(bench: &Bench, size: u32, image: &Image, peers: &Peers) -> Result<Vec<Row>, Failure> {
    let (size_word, heap) = (size.to_string(), bench.workshop.file("heap"));
    let peer_guest = ["heap", "hold", &size_word, "random"];
    let mut beside = peers.beside(bench, heap_peers(bench, size), &peer_guest);
    let guest = hold(bench, &[&heap.to_string_lossy(), "hold", &size_word, "random"])?;
    let [mut forks, mut pauses, mut copies, mut saves, mut maps, mut restores, mut lazily] =
        [const { Rounds::new() }; 7];
    for round in 0..bench.pick(5, 3) {
        forks.push((round, heap_says(bench, &["fork", &size_word])?));
        if size > 0 {
            copies.push((round, heap_says(bench, &["copy", &size_word, image.name()])?));
        }
        let (told, wall) = save(bench, image)?;
        pauses.push((round, vec![told.pause_us * 1e3]));
        beside.turn(round)?;
        if size == 0 {
            continue;
        }
        saves.push((round, vec![wall]));
        maps.push((round, heap_says(bench, &["map", &size_word, image.name()])?));
        restores.push((round, vec![restore(bench, image, &[])?]));
        lazily.push((round, vec![restore(bench, image, &["--lazy"])?]));
    }
    drop(guest);
    let name = |what: &str| match size {
        0 => format!("{what}, nothing"),
        size => format!("{what}, {size} MiB"),
    };
    let target = if size == 0 { Target::AtMost(3.0 * MILLISECOND) } else { Target::Ratio(1.5) };
    let mut pause = with(row(name("pause"), "fork", target, forks, pauses), beside.pauses());
    pause.notes.append(&mut beside.notes);
    if size == 0 {
        return Ok(vec![pause]);
    }
    pause.notes.push("the pause may take 5 ms more than 1.5 forks".to_owned());
    let whole = row(name("whole"), "copy", Target::Ratio(1.3), copies, saves);
    let restore = row(name("restore"), "mapping", Target::None, maps, restores);
    let target = Target::AtMost(50.0 * MILLISECOND);
    let lazily = row(name("restore --lazy"), "mapping", target, Vec::new(), lazily);
    Ok(vec![pause, with(whole, beside.wholes()), with(restore, beside.restores()), lazily])
}

/// Who takes turns with ours: runsc, which does not tell how long its guest stood still, with one size
/// only.
fn heap_peers(bench: &Bench, size: u32) -> &'static [Peer] {
    if size == bench.pick(1024, 256) { &[Peer::Criu, Peer::Runsc] } else { &[Peer::Criu] }
}

/// A save of touched zeros.
fn zeros(bench: &Bench, size: u32, image: &Image) -> Result<Vec<Row>, Failure> {
    let (size_word, heap) = (size.to_string(), bench.workshop.file("heap"));
    let guest = hold(bench, &[&heap.to_string_lossy(), "hold", &size_word, "zero"])?;
    let (mut forks_and_reads, mut saves, mut bytes) = (Rounds::new(), Rounds::new(), 0);
    for round in 0..bench.pick(5, 3) {
        let forks = heap_says(bench, &["fork", &size_word])?;
        let reads = heap_says(bench, &["read", &size_word])?;
        let least = forks.iter().copied().reduce(f64::min).zip(reads.first());
        forks_and_reads.push((round, least.map(|(fork, read)| fork + read).into_iter().collect()));
        let (told, wall) = save(bench, image)?;
        bytes = bytes.max(told.bytes);
        saves.push((round, vec![wall]));
    }
    drop(guest);
    let target = Target::AtMost(100.0 * MILLISECOND);
    let name = format!("whole, {size} MiB of zeros");
    let mut row = row(name, "fork, look", target, forks_and_reads, saves);
    row.notes.push(format!("the image of {size} MiB of zeros has {bytes} bytes"));
    Ok(vec![row])
}

/// Many processes and threads.
fn crowd(bench: &Bench, image: &Image, peers: &Peers) -> Result<Vec<Row>, Failure> {
    let crowd = bench.workshop.file("crowd");
    let mut rows = Vec::new();
    for (kind, count) in [("processes", "200"), ("threads", "500")] {
        let peer_guest = ["crowd", kind, count];
        let mut beside = peers.beside(bench, &[Peer::Criu], &peer_guest);
        let guest = hold(bench, &[&crowd.to_string_lossy(), kind, count])?;
        let (mut pauses, mut restores) = (Rounds::new(), Rounds::new());
        for round in 0..bench.pick(5, 3) {
            pauses.push((round, vec![save(bench, image)?.0.pause_us * 1e3]));
            restores.push((round, vec![restore(bench, image, &[])?]));
            beside.turn(round)?;
        }
        drop(guest);
        let name = |what: &str| format!("{what}, {count} {kind}");
        let pause = row(name("pause"), "fork", Target::None, Vec::new(), pauses);
        let mut pause = with(pause, beside.pauses());
        pause.notes.append(&mut beside.notes);
        let restore = row(name("restore"), "fork", Target::None, Vec::new(), restores);
        rows.extend([pause, with(restore, beside.restores())]);
    }
    Ok(rows)
}
