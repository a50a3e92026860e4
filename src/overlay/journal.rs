//! The journal of a commit: which names it may have put on the host.
//!
//! Owns the file `journal` in the directory of an overlay, and removing what it names, or putting it back. While it is there no run
//! may use the overlay (`layers`): files may be the host's and the overlay's at once.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::apply::Root;
use super::changes::open_host;
use super::description::{path, replace};
use super::entry;
use super::error::{OverlayError, refuse};
use super::remove::{heap, remove_tree};
use super::store::Kept;
use crate::config::quoted;

/// A copy: the layer, the directory in it, its name in that, and the name that it is for.
pub(super) type Name = (u32, ByteBuf, ByteBuf, ByteBuf);

/// The copies that may be on the host.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Journal(Vec<Name>);

/// Writes one with these names.
pub(super) fn write(kept: &Kept, names: Vec<Name>) -> Result<(), OverlayError> {
    let mut text = Vec::new();
    let written = ciborium::into_writer(&Journal(names), &mut text);
    debug_assert!(written.is_ok());
    replace(kept.directory.as_fd(), "journal", &text)
        .map_err(|error| refuse!("cannot write the journal of the overlay {}: {error}", kept.id))
}

/// Removes what an earlier commit has left on the host: copies that are in no place yet, and what was taken
/// out of its place. What was taken out before anything came there goes back: it may be the only one. Gives
/// whether there was a journal.
pub(super) fn clean_up(kept: &Kept) -> Result<bool, OverlayError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = match openat(&kept.directory, "journal", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => {
            return Err(refuse!("cannot read the journal of {}: {}", kept.id, errno.desc()));
        }
    };
    let mut text = Vec::new();
    let read = File::from(file).read_to_end(&mut text);
    let journal = read.ok().and_then(|_| ciborium::from_reader::<Journal, _>(&text[..]).ok());
    let journal = journal.ok_or_else(|| {
        refuse!(
            "the journal of the overlay {} is damaged: remove {}, and files named .sandbox-commit-* on the \
             host",
            kept.id,
            quoted(kept.path.join("journal"))
        )
    })?;
    let mut roots: HashMap<u32, Option<Root>> = HashMap::new();
    for (layer, parent, name, place) in &journal.0 {
        let root = roots.entry(*layer).or_insert_with(|| {
            let note = kept.description.layers.get(*layer as usize)?;
            open_host(&note.path()).ok().map(Root)
        });
        let Some(Ok(parent)) = root.as_ref().map(|root| root.open(&path(parent))) else { continue };
        let (name, place) = (OsStr::from_bytes(name), OsStr::from_bytes(place));
        put_back(parent.as_fd(), &old_name(name), place).map_err(|errno| {
            refuse!(
                "cannot give {} its name {} again, which a commit has taken from it: {}",
                quoted(old_name(name)),
                quoted(place),
                errno.desc()
            )
        })?;
        for name in [name.to_owned(), old_name(name), heap(name), heap(&old_name(name))] {
            remove_tree(parent.as_fd(), &name).map_err(|errno| {
                refuse!(
                    "cannot remove {}, which a commit has put on the host: {}",
                    quoted(&name),
                    errno.desc()
                )
            })?;
        }
    }
    Ok(true)
}

/// Renames what was taken out of its place back, unless something has come there.
fn put_back(parent: BorrowedFd<'_>, old: &OsStr, place: &OsStr) -> Result<(), Errno> {
    match (entry::look(parent, old)?, entry::look(parent, place)?) {
        (Some(_), None) => renameat(parent, old, parent, place),
        _ => Ok(()),
    }
}

/// Whatever was committed is in its place on the host alone.
pub(super) fn end(kept: &Kept) -> Result<(), OverlayError> {
    unlinkat(&kept.directory, "journal", UnlinkatFlags::NoRemoveDir)
        .map_err(|errno| refuse!("cannot remove the journal of {}: {}", kept.id, errno.desc()))
}

/// Where what was in the place of a copy is until it is removed.
pub(super) fn old_name(temporary: &OsStr) -> OsString {
    let mut name = temporary.to_owned();
    name.push(".old");
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::DirBuilderExt;
    use std::path::Path;

    use super::*;
    use crate::overlay::Store;
    use crate::overlay::description::{Description, Note, Stamp, bytes};

    #[test]
    fn what_was_taken_out_goes_back_unless_something_has_come() {
        let base = std::env::temp_dir().join(format!("sandbox-journal-{}", std::process::id()));
        let (host, place) = (base.join("host"), base.join("store"));
        for directory in [".sandbox-commit-1.0.old", ".sandbox-commit-1.1.old", "two"] {
            std::fs::create_dir_all(host.join(directory)).unwrap();
            std::fs::write(host.join(directory).join("f"), directory).unwrap();
        }
        std::fs::write(host.join(".sandbox-commit-1.0"), "new").unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(&place).unwrap();
        let store = Store::open(Some(&place), true).unwrap().unwrap();
        let directory = store.make_entry("id").unwrap();
        let note = Note { path: bytes(&host), scaffold: Vec::new() };
        let start = Stamp { seconds: 1, nanoseconds: 0 };
        let description =
            Description { overlays: vec![bytes(&host)], starts: vec![start], layers: vec![note] };
        let kept = Kept { id: "id".into(), path: place.join("id"), store, directory, description };
        let name = |text: &str| bytes(Path::new(text));
        let names = vec![
            (0, name(""), name(".sandbox-commit-1.0"), name("one")),
            (0, name(""), name(".sandbox-commit-1.1"), name("two")),
        ];
        write(&kept, names).unwrap();
        assert!(clean_up(&kept).unwrap());
        let mut left: Vec<_> =
            std::fs::read_dir(&host).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["one", "two"]);
        let read = |name| std::fs::read_to_string(host.join(name)).unwrap();
        assert_eq!(read("one/f"), ".sandbox-commit-1.0.old");
        assert_eq!(read("two/f"), "two");
        std::fs::remove_dir_all(base).unwrap();
    }
}
