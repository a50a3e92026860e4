//! Unix sockets of the host that programs may connect to (`--unix`).

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::unistd::AccessFlags;

use super::super::error::refuse;
use super::super::paths::{Kind, check, quoted};
use super::super::{ConfigError, Mount, MountKind, Why};
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
        let real = self.host.real(&place.path);
        if !std::fs::symlink_metadata(real).is_ok_and(|it| it.file_type().is_socket()) {
            return Err(refuse!(
                "cannot use {flag}: {words} is no socket; --ro or --rw shows files and directories"
            ));
        }
        let own = self.host.private.iter().chain(&self.host.stores);
        if own.into_iter().any(|own| place.path.starts_with(own)) {
            return Err(refuse!(
                "cannot use {flag}: {words} controls a sandbox of yours, which no program inside may"
            ));
        }
        self.host.access(&place.path, AccessFlags::W_OK).map_err(|errno| {
            refuse!(
                "cannot use {flag}: you may not connect to {words} ({}); ask its owner for access or leave the flag out",
                errno.desc()
            )
        })?;
        let kind = MountKind::ReadOnly { source: place.path.clone() };
        Ok(Mount { target: place.path, kind, why: Why::Flag(flag.to_owned()) })
    }
}
