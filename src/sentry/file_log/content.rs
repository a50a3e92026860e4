//! Sizes and hashes of files.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

/// The content of a file; the default is that of none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of them; `None` where it has none, cannot be read, or has too much.
    pub sha256: Option<[u8; 32]>,
}

/// More of a file is not hashed: who makes one with a hole of exabytes is not to keep anybody waiting.
const MOST: u64 = 8 << 30;
/// All files together.
const MOST_OF_ALL: u64 = 1 << 40;

/// Hashes files, so far as there is no end to it.
#[derive(Debug, Default)]
pub(super) struct Hasher {
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
    /// A file has been read.
    changed: Condvar,
    /// Nobody is to be kept waiting any more.
    stopped: AtomicBool,
}

/// Protected by `Hasher::inner`.
#[derive(Debug, Default)]
struct Inner {
    /// What files were like when they were first read; `None` while one is looked at.
    known: HashMap<Vec<u8>, Option<Content>>,
    /// Device and number of those that are just being read.
    reading: HashSet<(u64, u64)>,
    /// Bytes that have been read.
    read: u64,
}

/// By device and number.
type Identity = (u64, u64);

impl Hasher {
    /// Looks at a file, unless that has been done: in the time of the call that opens it, so that it is what the
    /// guest is about to read. Gives whether all that is to be known of it is.
    pub(super) fn look(&self, path: Vec<u8>, open: impl FnOnce() -> Option<File>) -> bool {
        match self.lock().known.entry(path.clone()) {
            Entry::Occupied(_) => return true,
            Entry::Vacant(place) => drop(place.insert(None)),
        }
        // (Whoever may not read it is not told of it either.)
        let Some(file) = open() else { return true };
        let Some(identity) = file.metadata().ok().map(|it| (it.dev(), it.ino())) else {
            return false;
        };
        // One at a time reads it: who comes second reads what the first has read.
        self.wait_for(identity);
        self.lock().reading.insert(identity);
        let content = self.of(&file);
        let mut inner = self.lock();
        inner.reading.remove(&identity);
        inner.known.insert(path, content);
        self.changed.notify_all();
        content.is_some_and(|it| it.sha256.is_some())
    }

    /// Waits until nobody looks at a file.
    pub(super) fn wait_for(&self, identity: Identity) {
        let inner = self.lock();
        let waited = self.changed.wait_while(inner, |inner| inner.reading.contains(&identity));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The content of an open file from where it is; without a hash if there is too much of it.
    pub(super) fn of(&self, file: &File) -> Option<Content> {
        let size = file.metadata().ok()?.len();
        let none = Content { size, sha256: None };
        if size > MOST || self.claimed(size) {
            return Some(none);
        }
        let mut file = file.take(MOST + 1);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Some(Content { size, sha256: Some(hash.finalize().into()) }),
                Ok(_) if self.stopped.load(Ordering::Relaxed) || size > MOST => return Some(none),
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    size += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Takes so much of what may be read in all; gives whether there is no more of that.
    fn claimed(&self, size: u64) -> bool {
        let mut inner = self.lock();
        inner.read = inner.read.saturating_add(size);
        inner.read > MOST_OF_ALL
    }

    /// Whatever is being looked at goes without a hash.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// All that is known.
    pub(super) fn all(&self) -> HashMap<Vec<u8>, Content> {
        let inner = self.lock();
        inner.known.iter().filter_map(|(path, it)| Some((path.clone(), (*it)?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = crate::sys::memfd::anonymous_file(c"test").unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn the_hash_is_that_of_the_whole_content() {
        let content = Hasher::default().of(&file(b"abc")).unwrap();
        // FIPS 180-4's own example.
        let expected = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae,
            0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61,
            0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(content, Content { size: 3, sha256: Some(expected) });
    }

    #[test]
    fn a_hole_without_end_is_not_read() {
        let hasher = Hasher::default();
        let hole = file(b"");
        hole.set_len(1 << 50).unwrap();
        assert_eq!(hasher.of(&hole), Some(Content { size: 1 << 50, sha256: None }));
        assert!(!hasher.look(b"/hole".to_vec(), || Some(hole)));
        // What was known first stays.
        assert!(hasher.look(b"/a".to_vec(), || Some(file(b"one"))));
        assert!(hasher.look(b"/a".to_vec(), || unreachable!()));
        assert_eq!(hasher.all()[b"/a".as_slice()].size, 3);
    }

    #[test]
    fn what_may_be_read_in_all_has_an_end() {
        let hasher = Hasher::default();
        hasher.lock().read = MOST_OF_ALL;
        assert_eq!(hasher.of(&file(b"abc")).unwrap().sha256, None);
    }
}
