//! Files of the host that somebody has let a guest have (`--ask files`), opened past the file view.
//!
//! Found by the host's own path, over no link, and with no more rights than the guest has. A descriptor is of the
//! host's mount, through which its owner could do more to the file than was asked for. So one that is to be read is
//! copied; and nothing but plain files is ever given, since a directory would lead on.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;
use nix::unistd::{AccessFlags, faccessat};

use super::copies::{Copies, Copying};
use super::open::{Opened, Wish, open_unleased};
use super::resolve::{Landing, Resolver, Start, Thing, patient};
use super::{Guest, HANDLE, Paths, joined, take_umask};
use crate::sys::disguise::{Disguise, Owner};
use crate::sys::files;

impl Paths {
    /// Makes such a file, or opens it to be changed.
    ///
    /// # Errors
    /// What open(2) says.
    pub(in crate::sentry) fn open_granted(
        &self,
        guest: Guest<'_>,
        path: &Path,
        wish: Wish,
    ) -> Result<Opened, Errno> {
        let owner = self.owner(guest)?;
        self.with(guest, |_| open_granted(path, wish, guest.tid, owner))
    }

    /// Begins to copy such a file.
    ///
    /// # Errors
    /// It cannot be begun.
    pub(in crate::sentry) fn copy_granted(
        &self,
        guest: Guest<'_>,
        path: PathBuf,
        copies: &std::sync::Arc<Copies>,
        place: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<Copying, Errno> {
        let owner = self.owner(guest)?.cloned();
        let kept = std::sync::Arc::clone(copies);
        copies.begin(place, move || {
            let _worn = owner.as_ref().map(Disguise::put_on).transpose()?;
            copy_granted(&path, &kept)
        })
    }
}

impl Resolver<'_> {
    /// By which path of the view a guest's path is known, whether or not there is anything. The first of those that are
    /// given is that of a link at its end itself.
    pub(in crate::sentry) fn known_as(&self, start: Start, path: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        match self.walk(start, path, false) {
            Ok(landing) => {
                let is_link =
                    matches!(&landing, Landing::Name { found: Some(it), .. } if it.is_link());
                found.extend(self.path_of_landing(&landing));
                if is_link && let Ok(landing) = self.walk(start, path, true) {
                    found.extend(self.path_of_landing(&landing));
                }
            }
            Err(_) => found.extend(self.below_what_is_there(start, path)),
        }
        found
    }

    fn path_of_landing(&self, landing: &Landing) -> Option<Vec<u8>> {
        match landing {
            Landing::Name { parent, name, slash: false, .. } => {
                Some(joined(&self.view.path_of(parent).ok()?, name))
            }
            Landing::Name { .. } | Landing::Thing(_) => None,
        }
    }

    /// The same of a path that leads nowhere: as far as there is something, and what is behind that as it was written.
    fn below_what_is_there(&self, start: Start, path: &[u8]) -> Option<Vec<u8>> {
        let mut end = path.len();
        loop {
            let slash = path[..end].iter().rposition(|byte| *byte == b'/')?;
            let rest = &path[slash + 1..];
            if rest.split(|byte| *byte == b'/').any(|name| [&b""[..], b".", b".."].contains(&name))
            {
                return None;
            }
            let directory = if slash == 0 { &b"/"[..] } else { &path[..slash] };
            if let Ok(landing) = self.walk(start, directory, true) {
                let above = match &landing {
                    Landing::Thing(thing) => self.view.path_of(&thing.handle).ok()?,
                    Landing::Name { found: Some(_), .. } => self.path_of_landing(&landing)?,
                    Landing::Name { found: None, .. } => {
                        end = slash;
                        continue;
                    }
                };
                return above.starts_with(b"/").then(|| joined(&above, rest));
            }
            end = slash;
        }
    }
}

/// Whether it makes sense to ask for this file of the host: the guest could open it so if it were in its view.
pub(in crate::sentry) fn could_open(path: &Path, wish: Wish) -> bool {
    let mode = match (wish.reads(), wish.changes()) {
        (true, true) => AccessFlags::R_OK | AccessFlags::W_OK,
        (_, true) => AccessFlags::W_OK,
        _ => AccessFlags::R_OK,
    };
    match find(path) {
        Ok(found) => {
            let is_plain = fstat(&found).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFREG);
            let path = files::descriptor_path(found.as_fd());
            is_plain && !wish.is_exclusive() && may(&path, mode)
        }
        Err(Errno::ENOENT) => {
            let above = path.parent().map(find_directory);
            wish.creates()
                && above.and_then(Result::ok).is_some_and(|above| {
                    let path = files::descriptor_path(above.as_fd());
                    may(&path, AccessFlags::W_OK | AccessFlags::X_OK)
                })
        }
        Err(_) => false,
    }
}

fn may(path: &std::ffi::CStr, mode: AccessFlags) -> bool {
    faccessat(nix::fcntl::AT_FDCWD, path, mode, AtFlags::AT_EACCESS).is_ok()
}

fn open_granted(path: &Path, wish: Wish, tid: i32, owner: Option<&Owner>) -> Result<Opened, Errno> {
    match find(path) {
        Err(Errno::ENOENT) if wish.creates() => make(path, wish, tid).map(Opened::New),
        Err(errno) => Err(errno),
        Ok(handle) => {
            let stat = fstat(&handle)?;
            if wish.is_exclusive() {
                return Err(Errno::EEXIST);
            }
            // (One that has come just now, and is to be read alone, was not what somebody was asked about.)
            if stat.st_mode & libc::S_IFMT != libc::S_IFREG || !wish.changes() {
                return Err(Errno::EACCES);
            }
            open_unleased(Thing { handle, stat }, wish, owner)
        }
    }
}

/// What such a file holds now. It may take its time: another's lease is waited for, and the file system.
fn copy_granted(path: &Path, copies: &Copies) -> Result<OwnedFd, Errno> {
    let found = find(path)?;
    if fstat(&found)?.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::EACCES);
    }
    let file = files::open_descriptor(found.as_fd(), libc::O_RDONLY)?;
    copies.of(file.into())
}

/// A handle of what has this path on the host.
fn find(path: &Path) -> Result<OwnedFd, Errno> {
    opened(path, HANDLE | OFlag::O_NOFOLLOW)
}

fn find_directory(path: &Path) -> Result<OwnedFd, Errno> {
    opened(path, HANDLE | OFlag::O_DIRECTORY)
}

/// A guest may have put links where it can write: what was asked about is what has this path.
fn opened(path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    patient(|| openat2(nix::fcntl::AT_FDCWD, path, how))
}

fn make(path: &Path, wish: Wish, tid: i32) -> Result<OwnedFd, Errno> {
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(Errno::EISDIR)?;
    let parent = find_directory(parent)?;
    take_umask(tid)?;
    let how = OpenHow::new().flags(wish.making()).mode(wish.mode());
    let how = how.resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    patient(|| openat2(parent.as_fd(), name, how))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_plain_file_alone_is_given_and_over_no_link() {
        let place = std::env::temp_dir().canonicalize().unwrap();
        let place = place.join(format!("sandbox-granted-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let at = |name: &str| place.join(name);
        std::fs::write(at("key"), "secret").unwrap();
        std::fs::set_permissions(at("key"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        symlink("key", at("link")).unwrap();
        symlink("directory", at("way")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        let wish = |flags| Wish::of(flags, 0o640).unwrap().unwrap();
        let read = wish(libc::O_RDONLY);
        let copies = Copies::default();
        for _ in 0..2 {
            let own = copy_granted(&at("key"), &copies).unwrap();
            assert_eq!(fstat(&own).unwrap().st_mode & 0o777, 0o600);
            let mut text = String::new();
            // Whoever has one copy cannot change another's.
            let again = files::open_descriptor(own.as_fd(), libc::O_RDWR).unwrap();
            assert!(File::from(again).write_all(b"x").is_err());
            File::from(own).read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), copies.count()), ("secret", 1));
        }
        for (name, errno) in [
            ("link", Errno::EACCES),
            ("directory", Errno::EACCES),
            ("fifo", Errno::EACCES),
            ("nothing", Errno::ENOENT),
        ] {
            assert!(!could_open(&at(name), read), "{name}");
            assert_eq!(copy_granted(&at(name), &copies).unwrap_err(), errno, "{name}");
        }
        let new = wish(libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL);
        assert!(could_open(&at("directory/new"), new) && !could_open(&at("key"), new));
        let way = open_granted(&at("way/new"), new, std::process::id() as i32, None);
        assert_eq!(way.unwrap_err(), Errno::ELOOP);
        let write = wish(libc::O_WRONLY | libc::O_TRUNC);
        assert!(could_open(&at("key"), write));
        drop(open_granted(&at("key"), write, 0, None).unwrap());
        assert_eq!(std::fs::read(at("key")).unwrap(), b"");
        std::fs::remove_dir_all(place).unwrap();
    }
}
