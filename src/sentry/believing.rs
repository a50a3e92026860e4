//! What a run with `--root` believes, for who saves it and goes on with it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::beliefs::{FileSearch, SavedBelief, is_sound};
use super::credentials::SavedBeliefs;
use super::kernel::Kernel;

/// What an image carries of such a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRoot {
    /// Who its guests are.
    pub guests: SavedBeliefs,
    /// What is believed of files that take no attribute; the others carry it themselves.
    pub files: Vec<SavedBelief>,
}

impl SavedRoot {
    /// Whether it can be so. Nothing of it is trusted.
    pub fn is_sound(&self) -> bool {
        self.guests.credentials().is_some() && is_sound(&self.files)
    }
}

impl Kernel {
    /// A guest thread, which stands still, has the root directory of the whole file view: from here on others may have
    /// another one.
    pub fn note_whole_view(&self, tid: i32) {
        if let Some(beliefs) = self.beliefs() {
            beliefs.note_view(tid, || true);
            let _ = beliefs.is_fast(tid);
            self.overlays().learn(tid);
        }
    }

    /// The root of the guests' file view, if some of them may have another one.
    ///
    /// # Errors
    /// There are not enough descriptors.
    pub fn whole_view(&self) -> std::io::Result<Option<OwnedFd>> {
        let view = self.beliefs().and_then(|beliefs| beliefs.whole_view());
        view.map(|view| view.try_clone_to_owned()).transpose()
    }

    /// Who looks for files of which something is believed, in a run with `--root`.
    pub fn search_files(&self) -> Option<FileSearch<'_>> {
        self.beliefs().map(|beliefs| beliefs.search())
    }

    /// The same is believed of files again. `open`: see there.
    ///
    /// # Errors
    /// What was saved makes no sense (EINVAL), or there is no room for it.
    pub fn resume_files(
        &self,
        saved: &[SavedBelief],
        open: impl Fn(u32) -> Option<OwnedFd>,
    ) -> Result<(), Errno> {
        let beliefs = self.beliefs().ok_or(Errno::EINVAL)?;
        saved.iter().try_for_each(|it| beliefs.resume(it, &open))
    }

    /// Guests are who they were. `hosts`: numbers of processes and threads for the host, by those for the guest. `None`:
    /// what was saved makes no sense.
    pub fn resume_guests(&self, saved: &SavedBeliefs, hosts: &HashMap<i32, i32>) -> Option<()> {
        self.credentials().resume(saved, hosts)
    }
}
