//! The seccomp filters that guests load, for a save to load them again.
//!
//! The kernel does not give a filter back to an ordinary user (PTRACE_SECCOMP_GET_FILTER wants
//! CAP_SYS_ADMIN on the host), and a fork, which inherits filters, is not trapped. What can be known:
//! each load passes here with the number of filters that its thread has at that moment, /proc tells at
//! any time how many a thread has, and filters are never removed. So whatever a thread has as its n-th
//! filter was loaded, by it or an ancestor, at depth n.

use std::sync::{Mutex, PoisonError};

use super::task::RecordedFilter;
use crate::sys::generated;

/// Bytes of programs that are remembered at most. A program that loads more cannot be saved any more.
const MOST: usize = 4 << 20;

/// All different filters that were loaded, by depth.
#[derive(Debug, Default)]
pub struct FilterLog {
    inner: Mutex<Inner>,
}

/// Protected by `FilterLog::inner`, a leaf of the lock order.
#[derive(Debug, Default)]
struct Inner {
    depths: Vec<Vec<RecordedFilter>>,
    bytes: usize,
    /// There were more.
    lost: bool,
}

impl FilterLog {
    /// A filter is loaded by a thread that has `depth` of its own.
    pub fn record(&self, depth: usize, filter: RecordedFilter) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size_of::<RecordedFilter>() + filter.program.len();
        if inner.depths.get(depth).is_some_and(|known| known.contains(&filter)) {
            return;
        }
        if depth > MOST / 1024 || inner.bytes + size > MOST {
            inner.lost = true;
            return;
        }
        inner.bytes += size;
        if inner.depths.len() <= depth {
            inner.depths.resize_with(depth + 1, Vec::new);
        }
        inner.depths[depth].push(filter);
    }

    /// The filters that a thread has which has so many of its own; `None`: that cannot be told.
    pub fn of(&self, count: usize) -> Option<Vec<RecordedFilter>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if count > 0 && inner.lost {
            return None;
        }
        let known = |depth: usize| match inner.depths.get(depth).map(Vec::as_slice) {
            Some([only]) => Some(only.clone()),
            _ => None,
        };
        (0..count).map(known).collect()
    }
}

/// How many seccomp filters a thread has, those of the sandbox and of its surroundings included
/// (Seccomp_filters of proc_pid_status(5)).
pub fn count(tid: i32) -> Option<usize> {
    let text = generated::text(format!("/proc/{tid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(byte: u8) -> RecordedFilter {
        RecordedFilter { flags: 0, program: vec![byte; 8] }
    }

    #[test]
    fn what_was_loaded_at_a_depth_is_known_if_it_was_the_same_everywhere() {
        let log = FilterLog::default();
        assert_eq!(log.of(0), Some(vec![]));
        assert_eq!(log.of(1), None);
        log.record(0, filter(1));
        log.record(0, filter(1));
        log.record(1, filter(2));
        assert_eq!(log.of(2), Some(vec![filter(1), filter(2)]));
        log.record(1, filter(3));
        assert_eq!(log.of(2), None);
        assert_eq!(log.of(1), Some(vec![filter(1)]));
    }

    #[test]
    fn too_many_are_said_to_be_lost() {
        let log = FilterLog::default();
        for depth in 0..2 {
            log.record(depth, RecordedFilter { flags: 0, program: vec![0; MOST / 2 + 1] });
        }
        assert_eq!((log.of(0), log.of(1)), (Some(vec![]), None));
    }
}
