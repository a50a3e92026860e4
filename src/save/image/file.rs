//! A file that appears under its name whole or not at all.
//!
//! Owns the temporary name beside the target, the flush to the disk and the rename. Does not know what
//! is written.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::ImageError;
use crate::sys::random;

/// Names tried before giving up; each is one of 2^40.
const TRIES: usize = 16;
/// The longest name that a file may have (limits.h NAME_MAX).
const NAME: usize = 255;

/// A file that is being written under a temporary name. What was under the target's name stays until
/// [`Durable::commit`] has put everything on the disk; dropped before that, it leaves nothing behind.
#[derive(Debug)]
pub struct Durable {
    file: File,
    directory: File,
    /// `None` once it has its name.
    temporary: Option<PathBuf>,
    target: PathBuf,
}

impl Durable {
    /// Begins to write what will be `path`, or what `path` links to. Only the owner may read it: an
    /// image holds whatever the programs held.
    pub fn create(path: &Path) -> Result<Durable, ImageError> {
        let target = resolve(path)?;
        let (parent, name) = parts(&target)?;
        let directory = File::open(parent).map_err(|error| {
            ImageError::io(format!("cannot open the directory {}", parent.display()), error)
        })?;
        for _ in 0..TRIES {
            let temporary = parent.join(temporary_name(name)?);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary);
            match file {
                Ok(file) => {
                    return Ok(Durable { file, directory, temporary: Some(temporary), target });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let what = format!("cannot create a file in {}", parent.display());
                    return Err(ImageError::io(what, error));
                }
            }
        }
        Err(ImageError::Target { path: target, why: "no temporary name beside it is free" })
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file, complete but for its name: to be looked at before [`Durable::commit`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts everything on the disk, then under its name, then the name on the disk.
    pub fn commit(mut self) -> Result<File, ImageError> {
        let target = self.target.display();
        let failed = |what: &str, error| ImageError::io(format!("cannot {what} {target}"), error);
        self.file.sync_all().map_err(|error| failed("put on the disk", error))?;
        if let Some(temporary) = &self.temporary {
            // rename(2): replaces the old file in one step; never a directory.
            fs::rename(temporary, &self.target)
                .map_err(|error| failed("give its name to", error))?;
        }
        self.temporary = None;
        // A file system that cannot flush a directory (some FUSE) says EINVAL: then the name is as
        // durable as it gets.
        match self.directory.sync_all() {
            Err(error) if error.kind() != ErrorKind::InvalidInput => {
                Err(failed("put on the disk the name of", error))
            }
            _ => self.file.try_clone().map_err(|error| failed("keep open", error)),
        }
    }
}

impl Write for Durable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.file.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // Nobody is left to be told; the name says what it is.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// What a path stands for in the end: a regular file, or nothing yet.
fn resolve(path: &Path) -> Result<PathBuf, ImageError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path.to_owned()),
        Err(error) => {
            return Err(ImageError::io(format!("cannot look at {}", path.display()), error));
        }
    };
    if !found.is_symlink() {
        return is_replaceable(path, &found).map(|()| path.to_owned());
    }
    // The kernel follows the link, which it refuses where somebody else has laid it in a directory for
    // all (fs.protected_symlinks, proc_sys_fs(5)); following it by hand would go round that.
    let refused = |why| Err(ImageError::Target { path: path.to_owned(), why });
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return refused("it links to nothing"),
        Err(error) => {
            return Err(ImageError::io(
                format!("cannot follow the link {}", path.display()),
                error,
            ));
        }
    };
    let look = |error| ImageError::io(format!("cannot look at {}", path.display()), error);
    let linked = file.metadata().map_err(look)?;
    is_replaceable(path, &linked)?;
    let target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(look)?;
    match fs::symlink_metadata(&target) {
        Ok(there) if (there.dev(), there.ino()) == (linked.dev(), linked.ino()) => Ok(target),
        _ => refused("what it links to has no name that could be seen"),
    }
}

/// An error unless it is a regular file.
fn is_replaceable(path: &Path, found: &Metadata) -> Result<(), ImageError> {
    let why = match () {
        () if found.is_file() => return Ok(()),
        () if found.is_dir() => "it is a directory",
        () => "it is neither a regular file nor free; -o - writes to the standard output",
    };
    Err(ImageError::Target { path: path.to_owned(), why })
}

/// The directory and the name in it.
fn parts(target: &Path) -> Result<(&Path, &OsStr), ImageError> {
    let refused = |why| Err(ImageError::Target { path: target.to_owned(), why });
    if target.as_os_str().as_bytes().ends_with(b"/") {
        return refused("its name ends as a directory's");
    }
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return refused("it has no file name");
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok((parent, name))
}

/// `.NAME.XXXXXXXX.partial`, with NAME cut where the whole would be too long.
fn temporary_name(name: &OsStr) -> Result<OsString, ImageError> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut random = [0; 8];
    random::fill(&mut random)
        .map_err(|error| ImageError::io("cannot get random numbers", error))?;
    let letters = random.map(|byte| LETTERS[usize::from(byte % 32)]);
    let mut whole = vec![b'.'];
    let room = NAME - 2 - letters.len() - b".partial".len();
    whole.extend(name.as_bytes().iter().take(room));
    whole.push(b'.');
    whole.extend(letters);
    whole.extend(b".partial");
    Ok(OsStr::from_bytes(&whole).to_owned())
}
