//! What a sandbox costs that does nothing: memory, and wake-ups.
//!
//! The guest prints a line and sleeps. Counted are the supervisor's side (the process that was
//! started and its descendants outside of the guest's pid namespace) and, for wake-ups, the
//! guest's init too; the sleeping guest itself is nobody's cost.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Bench;
use super::contender::Contender;
use super::machine::{field, kibibytes};
use super::process::Failure;
use super::row::{Column, Row, Target, Unit};

/// The name that `--only` knows.
pub(super) const NAME: &str = "idle/memory and wake-ups";

/// KiB.
const MOST_MEMORY: f64 = 8192.0;
/// Until start-up is over: what is done once is no wake-up of an idle sandbox.
const SETTLE: Duration = Duration::from_secs(1);

/// A sandbox with a sleeping guest; ended when dropped.
struct Sleeper {
    name: &'static str,
    child: Child,
}

/// What /proc tells of the processes of a sandbox.
#[derive(Debug, Default)]
struct Reading {
    /// Proportional set size of the supervisor's side, KiB; `None` where it may not be read.
    memory: Option<u64>,
    /// Context switches so far of every thread of the supervisor's side and the guest's init.
    switches: u64,
}

/// The rows of ours and bwrap, which sleep at the same time.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    let seconds = bench.pick(10, 4);
    let mut notes = Vec::new();
    let mut sleepers = Vec::new();
    for contender in bench.contenders.select(&["bwrap", "ours"]) {
        match Sleeper::start(bench, contender) {
            Ok(sleeper) => sleepers.push(sleeper),
            Err(why) => notes.push(format!("{} gave up in {NAME}: {why}", contender.name)),
        }
    }
    pause(bench, SETTLE)?;
    let before: Vec<Reading> = sleepers.iter().map(Sleeper::read).collect();
    pause(bench, Duration::from_secs(seconds))?;

    let (mut memory, mut wake_ups) = (Vec::new(), Vec::new());
    for (sleeper, before) in sleepers.iter_mut().zip(&before) {
        let after = sleeper.read();
        if !matches!(sleeper.child.try_wait(), Ok(None)) {
            notes.push(format!("{} ended while it was to sleep", sleeper.name));
            continue;
        }
        let column = |sample: u64| Column {
            contender: sleeper.name,
            rounds: vec![(0, vec![sample as f64])],
            again: Vec::new(),
        };
        wake_ups.push(column(after.switches.saturating_sub(before.switches)));
        match after.memory {
            Some(kib) => memory.push(column(kib)),
            None => notes.push(format!("skipped: no readable smaps_rollup of {}", sleeper.name)),
        }
    }
    let row = |name: String, unit, most, columns, notes| Row {
        name: format!("idle/{name}"),
        unit,
        reference: "bwrap",
        target: Target::AtMost(most),
        columns,
        notes,
    };
    Ok(vec![
        row("memory (PSS)".to_owned(), Unit::Kibibytes, MOST_MEMORY, memory, notes),
        row(format!("wake-ups in {seconds} s"), Unit::Count, 0.0, wake_ups, Vec::new()),
    ])
}

/// Sleeps in small steps, so that an interruption is noticed.
fn pause(bench: &Bench, duration: Duration) -> Result<(), String> {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(Duration::from_millis(500)));
        if let Err(Failure::Interrupted) = bench.runner.check_interrupted() {
            return Err("interrupted: nothing was written".to_owned());
        }
    }
    Ok(())
}

impl Sleeper {
    /// Starts the sandbox and waits until its guest runs.
    fn start(bench: &Bench, contender: &Contender) -> Result<Sleeper, String> {
        let script = ["sh", "-c", "echo asleep; exec sleep 60"].map(Into::into);
        let argv = contender.wrap(&script);
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .current_dir(bench.workshop.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", argv[0].to_string_lossy()))?;
        let mut sleeper = Sleeper { name: contender.name, child };
        let mut line = String::new();
        if let Some(pipe) = &mut sleeper.child.stdout {
            // Ends at the latest when the guest's sleep does.
            let _ = BufReader::new(pipe).read_line(&mut line);
        }
        if line == "asleep\n" { Ok(sleeper) } else { Err("its guest said nothing".to_owned()) }
    }

    fn read(&self) -> Reading {
        let mut reading = Reading { memory: Some(0), switches: 0 };
        for pid in family(self.child.id()) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // One number for each pid namespace from ours inwards (proc_pid_status(5)).
            let ids: Vec<&str> = field(&status, "NSpid").split_whitespace().collect();
            let supervisor = ids.len() <= 1;
            if supervisor {
                let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
                let kib = rollup.ok().and_then(|text| kibibytes(&text, "Pss"));
                reading.memory = reading.memory.zip(kib).map(|(sum, kib)| sum + kib);
            }
            if supervisor || ids.last() == Some(&"1") {
                reading.switches += switches(pid);
            }
        }
        reading
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let deadline = Instant::now() + Duration::from_secs(3);
        // The child is not reaped before it is waited for, so the group is still its own.
        let _ = killpg(group, Signal::SIGTERM);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = killpg(group, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process and all of its descendants.
fn family(ancestor: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if let Ok(parent) = field(&status, "PPid").parse() {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![ancestor];
    let mut next = 0;
    while next < family.len() {
        family.extend(children.remove(&family[next]).unwrap_or_default());
        next += 1;
    }
    family
}

/// Context switches of all threads of a process, voluntary or not.
fn switches(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .map(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
                .iter()
                .filter_map(|name| field(&status, name).parse::<u64>().ok())
                .sum::<u64>()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_holds_a_process_and_its_children() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let mine = family(std::process::id());
        assert!(mine.contains(&std::process::id()) && mine.contains(&child.id()));
        assert!(!family(child.id()).contains(&std::process::id()));
        child.kill().and_then(|()| child.wait()).expect("end of sleep");
    }

    #[test]
    fn a_thread_that_sleeps_is_switched() {
        let before = switches(std::process::id());
        std::thread::sleep(Duration::from_millis(1));
        assert!(switches(std::process::id()) > before);
    }
}
