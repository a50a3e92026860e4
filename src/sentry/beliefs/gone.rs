//! Which of some files are gone: all that can be written to is looked through, since nothing tells of a file's end.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;

use super::FileBeliefs;
use super::table::Key;
use crate::sys::{files, listing};

/// Looks through so many names at most; where there are more, nothing is known to be gone.
const MOST_NAMES: usize = 5_000_000;
/// In one directory, whose names are all held at once.
const MOST_AT_ONCE: usize = 200_000;
/// Of the paths that are left to be looked through, in bytes.
const MOST_LEFT: usize = 64 << 20;

/// Places and their links are the guests': none is followed.
const STAY: ResolveFlag = ResolveFlag::RESOLVE_NO_SYMLINKS
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS)
    .union(ResolveFlag::RESOLVE_NO_XDEV);

impl FileBeliefs {
    /// Those of these files that have no name in the guests' file view any more.
    pub(super) fn gone(&self, all: HashSet<Key>) -> Result<HashSet<Key>, Errno> {
        // What is given another name meanwhile can be missed once.
        const ROUNDS: usize = 2;
        let (view, places) = self.view.get().zip(self.writable.get()).ok_or(Errno::ENOSPC)?;
        let mut search = Search { user: self.user, missing: all, names: 0 };
        for _ in 0..ROUNDS {
            search.names = 0;
            for place in places {
                search.place(view, place)?;
            }
        }
        Ok(search.missing)
    }
}

struct Search {
    user: u32,
    missing: HashSet<Key>,
    /// Seen in this round.
    names: usize,
}

impl Search {
    /// Looks through what is mounted at an absolute path of the view.
    fn place(&mut self, view: &OwnedFd, place: &[u8]) -> Result<(), Errno> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW);
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let found = openat2(view.as_fd(), OsStr::from_bytes(place), how.resolve(resolve));
        let root = match found {
            Ok(root) => root,
            // (What is covered by another mount is out of everybody's sight.)
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        self.look(&files::descriptor_path(root.as_fd()));
        let mut left = vec![b".".to_vec()];
        let mut bytes = 1;
        while let Some(path) = left.pop() {
            bytes -= path.len();
            let Some(directory) = self.open(&root, &path)? else { continue };
            let here = files::descriptor_path(directory.as_fd());
            for entry in listing::entries(directory.as_fd(), MOST_AT_ONCE)? {
                if matches!(&*entry.name, b"." | b"..") {
                    continue;
                }
                self.names += 1;
                if self.names > MOST_NAMES {
                    return Err(Errno::E2BIG);
                }
                if let Ok(name) = CString::new([here.to_bytes(), &entry.name].join(&b'/')) {
                    self.look(&name);
                }
                if matches!(entry.kind, libc::DT_DIR | libc::DT_UNKNOWN) {
                    let path = [&path[..], &entry.name].join(&b'/');
                    bytes += path.len();
                    if bytes > MOST_LEFT {
                        return Err(Errno::E2BIG);
                    }
                    left.push(path);
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, path: &CStr) {
        if let Ok(key) = Key::of(path) {
            self.missing.remove(&key);
        }
    }

    /// Opens a directory. `None`: it is none, is gone, lies on another mount, or no guest can look into it.
    fn open(&self, root: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let path = OsStr::from_bytes(path);
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat2(root.as_fd(), path, OpenHow::new().flags(flags).resolve(STAY)) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(Errno::EACCES) => {
                let handle = OpenHow::new().flags(flags | OFlag::O_PATH).resolve(STAY);
                let owner = openat2(root.as_fd(), path, handle).and_then(fstat);
                // Root inside may enter a directory of the user's own whose mode is against it (DAC_OVERRIDE).
                match owner?.st_uid == self.user {
                    true => Err(Errno::EACCES),
                    false => Ok(None),
                }
            }
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use nix::fcntl::{AT_FDCWD, open, openat};
    use nix::sys::stat::{Mode, lstat};

    use super::super::table::Table;
    use super::super::{Belief, Real};
    use super::*;

    fn handle(path: &Path) -> OwnedFd {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(AT_FDCWD, path, flags, Mode::empty()).unwrap()
    }

    fn owner(beliefs: &FileBeliefs, path: &Path) -> Option<u32> {
        let real = Real::of(&lstat(path).unwrap());
        beliefs.of(&files::descriptor_path(handle(path).as_fd()), &real).uid
    }

    #[test]
    fn what_is_gone_makes_room() {
        let here = std::env::temp_dir().join(format!("sandbox-gone-{}", std::process::id()));
        let (place, other) = (here.join("place"), here.join("other"));
        fs::create_dir_all(place.join("deep/er")).unwrap();
        fs::create_dir(&other).unwrap();
        let beliefs = FileBeliefs { table: Table::with(16), ..FileBeliefs::default() };
        let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let user = fs::metadata(&here).unwrap().uid();
        beliefs.view.set(root).unwrap();
        let places = vec![here.as_os_str().as_bytes().to_vec(), b"/nowhere".to_vec()];
        beliefs.writable.set(places).unwrap();
        let make = |path: &Path, uid: u32| {
            symlink("nowhere", path).unwrap();
            beliefs.give(handle(path).as_fd(), uid, u32::MAX)
        };
        let stays = place.join("deep/er/link");
        make(&stays, user + 7).unwrap();
        // Many more than there is room for.
        for round in 0..100 {
            let path = place.join(round.to_string());
            make(&path, user + 8).unwrap();
            assert_eq!(owner(&beliefs, &path), Some(user + 8));
            fs::remove_file(&path).unwrap();
        }
        // Another name, and another directory.
        let moved = other.join("moved");
        fs::rename(&stays, &moved).unwrap();
        for round in 0..100 {
            let path = place.join(round.to_string());
            make(&path, user + 8).unwrap();
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(owner(&beliefs, &moved), Some(user + 7));
        // What is there is not forgotten: then there is no room.
        let made = (0..40).find_map(|it| make(&other.join(it.to_string()), user + 9).err());
        assert_eq!(made, Some(Errno::ENOSPC));
        assert_eq!(owner(&beliefs, &moved), Some(user + 7));
        let belief = Belief { uid: Some(user + 1), ..Belief::default() };
        beliefs.set(handle(&moved).as_fd(), &belief).unwrap();
        assert_eq!(owner(&beliefs, &moved), Some(user + 1));
        fs::remove_dir_all(&here).unwrap();
    }
}
