//! CPU time of a whole family of processes, from what each living one says.
//!
//! A living process says how much it has used itself (exactly) and how much the descendants have that
//! it has waited for (in whole ticks, 10 ms; its *children*). So what an ended process has used is
//! found at its parent, unless the parent ignores SIGCHLD: then the kernel drops it. The ledger
//! therefore also adds up, for each parent, what was last seen of its children that vanished
//! (*expected*), and counts the larger of the two. Neither is ever more than the truth, so their
//! maximum is not either: nothing is counted twice.
//!
//! Less than the truth it can be: by what a process used after it was last looked at, if its parent
//! ignores SIGCHLD; and by the part of a tick that is not yet whole.
//!
//! Pure bookkeeping: looks at nothing.

use std::collections::HashMap;
use std::time::Duration;

use super::family::Relative;

/// A sum of two times in whole ticks may lack this much.
const UNCERTAIN: Duration = Duration::from_millis(20);

/// One living process.
#[derive(Debug, Clone, Copy)]
struct Entry {
    inode: u64,
    parent: i32,
    own: Duration,
    children: Duration,
    expected: Duration,
}

impl Entry {
    fn descendants(&self) -> Duration {
        self.children.max(self.expected)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    root: i32,
    root_children: Duration,
    root_expected: Duration,
    living: HashMap<i32, Entry>,
    /// Used by the descendants of ended processes that did not wait for them.
    lost: Duration,
    /// What was given out: never less later.
    total: Duration,
}

impl Ledger {
    pub(super) fn new(root: i32) -> Ledger {
        Ledger {
            root,
            root_children: Duration::ZERO,
            root_expected: Duration::ZERO,
            living: HashMap::new(),
            lost: Duration::ZERO,
            total: Duration::ZERO,
        }
    }

    /// Brings the own times up to date; `None`: one of the processes has ended.
    pub(super) fn touch(&mut self, own: impl Fn(i32) -> Option<Duration>) -> Option<Duration> {
        for (pid, entry) in &mut self.living {
            // A clock that runs backwards is somebody else's.
            entry.own = own(*pid).filter(|now| *now >= entry.own)?;
        }
        Some(self.sum())
    }

    /// All living processes as they are now, each with its own time, which has to be read after the
    /// times of children of all of them: a process that is waited for between the two readings is
    /// counted by neither, not twice.
    pub(super) fn update(
        &mut self,
        root_children: Duration,
        now: &[(Relative, Duration)],
    ) -> Duration {
        let mut living: HashMap<i32, Entry> = now
            .iter()
            .map(|(relative, own)| {
                let Relative { pid, inode, parent, children, .. } = *relative;
                let before = self.living.get(&pid).filter(|before| before.inode == inode);
                let expected = before.map_or(Duration::ZERO, |before| before.expected);
                // Between two looks nothing is taken away.
                let children = before.map_or(children, |before| before.children.max(children));
                (pid, Entry { inode, parent, own: *own, children, expected })
            })
            .collect();
        let gained = root_children.saturating_sub(self.root_children);
        self.root_children = self.root_children.max(root_children);
        self.settle(&mut living, gained);
        self.living = living;
        self.sum()
    }

    /// Finds who should have got the times of those that have ended.
    fn settle(&mut self, living: &mut HashMap<i32, Entry>, mut root_gained: Duration) {
        let still = |pid: i32, entry: &Entry| {
            living.get(&pid).is_some_and(|now: &Entry| now.inode == entry.inode)
        };
        let ended: HashMap<i32, Entry> = self
            .living
            .iter()
            .filter(|(pid, entry)| !still(**pid, entry))
            .map(|(pid, entry)| (*pid, *entry))
            .collect();
        let mut orphans: HashMap<i32, Duration> = HashMap::new();
        let mut heirs: Vec<(i32, Duration)> = Vec::new();
        for entry in ended.values() {
            let excess = entry.expected.saturating_sub(entry.children);
            let passed_on = if excess > UNCERTAIN {
                self.lost += excess - UNCERTAIN;
                entry.own + entry.children
            } else {
                entry.own + entry.descendants()
            };
            match nearest(entry.parent, self.root, &ended, living) {
                (heir, true) => heirs.push((heir, passed_on)),
                // The root waits for all of its children: its own figure says it.
                (heir, false) if heir == self.root => {}
                (heir, false) => *orphans.entry(heir).or_default() += passed_on,
            }
        }
        for (_, amount) in heirs.iter().filter(|(heir, _)| *heir == self.root) {
            root_gained = root_gained.saturating_sub(*amount);
        }
        // The parent has ended as well: either it waited first, and the next one up waited for it,
        // or the root got the orphan. At most what the root has gained was the root's.
        heirs.extend(
            orphans
                .into_iter()
                .map(|(heir, amount)| (heir, amount.saturating_sub(root_gained + UNCERTAIN))),
        );
        for (heir, amount) in heirs {
            match living.get_mut(&heir) {
                Some(entry) => entry.expected += amount,
                None => self.root_expected += amount,
            }
        }
    }

    fn sum(&mut self) -> Duration {
        let living: Duration =
            self.living.values().map(|entry| entry.own + entry.descendants()).sum();
        let ended = self.root_children.max(self.root_expected) + self.lost;
        self.total = self.total.max(living + ended);
        self.total
    }
}

/// The nearest living ancestor from `parent` on, and whether that is `parent` itself.
fn nearest(
    parent: i32,
    root: i32,
    ended: &HashMap<i32, Entry>,
    living: &HashMap<i32, Entry>,
) -> (i32, bool) {
    let mut at = parent;
    for _ in 0..=ended.len() {
        if at == root || living.contains_key(&at) {
            return (at, at == parent);
        }
        match ended.get(&at) {
            Some(entry) => at = entry.parent,
            None => break,
        }
    }
    (root, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: i32 = 10;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// pid, parent, own ms, children ms.
    fn process((pid, parent, own, children): (i32, i32, u64, u64)) -> (Relative, Duration) {
        let relative = Relative {
            pid,
            inode: pid as u64,
            parent,
            state: 'R',
            threads: 1,
            children: ms(children),
        };
        (relative, ms(own))
    }

    fn look(ledger: &mut Ledger, root: u64, all: &[(i32, i32, u64, u64)]) -> u64 {
        let all: Vec<_> = all.iter().copied().map(process).collect();
        ledger.update(ms(root), &all).as_millis() as u64
    }

    #[test]
    fn a_child_that_is_waited_for_counts_once() {
        let mut ledger = Ledger::new(INIT);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 5, 0), (12, 11, 1000, 0)]), 1005);
        // It went on to 1003 before it ended; the parent shows whole ticks.
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 6, 1000)]), 1006);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 7, 1500)]), 1507);
        // The parent ends too.
        assert_eq!(look(&mut ledger, 1500, &[]), 1507);
        assert_eq!(look(&mut ledger, 1600, &[]), 1600);
    }

    #[test]
    fn a_child_of_a_parent_that_ignores_its_end_is_not_lost() {
        let mut ledger = Ledger::new(INIT);
        look(&mut ledger, 0, &[(11, INIT, 5, 0), (12, 11, 1000, 0), (13, 11, 2000, 0)]);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 5, 0), (13, 11, 2100, 0)]), 3105);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 5, 0)]), 3105);
        // Nor is it when that parent ends, of whom only its own time reaches init.
        let after = look(&mut ledger, 0, &[]);
        assert!((3085..=3105).contains(&after), "{after}");
        assert_eq!(look(&mut ledger, 10, &[]), after.max(3105));
    }

    #[test]
    fn a_chain_that_ends_at_once_counts_once_whoever_waited() {
        let before = [(11, INIT, 5, 0), (12, 11, 1, 0), (13, 12, 1000, 0)];
        // 12 waited for 13, and 11 for 12.
        let mut ledger = Ledger::new(INIT);
        look(&mut ledger, 0, &before);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 5, 1000)]), 1006);
        // 12 ended first, init got the orphan.
        let mut ledger = Ledger::new(INIT);
        look(&mut ledger, 0, &before);
        assert_eq!(look(&mut ledger, 1000, &[(11, INIT, 5, 0)]), 1006);
        // 11 ignores the end of 12.
        let mut ledger = Ledger::new(INIT);
        look(&mut ledger, 0, &before);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 5, 0)]), 1006);
    }

    #[test]
    fn what_was_never_seen_is_found_at_its_parent() {
        let mut ledger = Ledger::new(INIT);
        look(&mut ledger, 0, &[(11, INIT, 5, 0)]);
        assert_eq!(look(&mut ledger, 0, &[(11, INIT, 6, 4000)]), 4006);
    }

    #[test]
    fn a_reused_number_is_another_process() {
        let mut ledger = Ledger::new(INIT);
        look(&mut ledger, 0, &[(11, INIT, 500, 0)]);
        let (relative, own) = process((11, INIT, 3, 0));
        let again = [(Relative { inode: 99, ..relative }, own)];
        assert_eq!(ledger.update(ms(500), &again), ms(503));
        assert_eq!(ledger.touch(|_| Some(ms(2))), None);
        assert_eq!(ledger.touch(|_| Some(ms(13))), Some(ms(513)));
    }

    proptest::proptest! {
        /// Processes fork, run, end and are waited for or not; looked at now and then, the ledger
        /// never runs backwards and never says more than was used.
        #[test]
        fn never_more_than_the_truth_and_never_less_than_before(
            steps in proptest::collection::vec((0u8..5, 0usize..8, 1u64..400), 1..200)
        ) {
            /// pid, parent, own, children (exact), ignores the end of children
            struct Process { pid: i32, parent: i32, own: u64, children: u64, ignores: bool }
            let mut all = vec![Process { pid: INIT, parent: 1, own: 0, children: 0, ignores: false }];
            let (mut next, mut truth, mut before) = (11, 0, 0);
            let mut ledger = Ledger::new(INIT);
            for (step, which, amount) in steps {
                let which = which % all.len();
                match step {
                    0 => {
                        let (parent, ignores) = (all[which].pid, amount % 3 == 0 );
                        all.push(Process { pid: next, parent, own: 0, children: 0, ignores });
                        next += 1;
                    }
                    1 | 2 if which > 0 => {
                        all[which].own += amount;
                        truth += amount;
                    }
                    3 if which > 0 => {
                        let ended = all.remove(which);
                        for orphan in all.iter_mut().filter(|it| it.parent == ended.pid) {
                            orphan.parent = INIT;
                        }
                        let parent = all.iter_mut().find(|it| it.pid == ended.parent).unwrap();
                        if !parent.ignores {
                            parent.children += ended.own + ended.children;
                        }
                    }
                    _ => {
                        let whole = |ms: u64| ms / 10 * 10;
                        let living: Vec<_> = all[1..]
                            .iter()
                            .map(|it| (it.pid, it.parent, it.own, whole(it.children)))
                            .collect();
                        let now = look(&mut ledger, whole(all[0].children), &living);
                        assert!(now <= truth, "{now} of {truth}");
                        assert!(now >= before, "{now} after {before}");
                        before = now;
                    }
                }
            }
        }
    }
}
