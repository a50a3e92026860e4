//! What was decided about a run, and why: for people, aligned and grouped.
//!
//! Owns the words only; everything that it says is in the [`RunSpec`].

use std::fmt::Write;

use crate::config::{
    Bytes, IdRange, Identity, Limits, Means, Mount, MountKind, Network, Root, RunSpec, Span, View,
    Walls, Why, Without, quoted,
};
use crate::sentry::net;

/// Columns of the headings at the left.
const HEADING: usize = 13;

/// The whole run, for `-v` and `--dry-run`.
pub(super) fn decisions(spec: &RunSpec) -> String {
    let mut text = Text(String::new());
    let argv: Vec<String> = spec.argv.iter().map(quoted).collect();
    text.group("program", [argv.join(" "), format!("in {}", quoted(&spec.workdir))]);
    text.group("identity", identity(spec));
    text.group("host name", [spec.hostname.as_ref().map_or("the host's".to_owned(), quoted)]);
    text.group("clock", [spec.time.map_or("the host's".to_owned(), |time| time.to_string())]);
    if let Some(chosen) = &spec.deterministic {
        text.group("repeatable", chosen.decisions.iter().cloned());
    }
    let apart = spec.walls == Walls::Landlock;
    text.group("network", network(spec));
    if !spec.asks.about.is_empty() {
        let about: Vec<String> =
            spec.asks.about.iter_names().map(|(name, _)| name.to_lowercase()).collect();
        text.group("asks", vec![format!("about {} that no rule names", about.join(" and "))]);
    }
    text.group("files", files(&spec.mounts, apart));
    text.group("idle rules", spec.idle.iter().cloned());
    text.group("environment", environment(spec));
    text.group("descriptors", [descriptors(spec)]);
    text.group("limits", limits(&spec.limits));
    text.group("walls", walls(spec));
    text.0
}

/// What a run was told by, for the same.
pub(super) fn profiles(sources: String) -> String {
    let mut text = Text(String::new());
    text.group("profiles", [sources]);
    text.0
}

/// Lines under headings.
struct Text(String);

impl Text {
    fn group(&mut self, heading: &str, lines: impl IntoIterator<Item = String>) {
        for (number, line) in lines.into_iter().enumerate() {
            let heading = if number == 0 { heading } else { "" };
            let line = format!("{heading:HEADING$}{line}");
            // A String takes every word.
            let _ = writeln!(self.0, "{}", line.trim_end());
        }
    }
}

/// Lines of cells, each column as wide as its widest cell.
fn aligned<const N: usize>(rows: Vec<[String; N]>) -> impl Iterator<Item = String> {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.into_iter().map(move |row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    })
}

fn identity(spec: &RunSpec) -> Vec<String> {
    let Identity { uid, gid, groups, uid_map, gid_map } = &spec.identity;
    let groups = match groups {
        None => "your supplementary groups".to_owned(),
        Some(groups) if groups.is_empty() => "no supplementary groups".to_owned(),
        Some(groups) => {
            let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
            format!("groups {}", groups.join(" "))
        }
    };
    let outside = |id, map: &[IdRange]| {
        let number = map.iter().find_map(|range| {
            let n = u32::checked_sub(id, range.inside).filter(|n| *n < range.count)?;
            range.outside.checked_add(n)
        });
        number.map_or("nobody".to_owned(), |number| number.to_string())
    };
    let host =
        format!("on the host: uid {}, gid {}", outside(*uid, uid_map), outside(*gid, gid_map));
    match spec.root {
        Root::Believed => vec!["root, and anybody that it becomes (--root)".to_owned(), host],
        Root::Mapped => {
            let others = "root, and anybody that it becomes, as one of your subordinate ids (--root=sub-ids)";
            vec![others.to_owned(), host]
        }
        Root::No => vec![format!("uid {uid}, gid {gid}, {groups}"), host],
    }
}

fn network(spec: &RunSpec) -> Vec<String> {
    let rules = |word: &str, rules: &[net::Rule]| {
        let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
        (!rules.is_empty()).then(|| format!("{word} {}", rules.join(", ")))
    };
    let published = spec.publish.iter().map(|wish| {
        let host = match wish.host.port() {
            0 => format!("any free port of {}", wish.host.ip()),
            _ => wish.host.to_string(),
        };
        format!("{host} leads to {}/{} (--publish)", wish.guest, wish.transport)
    });
    let mut lines = match spec.network {
        Network::None if spec.walls == Walls::Landlock => {
            vec!["none, not even a loopback (--net host for the host's)".to_owned()]
        }
        Network::None => {
            vec!["none but a loopback of its own (--net host for the host's)".to_owned()]
        }
        Network::Host => vec!["the host's (--net host)".to_owned()],
        Network::Allow => std::iter::once("a loopback of its own, and some hosts".to_owned())
            .chain(rules("reaches", &spec.reach.allow))
            .chain(rules("never", &spec.reach.deny))
            .collect(),
    };
    lines.extend(published);
    lines
}

fn files(mounts: &[Mount], apart: bool) -> Vec<String> {
    let words = |mount: &Mount| match mount.kind {
        _ if !apart => what(mount),
        MountKind::Tmpfs { .. } => "not to be opened; TMPDIR is a directory of its own".to_owned(),
        MountKind::HiddenDirectory | MountKind::HiddenFile => {
            "not to be opened, nor what comes to be beside it".to_owned()
        }
        MountKind::Proc => "the host's, read-only, with all processes".to_owned(),
        MountKind::Dev => "null zero full random urandom tty ptmx".to_owned(),
        _ => what(mount),
    };
    let rows = View::of(mounts)
        .mounts()
        .map(|mount| [quoted(&mount.target), words(mount), format!("{}", Reason(&mount.why))])
        .collect();
    let first = "the host's, read-only, and on top of them:".to_owned();
    std::iter::once(first).chain(aligned(rows)).collect()
}

/// What a mount shows, in a few words.
pub(super) fn what(mount: &Mount) -> String {
    let of = |source: &std::path::Path, how: &str| match source == mount.target {
        true => how.to_owned(),
        false => format!("{how}, shows {}", quoted(source)),
    };
    match &mount.kind {
        MountKind::ReadOnly { source } => of(source, "read-only"),
        MountKind::Writable { source } => of(source, "writable"),
        MountKind::Overlay { .. } => "changed for the sandbox alone".to_owned(),
        MountKind::Tmpfs { mode } if mode & 0o222 == 0 => "denied, but for exceptions".to_owned(),
        MountKind::Tmpfs { .. } => "empty, in memory".to_owned(),
        MountKind::HiddenDirectory | MountKind::HiddenFile => "hidden".to_owned(),
        MountKind::DeniedDirectory | MountKind::DeniedFile => "denied".to_owned(),
        MountKind::Proc => "its own processes".to_owned(),
        MountKind::Sys => "read-only".to_owned(),
        MountKind::Dev => "null zero full random urandom tty pts shm mqueue".to_owned(),
    }
}

/// A rule, in the words of a reader.
pub(super) struct Reason<'w>(pub(super) &'w Why);

impl std::fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Why::Default(words) => write!(f, "default: {words}"),
            Why::WorkingDirectory => write!(f, "the working directory"),
            Why::Flag(flag) | Why::Derived(flag) => f.write_str(flag),
        }
    }
}

fn environment(spec: &RunSpec) -> Vec<String> {
    let passed = match spec.environment.len() {
        1 => "1 variable".to_owned(),
        n => format!("{n} variables"),
    };
    if spec.withheld.is_empty() {
        return vec![passed];
    }
    let rows =
        spec.withheld.iter().map(|variable| [quoted(&variable.name), variable.reason.to_owned()]);
    let first = format!("{passed}; withheld (--env NAME passes one):");
    std::iter::once(first).chain(aligned(rows.collect())).collect()
}

fn descriptors(spec: &RunSpec) -> String {
    let numbers: Vec<String> =
        (0..=2).chain(spec.descriptors.iter().copied()).map(|fd| fd.to_string()).collect();
    numbers.join(" ")
}

fn limits(limits: &Limits) -> Vec<String> {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row = |name: &str, amount: String, how: &str| {
        rows.push([name.to_owned(), amount, how.to_owned()]);
    };
    if let Some(bound) = limits.memory {
        let how = match bound.by {
            Means::Cgroup => "all together; kept by a control group",
            _ => "all together; kept by the sentry, which looks every 10 ms while a guest runs",
        };
        row("memory", Bytes(bound.limit).to_string(), how);
    }
    if let Some(bound) = limits.pids {
        let how = match bound.by {
            Means::Cgroup => "processes and threads; kept by a control group",
            _ => "processes and threads; kept by RLIMIT_NPROC (per sandbox from Linux 5.14 on)",
        };
        row("pids", bound.limit.to_string(), how);
    }
    if let Some(cpus) = &limits.cpus {
        let numbers: Vec<String> = cpus.iter().map(usize::to_string).collect();
        row("cpus", cpus.len().to_string(), &format!("by affinity: {}", numbers.join(" ")));
    }
    if let Some(count) = limits.open_files {
        row("open-files", count.to_string(), "in one process; RLIMIT_NOFILE");
    }
    if let Some(bytes) = limits.file_size {
        row("file-size", Bytes(bytes).to_string(), "in one file; RLIMIT_FSIZE");
    }
    if let Some(budget) = limits.cpu_time {
        let counted = match limits.cgroups.iter().any(|group| group.cpu_usage.is_some()) {
            true => "counted by a control group",
            false => "counted by the processes' CPU clocks",
        };
        let how = format!("SIGXCPU, SIGKILL at {}; {counted}", Span(budget.hard));
        row("cpu-time", Span(budget.soft).to_string(), &how);
    }
    if let (Some(inward), Some(outward)) = (limits.network.rate_in, limits.network.rate_out) {
        let rate = format!("{} in, {} out", Bytes(inward.get()), Bytes(outward.get()));
        row("net-rate", rate, "a second; the sentry carries what goes out");
    }
    if let Some(total) = limits.network.total {
        row("net-total", Bytes(total.get()).to_string(), "both ways; then connections are reset");
    }
    if let Some(timeout) = limits.timeout {
        row("timeout", Span(timeout).to_string(), "SIGTERM, SIGKILL 5 s later");
    }
    match rows.is_empty() {
        true => vec!["none".to_owned()],
        false => aligned(rows).collect(),
    }
}

fn walls(spec: &RunSpec) -> Vec<String> {
    if spec.walls == Walls::Landlock {
        return weak_walls(spec);
    }
    let lacks = |facility| spec.without.contains(facility);
    let mut namespaces = vec!["user", "pid", "mount", "ipc", "uts", "cgroup"];
    if spec.network != Network::Host {
        namespaces.push("net");
    }
    if !lacks(Without::TIME_NAMESPACES) {
        namespaces.push("time");
    }
    let mut lines = vec![
        format!("namespaces: {}", namespaces.join(" ")),
        match spec.root.capabilities() {
            [] => "no capabilities".to_owned(),
            all => {
                let names: Vec<&str> = all.iter().map(|(_, name)| *name).collect();
                format!("capabilities inside: {}", names.join(" "))
            }
        } + ", no new privileges, a seccomp filter",
    ];
    if spec.landlock && !lacks(Without::LANDLOCK) {
        lines.push("Landlock behind the mounts, where the host has it".to_owned());
    }
    if lacks(Without::TIME_NAMESPACES) {
        lines.push("no time namespace: the monotonic clock is the host's".to_owned());
    }
    lines.push(traps(spec));
    if !spec.without.is_empty() {
        let names: Vec<String> =
            spec.without.iter_names().map(|(name, _)| name.to_lowercase()).collect();
        lines.push(format!("without: {}", names.join(" ").replace('_', "-")));
    }
    lines
}

fn traps(spec: &RunSpec) -> String {
    let features: Vec<String> =
        spec.features.iter_names().map(|(name, _)| name.to_lowercase()).collect();
    format!("traps for: {}", features.join(" ").replace('_', "-"))
}

/// What is weaker than the default.
fn weak_walls(spec: &RunSpec) -> Vec<String> {
    [
        "Landlock, a seccomp filter, the sentry; no namespaces (docs/landlock.md)",
        "no new privileges",
        "weaker: the host's processes, names of all files and their attributes can be seen",
        "weaker: what else the kernel keeps in namespaces is refused (System V IPC, loopback) or the host's",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([traps(spec)])
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{TestHost, options};
    use crate::config::{Options, Without, resolve};

    #[test]
    fn every_decision_is_named_with_its_rule() {
        let mut host = TestHost::ordinary();
        host.file("/home/me/.netrc");
        host.set("MY_TOKEN", "hunter2");
        let wishes = Options {
            argv: vec!["echo".into(), "a b".into()],
            descriptors: vec![7],
            without: Without::LANDLOCK | Without::SYNC_WAKE_UP,
            ..options(&["--ro /etc:/data"])
        };
        let text = decisions(&resolve(&wishes, &host.host).unwrap());
        let has = |parts: &[&str]| {
            let line = text.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            assert!(line.is_some(), "no line with {parts:?} in:\n{text}");
        };
        has(&["program", "echo 'a b'"]);
        has(&["in /home/me/project"]);
        has(&["identity", "uid 1000, gid 1000"]);
        has(&["/data ", "read-only, shows /etc", "--ro /etc:/data"]);
        has(&["/home/me/project ", "writable", "the working directory"]);
        has(&["/home/me/.netrc ", "hidden", "default: network logins"]);
        has(&["MY_TOKEN", "its name looks like a secret's"]);
        has(&["descriptors", "0 1 2 7"]);
        has(&["without: sync-wake-up landlock"]);
        has(&["namespaces: user", " time"]);
        assert!(!text.contains("monotonic clock"), "time namespaces are there:\n{text}");
        assert!(!text.contains("hunter2"), "a secret is printed:\n{text}");
        // The reasons of all mounts begin in one column.
        let column = |part: &str| text.lines().find_map(|line| line.find(part));
        assert_eq!(column("default: network logins"), column("the working directory"));
    }

    #[test]
    fn a_host_without_time_namespaces_is_told_of() {
        let mut host = TestHost::ordinary();
        host.host.time_namespaces = false;
        let text = decisions(&resolve(&options(&[]), &host.host).unwrap());
        assert!(text.contains("no time namespace: the monotonic clock is the host's"), "{text}");
        let namespaces = text.lines().find(|line| line.contains("namespaces: user")).unwrap();
        assert!(!namespaces.contains("time"), "{namespaces}");
    }
}
