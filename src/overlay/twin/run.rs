//! Which runs need twins, what they cannot have with them, and their beginning and end.

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::fstatfs;

use super::super::description::{Description, path};
use super::super::entry;
use super::super::error::{OverlayError, refuse};
use super::super::layers::Layer;
use super::super::places::hidden_places;
use super::super::store::{OVERLAYFS_SUPER_MAGIC, Store};
use super::tried::Tried;
use super::{Ground, Trouble, Twins, deep, end, is_in, make};
use crate::config::{RunSpec, Without, quoted};
use crate::sentry::Features;
use crate::sys::probe::{OverlayPlaces, rehearse_overlays};

/// Why the kernel makes no overlays for a run, as far as that can be told before there are layers: the end of a
/// sentence. None: it may.
pub(in super::super) fn cause(spec: &RunSpec, store: &Store) -> Option<String> {
    if spec.without.contains(Without::OVERLAYFS) {
        return Some("--without overlayfs says so".to_owned());
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        return Some("this kernel has no overlayfs, or has not loaded it".to_owned());
    }
    let on_one = fstatfs(&store.directory)
        .is_ok_and(|stat| stat.filesystem_type().0 == OVERLAYFS_SUPER_MAGIC);
    on_one.then(|| {
        format!(
            "{} lies on an overlay itself, which cannot take another one's changes",
            quoted(&store.path)
        )
    })
}

/// The same where it has to be tried.
pub(in super::super) fn refused(store: &Store, layers: &[Layer]) -> Option<String> {
    let mut tried = Tried::read(store);
    if tried.as_ref().is_some_and(|tried| tried.has(layers)) {
        return None;
    }
    let places: Vec<OverlayPlaces> = layers
        .iter()
        .filter_map(|layer| OverlayPlaces::new(&layer.lower, &layer.upper, &layer.work))
        .collect();
    let errno = match (rehearse_overlays(&places), &mut tried) {
        (Ok(true), Some(tried)) => {
            tried.add(store.directory.as_fd(), layers);
            return None;
        }
        (Ok(_), _) => return None,
        (Err(errno), _) => errno,
    };
    let why = match errno {
        Errno::EPERM => "before Linux 5.11, and where somebody forbids it, users may not",
        Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ELOOP => "a file system takes no part in one",
        _ => "that is what it says",
    };
    Some(format!("the kernel makes no overlay of it ({}): {why}", errno.desc()))
}

/// The kernel has refused an overlay that [`refused`] had not been told of. Gives whether another run would try first.
pub(in super::super) fn doubt(store: &Store, layers: &[Layer]) -> bool {
    let Some(mut tried) = Tried::read(store).filter(|tried| tried.has(layers)) else {
        return false;
    };
    tried.doubt(store.directory.as_fd());
    true
}

/// Refuses what a run cannot have with twins, by name.
fn check(spec: &RunSpec, cause: &str) -> Result<(), OverlayError> {
    let everything = spec.overlays().iter().any(|it| it == Path::new("/"));
    let (wish, remedy) = match () {
        () if everything => ("--overlay /", "name the directories that are to change"),
        () if spec.root.is_root() => ("--overlay together with --root", "leave --root out"),
        () if spec.features.contains(Features::FAKE_SYNC) => {
            ("--overlay together with --fake-fsync", "leave --fake-fsync out")
        }
        // What is read is hashed by its name, and may lack its content then.
        () if spec.features.contains(Features::FILE_LOG) => {
            ("--overlay together with --record-files", "leave --record-files out")
        }
        () => return Ok(()),
    };
    Err(refuse!(
        "cannot use {wish} here: it takes overlayfs, and {cause}; {remedy}, or name a place on another file system \
         with --overlay-dir if that is what is in the way"
    ))
}

/// Makes a twin for each layer, and tells the layer.
pub(in super::super) fn make_all(
    (spec, cause): (&RunSpec, &str),
    directory: BorrowedFd<'_>,
    layers: &mut [Layer],
) -> Result<Twins, OverlayError> {
    check(spec, cause)?;
    let mut twins = Twins::new();
    let targets: HashSet<&Path> = spec.mounts.iter().map(|it| it.target.as_path()).collect();
    let hidden = identities(&hidden_places(false));
    for layer in layers {
        let target = layer.target.clone();
        let covered = |below: &Path| {
            let path = target.join(below);
            targets.contains(path.as_path()) || is_one_of(&hidden, &path)
        };
        let foreign = |uid, gid| !spec.gives_to(uid, gid);
        let ground = Ground { lower: &layer.lower, covered: &covered, foreign: &foreign };
        let place = layer.upper.with_file_name(super::PLACE);
        let fail = |trouble: Trouble| no_twin(&target, &trouble);
        let open = open_layer(directory, layer.number).map_err(Trouble::at(Path::new("")));
        let open = open.map_err(fail)?;
        let notes = deep(|| make(open.as_fd(), &ground)).map_err(fail)?;
        let places = (target.clone(), place.clone());
        twins.add((layer.number, open.as_fd()), places, notes).map_err(fail)?;
        layer.twin = Some(place);
    }
    Ok(twins)
}

/// Ends the twins of an overlay: those of a run that has ended, or those that one has left that was killed.
pub(in super::super) fn end_all(
    directory: BorrowedFd<'_>,
    description: &mut Description,
    twins: Option<&Twins>,
) -> Result<(), OverlayError> {
    let before = description.clone();
    for (number, note) in description.layers.iter_mut().enumerate() {
        let target = path(&note.path);
        let Ok(layer) = open_layer(directory, number) else { continue };
        // (Its place is the first thing that is made of a twin, and the last that goes.)
        if let Ok(None) = entry::look(layer.as_fd(), super::PLACE.as_ref()) {
            continue;
        }
        let filled = twins.and_then(|twins| twins.filled(number));
        deep(|| end(layer.as_fd(), note, filled.as_ref())).map_err(|trouble| {
            refuse!(
                "cannot gather what was changed in {}: {}; it is kept, and the next run or verb that uses the \
                 overlay tries again",
                quoted(target.join(&trouble.path)),
                trouble.errno.desc()
            )
        })?;
        note.scaffold.sort();
        note.scaffold.dedup();
    }
    if *description == before {
        return Ok(());
    }
    description.write(directory).map_err(|error| {
        refuse!("cannot write the description of the overlay: {error}; make room, and try again")
    })
}

/// Whether what was changed in an overlay is still to be gathered.
pub(in super::super) fn is_used(directory: BorrowedFd<'_>, description: &Description) -> bool {
    (0..description.layers.len()).any(|number| has_twin(directory, number))
}

/// Whether what was changed in one layer of it is.
pub(in super::super) fn has_twin(directory: BorrowedFd<'_>, number: usize) -> bool {
    open_layer(directory, number).is_ok_and(|layer| is_in(layer.as_fd()))
}

fn open_layer(directory: BorrowedFd<'_>, number: usize) -> Result<std::os::fd::OwnedFd, Errno> {
    let all = entry::open_directory(directory, "layers".as_ref())?;
    entry::open_directory(all.as_fd(), number.to_string().as_ref())
}

fn no_twin(target: &Path, trouble: &Trouble) -> OverlayError {
    let place = quoted(target.join(&trouble.path));
    match trouble.errno {
        Errno::EOPNOTSUPP => refuse!(
            "cannot make an overlay of {}: there is no overlayfs for it, and the file system for what changes does \
             not keep when files were made; name a directory on another one with --overlay-dir (ext4, xfs and \
             btrfs will do)",
            quoted(target)
        ),
        errno => refuse!(
            "cannot make an overlay without overlayfs: {place}: {}; name another directory with --overlay-dir, or \
             a smaller one with --overlay",
            errno.desc()
        ),
    }
}

fn identities(places: &[PathBuf]) -> HashSet<(u64, u64)> {
    let identity = |found: Metadata| (found.dev(), found.ino());
    places.iter().filter_map(|it| it.metadata().ok()).map(identity).collect()
}

/// Whether a directory is one of these: places of overlays, which no run sees.
fn is_one_of(all: &HashSet<(u64, u64)>, path: &Path) -> bool {
    !all.is_empty()
        && path.symlink_metadata().is_ok_and(|found| all.contains(&(found.dev(), found.ino())))
}
