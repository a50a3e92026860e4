//! Where an image is written to, bytes counted.

use std::fs::File;
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::pwritev;

use crate::save::image::Place;
use crate::save::pipeline::{Progress, Tell};

/// Who waits is told each time that so many bytes more are written.
const STEP: u64 = 4 << 20;

/// What is written to.
pub struct Out {
    counted: Arc<Counted>,
    /// Whether it is written at places.
    is_placed: bool,
}

struct Counted {
    file: File,
    done: AtomicU64,
    total: u64,
    tell: Tell,
}

impl Out {
    /// `total`: so many bytes are expected.
    pub fn new(file: File, total: u64, tell: Tell) -> Out {
        let is_placed = is_empty_file(&file);
        Out { counted: Arc::new(Counted { file, done: AtomicU64::new(0), total, tell }), is_placed }
    }

    /// The file, to be written at any place; none: only what comes next can be written.
    pub fn place(&self) -> Option<Arc<dyn Place>> {
        self.is_placed.then(|| Arc::clone(&self.counted) as Arc<dyn Place>)
    }

    /// What it is.
    pub fn file(&self) -> &File {
        &self.counted.file
    }
}

/// Whether an image that begins where the file's offset is begins at 0, and nothing is in its way. (Others write
/// to a terminal or a pipe, append, or have written something before.)
fn is_empty_file(mut file: &File) -> bool {
    let is_plain = file.metadata().is_ok_and(|it| it.is_file() && it.len() == 0);
    // pwrite(2) appends too if the file is open so.
    let flags = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    is_plain
        && flags.is_ok_and(|flags| !flags.contains(OFlag::O_APPEND))
        && file.stream_position().is_ok_and(|at| at == 0)
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = (&self.counted.file).write_vectored(pieces)?;
        self.counted.count(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut file = &self.counted.file;
        if self.is_placed {
            // Whoever shares the offset goes on behind the image.
            file.seek(SeekFrom::End(0))?;
        }
        file.flush()
    }
}

impl Place for Counted {
    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let count = pwritev(&self.file, slices, at as libc::off_t)?;
        self.count(count)
    }
}

impl Counted {
    fn count(&self, count: usize) -> io::Result<usize> {
        let before = self.done.fetch_add(count as u64, Ordering::Relaxed);
        let done = before + count as u64;
        if before / STEP == done / STEP || (self.tell)(Progress { done, total: self.total }) {
            return Ok(count);
        }
        Err(io::Error::other("nobody wants it any more"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::sys::memfd::anonymous_file;

    fn out(file: &File) -> Out {
        Out::new(file.try_clone().unwrap(), 0, Arc::new(|_| true))
    }

    #[test]
    fn only_an_empty_file_of_its_own_is_written_at_places() {
        let mut file = anonymous_file(c"out").unwrap();
        let mut it = out(&file);
        it.write_all(b"head").unwrap();
        let place = it.place().unwrap();
        assert_eq!(place.write_at(&[IoSlice::new(b"tail")], 6).unwrap(), 4);
        assert_eq!(place.write_at(&[IoSlice::new(b", ")], 4).unwrap(), 2);
        it.flush().unwrap();
        // Whoever has the same offset goes on behind it.
        file.write_all(b"; more").unwrap();
        let mut all = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "head, tail; more");
        // Something is in it; it begins elsewhere; it appends; it has no places.
        assert!(out(&file).place().is_none());
        file.set_len(0).unwrap();
        assert!(out(&file).place().is_none());
        file.seek(SeekFrom::Start(0)).unwrap();
        assert!(out(&file).place().is_some());
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        assert!(out(&file).place().is_none());
        let (_from, to) = io::pipe().unwrap();
        assert!(out(&File::from(std::os::fd::OwnedFd::from(to))).place().is_none());
    }

    #[test]
    fn nobody_who_wants_it_any_more_is_an_error_soon() {
        let file = anonymous_file(c"out").unwrap();
        let mut out = Out::new(file, 0, Arc::new(|_| false));
        let error = out.write_all(&vec![0; 2 * STEP as usize]).unwrap_err();
        assert!(error.to_string().contains("nobody wants it"));
    }
}
