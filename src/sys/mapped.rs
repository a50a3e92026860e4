//! A file that is mapped only for the kernel to copy from: nothing here reads it, so it does no harm when
//! somebody shortens it meanwhile.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use libc::{c_void, iovec, pid_t};
use nix::errno::Errno;

/// The whole of a file.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping belongs to the value alone, and threads only have the kernel read it.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `length` bytes from the beginning, not 0.
    pub fn new(file: &File, length: usize) -> Result<Mapped, Errno> {
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping, which overlaps nothing.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, read, shared, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(start).ok_or(Errno::EFAULT)?;
        Ok(Mapped { start, length })
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Copies from an offset of the file to the memory of `tid` (process_vm_writev(2)); gives how much.
    /// EFAULT: the process has no such memory, or the file no such place.
    pub fn write_memory(
        &self,
        tid: pid_t,
        address: u64,
        offset: usize,
        length: usize,
    ) -> Result<usize, Errno> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Errno::EFAULT);
        }
        // SAFETY: it is within the mapping, as was checked.
        let iov_base = unsafe { self.start.as_ptr().add(offset) };
        let local = iovec { iov_base, iov_len: length };
        let remote = iovec { iov_base: address as *mut c_void, iov_len: length };
        // SAFETY: the kernel reads `local`, which is mapped, and gives EFAULT where the file has ended;
        // `remote` is used in the other process.
        let done = unsafe { libc::process_vm_writev(tid, &local, 1, &remote, 1, 0) };
        Errno::result(done).map(|count| count as usize)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, and nobody has a reference into it.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_behind_the_end_is_an_error_and_no_signal() {
        let mut file = crate::sys::memfd::anonymous_file(c"test").unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mapped = Mapped::new(&file, 8192).unwrap();
        let mut to = vec![0u8; 8192];
        let address = to.as_mut_ptr() as u64;
        let own = std::process::id() as pid_t;
        assert_eq!(mapped.write_memory(own, address, 4096, 4096), Ok(4096));
        assert!(to[..4096].iter().all(|byte| *byte == 7));
        assert_eq!(mapped.write_memory(own, address, 4096, 4097), Err(Errno::EFAULT));
        file.set_len(0).unwrap();
        assert_eq!(mapped.write_memory(own, address, 0, 4096), Err(Errno::EFAULT));
    }
}
