//! The guest threads of which something is remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use super::ids::UniqueIds;
use super::task::Task;

/// Tasks by the host's number of their thread.
///
/// A task is discovered when a handler first has to remember something of it. Ended ones are
/// recognised by their pidfd: at look-up, since numbers are reused, and in a sweep whenever the set
/// has doubled since the last one, which bounds the memory of ended tasks by that of live ones.
#[derive(Debug, Default)]
pub struct TaskSet {
    inner: Mutex<Inner>,
    ids: UniqueIds,
}

/// Protected by `TaskSet::inner`.
#[derive(Debug, Default)]
struct Inner {
    tasks: HashMap<i32, Arc<Task>>,
    /// The next sweep is due at this size.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 64;

impl TaskSet {
    /// The live thread `tid`, discovered now if it is new. ESRCH: there is none.
    ///
    /// The caller has to check afterwards that its notification is still valid: only then the
    /// number was its own task's.
    pub fn get(&self, tid: i32) -> Result<Arc<Task>, Errno> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = inner.tasks.get(&tid).filter(|task| !task.has_ended()) {
            return Ok(Arc::clone(task));
        }
        if inner.tasks.len() >= inner.sweep_at.max(FIRST_SWEEP) {
            inner.tasks.retain(|_, task| !task.has_ended());
            inner.sweep_at = inner.tasks.len() * 2;
        }
        let task = Arc::new(Task::discover(self.ids.next(), tid)?);
        inner.tasks.insert(tid, Arc::clone(&task));
        Ok(task)
    }

    /// The tasks that are remembered and alive.
    pub fn alive(&self) -> Vec<Arc<Task>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.tasks.values().filter(|task| !task.has_ended()).cloned().collect()
    }

    /// How many tasks are kept in memory, ended ones included.
    pub fn kept(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).tasks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_the_same_until_it_ends_and_ended_ones_are_swept() {
        let set = TaskSet::default();
        let own = set.get(std::process::id() as i32).unwrap();
        assert_eq!(set.get(std::process::id() as i32).unwrap().id, own.id);
        for _ in 0..3 * FIRST_SWEEP {
            let mut child = std::process::Command::new("cat")
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            set.get(child.id() as i32).unwrap();
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        assert!(set.kept() <= FIRST_SWEEP + 1, "{}", set.kept());
        assert_eq!(set.alive().len(), 1);
    }
}
