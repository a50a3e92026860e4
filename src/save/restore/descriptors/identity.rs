//! Whether a file outside the image is still the one that the guest had.

use std::fs::Metadata;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::statfs::fstatfs;

use crate::save::error::RestoreError;
use crate::save::state::{Identity, Sandbox};

/// PROC_SUPER_MAGIC, SYSFS_MAGIC (include/uapi/linux/magic.h).
const KERNELS: [i64; 2] = [0x9fa0, 0x6265_6572];

/// Whether files that have changed since the save are taken all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FilesPolicy {
    /// They are an error.
    #[default]
    Strict,
    /// They are used as they are now.
    ChangedOk,
}

/// Whether the file found at `path` is the one that was saved.
///
/// Size, time of change and kind must be the same. The inode's number may not be: an image is restored
/// elsewhere, too, where copies of the same files have others. A file that the guest itself had open for
/// appending (`flags`: those of the description, if any) may have grown: so it has if the guest went on
/// after the save, and what is appended later loses nothing of it. Of directories and devices only the
/// kind counts.
pub fn check(
    path: &[u8],
    saved: &Identity,
    found: &Identity,
    flags: u32,
    policy: FilesPolicy,
) -> Result<(), RestoreError> {
    let shown = String::from_utf8_lossy(path);
    let kind = |it: &Identity| it.mode & libc::S_IFMT;
    if kind(saved) != kind(found) {
        return Err(RestoreError::refused(format!(
            "{shown} was {} when the sandbox was saved and is {} now; put it back first",
            name(kind(saved)),
            name(kind(found)),
        )));
    }
    if kind(saved) != libc::S_IFREG || policy == FilesPolicy::ChangedOk {
        return Ok(());
    }
    let appending = flags as i32 & libc::O_APPEND != 0 && flags as i32 & libc::O_ACCMODE != 0;
    if appending && found.size >= saved.size {
        return Ok(());
    }
    let what = if saved.size != found.size {
        format!("had {} bytes and has {} now", saved.size, found.size)
    } else if saved.modified != found.modified {
        let seconds = (found.modified - saved.modified) / 1_000_000_000;
        match seconds {
            0 => "was written to since".to_owned(),
            1.. => format!("was written to {seconds} s later"),
            _ => format!("is an older one now, by {} s", seconds.unsigned_abs()),
        }
    } else {
        return Ok(());
    };
    Err(RestoreError::refused(format!(
        "{shown} has changed since the sandbox was saved: it {what}; put it back, or restore with \
         --files changed-ok"
    )))
}

fn name(kind: u32) -> &'static str {
    match kind {
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a directory",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFCHR => "a character device",
        libc::S_IFBLK => "a block device",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFSOCK => "a socket",
        _ => "something else",
    }
}

/// Likewise for a file that has been opened. What the image itself carries the content of is not asked:
/// it is not there yet.
pub(super) fn check_open(
    sandbox: &Sandbox,
    made: &OwnedFd,
    path: &[u8],
    saved: &Identity,
    flags: u32,
    policy: FilesPolicy,
) -> Result<(), RestoreError> {
    let stat =
        std::fs::metadata(format!("/proc/self/fd/{}", made.as_raw_fd())).map_err(|error| {
            RestoreError::failed(format!("cannot look at {}", String::from_utf8_lossy(path)), error)
        })?;
    // Sizes and times of files in /proc and /sys mean nothing, wherever those are shown.
    let is_kernels =
        fstatfs(made).is_ok_and(|system| KERNELS.contains(&system.filesystem_type().0));
    let policy =
        if is_kernels || is_carried(sandbox, path) { FilesPolicy::ChangedOk } else { policy };
    check(path, saved, &identity(&stat), flags, policy)
}

fn identity(stat: &Metadata) -> Identity {
    crate::save::capture::descriptors::identity(stat)
}

/// Whether the image carries the file at `path`.
pub(super) fn is_carried(sandbox: &Sandbox, path: &[u8]) -> bool {
    let below = |target: &[u8]| -> Option<Vec<u8>> {
        let target = target.strip_suffix(b"/").unwrap_or(target);
        Some(path.strip_prefix(target)?.strip_prefix(b"/")?.to_vec())
    };
    sandbox.trees.iter().any(|tree| {
        below(&tree.target)
            .is_some_and(|rest| tree.entries.iter().any(|entry| *entry.path == *rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: Identity =
        Identity { inode: (1, 2), size: 10, modified: 5_000_000_000, mode: libc::S_IFREG | 0o644 };

    fn judge(found: Identity, flags: i32, policy: FilesPolicy) -> Result<(), String> {
        check(b"/a", &SAVED, &found, flags as u32, policy).map_err(|error| error.to_string())
    }

    #[test]
    fn a_copy_is_as_good_as_the_file() {
        let copy = Identity { inode: (8, 9), ..SAVED };
        assert_eq!(judge(copy, libc::O_RDWR, FilesPolicy::Strict), Ok(()));
    }

    #[test]
    fn a_change_is_named_unless_it_is_allowed() {
        let grown = Identity { size: 20, modified: 9_000_000_000, ..SAVED };
        let said = judge(grown, libc::O_RDONLY, FilesPolicy::Strict).unwrap_err();
        assert!(said.starts_with("/a has changed") && said.contains("10 bytes"), "{said}");
        assert_eq!(judge(grown, libc::O_RDONLY, FilesPolicy::ChangedOk), Ok(()));
        let touched = Identity { modified: 9_000_000_000, ..SAVED };
        let said = judge(touched, libc::O_RDONLY, FilesPolicy::Strict).unwrap_err();
        assert!(said.contains("written to 4 s later"), "{said}");
        let other = Identity { mode: libc::S_IFDIR, ..SAVED };
        let said = judge(other, libc::O_RDONLY, FilesPolicy::ChangedOk).unwrap_err();
        assert!(said.contains("was a file") && said.contains("is a directory"), "{said}");
    }

    #[test]
    fn what_the_guest_appended_to_may_have_grown_and_not_shrunk() {
        let grown = Identity { size: 20, modified: 9_000_000_000, ..SAVED };
        assert_eq!(judge(grown, libc::O_WRONLY | libc::O_APPEND, FilesPolicy::Strict), Ok(()));
        assert!(judge(grown, libc::O_WRONLY, FilesPolicy::Strict).is_err());
        let shrunk = Identity { size: 2, ..SAVED };
        assert!(judge(shrunk, libc::O_WRONLY | libc::O_APPEND, FilesPolicy::Strict).is_err());
    }
}
