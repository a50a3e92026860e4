//! `cargo xtask bench`: measures ratios side by side in one run.
//!
//! Owns the story of a run: build, set up, measure, report. Contenders (native, ours, bwrap, the
//! kernel's floor, strace, runsc, CRIU) take turns round by round, so that the drift of a busy machine
//! hits all of them alike, and every row says how far its reference strays from itself. It
//! measures and reports; it never asserts, and a contender that is missing is reported, not an
//! error.

mod carried;
mod clock;
mod commands;
mod contender;
mod cpu;
mod eintr;
mod exec;
mod files;
mod idle;
mod machine;
mod network;
mod pause;
mod peers;
mod process;
mod processes;
mod project;
mod publish;
mod report;
mod row;
mod running;
mod save;
mod startup;
mod stats;
mod syscalls;
mod trap;
mod workload;
mod workshop;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use contender::Contenders;
use process::{Failure, Runner};
use row::Row;
use workload::Workload;
use workshop::Workshop;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Measure only what has one of these words in its name (with the rows that share its runs).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer rounds and smaller inputs: minutes instead of the better part of an hour.
    #[arg(long)]
    quick: bool,
    /// A CRIU binary, whose dumps and restores are measured beside our saves (root only).
    #[arg(long, value_name = "PATH")]
    criu: Option<PathBuf>,
    /// Where the figures go [default: target/bench.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A group of rows that is no workload: its guests go on while something else is measured, or its
/// figures are no times of theirs.
struct Group {
    name: &'static str,
    /// What it measures one after the other, where `--only` can choose of that: `NAME/PART`.
    parts: &'static [&'static str],
    measure: fn(&Bench) -> Result<Vec<Row>, String>,
}

impl Group {
    const fn new(name: &'static str, measure: fn(&Bench) -> Result<Vec<Row>, String>) -> Group {
        Group { name, parts: &[], measure }
    }

    /// What `--only` can choose it by.
    fn names(&self) -> Vec<String> {
        let parts = self.parts.iter().map(|part| format!("{}/{part}", self.name));
        std::iter::once(self.name.to_owned()).chain(parts).collect()
    }
}

/// All of them, in the order of the table.
const GROUPS: [Group; 11] = [
    Group::new(exec::NAME, exec::measure),
    Group::new(publish::NAME, publish::measure),
    Group::new(network::NAME, network::measure),
    Group::new(pause::NAME, pause::measure),
    Group { parts: &files::PARTS, ..Group::new(files::NAME, files::measure) },
    Group::new(carried::NAME, carried::measure),
    Group { parts: &save::PARTS, ..Group::new(save::NAME, save::measure) },
    Group::new(cpu::REPORT, cpu::report),
    Group::new(cpu::BUDGET, cpu::budget),
    Group::new(idle::ONE, idle::one),
    Group::new(idle::MANY, idle::many),
];

/// What every group of rows works with.
struct Bench {
    quick: bool,
    only: Vec<String>,
    /// The CRIU to measure, if any.
    criu: Option<PathBuf>,
    contenders: Contenders,
    runner: Runner,
    workshop: Workshop,
}

impl Bench {
    /// The first in a full run, the second in a quick one.
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether `--only` asks for one of these names.
    fn wants_any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.wants(name))
    }

    /// Whether `--only` asks for this name (all names, where it was not given).
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word.as_str()))
    }
}

/// Measures what was asked for, prints the table and writes the figures.
///
/// The program under test is `target/release/sandbox`, built first, or the one that the
/// environment variable `SANDBOX_BIN` names.
///
/// # Errors
/// What could not be set up (the build, the C guests, the report's file), an unknown name after
/// `--only`, and SIGINT, SIGTERM or SIGHUP; everything that was started is ended and everything
/// that was written but the report is removed.
pub(crate) fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let json = options.json.unwrap_or_else(|| target.join("bench.json"));
    let ours = match std::env::var_os("SANDBOX_BIN") {
        Some(path) => PathBuf::from(path),
        None => build_ours(&root, &target)?,
    };

    let runner = Runner::new()?;
    let workshop = Workshop::new(&root.join("xtask/bench"), &target)?;
    let contenders = Contenders::probe(&ours, &workshop, &runner)?;
    let Options { only, quick, criu, .. } = options;
    let bench = Bench { quick, only, criu, contenders, runner, workshop };

    let rows = measure(&bench)?;
    let report = report::Report::new(&bench, &ours, rows);
    println!("{}", report.table());
    report.write(&json)?;
    println!("figures: {}", json.display());
    Ok(())
}

fn build_ours(root: &Path, target: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "sandbox", "--bin", "sandbox"])
        .current_dir(root)
        .status()
        .map_err(|error| format!("cannot run cargo build --release: {error}"))?;
    if !status.success() {
        return Err("cannot measure a sandbox that does not build: see cargo's errors above".into());
    }
    Ok(target.join("release/sandbox"))
}

fn measure(bench: &Bench) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut workloads = trap::workloads(bench);
    workloads.extend(syscalls::workloads(bench));
    workloads.extend(clock::workloads(bench));
    workloads.extend(commands::workloads(bench)?);
    workloads.extend(startup::workloads(bench)?);
    workloads.extend(eintr::workloads(bench));
    refuse_unknown(bench, &workloads)?;

    let mut rows = Vec::new();
    for workload in workloads.iter().filter(|workload| bench.wants_any(&workload.names())) {
        let begin = Instant::now();
        rows.extend(workload.measure(&bench.contenders, &bench.runner, bench.workshop.path())?);
        eprintln!("bench: {} took {:.0?}", workload.name(), begin.elapsed());
    }
    for group in GROUPS.iter().filter(|group| bench.wants_any(&group.names())) {
        let begin = Instant::now();
        rows.extend((group.measure)(bench)?);
        eprintln!("bench: {} took {:.0?}", group.name, begin.elapsed());
    }
    Ok(rows)
}

/// What was measured, or a row that only says why nothing was.
///
/// # Errors
/// Only where the user interrupts.
fn or_note(
    measured: Result<Vec<Row>, Failure>,
    name: &str,
    empty: impl FnOnce(Vec<String>) -> Row,
) -> Result<Vec<Row>, String> {
    let mut notes = Vec::new();
    match measured {
        Ok(rows) => Ok(rows),
        Err(failure) => {
            failure.note("ours", name, &mut notes)?;
            Ok(vec![empty(notes)])
        }
    }
}

/// A mistyped name must not look like a measurement of nothing.
fn refuse_unknown(bench: &Bench, workloads: &[Workload]) -> Result<(), String> {
    let mut names: Vec<String> = workloads.iter().flat_map(Workload::names).collect();
    names.extend(GROUPS.iter().flat_map(Group::names));
    match bench.only.iter().find(|word| !names.iter().any(|name| name.contains(word.as_str()))) {
        None => Ok(()),
        Some(word) => Err(format!(
            "cannot measure {word:?}: no row has such a name; choose from {}",
            names.join(", ")
        )),
    }
}
