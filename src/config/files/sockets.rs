//! Unix sockets of the host that programs may connect to (`--unix`).

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::unistd::AccessFlags;

use super::super::error::refuse;
use super::super::paths::{Kind, check, quoted};
use super::super::{ConfigError, Host, Mount, MountKind, Why};
use super::Plan;

impl Plan<'_> {
    /// What shows the socket at `path`, which a flag names, to the program. A connection to it needs nothing that could
    /// be changed there (unix_find_bsd in net/unix/af_unix.c asks for the right to write to the socket, not to its mount).
    pub(super) fn socket(&self, flag: &str, path: &Path) -> Result<Mount, ConfigError> {
        check(flag, path)?;
        if path.as_os_str().as_bytes().starts_with(b"@") {
            return Err(refuse!(
                "cannot use {flag}: an abstract socket belongs to a network; --net host gives the program the host's"
            ));
        }
        let place = self.find(flag, path)?;
        let words = quoted(&place.path);
        if place.kind == Kind::Missing {
            return Err(refuse!(
                "cannot use {flag}: there is no {words}; start what listens at it first, or correct the path"
            ));
        }
        if !is_socket(self.host, &place.path) {
            return Err(refuse!(
                "cannot use {flag}: {words} is no socket; --ro or --rw shows files and directories"
            ));
        }
        check_socket(self.host, &format!("cannot use {flag}"), &place.path)?;
        let kind = MountKind::ReadOnly { source: place.path.clone() };
        Ok(Mount { target: place.path, kind, why: Why::Flag(flag.to_owned()) })
    }
}

/// Whether there is a socket of this name.
pub(in crate::config) fn is_socket(host: &Host, path: &Path) -> bool {
    std::fs::symlink_metadata(host.real(path)).is_ok_and(|it| it.file_type().is_socket())
}

/// Refuses a socket that the program may not connect to, in a sentence with this beginning.
pub(in crate::config) fn check_socket(
    host: &Host,
    beginning: &str,
    path: &Path,
) -> Result<(), ConfigError> {
    let words = quoted(path);
    if host.private.iter().chain(&host.stores).any(|own| path.starts_with(own)) {
        return Err(refuse!(
            "{beginning}: {words} controls a sandbox of yours, which no program inside may"
        ));
    }
    host.access(path, AccessFlags::W_OK).map_err(|errno| {
        refuse!(
            "{beginning}: you may not connect to {words} ({}); ask its owner for access or leave the flag out",
            errno.desc()
        )
    })
}
