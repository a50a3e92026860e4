//! Buffers that another process can be given to write to.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::errno_of;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};

/// Memory that is a file, whose size nobody can change.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    length: usize,
    file: Arc<File>,
}

// SAFETY: the mapping belongs to the value; its bytes are only reached through buffers, which do not overlap.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `buffers`, and the last buffer in it is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A part of a file in memory, all of whose bytes were zero. The default has none.
///
/// Who is given the file can write to it at any time: what is read here may be anything, and may be something
/// else the next time.
#[derive(Debug, Default)]
pub struct Buffer {
    region: Option<Arc<Region>>,
    offset: usize,
    length: usize,
}

/// A place in a buffer, as other processes know it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file.
    pub file: Arc<File>,
    /// Where in it.
    pub offset: u64,
    /// Bytes.
    pub length: usize,
}

/// So many buffers of so many bytes, neither 0, in one file (memfd_create(2)).
pub fn buffers(count: usize, each: usize) -> Result<Vec<Buffer>, Errno> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a name that ends, and plain numbers.
    let fd = Errno::result(unsafe { libc::memfd_create(c"buffer".as_ptr(), flags) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let length = count.checked_mul(each).ok_or(Errno::EINVAL)?;
    file.set_len(length as u64).map_err(|error| errno_of(&error))?;
    // Who shortened it would have the reader killed (SIGBUS).
    let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(sealed))?;
    let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, which overlaps nothing.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), length, protection, shared, file.as_raw_fd(), 0)
    };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let start = NonNull::new(start.cast()).ok_or(Errno::EFAULT)?;
    let region = Arc::new(Region { start, length, file: Arc::new(file) });
    let buffer = |at| Buffer { region: Some(Arc::clone(&region)), offset: at * each, length: each };
    Ok((0..count).map(buffer).collect())
}

impl Buffer {
    /// Some of its bytes, for another process to write to. Its pages are there when this returns, and count
    /// as used by this process. ERANGE: it has no such bytes.
    pub fn place(&self, from: usize, length: usize) -> Result<Place, Errno> {
        let region = self.region.as_ref().ok_or(Errno::ERANGE)?;
        if from.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Errno::ERANGE);
        }
        let offset = self.offset + from;
        let (start, size) = (offset as libc::off_t, length as libc::off_t);
        fallocate(&*region.file, FallocateFlags::empty(), start, size)?;
        Ok(Place { file: Arc::clone(&region.file), offset: offset as u64, length })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Some(region) = &self.region else { return &[] };
        // SAFETY: the range lies in the mapping, which cannot shrink and lives as long as the buffer; no other
        // buffer has it. What other processes write to it is bytes, of which any are valid.
        unsafe { std::slice::from_raw_parts(region.start.as_ptr().add(self.offset), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(region) = &self.region else { return &mut [] };
        // SAFETY: as above, and the buffer is borrowed for writing.
        unsafe {
            std::slice::from_raw_parts_mut(region.start.as_ptr().add(self.offset), self.length)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_what_is_written_to_the_file_is_in_them() {
        let mut all = buffers(3, 8192).unwrap();
        all[0].fill(1);
        all[2].fill(3);
        assert!(all[1].iter().all(|byte| *byte == 0));
        let place = all[1].place(4096, 100).unwrap();
        assert_eq!((place.offset, place.length), (8192 + 4096, 100));
        place.file.write_all_at(&[7; 100], place.offset).unwrap();
        assert!(all[1][4096..4196].iter().all(|byte| *byte == 7));
        assert_eq!((all[1][4095], all[1][4196], all[0][8191], all[2][0]), (0, 0, 1, 3));
        assert_eq!(all[1].place(8000, 193).unwrap_err(), Errno::ERANGE);
        assert_eq!(Buffer::default().place(0, 1).unwrap_err(), Errno::ERANGE);
        assert!(Buffer::default().is_empty());
        // Nobody can take the memory away.
        assert!(place.file.set_len(0).is_err() && place.file.set_len(1 << 20).is_err());
    }
}
