//! Memory of restored guests that is still mapped from the image (`sandbox restore --lazy`).
//!
//! A private mapping of the image is as good as plain memory but for the few calls that tell the two apart:
//! madvise(2) that gives pages away would bring the image's content back, mremap(2) would grow into
//! whatever follows in the image. Those are trapped in such runs, and before one goes on, what it is about is
//! *settled*: made plain memory while all guests stand still. Owns the question whether there is anything to
//! settle, and who asks for it; how it is done is the affair of who sets it up (`save::settle`).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use super::kernel::Kernel;
use super::log::Level;
use crate::sys::mapping::{self, OfFile};

/// The image's file, as /proc/PID/maps tells files apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedImage {
    /// Its device, as st_dev tells one.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// What is to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsettled {
    /// What the process (as the host numbers it) has in these ranges; content in `given_away` does not matter.
    Ranges {
        /// The process.
        pid: i32,
        /// Where.
        ranges: Vec<Range<u64>>,
        /// It is about to give it away.
        given_away: bool,
    },
    /// This range of the process is to be one mapping again.
    Whole {
        /// The process.
        pid: i32,
        /// Where.
        range: Range<u64>,
    },
    /// All that is left anywhere.
    Everything,
}

/// Settles. An error says why it could not.
type Settle = dyn Fn(&Arc<Kernel>, &Unsettled) -> Result<(), String> + Send + Sync;

/// The image that guests still map, and how its memory becomes theirs.
pub struct Lazy {
    image: MappedImage,
    settle: Box<Settle>,
    /// Nothing is left.
    is_over: AtomicBool,
    /// Threads whose call could not be served, and where it began: told when they make it again. A leaf of the
    /// lock order.
    failed: Mutex<HashMap<i32, u64>>,
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").field("image", &self.image).finish_non_exhaustive()
    }
}

impl Lazy {
    /// `settle` is called without any lock held, on a thread that may wait.
    pub fn new(
        image: MappedImage,
        settle: impl Fn(&Arc<Kernel>, &Unsettled) -> Result<(), String> + Send + Sync + 'static,
    ) -> Lazy {
        Lazy {
            image,
            settle: Box::new(settle),
            is_over: AtomicBool::new(false),
            failed: Mutex::default(),
        }
    }

    /// Whether nothing of the image is mapped any more.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// A call of this thread, about what begins there, cannot go on. (It has been backed out.)
    pub fn fail(&self, tid: i32, start: u64) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(tid, start);
    }

    /// Whether the same call failed as it was made before.
    pub fn has_failed(&self, tid: i32, start: u64) -> bool {
        let before = self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(&tid);
        before == Some(start)
    }

    /// Whether a process has memory of the image in any of these ranges.
    pub fn has(&self, tid: i32, ranges: &[Range<u64>]) -> bool {
        if self.is_over() {
            return false;
        }
        // One that cannot be read has ended.
        let Ok(mut maps) = File::open(format!("/proc/{tid}/maps")) else { return false };
        let asked = ranges.iter().map(|range| self.is_in(&maps, range));
        match asked.reduce(|one, other| Ok(one? || other?)) {
            Some(Err(_)) => self.is_in_text(&mut maps, ranges),
            has => has == Some(Ok(true)),
        }
    }

    /// Whether the image is mapped in a range; an error: the kernel does not tell that way.
    fn is_in(&self, maps: &File, range: &Range<u64>) -> Result<bool, Errno> {
        let mut at = range.start;
        while at < range.end {
            match mapping::next_of_file(maps, at)? {
                Some(found) if found.start >= range.end => break,
                Some(OfFile { device, inode, .. })
                    if (MappedImage { device, inode }) == self.image =>
                {
                    return Ok(true);
                }
                Some(found) => at = found.end,
                None => break,
            }
        }
        Ok(false)
    }

    fn is_in_text(&self, maps: &mut File, ranges: &[Range<u64>]) -> bool {
        let mut text = String::new();
        let _ = maps.read_to_string(&mut text);
        let of_image = text.lines().filter_map(file_of).filter(|(_, file)| *file == self.image);
        of_image
            .map(|(range, _)| range)
            .any(|it| ranges.iter().any(|asked| it.start < asked.end && asked.start < it.end))
    }

    /// Makes it plain memory. Blocks; all guests stand still meanwhile, for some milliseconds at a time.
    ///
    /// # Errors
    /// Why it could not be.
    pub fn settle(&self, kernel: &Arc<Kernel>, what: &Unsettled) -> Result<(), String> {
        if self.is_over() {
            return Ok(());
        }
        let done = (self.settle)(kernel, what);
        match &done {
            Ok(()) if *what == Unsettled::Everything => self.is_over.store(true, Ordering::Relaxed),
            Ok(()) => {}
            Err(why) => {
                kernel.log().write(Level::Warning, &format!("restore --lazy: {why}"));
            }
        }
        done
    }
}

/// The range of a line of /proc/PID/maps, and the file behind it.
fn file_of(line: &str) -> Option<(Range<u64>, MappedImage)> {
    let mut fields = line.split(' ');
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = fields.next()?.split_once('-')?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
    let device = libc::makedev(hexadecimal(major)? as u32, hexadecimal(minor)? as u32);
    Some((hexadecimal(start)?..hexadecimal(end)?, MappedImage { device, inode }))
}

impl Kernel {
    /// Guests are about to get memory that is mapped from an image. Once.
    pub fn set_lazy(&self, lazy: Arc<Lazy>) {
        let _ = self.lazy.set(lazy);
    }

    /// The image that guests may still map.
    pub fn lazy(&self) -> Option<&Arc<Lazy>> {
        self.lazy.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_tell_range_and_file() {
        let line = "7f00-7f80 rw-p 00001000 fe:01 77    /some where";
        let image = MappedImage { device: libc::makedev(0xfe, 1), inode: 77 };
        assert_eq!(file_of(line), Some((0x7f00..0x7f80, image)));
        assert_eq!(file_of("7f00-7f80 rw-p 00000000 00:00 0"), None);
        assert_eq!(file_of("7f00-7f80 rw-p 00000000 00:00 0   [heap]"), None);
        assert_eq!(file_of(""), None);
    }

    #[test]
    fn a_range_is_looked_for_in_what_a_process_maps() {
        let own = std::fs::read_to_string("/proc/self/maps").unwrap();
        let (range, image) = own.lines().find_map(file_of).unwrap();
        let lazy = Lazy::new(image, |_, _| Ok(()));
        let pid = std::process::id() as i32;
        assert!(lazy.has(pid, &[0..1, range.start..range.start + 1]));
        assert!(!lazy.has(pid, &[0..1, 2..3]));
        assert!(!lazy.has(pid, &[]));
        let mut maps = File::open("/proc/self/maps").unwrap();
        assert!(lazy.is_in_text(&mut maps, &[0..1, range]));
        let mut maps = File::open("/proc/self/maps").unwrap();
        assert!(!lazy.is_in_text(&mut maps, &[0..1, 2..3]));
    }
}
