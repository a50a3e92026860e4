//! Files without a name, and memory that has a descriptor.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

use super::{Maker, describe};
use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::restore::maker::{Finish, Sink};
use crate::save::state::{FileKind, Identity, OpenFile, SharedKind};

/// Permissions that a guest may give a file (setuid and setgid it may not).
const PERMISSIONS: u32 = 0o1777;
/// Names that are tried for a file that is removed at once.
const TRIES: usize = 16;

/// include/uapi/linux/memfd.h
const MFD_ALLOW_SEALING: u64 = 2;
const MFD_NOEXEC_SEAL: u64 = 8;
const MFD_EXEC: u64 = 0x10;
/// include/uapi/linux/fcntl.h
const F_SEAL_EXEC: u32 = 0x20;

/// Files without a name, while their descriptions are made.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    files: HashMap<u32, (OwnedFd, Identity)>,
    /// Directories that were made for them, in order.
    directories: Vec<Vec<u8>>,
}

impl Unnamed {
    /// A description of such a file.
    pub(super) fn make(
        &mut self,
        maker: &mut Maker<'_>,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        let FileKind::Deleted { path, file: number, object, identity, unnamed, directory } =
            &file.kind
        else {
            return Err(RestoreError::refused("not a file without a name"));
        };
        if !self.files.contains_key(number) {
            let failed = RestoreError::of(format!("cannot make {} again", describe(file)));
            let made = match (directory, unnamed) {
                (true, _) => self.make_directory(maker, path).map_err(failed)?,
                (false, true) => match nameless(maker, path) {
                    Ok(made) => made,
                    Err(_) => self.make_file(maker, path).map_err(failed)?,
                },
                (false, false) => self.make_file(maker, path).map_err(failed)?,
            };
            if !directory {
                receive(maker, &made, *object, identity.size)?;
            }
            self.files.insert(*number, (made, *identity));
        }
        let made = self.files.get(number).map(|(made, _)| made.try_clone());
        let made = made.and_then(Result::ok).ok_or_else(|| {
            RestoreError::failed(format!("cannot open {}", describe(file)), "out of descriptors")
        })?;
        maker.reopen(&made, file)
    }

    /// A file in its old place, whose name is taken away at once. Where none may be made any more, its
    /// content lives in memory.
    fn make_file(&mut self, maker: &mut Maker<'_>, path: &[u8]) -> Result<OwnedFd, HandError> {
        let flags =
            libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        match self.in_place(maker, path, |maker, name| {
            let made = maker.open(name, flags, 0o600)?;
            maker.hand.call_path(libc::SYS_unlink, name, |at| [at])?;
            Ok(made)
        }) {
            Ok(made) => Ok(made),
            Err(HandError::Call(_)) => {
                let name = path.rsplit(|it| *it == b'/').next().unwrap_or(path);
                memfd(maker, &name[..name.len().min(200)], MFD_EXEC)
            }
            Err(error) => Err(error),
        }
    }

    fn make_directory(&mut self, maker: &mut Maker<'_>, path: &[u8]) -> Result<OwnedFd, HandError> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        if self.directories.iter().any(|it| it == path) {
            // It is there already for the sake of a file that was in it.
            return maker.open(path, flags, 0);
        }
        let mut directories = Vec::new();
        let made = self.in_place(maker, path, |maker, name| {
            maker.hand.call_path(libc::SYS_mkdir, name, |at| [at, 0o700])?;
            directories.push(name.to_vec());
            maker.open(name, flags, 0)
        });
        // It is removed when its descriptions have been made.
        self.directories.append(&mut directories);
        made
    }

    /// Makes something at `path`, or beside it if that is taken. Directories that are missing are made
    /// for the time being.
    fn in_place(
        &mut self,
        maker: &mut Maker<'_>,
        path: &[u8],
        mut make: impl FnMut(&mut Maker<'_>, &[u8]) -> Result<OwnedFd, HandError>,
    ) -> Result<OwnedFd, HandError> {
        let mut name = path.to_vec();
        let mut last = HandError::Killed;
        for number in 0..TRIES {
            match make(maker, &name) {
                Err(error) if error.errno() == Some(Errno::EEXIST) => {
                    name = [path, format!(".{number}").as_bytes()].concat();
                    last = error;
                }
                Err(error) if error.errno() == Some(Errno::ENOENT) => {
                    self.make_parents(maker, path)?;
                    last = error;
                }
                other => return other,
            }
        }
        Err(last)
    }

    fn make_parents(&mut self, maker: &mut Maker<'_>, path: &[u8]) -> Result<(), HandError> {
        let slashes = path.iter().enumerate().filter(|(at, it)| **it == b'/' && *at > 0);
        for (at, _) in slashes {
            let parent = &path[..at];
            match maker.hand.call_path(libc::SYS_mkdir, parent, |at| [at, 0o700]) {
                Ok(_) => self.directories.push(parent.to_vec()),
                // (A directory that may not be written to exists as well: told by what comes next.)
                Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                Err(HandError::Call(failed))
                    if matches!(failed.errno, Errno::EROFS | Errno::EACCES) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives them their permissions and takes away what was only there for them.
    pub(super) fn finish(self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        for (made, identity) in self.files.into_values() {
            let mode = u64::from(identity.mode & PERMISSIONS);
            let fd = maker.give(&made).map_err(RestoreError::of("the maker"))?;
            maker
                .hand
                .call(libc::SYS_fchmod, [fd as u64, mode])
                .map_err(RestoreError::of("cannot set the permissions of a file without a name"))?;
            maker.close(fd)?;
            maker.finishes.push(set_time(made, identity.modified));
        }
        for directory in self.directories.iter().rev() {
            let what = format!("cannot remove {} again", String::from_utf8_lossy(directory));
            maker
                .hand
                .call_path(libc::SYS_rmdir, directory, |at| [at])
                .map_err(RestoreError::of(what))?;
        }
        Ok(())
    }
}

/// Once the content is there.
fn set_time(made: OwnedFd, modified: i64) -> Finish {
    Box::new(move |maker| {
        let fd = maker.give(&made).map_err(RestoreError::of("the maker"))?;
        let seconds = modified.div_euclid(1_000_000_000);
        let nanos = modified.rem_euclid(1_000_000_000);
        let times = [seconds, nanos, seconds, nanos];
        let bytes: Vec<u8> = times.iter().flat_map(|it| it.to_ne_bytes()).collect();
        maker
            .hand
            .call_with(libc::SYS_utimensat, &bytes, |at| [fd as u64, 0, at, 0])
            .map_err(RestoreError::of("cannot set the time of a file without a name"))?;
        maker.close(fd)
    })
}

/// A file that never has a name (O_TMPFILE), so that it can still get one.
fn nameless(maker: &mut Maker<'_>, path: &[u8]) -> Result<OwnedFd, HandError> {
    let end = path.iter().rposition(|it| *it == b'/').unwrap_or(0);
    let directory = if end == 0 { b"/" } else { &path[..end] };
    maker.open(directory, libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, 0o600)
}

fn memfd(maker: &mut Maker<'_>, name: &[u8], flags: u64) -> Result<OwnedFd, HandError> {
    let flags = flags | MFD_ALLOW_SEALING;
    let made = maker.hand.call_path(libc::SYS_memfd_create, name, |at| [at, flags]);
    let made = match made {
        // Linux 6.3 knows the flags about execution first.
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            maker.hand.call_path(libc::SYS_memfd_create, name, |at| [at, MFD_ALLOW_SEALING])?
        }
        made => made?,
    };
    maker.take_and_close(made as i32)
}

/// Has a file get its size now and its content later.
fn receive(
    maker: &mut Maker<'_>,
    made: &OwnedFd,
    object: u32,
    size: u64,
) -> Result<(), RestoreError> {
    let what = "cannot make a file without a name again";
    let size = i64::try_from(size)
        .map_err(|_| RestoreError::refused("the image has a file of no size"))?;
    nix::unistd::ftruncate(made, size).map_err(|errno| RestoreError::failed(what, errno.desc()))?;
    let copy = made.try_clone().map_err(|error| RestoreError::failed(what, error))?;
    maker.sinks.insert(object, Sink::File(File::from(copy)));
    Ok(())
}

/// Memory that has a descriptor, made when it is asked for first: by a description or by a mapping.
/// What is given can be read and written.
pub fn shared_memory(maker: &mut Maker<'_>, index: u32) -> Result<OwnedFd, RestoreError> {
    let what = "cannot make a memfd again";
    let sandbox = maker.sandbox;
    maker.shared.resize_with(sandbox.shared.len(), || None);
    let (Some(saved), Some(known)) =
        (sandbox.shared.get(index as usize), maker.shared.get(index as usize))
    else {
        return Err(RestoreError::refused(format!(
            "the image names memory ({index}) that it does not have"
        )));
    };
    let copy = |made: &OwnedFd| made.try_clone().map_err(|error| RestoreError::failed(what, error));
    if let Some(made) = known {
        return copy(made);
    }
    let SharedKind::Memfd { name, seals, mode } = &saved.kind else {
        return Err(RestoreError::refused("the image has a descriptor of memory that has none"));
    };
    let flags = if seals & F_SEAL_EXEC != 0 { MFD_NOEXEC_SEAL } else { MFD_EXEC };
    let made = memfd(maker, name, flags).map_err(RestoreError::of(what))?;
    let fd = maker.give(&made).map_err(RestoreError::of("the maker"))?;
    let arguments = [fd as u64, u64::from(mode & PERMISSIONS)];
    maker.hand.call(libc::SYS_fchmod, arguments).map_err(RestoreError::of(what))?;
    maker.close(fd)?;
    receive(maker, &made, saved.object, saved.size)?;
    let (sealed, seals) = (copy(&made)?, SealFlag::from_bits_retain(*seals as i32));
    // Sealed memory takes no content.
    maker.finishes.push(Box::new(move |_| {
        fcntl(sealed.as_fd(), FcntlArg::F_ADD_SEALS(seals))
            .map(drop)
            .map_err(|errno| RestoreError::failed("cannot seal a memfd again", errno.desc()))
    }));
    let given = copy(&made)?;
    maker.shared[index as usize] = Some(made);
    Ok(given)
}

impl Maker<'_> {
    /// A description of memory.
    pub(super) fn memory(&mut self, index: u32, file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        let memory = shared_memory(self, index)?;
        self.reopen(&memory, file)
    }
}
