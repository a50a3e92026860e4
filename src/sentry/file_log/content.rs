//! Sizes and hashes of files.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::look::reopen;

/// The content of a file; the default is that of none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of them; `None` where it has none, or cannot be read.
    pub sha256: Option<[u8; 32]>,
}

/// The content of an open file from where it is.
pub(super) fn of(file: &File) -> Option<Content> {
    let mut file = file;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Some(Content { size, sha256: Some(hash.finalize().into()) }),
            Ok(count) => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// What files were like when they were first read.
#[derive(Debug, Default)]
pub(super) struct Hasher {
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
    /// A file has been read.
    changed: Condvar,
}

/// Protected by `Hasher::inner`.
#[derive(Debug, Default)]
struct Inner {
    known: HashMap<Vec<u8>, Option<Content>>,
    /// Device and number of those that are just being read.
    reading: HashSet<(u64, u64)>,
}

impl Hasher {
    /// Looks at a file, unless that has been done: in the time of the call that opens it, so that it is what the
    /// guest is about to read. `file`: what stands for it (O_PATH).
    pub(super) fn look(&self, path: Vec<u8>, file: &OwnedFd) {
        if self.lock().known.contains_key(&path) {
            return self.wait_for(file);
        }
        // (Whoever may not read it is not told of it either.)
        let Some(file) = reopen(file) else { return };
        let Some(identity) = identity(&file) else { return };
        {
            let mut inner = self.lock();
            inner.known.insert(path.clone(), None);
            inner.reading.insert(identity);
        }
        let content = of(&file);
        let mut inner = self.lock();
        inner.known.insert(path, content);
        inner.reading.remove(&identity);
        self.changed.notify_all();
    }

    /// Waits until nobody looks at a file.
    pub(super) fn wait_for(&self, file: &OwnedFd) {
        let Some(identity) = nix::sys::stat::fstat(file).ok().map(|it| (it.st_dev, it.st_ino))
        else {
            return;
        };
        let inner = self.lock();
        let waited = self.changed.wait_while(inner, |inner| inner.reading.contains(&identity));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
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

fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|it| (it.dev(), it.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn the_hash_is_that_of_the_whole_content() {
        let mut file = crate::sys::memfd::anonymous_file(c"test").unwrap();
        file.write_all(b"abc").unwrap();
        file.rewind().unwrap();
        let content = of(&file).unwrap();
        // FIPS 180-4's own example.
        let expected = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae,
            0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61,
            0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(content, Content { size: 3, sha256: Some(expected) });
    }
}
