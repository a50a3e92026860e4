//! Overlays: what a run changed of the host's directories, kept beside them.
//!
//! Owns the place where that is kept and its form, the layers of a run before it starts, and what becomes
//! of them afterwards: listed, applied to the host, or removed. Mounting them is `launch`'s work, and
//! which directories there are was decided in `config`.
//!
//! What is in a layer was written by a guest: names, links, sizes and depths are hostile. Nothing in it
//! is followed, and every path of the host is reached from a descriptor of the overlaid directory.

mod apply;
mod believed;
mod changes;
mod commit;
mod compare;
mod conflicts;
mod content;
mod description;
mod entry;
mod error;
mod front;
mod held;
mod journal;
mod layers;
mod places;
mod prune;
mod remove;
mod restoring;
mod saving;
mod store;
mod twin;

pub use crate::config::Glob;
pub use changes::{Change, Changes, Kind, What};
pub use commit::{Committed, Options, Outcome, Progress};
pub use content::{Content, SHOWN};
pub use description::Ids;
pub use entry::Type;
pub use error::OverlayError;
pub use front::fill_fronts;
pub use held::Held;
pub use layers::{Layer, prepare};
pub use places::{hidden_places, is_above_places};
pub(crate) use remove::remove_directory;
pub use restoring::{CONTENT_SUM, Place, Restoring, Wanted, WantedLayer};
pub use saving::{Part, Saver, Spool, Whole};
pub use store::{Kept, Store, usual_place};
pub use twin::Twins;
