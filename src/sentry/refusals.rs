//! What was refused to whom, to be explained once when the program has ended.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// One kind of refusal, with the first guest that ran into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for.
    pub what: String,
    /// Why it was refused.
    pub reason: &'static str,
    /// What the user can do.
    pub remedy: &'static str,
    /// The name of the first guest that asked; `None` where it is not known.
    pub comm: Option<String>,
    /// How often it was asked for.
    pub count: u64,
}

/// Refusals by what was asked for. Bounded: `what` comes from the table, never from a guest.
#[derive(Debug, Default)]
pub struct Refusals {
    /// A leaf of the lock order.
    kinds: Mutex<BTreeMap<String, Refusal>>,
}

/// Kinds that are kept apart, where guests choose them.
const MOST: usize = 32;

impl Refusals {
    /// Counts a refusal; `comm` is asked only for the first of its kind. Gives whether it was.
    pub fn note(
        &self,
        what: &str,
        reason: &'static str,
        remedy: &'static str,
        count: u64,
        comm: impl FnOnce() -> Option<String>,
    ) -> bool {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kinds.get_mut(what) {
            known.count += count;
            return false;
        }
        let what = what.to_owned();
        let refusal = Refusal { what: what.clone(), reason, remedy, comm: comm(), count };
        kinds.insert(what, refusal);
        true
    }

    /// As [`Refusals::note`], where guests choose what is asked for: only the first few are kept apart.
    pub fn note_one_of_many(
        &self,
        what: &str,
        reason: &'static str,
        remedy: &'static str,
        comm: impl FnOnce() -> Option<String>,
    ) -> bool {
        let is_full = {
            let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            kinds.len() >= MOST && !kinds.contains_key(what)
        };
        match is_full {
            true => self.note(
                "what else was asked for",
                "it was too much to be listed",
                remedy,
                1,
                comm,
            ),
            false => self.note(what, reason, remedy, 1, comm),
        }
    }

    /// Whether such a refusal has been noted, or could not be for want of room.
    pub fn has(&self, what: &str) -> bool {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.contains_key(what) || kinds.len() >= MOST
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Refusal> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was refused", self.what)?;
        if let Some(comm) = &self.comm {
            write!(f, " to {}", comm.escape_debug())?;
        }
        if self.count > 1 {
            write!(f, " ({} times)", self.count)?;
        }
        write!(f, ": {}; {}", self.reason, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_guest_is_named_and_the_rest_counted() {
        let refusals = Refusals::default();
        let first = || Some("mount".to_owned());
        assert!(refusals.note("mount", "the file view is fixed", "use --rw", 1, first));
        let second = || -> Option<String> { panic!("only the first is asked for its name") };
        assert!(!refusals.note("mount", "the file view is fixed", "use --rw", 1, second));
        let all = refusals.all();
        assert_eq!(all.len(), 1);
        assert_eq!(
            all[0].to_string(),
            "mount was refused to mount (2 times): the file view is fixed; use --rw"
        );
    }
}
