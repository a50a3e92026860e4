//! What /proc tells of processes that are measured from outside.

use std::collections::BTreeMap;
use std::fs;

use super::machine::field;

/// A process and all of its descendants.
pub(super) fn family(ancestor: u32) -> Vec<u32> {
    families(&[ancestor])
}

/// Several processes and all of their descendants.
pub(super) fn families(ancestors: &[u32]) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if let Ok(parent) = field(&status, "PPid").parse() {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = ancestors.to_vec();
    let mut next = 0;
    while next < family.len() {
        family.extend(children.remove(&family[next]).unwrap_or_default());
        next += 1;
    }
    family
}

/// What a process is to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Outside of the guest's pid namespace.
    Supervisor,
    /// The first process inside.
    Init,
    /// Any other inside.
    Guest,
}

/// What a process of a sandbox's family is to it.
pub(super) fn part(pid: u32) -> Part {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // One number for each pid namespace from ours inwards (proc_pid_status(5)).
    let ids: Vec<&str> = field(&status, "NSpid").split_whitespace().collect();
    match ids.as_slice() {
        [] | [_] => Part::Supervisor,
        [.., "1"] => Part::Init,
        _ => Part::Guest,
    }
}

/// Context switches of all threads of a process, voluntary or not.
pub(super) fn switches(pid: u32) -> u64 {
    let of_thread = |status: String| {
        ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
            .iter()
            .filter_map(|name| field(&status, name).parse::<u64>().ok())
            .sum::<u64>()
    };
    of_threads(pid, "status").into_iter().map(of_thread).sum()
}

/// Nanoseconds that all living threads of a process have run; `None` where the kernel keeps no such
/// books (CONFIG_SCHED_INFO: the first field of schedstat, Documentation/scheduler/sched-stats.rst).
pub(super) fn run_time(pid: u32) -> Option<u64> {
    let of_thread = |text: String| text.split_whitespace().next()?.parse::<u64>().ok();
    let times: Vec<u64> = of_threads(pid, "schedstat").into_iter().filter_map(of_thread).collect();
    (!times.is_empty()).then(|| times.iter().sum())
}

/// How many threads of a process are not stopped, neither by a signal nor by a tracer.
pub(super) fn moving(pid: u32) -> usize {
    let stopped = |status: &String| field(status, "State").starts_with(['t', 'T']);
    of_threads(pid, "status").iter().filter(|status| !stopped(status)).count()
}

/// Whether there is such a process.
pub(super) fn exists(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// A file of each thread of a process.
fn of_threads(pid: u32, file: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join(file)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_family_holds_a_process_and_its_children() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let mine = family(std::process::id());
        assert!(mine.contains(&std::process::id()) && mine.contains(&child.id()));
        assert!(!family(child.id()).contains(&std::process::id()));
        assert!(exists(child.id()) && moving(child.id()) == 1);
        child.kill().and_then(|()| child.wait()).expect("end of sleep");
        assert!(!exists(child.id()));
    }

    #[test]
    fn a_thread_that_sleeps_is_switched() {
        // (Threads of this process come and go, and take what they have counted along.)
        let mut child = Command::new("cat");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut turn = || {
            to.write_all(b"x").unwrap();
            from.read_exact(&mut [0]).unwrap();
            switches(child.id())
        };
        let before = turn();
        assert!((0..100).any(|_| turn() > before));
        drop(to);
        child.wait().expect("end of cat");
    }

    #[test]
    fn this_process_is_no_part_of_a_guest() {
        // Inside of a pid namespace all the same: its own numbers are seen from within.
        assert_eq!(part(std::process::id()), Part::Supervisor);
        assert_ne!(run_time(std::process::id()), Some(0));
    }
}
