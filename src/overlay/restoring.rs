//! An overlay that comes from an image, until the run that goes on with it begins.
//!
//! It is made beside the others under a name that no verb knows, and gets its own name in one step, just before
//! the first instruction of a guest. Until then the store is as it was; whatever fails before leaves it so. An
//! overlay that has the name already is given up only where nothing of it is lost by that: the image says that it
//! holds all of it ([`super::saving`]), or it makes no difference to the host.
//!
//! What the image says is hostile. Who fills the layers has the descriptor of an empty directory and no name.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat};
use nix::unistd::syncfs;

use super::changes::Changes;
use super::description::{Description, Note, Stamp, bytes};
use super::entry;
use super::error::{OverlayError, refuse};
use super::held::Held;
use super::layers::{Layer, Maker, check_distance, check_kernel, check_place, is_new, now};
use super::remove::remove_tree;
use super::store::{self, Kept, Lock, Store, make_directory};
use crate::config::{MountKind, RunSpec, quoted};

/// Bytes of a sum over the content of files.
pub const CONTENT_SUM: usize = 32;
/// The end of the name of one that has not got its own yet.
const SUFFIX: &str = ".sandbox-restoring";

/// What an image says of an overlay.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The directories of `--overlay`.
    pub directories: Vec<PathBuf>,
    /// When its runs began: seconds and nanoseconds.
    pub starts: Vec<(i64, i64)>,
    /// How what a save of the image that ended its run has left in the overlay ([`super::saving`]) begins; the sum of
    /// the content of files follows there.
    pub mark: Vec<u8>,
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
    /// What is in it, if it was a skeleton.
    pub names: BTreeSet<PathBuf>,
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
    /// If that may go because of what was saved of it: the sum of the content of its files.
    content: Option<[u8; CONTENT_SUM]>,
    taken: AtomicBool,
    /// Guests have been let go in it: it stays, whatever happens.
    running: AtomicBool,
    /// What lay under `name` was removed; locked while that is done. Nothing else is locked meanwhile.
    gone: Mutex<bool>,
}

/// An overlay that is being made again. Dropped, it leaves the store as it was.
#[derive(Debug)]
pub struct Restoring {
    store: Store,
    directory: OwnedFd,
    description: Description,
    layers: Vec<Layer>,
    // Whoever these lock out waits until all is as it was.
    guard: Guard,
    lock: Lock,
}

/// Cleans up behind a restore, however it ended.
#[derive(Debug)]
struct Guard {
    place: Arc<Place>,
    _before: Option<Before>,
}

/// One that has the name, and may go.
#[derive(Debug)]
struct Before {
    _lock: Lock,
    /// See [`Place`].
    content: Option<[u8; CONTENT_SUM]>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.place.is_running() {
            self.place.settle();
        } else if self.place.give_back() {
            self.place.remove();
        }
    }
}

impl Place {
    /// The overlay gets its name. `content`: the sum of the content of files that the image has.
    ///
    /// # Errors
    /// What has the name had other content when it was saved; or the file system cannot do that in one step.
    pub fn take(&self, content: &[u8; CONTENT_SUM]) -> Result<(), OverlayError> {
        if self.content.is_some_and(|saved| saved != *content) {
            return Err(refuse!(
                "cannot restore it as {id}: files in the overlay that is kept of {id} were saved with other content \
                 than this image has, so it is not as it was written; restore it with --id under another name",
                id = self.id
            ));
        }
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

    /// Guests have been let go in it: from here on nothing gives it back.
    pub fn begin(&self) {
        self.running.store(true, Ordering::SeqCst);
    }

    /// Guests run in it: what had the name before goes, once the new one is on the disk. (What cannot be removed now
    /// goes with a later run.) Returns when that is done, whoever does it.
    pub fn settle(&self) {
        if self.is_running() && self.replaces {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            *gone = *gone || syncfs(&self.store).is_ok() && self.remove_tree();
        }
    }

    /// Removes what has no other name.
    fn remove(&self) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        *gone = *gone || self.remove_tree();
    }

    fn remove_tree(&self) -> bool {
        remove_tree(self.store.as_fd(), &self.name).is_ok()
    }

    /// It has failed after all: the name is as it was. Gives whether it is; not where guests have it already.
    pub fn give_back(&self) -> bool {
        if self.is_running() {
            return false;
        }
        if self.taken.load(Ordering::SeqCst) {
            let how = match self.replaces {
                true => RenameFlags::RENAME_EXCHANGE,
                false => RenameFlags::RENAME_NOREPLACE,
            };
            // The same step the other way round.
            let back = self.rename(OsStr::new(&self.id), &self.name, how).is_ok();
            self.taken.store(!back, Ordering::SeqCst);
        }
        !self.taken.load(Ordering::SeqCst)
    }

    /// Whether it is that of a run: guests may have changed what is in it.
    fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
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
        let before = before(&store, id, &wanted.mark)?;
        let fail = |errno: Errno| {
            refuse!(
                "cannot make an overlay in {}: {}; name another directory with --overlay-dir",
                quoted(&store.path),
                errno.desc()
            )
        };
        let own = store
            .directory
            .try_clone()
            .map_err(|error| refuse!("cannot hold {}: {error}", quoted(&store.path)))?;
        let occupied = occupy(store.directory.as_fd(), &name).or_else(|errno| match errno {
            // Somebody who sweeps has met it before it was locked, or not yet done with the one before.
            Errno::EWOULDBLOCK | Errno::EEXIST | Errno::ENOENT => {
                sweep(store.directory.as_fd(), &name);
                occupy(store.directory.as_fd(), &name)
            }
            errno => Err(errno),
        });
        let (directory, lock) = occupied.map_err(|errno| match errno {
            Errno::EEXIST | Errno::EWOULDBLOCK => refuse!(
                "cannot restore the overlay {id}: another restore of it is at work; wait for it, or restore \
                 it with --id under another name"
            ),
            errno => fail(errno),
        })?;
        let place = Place {
            store: own,
            name,
            id: id.to_owned(),
            replaces: before.is_some(),
            content: before.as_ref().and_then(|it| it.content),
            taken: AtomicBool::new(false),
            running: AtomicBool::new(false),
            gone: Mutex::new(false),
        };
        let guard = Guard { place: Arc::new(place), _before: before };
        let layers = make_directory(directory.as_fd(), "layers").map_err(fail)?;
        check_place(&store, layers.as_fd(), true)?;
        for number in 0..wanted.layers.len() {
            let layer = make_directory(layers.as_fd(), &number.to_string()).map_err(fail)?;
            make_directory(layer.as_fd(), "upper").map_err(fail)?;
        }
        let description = description(&wanted);
        Ok(Restoring { store, directory, description, layers: Vec::new(), guard, lock })
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
        let (id, by_kernel) = (place.id.as_str(), true);
        let maker = Maker { store, id, name: &name, spec, directory, by_kernel };
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
    pub fn settle(self) -> Option<Held> {
        if !self.guard.place.is_running() {
            return None;
        }
        let id = self.id().to_owned();
        let Restoring { store, directory, lock, layers, guard, .. } = self;
        drop(guard);
        Some(Held { id, store, directory, lock, layers, twins: None })
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
    // What the host has gained since would be mounted on top of it.
    let used =
        |path: &Path| wanted.layers.iter().any(|it| it.skeleton.is_some() && it.path == path);
    let new = spec.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Overlay { source, .. } if !used(source) => Some(source),
        _ => None,
    });
    for path in new {
        let covers = |layer: &WantedLayer| {
            path.strip_prefix(&layer.path).is_ok_and(|below| layer.names.contains(below))
        };
        if wanted.layers.iter().any(covers) {
            return Err(refuse!(
                "the sandbox has changed or made {0}, and this host has a directory {0} of its own, which \
                 would cover that; move the host's away",
                quoted(path)
            ));
        }
    }
    Ok(())
}

/// Makes the directory of an overlay that has not got its name yet, and locks it. EEXIST, EWOULDBLOCK, ENOENT:
/// somebody else is at work there, or has taken it for left behind.
fn occupy(store: BorrowedFd<'_>, name: &OsStr) -> Result<(OwnedFd, Lock), Errno> {
    mkdirat(store, name, Mode::S_IRWXU)?;
    let locked = || {
        // Whatever the umask is.
        fchmodat(store, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
        let directory = entry::open_directory(store, name)?;
        let lock = store::try_lock(directory.as_fd())?;
        match is_there(store, name, lock.file())? {
            true => Ok((directory, lock)),
            false => Err(Errno::ENOENT),
        }
    };
    locked().inspect_err(|errno| {
        // (Else it has gone already.)
        if *errno != Errno::ENOENT {
            let _ = remove_tree(store, name);
        }
    })
}

/// What is written down about it.
fn description(wanted: &Wanted) -> Description {
    // One that is to come would have what the host changes until then count as seen.
    let now = now();
    let stamp = |(seconds, nanoseconds): &(i64, i64)| {
        now.min(Stamp { seconds: *seconds, nanoseconds: *nanoseconds })
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
        ids: None,
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
fn before(store: &Store, id: &str, mark: &[u8]) -> Result<Option<Before>, OverlayError> {
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
        return Ok(Some(Before { _lock: lock, content: None }));
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
    let content = description.saved.as_ref().and_then(|saved| saved.strip_prefix(mark));
    if let Some(content) = content.and_then(|it| it.try_into().ok()) {
        return Ok(Some(Before { _lock: lock, content: Some(content) }));
    }
    let own = |error| refuse!("cannot hold the overlay {id}: {error}");
    let store_again =
        Store { path: store.path.clone(), directory: store.directory.try_clone().map_err(own)? };
    let kept = Kept { id: id.to_owned(), path, store: store_again, directory, description };
    if Changes::of(&kept, true).next().is_none() {
        return Ok(Some(Before { _lock: lock, content: None }));
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
        if is_restoring(&name)
            && let Some(_lock) = nobodys(store, &name, own)
        {
            let _ = remove_tree(store, &name);
        }
    }
}

/// Whether a name is one of an overlay that has not got its own yet.
pub(super) fn is_restoring(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(SUFFIX.as_bytes())
}

/// If nobody is at work there: what keeps others away while it is removed, if there is a lock.
fn nobodys(store: BorrowedFd<'_>, name: &OsStr, own: &OsStr) -> Option<Option<Flock<File>>> {
    let directory = entry::open_directory(store, name).ok()?;
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&directory, "lock", flags, Mode::empty()) {
        Ok(file) => {
            let lock = Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock).ok()?;
            // Somebody else may have removed that one since, and a restore have begun in its place.
            is_there(store, name, &lock).ok()?.then_some(Some(lock))
        }
        // It was killed at its very beginning; or, where the name is another's, is there.
        Err(Errno::ENOENT) => (name == own).then_some(None),
        Err(_) => None,
    }
}

/// Whether the lock of what has this name is that one.
fn is_there(store: BorrowedFd<'_>, name: &OsStr, lock: &File) -> Result<bool, Errno> {
    let own = fstat(lock)?;
    let directory = entry::open_directory(store, name)?;
    let found = entry::look(directory.as_fd(), "lock".as_ref())?;
    Ok(found.is_some_and(|it| (it.st_dev, it.st_ino) == (own.st_dev, own.st_ino)))
}

#[cfg(test)]
mod tests;
