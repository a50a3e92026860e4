//! Which processes belong to the sandbox, by the host's /proc.
//!
//! A guest is a process whose chain of parents reaches the guest's init: everything inside descends
//! from it, and an orphan is given to it or to a reaper on the way to it. (Who enters the pid
//! namespace from the outside, as root of the host can, is no guest.) Init itself and the *keepers*,
//! copies of the supervisor like init, are no guests either. Parents are read from
//! `/proc/PID/stat`, which everybody may read; init's own namespaces could not be, since it is not
//! dumpable.
//!
//! A reading of /proc is no snapshot: processes come and go while it goes on. So it is repeated until
//! two readings find the same processes; then each that was alive between the two, and has not ended
//! before it was its turn, has been found. If a storm of forks never lets that happen, the sandbox is
//! paused for one reading. Numbers are reused: what was read of a process counts only if its time of
//! start is the same afterwards.
//!
//! What is not here: stopping and signalling what was found.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::features::Features;
use super::kernel::Kernel;
use super::kernel_error::KernelError;
use super::kin::Family;
use super::stat::{Stat, ticks};
use crate::sys::id_map::IdMap;
use crate::sys::{generated, process};

/// A guest process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// As the host numbers it.
    pub pid: i32,
    /// As the guest does.
    pub guest_pid: i32,
    /// Its parent, as the guest numbers it.
    pub guest_parent: i32,
    /// Its process group, as the guest numbers it.
    pub guest_group: i32,
    /// Its session, as the guest numbers it.
    pub guest_session: i32,
    /// Its effective user, as the guest numbers it; 65534 where the guest has no number for it.
    pub uid: u32,
    /// One letter, as in ps(1).
    pub state: char,
    /// How many threads it has.
    pub threads: u32,
    /// Its name. Chosen by the guest: it may hold control characters.
    pub comm: String,
    /// Its arguments, or its name in brackets where it has none. Chosen by the guest.
    pub command: String,
    /// CPU time of all its threads, ended ones too; not that of its children.
    pub cpu_us: u64,
    /// Resident bytes.
    pub memory: u64,
    /// When it was started, since the host's boot; in steps of the host's clock tick (10 ms).
    pub started_us: u64,
    /// The container it belongs to.
    pub container: String,
}

impl ProcessInfo {
    /// It, for people who know it from inside.
    pub fn words(&self) -> String {
        format!("process {} ({})", self.guest_pid, self.comm)
    }
}

/// A guest process, without what costs time to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// As the host numbers it.
    pub(super) pid: i32,
    /// In ticks since boot: tells processes apart that had the number one after the other.
    pub(super) start: u64,
    pub(super) container: String,
}

/// Processes that the sandbox keeps inside beside init, which are not guests (a save's copies of guests
/// are among them): by their host number.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    /// A leaf of the lock order.
    all: Mutex<BTreeMap<i32, Kept>>,
}

/// A keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// In ticks since boot: the number may be another one's before it is known that the keeper has
    /// ended.
    start: u64,
    /// What its descendants belong to.
    container: String,
    /// It is ending: remembered until init has reaped it, so that its remains are no guest either.
    ending: bool,
}

impl Kept {
    /// Whether it is (still) the process of this number.
    pub(super) fn is(&self, start: u64) -> bool {
        self.start == start
    }
}

impl Keepers {
    pub(super) fn add(&self, pid: i32, container: &str) {
        let start = Stat::read(pid).map_or(0, |stat| stat.start);
        let kept = Kept { start, container: container.to_owned(), ending: false };
        self.lock().insert(pid, kept);
    }

    /// `pid` is ending; those before it have gone by now, most of them.
    fn remove(&self, pid: i32) {
        let mut all = self.lock();
        if let Some(kept) = all.get_mut(&pid) {
            kept.ending = true;
        }
        all.retain(|pid, kept| {
            !kept.ending || Stat::read(*pid).is_some_and(|stat| kept.is(stat.start))
        });
    }

    /// Whether the process of this number is a keeper, or init.
    pub(super) fn has(&self, pid: i32) -> bool {
        self.lock().contains_key(&pid)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Kept>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often /proc is read in the hope of two readings that agree.
const MOST_READINGS: usize = 8;

/// More of a command line than this is not shown.
const LONGEST_COMMAND: usize = 4096;

impl Kernel {
    /// `pid` (as the host numbers it) is a keeper from now on: its descendants belong to `container`.
    pub fn add_keeper(&self, pid: i32, container: &str) {
        self.keepers.add(pid, container);
    }

    /// The keeper `pid` has ended, or is about to.
    pub fn remove_keeper(&self, pid: i32) {
        self.keepers.remove(pid);
        self.later.forget(pid);
    }

    /// Whether `pid` (as the host numbers it) is a keeper.
    pub(super) fn is_keeper(&self, pid: i32) -> bool {
        let kept = self.keepers.lock().get(&pid).cloned();
        kept.is_some_and(|kept| Stat::read(pid).is_some_and(|stat| kept.is(stat.start)))
    }

    /// Every guest process, by guest pid; not those that have ended and that init or a keeper is about to
    /// reap, paused or not. Blocks: it reads /proc.
    pub fn census(&self) -> Result<Vec<ProcessInfo>, KernelError> {
        let mut before = self.reading()?;
        for _ in 1..MOST_READINGS {
            let now = self.reading()?;
            if now.same_members(&before) {
                return self.describe(&now);
            }
            before = now;
        }
        // A pause that fails leaves what was found, where processes may be missing that were made
        // just now.
        self.while_stopped(|| self.reading().and_then(|reading| self.describe(&reading)))
            .or_else(|_| self.describe(&before))
    }

    /// The numbers of the guest processes by one reading of /proc, as the host numbers them: all that are there
    /// from its begin to its end; of those that come or go meanwhile any.
    pub fn guests_there(&self) -> Result<Vec<i32>, KernelError> {
        Ok(self.members()?.into_iter().map(|member| member.pid).collect())
    }

    /// The guest processes of one reading of /proc.
    pub(super) fn members(&self) -> Result<Vec<Member>, KernelError> {
        self.reading().map(|reading| reading.members)
    }

    /// What tells guests from other processes.
    pub(super) fn family(&self) -> Family {
        Family::new(self.init_pid(), self.keepers.lock().clone())
    }

    fn reading(&self) -> Result<Reading, KernelError> {
        let all = numbers("/proc").map_err(KernelError::Census)?;
        Ok(self.reading_of(all))
    }

    /// The same while all are stopped: none comes, and what was found as they were stopped is all.
    pub fn census_of_stopped(&self) -> Result<Vec<ProcessInfo>, KernelError> {
        self.describe(&self.reading_of(self.found_by_pause().into_iter()))
    }

    fn reading_of(&self, pids: impl Iterator<Item = i32>) -> Reading {
        // (No lock is held while /proc is read.)
        let keepers = self.keepers.lock().clone();
        Reading::of(pids, self.init_pid(), &keepers)
    }

    fn describe(&self, reading: &Reading) -> Result<Vec<ProcessInfo>, KernelError> {
        let mut depth = own_depth().map_err(KernelError::Census)?;
        if self.features().contains(Features::NO_NAMESPACES) {
            // The host's numbers are the guests'.
            depth -= 1;
        }
        let ids = IdMap::of_users(self.init_pid()).unwrap_or_default();
        let mut all: Vec<ProcessInfo> = reading
            .members
            .iter()
            .filter_map(|member| {
                let (parent, mut process) = describe(member, depth, &ids, self.init_pid())?;
                let before = self.carried().own(process.pid).total().as_micros() as u64;
                process.cpu_us = process.cpu_us.saturating_add(before);
                // Whoever it is left to waits for it at once, and is never paused.
                let has_ended = process.state == 'Z' && process.threads <= 1;
                (!has_ended || !self.is_keeper(parent)).then_some(process)
            })
            .collect();
        all.sort_by_key(|process| process.guest_pid);
        Ok(all)
    }
}

/// One reading of /proc.
#[derive(Debug)]
struct Reading {
    members: Vec<Member>,
}

impl Reading {
    /// The members among those, which are at least all that descend from init.
    fn of(pids: impl Iterator<Item = i32>, init: i32, keepers: &BTreeMap<i32, Kept>) -> Reading {
        let mut all = HashMap::new();
        for pid in pids {
            if let Some(stat) = Stat::read(pid).filter(Stat::is_there) {
                all.insert(pid, (stat.parent, stat.start));
            }
        }
        let mut members: Vec<Member> = all
            .iter()
            .filter(|(pid, (_, start))| {
                **pid != init && !keepers.get(pid).is_some_and(|kept| kept.is(*start))
            })
            .filter_map(|(pid, (_, start))| {
                let container = container_of(*pid, init, keepers, &all)?;
                Some(Member { pid: *pid, start: *start, container })
            })
            .collect();
        members.sort_by_key(|member| member.pid);
        Reading { members }
    }

    fn same_members(&self, other: &Reading) -> bool {
        self.members == other.members
    }
}

/// The container that `pid` belongs to; `None`: no guest.
///
/// A chain that ends in the middle belongs to a process whose parent ended between the two looks; the
/// next reading finds it with its new parent.
fn container_of(
    pid: i32,
    init: i32,
    keepers: &BTreeMap<i32, Kept>,
    all: &HashMap<i32, (i32, u64)>,
) -> Option<String> {
    let mut nearest = None;
    let mut at = pid;
    // What was read at different times may even be a circle: a chain is no longer than there are
    // processes.
    for _ in 0..=all.len() {
        let (parent, _) = all.get(&at)?;
        if nearest.is_none() {
            nearest = keepers.get(parent).filter(|kept| {
                *parent == init || all.get(parent).is_some_and(|(_, start)| kept.is(*start))
            });
        }
        if *parent == init {
            return nearest.map(|kept| kept.container.clone());
        }
        at = *parent;
    }
    None
}

/// The parent of a process, as the host numbers it, and what is known of itself; `None`: it has ended.
fn describe(member: &Member, depth: usize, ids: &IdMap, init: i32) -> Option<(i32, ProcessInfo)> {
    let pid = member.pid;
    let text = generated::single(format!("/proc/{pid}/status")).ok()?;
    let status = GuestStatus::parse(&String::from_utf8_lossy(&text), depth)?;
    let arguments = arguments(pid);
    let cpu = process::cpu_time(pid).ok();
    let stat = Stat::read(pid).filter(|stat| stat.start == member.start)?;
    let guest_parent = if stat.parent == init { 1 } else { guest_pid(stat.parent, depth) };
    let command = arguments.unwrap_or_else(|| format!("[{}]", stat.comm));
    let process = ProcessInfo {
        pid,
        guest_pid: status.pid,
        guest_parent,
        guest_group: status.group,
        guest_session: status.session,
        uid: ids.inside(status.uid).unwrap_or(OVERFLOW),
        state: stat.state,
        threads: status.threads,
        comm: stat.comm,
        command,
        cpu_us: cpu.unwrap_or(stat.cpu).as_micros() as u64,
        memory: status.memory,
        started_us: ticks(stat.start).as_micros() as u64,
        container: member.container.clone(),
    };
    Some((stat.parent, process))
}

/// The number of a process inside; 0: it has ended.
fn guest_pid(pid: i32, depth: usize) -> i32 {
    generated::single(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|text| GuestStatus::parse(&String::from_utf8_lossy(&text), depth))
        .map_or(0, |status| status.pid)
}

/// The command line, its arguments separated by spaces; `None`: it has none (a zombie).
fn arguments(pid: i32) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(LONGEST_COMMAND as u64).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text).trim_end_matches('\0').replace('\0', " ");
    (!text.is_empty()).then_some(text)
}

/// The number that the kernel gave last to a thread or process in the pid namespace of this one, whose
/// numbers all that are made further inside get too. `None`: the kernel does not tell
/// (ns_last_pid, CONFIG_CHECKPOINT_RESTORE). /proc/loadavg has it as well, but lxcfs makes it up.
pub(super) fn last_number() -> Option<i32> {
    std::fs::read_to_string("/proc/sys/kernel/ns_last_pid").ok()?.trim().parse().ok()
}

/// The names in a directory of /proc that are numbers.
pub(super) fn numbers(directory: &str) -> Result<impl Iterator<Item = i32> + use<>, Errno> {
    let entries = std::fs::read_dir(directory)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// How many pid namespaces deep this process is, seen from the one that /proc belongs to: at this
/// place of the lists in `/proc/PID/status` stand the numbers of one namespace further in, which is
/// the guest's.
fn own_depth() -> Result<usize, Errno> {
    let text = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let line = field(&text, "NSpid").ok_or(Errno::EPROTO)?;
    Ok(line.split_whitespace().count())
}

/// What `/proc/PID/status` says of a guest process (proc_pid_status(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GuestStatus {
    pid: i32,
    group: i32,
    session: i32,
    uid: u32,
    threads: u32,
    memory: u64,
}

impl GuestStatus {
    fn parse(text: &str, depth: usize) -> Option<GuestStatus> {
        let inside =
            |name: &str| field(text, name)?.split_whitespace().nth(depth)?.parse::<i32>().ok();
        let word = |name: &str, index: usize| {
            field(text, name)?.split_whitespace().nth(index)?.parse::<u64>().ok()
        };
        Some(GuestStatus {
            pid: inside("NStgid")?,
            group: inside("NSpgid")?,
            session: inside("NSsid")?,
            uid: word("Uid", 1)? as u32,
            threads: word("Threads", 0)? as u32,
            // A zombie has none; in KiB.
            memory: word("VmRSS", 0).unwrap_or(0) * 1024,
        })
    }
}

/// A line of a status file. The name, which is the guest's to choose, comes first, but the kernel
/// escapes newlines in it.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// What the kernel shows for a user without a number (/proc/sys/kernel/overflowuid).
const OVERFLOW: u32 = 65534;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_gives_the_numbers_of_the_wanted_depth() {
        let text = "Name:\tNStgid: 7\\n\nState:\tS (sleeping)\nUid:\t5\t6\t7\t8\nNStgid:\t90\t40\t2\n\
                    NSpid:\t90\t40\t2\nNSpgid:\t90\t40\t3\nNSsid:\t0\t0\t1\nVmRSS:\t  100 kB\nThreads:\t4\n";
        let expected =
            GuestStatus { pid: 2, group: 3, session: 1, uid: 6, threads: 4, memory: 102_400 };
        assert_eq!(GuestStatus::parse(text, 2), Some(expected));
        assert_eq!(GuestStatus::parse(text, 1).unwrap().pid, 40);
        // A process that is not as deep is no guest.
        assert_eq!(GuestStatus::parse(text, 3), None);
    }

    #[test]
    fn containers_are_those_of_the_nearest_keeper_and_strangers_have_none() {
        let keepers: BTreeMap<i32, Kept> =
            [(10, kept("main", 7)), (20, kept("b", 0)), (30, kept("c", 0)), (70, kept("d", 4))]
                .into();
        // 10 is init; 30 a keeper below 20's program, 40 a stranger, 50 and 51 a circle.
        let all: HashMap<i32, (i32, u64)> = [(11, 10), (12, 11), (20, 10), (21, 20), (30, 21)]
            .into_iter()
            .chain([(31, 30), (40, 1), (50, 51), (51, 50), (60, 61)])
            .map(|(pid, parent)| (pid, (parent, 0)))
            // Another process than the keeper that had its number, and that one's child.
            .chain([(70, (10, 5)), (71, (70, 6))])
            .collect();
        let container = |pid| container_of(pid, 10, &keepers, &all);
        assert_eq!(container(12).as_deref(), Some("main"));
        assert_eq!([container(21).as_deref(), container(31).as_deref()], [Some("b"), Some("c")]);
        assert_eq!([container(40), container(50), container(60)], [None, None, None]);
        assert_eq!([container(70).as_deref(), container(71).as_deref()], [Some("main"); 2]);
    }

    fn kept(container: &str, start: u64) -> Kept {
        Kept { start, container: container.to_owned(), ending: false }
    }

    #[test]
    fn a_keeper_is_remembered_until_nothing_is_left_of_it() {
        let keepers = Keepers::default();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        keepers.add(pid, "main");
        // Ended or about to, and not reaped.
        keepers.remove(pid);
        assert!(keepers.lock().contains_key(&pid));
        child.wait().unwrap();
        keepers.remove(0);
        assert!(keepers.lock().is_empty());
    }

    #[test]
    fn own_descendants_are_found_while_they_live() {
        use std::io::{Read, Write};
        use std::process::{Command, Stdio};
        let own = std::process::id() as i32;
        let find = |pid: i32| {
            let all = numbers("/proc").unwrap();
            let reading = Reading::of(all, own, &[(own, kept("main", 0))].into());
            reading.members.into_iter().find(|member| member.pid == pid)
        };
        let mut cat = Command::new("cat");
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        // Once it answers, it has its name.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let member = find(pid).unwrap();
        // Seen from one namespace further out than the guest's.
        let depth = own_depth().unwrap() - 1;
        let (parent, process) =
            describe(&member, depth, &IdMap::parse("0 0 4294967295"), own).unwrap();
        assert_eq!(parent, own);
        assert_eq!((process.pid, process.guest_pid, process.guest_parent), (pid, pid, 1));
        assert_eq!((process.comm.as_str(), process.command.as_str()), ("cat", "cat"));
        assert_eq!((process.threads, process.memory > 0), (1, true));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(find(pid), None);
        assert_eq!(describe(&member, depth, &IdMap::NONE, own), None);
    }
}
