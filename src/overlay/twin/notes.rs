//! What was made in a twin: written down before a guest sees it, read when it is gathered.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::super::description::{Stamp, bytes, path, replace};
use crate::sys::errno_of;

/// The first line of the file.
const HEAD: &[u8] = b"sandbox twin 1\n";
/// How deep values are nested at most.
const DEPTH: usize = 8;

/// All that is noted of one twin. A directory comes before what is in it; the first note is about the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Notes {
    /// The directory that it is of.
    pub(super) lower: ByteBuf,
    /// The device that files of the twin are on.
    pub(super) device: u64,
    pub(super) all: Vec<Noted>,
}

/// One name of the directory that the twin is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Noted {
    /// The note of the directory that it is in.
    #[serde(rename = "p")]
    pub(super) parent: u32,
    #[serde(rename = "n")]
    name: ByteBuf,
    #[serde(rename = "k")]
    pub(super) kind: Made,
    /// Of what was made: its inode, when it was made, when it was changed last.
    #[serde(rename = "i")]
    pub(super) inode: u64,
    #[serde(rename = "b")]
    pub(super) born: Stamp,
    #[serde(rename = "c")]
    pub(super) changed: Stamp,
    /// The owner does not exist inside, so that it could not be given one.
    #[serde(rename = "f")]
    pub(super) foreign: bool,
}

/// What was made for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Made {
    /// Nothing: the layer has something else there, or removes it.
    Covered,
    /// Nothing: it cannot be shown.
    Nothing,
    /// A directory with the same names.
    Directory,
    /// A directory without them: something is mounted there, or it is closed to the user.
    Empty,
    /// A file of the same size, without content.
    File,
    /// A link, pipe, socket or device.
    Other,
}

impl Noted {
    /// Of a name for which nothing was made yet.
    pub(super) fn new(parent: u32, name: &OsStr, kind: Made) -> Noted {
        let never = Stamp { seconds: 0, nanoseconds: 0 };
        let name = bytes(Path::new(name));
        Noted { parent, name, kind, inode: 0, born: never, changed: never, foreign: false }
    }

    pub(super) fn name(&self) -> OsString {
        OsString::from_vec(self.name.to_vec())
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.kind, Made::Directory | Made::Empty)
    }
}

impl Notes {
    pub(super) fn new(lower: &Path, device: u64) -> Notes {
        Notes { lower: bytes(lower), device, all: Vec::new() }
    }

    pub(super) fn lower(&self) -> PathBuf {
        path(&self.lower)
    }

    /// Adds a note, and gives its number.
    pub(super) fn add(&mut self, noted: Noted) -> u32 {
        self.all.push(noted);
        // (Each takes an inode and far more than a byte; u32::MAX of them do not fit into memory.)
        (self.all.len() - 1) as u32
    }

    /// Where something is, below the directory.
    pub(super) fn path_of(&self, number: u32) -> PathBuf {
        let mut names = Vec::new();
        let mut at = number;
        while at != 0 {
            let Some(noted) = self.all.get(at as usize) else { break };
            names.push(OsStr::from_bytes(&noted.name).to_owned());
            at = noted.parent;
        }
        names.iter().rev().collect()
    }

    /// Writes them in place of the ones that are there.
    pub(super) fn write(&self, directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let mut text = HEAD.to_vec();
        // Writing to memory does not fail.
        let written = ciborium::into_writer(self, &mut text);
        debug_assert!(written.is_ok());
        replace(directory, name, &text).map_err(|error| errno_of(&error))
    }

    /// Reads them.
    ///
    /// # Errors
    /// EBADMSG: they are damaged, or of another version.
    pub(super) fn read(directory: BorrowedFd<'_>, name: &str) -> Result<Notes, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut text = Vec::new();
        let mut file = File::from(openat(directory, name, flags, Mode::empty())?);
        file.read_to_end(&mut text).map_err(|error| errno_of(&error))?;
        Notes::parse(&text).ok_or(Errno::EBADMSG)
    }

    fn parse(text: &[u8]) -> Option<Notes> {
        let mut rest = text.strip_prefix(HEAD)?;
        let notes: Notes = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH).ok()?;
        let in_order = |(at, noted): (usize, &Noted)| at == 0 || (noted.parent as usize) < at;
        let sound = rest.is_empty() && !notes.all.is_empty();
        (sound && notes.all.iter().enumerate().all(in_order)).then_some(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written_or_not_at_all() {
        let mut notes = Notes::new(Path::new("/a\u{ff}"), 7);
        notes.add(Noted::new(0, OsStr::new(""), Made::Directory));
        let inner = notes.add(Noted::new(0, OsStr::from_bytes(b"d\xff"), Made::Directory));
        let file = notes.add(Noted { inode: 9, ..Noted::new(inner, OsStr::new("f"), Made::File) });
        assert_eq!(notes.path_of(file), Path::new(OsStr::from_bytes(b"d\xff/f")));
        assert_eq!(notes.path_of(0), Path::new(""));
        let mut text = HEAD.to_vec();
        ciborium::into_writer(&notes, &mut text).unwrap();
        assert_eq!(Notes::parse(&text), Some(notes.clone()));
        assert_eq!(Notes::parse(&text[..text.len() - 1]), None);
        assert_eq!(Notes::parse(&[&text[..], b"x"].concat()), None);
        notes.all[1].parent = 2;
        let mut circle = HEAD.to_vec();
        ciborium::into_writer(&notes, &mut circle).unwrap();
        assert_eq!(Notes::parse(&circle), None);
    }
}
