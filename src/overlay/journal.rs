//! The journal of a commit: which names it may have put on the host.
//!
//! Owns the file `journal` in the directory of an overlay, and removing what it names. While it is there no run
//! may use the overlay (`layers`): files may be the host's and the overlay's at once.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::apply::Root;
use super::changes::open_host;
use super::description::{path, replace};
use super::error::{OverlayError, refuse};
use super::remove::{heap, remove_tree};
use super::store::Kept;
use crate::config::quoted;

/// A name: the layer, the directory in it, and the name in that.
pub(super) type Name = (u32, ByteBuf, ByteBuf);

/// The copies that may be on the host: the layer, the directory in it, the name.
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
/// out of its place. Gives whether there was one.
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
    for (layer, parent, name) in &journal.0 {
        let root = roots.entry(*layer).or_insert_with(|| {
            let note = kept.description.layers.get(*layer as usize)?;
            open_host(&note.path()).ok().map(Root)
        });
        let Some(Ok(parent)) = root.as_ref().map(|root| root.open(&path(parent))) else { continue };
        let name = OsStr::from_bytes(name);
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
