//! Whether the host has changed what an overlay changes.
//!
//! Owns that judgement: what the host had changed before a run began, that run has seen, unless an earlier
//! one had covered it; what it changed later is a conflict, if that run changed it too.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use std::vec::IntoIter;

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::apply::{Root, Upper};
use super::changes::{Change, Kind, open_host};
use super::description::Stamp;
use super::entry::{self, Type};
use super::error::{OverlayError, refuse};
use super::store::Kept;
use crate::config::quoted;

/// The paths among these that the host has changed since the run that changed them began.
pub(super) fn conflicts(kept: &Kept, chosen: &[Change]) -> Result<Vec<PathBuf>, OverlayError> {
    let mut uppers: HashMap<usize, Upper> = HashMap::new();
    judge(kept, chosen, &BTreeSet::new(), &mut |change, name| {
        let upper = match uppers.entry(change.layer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Upper::new(kept.layer(change.layer, "upper")?)),
        };
        let directory = upper.open(change.relative.parent().unwrap_or(Path::new("")));
        Ok(directory.map_or(kept.description.starts[0], |it| since(kept, it.as_fd(), name)))
    })
}

/// The paths among these that the host has changed since `began`, when the commit looked at them first: making
/// its copies can take long. `linked` has device and inode of files of the host that it has given another
/// name, which changes their stamps.
pub(super) fn late_conflicts(
    kept: &Kept,
    chosen: &[Change],
    began: Stamp,
    linked: &BTreeSet<(u64, u64)>,
) -> Result<Vec<PathBuf>, OverlayError> {
    judge(kept, chosen, linked, &mut |_, _| Ok(began))
}

/// The paths among these that the host has changed since a moment that is another one for each.
fn judge(
    kept: &Kept,
    chosen: &[Change],
    linked: &BTreeSet<(u64, u64)>,
    since: &mut dyn FnMut(&Change, &OsStr) -> Result<Stamp, OverlayError>,
) -> Result<Vec<PathBuf>, OverlayError> {
    let mut found = Vec::new();
    let mut roots: HashMap<usize, Root> = HashMap::new();
    // A directory that the host has not: what is new in it need not be looked for, name by name.
    let mut missing: Option<(usize, &Path)> = None;
    for change in chosen {
        // Its names come and go, and that changes its stamp too.
        if (change.kind, change.now) == (Kind::Attributes, Some(Type::Directory)) {
            continue;
        }
        let fail =
            |errno: Errno| refuse!("cannot look at {}: {}", quoted(&change.path), errno.desc());
        let Some(name) = change.relative.file_name() else { continue };
        if let (Some((layer, above)), None) = (missing, change.before)
            && layer == change.layer
            && change.relative.starts_with(above)
        {
            continue;
        }
        let root = match roots.entry(change.layer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let place = kept.description.layers[change.layer].path();
                new.insert(Root(open_host(&place).map_err(fail)?))
            }
        };
        let above = change.relative.parent().unwrap_or(Path::new(""));
        let directory = match root.open(above) {
            Ok(directory) => directory,
            // It is in a directory that is new itself.
            Err(errno) if change.before.is_none() => {
                missing = (errno == Errno::ENOENT).then_some((change.layer, above));
                continue;
            }
            Err(errno) => return Err(fail(errno)),
        };
        let newer = match change.before {
            // There was nothing when the overlay was compared.
            None => entry::look(directory.as_fd(), name).map_err(fail)?.is_some(),
            Some(_) => {
                is_newer(directory.as_fd(), name, since(change, name)?, linked).map_err(fail)?
            }
        };
        if newer {
            found.push(change.path.clone());
        }
    }
    Ok(found)
}

/// From when on a change of the host's was not seen by the runs that changed an entry of a layer.
///
/// What a run has copied up, and the kernel has marked so, is what the host had then, and it was not covered
/// before. So the start of that run counts. Anything else that was made in a later run (a new file, a removal) may
/// have taken the place of what an earlier run had put over the host's: then nobody saw what the host did in
/// between, and the start of the first run counts. So it does for copies without a mark: of a file that had
/// several names, and from an image.
fn since(kept: &Kept, directory: BorrowedFd<'_>, name: &OsStr) -> Stamp {
    let starts = &kept.description.starts;
    let born = || {
        let place = File::from(entry::open_path(directory, name).ok()?);
        // overlayfs marks directories and files with one name that it copies up (ovl_do_copy_up()), even where it
        // cannot tell from what (ovl_set_origin_fh()).
        entry::own_attribute(place.as_fd(), c"user.overlay.origin")?;
        // statx(2), stx_btime; not every file system has it.
        let born = place.metadata().ok()?.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let seconds = i64::try_from(born.as_secs()).ok()?;
        Some(Stamp { seconds, nanoseconds: i64::from(born.subsec_nanos()) })
    };
    let run = born().and_then(|born| starts.iter().rev().find(|start| **start <= born));
    run.copied().unwrap_or(starts[0])
}

/// Whether something, or anything in it, was changed later than this.
fn is_newer(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    since: Stamp,
    linked: &BTreeSet<(u64, u64)>,
) -> Result<bool, Errno> {
    let newer = |stat: &FileStat| {
        entry::changed(stat) > since && !linked.contains(&(stat.st_dev, stat.st_ino))
    };
    let Some(stat) = entry::look(directory, name)? else { return Ok(false) };
    if newer(&stat) {
        return Ok(true);
    }
    // The directories that are being looked into, and what of them is to come: they can be nested more
    // deeply than calls can.
    let mut stack: Vec<(OwnedFd, IntoIter<OsString>)> = Vec::new();
    let look_into = |parent: BorrowedFd<'_>, name: &OsStr, stat: &FileStat| {
        if Type::of(stat) != Type::Directory {
            return Ok(None);
        }
        match entry::open_directory(parent, name) {
            Ok(inside) => {
                let names = entry::names(inside.as_fd())?.into_iter();
                Ok(Some((inside, names)))
            }
            // What cannot be read cannot be removed either; that is said when it is tried.
            Err(Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno),
        }
    };
    stack.extend(look_into(directory, name, &stat)?);
    while let Some((inside, names)) = stack.last_mut() {
        let Some(name) = names.next() else {
            stack.pop();
            continue;
        };
        let Some(stat) = entry::look(inside.as_fd(), &name)? else { continue };
        if newer(&stat) {
            return Ok(true);
        }
        let below = look_into(inside.as_fd(), &name, &stat)?;
        stack.extend(below);
    }
    Ok(false)
}
