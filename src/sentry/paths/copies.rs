//! Copies of files that guests were let read (`--ask files`), in memory that none of them can change.
//!
//! They are the sentry's memory, and no limit of the guests counts them: so what has not changed is copied once, and
//! all copies of a run together are bounded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::sys::{errno_of, files};

/// Bytes of a file that is copied; and of all copies of a run; how many there may be.
const MOST: u64 = 64 << 20;
const MOST_OF_ALL: u64 = 256 << 20;
const MOST_COPIES: usize = 256;
/// How many are made at a time.
const AT_ONCE: usize = 8;
/// Bytes that are copied at a time.
const CHUNK: usize = 128 << 10;

/// Device, inode, size, and when it was changed last, in content or else (its owner can say anything of the former).
type Version = (u64, u64, i64, (i64, i64), (i64, i64));

/// The copies of a run.
#[derive(Debug)]
pub(in crate::sentry) struct Copies {
    /// A leaf of the lock order.
    made: Mutex<Made>,
    /// For each that is being made.
    pub(in crate::sentry) places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Made {
    /// With what is being copied.
    bytes: u64,
    all: HashMap<Version, Arc<File>>,
}

/// A copy that is being made. Dropped, it is made all the same, and kept.
pub(in crate::sentry) struct Copying(oneshot::Receiver<Result<OwnedFd, Errno>>);

impl Copying {
    pub(in crate::sentry) async fn done(self) -> Result<OwnedFd, Errno> {
        self.0.await.unwrap_or(Err(Errno::EIO))
    }
}

impl Default for Copies {
    fn default() -> Self {
        Copies { made: Mutex::default(), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Copies {
    /// Has a thread make one: nothing that a file system does to it holds others up. (Not one of the runtime's, since it
    /// takes on the rights of a guest.)
    pub(super) fn begin(
        &self,
        place: OwnedSemaphorePermit,
        copy: impl FnOnce() -> Result<OwnedFd, Errno> + Send + 'static,
    ) -> Result<Copying, Errno> {
        let (sender, result) = oneshot::channel();
        let thread = std::thread::Builder::new().name("copy".into()).stack_size(512 << 10);
        let thread = thread.spawn(move || {
            let _ = sender.send(copy());
            drop(place);
        });
        thread.map(|_| Copying(result)).map_err(|_| Errno::EAGAIN)
    }

    /// A copy of what a file holds, to be read.
    ///
    /// # Errors
    /// EFBIG: it is too large; ENFILE: there are too many; what read(2) says.
    pub(super) fn of(&self, file: File) -> Result<OwnedFd, Errno> {
        let stat = fstat(&file)?;
        let version = version(&stat);
        let known = self.lock().all.get(&version).cloned();
        let own = match known {
            Some(own) => own,
            None => self.make(file, &stat, version)?,
        };
        // Programs look whether a key is for its owner alone. (Who has a copy can change that of all.)
        fchmod(&*own, Mode::from_bits_truncate(stat.st_mode & 0o777 | 0o400))?;
        files::open_descriptor(own.as_fd(), libc::O_RDONLY)
    }

    fn make(&self, file: File, stat: &FileStat, version: Version) -> Result<Arc<File>, Errno> {
        let size = stat.st_size as u64;
        if size > MOST {
            return Err(Errno::EFBIG);
        }
        {
            let mut made = self.lock();
            if made.bytes + size > MOST_OF_ALL || made.all.len() >= MOST_COPIES {
                return Err(Errno::ENFILE);
            }
            made.bytes += size;
        }
        let copied = copy(file, size).map(Arc::new);
        let mut made = self.lock();
        let made = &mut *made;
        match copied {
            Ok(own) => match made.all.entry(version) {
                // (Somebody else has been faster.)
                Entry::Occupied(there) => {
                    made.bytes -= size;
                    Ok(Arc::clone(there.get()))
                }
                Entry::Vacant(free) => Ok(Arc::clone(free.insert(own))),
            },
            Err(errno) => {
                made.bytes -= size;
                Err(errno)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().all.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(stat: &FileStat) -> Version {
    let (modified, changed) =
        ((stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
    (stat.st_dev, stat.st_ino, stat.st_size, modified, changed)
}

/// The first `size` bytes of a file, which nobody changes any more.
fn copy(file: File, size: u64) -> Result<File, Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut own = File::from(memfd_create(c"granted", flags)?);
    let mut file = file.take(size);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => own.write_all(&chunk[..count]).map_err(|error| errno_of(&error))?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno_of(&error)),
        }
    }
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(&own, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_copies_together_are_bounded() {
        let path = std::env::temp_dir().join(format!("sandbox-copies-{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        let copies = Copies::default();
        copies.lock().bytes = MOST_OF_ALL - 3;
        let of = |size| {
            file.set_len(size).unwrap();
            copies.of(File::open(&path).unwrap()).map(drop)
        };
        assert_eq!(of(4), Err(Errno::ENFILE));
        assert_eq!(of(MOST + 1), Err(Errno::EFBIG));
        assert_eq!(of(3), Ok(()));
        std::fs::remove_file(path).unwrap();
    }
}
