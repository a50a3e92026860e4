//! Reading a directory: one entry at a time, or all at once.
//!
//! readdir(3) fetches many entries at once, which may be out of date when the caller comes to them:
//! in /proc that takes microseconds.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The kernel refuses a buffer that the next entry does not fit in; no name in /proc is longer than
/// this allows for, and a number needs no more than a struct of 32 bytes.
const ROOM: usize = 40;

/// Room for the longest name there can be (NAME_MAX).
const MOST_ROOM: usize = 280;

/// `struct linux_dirent64` (getdents64(2)): where its length and its name are.
const LENGTH: usize = 16;
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

/// An open directory.
#[derive(Debug)]
pub struct Listing(File);

impl Listing {
    /// Opens a directory at its beginning.
    pub fn open(path: &str) -> Result<Listing, Errno> {
        let opened = File::open(path);
        opened.map(Listing).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// Where the next entry will be read.
    pub fn position(&self) -> Result<i64, Errno> {
        lseek(&self.0, 0, Whence::SeekCur)
    }

    /// Goes (back) to a [`Listing::position`].
    pub fn seek(&mut self, position: i64) -> Result<(), Errno> {
        lseek(&self.0, position, Whence::SeekSet).map(drop)
    }

    /// Goes to about where `number` is listed in /proc (proc_pid_readdir in fs/proc/base.c; positions
    /// are the kernel's own affair, so nothing may depend on it).
    pub fn seek_number(&mut self, number: i32) -> Result<(), Errno> {
        self.seek(FIRST_PROCESS + i64::from(number))
    }

    /// The next entry whose name is a number, as it is now; `None`: there are no more.
    pub fn next_number(&mut self) -> Result<Option<i32>, Errno> {
        loop {
            let mut entry = [0; MOST_ROOM];
            let count = match self.read(&mut entry[..ROOM]) {
                Err(Errno::EINVAL) => self.read_long(&mut entry)?,
                done => done?,
            };
            if count == 0 {
                return Ok(None);
            }
            let length = u16::from_ne_bytes([entry[LENGTH], entry[LENGTH + 1]]) as usize;
            let name = entry.get(NAME..length).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if let Some(number) = std::str::from_utf8(name).ok().and_then(|it| it.parse().ok()) {
                return Ok(Some(number));
            }
        }
    }

    /// Reads one entry with a long name: those that were read with it are read once more.
    fn read_long(&mut self, entry: &mut [u8; MOST_ROOM]) -> Result<usize, Errno> {
        let count = self.read(entry)?;
        let [_, _, _, _, _, _, _, _, next @ ..] = entry;
        let [a, b, c, d, e, f, g, h, ..] = next;
        self.seek(i64::from_ne_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))?;
        Ok(count)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        read(self.0.as_fd(), buffer)
    }
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
            before = all.position().unwrap();
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
