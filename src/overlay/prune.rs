//! Taking what has been committed out of the layers.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::apply::{PATH_MAX, Upper};
use super::entry::{self, Type};

/// What is still to be committed, in one layer.
pub(super) type Pending = BTreeSet<PathBuf>;

/// Removes everything from a layer that makes no difference to the host. What hides a whole directory of
/// the host stays as it is until nothing in it is pending, since its parts show only together.
pub(super) fn prune(upper: &mut Upper, pending: &Pending) -> Result<(), Errno> {
    let root = upper.open(Path::new(""))?;
    prune_directory(upper, root.as_fd(), Path::new(""), pending).map(drop)
}

/// Gives whether nothing is left in it.
fn prune_directory(
    upper: &mut Upper,
    directory: BorrowedFd<'_>,
    relative: &Path,
    pending: &Pending,
) -> Result<bool, Errno> {
    // What is too deep cannot have been committed.
    let deep = relative.as_os_str().len() > PATH_MAX;
    if deep || entry::is_opaque(directory) && has_below(pending, relative) {
        return Ok(false);
    }
    let mut empty = true;
    for name in entry::names(directory)? {
        let below = relative.join(&name);
        let Some(stat) = entry::look(directory, &name)? else { continue };
        let wanted = pending.contains(&below);
        let gone = match Type::of(&stat) {
            Type::Directory => {
                let inner = upper.enter(directory, &name)?;
                let emptied = prune_directory(upper, inner.as_fd(), &below, pending)?;
                emptied && !wanted && remove(directory, &name, UnlinkatFlags::RemoveDir)
            }
            _ => !wanted && remove(directory, &name, UnlinkatFlags::NoRemoveDir),
        };
        empty &= gone;
    }
    Ok(empty)
}

/// What cannot be removed makes no difference either.
fn remove(directory: BorrowedFd<'_>, name: &OsStr, flags: UnlinkatFlags) -> bool {
    unlinkat(directory, name, flags).is_ok()
}

fn has_below(pending: &Pending, relative: &Path) -> bool {
    let from = (std::ops::Bound::Included(relative.to_owned()), std::ops::Bound::Unbounded);
    pending.range(from).next().is_some_and(|first| first.starts_with(relative))
}
