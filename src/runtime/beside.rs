//! What a run has beside its specification, which whoever begins it has made.

use std::fs::File;
use std::sync::Arc;

use crate::overlay::{Layer, Saver};
use crate::sentry::Content;
use crate::sentry::asking::Scribe;
use crate::sentry::file_log::Report;
use crate::sentry::net::publish::Doors;

/// What a run has beside its specification.
#[derive(Default)]
pub struct Beside<'b> {
    /// Layers of its overlays.
    pub layers: &'b [Layer],
    /// What fetches content of files in them, where the kernel makes no overlays.
    pub content: Option<Arc<dyn Content>>,
    /// What a save needs of them.
    pub saver: Option<Arc<Saver>>,
    /// What its network decides is recorded here.
    pub net_log: Option<File>,
    /// Writes answers down (`--ask-save`).
    pub scribe: Option<Scribe>,
    /// Its published ports, where these are taken already.
    pub doors: Option<Doors>,
    /// Done once the guests have ended, and before anybody is told: who waits for the end finds it done.
    pub at_end: Option<AtEnd<'b>>,
}

/// Gets the list of the touched files, if that was recorded. Gives sentences for the user; an error is one.
pub type AtEnd<'b> = Box<dyn FnOnce(Option<&Report>) -> Result<Vec<String>, String> + 'b>;
