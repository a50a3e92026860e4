//! Reading a directory: some entries at a time, one at a time, or all at once.
//!
//! readdir(3) fetches many entries at once, which may be out of date when the caller comes to them:
//! in /proc that takes microseconds. Here the caller says when it wants them fresh ([`Listing::refresh`]).

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The kernel refuses a buffer that the next entry does not fit in; a number needs no more than a struct of 32 bytes, so
/// that two do not fit in this.
const ROOM: usize = 40;

/// Room for the longest name there can be (NAME_MAX).
const MOST_ROOM: usize = 280;

/// `struct linux_dirent64` (getdents64(2)): where its length and its name are.
const LENGTH: usize = 16;
/// Where the entry behind it is read.
const NEXT: usize = 8;
const NAME: usize = 19;
/// Where its type (DT_*) is; the number of the inode comes first.
const KIND: usize = 18;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of its inode.
    pub inode: u64,
    /// DT_* (readdir(3)).
    pub kind: u8,
    /// Its name.
    pub name: Box<[u8]>,
}

/// All entries of an open directory from where it stands; it is left at its end. E2BIG: there are more than
/// `most`.
pub fn entries(directory: BorrowedFd<'_>, most: usize) -> Result<Vec<Entry>, Errno> {
    // Most are small.
    let mut buffer = vec![0; 1 << 12];
    let mut all = Vec::new();
    loop {
        let count = read(directory, &mut buffer)?;
        if count == 0 {
            return Ok(all);
        }
        let is_full = count + MOST_ROOM > buffer.len();
        let mut rest = &buffer[..count];
        while rest.len() >= NAME {
            let length = u16::from_ne_bytes([rest[LENGTH], rest[LENGTH + 1]]) as usize;
            let Some(entry) = rest.get(..length).filter(|entry| entry.len() > NAME) else {
                return Err(Errno::EIO);
            };
            let [a, b, c, d, e, f, g, h, ..] = *entry else { return Err(Errno::EIO) };
            let name = entry[NAME..].split(|byte| *byte == 0).next().unwrap_or_default();
            if all.len() == most {
                return Err(Errno::E2BIG);
            }
            let inode = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
            all.push(Entry { inode, kind: entry[KIND], name: name.into() });
            rest = &rest[length..];
        }
        if is_full {
            buffer.resize(1 << 16, 0);
        }
    }
}

fn read(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes no more than the length of the buffer.
    let count = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    Errno::result(count).map(|count| count as usize)
}

/// TGID_OFFSET in fs/proc/base.c.
const FIRST_PROCESS: i64 = 258;

/// So many bytes are read at once where entries need not be read as late as can be.
const PORTION: usize = 1024;

/// An open directory.
#[derive(Debug)]
pub struct Listing {
    directory: File,
    /// Where the entry behind the last one that was given is read.
    position: i64,
    /// Entries that were read and not given yet.
    portion: [u8; PORTION],
    read: Range<usize>,
    /// So many bytes of it are used.
    room: usize,
}

impl Listing {
    /// Opens a directory at its beginning.
    pub fn open(path: &str) -> Result<Listing, Errno> {
        let directory =
            File::open(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        Ok(Listing { directory, position: 0, portion: [0; PORTION], read: 0..0, room: PORTION })
    }

    /// Where the next entry is read.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Goes (back) to a [`Listing::position`].
    pub fn seek(&mut self, position: i64) -> Result<(), Errno> {
        self.read = 0..0;
        self.position = lseek(&self.directory, position, Whence::SeekSet)?;
        Ok(())
    }

    /// The next entries are read as they are from now on, and each only when it is asked for, until some have been.
    pub fn refresh(&mut self) -> Result<(), Errno> {
        self.room = ROOM;
        if self.read.is_empty() { Ok(()) } else { self.seek(self.position) }
    }

    /// Goes to about where `number` is listed in /proc (proc_pid_readdir in fs/proc/base.c; positions
    /// are the kernel's own affair, so nothing may depend on it).
    pub fn seek_number(&mut self, number: i32) -> Result<(), Errno> {
        self.seek(FIRST_PROCESS + i64::from(number))
    }

    /// The next entry whose name is a number, as it was when it was read; `None`: there are no more.
    pub fn next_number(&mut self) -> Result<Option<i32>, Errno> {
        loop {
            if self.read.is_empty() && !self.read_on()? {
                return Ok(None);
            }
            let rest = &self.portion[self.read.clone()];
            let (length, name) = entry(rest).ok_or(Errno::EIO)?;
            let number = std::str::from_utf8(name).ok().and_then(|it| it.parse().ok());
            self.position = word(rest, NEXT);
            self.read.start += length;
            if number.is_some() {
                return Ok(number);
            }
        }
    }

    /// Reads a portion. Gives whether there was any.
    fn read_on(&mut self) -> Result<bool, Errno> {
        let read =
            |room: usize, portion: &mut [u8]| read(self.directory.as_fd(), &mut portion[..room]);
        let count = match read(self.room, &mut self.portion) {
            // The name of the next one is long.
            Err(Errno::EINVAL) => read(PORTION, &mut self.portion)?,
            done => done?,
        };
        self.read = 0..count;
        self.room = (2 * self.room).min(PORTION);
        Ok(count > 0)
    }
}

/// The length of the first of these entries, and its name.
fn entry(entries: &[u8]) -> Option<(usize, &[u8])> {
    let length = u16::from_ne_bytes(*entries.get(LENGTH..)?.first_chunk()?) as usize;
    let name = entries.get(NAME..length)?;
    Some((length, name.split(|byte| *byte == 0).next()?))
}

fn word(entries: &[u8], at: usize) -> i64 {
    let bytes = entries.get(at..).and_then(|it| it.first_chunk());
    bytes.map_or(0, |it| i64::from_ne_bytes(*it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_listed_in_order_and_again_after_going_back() {
        let own = std::process::id() as i32;
        let mut all = Listing::open("/proc").unwrap();
        let mut before = 0;
        let mut last = 0;
        while last != own {
            before = all.position();
            let number = all.next_number().unwrap().expect("its own number");
            assert!(number > last);
            last = number;
        }
        all.seek(before).unwrap();
        assert_eq!(all.next_number(), Ok(Some(own)));
        all.seek_number(own).unwrap();
        assert_eq!(all.next_number(), Ok(Some(own)));
    }

    #[test]
    fn entries_are_fresh_when_asked_for() {
        let place = std::env::temp_dir().join(format!("fresh-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let all: Vec<i32> = (0..100).collect();
        let make = |number: &i32| std::fs::write(place.join(number.to_string()), "").unwrap();
        all.iter().for_each(make);
        // Some are in a portion that was read before the rest was removed.
        for fresh in [false, true] {
            let mut listing = Listing::open(place.to_str().unwrap()).unwrap();
            let first = listing.next_number().unwrap().unwrap();
            for number in all.iter().filter(|it| **it != first) {
                std::fs::remove_file(place.join(number.to_string())).unwrap();
            }
            if fresh {
                listing.refresh().unwrap();
            }
            assert_eq!(listing.next_number().unwrap().is_none(), fresh);
            all.iter().for_each(make);
        }
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn long_names_and_short_ones_are_each_read_once() {
        let place = std::env::temp_dir().join(format!("listing-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        for number in 0..20 {
            std::fs::write(place.join(number.to_string()), "").unwrap();
            std::fs::write(place.join(format!("{number}{}", "x".repeat(200))), "").unwrap();
        }
        let mut listing = Listing::open(place.to_str().unwrap()).unwrap();
        let mut all = Vec::new();
        while let Some(number) = listing.next_number().unwrap() {
            all.push(number);
        }
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<i32>>());
        let directory = File::open(&place).unwrap();
        let found = entries(directory.as_fd(), 42).unwrap();
        assert_eq!(found.len(), 42);
        assert!(found.iter().any(|it| *it.name == *b"7" && it.kind == libc::DT_REG));
        lseek(&directory, 0, Whence::SeekSet).unwrap();
        assert_eq!(entries(directory.as_fd(), 41), Err(Errno::E2BIG));
        std::fs::remove_dir_all(&place).unwrap();
        assert_eq!(Listing::open("/none").unwrap_err(), Errno::ENOENT);
    }
}
