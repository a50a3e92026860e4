//! `--memory`: all processes together.
//!
//! With a control group the kernel keeps the limit, and the group's events say that it did so. Without
//! one the sentry looks while guests run, adds up what is theirs, and kills the largest process when it
//! is too much, as the kernel's own out-of-memory killer would.
//!
//! What counts without a control group: anonymous memory and shared memory, each page once (Pss).
//! Clean file pages do not count, since the kernel can drop them; files in private directories in
//! memory (/tmp, /dev/shm) count where they are mapped, and are bounded by the size of their mount
//! otherwise.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::kernel::Kernel;
use crate::sys::generated;
use crate::sys::process;
use crate::timekeeping::{Consumer, Reading, Relative};

/// Keeps the limit without a control group.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    kernel: Weak<Kernel>,
    limit: u64,
    /// Killed, and maybe not yet gone.
    victim: Option<(Relative, Instant)>,
}

/// More than a processor can touch in a second, in bytes: pages are zeroed first.
const FASTEST: u64 = 8 << 30;

/// How long a killed process may take to give its memory back before another one is killed.
const DYING: Duration = Duration::from_secs(2);

impl MemoryWatch {
    pub(super) fn new(kernel: Weak<Kernel>, limit: u64) -> MemoryWatch {
        MemoryWatch { kernel, limit, victim: None }
    }

    fn act(&mut self, kernel: &Kernel, processes: &[Relative]) -> Option<()> {
        let mut shares: Vec<(Relative, u64)> =
            processes.iter().map(|it| (*it, proportional(it.pid))).collect();
        if shares.iter().map(|(_, bytes)| bytes).sum::<u64>() <= self.limit {
            return None;
        }
        shares.retain(|(it, _)| !kernel.is_keeper(it.pid));
        let (largest, bytes) = shares.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        if !largest.is_still_there() {
            return None;
        }
        // Said first: with the program's end everything may be over.
        report(kernel, self.limit, Some((&comm(largest.pid), largest.pid, Some(bytes))));
        kernel.signal_relatives(&[largest], libc::SIGKILL);
        self.victim = Some((largest, Instant::now()));
        Some(())
    }
}

impl Consumer for MemoryWatch {
    fn look(&mut self, reading: &Reading<'_>) -> Option<Duration> {
        let kernel = self.kernel.upgrade()?;
        if let Some((victim, since)) = self.victim {
            if victim.is_still_there() && since.elapsed() < DYING {
                return Some(Duration::ZERO);
            }
            self.victim = None;
        }
        // At most so much, and cheap to read.
        let resident: u64 = reading.processes.iter().map(|it| pages(it.pid).0).sum();
        let mut used = resident;
        if resident > self.limit {
            used = reading.processes.iter().map(|it| own(it.pid)).sum();
        }
        kernel.accounting.peak_memory.fetch_max(used, Ordering::Relaxed);
        if used > self.limit {
            self.act(&kernel, reading.processes);
            return Some(Duration::ZERO);
        }
        let left = self.limit - used;
        Some(Duration::from_secs_f64(left as f64 / FASTEST as f64))
    }
}

/// Resident bytes, and how many of them are of files or shared (proc_pid_statm(5)).
fn pages(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut words = text.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
    let page = page_size();
    (words.nth(1).unwrap_or(0) * page, words.next().unwrap_or(0) * page)
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().map_or(4096, |size| size as u64)
}

/// Anonymous and shared memory of a process; pages that it shares with others count for each.
pub(super) fn own(pid: i32) -> u64 {
    let text = generated::text(format!("/proc/{pid}/status")).unwrap_or_default();
    kibibytes(&text, "RssAnon:") + kibibytes(&text, "RssShmem:")
}

/// The same with each page counted once, among those that have it; [`own`] where that is not shown (to
/// those who may not look into the process, and before Linux 5.4).
pub(super) fn proportional(pid: i32) -> u64 {
    match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(text) if text.contains("Pss_Anon:") => {
            kibibytes(&text, "Pss_Anon:") + kibibytes(&text, "Pss_Shmem:")
        }
        _ => own(pid),
    }
}

fn kibibytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn comm(pid: i32) -> String {
    let name = generated::text(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end_matches('\n').escape_debug().to_string()
}

/// Says what was killed: name, number, bytes.
fn report(kernel: &Kernel, limit: u64, victim: Option<(&str, i32, Option<u64>)>) {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let what = match victim {
        Some((comm, pid, Some(bytes))) => format!("{comm} ({pid}), which had {},", mib(bytes)),
        Some((comm, pid, None)) => format!("{comm} ({pid})"),
        None => "a process".to_owned(),
    };
    kernel.limit_reached(
        "memory",
        format!("more than {limit} bytes were in use; {what} was killed"),
        format!("the memory limit of {} was reached, and {what} was killed (--memory)", mib(limit)),
    );
}

/// A control group that keeps the memory limit.
#[derive(Debug)]
pub(super) struct Group {
    /// Immutable.
    pub(super) path: PathBuf,
    found: Mutex<Found>,
}

/// What is known of the kills in a group. Protected by `Group::found`, a leaf of the lock order.
#[derive(Debug, Default)]
struct Found {
    /// How many kills were reported.
    reported: u64,
    /// Whom the kernel was about to kill when it told that memory had run out.
    suspect: Option<(String, i32)>,
}

impl Group {
    pub(super) fn new(path: PathBuf) -> Group {
        Group { path, found: Mutex::default() }
    }

    /// Reports kills that were not reported yet; gives whether there were any.
    fn report(&self, kernel: &Kernel) -> bool {
        let suspect = {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let kills = kills(&self.path);
            if kills <= found.reported {
                return false;
            }
            found.reported = kills;
            // The kernel has killed somebody: the suspect, if that one is gone.
            found.suspect.take().filter(|(_, pid)| !Path::new(&format!("/proc/{pid}/exe")).exists())
        };
        let limit = kernel.accounting.limits().and_then(|limits| limits.memory).unwrap_or(0);
        report(kernel, limit, suspect.as_ref().map(|(comm, pid)| (comm.as_str(), *pid, None)));
        true
    }

    fn suspect(&self, kernel: &Kernel) -> Option<OwnedFd> {
        let processes = {
            let mut clock = kernel.accounting.clock();
            let _ = clock.look();
            clock.processes().to_vec()
        };
        // The kernel chooses by the same measure (oom_badness in mm/oom_kill.c).
        let largest = processes.iter().max_by_key(|it| pages(it.pid).0)?;
        let comm = comm(largest.pid);
        let pidfd = process::pidfd_open(largest.pid, false).ok()?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.suspect = Some((comm, largest.pid));
        Some(pidfd)
    }
}

/// Reports kills for the limit of a control group, from a thread that waits for the group's events.
pub(super) fn watch_group(kernel: &Arc<Kernel>, group: &Path) -> std::io::Result<()> {
    let weak = Arc::downgrade(kernel);
    let first = group.join("memory.oom_control");
    let events: Box<dyn FnMut() -> bool + Send> = if first.exists() {
        // Version 1: an eventfd that tells before the kernel kills (mem_cgroup_oom_notify).
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let file = File::open(&first)?;
        let control = fs::OpenOptions::new().write(true).open(group.join("cgroup.event_control"));
        control?
            .write_all(format!("{} {}", event.as_fd().as_raw_fd(), file.as_raw_fd()).as_bytes())?;
        Box::new(move || {
            let _ = &file;
            event.read().is_ok()
        })
    } else {
        // Version 2: the file changes after the kill (cgroup_file_notify).
        let file = File::open(group.join("memory.events"))?;
        Box::new(move || {
            let mut room = [0; 512];
            // Reading is what makes the next change tell (kernfs_fop_poll).
            let read = std::os::unix::fs::FileExt::read_at(&file, &mut room, 0);
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            read.is_ok() && poll(&mut fds, PollTimeout::NONE).is_ok()
        })
    };
    std::thread::Builder::new()
        .name("memory".into())
        .stack_size(256 << 10)
        .spawn(move || follow_group(&weak, events))
        .map(drop)
}

/// The limit cannot be kept any longer than its group is there.
fn follow_group(kernel: &Weak<Kernel>, mut event: impl FnMut() -> bool) {
    while event() {
        let Some(kernel) = kernel.upgrade() else { return };
        let Some(group) = kernel.accounting.limits().and_then(|it| it.memory_group.as_ref()) else {
            return;
        };
        if !group.path.exists() {
            return;
        }
        if !group.report(&kernel)
            && let Some(suspect) = group.suspect(&kernel)
        {
            // The kill is about to come; its end tells.
            let mut fds = [PollFd::new(suspect.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(1000u16));
            group.report(&kernel);
        }
    }
}

/// What the thread that waits for events has not come to before the end.
pub(super) fn final_look(kernel: &Kernel) {
    let group = kernel.accounting.limits().and_then(|limits| limits.memory_group.as_ref());
    if let Some(group) = group {
        group.report(kernel);
    }
}

/// How many processes the kernel has killed for the limit of a group (since Linux 4.13).
fn kills(group: &Path) -> u64 {
    ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|file| {
            let text = fs::read_to_string(group.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
        .unwrap_or(0)
}

/// Bytes in use in a control group without the file pages that the kernel would drop first.
pub(super) fn unreclaimable(group: &Path) -> Option<u64> {
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let field = |names: [&str; 2]| {
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        let mut found = lines.filter(|(name, _)| names.contains(name));
        found.next().and_then(|(_, value)| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let files = field(["total_inactive_file", "inactive_file"])
        + field(["total_active_file", "active_file"]);
    Some(of_group(group).0?.saturating_sub(files))
}

/// Bytes in use, and the most that were, of a control group.
pub(super) fn of_group(group: &Path) -> (Option<u64>, Option<u64>) {
    let read = |names: [&str; 2]| {
        names.iter().find_map(|name| fs::read_to_string(group.join(name)).ok()?.trim().parse().ok())
    };
    (
        read(["memory.current", "memory.usage_in_bytes"]),
        read(["memory.peak", "memory.max_usage_in_bytes"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_is_read() {
        let pid = std::process::id() as i32;
        let (resident, shared) = pages(pid);
        assert!(resident > shared && shared > 0);
        assert!(own(pid) > 0 && own(pid) <= resident + (1 << 20));
        assert!(proportional(pid) > 0);
        assert_eq!(kibibytes("A: 3 kB\nRssAnon:\t  20 kB\n", "RssAnon:"), 20 << 10);
        assert_eq!(kibibytes("", "RssAnon:"), 0);
    }
}
