//! Copies of stopped processes, from which memory is read while the processes go on.
//!
//! A copy is a process with the same pages, copy-on-write, which is made to run nothing of its program: it
//! stays stopped by the tracer from its first moment on but for looking at its own memory, and is killed when it has been
//! read ([`Copied`]) or its tracer ends. Owns making it so
//! that the guest does not notice, and what a copy lacks ([`is_lost`]).
//!
//! The guest must not find a child that it has not made. So a process in between makes the copy and
//! ends: the copy is an orphan, and init's. The one in between has no exit signal, so no wait of the
//! guest's program sees it, and the thread that made it waits for it by its number. It has the guest's
//! memory (CLONE_VM) but a table of descriptors of its own, which it empties before it makes the copy: a
//! copy holds no pipe open, and no lock goes, since that table was never the owner of any (close(2) lets
//! go the locks of a table, locks_remove_posix in fs/locks.c). What a guest can see of a copy: its number
//! in /proc and kill(2), until the save is done; and one more attachment to System V memory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Found;
use super::collector::{Content, Subject};
use super::maps::{self, Line};
use super::memory::join;
use super::zeros;
use crate::notify::Gate;
use crate::save::error::SaveError;
use crate::save::hand::{AREA, Hand, HandError, first_stop};
use crate::save::state::{MappingKind, Process, Space};
use crate::sentry::Kernel;
use crate::sys::agent::Table;
use crate::sys::generated;
use crate::sys::ptrace::{self, Stop};
use crate::sys::{pagemap, process};

/// The guests are to go on while their memory is read.
pub struct Live {
    kernel: Arc<Kernel>,
    /// What the mappings of each process were like shortly before, with their flags, which take time to
    /// read. None: they are read while all stand still.
    before: Option<HashMap<i32, Vec<Line>>>,
}

/// A copy. Killed when dropped.
#[derive(Debug)]
pub struct Copied {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    kernel: Arc<Kernel>,
    /// Where the agent lies in it, if it may look at its memory itself: no guest can have it make calls.
    area: Option<u64>,
    /// The entry of [`Found::spaces`].
    space: usize,
}

impl Drop for Copied {
    fn drop(&mut self) {
        discard(&self.kernel, self.pid, &self.pidfd);
    }
}

/// Whether a mapping with these flags is not in a copy, or empty there (MADV_DONTFORK and
/// MADV_WIPEONFORK of madvise(2)).
pub fn is_lost(flags: &str) -> bool {
    ["dc", "wf"].iter().any(|flag| maps::has_flag(flags, flag))
}

impl Live {
    /// `prepared`: mappings are read now, while all run; what has changed until they stand still is
    /// found out later ([`settle`]).
    pub fn new(kernel: &Arc<Kernel>, prepared: bool) -> Result<Live, SaveError> {
        let mut before = None;
        if prepared {
            let read = |pid| Some((pid, maps::read(pid).ok()?));
            before = Some(kernel.guests_there()?.into_iter().filter_map(read).collect());
        }
        Ok(Live { kernel: Arc::clone(kernel), before })
    }

    /// Mappings of a stopped process with their flags, which may be those of shortly before; but for the
    /// one of its hand, at `area`.
    pub fn mappings(&self, pid: i32, area: u64) -> Result<Vec<Line>, Errno> {
        if let Some(before) = self.before.as_ref().and_then(|all| all.get(&pid)) {
            let mut lines = maps::list(pid)?;
            lines.retain(|line| line.start < area || line.end > area + AREA);
            if maps::adopt_flags(&mut lines, before) && locked(&lines) == locked_pages(pid) {
                return Ok(lines);
            }
        }
        maps::read(pid)
    }

    /// Makes a copy of the subject, if that can be done unnoticed. Gives its number.
    pub fn copy(
        &self,
        subject: &mut Subject<'_>,
        gate: &Gate,
        process: &Process,
        found: &mut Found,
    ) -> Result<Option<i32>, SaveError> {
        if is_below_reaper(process, &found.processes) {
            return Ok(None);
        }
        let who = subject.to_string();
        match copy(subject.hand, gate, &self.kernel) {
            Ok(Made { pid, pidfd, is_confined }) => {
                let (kernel, space) = (Arc::clone(&self.kernel), found.spaces.len());
                let pidfd = Arc::new(pidfd);
                let area = is_confined.then(|| subject.hand.area());
                found.copies.push(Copied { pid, pidfd, kernel, area, space });
                Ok(Some(pid))
            }
            Err(HandError::Killed) => Err(SaveError::of(who)(HandError::Killed)),
            // It may have as many processes as it is allowed, or too much memory to promise twice.
            Err(error) => {
                tracing::debug!(%who, %error, "it stands still while its memory is read");
                Ok(None)
            }
        }
    }
}

/// Whether an orphan of the process would be a guest's child (PR_SET_CHILD_SUBREAPER of prctl(2)).
/// `captured`: all that were captured before, among them all above it.
fn is_below_reaper(process: &Process, captured: &[Process]) -> bool {
    let above: HashMap<i32, &Process> = captured.iter().map(|it| (it.pid, it)).collect();
    let mut seen = HashSet::new();
    let mut at = Some(process);
    while let Some(process) = at.filter(|it| seen.insert(it.pid)) {
        if process.subreaper {
            return true;
        }
        at = above.get(&process.parent).copied();
    }
    false
}

/// Bytes that the lines say are locked, and that the kernel does.
fn locked(lines: &[Line]) -> u64 {
    lines.iter().filter(|line| line.has("lo")).map(|line| line.end - line.start).sum()
}

fn locked_pages(pid: i32) -> u64 {
    let text = generated::text(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or(u64::MAX, |kilobytes| kilobytes * 1024)
}

/// A copy, which has stopped.
struct Made {
    pid: i32,
    /// Tells of its end.
    pidfd: OwnedFd,
    /// It can make no calls any more ([`confine`]).
    is_confined: bool,
}

/// Makes the process in between, and has it make the copy.
fn copy(hand: &mut Hand, gate: &Gate, kernel: &Kernel) -> Result<Made, HandError> {
    let mut table = hand.table();
    let between = table.call(libc::SYS_clone, [libc::CLONE_VM as u64, 0, 0, 0, 0]);
    let wait = table.call(libc::SYS_wait4, [0, 0, libc::__WALL as u64, 0]);
    table.forward(between, wait, 0);
    hand.begin(&table)?;
    let mut copy = Err(HandError::Killed);
    let done = to_the_end(hand, &table, |hand, tid| {
        // While the thread stands still at this stop, the other one works in its memory.
        copy = copy_by(tid, hand, gate, kernel);
    });
    unless_lost(kernel, done, copy)
}

/// Lets a thread run down its table; `made` is told of the process that it makes.
fn to_the_end(
    hand: &mut Hand,
    table: &Table,
    mut made: impl FnMut(&Hand, i32),
) -> Result<(), HandError> {
    loop {
        match hand.go_on()? {
            Stop::Made(tid) if tid > 0 => made(hand, tid),
            Stop::Signal(libc::SIGTRAP) => return hand.done(table).map(drop),
            Stop::Signal(signal @ (libc::SIGSEGV | libc::SIGBUS)) => {
                return Err(HandError::Astray(signal));
            }
            _ => {}
        }
    }
}

/// The copy, or why it is of no use: then it is killed.
fn unless_lost(
    kernel: &Kernel,
    done: Result<(), HandError>,
    copy: Result<Made, HandError>,
) -> Result<Made, HandError> {
    match (done, copy) {
        (Ok(()), copy) => copy,
        (Err(error), Ok(Made { pid, pidfd, .. })) => {
            discard(kernel, pid, &pidfd);
            Err(error)
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Kills a copy that nobody is going to read. Its tracer reaps it, then init.
fn discard(kernel: &Kernel, pid: i32, pidfd: &OwnedFd) {
    let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    kernel.remove_keeper(pid);
}

/// The work of the process in between, which has ended when this returns.
fn copy_by(tid: i32, parent: &Hand, gate: &Gate, kernel: &Kernel) -> Result<Made, HandError> {
    kernel.add_keeper(tid, "");
    gate.pass(tid);
    let copy = in_between(tid, parent, gate, kernel);
    kernel.remove_keeper(tid);
    copy
}

fn in_between(tid: i32, parent: &Hand, gate: &Gate, kernel: &Kernel) -> Result<Made, HandError> {
    let mut hand = Hand::beside(first_stop(tid)?, parent.area());
    hand.respect(parent.filters().to_vec());
    let copy = copy_and_end(&mut hand, gate, kernel);
    let mut ended = Ok(());
    if hand.stopped().is_ok() {
        ended = hand.release().and_then(|stopped| {
            ptrace::end(stopped).map_err(|errno| HandError::Own("end it", errno))
        });
    }
    unless_lost(kernel, ended, copy)
}

fn copy_and_end(hand: &mut Hand, gate: &Gate, kernel: &Kernel) -> Result<Made, HandError> {
    let mut table = hand.table();
    table.call(libc::SYS_close_range, [0, u64::from(u32::MAX), 0]);
    // Not of the guest's process group, whose end may be waited for.
    table.attempt(libc::SYS_setsid, []);
    table.call(libc::SYS_clone, [0, 0, 0, 0, 0]);
    // Should its tracer die before it has seen the copy ([`made`]), this is what that does.
    table.call(libc::SYS_exit_group, [0]);
    hand.begin(&table)?;
    let mut copy = Err(HandError::Killed);
    let done = to_the_end(hand, &table, |hand, pid| copy = made(pid, hand, gate, kernel));
    match done {
        // It has ended.
        Err(HandError::Killed) => copy,
        done => unless_lost(kernel, done, copy),
    }
}

/// A copy that has just been made.
fn made(pid: i32, by: &Hand, gate: &Gate, kernel: &Kernel) -> Result<Made, HandError> {
    kernel.add_keeper(pid, "");
    gate.pass(pid);
    let pidfd = process::pidfd_open(pid, false);
    let confined = first_stop(pid).and_then(|mut stopped| {
        let failed = |errno| HandError::Own("have it end with the sandbox", errno);
        stopped.end_with_tracer().map_err(failed)?;
        let mut hand = Hand::new(stopped, by.area());
        hand.respect(by.filters().to_vec());
        // (One that has been killed is missed when it is read.)
        Ok(confine(&mut hand).is_ok())
    });
    // It stays where it is.
    match confined.map(|is_confined| pidfd.map(|pidfd| Made { pid, pidfd, is_confined })) {
        Ok(Ok(made)) => Ok(made),
        failed => {
            // (Its number is its own as long as its tracer has not heard of its end.)
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            kernel.remove_keeper(pid);
            match failed {
                Ok(Err(errno)) => Err(HandError::Own("keep it", errno)),
                Ok(Ok(_)) => Err(HandError::Killed),
                Err(error) => Err(error),
            }
        }
    }
}

/// Takes all system calls away from a copy, by a seccomp filter: it is going to run while guests do, which may write to
/// its memory as to one another's.
fn confine(hand: &mut Hand) -> Result<(), HandError> {
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut table = hand.table();
    // struct sock_filter and sock_fprog.
    let [code, none] = [(libc::BPF_RET | libc::BPF_K) as u16, 0].map(u16::to_ne_bytes);
    let program = table.data(&[&code[..], &none, &REFUSE.to_ne_bytes()].concat());
    let whole = table.data(&[1, program.address].map(u64::to_ne_bytes).concat());
    table.call(libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_FILTER.into(), 0, whole.address]);
    hand.run(&table).map(drop)
}

/// Finds the pages of the copies, and which are zero. `taken`: flags of mappings were taken for granted. Gives whether
/// they are so; if not, all has to be captured anew.
pub fn settle(found: &mut Found, spaces: &mut [Space], taken: bool) -> Result<bool, SaveError> {
    let Found { copies, collector, .. } = found;
    // Both take their time, by the kernel's walks through page tables.
    thread::scope(|scope| {
        let read = || copies.iter().map(|it| maps::read(it.pid)).collect::<Vec<_>>();
        let reading = taken.then(|| scope.spawn(read));
        let pages = find_pages(copies, &mut collector.contents, spaces);
        find_zeros(copies, &mut collector.contents, spaces);
        let Some(reading) = reading else { return pages.map(|()| true) };
        let lines = reading.join().unwrap_or_else(|panic| resume_unwind(panic));
        // (If there is none of them any more, its pages cannot be found either.)
        let is_so = are_as_taken(copies, lines, spaces)?;
        pages.map(|()| is_so)
    })
}

/// Finds the pages of the copies, and the guards there.
fn find_pages(
    copies: &[Copied],
    contents: &mut [Content],
    spaces: &mut [Space],
) -> Result<(), SaveError> {
    let of_copy: HashMap<_, _> = copies.iter().map(|it| (it.pid, &it.pidfd)).collect();
    let mut of_object: HashMap<_, _> = spaces.iter_mut().map(|it| (it.object, it)).collect();
    for content in contents {
        let Content::Copied { object, pid, mappings } = content else { continue };
        let mut rest =
            of_object.get_mut(object).map_or(&mut [][..], |space| &mut space.mappings[..]);
        let failed = |why: String| {
            SaveError::failed("the pages of a copy of a process cannot be found", why)
        };
        let file = File::open(format!("/proc/{pid}/pagemap"));
        let file = file.map_err(|error| failed(error.to_string()))?;
        let copy = of_copy.get(pid).map(|pidfd| Arc::clone(pidfd));
        // (Of another one that has its number by now.)
        if copy.as_ref().is_none_or(|it| process::has_ended(it.as_fd())) {
            return Err(failed("it was killed".to_owned()));
        }
        let mut ranges = Vec::new();
        for (start, end) in mappings {
            let (own, guards) = pagemap::own_pages_and_guards(&file, *start, *end)
                .map_err(|errno| failed(errno.desc().to_owned()))?;
            own.into_iter().for_each(|range| join(&mut ranges, range));
            // Both are in order of their addresses.
            let at = rest.partition_point(|mapping| mapping.start < *start);
            rest = &mut rest[at..];
            if let Some(mapping) = rest.first_mut().filter(|it| it.start == *start)
                && !matches!(mapping.kind, MappingKind::Vdso)
            {
                mapping.guards = guards;
            }
        }
        *content = Content::Pages { object: *object, pid: *pid, ranges, zeros: Vec::new(), copy };
    }
    Ok(())
}

/// Has the copies look which of their pages are zero.
fn find_zeros(copies: &[Copied], contents: &mut [Content], spaces: &[Space]) {
    let of_copy: HashMap<_, _> = copies.iter().map(|it| (it.pid, it)).collect();
    // Of all: guests may hold up each of their copies, but the save only once.
    let until = Instant::now() + zeros::LONGEST;
    for content in contents {
        let Content::Pages { pid, ranges, zeros, .. } = content else { continue };
        let Some(copied) = of_copy.get(pid) else { continue };
        let (Some(area), Some(space)) = (copied.area, spaces.get(copied.space)) else { continue };
        let pieces = zeros::worth_a_look(ranges, &space.mappings);
        for portion in zeros::in_portions(&pieces) {
            if Instant::now() >= until {
                return;
            }
            let (pid, pidfd) = (*pid, Arc::clone(&copied.pidfd));
            let looked = copied
                .kernel
                .tracer()
                .run(move |_| zeros::look_in_copy((pid, pidfd.as_fd()), area, &portion, until));
            match looked {
                Ok(Ok(found)) => found.into_iter().for_each(|range| join(zeros, range)),
                Ok(Err(error)) => {
                    tracing::debug!(pid, %error, "not all zeros of a copy are found");
                    break;
                }
                Err(_) => return,
            }
        }
    }
}

/// Whether the mappings of the copies, with their flags, are those of the spaces.
fn are_as_taken(
    copies: &[Copied],
    lines: Vec<Result<Vec<Line>, Errno>>,
    spaces: &mut [Space],
) -> Result<bool, SaveError> {
    for (copied, lines) in copies.iter().zip(lines) {
        let gone = |errno: Errno| {
            SaveError::failed(
                "the copy of a process, of which memory is read, is gone",
                errno.desc(),
            )
        };
        let lines = lines.map_err(gone)?;
        let Some(space) = spaces.get_mut(copied.space) else { continue };
        for mapping in &mut space.mappings {
            // The kernel's own pages are nobody's.
            if matches!(mapping.kind, MappingKind::Vvar(_)) {
                continue;
            }
            let at = lines.partition_point(|line| line.end <= mapping.start);
            let line = lines.get(at).filter(|line| line.start <= mapping.start);
            let is_so = match line {
                Some(line) => decisive(&line.flags) == decisive(&mapping.flags),
                None => mapping.flags.split(' ').any(|flag| flag == "dc"),
            };
            if !is_so {
                return Ok(false);
            }
            if let Some(line) = line {
                mapping.flags = with_locks(&line.flags, &mapping.flags);
            }
        }
    }
    Ok(true)
}

/// Flags that decide how a mapping is saved.
fn decisive(flags: &str) -> Vec<&str> {
    const DECISIVE: [&str; 7] = ["dc", "wf", "gd", "io", "pf", "mw", "ht"];
    flags.split(' ').filter(|flag| DECISIVE.contains(flag)).collect()
}

/// A copy has no locked memory (dup_mmap in kernel/fork.c).
fn with_locks(flags: &str, before: &str) -> String {
    let locks = before.split(' ').filter(|flag| matches!(*flag, "lo" | "lf"));
    let own = flags.split(' ').filter(|flag| !matches!(*flag, "lo" | "lf"));
    own.chain(locks).collect::<Vec<_>>().join(" ")
}

/// Ends the copies; returns when they have ended. Not on the tracer's thread.
pub fn end(kernel: &Kernel, found: &mut Found) {
    begin_to_end(found).wait(kernel);
}

/// The same, without waiting for it.
pub fn begin_to_end(found: &mut Found) -> Ending {
    Ending(killed(found))
}

/// Copies that end, which takes time for much memory.
#[must_use]
pub struct Ending(Vec<OwnedFd>);

impl Ending {
    /// Returns when they have ended. Not on the tracer's thread.
    pub fn wait(self, kernel: &Kernel) {
        // (No tracer any more: none of them is left.)
        let _ = kernel.tracer().run(move |_| wait_for_ends(&self.0));
    }
}

/// The same on the tracer's thread.
pub fn end_here(found: &mut Found) {
    wait_for_ends(&killed(found));
}

/// What tells of the ends of those that have been killed.
fn killed(found: &mut Found) -> Vec<OwnedFd> {
    let copies = std::mem::take(&mut found.copies);
    copies.iter().filter_map(|it| it.pidfd.try_clone().ok()).collect()
}

fn wait_for_ends(killed: &[OwnedFd]) {
    for pidfd in killed {
        let _ = ptrace::wait_for_end(pidfd.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_matter_are_compared_and_locks_are_kept() {
        assert!(is_lost("rd wr dc") && is_lost("wf") && !is_lost("rd wr mr mw me"));
        assert_eq!(decisive("rd wr mw gd ac"), ["mw", "gd"]);
        assert_eq!(with_locks("rd wr mr", "rd lo mr"), "rd wr mr lo");
    }
}
