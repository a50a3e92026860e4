//! Which directories are stores: no guest may see one, and nothing else is taken for one.
//!
//! Owns the places where a store is without being named, and the list of those that were named:
//!
//! ```text
//! $XDG_STATE_HOME/sandbox/      or ~/.local/state/sandbox/; no guest sees it
//!   overlays/                   the usual store
//!   overlay-places              the stores that --overlay-dir has named, and which directories they were
//! ```
//!
//! A guest may move a directory that lies above a store, and put another one in its place: that one is not the
//! store of the list, since its inode was born at another time.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, Uid, User, eaccess};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::description::{bytes, path, replace};
use super::error::{OverlayError, refuse};
use super::store::{Store, directory_builder};
use crate::config::quoted;

/// The list, and its first line.
const LIST: &str = "overlay-places";
const MAGIC: &[u8] = b"sandbox overlay-places 1\n";
/// Bytes of it at most.
const MOST: u64 = 4 << 20;
/// How deep values are nested at most: ours need three.
const DEPTH: usize = 8;
/// With more places than these, those that are gone are forgotten.
const MANY: usize = 256;

/// A store that was named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    path: ByteBuf,
    inode: u64,
    /// When the inode was made, in nanoseconds; 0 where its file system does not know.
    born: u64,
}

impl Listed {
    fn of(path: &Path, found: &Metadata) -> Listed {
        let born = found.created().ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|it| u64::try_from(it.as_nanos()).ok()).unwrap_or(0);
        Listed { path: bytes(path), inode: found.ino(), born }
    }

    /// Where it is, if it is still there.
    fn place(&self) -> Option<PathBuf> {
        let place = path(&self.path);
        let found = place.symlink_metadata().ok()?;
        (found.is_dir() && Listed::of(&place, &found) == *self).then_some(place)
    }
}

/// Where sandboxes of this user keep what outlives them, as the environment has it: the first one counts, the
/// other one is what it would be without XDG_STATE_HOME.
fn named_states() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let home = variable("HOME").map(|home| home.join(".local/state"));
    let both = variable("XDG_STATE_HOME").into_iter().chain(home);
    let mut states: Vec<PathBuf> = both.map(|state| state.join("sandbox")).collect();
    states.dedup();
    states
}

/// Likewise, and what it would be without HOME.
fn states() -> Vec<PathBuf> {
    // (Whoever keeps the accounts may be far away.)
    static OF_ACCOUNT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let of_account = OF_ACCOUNT.get_or_init(|| {
        let account = User::from_uid(Uid::effective()).ok().flatten();
        account.map(|user| user.dir.join(".local/state/sandbox"))
    });
    let mut states = named_states();
    states.extend(of_account.clone());
    states.dedup();
    states
}

/// The usual store.
pub(super) fn default_place() -> Result<PathBuf, OverlayError> {
    let state = named_states().into_iter().next().ok_or_else(|| {
        refuse!(
            "cannot tell where overlays are kept: neither XDG_STATE_HOME nor HOME names a \
             directory; name one with --overlay-dir"
        )
    })?;
    Ok(state.join("overlays"))
}

/// The directories that no guest may see, whether they can be used as stores or not. With `make` the usual
/// one is made, where that is possible, so that no guest can make it.
pub fn hidden_places(make: bool) -> Vec<PathBuf> {
    if make {
        make_places();
    }
    let mut hidden = Vec::new();
    for state in states() {
        let below = [state.join("overlays"), state];
        // Either may be a link that leads elsewhere.
        hidden.extend(below.iter().filter_map(|it| nearest(it)));
    }
    hidden.extend(listed().iter().filter_map(Listed::place));
    hidden.sort();
    hidden.dedup();
    hidden
}

/// Where a path leads; or what is no directory on the way, which a guest could replace by one.
fn nearest(place: &Path) -> Option<PathBuf> {
    if let Ok(real) = place.canonicalize() {
        return Some(real);
    }
    let there = place.ancestors().find_map(|above| above.canonicalize().ok())?;
    there.is_file().then_some(there)
}

fn make_places() {
    for state in named_states() {
        let place = state.join("overlays");
        let Some(there) = place.ancestors().find(|above| above.exists()) else { continue };
        // A home that does not exist is not made.
        let possible = there != Path::new("/") && eaccess(there, AccessFlags::W_OK).is_ok();
        if there != place && possible {
            // Where it cannot be made now, no guest can make it either, unless it is given rights first.
            let _ = directory_builder().create(&place);
        }
    }
}

/// Whether a usual place that is missing would be made in this directory, or below it.
pub fn is_above_places(directory: &Path) -> bool {
    let real = |place: &PathBuf| place.ancestors().find_map(|above| above.canonicalize().ok());
    named_states().iter().filter_map(real).any(|there| there.starts_with(directory))
}

/// Every store that is known: the usual ones, and those that were named.
pub(super) fn stores() -> Vec<PathBuf> {
    let usual = states().into_iter().filter_map(|it| it.join("overlays").canonicalize().ok());
    let mut stores: Vec<PathBuf> = usual.collect();
    stores.extend(listed().iter().filter_map(Listed::place));
    stores.sort();
    stores.dedup();
    stores
}

/// Writes down a store that was named, so that later runs hide it and later verbs know it.
///
/// # Errors
/// There is a list, and it cannot be written.
pub(super) fn remember(store: &Store) -> Result<(), OverlayError> {
    let fail = |error: &dyn std::fmt::Display| {
        refuse!(
            "cannot write down that overlays are kept in {}: {error}; leave --overlay-dir away",
            quoted(&store.path)
        )
    };
    let found = store.directory.try_clone().and_then(|it| File::from(it).metadata());
    let new = Listed::of(&store.path, &found.map_err(|error| fail(&error))?);
    make_places();
    for state in named_states() {
        // Where there is no such directory, nobody can tell later.
        let Ok(directory) = open_state(&state) else { continue };
        if state.join("overlays").canonicalize().is_ok_and(|usual| usual == store.path) {
            continue;
        }
        let lock = File::from(directory.try_clone().map_err(|error| fail(&error))?);
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| fail(&errno.desc()))?;
        let mut all = read(directory.as_fd()).unwrap_or_default();
        if all.contains(&new) {
            continue;
        }
        all.retain(|it| it.path != new.path);
        if all.len() >= MANY {
            all.retain(|it| it.place().is_some());
        }
        all.push(new.clone());
        let mut text = MAGIC.to_vec();
        // Writing to memory does not fail.
        let written = ciborium::into_writer(&all, &mut text);
        debug_assert!(written.is_ok());
        replace(directory.as_fd(), LIST, &text).map_err(|error| fail(&error))?;
    }
    Ok(())
}

fn listed() -> Vec<Listed> {
    let mut all = Vec::new();
    for state in states() {
        let found = open_state(&state).ok().and_then(|directory| read(directory.as_fd()));
        all.extend(found.unwrap_or_default());
    }
    all
}

/// The directory of the list, if nobody else can write in it.
fn open_state(state: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let directory = open(state, flags, Mode::empty())?;
    if is_own(directory.as_fd(), SFlag::S_IFDIR) { Ok(directory) } else { Err(Errno::EPERM) }
}

/// Of this kind, and nobody else can write to it.
pub(super) fn is_own(fd: BorrowedFd<'_>, kind: SFlag) -> bool {
    fstat(fd).is_ok_and(|stat| {
        stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
            && stat.st_uid == Uid::effective().as_raw()
            && stat.st_mode & 0o022 == 0
    })
}

/// The list in a directory, if there is one that can be understood.
fn read(directory: BorrowedFd<'_>) -> Option<Vec<Listed>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(directory, LIST, flags, Mode::empty()).ok()?;
    if !is_own(file.as_fd(), SFlag::S_IFREG) {
        return None;
    }
    let mut text = Vec::new();
    File::from(file).take(MOST).read_to_end(&mut text).ok()?;
    let mut rest = text.strip_prefix(MAGIC)?;
    let found: Vec<Listed> =
        ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH).ok()?;
    let sound = rest.is_empty() && found.iter().all(|it| path(&it.path).is_absolute());
    sound.then_some(found)
}

#[cfg(test)]
mod tests {
    use nix::fcntl::AT_FDCWD;

    use super::*;

    #[test]
    fn another_directory_in_the_place_of_a_store_is_none() {
        let base = std::env::temp_dir().join(format!("sandbox-places-{}", std::process::id()));
        let place = base.join("above/store");
        std::fs::create_dir_all(&place).unwrap();
        let listed = Listed::of(&place, &place.symlink_metadata().unwrap());
        assert_eq!(listed.place().as_deref(), Some(&*place));
        std::fs::rename(base.join("above"), base.join("moved")).unwrap();
        assert_eq!(listed.place(), None);
        std::fs::create_dir_all(&place).unwrap();
        assert_eq!(listed.place(), None);
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_list_is_read_as_a_whole_and_only_if_it_is_ours_alone() {
        use std::os::unix::fs::PermissionsExt;
        let base = std::env::temp_dir().join(format!("sandbox-list-{}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        let directory = openat(AT_FDCWD, &base, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(read(directory.as_fd()), None);
        let all = vec![Listed { path: ByteBuf::from(*b"/a\xff"), inode: 7, born: 8 }];
        let mut text = MAGIC.to_vec();
        ciborium::into_writer(&all, &mut text).unwrap();
        replace(directory.as_fd(), LIST, &text).unwrap();
        assert_eq!(read(directory.as_fd()), Some(all));
        let mode = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(base.join(LIST), mode).unwrap();
        assert_eq!(read(directory.as_fd()), None);
        replace(directory.as_fd(), LIST, &text[..text.len() - 1]).unwrap();
        assert_eq!(read(directory.as_fd()), None);
        std::fs::remove_dir_all(base).unwrap();
    }
}
