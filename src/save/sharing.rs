//! What tasks share beside memory that is mapped shared: an address space, a descriptor table, a working
//! directory, signal handlers, adjustments of semaphores (CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND,
//! CLONE_SYSVSEM of clone(2)).
//!
//! Usually a process shares nothing of these, and its threads share all. Owns saying what is otherwise
//! ([`Sharing`], [`Apart`]), for images, and finding it there ([`Classes`]). A *class* is the tasks that have one thing
//! in common. Tasks are the processes, each by its number for all of its threads that are as usual, and those threads
//! that are apart in something, each by its own.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::state::Process;

/// What can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// The address space.
    Memory,
    /// What signals do.
    Handlers,
    /// The descriptor table.
    Descriptors,
    /// Working directory, root directory and umask.
    Directory,
    /// What the end undoes of System V semaphores.
    Adjustments,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 5] = [
        Resource::Memory,
        Resource::Handlers,
        Resource::Descriptors,
        Resource::Directory,
        Resource::Adjustments,
    ];

    /// Those that a task can give up (unshare(2)), and a thread be made without. Who shares memory or handlers
    /// with another one shares them until it executes another program or ends.
    pub const LOOSE: [Resource; 3] =
        [Resource::Descriptors, Resource::Directory, Resource::Adjustments];

    /// The flag of clone(2) and unshare(2).
    pub fn flag(self) -> u64 {
        let flag = match self {
            Resource::Memory => libc::CLONE_VM,
            Resource::Handlers => libc::CLONE_SIGHAND,
            Resource::Descriptors => libc::CLONE_FILES,
            Resource::Directory => libc::CLONE_FS,
            Resource::Adjustments => libc::CLONE_SYSVSEM,
        };
        flag as u64
    }

    /// As the middle of a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Handlers => "signal handlers",
            Resource::Descriptors => "a descriptor table",
            Resource::Directory => "a working directory",
            Resource::Adjustments => "adjustments of semaphores",
        }
    }
}

/// Tasks, two at least, that have one thing in common: their numbers for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// What.
    pub what: Resource,
    /// Whose.
    pub tasks: Vec<i32>,
}

/// What a thread does not share with the first of its process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apart {
    /// Its own descriptor table, or that of others: index in [`super::state::Sandbox::tables`].
    pub table: Option<u32>,
    /// Where it works.
    pub place: Option<Place>,
    /// It has adjustments of its own.
    pub adjustments: bool,
}

impl Apart {
    /// Whether it does not share this.
    pub fn is_in(&self, what: Resource) -> bool {
        match what {
            Resource::Memory | Resource::Handlers => false,
            Resource::Descriptors => self.table.is_some(),
            Resource::Directory => self.place.is_some(),
            Resource::Adjustments => self.adjustments,
        }
    }
}

/// Where a task works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Working directory as the guest names it.
    pub directory: ByteBuf,
    /// Root directory, where it is not that of all (chroot(2)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<ByteBuf>,
    /// umask(2).
    pub umask: u32,
}

impl Process {
    /// The threads that are apart in something, and in what: each with its place among those beside the first, and its
    /// number.
    pub fn apart(&self) -> impl Iterator<Item = (usize, i32, &Apart)> {
        let others = self.threads.iter().skip(1).enumerate();
        others.filter_map(|(at, thread)| Some((at, thread.tid, thread.apart.as_ref()?)))
    }
}

/// Why an image's account of what is shared cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction {
    /// The task, as the guest numbers it.
    pub task: i32,
    /// What it shares.
    pub what: Resource,
}

/// What is shared, to be looked up.
#[derive(Debug, Default)]
pub struct Classes {
    of: HashMap<(Resource, i32), usize>,
    members: Vec<(Resource, Vec<i32>)>,
}

impl Classes {
    /// Of an image, which is not trusted: classes are of tasks that are there, no task is in two for one thing,
    /// and what belongs to a class as a whole is the same for all in it, and for no other.
    pub fn of(processes: &[Process], sharing: &[Sharing]) -> Result<Classes, Contradiction> {
        let mut classes = Classes::default();
        let mut tasks: HashMap<i32, Task<'_>> = HashMap::new();
        for process in processes.iter().filter(|it| it.zombie.is_none()) {
            tasks.insert(process.pid, Task { process, apart: None });
            for (_, tid, apart) in process.apart() {
                tasks.insert(tid, Task { process, apart: Some(apart) });
            }
        }
        for Sharing { what, tasks: members } in sharing {
            let class = classes.members.len();
            for task in members {
                let wrong = Contradiction { task: *task, what: *what };
                let known = tasks.get(task).ok_or(wrong)?;
                let is_new = classes.of.insert((*what, *task), class).is_none();
                if !is_new || known.apart.is_some_and(|it| !it.is_in(*what)) {
                    return Err(wrong);
                }
            }
            classes.members.push((*what, members.clone()));
        }
        classes.check(&tasks)?;
        Ok(classes)
    }

    fn check(&self, tasks: &HashMap<i32, Task<'_>>) -> Result<(), Contradiction> {
        let mut seen: HashMap<(Resource, u32), Option<usize>> = HashMap::new();
        for (number, task) in tasks {
            for what in [Resource::Memory, Resource::Descriptors] {
                let Some(index) = task.index(what) else { continue };
                let class = self.class(what, *number);
                let before = seen.insert((what, index), class);
                if before.is_some_and(|before| before.is_none() || before != class) {
                    return Err(Contradiction { task: *number, what });
                }
            }
        }
        for (what, members) in &self.members {
            let index = |task: &i32| tasks.get(task).and_then(|it| it.index(*what));
            let memory = |task: &i32| self.class(Resource::Memory, *task);
            let mut pairs = members.iter().zip(members.iter().skip(1));
            let differs = pairs.find(|(one, other)| {
                index(one) != index(other)
                    || *what == Resource::Handlers
                        && (memory(one).is_none() || memory(one) != memory(other))
            });
            if let Some((_, other)) = differs {
                return Err(Contradiction { task: *other, what: *what });
            }
        }
        Ok(())
    }

    /// The same with what threads that are apart in one thing share with the first of their process all the same.
    pub fn with_threads(&self, processes: &[Process]) -> Classes {
        let mut all = Classes { of: self.of.clone(), members: self.members.clone() };
        for process in processes {
            for what in Resource::LOOSE {
                let with = process.apart().filter(|(.., apart)| !apart.is_in(what));
                let with: Vec<i32> = with.map(|(_, tid, _)| tid).collect();
                if with.is_empty() {
                    continue;
                }
                let class = all.class(what, process.pid).unwrap_or_else(|| {
                    all.members.push((what, vec![process.pid]));
                    all.of.insert((what, process.pid), all.members.len() - 1);
                    all.members.len() - 1
                });
                all.of.extend(with.iter().map(|tid| ((what, *tid), class)));
                all.members[class].1.extend(with);
            }
        }
        all
    }

    /// The class of a task, if it shares this.
    pub fn class(&self, what: Resource, task: i32) -> Option<usize> {
        self.of.get(&(what, task)).copied()
    }

    /// Whether two tasks have this in common, by a class.
    pub fn have_in_common(&self, what: Resource, one: i32, other: i32) -> bool {
        self.class(what, one).is_some_and(|class| self.class(what, other) == Some(class))
    }

    /// Classes: what, and whose it is.
    pub fn all(&self) -> &[(Resource, Vec<i32>)] {
        &self.members
    }

    /// Whether nothing is otherwise than usually.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

struct Task<'p> {
    process: &'p Process,
    apart: Option<&'p Apart>,
}

impl Task<'_> {
    /// Its space or its table.
    fn index(&self, what: Resource) -> Option<u32> {
        match (what, self.apart) {
            (Resource::Memory, None) => self.process.space,
            (Resource::Descriptors, None) => self.process.table,
            (Resource::Descriptors, Some(apart)) => apart.table,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::state::testing::process;

    fn like(space: u32, table: u32, pid: i32) -> Process {
        Process { space: Some(space), table: Some(table), ..process(pid, 1, 1, 1) }
    }

    #[test]
    fn what_an_image_says_is_shared_has_to_agree_with_itself() {
        let sharing = |what, tasks: &[i32]| Sharing { what, tasks: tasks.to_vec() };
        let (memory, files) = (Resource::Memory, Resource::Descriptors);
        let of = |processes: &[Process], sharing: &[Sharing]| {
            Classes::of(processes, sharing).map(|it| it.members.len())
        };
        let two = [like(0, 0, 2), like(0, 1, 3)];
        assert_eq!(of(&two, &[sharing(memory, &[2, 3])]), Ok(1));
        // One space, and nobody says that it is shared.
        assert!(of(&two, &[]).is_err());
        let apart = [like(0, 0, 2), like(1, 1, 3), like(2, 2, 4)];
        assert_eq!(of(&apart, &[]), Ok(0));
        assert!(of(&apart, &[sharing(files, &[2, 3])]).is_err());
        assert!(of(&apart, &[sharing(Resource::Directory, &[2, 9])]).is_err());
        let directory = |tasks| sharing(Resource::Directory, tasks);
        assert!(of(&apart, &[directory(&[2, 3]), directory(&[3, 4])]).is_err());
        assert_eq!(of(&apart, &[directory(&[2, 4])]), Ok(1));
        // Handlers go with memory (copy_process in kernel/fork.c).
        assert!(of(&apart, &[sharing(Resource::Handlers, &[2, 3])]).is_err());
    }
}
