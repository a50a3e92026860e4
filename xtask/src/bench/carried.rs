//! Finding and carrying over what was made in an overlay: ours by diff and commit, rsync(1) by a dry run and a run, which
//! have to find the same files and to bring them to the same place.

use std::ffi::OsString;

use super::files::{LIMIT, Places, prepare, row};
use super::process::{Failure, Output};
use super::row::{Column, Row, Target};
use super::{Bench, or_note};

/// The name that `--only` knows.
pub(super) const NAME: &str = "files/diff and commit";

/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    or_note(rows(bench), NAME, |notes| {
        row("diff and commit".to_owned(), "rsync", Target::None, notes)
    })
}

fn rows(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let places = prepare(bench)?;
    let ours = bench.contenders.get("ours");
    let ours = ours.ok_or_else(|| Failure::Failed("there is no sandbox".to_owned()))?;
    let program = ours.verb(&[])[0].to_string_lossy().into_owned();
    carried(bench, &places, &program)
}
fn carried(bench: &Bench, places: &Places, program: &str) -> Result<Vec<Row>, Failure> {
    let layers = places.layers.to_string_lossy();
    let sh = |script: &str| {
        let argv: Vec<OsString> = ["sh", "-c", script].iter().map(Into::into).collect();
        bench.runner.run(&argv, &places.tree, LIMIT, Output::Discard)
    };
    let count = bench.pick("20000", "1000");
    let run = format!(
        "{program} run --quiet --id bench --overlay . --overlay-dir {layers} -- \
         ../scatter new {count}"
    );
    let diff = format!("{program} diff --overlay-dir {layers} bench >/dev/null || test $? = 1");
    let commit = format!("{program} commit --overlay-dir {layers} bench >/dev/null");
    let mut notes = Vec::new();
    let has_rsync = sh("rsync --version").is_ok();
    if !has_rsync {
        notes.push("skipped: no rsync (cannot run it): files, diff and commit".to_owned());
    }
    let mut taken: [Vec<(usize, Vec<f64>)>; 4] = Default::default();
    for round in 0..bench.pick(5, 2) {
        let mut time = |of: usize, script: &str| -> Result<(), Failure> {
            let wall = sh(script)?.wall.as_nanos() as f64;
            taken[of].push((round, vec![wall]));
            Ok(())
        };
        sh(&run)?;
        time(0, &diff)?;
        time(1, &commit)?;
        sh("rm -r new")?;
        if has_rsync {
            sh(&format!("../scatter ../from {count}"))?;
            time(2, "rsync -an --itemize-changes ../from/ new/ >/dev/null")?;
            time(3, "rsync -a ../from/ new/")?;
            sh("rm -r new ../from")?;
        }
    }
    let [diffs, commits, dry, copies] = taken;
    let columns = |ours, theirs: Vec<(usize, Vec<f64>)>| {
        let column = |contender, rounds| Column { contender, rounds, again: Vec::new() };
        let mut columns = vec![column("ours", ours)];
        if !theirs.is_empty() {
            columns.push(column("rsync", theirs));
        }
        columns
    };
    let filled = |name: &str, columns, notes| Row {
        columns,
        ..row(format!("{name} of {count} files"), "rsync", Target::Ratio(1.0), notes)
    };
    Ok(vec![
        filled("diff", columns(diffs, dry), notes),
        filled("commit", columns(commits, copies), Vec::new()),
    ])
}
