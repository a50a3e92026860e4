//! What is written down about an overlay, beside its layers.
//!
//! Owns the file `description`: CBOR behind a line that names the form and its version, so that a later
//! version is refused by name. Replaced as a whole.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::config::{IdRange, Identity, Root, RunSpec};

/// The first line of the file, without its version.
const MAGIC: &str = "sandbox overlay ";
const VERSION: u32 = 1;
/// Bytes at most: a layer takes a hundred or so, and there are at most as many as mounts.
const MOST: u64 = 64 << 20;
/// How deep values are nested at most: ours need four.
const DEPTH: usize = 8;

/// A moment of the clock that stamps files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

/// The whole description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    /// The directories of `--overlay`, in ascending order.
    pub(super) overlays: Vec<ByteBuf>,
    /// When each run with it began, the first one first. What the host changed before a run began, that
    /// run has seen.
    pub(super) starts: Vec<Stamp>,
    /// The layers; the one at place N is in the directory `layers/N`.
    pub(super) layers: Vec<Note>,
    /// The mark of the image that holds all that is in it, if no run has used it since ([`super::saving`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) saved: Option<ByteBuf>,
    /// Its files may be of others: subordinate ids of the user's (`--root=sub-ids`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ids: Option<Ids>,
}

/// Maps of a user namespace, the lines of a user namespace's uid_map and gid_map: first id inside, first id outside,
/// count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    users: Vec<(u32, u32, u32)>,
    groups: Vec<(u32, u32, u32)>,
}

impl Ids {
    /// Those of a run, if its guests are more users than one, who are others outside.
    pub(super) fn of(spec: &RunSpec) -> Option<Ids> {
        let lines = |map: &[IdRange]| {
            map.iter().map(|it| (it.inside, it.outside, it.count)).collect::<Vec<_>>()
        };
        let Identity { uid_map, gid_map, .. } = &spec.identity;
        let is_mapped = spec.root == Root::Mapped;
        is_mapped.then(|| Ids { users: lines(uid_map), groups: lines(gid_map) })
    }

    /// Why a run with the ids `now` cannot go on with what was made with those `before`.
    pub(super) fn difference(before: Option<&Ids>, now: Option<&Ids>) -> Option<String> {
        let how = |ids: Option<&Ids>| if ids.is_some() { "with" } else { "without" };
        match (before, now) {
            _ if before == now => None,
            (Some(_), Some(_)) => {
                Some("your subordinate ids were others (/etc/subuid, /etc/subgid)".to_owned())
            }
            _ => Some(format!(
                "it was made {} --root=sub-ids, and this run is {}",
                how(before),
                how(now)
            )),
        }
    }

    /// As the maps of a namespace: users, and groups.
    pub fn maps(&self) -> (Vec<IdRange>, Vec<IdRange>) {
        let range = |&(inside, outside, count): &_| IdRange { inside, outside, count };
        (self.users.iter().map(range).collect(), self.groups.iter().map(range).collect())
    }
}

/// What is written down about a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    /// The directory of the host that it changes.
    pub(super) path: ByteBuf,
    /// Directories that were made in it beforehand, below `path`: their owners do not exist in the run's
    /// user namespace, so the kernel could not have made them. Their attributes mean nothing.
    pub(super) scaffold: Vec<ByteBuf>,
}

impl Note {
    pub(super) fn path(&self) -> PathBuf {
        path(&self.path)
    }
}

pub(super) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

pub(super) fn bytes(path: &Path) -> ByteBuf {
    ByteBuf::from(path.as_os_str().as_bytes())
}

impl Description {
    /// Reads it in the directory of an overlay. An error is the second half of a sentence.
    pub(super) fn read(directory: BorrowedFd<'_>) -> Result<Description, String> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(directory, "description", flags, Mode::empty())
            .map_err(|errno| format!("its description cannot be read ({})", errno.desc()))?;
        let mut text = Vec::new();
        let read = File::from(file).take(MOST).read_to_end(&mut text);
        read.map_err(|error| format!("its description cannot be read ({error})"))?;
        Description::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<Description, String> {
        let damaged = || "its description is damaged".to_owned();
        let end = text.iter().take(64).position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let line = std::str::from_utf8(&text[..end]).map_err(|_| damaged())?;
        match line.strip_prefix(MAGIC).map(str::parse::<u32>) {
            Some(Ok(VERSION)) => {}
            Some(Ok(other)) => {
                return Err(format!(
                    "it has the form {other}, and this version of sandbox knows {VERSION}"
                ));
            }
            _ => return Err(damaged()),
        }
        let mut rest = &text[end + 1..];
        let found: Description = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH)
            .map_err(|_| damaged())?;
        let plain = |note: &Note| {
            note.path().is_absolute() && note.scaffold.iter().all(|it| path(it).is_relative())
        };
        let sound = rest.is_empty() && !found.starts.is_empty() && found.layers.iter().all(plain);
        if sound { Ok(found) } else { Err(damaged()) }
    }

    fn text(&self) -> Vec<u8> {
        let mut text = format!("{MAGIC}{VERSION}\n").into_bytes();
        // Writing to memory does not fail, and nothing in it is of a kind that CBOR has not.
        let written = ciborium::into_writer(self, &mut text);
        debug_assert!(written.is_ok());
        text
    }

    /// Writes it in place of the one that is there.
    pub(super) fn write(&self, directory: BorrowedFd<'_>) -> std::io::Result<()> {
        replace(directory, "description", &self.text())
    }
}

/// Writes a file as a whole: it is the old one or the new one, whatever happens.
pub(super) fn replace(
    directory: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
) -> std::io::Result<()> {
    let new = format!("{name}.new");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let mut file = File::from(openat(directory, new.as_str(), flags | OFlag::O_CLOEXEC, mode)?);
    file.write_all(content)?;
    file.sync_all()?;
    Ok(renameat(directory, new.as_str(), directory, name)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn description() -> Description {
        Description {
            overlays: vec![ByteBuf::from(*b"/a\xff")],
            starts: vec![Stamp { seconds: 7, nanoseconds: 8 }],
            layers: vec![Note {
                path: ByteBuf::from(*b"/a\xff"),
                scaffold: vec![ByteBuf::from(*b""), ByteBuf::from(*b"b/c")],
            }],
            saved: None,
            ids: None,
        }
    }

    #[test]
    fn it_reads_what_it_has_written_and_nothing_else() {
        let text = description().text();
        assert_eq!(Description::parse(&text), Ok(description()));
        let saved = Description { saved: Some(ByteBuf::from(*b"7")), ..description() };
        assert_eq!(Description::parse(&saved.text()), Ok(saved));
        let lines = vec![(0, 1000, 1), (1, 100_000, 65_536)];
        let ids = Some(Ids { users: lines.clone(), groups: lines });
        let mapped = Description { ids, ..description() };
        assert_eq!(Description::parse(&mapped.text()), Ok(mapped));
        assert!(Description::parse(&text[..text.len() - 1]).is_err());
        assert!(Description::parse(&[&text[..], b"x"].concat()).is_err());
        let later = [b"sandbox overlay 2\n", &text[18..]].concat();
        let error = Description::parse(&later).unwrap_err();
        assert!(error.contains("form 2") && error.contains("knows 1"), "{error}");
        let relative = Description {
            layers: vec![Note { path: ByteBuf::from(*b"a"), scaffold: Vec::new() }],
            ..description()
        };
        assert!(Description::parse(&relative.text()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_an_error(text: Vec<u8>, head: bool) {
            let text = if head { [b"sandbox overlay 1\n", &text[..]].concat() } else { text };
            prop_assert!(Description::parse(&text).is_err());
        }
    }
}
