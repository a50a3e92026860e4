//! Where overlays are kept, and finding one there.
//!
//! ```text
//! $XDG_STATE_HOME/sandbox/overlays/    or ~/.local/state/..., or --overlay-dir; 0700
//!   ID/                                0700
//!     description                      what it is an overlay of, see `description`
//!     lock                             locked while a run, or a verb that changes it, uses it
//!     journal                          what a commit has put on the host and not yet in its place
//!     layers/N/upper                   what was changed
//!     layers/N/work                    overlayfs's own
//!     layers/N/lower                   of a skeleton: the names (during a run)
//!     layers/N/twin, notes, filled     what is shown where there is no overlayfs (during a run): see `twin`
//! ```
//!
//! Owns the making, finding, locking and removing of that. Which directories are stores: see `places`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{AccessFlags, Uid, eaccess};

use super::changes::set_mode;
use super::description::{Description, Ids, path};
use super::entry::{look, names, open_path};
use super::error::{OverlayError, refuse};
use super::places::{default_place, remember, stores};
use super::remove::{is_heap, remove_tree, sweep};
use super::restoring::{self, is_restoring};
use super::twin;
use crate::config::quoted;
use crate::sys::descriptors;

pub(super) const DIRECTORY: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// linux/magic.h
pub(super) const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// The directory in which overlays are kept.
#[derive(Debug)]
pub struct Store {
    pub(super) path: PathBuf,
    pub(super) directory: OwnedFd,
}

/// An overlay that was found.
#[derive(Debug)]
pub struct Kept {
    /// The id of the sandbox that it is of.
    pub id: String,
    /// Where it is.
    pub path: PathBuf,
    pub(super) store: Store,
    pub(super) directory: OwnedFd,
    pub(super) description: Description,
}

/// Nobody else uses an overlay while this lives.
#[derive(Debug)]
pub(super) struct Lock(Flock<File>);

impl Lock {
    /// The file that is locked.
    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

/// Where overlays are kept unless somebody names another place, if they can be kept there.
///
/// # Errors
/// Why not: the end of a sentence.
pub fn usual_place() -> Result<PathBuf, String> {
    let place = default_place().map_err(|_| "neither XDG_STATE_HOME nor HOME is set".to_owned())?;
    let there = place.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    if eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Err(format!("{} cannot be written", there.display()));
    }
    Ok(place)
}

impl Store {
    /// Finds the place; with `make` it is made where it is missing, and later runs hide it.
    ///
    /// # Errors
    /// It cannot be made or used, or belongs to somebody else; or a run is to use it and it holds something
    /// else than overlays.
    pub fn open(named: Option<&Path>, make: bool) -> Result<Option<Store>, OverlayError> {
        let place = named.map_or_else(default_place, |path| Ok(path.to_owned()))?;
        let fail = |cause: &str| {
            refuse!(
                "cannot keep overlays in {}: {cause}; name a directory of yours with --overlay-dir",
                quoted(&place)
            )
        };
        if make {
            directory_builder().create(&place).map_err(|error| fail(&error.to_string()))?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory = match open(&place, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) if !make => return Ok(None),
            Err(errno) => return Err(fail(errno.desc())),
        };
        let stat = fstat(&directory).map_err(|errno| fail(errno.desc()))?;
        if stat.st_uid != Uid::effective().as_raw() {
            return Err(fail("it is not yours"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(fail("others may write in it"));
        }
        let path = place.canonicalize().map_err(|error| fail(&error.to_string()))?;
        let store = Store { path, directory };
        if make && named.is_some() {
            store.check_content()?;
            remember(&store)?;
        }
        Ok(Some(store))
    }

    /// It holds nothing but overlays: whatever else is in it would be hidden from every run, and a guest that
    /// has written there could have made an overlay of its own.
    fn check_content(&self) -> Result<(), OverlayError> {
        let is_overlay = |name: &OsStr| {
            let Ok(entry) = openat(&self.directory, name, DIRECTORY, Mode::empty()) else {
                return false;
            };
            // Another run may be about to make it.
            let begun = || names(entry.as_fd()).is_ok_and(|names| names.is_empty());
            matches!(look(entry.as_fd(), "lock".as_ref()), Ok(Some(_))) || begun()
        };
        let all = names(self.directory.as_fd()).unwrap_or_default();
        let other = |name: &&OsString| {
            let own = is_heap(name) || is_restoring(name);
            *name != "lost+found" && !own && !is_overlay(name)
        };
        match all.iter().find(other) {
            None => Ok(()),
            Some(name) => Err(refuse!(
                "cannot keep overlays in {}: it holds {}, which is no overlay; name a directory for \
                 overlays alone with --overlay-dir",
                quoted(&self.path),
                quoted(name)
            )),
        }
    }

    /// Where it is: no guest may see it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of an id, if there is one.
    pub(super) fn entry(&self, id: &str) -> Result<Option<OwnedFd>, OverlayError> {
        match openat(&self.directory, id, DIRECTORY, Mode::empty()) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(refuse!(
                "cannot open the overlay {}: {}; remove what is there",
                quoted(self.path.join(id)),
                errno.desc()
            )),
        }
    }

    /// The directory of an id, made where it is missing.
    ///
    /// # Errors
    /// It cannot be made, or is there and no overlay.
    pub(super) fn make_entry(&self, id: &str) -> Result<OwnedFd, OverlayError> {
        let fail = |cause: &str| {
            refuse!(
                "cannot make an overlay in {}: {cause}; name another directory with --overlay-dir",
                quoted(self.path.join(id))
            )
        };
        let entry = make_directory(self.directory.as_fd(), id);
        let entry = entry.map_err(|errno| fail(errno.desc()))?;
        match is_overlay(entry.as_fd()).map_err(|errno| fail(errno.desc()))? {
            true => Ok(entry),
            false => Err(fail("a directory of that name is there, and it is no overlay")),
        }
    }

    /// An id that no overlay has: this one, or this one and a number.
    pub fn free_id(&self, id: &str) -> Result<String, OverlayError> {
        let mut name = id.to_owned();
        let mut number = 2;
        while self.entry(&name)?.is_some() {
            name = format!("{id}-{number}");
            number += 1;
        }
        Ok(name)
    }

    /// Every overlay that can be read, by id.
    ///
    /// # Errors
    /// The place cannot be used.
    pub fn all(named: Option<&Path>) -> Result<Vec<Kept>, OverlayError> {
        let Some(store) = Store::open(named, false)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&store.path).into_iter().flatten().flatten() {
            if let Some(id) = entry.file_name().to_str()
                && !id.starts_with('.')
                && let Ok(kept) = Kept::find(id, named)
            {
                all.push(kept);
            }
        }
        all.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(all)
    }
}

/// Whether a directory in a store is an overlay, or about to be one.
pub(super) fn is_overlay(entry: BorrowedFd<'_>) -> Result<bool, Errno> {
    let all = names(entry)?;
    // What a run that was killed leaves before there is a description.
    let begun = |name: &OsString| ["lock", "layers", "description.new"].iter().any(|it| name == it);
    let has = |wanted: &str| all.iter().any(|name| name == wanted);
    Ok(all.is_empty() || has("lock") && (has("description") || all.iter().all(begun)))
}

/// Makes a directory and what is missing above it, with mode 0700.
pub(super) fn directory_builder() -> std::fs::DirBuilder {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder
}

/// mkdirat(2) with mode 0700, whatever the umask, that accepts an existing directory; opened.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let made = match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(errno),
    };
    let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
    if made {
        fchmod(&directory, Mode::S_IRWXU)?;
    }
    Ok(directory)
}

impl Kept {
    /// The overlay that `word` means: the id of a sandbox, the directory of an overlay, or a directory
    /// that one overlay is of.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(word: &str, place: Option<&Path>) -> Result<Kept, OverlayError> {
        if word.contains('/') || word == "." || word == ".." {
            return Kept::find_by_path(word, place);
        }
        let missing = || {
            refuse!(
                "no overlay is kept of a sandbox named {word}; an overlay without changes is not kept, \
                 and one of --overlay-dir is found with that"
            )
        };
        let store = Store::open(place, false)?.ok_or_else(missing)?;
        sweep(store.directory.as_fd());
        restoring::sweep(store.directory.as_fd(), OsStr::new(""));
        let directory = store.entry(word)?.ok_or_else(missing)?;
        let path = store.path.join(word);
        let description = Description::read(directory.as_fd()).map_err(|cause| {
            refuse!(
                "cannot use the overlay {word}: {cause}; use the version that made it, or remove {}",
                quoted(&path)
            )
        })?;
        Ok(Kept { id: word.to_owned(), path, store, directory, description })
    }

    fn find_by_path(word: &str, place: Option<&Path>) -> Result<Kept, OverlayError> {
        let asked = Path::new(word);
        let real = asked.canonicalize().map_err(|error| {
            refuse!("cannot find an overlay by {}: {error}; name its id", quoted(asked))
        })?;
        let stores = match place {
            Some(place) => {
                let named = Store::open(Some(place), false)?;
                named.iter().try_for_each(Store::check_content)?;
                named.map(|store| store.path).into_iter().collect()
            }
            None => stores(),
        };
        let mut of_it = Vec::new();
        for store in &stores {
            // One that cannot be used any more is no reason not to look into the others.
            of_it.extend(Store::all(Some(store)).unwrap_or_default());
        }
        of_it.retain(|kept| kept.description.overlays.iter().any(|it| path(it) == real));
        match of_it.len() {
            1 => Ok(of_it.remove(0)),
            // In any other directory somebody else may have written what looks like an overlay.
            0 => match (real.parent(), real.file_name().and_then(OsStr::to_str)) {
                (Some(parent), Some(id)) if stores.iter().any(|store| store == parent) => {
                    Kept::find(id, Some(parent))
                }
                _ => Err(refuse!(
                    "no overlay is kept of {}; name the id of a sandbox, and the place with \
                     --overlay-dir if it was named",
                    quoted(&real)
                )),
            },
            _ => {
                let words: Vec<String> = of_it.iter().map(Kept::word).collect();
                Err(refuse!(
                    "more than one overlay is kept of {}: {}; name one of these",
                    quoted(&real),
                    words.join(", ")
                ))
            }
        }
    }

    /// The directories that it is of.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.description.overlays.iter().map(|it| path(it)).collect()
    }

    /// The ids that its files may have besides the user's own: who is to read or to remove all of it has to have them.
    pub fn ids(&self) -> Option<&Ids> {
        self.description.ids.as_ref()
    }

    /// Whether a run, or a verb, uses it now.
    pub fn is_in_use(&self) -> bool {
        self.lock().is_err()
    }

    /// The word by which it is found again, for a shell.
    pub fn word(&self) -> String {
        word(&self.store, &self.id)
    }

    /// Has it for itself.
    pub(super) fn lock(&self) -> Result<Lock, OverlayError> {
        lock(self.directory.as_fd(), &self.id)
    }

    /// Gathers what a run without overlayfs has left that was killed. While one goes on, nothing is done.
    ///
    /// # Errors
    /// It cannot be gathered.
    pub fn settle(&mut self) -> Result<(), OverlayError> {
        if !twin::is_used(self.directory.as_fd(), &self.description) {
            return Ok(());
        }
        let Ok(_lock) = self.lock() else { return Ok(()) };
        descriptors::raise_limit();
        twin::end_all(self.directory.as_fd(), &mut self.description, None)
    }

    /// Opens a directory of a layer.
    pub(super) fn layer(&self, number: usize, name: &str) -> Result<OwnedFd, OverlayError> {
        let open = || {
            let layers = openat(&self.directory, "layers", DIRECTORY, Mode::empty())?;
            let layer = openat(&layers, number.to_string().as_str(), DIRECTORY, Mode::empty())?;
            open_closed(layer.as_fd(), name)
        };
        open().map_err(|errno: Errno| {
            refuse!(
                "cannot read layer {number} of the overlay {}: {}; it is damaged: sandbox discard {} \
                 removes it",
                self.id,
                errno.desc(),
                self.word()
            )
        })
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// A run uses it, or something cannot be removed.
    pub fn discard(self) -> Result<(), OverlayError> {
        let lock = self.lock()?;
        super::journal::clean_up(&self)?;
        self.remove(lock)
    }

    pub(super) fn remove(self, _lock: Lock) -> Result<(), OverlayError> {
        remove_tree(self.store.directory.as_fd(), self.id.as_ref()).map_err(|errno| {
            refuse!(
                "cannot remove the overlay {}: {}; look at {}",
                self.id,
                errno.desc(),
                quoted(&self.path)
            )
        })
    }
}

/// Opens a directory that a guest may have taken the rights from: they are given for a moment.
pub(super) fn open_closed(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::EACCES) => {
            let place = open_path(parent, name.as_ref())?;
            let mode = fstat(&place)?.st_mode;
            set_mode(place.as_fd(), mode | libc::S_IRWXU)?;
            let open = openat(parent, name, DIRECTORY, Mode::empty());
            set_mode(place.as_fd(), mode)?;
            open
        }
        open => open,
    }
}

/// See [`Kept::word`].
pub(super) fn word(store: &Store, id: &str) -> String {
    let usual = default_place().ok().and_then(|place| place.canonicalize().ok());
    if usual.as_ref() == Some(&store.path) {
        return id.to_owned();
    }
    match stores().contains(&store.path) {
        true => quoted(store.path.join(id)),
        // Nothing could be written down about it.
        false => format!("{id} --overlay-dir {}", quoted(&store.path)),
    }
}

/// The lock of the overlay in `directory`.
pub(super) fn lock(directory: BorrowedFd<'_>, id: &str) -> Result<Lock, OverlayError> {
    try_lock(directory).map_err(|errno| match errno {
        Errno::EWOULDBLOCK => refuse!(
            "the overlay {id} is in use by a running sandbox, or by another commit or discard; \
             wait for its end (sandbox wait {id}), or end it (sandbox kill {id})"
        ),
        errno => refuse!("cannot lock the overlay {id}: {}", errno.desc()),
    })
}

/// Likewise; EWOULDBLOCK: somebody else has it.
pub(super) fn try_lock(directory: BorrowedFd<'_>) -> Result<Lock, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, "lock", flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock)
        .map(Lock)
        .map_err(|(_, errno)| errno)
}
