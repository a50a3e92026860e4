//! Lives of clones, unshares and ends, and whether what they have led to comes about again.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::save::sharing::{Apart, Place, Sharing};
use crate::save::state::Thread;
use crate::save::state::testing::process;

/// A task, and a number of each thing that it has, in the order of [`Resource::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    process: i32,
    parent: i32,
    has: [u32; 5],
}

/// Tasks as the kernel has them.
#[derive(Debug, Clone, Default)]
struct World {
    tasks: BTreeMap<i32, Task>,
    next: u32,
}

impl World {
    fn new_thing(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn make(&mut self, maker: Option<i32>, number: i32, flags: u64, parent: i32, process: i32) {
        let has = Resource::ALL.map(|what| match maker {
            Some(maker) if flags & what.flag() != 0 => self.tasks[&maker].has[what as usize],
            _ => self.new_thing(),
        });
        assert!(self.tasks.insert(number, Task { process, parent, has }).is_none());
    }

    fn leave(&mut self, task: i32, flags: u64) {
        for what in Resource::LOOSE.into_iter().filter(|it| it.flag() & flags != 0) {
            let thing = self.new_thing();
            self.tasks.get_mut(&task).unwrap().has[what as usize] = thing;
        }
    }

    fn end(&mut self, process: i32) {
        self.tasks.retain(|_, it| it.process != process);
        self.tasks.values_mut().filter(|it| it.parent == process).for_each(|it| it.parent = 1);
    }

    /// Which of its tasks share what.
    fn sharing(&self, what: Resource) -> Vec<Vec<i32>> {
        let mut all: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        for (number, task) in &self.tasks {
            all.entry(task.has[what as usize]).or_default().push(*number);
        }
        let mut all: Vec<_> = all.into_values().filter(|it| it.len() > 1).collect();
        all.sort();
        all
    }

    /// As an image has them.
    fn image(&self) -> (Vec<Process>, Vec<Sharing>) {
        let mut processes = Vec::new();
        let mut apart: HashMap<i32, Apart> = HashMap::new();
        for (number, task) in self.tasks.iter().filter(|(number, task)| task.process != **number) {
            let first = &self.tasks[&task.process].has;
            let differs = |what: Resource| task.has[what as usize] != first[what as usize];
            let table = task.has[Resource::Descriptors as usize];
            let place = Place { directory: Default::default(), root: None, umask: 0 };
            let it = Apart {
                table: differs(Resource::Descriptors).then_some(table),
                place: differs(Resource::Directory).then_some(place),
                adjustments: differs(Resource::Adjustments),
            };
            if it != Apart::default() {
                apart.insert(*number, it);
            }
        }
        let mut ordered: Vec<i32> = Vec::new();
        let mut left: Vec<i32> = self
            .tasks
            .iter()
            .filter(|(number, it)| it.process == **number)
            .map(|it| *it.0)
            .collect();
        while !left.is_empty() {
            let now = |pid: &i32| {
                let parent = self.tasks[pid].parent;
                parent == 1 || ordered.contains(&parent)
            };
            let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(now);
            ordered.extend(now);
            left = later;
        }
        for pid in ordered {
            let task = &self.tasks[&pid];
            let mut made = process(pid, task.parent, 1, 2);
            let things = |what: Resource| Some(task.has[what as usize]);
            (made.space, made.table) = (things(Resource::Memory), things(Resource::Descriptors));
            let thread = |tid| Thread { tid, apart: apart.get(&tid).cloned(), ..Thread::default() };
            made.threads.push(thread(pid));
            let others = self.tasks.iter().filter(|it| it.1.process == pid && *it.0 != pid);
            made.threads.extend(others.map(|(tid, _)| thread(*tid)));
            processes.push(made);
        }
        let mut sharing = Vec::new();
        for what in Resource::ALL {
            for mut tasks in self.sharing(what) {
                tasks.retain(|number| {
                    let is_first = self.tasks[number].process == *number;
                    is_first || apart.get(number).is_some_and(|it| it.is_in(what))
                });
                if tasks.len() > 1 {
                    sharing.push(Sharing { what, tasks });
                }
            }
        }
        (processes, sharing)
    }

    /// Carries the steps out, and then makes the threads that are as usual.
    fn again(&self, steps: &[Step]) -> World {
        let mut world = World::default();
        for step in steps {
            match *step {
                Step::Make { parent, pid, beside, flags, .. } => {
                    let real = if beside { world.tasks[&parent].parent } else { parent };
                    world.make((parent != 1).then_some(parent), pid, flags, real, pid);
                }
                Step::Thread { pid, tid, flags } => {
                    let always = (libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
                    let parent = world.tasks[&pid].parent;
                    world.make(Some(pid), tid, flags | always, parent, pid);
                }
                Step::Leave { task, flags } => world.leave(task, flags),
                Step::End { pid, .. } => world.end(pid),
                Step::Lead(_) | Step::Join { .. } | Step::Adopt(_) => {}
            }
        }
        let left: Vec<(i32, i32)> = self
            .tasks
            .iter()
            .filter(|it| !world.tasks.contains_key(it.0))
            .map(|(tid, task)| (*tid, task.process))
            .collect();
        for (tid, process) in left {
            let parent = world.tasks[&process].parent;
            world.make(Some(process), tid, u64::MAX, parent, process);
        }
        world
    }

    /// Whether it can be made again; then it is the same.
    fn check(&self) -> Result<(), Impossible> {
        let (processes, sharing) = self.image();
        let classes = Classes::of(&processes, &sharing).unwrap();
        let steps = plan(&processes, &[], &classes, 1000)?;
        let again = self.again(&steps);
        for what in Resource::ALL {
            assert_eq!(again.sharing(what), self.sharing(what), "{what:?}: {steps:?}");
        }
        for (number, task) in &self.tasks {
            let found = &again.tasks[number];
            assert_eq!((found.process, found.parent), (task.process, task.parent));
        }
        Ok(())
    }
}

const FILES: u64 = libc::CLONE_FILES as u64;
const FS: u64 = libc::CLONE_FS as u64;
const VM: u64 = libc::CLONE_VM as u64;

#[test]
fn who_passes_on_and_leaves_does_so_again() {
    let mut world = World::default();
    world.make(None, 2, 0, 1, 2);
    world.make(Some(2), 3, FILES, 2, 3);
    world.make(Some(3), 4, FILES, 3, 4);
    world.leave(3, FILES);
    world.check().unwrap();
    // Others share what the one in the middle has now.
    world.make(Some(3), 5, FILES | FS, 3, 5);
    world.check().unwrap();
}

#[test]
fn siblings_and_orphans_share_with_each_other_alone() {
    let mut world = World::default();
    world.make(None, 2, 0, 1, 2);
    world.make(Some(2), 3, 0, 2, 3);
    world.make(Some(3), 4, VM | FS, 2, 4);
    world.check().unwrap();
    world.make(Some(4), 5, VM | FS, 4, 5);
    world.end(3);
    world.check().unwrap();
    // It lives on with an orphan of one that has ended.
    world.make(Some(5), 6, FILES, 5, 6);
    world.end(5);
    world.check().unwrap();
    world.make(Some(2), 7, FILES, 2, 7);
    world.make(Some(7), 8, FILES | FS, 7, 8);
    world.end(7);
    world.check().unwrap();
}

#[test]
fn threads_go_their_own_ways_and_take_processes_with_them() {
    let all = Resource::ALL.map(Resource::flag).iter().sum();
    let mut world = World::default();
    world.make(None, 2, 0, 1, 2);
    for tid in [3, 4] {
        world.make(Some(2), tid, all, 1, 2);
    }
    world.make(Some(2), 8, FILES, 2, 8);
    world.leave(4, FILES);
    world.make(Some(4), 5, all, 1, 2);
    world.make(Some(4), 6, FILES | FS, 2, 6);
    world.check().unwrap();
}

#[test]
fn what_nobody_can_have_made_is_named() {
    let mut processes = [process(2, 1, 1, 2), process(3, 2, 1, 2), process(4, 3, 1, 2)];
    for (index, process) in (0..).zip(&mut processes) {
        (process.space, process.table) = (Some(index), Some(index));
    }
    processes[2].space = Some(0);
    let sharing = [Sharing { what: Resource::Memory, tasks: vec![2, 4] }];
    let classes = Classes::of(&processes, &sharing).unwrap();
    let impossible = plan(&processes, &[], &classes, 100).unwrap_err();
    assert!(matches!(impossible, Impossible::Sharing { what: Resource::Memory, .. }));
}

proptest::proptest! {
    /// Whatever lives without ends have led to comes about again, if no task has left the same thing for others twice;
    /// and nothing else comes about in its place.
    #[test]
    fn what_lives_have_led_to_comes_about(deeds in proptest::collection::vec((0u8..6, 0usize..64, 0u8..32), 1..40)) {
        let mut world = World::default();
        world.make(None, 2, 0, 1, 2);
        let mut next = 3;
        let mut made_whole = 0;
        for (deed, who, what) in deeds {
            let numbers: Vec<i32> = world.tasks.keys().copied().collect();
            let number = numbers[who % numbers.len()];
            let flags = Resource::ALL.iter().enumerate().filter(|(at, _)| what & 1 << at != 0);
            let mut flags: u64 = flags.map(|(_, it)| it.flag()).sum();
            if flags & Resource::Handlers.flag() != 0 {
                flags |= VM;
            }
            match deed {
                0..=2 => {
                    world.make(Some(number), next, flags, world.tasks[&number].process, next);
                    next += 1;
                }
                3 => {
                    let (parent, process) = (world.tasks[&number].parent, world.tasks[&number].process);
                    let always = VM | Resource::Handlers.flag();
                    world.make(Some(number), next, flags | always, parent, process);
                    next += 1;
                }
                4 => world.leave(number, flags),
                _ if number != 2 && world.tasks[&number].process == number => world.end(number),
                _ => {}
            }
            made_whole += usize::from(world.check().is_ok());
        }
        proptest::prop_assert!(made_whole > 0);
    }
}
