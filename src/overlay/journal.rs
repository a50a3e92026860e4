//! The journal of a commit: which names it may have put on the host.
//!
//! Owns the file `journal` in the directory of an overlay, and removing what it names, or putting it back. While it is there no run
//! may use the overlay (`layers`): files may be the host's and the overlay's at once.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::apply::{Root, is_temporary};
use super::changes::open_host;
use super::description::{path, replace};
use super::entry;
use super::error::{OverlayError, refuse};
use super::places::is_own;
use super::remove::{heap, remove_tree};
use super::store::Kept;
use crate::config::quoted;

/// Bytes at most: a name takes as many as its directory's path has, and some more.
const MOST: u64 = 256 << 20;
/// How deep values are nested at most: ours need three.
const DEPTH: usize = 8;

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
    if text.len() as u64 >= MOST {
        return Err(refuse!(
            "cannot commit the overlay {}: it has too many changes for one commit; commit a part with \
             --only, then the rest",
            kept.id
        ));
    }
    replace(kept.directory.as_fd(), "journal", &text)
        .map_err(|error| refuse!("cannot write the journal of the overlay {}: {error}", kept.id))
}

/// Removes what an earlier commit has left on the host: copies that are in no place yet, and what was taken
/// out of its place. What was taken out before anything came there goes back: it may be the only one. Gives
/// whether there was a journal.
pub(super) fn clean_up(kept: &Kept) -> Result<bool, OverlayError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(&kept.directory, "journal", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => {
            return Err(refuse!("cannot read the journal of {}: {}", kept.id, errno.desc()));
        }
    };
    let journal = read(file).ok_or_else(|| {
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

/// What a commit has written; None: something else.
fn read(file: OwnedFd) -> Option<Journal> {
    if !is_own(file.as_fd(), SFlag::S_IFREG) {
        return None;
    }
    let mut text = Vec::new();
    File::from(file).take(MOST).read_to_end(&mut text).ok()?;
    parse(&text)
}

fn parse(text: &[u8]) -> Option<Journal> {
    let mut rest = text;
    let found: Journal = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH).ok()?;
    // Whatever has another name is nobody's to remove.
    let sound = found.0.iter().all(|(_, parent, name, place)| {
        is_temporary(OsStr::from_bytes(name)) && path(parent).is_relative() && is_name(place)
    });
    (rest.is_empty() && sound).then_some(found)
}

/// Whether it is one name, and a file's.
fn is_name(bytes: &[u8]) -> bool {
    !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0)
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

    use proptest::prelude::*;

    use super::super::apply::temporary;
    use super::*;
    use crate::overlay::Store;
    use crate::overlay::description::{Description, Note, Stamp, bytes};

    fn text(parent: &[u8], name: &[u8]) -> Vec<u8> {
        text_for(parent, name, b"place")
    }

    fn text_for(parent: &[u8], name: &[u8], place: &[u8]) -> Vec<u8> {
        let name = (0, ByteBuf::from(parent), ByteBuf::from(name), ByteBuf::from(place));
        let mut text = Vec::new();
        ciborium::into_writer(&Journal(vec![name]), &mut text).unwrap();
        text
    }

    #[test]
    fn only_names_that_a_commit_gives_are_names() {
        let own = temporary(7, 12);
        assert_eq!(parse(&text(b"a/b", own.as_bytes())).unwrap().0[0].2, own.as_bytes());
        assert!(parse(&[&text(b"a", own.as_bytes())[..], b"x"].concat()).is_none());
        assert!(parse(&text(b"/a", own.as_bytes())).is_none());
        for name in [
            &b"."[..],
            b"..",
            b"file",
            b"",
            b".sandbox-commit-0000000000000007.",
            b".sandbox-commit-0000000000000007.1/../../x",
            b".sandbox-commit-7.1",
            b".sandbox-commit-000000000000000G.1",
            b".sandbox-commit-0000000000000007.1.old",
        ] {
            assert!(parse(&text(b"a", name)).is_none(), "{}", name.escape_ascii());
        }
        for place in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(parse(&text_for(b"a", own.as_bytes(), place)).is_none());
        }
    }

    #[test]
    fn what_was_taken_out_goes_back_unless_something_has_come() {
        let base = std::env::temp_dir().join(format!("sandbox-journal-{}", std::process::id()));
        let (host, place) = (base.join("host"), base.join("store"));
        for directory in [
            ".sandbox-commit-0000000000000001.0.old",
            ".sandbox-commit-0000000000000001.1.old",
            "two",
        ] {
            std::fs::create_dir_all(host.join(directory)).unwrap();
            std::fs::write(host.join(directory).join("f"), directory).unwrap();
        }
        std::fs::write(host.join(".sandbox-commit-0000000000000001.0"), "new").unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(&place).unwrap();
        let store = Store::open(Some(&place), true).unwrap().unwrap();
        let directory = store.make_entry("id").unwrap();
        let note = Note { path: bytes(&host), scaffold: Vec::new() };
        let start = Stamp { seconds: 1, nanoseconds: 0 };
        let description = Description {
            overlays: vec![bytes(&host)],
            starts: vec![start],
            layers: vec![note],
            saved: None,
            ids: None,
        };
        let kept = Kept { id: "id".into(), path: place.join("id"), store, directory, description };
        let name = |text: &str| bytes(Path::new(text));
        let names = vec![
            (0, name(""), name(".sandbox-commit-0000000000000001.0"), name("one")),
            (0, name(""), name(".sandbox-commit-0000000000000001.1"), name("two")),
        ];
        write(&kept, names).unwrap();
        assert!(clean_up(&kept).unwrap());
        let mut left: Vec<_> =
            std::fs::read_dir(&host).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["one", "two"]);
        let read = |name| std::fs::read_to_string(host.join(name)).unwrap();
        assert_eq!(read("one/f"), ".sandbox-commit-0000000000000001.0.old");
        assert_eq!(read("two/f"), "two");
        std::fs::remove_dir_all(base).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_names(name: Vec<u8>, digits in 0..4usize) {
            let name = [&b".sandbox-commit-0000000000000007."[..9 * digits], &name].concat();
            let plain = !name.contains(&b'/') && name.starts_with(b".sandbox-commit-");
            prop_assert!(plain || parse(&text(b"", &name)).is_none());
        }
    }
}
