//! Files that guests write to reach the disk before an image counts as safe.
//!
//! What an image says of such a file (its size, the offset in it) is worth nothing after a crash of the
//! machine if the file has lost what was written. fsync(2) serves the file, whoever wrote to it, so each
//! file is synced once, by any descriptor of it.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::errno::Errno;

use super::known::Inode;
use crate::save::error::SaveError;

/// Files that have been synced.
#[derive(Debug, Default)]
pub struct Synced(std::collections::HashSet<Inode>);

impl Synced {
    /// Whether a file is still to be synced; it counts as synced then.
    pub fn is_new(&mut self, inode: Inode) -> bool {
        self.0.insert(inode)
    }
}

/// Brings a file to the disk that a guest has mapped writable, by name. `view`: where the guests' file view is.
pub fn sync_mapped(
    view: &str,
    path: &[u8],
    who: &str,
    synced: &mut Synced,
) -> Result<(), SaveError> {
    use std::os::unix::ffi::OsStrExt;
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let name = std::path::Path::new(view).join(std::ffi::OsStr::from_bytes(relative));
    let shown = String::from_utf8_lossy(path);
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let read = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&name);
    let file = read
        .or_else(|_| std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&name))
        .map_err(|error| {
            SaveError::failed(format!("{shown}, which {who} has mapped, cannot be opened"), error)
        })?;
    let stat = file
        .metadata()
        .map_err(|error| SaveError::failed(format!("{shown} cannot be looked at"), error))?;
    if stat.is_file() && synced.is_new((stat.dev(), stat.ino())) {
        sync(file.as_fd(), who, &shown)?;
    }
    Ok(())
}

/// Brings a file to the disk. `who` has it open or mapped, under the name `shown`.
pub fn sync(fd: BorrowedFd<'_>, who: &str, shown: &str) -> Result<(), SaveError> {
    match nix::unistd::fsync(fd) {
        Ok(()) => Ok(()),
        // Not kept anywhere: a file of a pseudo file system (fsync(2)).
        Err(Errno::EINVAL | Errno::EROFS | Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(SaveError::refused(format!(
            "{shown}, which {who} writes to, cannot be brought to the disk (fsync: {}), so that the image would \
             not be safe; look after the disk and try again",
            errno.desc()
        ))),
    }
}
