//! In which order processes have to be made so that parents, sessions and groups are what they were.
//!
//! A session is only ever inherited (setsid(2)), so who is to be in one is made by a process that is in
//! it: by its parent, before or after that starts a session of its own; or, where the parent took an orphan
//! over, by a *stand-in* that ends afterwards, so that the process becomes an orphan again. Stand-ins
//! also lend their number to sessions and groups whose leader has ended. Pure logic: [`plan`] makes a
//! list of steps, and whoever has hands carries them out.

use std::collections::{HashMap, HashSet};

use crate::save::state::Process;

/// Init, by its number.
pub(super) const INIT: i32 = 1;

/// One step. Processes are named by number; stand-ins have numbers too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `parent` makes `pid`; with `parent` 1, init plants it, and a keeper what is its own.
    Make {
        /// Who makes it.
        parent: i32,
        /// Its number.
        pid: i32,
        /// It is only there for others.
        stands_in: bool,
        /// Who makes it is not its parent but a sibling (CLONE_PARENT).
        beside: bool,
        /// The signal that its parent gets at its end.
        exit_signal: i32,
        /// What it shares with its maker ([`super::commons`]): flags of clone(2).
        flags: u64,
    },
    /// A thread that does not share all with the first of its process is made by that ([`super::commons`]).
    Thread {
        /// The process.
        pid: i32,
        /// The number of the thread.
        tid: i32,
        /// Which of CLONE_FILES, CLONE_FS, CLONE_SYSVSEM it shares.
        flags: u64,
    },
    /// A process or a thread gets its own of what it has shared so far: flags of unshare(2).
    Leave {
        /// Who.
        task: i32,
        /// What.
        flags: u64,
    },
    /// It starts a session.
    Lead(i32),
    /// It joins a group, which may be its own.
    Join {
        /// Who.
        pid: i32,
        /// The group.
        group: i32,
    },
    /// It takes orphans over from now on (PR_SET_CHILD_SUBREAPER).
    Adopt(i32),
    /// A stand-in ends and is waited for by who made it.
    End {
        /// Who made it.
        parent: i32,
        /// Its number.
        pid: i32,
    },
}

impl Step {
    /// The process that it makes.
    pub fn makes(&self) -> Option<i32> {
        match self {
            Step::Make { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// The same step for another process, if it makes one.
    pub fn like(mut self, number: i32) -> Step {
        if let Step::Make { pid, .. } = &mut self {
            *pid = number;
        }
        self
    }

    /// The process that makes another one in it, or a thread.
    pub fn maker(&self) -> Option<i32> {
        match self {
            Step::Make { parent, .. } => Some(*parent),
            Step::Thread { pid, .. } => Some(*pid),
            _ => None,
        }
    }
}

/// What cannot be made: the process, and its session or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impossible {
    /// Its number.
    pub pid: i32,
    /// The session.
    pub session: i32,
}

struct Planner<'p> {
    processes: &'p [Process],
    /// Keepers, which lead a session each.
    keepers: HashSet<i32>,
    children: HashMap<i32, Vec<&'p Process>>,
    /// See [`birthplaces`].
    birthplaces: HashMap<i32, Option<i32>>,
    alive: HashMap<i32, &'p Process>,
    /// Who is made by a sibling, and by which.
    siblings: &'p HashMap<i32, i32>,
    /// Those that a sibling makes, by that.
    besides: HashMap<i32, Vec<&'p Process>>,
    made: HashSet<i32>,
    /// The session of each that has been made, as it is now.
    session: HashMap<i32, i32>,
    /// The group of each, likewise.
    group: HashMap<i32, i32>,
    /// Stand-ins that have not ended: (who made it, its number).
    standing_in: Vec<(i32, i32)>,
    /// Numbers for stand-ins that need none in particular.
    next_free: i32,
    steps: Vec<Step>,
}

/// The steps for these processes, all of them with a parent among them, one of `keepers`, which are there
/// already, or init, and behind it. `siblings`: who is made by one that was made before it, in place of its parent. `free`:
/// from here on numbers are nobody's.
pub fn plan(
    processes: &[Process],
    keepers: &[i32],
    siblings: &HashMap<i32, i32>,
    free: i32,
) -> Result<Vec<Step>, Impossible> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    let mut besides: HashMap<i32, Vec<&Process>> = HashMap::new();
    let alive: HashMap<i32, &Process> = processes.iter().map(|it| (it.pid, it)).collect();
    let by_number: HashSet<i32> = keepers.iter().copied().collect();
    for process in processes {
        if let Some(sibling) = siblings.get(&process.pid) {
            besides.entry(*sibling).or_default().push(process);
        }
        children.entry(home(process, &alive, &by_number)).or_default().push(process);
    }
    let roots = || keepers.iter().chain([&INIT]).map(|root| (*root, *root));
    let mut planner = Planner {
        processes,
        keepers: by_number,
        birthplaces: birthplaces(processes, &children),
        children,
        alive,
        siblings,
        besides,
        made: HashSet::new(),
        session: roots().collect(),
        group: roots().collect(),
        standing_in: Vec::new(),
        next_free: free,
        steps: Vec::new(),
    };
    planner.children_of(INIT);
    keepers.iter().for_each(|keeper| planner.children_of(*keeper));
    planner.orphans();
    if let Some(left) = processes.iter().find(|it| !planner.made.contains(&it.pid)) {
        return Err(Impossible { pid: left.pid, session: left.session });
    }
    planner.end_stand_ins();
    planner.groups()?;
    planner.end_stand_ins();
    Ok(planner.steps)
}

/// Whose child a process is. A parent that is not there is init's business, as for the kernel.
fn home(process: &Process, alive: &HashMap<i32, &Process>, keepers: &HashSet<i32>) -> i32 {
    let parent = process.parent;
    if alive.contains_key(&parent) || keepers.contains(&parent) { parent } else { INIT }
}

/// The session that each process has to be born into: its own, or, where it has started one since, that of
/// children from before. `None`: it does not matter. A parent comes before its children.
fn birthplaces(
    processes: &[Process],
    children: &HashMap<i32, Vec<&Process>>,
) -> HashMap<i32, Option<i32>> {
    let mut all: HashMap<i32, Option<i32>> = HashMap::new();
    for process in processes.iter().rev() {
        let place = if process.session != process.pid {
            Some(process.session)
        } else {
            let places = children.get(&process.pid).into_iter().flatten();
            places
                .filter_map(|child| all.get(&child.pid).copied().flatten())
                .find(|place| *place != process.pid)
        };
        all.insert(process.pid, place);
    }
    all
}

impl<'p> Planner<'p> {
    fn home(&self, process: &Process) -> i32 {
        home(process, &self.alive, &self.keepers)
    }

    /// It is there before all others, and leads its session.
    fn is_root(&self, pid: i32) -> bool {
        pid == INIT || self.keepers.contains(&pid)
    }

    fn make(&mut self, parent: i32, pid: i32, stands_in: bool) {
        self.make_by(parent, pid, stands_in, false);
    }

    /// Those that these, which have just been made, are to make beside them, are made. Gives all of them.
    fn make_besides(&mut self, mut all: Vec<i32>) -> Vec<i32> {
        let mut at = 0;
        while let Some(maker) = all.get(at).copied() {
            at += 1;
            for sibling in self.besides.get(&maker).cloned().unwrap_or_default() {
                // One that has to be born into another session is left over, and named.
                let session = self.session.get(&maker).copied();
                if self.birthplace(sibling).is_none_or(|it| Some(it) == session) {
                    self.make_by(maker, sibling.pid, false, true);
                    all.push(sibling.pid);
                }
            }
        }
        all
    }

    fn is_beside(&self, process: &Process) -> bool {
        self.siblings.contains_key(&process.pid)
    }

    fn make_by(&mut self, parent: i32, pid: i32, stands_in: bool, beside: bool) {
        // The end of one that only stands in is nobody's business.
        let own = self.alive.get(&pid).map_or(libc::SIGCHLD, |it| it.exit_signal);
        let exit_signal = if stands_in { 0 } else { own };
        self.steps.push(Step::Make { parent, pid, stands_in, beside, exit_signal, flags: 0 });
        self.session.insert(pid, self.session.get(&parent).copied().unwrap_or(INIT));
        self.group.insert(pid, self.group.get(&parent).copied().unwrap_or(INIT));
        if stands_in {
            self.standing_in.push((parent, pid));
        } else {
            self.made.insert(pid);
        }
    }

    fn lead(&mut self, pid: i32) {
        self.steps.push(Step::Lead(pid));
        self.session.insert(pid, pid);
        self.group.insert(pid, pid);
    }

    /// Makes those children of `parent`, and theirs, that get their session from it.
    fn children_of(&mut self, parent: i32) {
        // (A stack of its own: chains of processes can be long.)
        let mut parents = vec![parent];
        while let Some(parent) = parents.pop() {
            let own = self.alive.get(&parent).copied();
            if own.is_some_and(|it| it.subreaper) {
                self.steps.push(Step::Adopt(parent));
            }
            let mut ready = self.make_matching(parent);
            if own.is_some_and(|it| it.session == it.pid) && self.session[&parent] != parent {
                self.lead(parent);
                ready.extend(self.make_matching(parent));
            }
            parents.extend(ready);
        }
    }

    /// Makes the children that are to be in the session that `parent` is in now; or that lead one of
    /// their own, once nothing hangs on when.
    fn make_matching(&mut self, parent: i32) -> Vec<i32> {
        let current = self.session[&parent];
        let is_final = self.alive.get(&parent).is_none_or(|it| it.session == current);
        let candidates = self.children.get(&parent).cloned().unwrap_or_default();
        let mut ready = Vec::new();
        for child in candidates {
            // Who is born into no session in particular waits: it may be one of those whose own children
            // settle that only later.
            let fits = self.birthplace(child).map_or(is_final, |session| session == current);
            if fits && !self.made.contains(&child.pid) && !self.is_beside(child) {
                self.make(parent, child.pid, false);
                ready.push(child.pid);
            }
        }
        self.make_besides(ready)
    }

    /// See [`birthplaces`].
    fn birthplace(&self, process: &Process) -> Option<i32> {
        self.birthplaces.get(&process.pid).copied().flatten()
    }

    /// Those whose parent took them over: made by a stand-in of their session.
    fn orphans(&mut self) {
        loop {
            let orphan = self.processes.iter().find(|it| {
                let parent = self.home(it);
                let is_next = self.is_root(parent) || self.made.contains(&parent);
                is_next && !self.made.contains(&it.pid) && !self.is_beside(it)
            });
            let Some(orphan) = orphan else { return };
            let Some(maker) = self.stand_in(orphan) else { return };
            self.make(maker, orphan.pid, false);
            for made in self.make_besides(vec![orphan.pid]) {
                self.children_of(made);
            }
        }
    }

    /// A stand-in that is in the orphan's session and ends before the orphan's parent does.
    fn stand_in(&mut self, orphan: &Process) -> Option<i32> {
        let session = self.birthplace(orphan)?;
        let leader_stands_in = self.standing_in.iter().any(|(_, pid)| *pid == session);
        if leader_stands_in {
            return Some(session);
        }
        let parent = self.home(orphan);
        if self.is_root(session) {
            // What is left behind there goes to that one, whose own have been made.
            return None;
        }
        if self.alive.contains_key(&session) {
            // By the leader: what that stand-in leaves behind goes to the next subreaper above, or init.
            if self.session.get(&session) != Some(&session) || self.heir(session) != parent {
                return None;
            }
            return Some(self.leave_one(session));
        }
        // The leader has ended: the stand-in has its number.
        self.make(parent, session, true);
        self.lead(session);
        Some(session)
    }

    /// Who takes over what a child of `pid` leaves behind.
    fn heir(&self, pid: i32) -> i32 {
        let mut at = pid;
        while let Some(process) = self.alive.get(&at) {
            if process.subreaper {
                return at;
            }
            at = process.parent;
        }
        if self.is_root(at) { at } else { INIT }
    }

    fn end_stand_ins(&mut self) {
        for (parent, pid) in std::mem::take(&mut self.standing_in).into_iter().rev() {
            self.steps.push(Step::End { parent, pid });
            self.session.remove(&pid);
            self.group.remove(&pid);
        }
    }

    /// Groups: first each that somebody is to join comes to be, held by somebody who stays in it until the
    /// end; then all join.
    fn groups(&mut self) -> Result<(), Impossible> {
        let movers: Vec<&Process> =
            self.processes.iter().filter(|it| self.group.get(&it.pid) != Some(&it.group)).collect();
        let mut held = HashSet::new();
        for process in movers.iter().filter(|it| held.insert(it.group)) {
            self.hold(process)?;
        }
        for process in movers {
            self.join(process.pid, process.group);
        }
        Ok(())
    }

    /// Has somebody in the group that `process` is to join.
    fn hold(&mut self, process: &Process) -> Result<(), Impossible> {
        let group = process.group;
        let members = self.processes.iter().filter(|it| self.group.get(&it.pid) == Some(&group));
        let members = members.collect::<Vec<_>>();
        if self.is_root(group) || members.iter().any(|it| it.group == group) {
            return Ok(());
        }
        match (self.alive.get(&group).copied(), members.first()) {
            (Some(leader), _) if leader.session != process.session => {
                return Err(Impossible { pid: process.pid, session: process.session });
            }
            (Some(leader), _) if leader.group == group => self.join(group, group),
            // It led the group and has gone to another one since, which it does not leave empty here.
            (Some(leader), None) => {
                let now = self.group.get(&leader.pid).copied().unwrap_or(INIT);
                self.leave_one(leader.pid);
                self.join(group, group);
                self.leave_one(leader.pid);
                self.join(group, now);
            }
            // None of those in it stays.
            (_, Some(member)) => {
                self.leave_one(member.pid);
            }
            // The leader has ended: its number is free.
            (None, None) => {
                self.make(process.pid, group, true);
                self.join(group, group);
            }
        }
        Ok(())
    }

    /// A child of `pid` stands in for it in the session and the group that it is in now. Gives its number.
    fn leave_one(&mut self, pid: i32) -> i32 {
        let number = self.next_free;
        self.next_free += 1;
        self.make(pid, number, true);
        number
    }

    fn join(&mut self, pid: i32, group: i32) {
        if self.group.insert(pid, group) != Some(group) {
            self.steps.push(Step::Join { pid, group });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::state::testing::process;

    /// Carries the steps out as the kernel would: (parent, session, group) of each that is left.
    fn carry_out(
        steps: &[Step],
        keepers: &[i32],
        subreapers: &[i32],
    ) -> HashMap<i32, (i32, i32, i32)> {
        let mut all = HashMap::from([(1, (0, 1, 1))]);
        all.extend(keepers.iter().map(|keeper| (*keeper, (1, *keeper, *keeper))));
        let subreapers = &[keepers, subreapers].concat();
        for step in steps {
            match *step {
                Step::Make { parent, pid, .. } => {
                    let (_, session, group) = all[&parent];
                    assert!(all.insert(pid, (parent, session, group)).is_none(), "{pid} twice");
                }
                Step::Lead(pid) => {
                    let parent = all[&pid].0;
                    assert!(!all.values().any(|it| it.2 == pid), "{pid} leads a group already");
                    all.insert(pid, (parent, pid, pid));
                }
                Step::Join { pid, group } => {
                    let (parent, session, _) = all[&pid];
                    let known = all.values().any(|it| it.1 == session && it.2 == group);
                    assert!(known || group == pid, "{pid} joins {group}, which is not there");
                    all.insert(pid, (parent, session, group));
                }
                Step::Thread { .. } | Step::Leave { .. } => unreachable!("nothing is shared"),
                Step::Adopt(pid) => assert!(subreapers.contains(&pid)),
                Step::End { parent, pid } => {
                    assert_eq!(all.remove(&pid).map(|it| it.0), Some(parent));
                    let mut heir = parent;
                    while heir != 1 && !subreapers.contains(&heir) {
                        heir = all[&heir].0;
                    }
                    all.values_mut().filter(|it| it.0 == pid).for_each(|it| it.0 = heir);
                }
            }
        }
        all.retain(|pid, _| *pid != 1 && !keepers.contains(pid));
        all
    }

    fn check(wanted: &[(i32, i32, i32, i32)], subreapers: &[i32]) -> Vec<Step> {
        check_below(&[], wanted, subreapers)
    }

    fn check_below(
        keepers: &[i32],
        wanted: &[(i32, i32, i32, i32)],
        subreapers: &[i32],
    ) -> Vec<Step> {
        let processes: Vec<Process> = wanted
            .iter()
            .map(|(pid, parent, session, group)| {
                let mut it = process(*pid, *parent, *session, *group);
                it.subreaper = subreapers.contains(pid);
                it
            })
            .collect();
        let steps = plan(&processes, keepers, &HashMap::new(), 1000).unwrap();
        let found = carry_out(&steps, keepers, subreapers);
        let wanted: HashMap<_, _> = wanted
            .iter()
            .map(|(pid, parent, session, group)| (*pid, (*parent, *session, *group)))
            .collect();
        assert_eq!(found, wanted);
        steps
    }

    #[test]
    fn a_shell_with_a_pipeline_whose_first_part_has_ended() {
        check(&[(2, 1, 1, 2), (4, 2, 1, 3), (5, 2, 1, 3)], &[]);
        check(&[(2, 1, 1, 2), (3, 2, 1, 3), (5, 2, 1, 3)], &[]);
    }

    #[test]
    fn a_daemon_whose_session_leader_has_ended() {
        check(&[(2, 1, 1, 2), (9, 1, 8, 8), (10, 9, 8, 8)], &[]);
        check(&[(2, 1, 1, 2), (9, 1, 8, 9), (11, 1, 8, 8)], &[]);
    }

    #[test]
    fn a_server_that_left_its_parent_and_its_session() {
        check(&[(2, 1, 1, 2), (7, 1, 7, 7), (8, 7, 7, 7), (9, 7, 9, 9)], &[]);
    }

    #[test]
    fn a_child_from_before_its_parent_started_a_session() {
        check(&[(2, 1, 1, 2), (5, 2, 5, 5), (6, 5, 1, 2), (7, 5, 5, 7)], &[]);
    }

    #[test]
    fn an_orphan_of_a_living_session_goes_to_init_or_to_a_subreaper() {
        check(&[(2, 1, 1, 2), (5, 2, 5, 5), (6, 1, 5, 5), (7, 1, 5, 6)], &[]);
        check(&[(2, 1, 1, 2), (4, 2, 1, 2), (5, 4, 5, 5), (6, 2, 5, 5)], &[2]);
    }

    #[test]
    fn what_keepers_keep_is_made_below_them() {
        // A program with a pipeline, and another one whose daemon has been left behind.
        let run = [(2, 1, 1, 2), (3, 2, 1, 2)];
        let first = [(5, 4, 4, 5), (6, 5, 4, 6), (7, 5, 4, 6)];
        let second = [(9, 8, 8, 9), (11, 8, 10, 10), (12, 8, 8, 9), (13, 8, 8, 8)];
        check_below(&[4, 8], &[&run[..], &first, &second].concat(), &[]);
        // The program has ended, and so has one that led a session.
        check_below(&[4], &[(2, 1, 1, 2), (6, 4, 4, 5), (7, 4, 9, 9), (8, 7, 9, 7)], &[]);
        // A keeper that has ended is nobody.
        check_below(&[], &[(2, 1, 1, 2), (5, 1, 4, 5), (6, 5, 4, 6)], &[]);
    }

    #[test]
    fn what_no_kernel_can_have_made_is_named() {
        // Its session is led by a process that its parent has nothing to do with.
        let processes = [process(2, 1, 1, 2), process(5, 2, 5, 5), process(6, 2, 5, 5)];
        let planned = plan(&processes, &[], &HashMap::new(), 100);
        assert_eq!(planned, Err(Impossible { pid: 6, session: 5 }));
    }

    proptest::proptest! {
        /// Whatever a random life of forks, sessions, groups and ends has led to can be made again.
        #[test]
        fn what_lives_have_led_to_can_be_made(deeds in proptest::collection::vec((0u8..5, 0usize..64, 0usize..64), 1..80)) {
            let mut all: HashMap<i32, (i32, i32, i32)> = HashMap::from([(2, (1, 1, 2))]);
            let mut next = 3;
            for (deed, who, whom) in deeds {
                let mut pids: Vec<i32> = all.keys().copied().collect();
                pids.sort_unstable();
                let pid = pids[who % pids.len()];
                let (parent, session, group) = all[&pid];
                match deed {
                    0 | 1 => {
                        all.insert(next, (pid, session, group));
                        next += 1;
                    }
                    2 if !all.values().any(|it| it.2 == pid) && pid != 2 => {
                        all.insert(pid, (parent, pid, pid));
                    }
                    3 if session != pid => {
                        let other = pids[whom % pids.len()];
                        let target = if other == pid { pid } else { all[&other].2 };
                        let known = all.values().any(|it| it.1 == session && it.2 == target);
                        if target == pid || known {
                            all.insert(pid, (parent, session, target));
                        }
                    }
                    4 if pid != 2 => {
                        all.remove(&pid);
                        all.values_mut().filter(|it| it.0 == pid).for_each(|it| it.0 = 1);
                    }
                    _ => {}
                }
            }
            let mut wanted: Vec<_> = all.iter().map(|(pid, it)| (*pid, it.0, it.1, it.2)).collect();
            wanted.sort_unstable();
            check(&wanted, &[]);
            // The same below a keeper, beside a run that has one process.
            let below = |pid: i32| if pid == 1 { 101 } else { pid };
            let below = wanted.iter().map(|it| (it.0, below(it.1), below(it.2), below(it.3)));
            let beside = [(102, 1, 1, 102)].into_iter().chain(below).collect::<Vec<_>>();
            check_below(&[101], &beside, &[]);
        }
    }
}
