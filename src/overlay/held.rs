//! The overlay of a run, until it has ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::{Changes, Kind};
use super::description::Description;
use super::entry;
use super::layers::Layer;
use super::remove::remove_tree;
use super::store::{Kept, Lock, Store};
use super::twin::{self, Twins};
use crate::sys::descriptors;

/// The overlay of a run that is about to start or goes on: nobody else uses it while this lives.
#[derive(Debug)]
pub struct Held {
    pub(super) id: String,
    pub(super) store: Store,
    pub(super) directory: OwnedFd,
    pub(super) lock: Lock,
    pub(super) layers: Vec<Layer>,
    /// What takes the place of overlays, where the kernel makes none, and why it does not.
    pub(super) twins: Option<(Arc<Twins>, String)>,
}

impl Held {
    /// The layers, in the order in which they are mounted.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Why the kernel makes no overlays for the run, and what fetches content then.
    pub fn twins(&self) -> Option<(&Arc<Twins>, &str)> {
        self.twins.as_ref().map(|(twins, cause)| (twins, cause.as_str()))
    }

    /// The kernel has refused one of the overlays after all. Gives whether another run would do without.
    pub fn doubt(&self) -> bool {
        self.twins.is_none() && twin::doubt(&self.store, &self.layers)
    }

    /// No run before this one has used it.
    pub fn is_new(&self) -> bool {
        Description::read(self.directory.as_fd()).is_ok_and(|it| it.starts.len() <= 1)
    }

    /// The run has ended, and nothing of it is kept. Gives whether it had changed anything.
    pub fn discard(self) -> bool {
        let Held { id, store, directory, lock, twins, .. } = self;
        let Ok(mut description) = Description::read(directory.as_fd()) else { return false };
        let twins = twins.as_ref().map(|(twins, _)| &**twins);
        // (Each level of a tree takes some. What cannot be gathered was changed.)
        descriptors::raise_limit();
        let gathered = twin::end_all(directory.as_fd(), &mut description, twins);
        let path = store.path.join(&id);
        let kept = Kept { id, path, store, directory, description };
        let has_changed = gathered.is_err() || Changes::of(&kept, true).next().is_some();
        let _ = kept.remove(lock);
        has_changed
    }

    /// The run has ended: says what is kept, and how to look at it; what nobody has changed is not kept.
    pub fn finish(self) -> Option<String> {
        let Held { id, store, directory, lock, layers, twins } = self;
        let mut description = Description::read(directory.as_fd()).ok()?;
        let twins = twins.as_ref().map(|(twins, _)| &**twins);
        descriptors::raise_limit();
        if let Err(error) = twin::end_all(directory.as_fd(), &mut description, twins) {
            return Some(error.to_string());
        }
        remove_skeletons(directory.as_fd(), &layers);
        let path = store.path.join(&id);
        let kept = Kept { id, path, store, directory, description };
        let word = kept.word();
        match count(&kept) {
            None => {
                let _ = kept.remove(lock);
                None
            }
            Some(count) => Some(format!(
                "the overlay has changes ({count}), and the host has none of them: sandbox diff {word} lists \
                 them, sandbox commit {word} applies them, sandbox discard {word} drops them"
            )),
        }
    }
}

/// How many paths were changed, in words; none if none was. Counts no longer than nobody minds.
fn count(kept: &Kept) -> Option<String> {
    const LONGEST: Duration = Duration::from_millis(300);
    let begin = Instant::now();
    let (mut added, mut deleted, mut others, mut more) = (0, 0, 0, "");
    for change in Changes::of(kept, true) {
        match change.map(|change| change.kind) {
            Ok(Kind::Added) => added += 1,
            Ok(Kind::Deleted) => deleted += 1,
            // What belongs to others inside is closed to this process.
            Err(_) if kept.ids().is_some() => more = " and more",
            _ => others += 1,
        }
        if begin.elapsed() > LONGEST || !more.is_empty() {
            more = " and more";
            break;
        }
    }
    let words = [(added, "added"), (others, "modified"), (deleted, "deleted")];
    let words = words.iter().filter(|(number, _)| *number > 0);
    let words: Vec<String> = words.map(|(number, what)| format!("{number} {what}")).collect();
    match words.is_empty() {
        true => (!more.is_empty()).then(|| "of files of others".to_owned()),
        false => Some(words.join(", ") + more),
    }
}

/// Removes what was made for a run alone.
fn remove_skeletons(directory: BorrowedFd<'_>, layers: &[Layer]) {
    let Ok(all) = entry::open_directory(directory, "layers".as_ref()) else { return };
    for number in layers.iter().filter_map(|layer| layer.skeleton) {
        if let Ok(layer) = entry::open_directory(all.as_fd(), number.to_string().as_ref()) {
            let _ = remove_tree(layer.as_fd(), "lower".as_ref());
        }
    }
}
