//! An overlay that comes from an image, until the run that goes on with it begins.
//!
//! It is made beside the others under a name that no verb knows, and gets its own name in one step, just before
//! the first instruction of a guest. Until then the store is as it was; whatever fails before leaves it so. An
//! overlay that has the name already is given up only where nothing of it is lost by that: the image says that it
//! holds all of it ([`super::saving`]), or it makes no difference to the host.
//!
//! What the image says is hostile. Who fills the layers has the descriptor of an empty directory and no name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::syncfs;

use super::changes::Changes;
use super::description::{Description, Note, Stamp, bytes};
use super::entry;
use super::error::{OverlayError, refuse};
use super::layers::{Held, Layer, Maker, check_distance, check_kernel, check_place, is_new};
use super::remove::remove_tree;
use super::store::{self, Kept, Lock, Store, make_directory};
use crate::config::{MountKind, RunSpec, quoted};

/// The end of the name of one that has not got its own yet.
const SUFFIX: &str = ".sandbox-restoring";

/// What an image says of an overlay.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The directories of `--overlay`.
    pub directories: Vec<PathBuf>,
    /// When its runs began: seconds and nanoseconds.
    pub starts: Vec<(i64, i64)>,
    /// The number of the image.
    pub number: Vec<u8>,
    /// Its layers.
    pub layers: Vec<WantedLayer>,
}

/// A layer of one.
#[derive(Debug, Clone)]
pub struct WantedLayer {
    /// The directory of the host that it changes.
    pub path: PathBuf,
    /// If the run used it: whether it was a skeleton.
    pub skeleton: Option<bool>,
    /// Directories in it whose attributes mean nothing.
    pub scaffold: Vec<PathBuf>,
    /// There is something in it.
    pub filled: bool,
}

/// Where an overlay is that is to get its name.
#[derive(Debug)]
pub struct Place {
    store: OwnedFd,
    /// Its name until then. Afterwards what had the other name before is here, if there was one.
    name: OsString,
    id: String,
    /// Another one has the name, and goes.
    replaces: bool,
    taken: AtomicBool,
}

/// An overlay that is being made again. Dropped, it leaves the store as it was.
#[derive(Debug)]
pub struct Restoring {
    store: Store,
    directory: OwnedFd,
    lock: Lock,
    description: Description,
    layers: Vec<Layer>,
    // The last to be dropped: whoever it locks out waits until all is as it was.
    guard: Guard,
}

/// Cleans up behind a restore, however it ended.
#[derive(Debug)]
struct Guard {
    place: Arc<Place>,
    /// The overlay stays.
    stays: bool,
    _before: Option<Lock>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.stays && !self.place.give_back() {
            return;
        }
        // The new one, or the one that it has replaced.
        let _ = remove_tree(self.place.store.as_fd(), &self.place.name);
    }
}

impl Place {
    /// The overlay gets its name.
    ///
    /// # Errors
    /// The file system cannot do that in one step.
    pub fn take(&self) -> Result<(), OverlayError> {
        let how = match self.replaces {
            true => RenameFlags::RENAME_EXCHANGE,
            false => RenameFlags::RENAME_NOREPLACE,
        };
        self.rename(&self.name, OsStr::new(&self.id), how).map_err(|errno| {
            refuse!("cannot give the overlay {} its place in the store: {}", self.id, errno.desc())
        })?;
        self.taken.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Guests run in it: what had the name before goes, once the new one is on the disk. (What cannot be removed now
    /// goes with a later run.)
    pub fn settle(&self) {
        if self.is_taken() && self.replaces && syncfs(&self.store).is_ok() {
            let _ = remove_tree(self.store.as_fd(), &self.name);
        }
    }

    /// It has failed after all: the name is as it was. Gives whether it is.
    pub fn give_back(&self) -> bool {
        if self.taken.load(Ordering::SeqCst) {
            let how = match self.replaces {
                true => RenameFlags::RENAME_EXCHANGE,
                false => RenameFlags::RENAME_NOREPLACE,
            };
            // The same step the other way round.
            let back = self.rename(OsStr::new(&self.id), &self.name, how).is_ok();
            self.taken.store(!back, Ordering::SeqCst);
        }
        !self.is_taken()
    }

    /// Whether it has its name: guests may have changed what is in it.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::SeqCst)
    }

    fn rename(&self, from: &OsStr, to: &OsStr, how: RenameFlags) -> Result<(), Errno> {
        renameat2(&self.store, from, &self.store, to, how)
    }
}

impl Restoring {
    /// Makes the overlay `id` of an image anew, its layers empty, for a run like `spec`.
    ///
    /// # Errors
    /// It cannot be kept here, or is none of such a run; or there is one of that id that would be lost.
    pub fn begin(
        store: Store,
        id: &str,
        wanted: Wanted,
        spec: &RunSpec,
    ) -> Result<Restoring, OverlayError> {
        check_kernel()?;
        check(&wanted)?;
        check_layers(&wanted, spec)?;
        check_distance(&store, &wanted.directories)?;
        let name = OsString::from(format!(".{id}{SUFFIX}"));
        sweep(store.directory.as_fd(), &name);
        let before = before(&store, id, &wanted.number)?;
        let fail = |errno: Errno| {
            refuse!(
                "cannot make an overlay in {}: {}; name another directory with --overlay-dir",
                quoted(&store.path),
                errno.desc()
            )
        };
        match mkdirat(&store.directory, name.as_os_str(), Mode::S_IRWXU) {
            // Whatever the umask is.
            Ok(()) => fchmodat(
                &store.directory,
                name.as_os_str(),
                Mode::S_IRWXU,
                FchmodatFlags::FollowSymlink,
            )
            .map_err(fail)?,
            Err(Errno::EEXIST) => {
                return Err(refuse!(
                    "cannot restore the overlay {id}: another restore of it is at work"
                ));
            }
            Err(errno) => return Err(fail(errno)),
        }
        let own = store.directory.try_clone().map_err(|error| {
            let _ = remove_tree(store.directory.as_fd(), &name);
            refuse!("cannot hold {}: {error}", quoted(&store.path))
        })?;
        let replaces = before.is_some();
        let (id, taken) = (id.to_owned(), AtomicBool::new(false));
        let place = Place { store: own, name, id, replaces, taken };
        let guard = Guard { place: Arc::new(place), stays: false, _before: before };
        let directory = entry::open_directory(store.directory.as_fd(), &guard.place.name);
        let directory = directory.map_err(fail)?;
        let lock = store::lock(directory.as_fd(), &guard.place.id)?;
        let layers = make_directory(directory.as_fd(), "layers").map_err(fail)?;
        check_place(&store, layers.as_fd())?;
        for number in 0..wanted.layers.len() {
            let layer = make_directory(layers.as_fd(), &number.to_string()).map_err(fail)?;
            make_directory(layer.as_fd(), "upper").map_err(fail)?;
        }
        let description = description(&wanted);
        Ok(Restoring { store, directory, lock, description, layers: Vec::new(), guard })
    }

    /// The directories of the layers that take what has changed, in order.
    ///
    /// # Errors
    /// There are not enough descriptors.
    pub fn uppers(&self) -> Result<Vec<OwnedFd>, OverlayError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let upper = |number: usize| {
            let path = format!("layers/{number}/upper");
            openat(&self.directory, path.as_str(), flags, Mode::empty()).map_err(|errno| {
                refuse!("cannot open layer {number} of the overlay {}: {}", self.id(), errno.desc())
            })
        };
        (0..self.description.layers.len()).map(upper).collect()
    }

    /// All is in the layers: makes what else they need for `spec`, which has to have the same ones. Gives them in
    /// the order in which they are mounted.
    ///
    /// # Errors
    /// What was saved fits no layer here.
    pub fn finish_layers(&mut self, spec: &RunSpec) -> Result<Vec<Layer>, OverlayError> {
        let place = &self.guard.place;
        let name = place.name.to_string_lossy().into_owned();
        let (store, directory) = (&self.store, self.directory.as_fd());
        let maker = Maker { store, id: &place.id, name: &name, spec, directory };
        let layers = maker.make(&mut self.description)?;
        self.description.write(directory).map_err(|error| {
            refuse!("cannot write the description of the overlay {}: {error}", place.id)
        })?;
        self.layers = layers.clone();
        Ok(layers)
    }

    /// How it gets its name.
    pub fn place(&self) -> Arc<Place> {
        Arc::clone(&self.guard.place)
    }

    /// The run has begun: the overlay is one as any run has. None: it has not, and the store is as it was.
    pub fn settle(mut self) -> Option<Held> {
        if !self.guard.place.is_taken() {
            return None;
        }
        self.guard.stays = true;
        let id = self.id().to_owned();
        let Restoring { store, directory, lock, layers, guard, .. } = self;
        drop(guard);
        Some(Held { id, store, directory, lock, layers })
    }

    /// What a save needs of it.
    ///
    /// # Errors
    /// There is no further descriptor.
    pub fn saver(&self) -> Result<super::Saver, OverlayError> {
        super::saving::saver(self.id(), &self.directory, &self.layers)
    }

    fn id(&self) -> &str {
        &self.guard.place.id
    }
}

/// What the run used, this one uses as well; else what is in it would be out of sight.
fn check_layers(wanted: &Wanted, spec: &RunSpec) -> Result<(), OverlayError> {
    if spec.overlays() != wanted.directories {
        return Err(refuse!(
            "the image is damaged: its layers are of other directories than its run"
        ));
    }
    let here = |path: &Path| {
        spec.mounts.iter().find_map(|mount| match &mount.kind {
            MountKind::Overlay { source, skeleton } if source == path => Some(*skeleton),
            _ => None,
        })
    };
    for layer in wanted.layers.iter().filter(|layer| layer.filled) {
        let (then, now) = (layer.skeleton, here(&layer.path));
        let Some(then) = then.filter(|then| now != Some(*then)) else { continue };
        let what = match now {
            None => "there is no such directory that can be changed in an overlay",
            Some(_) if then => "nothing is mounted below it any more",
            Some(_) => "something is mounted below it",
        };
        return Err(refuse!(
            "the sandbox has changed what is in {}, and on this host {what}; have the same file \
             systems mounted there as when it was saved",
            quoted(&layer.path)
        ));
    }
    Ok(())
}

/// What is written down about it.
fn description(wanted: &Wanted) -> Description {
    let stamp = |(seconds, nanoseconds): &(i64, i64)| Stamp {
        seconds: *seconds,
        nanoseconds: *nanoseconds,
    };
    let note = |layer: &WantedLayer| Note {
        path: bytes(&layer.path),
        scaffold: layer.scaffold.iter().map(|it| bytes(it)).collect(),
    };
    // No start is added: its programs have known the host since those.
    Description {
        overlays: wanted.directories.iter().map(|it| bytes(it)).collect(),
        starts: wanted.starts.iter().map(stamp).collect(),
        layers: wanted.layers.iter().map(note).collect(),
        saved: None,
    }
}

/// What an image says can be so.
fn check(wanted: &Wanted) -> Result<(), OverlayError> {
    let plain = |path: &Path| {
        let sound =
            path.components().all(|it| matches!(it, Component::RootDir | Component::Normal(_)));
        sound && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
    };
    let absolute = |path: &Path| path.is_absolute() && plain(path);
    let within = |path: &Path| wanted.directories.iter().any(|above| path.starts_with(above));
    let mut paths: Vec<&Path> = wanted.layers.iter().map(|layer| &*layer.path).collect();
    paths.sort_unstable();
    let twice = paths.windows(2).any(|pair| pair[0] == pair[1]);
    let nul = |path: &Path| path.as_os_str().as_bytes().contains(&0);
    let sound = !wanted.directories.is_empty()
        && wanted.directories.is_sorted_by(|a, b| a < b)
        && wanted.directories.iter().all(|path| absolute(path) && !nul(path))
        && !wanted.starts.is_empty()
        && paths.iter().all(|path| absolute(path) && within(path) && !nul(path))
        && !twice
        && wanted
            .layers
            .iter()
            .flat_map(|layer| &layer.scaffold)
            .all(|it| !it.is_absolute() && plain(it));
    match sound {
        true => Ok(()),
        false => Err(refuse!("the image is damaged: what it says of its layers cannot be so")),
    }
}

/// The overlay that has the name, if there is one, locked; refused if something of it would be lost.
fn before(store: &Store, id: &str, number: &[u8]) -> Result<Option<Lock>, OverlayError> {
    let Some(directory) = store.entry(id)? else { return Ok(None) };
    let path = store.path.join(id);
    if !store::is_overlay(directory.as_fd()).unwrap_or(false) {
        return Err(refuse!(
            "cannot restore it as {id}: there is a directory {} that is no overlay; restore it with --id \
             under another name",
            quoted(path)
        ));
    }
    let lock = store::lock(directory.as_fd(), id)?;
    if is_new(directory.as_fd()) {
        return Ok(Some(lock));
    }
    let word = store::word(store, id);
    let description = Description::read(directory.as_fd()).map_err(|cause| {
        refuse!(
            "cannot restore it as {id}: an overlay of that id is kept, and {cause}; sandbox discard {word} \
             removes it, or restore it with --id under another name"
        )
    })?;
    if matches!(entry::look(directory.as_fd(), "journal".as_ref()), Ok(Some(_))) {
        return Err(refuse!(
            "cannot restore it as {id}: a commit of the overlay of that id was interrupted; sandbox commit \
             {word} finishes that, or restore it with --id under another name"
        ));
    }
    if description.saved.as_ref().is_some_and(|saved| **saved == *number) {
        return Ok(Some(lock));
    }
    let own = |error| refuse!("cannot hold the overlay {id}: {error}");
    let store_again =
        Store { path: store.path.clone(), directory: store.directory.try_clone().map_err(own)? };
    let kept = Kept { id: id.to_owned(), path, store: store_again, directory, description };
    if Changes::of(&kept, true).next().is_none() {
        return Ok(Some(lock));
    }
    Err(refuse!(
        "cannot restore it as {id}: the overlay that is kept of {id} has changes that this image does not \
         know of; apply them (sandbox commit {word}) or drop them (sandbox discard {word}) first, or restore \
         it with --id under another name"
    ))
}

/// Removes what restores that were killed have left. `own`: the name that nobody else may use now.
pub(super) fn sweep(store: BorrowedFd<'_>, own: &OsStr) {
    for name in entry::names(store).unwrap_or_default() {
        if is_restoring(&name) && is_nobodys(store, &name, own) {
            let _ = remove_tree(store, &name);
        }
    }
}

/// Whether a name is one of an overlay that has not got its own yet.
pub(super) fn is_restoring(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(SUFFIX.as_bytes())
}

/// Whether nobody is at work there.
fn is_nobodys(store: BorrowedFd<'_>, name: &OsStr, own: &OsStr) -> bool {
    let Ok(directory) = entry::open_directory(store, name) else { return false };
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&directory, "lock", flags, Mode::empty()) {
        Ok(file) => Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock).is_ok(),
        // It was killed at its very beginning; or, where the name is another's, is there.
        Err(Errno::ENOENT) => name == own,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;
