//! Anonymous files and memory shared with a forked child.

use std::ffi::CStr;
use std::fs::File;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::seccomp::sock_filter;

/// A file that has no name in any directory (memfd_create(2)).
pub fn anonymous_file(name: &CStr) -> Result<File, Errno> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from)
}

/// Memory that a child made by clone shares with its parent.
#[derive(Debug)]
pub struct SharedMemory {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and is only reached through its methods.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// Maps `length` zero bytes (MAP_SHARED | MAP_ANONYMOUS).
    pub fn new(length: usize) -> Result<Self, Errno> {
        // SAFETY: a fresh anonymous mapping touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let address = NonNull::new(address.cast()).ok_or(Errno::ENOMEM)?;
        Ok(SharedMemory { address, length })
    }

    /// Copies a filter program in. The other process must not read meanwhile.
    pub fn write_program(&self, program: &[sock_filter]) -> Result<(), Errno> {
        if size_of_val(program) > self.length {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the mapping is large enough and page-aligned.
        unsafe {
            self.address
                .cast::<sock_filter>()
                .copy_from_nonoverlapping(NonNull::from(program).cast(), program.len());
        }
        Ok(())
    }

    /// The program of `count` instructions that the other process wrote before it said so. Child
    /// side.
    pub fn program(&self, count: usize) -> Result<&[sock_filter], Errno> {
        if count * size_of::<sock_filter>() > self.length {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the range lies in the mapping, any bits are a valid sock_filter, and the writer
        // does not write again after its message.
        Ok(unsafe { std::slice::from_raw_parts(self.address.cast().as_ptr(), count) })
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}
