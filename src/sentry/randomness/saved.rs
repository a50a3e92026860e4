//! The streams of a run, as an image carries them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Key, MOST_EXECUTED, Origin, Randomness};
use crate::sentry::stat::Stat;

/// [`Randomness`], saved. The seed is the run's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRandomness {
    /// What is executed by nobody inside.
    pub outside: SavedOrigin,
    /// The processes that have drawn something, or of which some have been made.
    pub processes: Vec<SavedStream>,
}

/// What keys are derived from, and how often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOrigin {
    /// 32 bytes.
    pub key: ByteBuf,
    /// How many processes forked from it have asked before they executed anything.
    pub children: u64,
    /// How often each program was executed.
    pub executed: Vec<(u64, u32)>,
    /// How often that was forgotten.
    pub era: u64,
}

/// The stream of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStream {
    /// The process, as the guest numbers it.
    pub pid: i32,
    /// See there.
    pub origin: SavedOrigin,
    /// How many words of four bytes it has drawn: low and high half.
    pub position: (u64, u64),
    /// How many devices it has opened.
    pub opened: u64,
}

/// A position in a stream, in halves.
pub(in crate::sentry) fn halves(position: u128) -> (u64, u64) {
    (position as u64, (position >> 64) as u64)
}

/// The same as a whole.
pub(in crate::sentry) fn whole((low, high): (u64, u64)) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

impl Origin {
    fn saved(&self) -> SavedOrigin {
        let mut executed: Vec<_> = self.executed.iter().map(|(it, count)| (*it, *count)).collect();
        executed.sort_unstable();
        SavedOrigin {
            key: ByteBuf::from(self.key),
            children: self.children,
            executed,
            era: self.era,
        }
    }
}

impl SavedOrigin {
    fn restore(&self) -> Option<Origin> {
        let key = Key::try_from(self.key.as_slice()).ok()?;
        if self.executed.len() > MOST_EXECUTED {
            return None;
        }
        let executed = self.executed.iter().copied().collect();
        Some(Origin { key, children: self.children, executed, era: self.era })
    }
}

impl Randomness {
    /// What an image keeps. `guests`: numbers for the guest, by those for the host.
    pub(in crate::sentry) fn saved(&self, guests: &HashMap<i32, i32>) -> SavedRandomness {
        let starts = guests.keys().filter_map(|pid| Some((*pid, Stat::read(*pid)?.start)));
        let starts: HashMap<i32, u64> = starts.collect();
        let inner = self.lock();
        let living = inner.processes.iter().filter_map(|(pid, process)| {
            (starts.get(pid) == Some(&process.start)).then_some((guests.get(pid)?, process))
        });
        let mut processes: Vec<_> = living
            .map(|(pid, process)| SavedStream {
                pid: *pid,
                origin: process.origin.saved(),
                position: halves(process.stream.get_word_pos()),
                opened: process.opened,
            })
            .collect();
        processes.sort_unstable_by_key(|process| process.pid);
        SavedRandomness { outside: inner.outside.saved(), processes }
    }

    /// Goes on from an image. `hosts`: numbers for the host, by those for the guest. `None`: it makes no sense.
    pub(in crate::sentry) fn resume(
        &self,
        saved: &SavedRandomness,
        hosts: &HashMap<i32, i32>,
    ) -> Option<()> {
        let outside = saved.outside.restore()?;
        let mut all = Vec::new();
        for process in &saved.processes {
            let pid = *hosts.get(&process.pid)?;
            all.push((pid, Stat::read(pid)?.start, process.origin.restore()?, process));
        }
        let mut inner = self.lock();
        inner.outside = outside;
        for (pid, start, origin, process) in all {
            inner.insert_at(pid, start, origin, whole(process.position), process.opened);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use chacha20::rand_core::Rng;

    use super::super::derived;
    use super::*;

    #[test]
    fn streams_go_on_where_they_were() {
        let own = std::process::id() as i32;
        let start = Stat::read(own).unwrap().start;
        let before = Randomness::new(b"seed", "/".into());
        let mut key = [0; 32];
        {
            let mut inner = before.lock();
            for program in [&b"a"[..], b"b", b"a"] {
                key = inner.outside.executes(&derived(&[program]));
            }
            inner.insert(own, start, key);
            let process = inner.process(own, start).unwrap();
            process.stream.fill_bytes(&mut [0; 1001]);
            process.origin.forks();
            process.opened = 7;
        }
        let saved = before.saved(&HashMap::from([(own, 2)]));
        let after = Randomness::new(b"seed", "/".into());
        after.resume(&saved, &HashMap::from([(2, own)])).unwrap();
        assert_eq!(after.saved(&HashMap::from([(own, 2)])), saved);
        let drawn = |randomness: &Randomness| {
            let mut bytes = [0; 99];
            let mut inner = randomness.lock();
            let process = inner.process(own, start).unwrap();
            process.stream.fill_bytes(&mut bytes);
            (bytes.to_vec(), process.origin.forks(), inner.outside.executes(&derived(&[b"b"])))
        };
        assert_eq!(drawn(&before), drawn(&after));
        let nobody = after.resume(&saved, &HashMap::new());
        assert_eq!(nobody, None);
        let mut bad = saved;
        bad.outside.key.pop();
        assert_eq!(after.resume(&bad, &HashMap::from([(2, own)])), None);
    }
}
