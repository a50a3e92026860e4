//! A guest thread and a guest process, as the sentry keeps them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{descriptors, generated, process};

/// One guest thread. Kept only for threads of which something has to be remembered.
#[derive(Debug)]
pub struct Task {
    /// Never reused. Immutable.
    pub id: u64,
    /// The thread, as the host numbers it. Immutable; valid while the task is alive.
    pub tid: i32,
    /// The thread, as its own pid namespace numbers it. Immutable.
    pub guest_tid: i32,
    /// Its process. Immutable.
    pub group: Arc<ThreadGroup>,
    /// Tells whether the thread has ended. Immutable.
    end: OwnedFd,
    /// Filters that the guest loaded for this thread, in order. Protected by itself, a leaf of the
    /// lock order. (Not inherited by threads and processes made later: a fork is not trapped.)
    filters: Mutex<Vec<RecordedFilter>>,
}

/// One guest process.
#[derive(Debug)]
pub struct ThreadGroup {
    /// The process, as the host numbers it. Immutable.
    pub tgid: i32,
    /// The process, as its own pid namespace numbers it. Immutable.
    pub guest_pid: i32,
}

/// A plain seccomp filter that a guest loaded: a save has to reproduce it, and the kernel does not
/// give it back to us (PTRACE_SECCOMP_GET_FILTER needs CAP_SYS_ADMIN of the host).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedFilter {
    /// The flags it was loaded with.
    pub flags: u32,
    /// The program, 8 bytes an instruction.
    pub program: Vec<u8>,
}

/// The most instructions in all filters of one thread, and what each filter counts besides its own
/// (kernel/seccomp.c, MAX_INSNS_PER_PATH and seccomp_attach_filter: at most 256 KiB).
const FILTERS_LIMIT: usize = (1 << 18) / 8;
const FILTER_PENALTY: usize = 4;

impl Task {
    /// Looks a live thread up on the host. ESRCH: there is none.
    pub(super) fn discover(id: u64, tid: i32) -> Result<Task, Errno> {
        // The descriptor comes first: if the thread ends and its number is given away while the
        // rest is read, the descriptor says so.
        let (end, status) = match process::pidfd_open(tid, true) {
            Ok(end) => (end, Status::read(tid)?),
            // Linux before 6.9 has descriptors of processes only.
            Err(Errno::EINVAL) => {
                let status = Status::read(tid)?;
                (process::pidfd_open(status.tgid, false)?, status)
            }
            Err(errno) => return Err(errno),
        };
        let group = Arc::new(ThreadGroup { tgid: status.tgid, guest_pid: status.guest_tgid });
        Ok(Task { id, tid, guest_tid: status.guest_tid, group, end, filters: Mutex::default() })
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    /// Remembers a filter that the guest loads, unless the kernel will refuse it for length.
    ///
    /// What the kernel says is not seen here, so a guest that keeps on loading what is refused
    /// would fill the supervisor's memory otherwise.
    pub fn record_filter(&self, filter: RecordedFilter) {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let length = |filter: &RecordedFilter| filter.program.len() / 8 + FILTER_PENALTY;
        let total: usize = filters.iter().map(length).sum();
        if total + length(&filter) <= FILTERS_LIMIT {
            filters.push(filter);
        }
    }

    /// The filters that the guest has loaded, in order.
    pub fn filters(&self) -> Vec<RecordedFilter> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A copy of a descriptor of a thread. It is that thread's if the number `tid` still is.
pub(super) fn copy_descriptor(tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    // Threads can have descriptors of their own (clone(2) without CLONE_FILES).
    let thread = match process::pidfd_open(tid, true) {
        // Linux before 6.9 has descriptors of processes only.
        Err(Errno::EINVAL) => process::pidfd_open(Status::read(tid)?.tgid, false),
        done => done,
    }?;
    descriptors::copy(thread.as_fd(), fd)
}

/// What `/proc/<tid>/status` says of a thread (proc_pid_status(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    /// One letter, as in ps(1).
    pub(super) state: u8,
    pub(super) tgid: i32,
    pub(super) guest_tid: i32,
    pub(super) guest_tgid: i32,
    pub(super) threads: u32,
    /// Who traces it; 0: nobody.
    pub(super) tracer: i32,
    /// Signals pending for the thread, for the process, and blocked: bit N-1 is signal N.
    pub(super) pending: u64,
    pub(super) shared_pending: u64,
    pub(super) blocked: u64,
    /// Signals that the process ignores, and those that it has handlers for; in the same way.
    pub(super) ignored: u64,
    pub(super) caught: u64,
}

impl Status {
    pub(super) fn read(tid: i32) -> Result<Status, Errno> {
        let text = generated::single(format!("/proc/{tid}/status")).map_err(|error| match error
            .raw_os_error()
            .map(Errno::from_raw)
        {
            Some(Errno::ENOENT) | None => Errno::ESRCH,
            Some(errno) => errno,
        })?;
        Status::parse(&String::from_utf8_lossy(&text)).ok_or(Errno::EPROTO)
    }

    fn parse(text: &str) -> Option<Status> {
        // The name comes first and is the guest's to choose, but the kernel escapes newlines in it.
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let last = |name: &str| field(name)?.split_whitespace().next_back()?.parse().ok();
        let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        Some(Status {
            state: *field("State")?.as_bytes().first()?,
            tgid: last("Tgid")?,
            guest_tid: last("NSpid")?,
            guest_tgid: last("NStgid")?,
            threads: last("Threads").map_or(1, |threads: i32| threads.unsigned_abs()),
            tracer: last("TracerPid")?,
            pending: set("SigPnd")?,
            shared_pending: set("ShdPnd")?,
            blocked: set("SigBlk")?,
            ignored: set("SigIgn")?,
            caught: set("SigCgt")?,
        })
    }
}

/// The name of a thread, for people.
pub(super) fn comm(tid: i32) -> Option<String> {
    let name = generated::single(format!("/proc/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_the_kernel_cannot_have_taken_fill_no_memory() {
        let task = Task::discover(1, std::process::id() as i32).unwrap();
        let filter = RecordedFilter { flags: 0, program: vec![0; 4096 * 8] };
        for _ in 0..1000 {
            task.record_filter(filter.clone());
        }
        // As many of the longest as the kernel takes (MAX_INSNS_PER_PATH).
        assert_eq!(task.filters().len(), 7);
    }

    #[test]
    fn status_is_read_by_field_whatever_the_name_says() {
        let text = "Name:\tTgid: 7\\nTgid:\\t8\nState:\tS (sleeping)\nTgid:\t40\nNStgid:\t40\t2\nNSpid:\t41\t3\nTracerPid:\t0\nThreads:\t2\n\
                    SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000200\n\
                    SigIgn:\t0000000000000001\nSigCgt:\t0000000000000002\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.tgid, status.guest_tid, status.guest_tgid), (40, 3, 2));
        assert_eq!((status.ignored, status.caught), (1, 2));
        assert_eq!((status.threads, status.shared_pending, status.blocked), (2, 0x4000, 0x200));
        assert_eq!(Status::parse("Name:\tx\n"), None);
    }

    #[test]
    fn a_task_knows_its_process_and_its_end() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let task = Task::discover(1, child.id() as i32).unwrap();
        assert_eq!(task.group.tgid, child.id() as i32);
        assert!(!task.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(task.has_ended());
        assert_eq!(Task::discover(2, child.id() as i32).unwrap_err(), Errno::ESRCH);
    }
}
