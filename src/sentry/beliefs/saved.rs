//! What is believed of files that take no attribute, as an image carries it.
//!
//! The kernel's numbers for files of the sandbox's own are others after a restore. So what is believed of one is found by
//! where it lies, or by who has it open. Files of the host's own are known by their numbers, as before.
//!
//! What is read is not trusted: it is about files of the user's own in the guests' view, and no more is done to them than
//! chown(2) and chmod(2) of a guest would do.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::table::{Key, MOST};
use super::{Belief, FileBeliefs, Real};
use crate::sys::files;

/// Which file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedPlace {
    /// The one at this path of the guests' whole view.
    Path(ByteBuf),
    /// What an open file description, by its index in the image, is of; it has no name.
    Open(u32),
    /// One of the host's: device, inode, and when it was made, seconds and nanoseconds.
    Number(u64, u64, i64, u32),
}

/// What is believed of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBelief {
    /// Of which.
    pub place: SavedPlace,
    /// As an attribute would say it.
    pub belief: ByteBuf,
}

impl SavedBelief {
    /// What is believed. `None`: that cannot be.
    pub fn read(&self) -> Option<Belief> {
        Belief::parse(&self.belief).filter(|belief| !belief.is_nothing())
    }
}

/// Where files are looked for that are in the table, while all guests stand still.
#[derive(Debug)]
pub struct FileSearch<'b> {
    beliefs: &'b FileBeliefs,
    left: HashMap<Key, Belief>,
    found: Vec<SavedBelief>,
}

impl FileBeliefs {
    /// Begins to look for what is in the table.
    pub(in crate::sentry) fn search(&self) -> FileSearch<'_> {
        FileSearch { beliefs: self, left: self.table.all(), found: Vec::new() }
    }

    /// The root of the guests' file view, once it had to be known.
    pub(in crate::sentry) fn whole_view(&self) -> Option<BorrowedFd<'_>> {
        self.view.get().map(OwnedFd::as_fd)
    }

    /// Has the same believed again of what is at a path of the view, or of a file of the host's. What is not there is left
    /// out. `file`: what [`SavedPlace::Open`] stands for.
    ///
    /// # Errors
    /// EINVAL: that cannot be; or whatever changing it led to.
    pub(in crate::sentry) fn resume(
        &self,
        saved: &SavedBelief,
        file: impl FnOnce(u32) -> Option<OwnedFd>,
    ) -> Result<(), Errno> {
        let belief = saved.read().ok_or(Errno::EINVAL)?;
        let file = match &saved.place {
            SavedPlace::Path(path) => self.in_view(path),
            SavedPlace::Open(index) => Some(file(*index).ok_or(Errno::EINVAL)?),
            SavedPlace::Number(device, inode, seconds, rest) => {
                let key = Key::of_number(*device, *inode, (*seconds, *rest));
                return self.table.set(key, belief);
            }
        };
        let Some(file) = file else { return Ok(()) };
        match self.is_users(&Real::of(&fstat(&file)?)) {
            true => self.set(file.as_fd(), &belief),
            false => Ok(()),
        }
    }
}

impl FileSearch<'_> {
    /// Whether nothing is left to be found.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// What lies at this path of the guests' view, and is `file` (O_PATH).
    pub fn at(&mut self, path: &[u8], file: BorrowedFd<'_>) {
        let found = Key::of(&files::descriptor_path(file)).ok();
        if let Some(belief) = found.and_then(|key| self.left.remove(&key)) {
            self.add(SavedPlace::Path(ByteBuf::from(path)), belief);
        }
    }

    /// What has no name, and is open: `place` is the path of a descriptor in procfs, `index` that in the image. What
    /// attributes say of it counts, too: nothing else carries those.
    pub fn open(&mut self, index: u32, place: &str) {
        let Ok(path) = CString::new(place) else { return };
        let Ok(stat) = nix::sys::stat::stat(&*path) else { return };
        let belief = self.beliefs.of(&path, &Real::of(&stat));
        if let Ok(key) = Key::of(&path) {
            self.left.remove(&key);
        }
        if !belief.is_nothing() {
            self.add(SavedPlace::Open(index), belief);
        }
    }

    fn add(&mut self, place: SavedPlace, belief: Belief) {
        self.found.push(SavedBelief { place, belief: ByteBuf::from(belief.text()) });
    }

    /// All of them. What was not found is a file of the host's, or is gone: it is known by its numbers, if these tell it
    /// from a later one.
    pub fn finish(mut self) -> Vec<SavedBelief> {
        for (key, belief) in std::mem::take(&mut self.left) {
            if let Some((device, inode, (seconds, rest))) = key.number() {
                self.add(SavedPlace::Number(device, inode, seconds, rest), belief);
            }
        }
        self.found
    }
}

/// Whether so many can be.
pub fn is_sound(all: &[SavedBelief]) -> bool {
    all.len() <= 2 * MOST && all.iter().all(|saved| saved.read().is_some())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
    use nix::sys::stat::{Mode, lstat};

    use super::*;

    fn handle(path: &std::path::Path) -> OwnedFd {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(AT_FDCWD, path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn what_is_believed_is_found_by_its_place_and_goes_on() {
        let here = std::env::temp_dir().join(format!("sandbox-beliefs-{}", std::process::id()));
        std::fs::create_dir_all(&here).unwrap();
        let user = std::fs::metadata(&here).unwrap().uid();
        let (link, other) = (here.join("link"), here.join("other"));
        for path in [&link, &other] {
            symlink("nowhere", path).unwrap();
        }
        let before = FileBeliefs::default();
        before.give(handle(&link).as_fd(), user + 7, user + 8).unwrap();
        before.give(handle(&other).as_fd(), user + 9, u32::MAX).unwrap();
        let (reading, writing) = std::io::pipe().unwrap();
        before.give(reading.as_fd(), user + 10, u32::MAX).unwrap();
        let mut search = before.search();
        let name = link.as_os_str().as_encoded_bytes();
        search.at(name, handle(&link).as_fd());
        search.open(3, files::descriptor_path(reading.as_fd()).to_str().unwrap());
        assert!(!search.is_done());
        let saved = search.finish();
        assert_eq!(saved.len(), 3);
        assert!(is_sound(&saved));
        // Another one has the place by then.
        std::fs::remove_file(&link).unwrap();
        symlink("elsewhere", &link).unwrap();
        let after = FileBeliefs::default();
        let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        after.view.set(root).unwrap();
        for it in &saved {
            after
                .resume(it, |index| (index == 3).then(|| writing.try_clone().unwrap().into()))
                .unwrap();
        }
        let owner = |path: &std::path::Path| {
            let real = Real::of(&lstat(path).unwrap());
            after.of(&files::descriptor_path(handle(path).as_fd()), &real)
        };
        assert_eq!((owner(&link).uid, owner(&link).gid), (Some(user + 7), Some(user + 8)));
        assert_eq!(owner(&other).uid, Some(user + 9));
        let end = files::descriptor_path(reading.as_fd());
        let real = Real::of(&fstat(&reading).unwrap());
        assert_eq!(after.of(&end, &real).uid, Some(user + 10));
        let forged = SavedBelief { belief: ByteBuf::from(b"u4294967295"), ..saved[0].clone() };
        assert_eq!(after.resume(&forged, |_| None), Err(Errno::EINVAL));
        std::fs::remove_dir_all(here).unwrap();
    }
}
