//! The processes of an image are made, in the order of the plan, with nothing in them but the agent and what those that
//! they make are to have from them.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::courier::Courier;
use super::heritage::Heritage;
use super::keepers::Shelter;
use super::maker::Sink;
use super::space::{self, Sources};
use super::tree::{self, Step};
use super::{Fill, Options, Wanted, commons, end, seed, threads};
use crate::launch::Planter;
use crate::notify::Gate;
use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::sharing::Classes;
use crate::save::state::Sandbox;
use crate::sys::ptrace;

/// What seeds are planted with.
pub(super) struct Garden<'g> {
    pub(super) planter: &'g Planter,
    /// By number: who plants what is below it.
    pub(super) keepers: HashMap<i32, Shelter<'g>>,
    pub(super) gate: &'g Gate,
    pub(super) area: u64,
    /// The other end of the courier's socket.
    pub(super) theirs: OwnedFd,
    /// From here on numbers are nobody's.
    pub(super) free: i32,
}

impl Garden<'_> {
    /// Init, or a keeper.
    fn is_planter(&self, pid: i32) -> bool {
        pid == tree::INIT || self.keepers.contains_key(&pid)
    }

    /// Whether one process makes both, one after the other.
    fn are_alike(&self, one: &Step, next: &Step) -> bool {
        match (one, next) {
            (Step::Make { parent, pid, .. }, Step::Make { parent: other, .. }) => {
                !self.is_planter(*parent) && parent == other && next.like(*pid) == *one
            }
            _ => false,
        }
    }

    /// In which order processes are made.
    pub(super) fn steps(
        &self,
        sandbox: &Sandbox,
        classes: &Classes,
    ) -> Result<Vec<Step>, RestoreError> {
        let keepers: Vec<i32> = sandbox.keepers.iter().map(|it| it.number).collect();
        commons::plan(&sandbox.processes, &keepers, classes, self.free + 1)
            .map_err(|it| RestoreError::refused(it.to_string()))
    }

    /// A seed of init's or of a keeper's, stopped and settled.
    pub(super) fn plant(
        &self,
        parent: i32,
        pid: i32,
        who: &str,
    ) -> Result<(Hand, OwnedFd), RestoreError> {
        use std::os::fd::AsFd;
        let failed = |what: &'static str| {
            move |errno: Errno| {
                RestoreError::failed(format!("{who}: it cannot be {what}"), errno.desc())
            }
        };
        let planter = self.keepers.get(&parent).map_or(self.planter, |it| &it.planter);
        let (host, pidfd) = planter.plant(pid, self.theirs.as_fd()).map_err(failed("made"))?;
        self.gate.pass(host);
        ptrace::seize(host).and_then(|it| it.interrupt()).map_err(failed("stopped"))?;
        let stopped = ptrace::wait_for(host).map_err(failed("stopped"))?;
        let hand = space::settle(Hand::new(stopped, self.area), seed::settled(self.area))
            .map_err(RestoreError::of(who))?;
        Ok((hand, pidfd))
    }
}

/// Makes every process, in its session and group, and threads that are apart, by number. Gives what stands for the
/// run's program, too.
pub(super) fn skeleton(
    garden: &Garden<'_>,
    sandbox: &Sandbox,
    steps: &[Step],
    giver: &mut Giver<'_, '_>,
) -> Result<(HashMap<i32, Hand>, OwnedFd), RestoreError> {
    let mut hands: HashMap<i32, Hand> = HashMap::new();
    let mut program = None;
    let mut have_made = HashSet::new();
    let crowded = in_one_memory(steps);
    for steps in steps.chunk_by(|one, next| garden.are_alike(one, next)) {
        if let Step::Make { parent, .. } = steps[0]
            && have_made.insert(parent)
            && let Some(hand) = hands.get_mut(&parent)
        {
            giver.give(hand, parent, sandbox)?;
        }
        carry_out(garden, steps, &crowded, &mut hands, |pid, pidfd| {
            if pid == sandbox.run.program {
                program = Some(pidfd);
            }
        })?;
    }
    let missing = "the image is damaged: the run's program is not in it";
    Ok((hands, program.ok_or_else(|| RestoreError::refused(missing))?))
}

/// Those that are in one memory with another one: in it there is one place for tables.
fn in_one_memory(steps: &[Step]) -> HashSet<i32> {
    let pairs = steps.iter().filter_map(|step| match *step {
        Step::Make { parent, pid, flags, .. } if flags & libc::CLONE_VM as u64 != 0 => {
            Some([parent, pid])
        }
        Step::Thread { pid, tid, .. } => Some([pid, tid]),
        _ => None,
    });
    pairs.flatten().collect()
}

/// Gives processes what those that they make are to have from them.
pub(super) struct Giver<'a, 'f> {
    pub(super) heritage: &'a Heritage,
    pub(super) courier: &'a Courier,
    pub(super) options: &'a Options,
    pub(super) fill: &'a mut Fill<'f>,
}

impl Giver<'_, '_> {
    /// Whoever process `pid` makes from here on has some of its memory.
    fn give(&mut self, hand: &mut Hand, pid: i32, sandbox: &Sandbox) -> Result<(), RestoreError> {
        let process = sandbox.processes.iter().find(|it| it.pid == pid);
        let space = process.and_then(|it| sandbox.spaces.get(it.space? as usize));
        let Some(ahead) = space.and_then(|space| self.heritage.ahead(pid, space)) else {
            return Ok(());
        };
        let who = format!("process {pid}");
        let sources = Sources {
            courier: self.courier,
            shared: &[],
            memory: &[],
            policy: self.options.files,
            trees: &self.options.trees,
            files: &[],
        };
        let opening = space::clear(hand, &ahead.space, &ahead.stays)?;
        space::map(hand, (&ahead.space, &opening), &sources, &ahead.stays, &who)?;
        hand.rest().map_err(RestoreError::of(who))?;
        let files = space::files_below(&ahead.space);
        let sink = Sink::Space { pid: hand.tid(), files };
        (self.fill)(&HashMap::from([(ahead.space.object, sink)]), Wanted::Ahead(ahead.content))
    }
}

/// One step of the plan, or several that are alike. `planted` is told of what init has planted.
fn carry_out(
    garden: &Garden<'_>,
    steps: &[Step],
    crowded: &HashSet<i32>,
    hands: &mut HashMap<i32, Hand>,
    mut planted: impl FnMut(i32, OwnedFd),
) -> Result<(), RestoreError> {
    let of = |pid: i32| RestoreError::of(format!("process {pid}"));
    fn hand(hands: &mut HashMap<i32, Hand>, pid: i32) -> Result<&mut Hand, RestoreError> {
        let lost = || RestoreError::refused(format!("the image is damaged: process {pid}"));
        hands.get_mut(&pid).ok_or_else(lost)
    }
    let Some(step) = steps.first() else { return Ok(()) };
    match *step {
        Step::Make { parent, pid, .. } if garden.is_planter(parent) => {
            let (made, pidfd) = garden.plant(parent, pid, &format!("process {pid}"))?;
            // (The run's program is init's: none of a keeper's is ever taken for it.)
            if parent == tree::INIT {
                planted(pid, pidfd);
            }
            hands.insert(pid, made);
        }
        Step::Make { parent, beside, exit_signal, flags, .. } => {
            let pids: Vec<i32> = steps.iter().filter_map(Step::makes).collect();
            // Who has the parent of its maker gets its signal as well (copy_process in kernel/fork.c).
            let (flags, exit_signal) = match beside {
                true => (flags | libc::CLONE_PARENT as u64, 0),
                false => (flags, exit_signal),
            };
            let made = threads::children(hand(hands, parent)?, flags, exit_signal, &pids);
            let made = made.map_err(|(pid, error)| of(pid)(error))?;
            made.iter().for_each(|made| garden.gate.pass(made.tid()));
            hands.extend(pids.into_iter().zip(made));
        }
        Step::Thread { pid, tid, flags } => {
            let made = threads::apart(hand(hands, pid)?, flags, tid).map_err(of(tid))?;
            garden.gate.pass(made.tid());
            hands.insert(tid, made);
        }
        Step::Leave { task, flags } => {
            hand(hands, task)?.call(libc::SYS_unshare, [flags]).map_err(of(task))?;
        }
        Step::Lead(pid) => {
            hand(hands, pid)?.call(libc::SYS_setsid, []).map_err(of(pid))?;
        }
        Step::Join { pid, group } => {
            let hand = hand(hands, pid)?;
            let mut table = hand.table();
            table.call(libc::SYS_setpgid, [0, group as u64]);
            hand.post(table).map_err(of(pid))?;
            // Others follow a leader, or put their tables where this one's is.
            if pid == group || crowded.contains(&pid) {
                hand.rest().map_err(of(pid))?;
            }
        }
        Step::Adopt(pid) => {
            let arguments = [libc::PR_SET_CHILD_SUBREAPER as u64, 1];
            hand(hands, pid)?.call(libc::SYS_prctl, arguments).map_err(of(pid))?;
        }
        Step::End { parent, pid } => {
            // (Some may just be about to join what it leads.)
            hands.iter_mut().try_for_each(|(pid, hand)| hand.rest().map_err(of(*pid)))?;
            let ending =
                hands.remove(&pid).ok_or_else(|| RestoreError::refused("a stand-in is lost"))?;
            end(ending)?;
            // (Init and keepers wait for whatever they are left.)
            if !garden.is_planter(parent) {
                let arguments = [pid as u64, 0, libc::__WALL as u64, 0];
                hand(hands, parent)?.call(libc::SYS_wait4, arguments).map_err(of(pid))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_in_one_memory_are_known() {
        let make = |parent, pid, flags: i32| Step::Make {
            parent,
            pid,
            stands_in: false,
            beside: false,
            exit_signal: libc::SIGCHLD,
            flags: flags as u64,
        };
        let steps = [
            make(1, 2, 0),
            make(2, 3, libc::CLONE_VM),
            make(3, 4, libc::CLONE_FILES),
            Step::Join { pid: 4, group: 2 },
            Step::Thread { pid: 5, tid: 6, flags: 0 },
        ];
        assert_eq!(in_one_memory(&steps), HashSet::from([2, 3, 5, 6]));
    }
}
