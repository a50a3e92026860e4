//! Whether the host has changed what an overlay changes.
//!
//! Owns that judgement: what the host had changed before a run began, that run has seen; what it changed
//! later is a conflict, if that run changed it too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;

use super::apply::{Root, Upper};
use super::changes::{Change, Kind, open_host};
use super::description::Stamp;
use super::entry::{self, Type};
use super::error::{OverlayError, refuse};
use super::store::Kept;
use crate::config::quoted;

/// The paths among these that the host has changed since the run that changed them began.
pub(super) fn conflicts(kept: &Kept, chosen: &[Change]) -> Result<Vec<PathBuf>, OverlayError> {
    let mut found = Vec::new();
    let mut layers: HashMap<usize, (Root, Upper)> = HashMap::new();
    for change in chosen.iter().filter(|change| change.before.is_some()) {
        // Its names come and go, and that changes its stamp too.
        if (change.kind, change.now) == (Kind::Attributes, Some(Type::Directory)) {
            continue;
        }
        let fail =
            |errno: Errno| refuse!("cannot look at {}: {}", quoted(&change.path), errno.desc());
        let (root, upper) = match layers.entry(change.layer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let place = kept.description.layers[change.layer].path();
                let root = Root(open_host(&place).map_err(fail)?);
                new.insert((root, Upper::new(kept.layer(change.layer, "upper")?)))
            }
        };
        let Some(name) = change.relative.file_name() else { continue };
        let parent = change.relative.parent().unwrap_or(Path::new(""));
        let since = upper
            .open(parent)
            .map_or(kept.description.starts[0], |directory| since(kept, directory.as_fd(), name));
        let directory = root.open(parent).map_err(fail)?;
        if is_newer(directory.as_fd(), name, since).map_err(fail)? {
            found.push(change.path.clone());
        }
    }
    Ok(found)
}

/// When the run began in which an entry of a layer was made. What the host had changed before, that run
/// has seen.
fn since(kept: &Kept, directory: BorrowedFd<'_>, name: &OsStr) -> Stamp {
    let starts = &kept.description.starts;
    let born = || {
        // statx(2), stx_btime; not every file system has it.
        let place = File::from(entry::open_path(directory, name).ok()?);
        let born = place.metadata().ok()?.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let seconds = i64::try_from(born.as_secs()).ok()?;
        Some(Stamp { seconds, nanoseconds: i64::from(born.subsec_nanos()) })
    };
    let run = born().and_then(|born| starts.iter().rev().find(|start| **start <= born));
    run.copied().unwrap_or(starts[0])
}

/// Whether something, or anything in it, was changed later than this.
fn is_newer(directory: BorrowedFd<'_>, name: &OsStr, since: Stamp) -> Result<bool, Errno> {
    let Some(stat) = entry::look(directory, name)? else { return Ok(false) };
    if entry::changed(&stat) > since {
        return Ok(true);
    }
    if Type::of(&stat) != Type::Directory {
        return Ok(false);
    }
    let inside = match entry::open_directory(directory, name) {
        Ok(inside) => inside,
        // What cannot be read cannot be removed either; that is said when it is tried.
        Err(Errno::EACCES) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    for name in entry::names(inside.as_fd())? {
        if is_newer(inside.as_fd(), &name, since)? {
            return Ok(true);
        }
    }
    Ok(false)
}
