//! The content of both sides of a change, for who shows it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::readlinkat;

use super::apply::Root;
use super::changes::{Change, open_host};
use super::entry::{self, Type};
use super::store::Kept;
use crate::sys::errno_of;

/// Bytes that are read at most.
pub const SHOWN: u64 = 4 << 20;

/// What is on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No file and no link.
    None,
    /// All of a file.
    File(Vec<u8>),
    /// Where a link leads.
    Link(Vec<u8>),
    /// It is longer than [`SHOWN`].
    Long,
    /// It cannot be read.
    Unreadable(Errno),
}

impl Kept {
    /// What the host has, and what the overlay has.
    pub fn contents(&self, change: &Change) -> (Content, Content) {
        let place = self.description.layers[change.layer].path();
        let above = change.relative.parent().unwrap_or(Path::new(""));
        let host = change.before.map(|kind| {
            let parent = open_host(&place).and_then(|root| Root(root).open(above));
            read(parent, kind, &change.relative)
        });
        let upper = change.now.map(|kind| {
            let parent = self.layer(change.layer, "upper").map_err(|_| Errno::ENOENT);
            let parent = parent.and_then(|root| Root(root).open(above));
            read(parent, kind, &change.relative)
        });
        (host.unwrap_or(Content::None), upper.unwrap_or(Content::None))
    }
}

fn read(parent: Result<OwnedFd, Errno>, kind: Type, relative: &Path) -> Content {
    let name = relative.file_name().unwrap_or_default();
    let content = parent.and_then(|parent| match kind {
        Type::Link => readlinkat(&parent, name).map(|target| Content::Link(target.into_vec())),
        Type::File => {
            let file = std::fs::File::from(entry::open_file(parent.as_fd(), name)?);
            let mut bytes = Vec::new();
            let read = file.take(SHOWN + 1).read_to_end(&mut bytes);
            read.map_err(|error| errno_of(&error))?;
            Ok(if bytes.len() as u64 > SHOWN { Content::Long } else { Content::File(bytes) })
        }
        _ => Ok(Content::None),
    });
    content.unwrap_or_else(Content::Unreadable)
}
