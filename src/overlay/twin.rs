//! Overlays without overlayfs: where the kernel refuses it, guests are shown a *twin* of the directory.
//!
//! The twin is a plain tree of the sandbox's own: the same names, links, modes, times and attributes, and files
//! of the same size that are all hole. What guests do to names and attributes they do to the twin, and the
//! kernel needs no help for that. Content is fetched when a file is first opened: the sentry opens files for
//! guests then ([`Content`](crate::sentry::Content)), and fills them before. The host's directory is in no
//! guest's sight, so nothing that a guest does can reach it, whoever is faster.
//!
//! When the run has ended, what differs is gathered into the layer, in the form that overlayfs gives it
//! ([`gather`]). What is not different is told by inode and ctime, which no guest can set. Until then
//! the notes say what was made ([`notes`]), so that a run that was killed loses nothing.

mod fill;
mod gather;
mod make;
mod notes;
mod program;
mod run;
mod tree;
mod tried;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};

pub(super) use fill::Filled;
pub use fill::Twins;
use make::{Ground, make};
use notes::Notes;
pub(super) use run::{cause, doubt, end_all, has_twin, is_used, make_all, refused};

use super::description::Note;
use super::entry;
use super::remove::remove_tree;
use super::store::open_closed;
use crate::sys::errno_of;

/// The directory of a layer in which its twin is.
pub(super) const PLACE: &str = "twin";
/// The file beside it that says what was made in it.
const NOTES: &str = "notes";
/// The file beside it that says what was filled: numbers of notes, four bytes each.
const FILLED: &str = "filled";

/// What could not be done, with the path that it was about, below the directory of the layer.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) path: PathBuf,
    pub(super) errno: Errno,
}

impl Trouble {
    fn at(path: &Path) -> impl Fn(Errno) -> Trouble + use<> {
        let path = path.to_owned();
        move |errno| Trouble { path: path.clone(), errno }
    }
}

/// Whether a run that needs no overlayfs uses a layer, or was killed while it did.
pub(super) fn is_in(layer: BorrowedFd<'_>) -> bool {
    matches!(entry::look(layer, NOTES.as_ref()), Ok(Some(_)))
}

/// Gathers what guests have changed in the twin of a layer, if it has one, and removes the twin. `filled` is what the
/// run knows of it; a run that was killed has left its file. Adds to what is noted of the layer.
pub(super) fn end(
    layer: BorrowedFd<'_>,
    note: &mut Note,
    filled: Option<&HashMap<u32, Filled>>,
) -> Result<(), Trouble> {
    let fail = Trouble::at(Path::new(""));
    if is_in(layer) {
        let notes = Notes::read(layer, NOTES).map_err(&fail)?;
        let left = filled.map_or_else(|| fill::left(layer), HashMap::clone);
        let upper = open_closed(layer, "upper").map_err(&fail)?;
        let twin = open_closed(layer, PLACE).map_err(&fail)?;
        let scaffold = gather::gather(&notes, &left, twin, upper)?;
        note.scaffold.extend(scaffold);
    }
    // Without the notes nobody takes what is no longer there for removed.
    for name in [NOTES, FILLED] {
        match unlinkat(layer, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    remove_tree(layer, PLACE.as_ref()).map_err(fail)
}

/// Does something that calls itself for each directory in a directory, on a stack that is large enough for the longest
/// path.
fn deep<T: Send>(job: impl FnOnce() -> Result<T, Trouble> + Send) -> Result<T, Trouble> {
    const STACK: usize = 256 << 20;
    let fail = Trouble::at(Path::new(""));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, job);
        let thread = thread.map_err(|error| fail(errno_of(&error)))?;
        thread.join().unwrap_or_else(|_| Err(fail(Errno::EIO)))
    })
}

/// The file in which is written down what was filled, made anew.
fn filled_file(layer: BorrowedFd<'_>) -> Result<File, Errno> {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::Mode;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    openat(layer, FILLED, flags | OFlag::O_CLOEXEC, mode).map(File::from)
}

/// Opens the directory whose twin is shown.
fn open_lower(path: &Path) -> Result<OwnedFd, Errno> {
    super::changes::open_host(path)
}
