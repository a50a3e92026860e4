//! Where a step of the file view lands once a guest had a say in that. Child side: no allocation.
//!
//! The upper layer of an overlay is what guests of earlier runs have made of it: where the host has a
//! directory to mount on, there may be a link to somewhere else. So each place is opened over no link at all
//! (those of the host are resolved by `config`), and what is done there is done to the descriptor. Most calls
//! take a path only: they are given the descriptor's own one in procfs, relative to the current directory,
//! which is the host's /proc meanwhile (`Step::Guard`): what is at `/proc` may be the guest's as well.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::sys::{beneath, files};

/// A place, found over no link.
pub(super) struct Landing {
    fd: OwnedFd,
    path: [u8; ROOM],
}

/// For `self/fd/N/NAME`: a name has 255 bytes at most.
const ROOM: usize = 300;
const PATH_MAX: usize = libc::PATH_MAX as usize;

impl Landing {
    /// What is at `path`.
    pub(super) fn at(path: &CStr) -> Result<Landing, Errno> {
        Landing::new(beneath::place(path)?, b"")
    }

    /// The last name of `path`, whether there is something or not; it is for calls that follow no link at
    /// their path's end.
    pub(super) fn new_at(path: &CStr) -> Result<Landing, Errno> {
        let bytes = path.to_bytes();
        let slash = bytes.iter().rposition(|byte| *byte == b'/').ok_or(Errno::EINVAL)?;
        let mut parent = [0; PATH_MAX];
        let length = slash.max(1);
        if length >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        parent[..length].copy_from_slice(&bytes[..length]);
        let parent = CStr::from_bytes_until_nul(&parent).map_err(|_| Errno::EINVAL)?;
        Landing::new(beneath::place(parent)?, &bytes[slash..])
    }

    fn new(fd: OwnedFd, rest: &[u8]) -> Result<Landing, Errno> {
        const PROC: usize = b"/proc/".len();
        let whole = files::descriptor_path(fd.as_fd());
        let own = whole.to_bytes().get(PROC..).unwrap_or_default();
        let mut path = [0; ROOM];
        let end = own.len() + rest.len();
        if end >= ROOM {
            return Err(Errno::ENAMETOOLONG);
        }
        path[..own.len()].copy_from_slice(own);
        path[own.len()..end].copy_from_slice(rest);
        Ok(Landing { fd, path })
    }

    /// A path to it that nobody has a say in.
    pub(super) fn path(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.path).map_err(|_| Errno::EINVAL)
    }
}

impl AsFd for Landing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn c(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }

    #[test]
    fn no_link_is_followed() {
        let root = std::env::temp_dir().join(format!("sandbox-landing-{}", std::process::id()));
        std::fs::create_dir_all(root.join("in")).unwrap();
        let root = root.canonicalize().unwrap();
        symlink("in", root.join("link")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        let at = |name: &str| Landing::at(&c(&root.join(name))).err();
        let new_at = |name: &str| Landing::new_at(&c(&root.join(name))).err();
        assert_eq!(
            (at("in"), at("file"), new_at("in/new"), new_at("link")),
            (None, None, None, None)
        );
        assert_eq!((at("link"), at("link/x")), (Some(Errno::ELOOP), Some(Errno::ELOOP)));
        assert_eq!((at("file/x"), at("none")), (Some(Errno::ENOTDIR), Some(Errno::ENOENT)));
        assert_eq!((new_at("link/x"), new_at("none/x")), (Some(Errno::ELOOP), Some(Errno::ENOENT)));
        let place = Landing::new_at(&c(&root.join("in/new"))).unwrap();
        let path = Path::new("/proc").join(place.path().unwrap().to_str().unwrap());
        std::fs::create_dir(path).unwrap();
        assert!(root.join("in/new").is_dir());
        std::fs::remove_dir_all(root).unwrap();
    }
}
