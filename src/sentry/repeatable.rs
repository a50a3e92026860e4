//! What a run has that is to do the same whenever it is done (`--deterministic`).

use std::sync::OnceLock;

use super::kernel::Kernel;
use super::listings::Listings;
use super::random_device::Readers;
use super::randomness::Randomness;

/// With [`Features::DETERMINISTIC`](super::Features::DETERMINISTIC); empty otherwise.
#[derive(Debug, Default)]
pub(super) struct Repeatable {
    /// Set before the first guest is served.
    randomness: OnceLock<Randomness>,
    /// Who reads random devices.
    pub(super) readers: Readers,
    listings: Listings,
}

impl Kernel {
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
