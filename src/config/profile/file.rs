//! Files of profiles, opened so that nothing which lies in their place can do harm.
//!
//! Owns who may have written one: the caller or root, and nobody else may change it. Whatever else is
//! at such a path (a device, a FIFO, a file without end) is named and not opened.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::super::error::refuse;
use super::super::{ConfigError, Host, quoted};
use crate::sys::{beneath, files};

/// Bytes of one file at most: some hundred thousand rules.
const SIZE_MAX: u64 = 8 << 20;

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner<'p> {
    /// The user's, who may have put a symbolic link there.
    User,
    /// That of the project in this directory: who fetched it has not read it, and programs that run in
    /// it may be changing it right now.
    Project(&'p Path),
}

/// The text of a file; `None` if there is none.
pub(super) fn read(
    host: &Host,
    path: &Path,
    owner: Owner<'_>,
) -> Result<Option<String>, ConfigError> {
    let fail =
        |cause: &str| refuse!("cannot use the profile {}: {cause}", quoted(path.as_os_str()));
    let found = match find(host, path, owner) {
        Ok(found) => found,
        Err(Errno::ELOOP | Errno::EXDEV) if owner != Owner::User => return Err(fail(LINK)),
        // A directory that may not be entered holds no profile of this user.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(None),
        Err(errno) => {
            return Err(fail(&format!("it cannot be opened ({}); remove it", errno.desc())));
        }
    };
    let stat = fstat(&found)
        .map_err(|errno| fail(&format!("it cannot be looked at ({})", errno.desc())))?;
    check(&stat, host, owner).map_err(|cause| fail(&cause))?;
    text(found, &fail).map(Some)
}

const LINK: &str = "a symbolic link leads to it, or a mount, which in a project may not be; put the \
    file itself there, or name it with --profile";

/// O_PATH opens nothing: a device does not notice, a FIFO is not waited for (open(2)).
fn find(host: &Host, path: &Path, owner: Owner<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let Owner::Project(directory) = owner else {
        return open(&host.real(path), flags, Mode::empty());
    };
    let below = path.strip_prefix(directory).map_err(|_| Errno::EXDEV)?;
    let below = CString::new(below.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let directory = open(&host.real(directory), flags | OFlag::O_DIRECTORY, Mode::empty())?;
    beneath::open(directory.as_fd(), &below, libc::O_PATH | libc::O_NOFOLLOW)
}

/// Refuses what is no plain file of the user's or root's.
fn check(stat: &FileStat, host: &Host, owner: Owner<'_>) -> Result<(), String> {
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFLNK && owner != Owner::User {
        return Err(LINK.to_owned());
    }
    if kind != SFlag::S_IFREG {
        return Err("it is not a regular file; remove it or give it another name".to_owned());
    }
    if stat.st_uid != host.uid && stat.st_uid != 0 {
        return Err(format!(
            "it belongs to the user {}, and only yours and root's count; make it yours with chown, or \
             remove it",
            stat.st_uid
        ));
    }
    // A group that has its user's number is that user's alone, by custom (useradd(8), USERGROUPS_ENAB).
    let own_group = stat.st_gid == stat.st_uid && stat.st_gid == host.gid;
    if stat.st_mode & 0o002 != 0 || (stat.st_mode & 0o020 != 0 && !own_group) {
        return Err("others may write to it; take that away with chmod go-w".to_owned());
    }
    if stat.st_size as u64 > SIZE_MAX {
        return Err(too_long());
    }
    Ok(())
}

fn too_long() -> String {
    format!("it is longer than {} MiB; leave some of it out", SIZE_MAX >> 20)
}

fn text(found: OwnedFd, fail: &dyn Fn(&str) -> ConfigError) -> Result<String, ConfigError> {
    let unreadable =
        |cause: &str| fail(&format!("it cannot be read ({cause}); see its permissions"));
    let file = files::open_descriptor(found.as_fd(), libc::O_RDONLY | libc::O_NONBLOCK)
        .map_err(|errno| unreadable(errno.desc()))?;
    let mut bytes = Vec::new();
    File::from(file)
        .take(SIZE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error.to_string()))?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(fail(&too_long()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        fail(&format!("line {line} is not UTF-8, which TOML is; correct it"))
    })
}
