//! Directories, listed in the order of their names (`--deterministic`).
//!
//! The order in which a file system lists names depends on its make, on what was there before, on secrets of
//! the moment. So the sentry reads the whole directory when a guest begins to, sorts it, and gives it out of
//! that *snapshot*.
//!
//! Where a guest is in it, is kept where the kernel would keep it: as the position of the open directory
//! itself, which whoever shares that (dup(2), fork(2)) shares, which lseek(2) tells and sets, and which
//! rewinddir(3), telldir(3) and seekdir(3) are about. Positions of a directory are numbers that the snapshots
//! of it divide among themselves: N names have the positions behind them, and the next snapshot goes on from
//! there. So a reader goes on in the snapshot that it began with, whatever comes and goes meanwhile, and all
//! that was there for the whole time is listed once, as POSIX wants it. File systems take such positions:
//! none looks at one before it is to list from there.
//!
//! Snapshots are forgotten when there are too many. Who then goes on is given the rest of the directory as it
//! is now, which is the same unless it has changed.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::sys::listing::{self, Entry};

/// More names than that are not sorted.
const MOST_NAMES: usize = 1 << 20;

/// Directories of so many are read side by side: they take a few MiB each.
const FEW_NAMES: usize = 1 << 14;

/// So many names are remembered in half of all snapshots; the other half is being forgotten.
const MOST_KEPT: usize = 1 << 17;

/// What a snapshot costs, counted in names.
const OVERHEAD: usize = 8;

/// NAME_MAX (limits.h).
const LONGEST_NAME: usize = 255;

/// No file system takes less (s_maxbytes of fs/super.c is MAX_NON_LFS where nobody sets it).
const LAST_POSITION: usize = i32::MAX as usize;

/// So far apart begin the positions of snapshots: a position tells how many names came before it, also when its
/// snapshot is forgotten. More than [`MOST_NAMES`].
const STRIDE: usize = 1 << 21;

/// The layout of what a guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `struct linux_dirent` of getdents(2).
    Old,
    /// `struct linux_dirent64`.
    New,
}

/// The snapshots of one sandbox.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// One is held while a guest reads: two threads with one directory take turns, as in the kernel. Before
    /// all leaves of the lock order.
    turns: [Mutex<()>; 16],
    /// One directory of more than [`FEW_NAMES`] is read at a time. After `turns`.
    large: Mutex<()>,
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
}

/// Device and inode.
type Key = (u64, u64);

/// Protected by `Listings::inner`.
#[derive(Debug, Default)]
struct Inner {
    /// Those that were of use lately.
    recent: HashMap<Key, Directory>,
    /// How many names they hold.
    names: usize,
    /// Those that were before.
    old: HashMap<Key, Directory>,
}

/// The snapshots of a directory, oldest first.
type Directory = VecDeque<Snapshot>;

#[derive(Debug, Clone)]
struct Snapshot {
    /// The position before its first name; the one behind name N is N + 1 more.
    base: usize,
    entries: Arc<Vec<Entry>>,
}

impl Snapshot {
    fn end(&self) -> usize {
        self.base + self.entries.len()
    }

    fn has(&self, position: usize) -> bool {
        self.base < position && position <= self.end()
    }
}

impl Listings {
    /// Gives the next entries of an open directory, at most `room` bytes of them, and moves its position behind
    /// them. Gives how many bytes; 0: it is at its end. EINVAL: there is no room for the next entry.
    pub(super) fn read(
        &self,
        directory: BorrowedFd<'_>,
        form: Form,
        room: usize,
        give: impl FnOnce(&[u8]) -> Result<(), Errno>,
    ) -> Result<usize, Errno> {
        let status = fstat(directory)?;
        if status.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let flags = OFlag::from_bits_retain(fcntl(directory, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_PATH) {
            return Err(Errno::EBADF);
        }
        let key = (status.st_dev, status.st_ino);
        let turn = &self.turns[(key.0 ^ key.1) as usize % self.turns.len()];
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let position = lseek(directory, 0, Whence::SeekCur)?;
        let start = usize::try_from(position).map_err(|_| Errno::EINVAL)?;
        let (snapshot, index) = match self.find(key, start) {
            Some(found) => found,
            None => {
                let found = self.take(directory, key, start);
                // Reading has moved it.
                lseek(directory, position, Whence::SeekSet)?;
                found?
            }
        };
        let (bytes, next) = records(&snapshot, index, form, room)?;
        if !bytes.is_empty() {
            give(&bytes)?;
            lseek(directory, (snapshot.base + next) as i64, Whence::SeekSet)?;
        }
        Ok(bytes.len())
    }

    /// The snapshot that a position is in, and the index of what comes next.
    fn find(&self, key: Key, position: usize) -> Option<(Snapshot, usize)> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = inner.directory(key).iter().find(|it| it.has(position))?.clone();
        let index = position - snapshot.base;
        Some((snapshot, index))
    }

    /// Reads the directory anew; for a reader that begins, or whose snapshot is forgotten.
    fn take(
        &self,
        directory: BorrowedFd<'_>,
        key: Key,
        position: usize,
    ) -> Result<(Snapshot, usize), Errno> {
        lseek(directory, 0, Whence::SeekSet)?;
        let few = listing::entries(directory, FEW_NAMES);
        let _turn;
        let mut entries = match few {
            Err(Errno::E2BIG) => {
                _turn = self.large.lock().unwrap_or_else(PoisonError::into_inner);
                lseek(directory, 0, Whence::SeekSet)?;
                listing::entries(directory, MOST_NAMES)?
            }
            few => few?,
        };
        // The two come first everywhere, and some programs count on it.
        let rank = |entry: &Entry| match &*entry.name {
            b"." => 0,
            b".." => 1,
            _ => 2,
        };
        entries.sort_unstable_by(|a, b| (rank(a), &a.name).cmp(&(rank(b), &b.name)));
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = inner.add(key, entries);
        let index = (position % STRIDE).min(snapshot.entries.len());
        Ok((snapshot, index))
    }
}

/// A snapshot that somebody reads, as an image carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedListing {
    /// Who reads: an index among the open files of the image.
    pub file: u32,
    /// The position before its first name.
    pub base: u64,
    /// Inode, kind and name of each entry.
    pub entries: Vec<(u64, u8, ByteBuf)>,
}

impl Listings {
    /// What is read at this position of a directory.
    pub(super) fn saved(&self, key: Key, position: usize) -> Option<SavedListing> {
        let (Snapshot { base, entries }, _) = self.find(key, position)?;
        let entries = entries.iter().map(|it| (it.inode, it.kind, ByteBuf::from(&*it.name)));
        Some(SavedListing { file: 0, base: base as u64, entries: entries.collect() })
    }

    /// A reader of this directory goes on. `None`: it makes no sense.
    pub(super) fn resume(&self, directory: BorrowedFd<'_>, saved: &SavedListing) -> Option<()> {
        let status = fstat(directory).ok()?;
        let base = usize::try_from(saved.base).ok()?;
        let is_name = |name: &[u8]| {
            (1..=LONGEST_NAME).contains(&name.len()) && !name.iter().any(|it| b"\0/".contains(it))
        };
        let fits = base % STRIDE == 0
            && saved.entries.len() <= MOST_NAMES
            && base.checked_add(saved.entries.len())? <= LAST_POSITION;
        if !fits || !saved.entries.iter().all(|(_, _, name)| is_name(name)) {
            return None;
        }
        let entry = |(inode, kind, name): &(u64, u8, ByteBuf)| Entry {
            inode: *inode,
            kind: *kind,
            name: name.as_slice().into(),
        };
        let entries = Arc::new(saved.entries.iter().map(entry).collect());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.put((status.st_dev, status.st_ino), Snapshot { base, entries });
        Some(())
    }
}

impl Inner {
    /// A snapshot with a place of its own among those of a directory.
    fn put(&mut self, key: Key, snapshot: Snapshot) {
        let added = weight(&snapshot);
        let directory = self.directory(key);
        match directory.binary_search_by_key(&snapshot.base, |it| it.base) {
            // Another reader has brought it.
            Ok(_) => {}
            Err(at) => {
                directory.insert(at, snapshot);
                self.names += added;
            }
        }
    }

    fn directory(&mut self, key: Key) -> &mut Directory {
        if let Some(old) = self.old.remove(&key) {
            self.names += old.iter().map(weight).sum::<usize>();
            self.recent.insert(key, old);
        }
        self.recent.entry(key).or_default()
    }

    fn add(&mut self, key: Key, entries: Vec<Entry>) -> Snapshot {
        if self.names > MOST_KEPT {
            self.old = std::mem::take(&mut self.recent);
            self.names = 0;
        }
        let directory = self.directory(key);
        if let Some(same) = directory.back().filter(|last| *last.entries == entries) {
            return same.clone();
        }
        let mut base = directory.back().map_or(0, |last| last.base + STRIDE);
        let held: usize = directory.iter().map(weight).sum();
        let mut lost = 0;
        if base + entries.len() > LAST_POSITION || held > MOST_KEPT {
            base = 0;
            lost = held;
            directory.clear();
        }
        let snapshot = Snapshot { base, entries: Arc::new(entries) };
        directory.push_back(snapshot.clone());
        self.names = (self.names + weight(&snapshot)).saturating_sub(lost);
        snapshot
    }
}

fn weight(snapshot: &Snapshot) -> usize {
    snapshot.entries.len() + OVERHEAD
}

/// Entries from `index` on as a guest gets them, and the index of the first that is left.
fn records(
    snapshot: &Snapshot,
    index: usize,
    form: Form,
    room: usize,
) -> Result<(Vec<u8>, usize), Errno> {
    let mut bytes = Vec::new();
    let mut next = index;
    for entry in snapshot.entries.iter().skip(index) {
        // Name and NUL behind 18 bytes, and the type: behind the length in the new form, last in the old.
        let length = (19 + entry.name.len() + 1).next_multiple_of(8);
        if bytes.len() + length > room {
            if next == index {
                return Err(Errno::EINVAL);
            }
            break;
        }
        let start = bytes.len();
        next += 1;
        bytes.extend(entry.inode.to_ne_bytes());
        bytes.extend(((snapshot.base + next) as u64).to_ne_bytes());
        bytes.extend((length as u16).to_ne_bytes());
        if form == Form::New {
            bytes.push(entry.kind);
        }
        bytes.extend_from_slice(&entry.name);
        bytes.resize(start + length, 0);
        if form == Form::Old {
            bytes[start + length - 1] = entry.kind;
        }
    }
    Ok((bytes, next))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str, names: &[&str]) -> Place {
            let place =
                std::env::temp_dir().join(format!("listings-{name}-{}", std::process::id()));
            std::fs::create_dir(&place).unwrap();
            let place = Place(place);
            names.iter().for_each(|name| place.make(name));
            place
        }

        fn make(&self, name: &str) {
            std::fs::write(self.0.join(name), "").unwrap();
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.0.join(name)).unwrap();
        }

        fn open(&self) -> File {
            File::open(&self.0).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Names, and the position behind each.
    fn some(listings: &Listings, file: &File, room: usize) -> Vec<(String, u64)> {
        let mut given = Vec::new();
        let count = listings.read(file.as_fd(), Form::New, room, |bytes| {
            given = bytes.to_vec();
            Ok(())
        });
        assert_eq!(count, Ok(given.len()));
        let mut all = Vec::new();
        let mut rest = &given[..];
        while !rest.is_empty() {
            let length = u16::from_ne_bytes([rest[16], rest[17]]) as usize;
            let name = rest[19..length].split(|byte| *byte == 0).next().unwrap();
            let position = u64::from_ne_bytes(rest[8..16].try_into().unwrap());
            all.push((String::from_utf8(name.to_vec()).unwrap(), position));
            rest = &rest[length..];
        }
        all
    }

    fn names(listings: &Listings, file: &File, room: usize) -> Vec<String> {
        some(listings, file, room).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn names_are_sorted_and_positions_are_kept_in_the_directory() {
        let place = Place::new("sorted", &["b", "a", "\u{e9}", "!", "Z"]);
        let (listings, file) = (Listings::default(), place.open());
        let all = some(&listings, &file, 4096);
        let found: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, [".", "..", "!", "Z", "a", "b", "\u{e9}"]);
        assert_eq!(some(&listings, &file, 4096), []);
        // Who shares the open directory shares the position; who has opened it anew does not.
        assert_eq!(some(&listings, &file.try_clone().unwrap(), 4096), []);
        assert_eq!(names(&listings, &place.open(), 24), ["."]);
        // Back to behind "Z".
        lseek(&file, all[3].1 as i64, Whence::SeekSet).unwrap();
        assert_eq!(names(&listings, &file, 4096), ["a", "b", "\u{e9}"]);
        lseek(&file, 0, Whence::SeekSet).unwrap();
        assert_eq!(some(&listings, &file, 4096), all);
    }

    #[test]
    fn what_comes_and_goes_neither_hides_nor_repeats_the_rest() {
        let place = Place::new("changing", &["a", "b", "c", "d"]);
        let (listings, file) = (Listings::default(), place.open());
        assert_eq!(names(&listings, &file, 3 * 24), [".", "..", "a"]);
        place.remove("a");
        place.make("0");
        // Another reader takes a snapshot of its own.
        let other = place.open();
        assert_eq!(names(&listings, &other, 4 * 24), [".", "..", "0", "b"]);
        assert_eq!(names(&listings, &file, 24), ["b"]);
        place.remove("b");
        assert_eq!(names(&listings, &file, 4096), ["c", "d"]);
        assert_eq!(names(&listings, &other, 4096), ["c", "d"]);
        lseek(&file, 0, Whence::SeekSet).unwrap();
        assert_eq!(names(&listings, &file, 4096), [".", "..", "0", "c", "d"]);
        // Forgotten, and unchanged since.
        lseek(&file, 0, Whence::SeekSet).unwrap();
        let fresh = Listings::default();
        assert_eq!(names(&fresh, &file, 3 * 24), [".", "..", "0"]);
        assert_eq!(names(&Listings::default(), &file, 4096), ["c", "d"]);
        assert_eq!(names(&Listings::default(), &file, 4096), [] as [&str; 0]);
        // The same with one that was not the first.
        let (second, one, two) = (Listings::default(), place.open(), place.open());
        assert_eq!(names(&second, &one, 24), ["."]);
        place.make("z");
        assert_eq!(names(&second, &two, 3 * 24), [".", "..", "0"]);
        assert_eq!(names(&Listings::default(), &two, 4096), ["c", "d", "z"]);
    }

    #[test]
    fn who_reads_goes_on_after_a_restore_whatever_has_changed() {
        let place = Place::new("saved", &["a", "b", "c"]);
        let (before, file, other) = (Listings::default(), place.open(), place.open());
        assert_eq!(names(&before, &file, 3 * 24), [".", "..", "a"]);
        place.make("aa");
        assert_eq!(names(&before, &other, 4 * 24), [".", "..", "a", "aa"]);
        let status = fstat(&file).unwrap();
        let key = (status.st_dev, status.st_ino);
        let after = Listings::default();
        for file in [&other, &file, &file] {
            let position = lseek(file, 0, Whence::SeekCur).unwrap() as usize;
            let saved = before.saved(key, position).unwrap();
            after.resume(file.as_fd(), &saved).unwrap();
        }
        place.remove("c");
        assert_eq!(names(&after, &file, 4096), ["b", "c"]);
        assert_eq!(names(&after, &other, 4096), ["b", "c"]);
        assert_eq!(before.saved(key, 0), None);
        let sound = SavedListing { file: 0, base: 0, entries: vec![(1, 8, ByteBuf::from("a"))] };
        let named = |name: &[u8]| vec![(1, 8, ByteBuf::from(name))];
        for bad in [
            SavedListing { base: 1, ..sound.clone() },
            SavedListing { base: u64::MAX / 2, ..sound.clone() },
            SavedListing { entries: named(b""), ..sound.clone() },
            SavedListing { entries: named(b"a/b"), ..sound.clone() },
            SavedListing { entries: named(&[b'a'; 256]), ..sound },
        ] {
            assert_eq!(after.resume(file.as_fd(), &bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_cannot_be_given_moves_nothing() {
        let place = Place::new("errors", &["a-rather-long-name"]);
        let (listings, file) = (Listings::default(), place.open());
        let read = |room, result| listings.read(file.as_fd(), Form::New, room, |_| result);
        assert_eq!(read(23, Ok(())), Err(Errno::EINVAL));
        assert_eq!(read(4096, Err(Errno::EFAULT)), Err(Errno::EFAULT));
        assert_eq!(read(2 * 24 + 39, Ok(())), Ok(48));
        assert_eq!(read(39, Ok(())), Err(Errno::EINVAL));
        assert_eq!(read(40, Ok(())), Ok(40));
        assert_eq!(read(0, Ok(())), Ok(0));
        let name = place.0.join("a-rather-long-name");
        let plain = File::open(name).unwrap();
        let result = listings.read(plain.as_fd(), Form::New, 4096, |_| Ok(()));
        assert_eq!(result, Err(Errno::ENOTDIR));
        let gone = place.open();
        std::fs::remove_dir_all(&place.0).unwrap();
        let result = listings.read(gone.as_fd(), Form::New, 4096, |_| Ok(()));
        assert_eq!(result, Err(Errno::ENOENT));
    }

    #[test]
    fn both_layouts_are_the_kernels() {
        let entry = Entry { inode: 7, kind: 4, name: (*b"name").into() };
        let snapshot = Snapshot { base: 10, entries: Arc::new(vec![entry]) };
        let (new, next) = records(&snapshot, 0, Form::New, 100).unwrap();
        assert_eq!((new.len(), next, new[16], new[18]), (24, 1, 24, 4));
        assert_eq!((&new[19..24], new[8]), (&b"name\0"[..], 11));
        let (old, _) = records(&snapshot, 0, Form::Old, 100).unwrap();
        assert_eq!((old.len(), &old[18..24]), (24, &b"name\0\x04"[..]));
    }

    #[test]
    fn memory_is_bounded() {
        let mut inner = Inner::default();
        let many = |first: usize| -> Vec<Entry> {
            let name = |number: usize| number.to_string().into_bytes().into_boxed_slice();
            (first..first + 1000).map(|it| Entry { inode: 1, kind: 8, name: name(it) }).collect()
        };
        for round in 0..1000 {
            inner.add((1, round as u64 % 300), many(round));
            inner.add((2, 2), many(round));
        }
        let held =
            |map: &HashMap<Key, Directory>| map.values().flatten().map(weight).sum::<usize>();
        let total = held(&inner.recent) + held(&inner.old);
        assert!(total <= 4 * MOST_KEPT, "{total}");
        assert_eq!(held(&inner.recent), inner.names);
    }
}
