//! Finding every guest thread and asking it to stop, while guests make others.
//!
//! A sweep goes through /proc in the order of the numbers, one process at a time, and traces each
//! guest as soon as it is seen: what a traced one makes from then on is traced by birth. What remains
//! is a *line*: a process that makes the next one and ends before it is traced. No line escapes
//! unseen. /proc lists by number, and a number is given to what is made later than another's, so the
//! living one of a line is always ahead of the sweep, until the sweep comes to it (proc_pid_readdir
//! and next_tgid in fs/proc/base.c, alloc_pid in kernel/pid.c). Then it is new; or it has ended
//! between its listing and the look at it, which shows: it is gone, or was not seen ended before. So
//! a sweep during which all that was known stood still, and which has met nothing new, nothing that
//! was gone and nothing newly ended, proves that there is nothing else. The one exception is a line
//! that went past the largest number to the smallest during the sweep. (What is listed may be looked at later: whoever
//! has been listed and is gone then is missed. It only takes longer to catch one that ends soon, so a look at anything
//! makes the list fresh.)
//!
//! A sweep that has met something goes back to it and looks again at what comes after: thus it follows a
//! line, one process after the other, until it has traced one early enough in its life. (That is
//! before it begins to fork: ptrace_event_enabled in kernel_clone, kernel/fork.c.) What is met may be a
//! child of one that makes a child after the other: its parents are looked at next.
//!
//! The newest are looked at first, before the rest: in a storm they are what makes the others, and
//! what keeps this thread from a CPU.
//!
//! What is not here: waiting for the stops, and what to think of those that may not be traced.

use std::collections::HashSet;

use nix::errno::Errno;
use nix::unistd::gettid;

use super::census::numbers;
use super::kin::{Birth, Family, Kin};
use super::task::Status;
use super::tracer::Tracees;
use crate::sys::listing::Listing;

/// How often a sweep goes back at most: others wait for the tracer's thread meanwhile.
const MOST_TURNS: usize = 200;

/// So many of the newest numbers are looked at first.
const NEWEST: i32 = 200;

/// What a sweep has met.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Whether any thread was new.
    pub(super) any_new: bool,
    /// Whether anything was gone before it could be looked at or traced.
    pub(super) any_missed: bool,
    /// Processes that have ended: number and time of start.
    pub(super) ended: Vec<(i32, u64)>,
    /// Threads that may not be traced: number, time of start of the process, and why.
    pub(super) refused: Vec<(i32, u64, Errno)>,
    /// All that have been asked to stop and have not.
    pub(super) running: Vec<i32>,
    /// The processes that are known, ended ones and maybe keepers among them.
    pub(super) members: Vec<i32>,
    /// Whether it is known that no number was smaller than one that was given before it.
    pub(super) in_order: bool,
}

impl Tracees {
    /// Traces every guest thread that is met and asks all to stop. They are let go in the order in
    /// which their processes were made.
    ///
    /// All threads of a process are traced before the first is asked to stop. Signals that do nothing
    /// (SIGCHLD, mostly) are kept for a process while one of its threads is traced, and then given to a
    /// thread that has not stopped (sig_ignored and complete_signal in kernel/signal.c): one that is not
    /// traced would see its call end with EINTR, and nobody would mend that (see [`super::rewind`]).
    /// Each process is asked as soon as it is met: what stops leaves its CPU to the sweep.
    pub(super) fn sweep(&mut self, family: &mut Family) -> Result<Swept, Errno> {
        family.in_order();
        let mut swept = Swept::default();
        let begun = self.places();
        let mut new = Vec::new();
        let mut seen = HashSet::new();
        let mut all = Listing::open("/proc")?;
        if let Some(last) = family.last().filter(|last| *last > NEWEST) {
            all.seek_number(last - NEWEST)?;
            self.sweep_on(&mut all, family, &mut seen, &mut new, &mut swept)?;
            all.seek(0)?;
            // These, too, are looked at again in their turn.
            seen.clear();
            swept.refused.clear();
        }
        self.sweep_on(&mut all, family, &mut seen, &mut new, &mut swept)?;
        // Parents before their children.
        new.sort_by_key(|(start, pid, _)| (*start, *pid));
        let born = self.placed_since(begun);
        for (_, _, tid) in &new {
            self.place_last(*tid);
        }
        // What they have made meanwhile stays behind them.
        let met: HashSet<i32> = new.iter().map(|(_, _, tid)| *tid).collect();
        for tid in born.into_iter().filter(|tid| !met.contains(tid)) {
            self.place_last(tid);
        }
        swept.any_new = !new.is_empty();
        swept.any_missed |= !self.ask_new();
        swept.running = self.running();
        // Before what is known may be forgotten.
        swept.members = family.members();
        swept.in_order = family.in_order();
        Ok(swept)
    }

    /// Goes on to the end of the list, and back to what was met last as long as anything is met.
    fn sweep_on(
        &mut self,
        all: &mut Listing,
        family: &mut Family,
        seen: &mut HashSet<i32>,
        new: &mut Vec<(u64, i32, i32)>,
        swept: &mut Swept,
    ) -> Result<(), Errno> {
        for _ in 0..MOST_TURNS {
            let mut again = None;
            loop {
                let position = all.position();
                let Some(pid) = all.next_number()? else { break };
                if family.is_settled(pid) || seen.contains(&pid) {
                    continue;
                }
                if self.climb(pid, family, seen, new, swept) {
                    again = Some(position);
                }
                // That has taken time.
                all.refresh()?;
            }
            match again {
                Some(position) => all.seek(position)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Looks at one process and, if anything is met, at its parents: one of them may be what makes many
    /// that end soon. Gives whether anything was met.
    fn climb(
        &mut self,
        mut pid: i32,
        family: &mut Family,
        seen: &mut HashSet<i32>,
        new: &mut Vec<(u64, i32, i32)>,
        swept: &mut Swept,
    ) -> bool {
        let mut any_met = false;
        while !family.is_settled(pid) && seen.insert(pid) {
            let (is_met, parent) = self.meet(pid, family, new, swept);
            any_met |= is_met;
            match parent.filter(|_| is_met) {
                Some(parent) => pid = parent,
                None => break,
            }
        }
        any_met
    }

    /// Looks at one process. Gives whether it may have made another one just now, and its parent.
    fn meet(
        &mut self,
        pid: i32,
        family: &mut Family,
        new: &mut Vec<(u64, i32, i32)>,
        swept: &mut Swept,
    ) -> (bool, Option<i32>) {
        let Birth { start, parent } = match family.judge(pid) {
            Kin::Guest(birth) => birth,
            Kin::Other => return (false, None),
            Kin::Gone => {
                swept.any_missed = true;
                return (true, None);
            }
            Kin::Ended(birth) => {
                swept.ended.push((pid, birth.start));
                return (true, Some(birth.parent));
            }
        };
        let before = (new.len(), swept.any_missed);
        let threads: Vec<i32> =
            numbers(&format!("/proc/{pid}/task")).map(Iterator::collect).unwrap_or_default();
        swept.any_missed |= threads.is_empty();
        for tid in &threads {
            let tid = *tid;
            match self.trace(tid) {
                Ok(true) => new.push((start, pid, tid)),
                Ok(false) => {}
                Err(Errno::ESRCH) => swept.any_missed = true,
                // It is traced by birth, and its stop has not been told yet.
                Err(Errno::EPERM) if is_own(tid) => swept.any_missed = true,
                Err(errno) => swept.refused.push((tid, start, errno)),
            }
        }
        for tid in &threads {
            swept.any_missed |= !self.ask_if_new(*tid);
        }
        (before != (new.len(), swept.any_missed), Some(parent))
    }
}

/// Whether the calling thread traces `tid`.
fn is_own(tid: i32) -> bool {
    Status::read(tid).is_ok_and(|status| status.tracer == gettid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::super::tracer::Tracer;
    use super::*;
    use std::collections::BTreeMap;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_met_once_and_what_is_no_descendant_never() {
        let mut cat = Command::new("cat");
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let tracer = Tracer::default();
        let sweep = move |tracees: &mut Tracees| {
            tracees.hold();
            let swept = tracees.sweep(&mut Family::new(pid, BTreeMap::new())).unwrap();
            (swept.any_new, tracees.has(pid))
        };
        // What stands for init here is not met itself, and has no child.
        assert_eq!(tracer.run(sweep), Ok((false, false)));
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat; :"]).stdin(Stdio::piped());
        let mut init = shell.spawn().unwrap();
        let parent = init.id() as i32;
        let family = move || Family::new(parent, BTreeMap::new());
        let mut met = false;
        while !met {
            met = tracer.run(move |it| it.sweep(&mut family()).unwrap().any_new).unwrap();
        }
        assert_eq!(tracer.run(move |it| it.sweep(&mut family()).unwrap().any_new), Ok(false));
        tracer.run(Tracees::let_go).unwrap();
        drop((child.stdin.take(), init.stdin.take()));
        child.wait().unwrap();
        init.wait().unwrap();
    }
}
