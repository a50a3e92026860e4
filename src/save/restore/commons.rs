//! How processes and threads have to be made so that they share what they did.
//!
//! What two tasks share they have shared from the moment on at which one of them was made (clone(2)); there is no way
//! to join later, but one to leave (unshare(2)), if it is not memory or signal handlers. So a process is made by one
//! that has what the two are to share: its parent, or a sibling (CLONE_PARENT). Who is made, or makes others, on behalf
//! of a third has it meanwhile, and leaves then. Pure logic: [`plan`] adds that to the steps of [`tree::plan`].

use std::collections::{HashMap, HashSet};

use super::tree::{self, Step};
use crate::save::sharing::{Classes, Resource};
use crate::save::state::Process;

/// What no order of these steps leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impossible {
    /// The process in its session.
    Session(tree::Impossible),
    /// The task with what it shares.
    Sharing {
        /// Its number.
        task: i32,
        /// What.
        what: Resource,
    },
}

impl std::fmt::Display for Impossible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Impossible::Session(tree::Impossible { pid, session }) => {
                write!(f, "process {pid} cannot be made again in session {session} with its parent")
            }
            Impossible::Sharing { task, what } => write!(
                f,
                "task {task} cannot be made again so that it shares {} with whom it does",
                what.words()
            ),
        }
    }
}

/// The steps for these processes. `keepers` are there already; `free`: from here on numbers are nobody's.
pub fn plan(
    processes: &[Process],
    keepers: &[i32],
    classes: &Classes,
    free: i32,
) -> Result<Vec<Step>, Impossible> {
    let plan =
        |besides: &_| tree::plan(processes, keepers, besides, free).map_err(Impossible::Session);
    if classes.is_empty() && !has_apart(processes) {
        return plan(&HashMap::new());
    }
    let steps = plan(&besides(processes, keepers, classes))?;
    let classes = classes.with_threads(processes);
    let mut family = Family::of(&steps, processes);
    family.carry(&classes)?;
    family.complete(steps, &classes)
}

fn has_apart(processes: &[Process]) -> bool {
    processes.iter().flat_map(Process::apart).next().is_some()
}

/// Who is not made by its parent but by a sibling that was made before, and by which.
fn besides(processes: &[Process], keepers: &[i32], classes: &Classes) -> HashMap<i32, i32> {
    let alive: HashSet<i32> = processes.iter().map(|it| it.pid).collect();
    let parent = |it: &Process| alive.contains(&it.parent).then_some(it.parent);
    let keepers: HashSet<i32> = keepers.iter().copied().collect();
    let keeper = |it: &Process| keepers.contains(&it.parent).then_some(it.parent);
    let mut besides: HashMap<i32, i32> = HashMap::new();
    // The process at the top of whose offspring each is, parents first.
    let mut tops: HashMap<i32, i32> = HashMap::new();
    for (at, process) in processes.iter().enumerate() {
        let (pid, own) = (process.pid, parent(process));
        let is_like = |it: &&Process| {
            (parent(it), keeper(it), it.exit_signal) == (own, keeper(process), process.exit_signal)
        };
        let memory = |other| classes.have_in_common(Resource::Memory, pid, other);
        if classes.class(Resource::Memory, pid).is_some() && !own.is_some_and(memory) {
            let mut siblings = processes[..at].iter().filter(is_like);
            if let Some(sibling) = siblings.find(|it| memory(it.pid)) {
                besides.insert(pid, sibling.pid);
            }
        }
        let maker = besides.get(&pid).copied().or(own);
        let top = maker.and_then(|it| tops.get(&it).copied()).unwrap_or(pid);
        tops.insert(pid, top);
        tops.extend(process.apart().map(|(_, tid, _)| (tid, top)));
    }
    // What nobody has made is init's or a keeper's, which share nothing.
    let first = |pid: i32| processes.iter().find(|it| it.pid == pid);
    for process in processes.iter().filter(|it| parent(it).is_none()) {
        if besides.contains_key(&process.pid) {
            continue;
        }
        let inside = |task: &i32| tops.get(task) == Some(&process.pid);
        let crossing = classes.all().iter().filter(|(_, all)| all.iter().any(inside));
        let mut others = crossing.flat_map(|(_, all)| all.iter().filter(|it| !inside(it)));
        let top = others.find_map(|task| {
            let top = first(*tops.get(task)?)?;
            let like = (top.exit_signal, keeper(top)) == (process.exit_signal, keeper(process));
            like.then_some(top.pid)
        });
        if let Some(top) = top {
            // (What is below this one is below that one from here on: no circle.)
            let pid = process.pid;
            tops.values_mut().filter(|it| **it == pid).for_each(|it| *it = top);
            besides.insert(pid, top);
        }
    }
    besides
}

/// Who makes whom.
#[derive(Default)]
struct Family {
    /// Of each task that has not grown alone: the one that makes it.
    makers: HashMap<i32, i32>,
    /// Threads that are apart, by process.
    threads: HashMap<i32, Vec<i32>>,
    /// What the maker of a task shares with it: the class.
    carried: HashMap<(Resource, i32), usize>,
}

impl Family {
    fn of(steps: &[Step], processes: &[Process]) -> Family {
        let all: HashSet<i32> = processes.iter().map(|it| it.pid).collect();
        let mut family = Family::default();
        for step in steps {
            if let Step::Make { parent, pid, stands_in: false, .. } = *step
                && all.contains(&parent)
            {
                family.makers.insert(pid, parent);
            }
        }
        for process in processes {
            let threads: Vec<i32> = process.apart().map(|(_, tid, _)| tid).collect();
            family.makers.extend(threads.iter().map(|tid| (*tid, process.pid)));
            if !threads.is_empty() {
                family.threads.insert(process.pid, threads);
            }
        }
        family
    }

    /// Finds what each is to be made with: whatever somebody below it has in common with somebody who is not.
    fn carry(&mut self, classes: &Classes) -> Result<(), Impossible> {
        for (class, (what, members)) in classes.all().iter().enumerate() {
            let mut below: HashMap<i32, usize> = HashMap::new();
            for member in members {
                let mut at = *member;
                let mut steps = 0;
                loop {
                    *below.entry(at).or_default() += 1;
                    steps += 1;
                    match self.makers.get(&at) {
                        Some(maker) if steps <= self.makers.len() => at = *maker,
                        _ => break,
                    }
                }
            }
            for (task, count) in below {
                if count == members.len() {
                    continue;
                }
                let impossible = Impossible::Sharing { task, what: *what };
                let maker = self.makers.get(&task).ok_or(impossible)?;
                let is_loose = Resource::LOOSE.contains(what);
                let both = [task, *maker].iter().all(|it| classes.class(*what, *it) == Some(class));
                let is_other = self.carried.insert((*what, task), class).is_some();
                if is_other || !is_loose && !both {
                    return Err(impossible);
                }
            }
        }
        Ok(())
    }

    /// The flags that a task is made with.
    fn flags(&self, task: i32) -> u64 {
        let all = Resource::ALL.into_iter();
        all.filter(|it| self.carried.contains_key(&(*it, task))).map(Resource::flag).sum()
    }

    /// The steps with flags, those that make threads, and those that leave what was shared on behalf of others.
    fn complete(&self, steps: Vec<Step>, classes: &Classes) -> Result<Vec<Step>, Impossible> {
        let mut complete = Vec::with_capacity(steps.len());
        let mut states: HashMap<i32, Holding> = HashMap::new();
        let mut threads = self.threads.clone();
        for some in steps.chunk_by(|one, next| one.maker().is_some() && one.maker() == next.maker())
        {
            let Some(maker) = some[0].maker() else {
                complete.extend(some);
                continue;
            };
            let own = threads.remove(&maker).unwrap_or_default();
            let own = own.into_iter().map(|tid| Step::Thread { pid: maker, tid, flags: 0 });
            let mut some: Vec<Step> = some.iter().copied().chain(own).collect();
            some.sort_by_key(|step| self.turn(maker, step, classes));
            for step in some {
                self.make(maker, step, &mut states, &mut complete)?;
            }
        }
        let mut left: Vec<(i32, Vec<i32>)> = threads.into_iter().collect();
        left.sort();
        for (pid, tids) in left {
            let made = tids.into_iter().map(|tid| Step::Thread { pid, tid, flags: 0 });
            let mut made: Vec<Step> = made.collect();
            made.sort_by_key(|step| self.turn(pid, step, classes));
            for step in made {
                self.make(pid, step, &mut states, &mut complete)?;
            }
        }
        let mut all: Vec<i32> =
            self.makers.iter().flat_map(|(task, maker)| [*task, *maker]).collect();
        all.sort_unstable();
        all.dedup();
        for task in all {
            let holding = states.remove(&task).unwrap_or_else(|| self.holding(task));
            let leave = holding.become_one(task, |what| classes.class(what, task), true)?.1;
            if leave != 0 {
                complete.push(Step::Leave { task, flags: leave });
            }
        }
        Ok(complete)
    }

    /// One step of `maker`'s, after what it has to leave first.
    fn make(
        &self,
        maker: i32,
        step: Step,
        states: &mut HashMap<i32, Holding>,
        complete: &mut Vec<Step>,
    ) -> Result<(), Impossible> {
        let made = match step {
            Step::Make { pid, stands_in: false, .. } => pid,
            Step::Thread { tid, .. } => tid,
            _ => {
                complete.push(step);
                return Ok(());
            }
        };
        let holding = states.remove(&maker).unwrap_or_else(|| self.holding(maker));
        let needed = |what| self.carried.get(&(what, made)).copied();
        let (holding, leave) = holding.become_one(made, needed, false)?;
        states.insert(maker, holding);
        if leave != 0 {
            complete.push(Step::Leave { task: maker, flags: leave });
        }
        let flags = self.flags(made);
        complete.push(match step {
            Step::Make { parent, pid, stands_in, beside, exit_signal, .. } => {
                Step::Make { parent, pid, stands_in, beside, exit_signal, flags }
            }
            Step::Thread { pid, tid, .. } => Step::Thread { pid, tid, flags },
            step => step,
        });
        Ok(())
    }

    /// What a task has from its maker.
    fn holding(&self, task: i32) -> Holding {
        let now = |what| self.carried.get(&(what, task)).copied();
        Holding { now: Resource::LOOSE.map(now), left: HashSet::new() }
    }

    /// When `maker` is to make it: first whom it shares with what it has been given and will leave, last whom it
    /// shares with what it is to keep.
    fn turn(&self, maker: i32, step: &Step, classes: &Classes) -> [usize; 3] {
        let made = match *step {
            Step::Make { pid, .. } => pid,
            Step::Thread { tid, .. } => tid,
            _ => return [0; 3],
        };
        Resource::LOOSE.map(|what| {
            let needed = self.carried.get(&(what, made)).copied();
            let given = self.carried.get(&(what, maker)).copied();
            match needed {
                None => usize::MAX,
                needed if needed == classes.class(what, maker) => usize::MAX,
                needed if needed == given => 0,
                Some(class) => 1 + class,
            }
        })
    }
}

/// What a task has in common with others while the others are made: of each of [`Resource::LOOSE`] the class, and
/// none while it has it alone.
struct Holding {
    now: [Option<usize>; 3],
    left: HashSet<usize>,
}

impl Holding {
    /// It has what `needed` says, by leaving what it has: flags of unshare(2). `exactly`: and nothing else.
    fn become_one(
        mut self,
        task: i32,
        needed: impl Fn(Resource) -> Option<usize>,
        exactly: bool,
    ) -> Result<(Holding, u64), Impossible> {
        let mut flags = 0;
        for (what, now) in Resource::LOOSE.into_iter().zip(&mut self.now) {
            let needed = needed(what);
            if needed == *now || needed.is_none() && !exactly {
                continue;
            }
            if let Some(class) = now.take() {
                self.left.insert(class);
                flags |= what.flag();
            }
            if needed.is_some_and(|class| self.left.contains(&class)) {
                return Err(Impossible::Sharing { task, what });
            }
            *now = needed;
        }
        Ok((self, flags))
    }
}

#[cfg(test)]
mod tests;
