//! What a run has that is to do the same whenever it is done (`--deterministic`).

use std::collections::{BTreeSet, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::features::Features;
use super::kernel::Kernel;
use super::listings::{Listings, SavedListing};
use super::random_device::{Readers, SavedDevice};
use super::randomness::{Randomness, SavedRandomness};

/// With [`Features::DETERMINISTIC`](super::Features::DETERMINISTIC); empty otherwise.
#[derive(Debug, Default)]
pub(super) struct Repeatable {
    /// Set before the first guest is served.
    randomness: OnceLock<Randomness>,
    /// Who reads random devices.
    pub(super) readers: Readers,
    listings: Listings,
    /// What was the host's where it should have been the sandbox's. A leaf of the lock order.
    missed: Mutex<BTreeSet<&'static str>>,
}

/// What an image carries of such a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRepeat {
    /// The streams of programs.
    pub randomness: SavedRandomness,
    /// Random devices that are open.
    pub devices: Vec<SavedDevice>,
    /// Directories that are being read.
    pub listings: Vec<SavedListing>,
}

impl Kernel {
    /// A guest meets what is the host's, where it should have met the sandbox's: that is told at the end.
    pub(super) fn let_through(
        &self,
        tid: i32,
        what: &'static str,
        why: &'static str,
        remedy: &'static str,
    ) {
        self.refuse(tid, what, why, remedy);
        if self.features().contains(Features::DETERMINISTIC) {
            self.missed().insert(what);
        }
    }

    /// Why a run that was to be repeatable was not, a sentence; `None`: it was, or was not to be.
    pub fn repeat_note(&self) -> Option<String> {
        let missed = self.missed();
        let all: Vec<&str> = missed.iter().copied().collect();
        let why = all.join(", ");
        (!all.is_empty()).then(|| format!("this run was not repeatable: it did without {why}"))
    }

    fn missed(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.repeatable.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams of programs, where they are the sandbox's. `guests`: numbers of processes for the guest, by
    /// those for the host.
    pub fn saved_randomness(&self, guests: &HashMap<i32, i32>) -> Option<SavedRandomness> {
        self.randomness().map(|randomness| randomness.saved(guests))
    }

    /// Streams go on from an image. `hosts`: numbers of processes for the host, by those for the guest. `None`:
    /// what was saved makes no sense.
    pub fn resume_randomness(
        &self,
        saved: &SavedRandomness,
        hosts: &HashMap<i32, i32>,
    ) -> Option<()> {
        self.randomness()?.resume(saved, hosts)
    }

    /// The snapshot that somebody reads who has this directory (device and inode) open at this position.
    pub fn saved_listing(&self, directory: (u64, u64), position: u64) -> Option<SavedListing> {
        self.listings().saved(directory, usize::try_from(position).ok()?)
    }

    /// Who has this directory open goes on reading. `None`: what was saved makes no sense.
    pub fn resume_listing(&self, directory: BorrowedFd<'_>, saved: &SavedListing) -> Option<()> {
        self.listings().resume(directory, saved)
    }

    /// Guests get random bytes from here. Once, before there are any.
    pub fn draw_from(&self, randomness: Randomness) {
        let _ = self.repeatable.randomness.set(randomness);
    }

    /// What random bytes come from, where that is not the host.
    pub(super) fn randomness(&self) -> Option<&Randomness> {
        self.repeatable.randomness.get()
    }

    /// Snapshots of directories.
    pub(super) fn listings(&self) -> &Listings {
        &self.repeatable.listings
    }
}
