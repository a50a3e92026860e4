//! The reports of `sandbox inspect` for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::{ImageReport, ProcessRow, RunningReport};
use crate::cli::table::{bytes, columns, cpu, plain, span};

/// An image. What a guest chose is printed without what would steer a terminal.
pub(super) fn image(report: &ImageReport) -> String {
    let mut text = String::new();
    let packed = if report.compressed { ", compressed" } else { "" };
    let root = if report.root { ", root inside (--root)" } else { "" };
    let lines = [
        ("image", format!("version {}, {}{packed}", report.format, bytes(report.bytes))),
        ("id", plain(&report.id)),
        ("program", plain(&report.command.join(" "))),
        ("directory", plain(&report.workdir)),
        ("user", format!("{}:{}{root}", report.user, report.group)),
        ("network", report.network.to_owned()),
        ("ran", span(report.ran_us)),
        ("saved", moment(report.saved)),
        ("kernel", plain(&report.host.kernel)),
        ("processor", format!("{} features that programs may use", report.host.cpu.len())),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<10}{value}");
    }
    if let Some(clock) = report.clock {
        let repeats = if report.deterministic { ", deterministic" } else { "" };
        let _ = writeln!(text, "{:<10}{}{repeats}", "clock", moment(clock));
    }
    for (name, each) in [("reaches", &report.allowed), ("published", &report.published)] {
        for words in each {
            let _ = writeln!(text, "{name:<10}{}", plain(words));
        }
    }
    for shown in &report.shows {
        let how = if shown.writable { "writable" } else { "read-only" };
        let at = match shown.at == shown.path {
            true => String::new(),
            false => format!(" at {}", plain(&shown.at)),
        };
        let _ = writeln!(text, "{:<10}{}{at} ({how})", "shows", plain(&shown.path));
    }
    for overlay in &report.overlays {
        let (path, entries) = (plain(&overlay.path), overlay.entries);
        let entries =
            if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") };
        let size = bytes(overlay.bytes);
        let _ = writeln!(text, "{:<10}{path} ({entries}, {size} of files)", "overlay");
    }
    let pages = &report.pages;
    let _ = writeln!(
        text,
        "{:<10}{} stored, {} zero, {} repeated; {} of files; {} of state",
        "content",
        bytes(pages.stored.saturating_mul(super::PAGE)),
        bytes(pages.zero.saturating_mul(super::PAGE)),
        bytes(pages.same.saturating_mul(super::PAGE)),
        bytes(pages.stream_bytes),
        bytes(report.state_bytes),
    );
    text.push('\n');
    text.push_str(&tree(&report.processes));
    descriptors(&mut text, &report.processes);
    text
}

/// Processes below their parents.
fn tree(processes: &[ProcessRow]) -> String {
    let known: BTreeSet<i32> = processes.iter().map(|it| it.pid).collect();
    let mut children: BTreeMap<i32, Vec<&ProcessRow>> = BTreeMap::new();
    for process in processes {
        let parent = if known.contains(&process.parent) { process.parent } else { 0 };
        children.entry(parent).or_default().push(process);
    }
    let mut rows = Vec::new();
    // Not by recursion: how deep it is, the image decides. None comes twice, whatever it says.
    let mut ahead: Vec<(&ProcessRow, usize)> =
        children.remove(&0).unwrap_or_default().into_iter().rev().map(|it| (it, 0)).collect();
    while let Some((process, depth)) = ahead.pop() {
        rows.push(cells(process, depth));
        let below = children.remove(&process.pid).unwrap_or_default();
        ahead.extend(below.into_iter().rev().map(|it| (it, depth + 1)));
    }
    // A circle of parents.
    rows.extend(children.into_values().flatten().map(|process| cells(process, 0)));
    columns(["PID", "STATE", "THREADS", "MAPPED", "SAVED", "FDS", "PROGRAM"], &rows)
}

fn cells(process: &ProcessRow, depth: usize) -> [String; 7] {
    let indent = "  ".repeat(depth.min(20));
    let names: BTreeSet<&str> = process.threads.iter().map(|it| it.name.as_str()).collect();
    let names = names.into_iter().map(plain).collect::<Vec<_>>().join(", ");
    let program = match process.exe.is_empty() {
        true => String::new(),
        false => format!("{} ({names})", plain(&process.exe)),
    };
    [
        process.pid.to_string(),
        process.state.to_owned(),
        process.threads.len().to_string(),
        bytes(process.mapped),
        bytes(process.stored),
        process.descriptors.len().to_string(),
        format!("{indent}{program}"),
    ]
}

fn descriptors(text: &mut String, processes: &[ProcessRow]) {
    let rows: Vec<[String; 4]> = processes
        .iter()
        .flat_map(|process| process.descriptors.iter().map(move |it| (process.pid, it)))
        .map(|(pid, it)| [pid.to_string(), it.fd.to_string(), it.kind.to_owned(), plain(&it.what)])
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&columns(["PID", "FD", "KIND", "WHAT"], &rows));
    }
}

/// Microseconds since 1970, in UTC.
fn moment(microseconds: i64) -> String {
    jiff::Timestamp::from_microsecond(microseconds)
        .map_or_else(|_| "?".to_owned(), |moment| moment.to_string())
}

/// A running sandbox.
pub(super) fn running(report: &RunningReport) -> String {
    let mut text = String::new();
    let state = if report.stats.paused { "paused" } else { "running" };
    let lines = [
        ("sandbox", format!("{}, {state}", report.id)),
        ("program", plain(&report.command.join(" "))),
        ("uptime", span(report.stats.uptime_us)),
        ("cpu", cpu(report.stats.cpu_us)),
        ("memory", bytes(report.stats.memory)),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<10}{value}");
    }
    let rows: Vec<[String; 5]> = report
        .processes
        .iter()
        .map(|it| {
            [
                it.guest_pid.to_string(),
                it.guest_parent.to_string(),
                it.state.to_string(),
                it.threads.to_string(),
                plain(&it.command),
            ]
        })
        .collect();
    let _ = write!(text, "\n{}", columns(["PID", "PPID", "STATE", "THREADS", "COMMAND"], &rows));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, parent: i32) -> ProcessRow {
        ProcessRow {
            pid,
            parent,
            group: pid,
            session: pid,
            state: "running",
            exe: format!("/bin/p{pid}\x1b"),
            container: "main".into(),
            threads: Vec::new(),
            mapped: 0,
            stored: 0,
            descriptors: Vec::new(),
        }
    }

    #[test]
    fn processes_stand_below_their_parents_once_each_whatever_the_image_says() {
        let rows = [row(2, 1), row(5, 2), row(3, 2), row(9, 5), row(6, 7), row(7, 6), row(4, 4)];
        let text = tree(&rows);
        let order: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(order, ["2", "5", "9", "3", "4", "7", "6"]);
        assert!(
            text.contains("\n9    running  0        0B      0B     0        /bin/p9\\u{1b}"),
            "{text}"
        );
    }
}
