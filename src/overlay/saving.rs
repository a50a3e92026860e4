//! What a save needs of an overlay while its run uses it.
//!
//! Owns nothing of an image: it opens the layers, and a place for copies of what is in them. A save that ends its
//! run leaves a mark of the image here: until another run uses the overlay, that image has all that is in
//! it, and whoever restores it may put it in the overlay's place. The mark is bound to what the image says is in
//! the layers, and to the content of files in it, so that no other image can pass for it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde_bytes::ByteBuf;

use super::description::{Description, path};
use super::entry;
use super::error::{OverlayError, refuse};
use super::held::Held;
use super::layers::Layer;
use super::store::open_closed;
use crate::sys::copy::copy_content;
use crate::sys::errno_of;

/// Copies begin at multiples of this, so that a file system that can share blocks does: none has larger ones.
const ALIGNED: u64 = 64 << 10;

/// An overlay that a run uses.
#[derive(Debug)]
pub struct Saver {
    id: String,
    directory: OwnedFd,
    /// The directories of its layers that are mounted, and whether each is a skeleton.
    mounted: Vec<(PathBuf, bool)>,
    /// It is made by the kernel.
    by_kernel: bool,
}

/// A layer.
#[derive(Debug)]
pub struct Part {
    /// The directory of the host that it changes.
    pub path: PathBuf,
    /// If the run uses it: whether it shows a copy of names alone.
    pub skeleton: Option<bool>,
    /// Directories in it whose attributes mean nothing.
    pub scaffold: Vec<PathBuf>,
    /// Where what has changed is.
    pub upper: OwnedFd,
}

/// All of an overlay.
#[derive(Debug)]
pub struct Whole {
    /// The directories of `--overlay`.
    pub directories: Vec<PathBuf>,
    /// When its runs began: seconds and nanoseconds.
    pub starts: Vec<(i64, i64)>,
    /// Its layers.
    pub parts: Vec<Part>,
}

/// Copies of files as they are at one moment, on the file system of the overlay. It has no name.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    end: u64,
}

impl Held {
    /// What a save needs of it.
    ///
    /// # Errors
    /// There is no further descriptor.
    pub fn saver(&self) -> Result<Saver, OverlayError> {
        saver(&self.id, &self.directory, &self.layers)
    }
}

/// See [`Held::saver`].
pub(super) fn saver(
    id: &str,
    directory: &OwnedFd,
    layers: &[Layer],
) -> Result<Saver, OverlayError> {
    let directory =
        directory.try_clone().map_err(|error| refuse!("cannot hold the overlay {id}: {error}"))?;
    let mounted = layers.iter().map(|it| (it.target.clone(), it.skeleton.is_some()));
    let by_kernel = layers.iter().all(|it| it.twin.is_none());
    Ok(Saver { id: id.to_owned(), directory, mounted: mounted.collect(), by_kernel })
}

impl Saver {
    /// Opens all of it.
    ///
    /// # Errors
    /// It is damaged.
    pub fn whole(&self) -> Result<Whole, OverlayError> {
        if !self.by_kernel {
            return Err(refuse!(
                "cannot save a sandbox whose overlay is made without overlayfs; let it end: what it has changed is \
                 kept (sandbox diff {})",
                self.id
            ));
        }
        let unreadable = |cause: &str| refuse!("cannot read the overlay {}: {cause}", self.id);
        let description =
            Description::read(self.directory.as_fd()).map_err(|cause| unreadable(&cause))?;
        let all = entry::open_directory(self.directory.as_fd(), "layers".as_ref())
            .map_err(|errno| unreadable(errno.desc()))?;
        let mut parts = Vec::with_capacity(description.layers.len());
        for (number, note) in description.layers.iter().enumerate() {
            let upper = entry::open_directory(all.as_fd(), number.to_string().as_ref())
                .and_then(|layer| open_closed(layer.as_fd(), "upper"))
                .map_err(|errno| unreadable(errno.desc()))?;
            let place = note.path();
            let mounted = self.mounted.iter().find(|it| it.0 == place);
            parts.push(Part {
                skeleton: mounted.map(|it| it.1),
                scaffold: note.scaffold.iter().map(|it| path(it)).collect(),
                path: place,
                upper,
            });
        }
        Ok(Whole {
            directories: description.overlays.iter().map(|it| path(it)).collect(),
            starts: description.starts.iter().map(|it| (it.seconds, it.nanoseconds)).collect(),
            parts,
        })
    }

    /// A place for copies.
    ///
    /// # Errors
    /// No file can be made in the overlay's place.
    pub fn spool(&self) -> Result<Spool, OverlayError> {
        let made = nameless(&self.directory).map_err(|errno| {
            refuse!(
                "cannot make a file for copies beside the overlay {}: {}",
                self.id,
                errno.desc()
            )
        })?;
        Ok(Spool { file: Arc::new(made), end: 0 })
    }

    /// All that is in the overlay is in the image of this mark, which its run ends with; none: it goes on after
    /// all.
    ///
    /// # Errors
    /// That cannot be written down.
    pub fn mark(&self, mark: Option<&[u8]>) -> Result<(), OverlayError> {
        let failed = |cause: &dyn std::fmt::Display| {
            refuse!("cannot write down that the overlay {} was saved: {cause}", self.id)
        };
        let mut description =
            Description::read(self.directory.as_fd()).map_err(|cause| failed(&cause))?;
        description.saved = mark.map(ByteBuf::from);
        description.write(self.directory.as_fd()).map_err(|error| failed(&error))
    }
}

/// A file without a name in a directory (O_TMPFILE, or one whose name is taken away at once).
fn nameless(directory: &OwnedFd) -> Result<File, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    if let Ok(made) = openat(directory, ".", flags | OFlag::O_TMPFILE, mode) {
        return Ok(File::from(made));
    }
    let name = Path::new("spool");
    let flags = flags | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW;
    let made = openat(directory, name, flags, mode)?;
    unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
    Ok(File::from(made))
}

impl Spool {
    /// Copies the content of a file, its holes left out; gives where it begins. Where the file system can, blocks
    /// are shared and nothing is copied.
    ///
    /// # Errors
    /// There is no room, or the file cannot be read.
    pub fn add(&mut self, from: &File, size: u64) -> Result<u64, Errno> {
        let at = self.end.next_multiple_of(ALIGNED);
        let end = at.checked_add(size).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or(Errno::EFBIG)?;
        copy_content(from.as_fd(), (self.file.as_fd(), at), size, &mut |_| {})?;
        self.file.set_len(end).map_err(|error| errno_of(&error))?;
        self.end = end;
        Ok(at)
    }

    /// Where the copies are.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::sys::memfd::anonymous_file;

    #[test]
    fn copies_stay_what_they_were_and_holes_are_holes() {
        let base = std::env::temp_dir().join(format!("sandbox-spool-{}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        let directory = OwnedFd::from(File::open(&base).unwrap());
        let file = nameless(&directory).unwrap();
        let mut spool = Spool { file: Arc::new(file), end: 0 };
        let make = |size: u64, at: u64, bytes: &[u8]| {
            let file = anonymous_file(c"from").unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(bytes, at).unwrap();
            file
        };
        let one = make(1 << 40, 1 << 30, b"in the middle");
        let first = spool.add(&one, 1 << 40).unwrap();
        let second = spool.add(&make(5, 0, b"small"), 5).unwrap();
        one.write_all_at(b"overwritten!!", 1 << 30).unwrap();
        let read = |at: u64, length: usize| {
            let mut room = vec![0; length];
            spool.file().read_exact_at(&mut room, at).unwrap();
            room
        };
        assert_eq!(read(first + (1 << 30), 13), b"in the middle");
        assert_eq!(read(second, 5), b"small");
        assert_eq!(read(first + (1 << 39), 4), [0; 4]);
        assert!(spool.file().metadata().unwrap().blocks() < 2000);
        assert_eq!(std::fs::read_dir(&base).unwrap().count(), 0);
        std::fs::remove_dir_all(base).unwrap();
    }
}
