//! What an image says of file systems that are the sandbox's own, and of the layers of overlays.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::Object;

/// Overlays of a run: what it has changed of the host's directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The number of the image: 16 random bytes. An overlay that is kept on the host has it as well ([`Overlay::mark`]),
    /// if the save has ended its run and no other has used it since.
    pub number: ByteBuf,
    /// The directories of `--overlay`.
    pub directories: Vec<ByteBuf>,
    /// When its runs began: seconds and nanoseconds of the host's clock.
    pub starts: Vec<(i64, i64)>,
    /// Its layers.
    pub layers: Vec<Layer>,
}

impl Overlay {
    /// What an overlay that is kept has of the image whose state is written like this: its number, and the SHA-256
    /// of that. So what is in the layers cannot be taken out of the image and the number left in. There, the sum of
    /// the content of files follows it ([`crate::save::content_sum`]).
    pub fn mark(&self, state: &[u8]) -> Vec<u8> {
        [&self.number[..], &Sha256::digest(state)].concat()
    }

    /// The objects whose content is that of files in the layers.
    pub fn objects(&self) -> HashSet<Object> {
        let entries = self.layers.iter().flat_map(|layer| &layer.tree.entries);
        entries
            .filter_map(|entry| match entry.kind {
                TreeKind::File { object, .. } => Some(object),
                _ => None,
            })
            .collect()
    }
}

/// A layer of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// If the run used it: whether it showed a copy of names alone.
    pub skeleton: Option<bool>,
    /// Directories in it that were made beforehand: their attributes mean nothing.
    pub scaffold: Vec<ByteBuf>,
    /// What is in it; the target is the directory that it changes.
    pub tree: Tree,
}

/// Content of a file system in memory, or of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Where it is mounted.
    pub target: ByteBuf,
    /// Its files; a directory comes before what is in it.
    pub entries: Vec<TreeEntry>,
}

/// A file in a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Below the target, without a slash in front; empty: the root.
    pub path: ByteBuf,
    /// st_mode.
    pub mode: u32,
    /// Owner, as the guest numbers it.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Times of access and change of content, nanoseconds.
    pub times: [i64; 2],
    /// Extended attributes.
    pub attributes: Vec<(ByteBuf, ByteBuf)>,
    /// What kind.
    pub kind: TreeKind,
}

/// What a [`TreeEntry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeKind {
    /// A directory.
    Directory,
    /// A file with content.
    File {
        /// Its content.
        object: Object,
        /// Bytes.
        size: u64,
    },
    /// A file with little content, or none.
    Small {
        /// Its content; zeros follow.
        content: ByteBuf,
        /// Bytes.
        size: u64,
    },
    /// Another name of the file at this path in the same tree.
    Link(ByteBuf),
    /// A symbolic link.
    Symlink(ByteBuf),
    /// A FIFO.
    Fifo,
    /// The mark that union file systems leave where a file was: a device of number 0.
    Whiteout,
    /// A unix socket; bound again by whoever holds it, left alone if nobody does.
    Socket,
}
