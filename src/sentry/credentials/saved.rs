//! Whom guests have become, as an image carries it.
//!
//! What is read is not trusted: it has to be what calls of a guest could have led to. (No right over anything would
//! come of it otherwise, either.)

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::capabilities::{Securebits, UPHELD};
use super::{
    Beliefs, Believed, CapabilitySets, Credentials, GROUPS_MAX, Ids, MOST, MOST_GROUPS, number_of,
    set_number, threads_of,
};

/// [`Credentials`], saved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SavedCredentials {
    /// Users: real, effective, saved, of the file system.
    pub users: [u32; 4],
    /// Groups, likewise.
    pub groups: [u32; 4],
    /// Supplementary groups, in ascending order.
    pub others: Vec<u32>,
    /// Capabilities: permitted, effective, inheritable, bounding, ambient.
    pub capabilities: [u64; 5],
    /// Securebits.
    pub securebits: u32,
}

/// Who is who.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBeliefs {
    /// Each once.
    pub sets: Vec<SavedCredentials>,
    /// Processes that are not root: number for the guest, index in `sets`. What they make is the same.
    pub processes: Vec<(i32, u32)>,
    /// Threads that are not like their process, likewise.
    pub threads: Vec<(i32, u32)>,
}

impl SavedCredentials {
    fn of(credentials: &Credentials) -> SavedCredentials {
        let ids = |ids: Ids| [ids.real, ids.effective, ids.saved, ids.fs];
        let CapabilitySets { permitted, effective, inheritable, bounding, ambient } =
            credentials.capabilities;
        SavedCredentials {
            users: ids(credentials.uid),
            groups: ids(credentials.gid),
            others: credentials.groups.clone(),
            capabilities: [permitted, effective, inheritable, bounding, ambient],
            securebits: credentials.securebits.0,
        }
    }

    /// `None`: nobody can be this.
    fn restore(&self) -> Option<Credentials> {
        let ids = |[real, effective, saved, fs]: [u32; 4]| Ids { real, effective, saved, fs };
        let [permitted, effective, inheritable, bounding, ambient] = self.capabilities;
        let within = |set: u64, of: u64| set & !of == 0;
        let sound = within(effective, permitted)
            && within(permitted | inheritable | bounding, UPHELD)
            && within(ambient, permitted & inheritable)
            && self.others.len() <= GROUPS_MAX
            && self.others.is_sorted()
            && self.users.iter().chain(&self.groups).chain(&self.others).all(|id| *id != u32::MAX);
        sound.then_some(Credentials {
            uid: ids(self.users),
            gid: ids(self.groups),
            groups: self.others.clone(),
            capabilities: CapabilitySets { permitted, effective, inheritable, bounding, ambient },
            securebits: Securebits::known(self.securebits)?,
        })
    }
}

impl SavedBeliefs {
    /// All sets, if they can be so, and everybody is one of them.
    ///
    /// # Errors
    /// `None`: it makes no sense.
    pub fn credentials(&self) -> Option<Vec<Credentials>> {
        let groups: usize = self.sets.iter().map(|set| set.others.len()).sum();
        let are_sound = |tasks: &[(i32, u32)]| {
            let mut seen = HashSet::new();
            let mut is_new = |task: i32| task > 0 && seen.insert(task);
            tasks.iter().all(|(task, index)| is_new(*task) && (*index as usize) < self.sets.len())
        };
        let sound = self.sets.len() <= MOST
            && groups <= MOST_GROUPS
            && are_sound(&self.processes)
            && are_sound(&self.threads);
        sound.then(|| self.sets.iter().map(SavedCredentials::restore).collect())?
    }
}

/// Sets that have been found, each once.
#[derive(Default)]
struct Sets {
    all: Vec<SavedCredentials>,
    known: HashMap<Arc<Credentials>, u32>,
}

impl Sets {
    fn index(&mut self, credentials: Arc<Credentials>) -> u32 {
        let next = self.all.len() as u32;
        let all = &mut self.all;
        *self.known.entry(credentials).or_insert_with_key(|credentials| {
            all.push(SavedCredentials::of(credentials));
            next
        })
    }
}

impl Beliefs {
    /// Who these processes and their threads are, all of which stand still: numbers for the host and for the guest.
    /// `guest` tells the guest's number of a thread. Blocks: it reads /proc.
    pub fn saved(
        &self,
        processes: &[(i32, i32)],
        guest: impl Fn(i32) -> Option<i32>,
    ) -> SavedBeliefs {
        let mut saved = SavedBeliefs::default();
        if !self.changed() {
            return saved;
        }
        let mut sets = Sets::default();
        let inner = self.lock();
        for (pid, number) in processes {
            let known = number_of(*pid).and_then(|number| inner.known.get(number)?.as_ref());
            if let Some(believed) = known {
                let index = sets.index(believed.now(*pid).credentials);
                saved.processes.push((*number, index));
            }
            for tid in threads_of(*pid) {
                if let Some(thread) = inner.remembered(tid)
                    && let Some(number) = guest(tid)
                {
                    let index = sets.index(thread.believed.now(tid).credentials);
                    saved.threads.push((number, index));
                }
            }
        }
        saved.sets = sets.all;
        saved
    }

    /// They are that again, before any of them runs. `hosts`: numbers of processes and threads for the host, by those
    /// for the guest. What an exec would change is bound to the programs as they are in memory now.
    ///
    /// # Errors
    /// `None`: what was saved makes no sense, or somebody is gone. Blocks: it reads /proc.
    pub fn resume(&self, saved: &SavedBeliefs, hosts: &HashMap<i32, i32>) -> Option<()> {
        let sets = saved.credentials()?;
        let mut inner = self.lock();
        let of = |(task, index): &(i32, u32)| {
            let tid = *hosts.get(task)?;
            Some((tid, Believed::new(sets.get(*index as usize)?.clone(), tid)))
        };
        for process in &saved.processes {
            let (pid, believed) = of(process)?;
            let number = inner.number(&believed).ok()?;
            if set_number(pid, number).is_err() {
                // Its limit does not hold this number (it held the one from before).
                for tid in threads_of(pid) {
                    inner.remember(tid, believed.clone()).ok()?;
                }
            }
            self.changed.store(true, Ordering::Release);
        }
        for thread in &saved.threads {
            let (tid, believed) = of(thread)?;
            inner.remember(tid, believed).ok()?;
            self.changed.store(true, Ordering::Release);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{alone, waiting};
    use super::super::{CARRIER, Change, process};
    use super::*;

    fn credentials() -> impl Strategy<Value = SavedCredentials> {
        let id = || prop_oneof![0..3_u32, any::<u32>()];
        let ids = || [id(), id(), id(), id()];
        let set = || prop_oneof![Just(0), Just(UPHELD), any::<u64>()];
        let sets = [set(), set(), set(), set(), set()];
        (ids(), ids(), prop::collection::vec(id(), 0..4), sets, 0..200_u32).prop_map(
            |(users, groups, others, capabilities, securebits)| SavedCredentials {
                users,
                groups,
                others,
                capabilities,
                securebits,
            },
        )
    }

    fn beliefs() -> impl Strategy<Value = SavedBeliefs> {
        let tasks = || prop::collection::vec((-1..4_i32, 0..4_u32), 0..4);
        (prop::collection::vec(credentials(), 0..3), tasks(), tasks())
            .prop_map(|(sets, processes, threads)| SavedBeliefs { sets, processes, threads })
    }

    proptest! {
        /// Whatever an image says: what is taken from it says the same when it is saved, and keeps the rules.
        #[test]
        fn what_is_taken_is_what_calls_could_have_led_to(saved in beliefs()) {
            if let Some(sets) = saved.credentials() {
                for (set, was) in sets.iter().zip(&saved.sets) {
                    prop_assert_eq!(&SavedCredentials::of(set), was);
                    let sets = set.capabilities;
                    prop_assert_eq!(sets.effective & !sets.permitted, 0);
                    prop_assert_eq!(sets.ambient & !(sets.permitted & sets.inheritable), 0);
                    prop_assert_eq!((sets.permitted | sets.bounding) & !UPHELD, 0);
                }
                let all = saved.processes.iter().chain(&saved.threads);
                prop_assert!(all.clone().all(|it| (it.1 as usize) < sets.len()));
            }
        }
    }

    #[test]
    fn who_somebody_is_goes_on() {
        let _alone = alone();
        let mut child = waiting();
        let pid = child.id() as i32;
        let before = Beliefs::default();
        before.change(pid, |it| it.set_users(Change::Three(5, 6, 7))).unwrap();
        let saved = before.saved(&[(pid, 2)], Some);
        assert_eq!(saved.processes, [(2, 0)]);
        let after = Beliefs::default();
        // Nobody is that there.
        assert_eq!(after.resume(&saved, &HashMap::new()), None);
        after.resume(&saved, &HashMap::from([(2, pid)])).unwrap();
        assert_eq!(*after.of(pid), *before.of(pid));
        assert_eq!(after.of(pid).uid.saved, 7);
        // Also where its limit can hold no number.
        let was = before.of(pid);
        process::set_limit(pid, CARRIER, (0, 0)).unwrap();
        let third = Beliefs::default();
        third.resume(&saved, &HashMap::from([(2, pid)])).unwrap();
        assert_eq!(*third.of(pid), *was);
        assert_eq!(Beliefs::default().saved(&[(pid, 2)], Some), SavedBeliefs::default());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
