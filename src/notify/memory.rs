//! Reading and writing the memory of a guest thread that waits in a notification.
//!
//! Everything read is hostile, and may have changed by the next read. A read counts only if the
//! notification is still valid afterwards: the pid behind it may belong to somebody else by then.

use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::notification::Trapped;
use crate::sys::process;

/// The longest string that is ever read: PATH_MAX with its NUL.
const STRING_LIMIT: usize = libc::PATH_MAX as usize;
const PAGE: u64 = 4096;

/// The memory of the thread behind one notification.
#[derive(Debug, Clone, Copy)]
pub struct GuestMemory<'t> {
    trapped: &'t Trapped,
}

impl<'t> GuestMemory<'t> {
    /// The memory of the thread that made the call.
    pub fn of(trapped: &'t Trapped) -> Self {
        GuestMemory { trapped }
    }

    /// Fills `into` from `address`. EFAULT: not all of it is readable; ESRCH: the task is gone.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let count = self.read_some(address, into)?;
        if count < into.len() { Err(Errno::EFAULT) } else { Ok(()) }
    }

    /// Writes all of `bytes` at `address`. EFAULT: not all of it is writable.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        // The pid must still be our task's before anything is changed; it cannot be reused while
        // the task waits, and it waits until we answer or it is killed.
        self.still_ours()?;
        let tid = self.trapped.received().tid;
        let written = match self.by_syscall(|| process::write_memory(tid, address, bytes)) {
            Some(done) => done?,
            None => {
                let mem = self.open_mem(true)?;
                let allowed = self.allowed(address, bytes.len(), b'w')?;
                mem.write_at(&bytes[..allowed], address).map_err(memory_error)?
            }
        };
        if written < bytes.len() { Err(Errno::EFAULT) } else { Ok(()) }
    }

    /// A NUL-terminated string, without its NUL. ENAMETOOLONG: longer than PATH_MAX.
    pub fn read_string(&self, address: u64) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        let mut chunk = [0; 256];
        while string.len() < STRING_LIMIT {
            let at = address.checked_add(string.len() as u64).ok_or(Errno::EFAULT)?;
            // A chunk does not cross a page, so that a string at the end of a mapping is read.
            let room = (PAGE - at % PAGE).min(chunk.len() as u64) as usize;
            let room = room.min(STRING_LIMIT - string.len());
            let count = self.read_some(at, &mut chunk[..room])?;
            let bytes = &chunk[..count];
            match bytes.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    string.extend_from_slice(&bytes[..end]);
                    return Ok(string);
                }
                None if count < room => return Err(Errno::EFAULT),
                None => string.extend_from_slice(bytes),
            }
        }
        Err(Errno::ENAMETOOLONG)
    }

    fn read_some(&self, address: u64, into: &mut [u8]) -> Result<usize, Errno> {
        if into.is_empty() {
            return Ok(0);
        }
        let tid = self.trapped.received().tid;
        let count = match self.by_syscall(|| process::read_memory(tid, address, into)) {
            Some(done) => done?,
            None => {
                let mem = self.open_mem(false)?;
                let allowed = self.allowed(address, into.len(), b'r')?;
                mem.read_at(&mut into[..allowed], address).map_err(memory_error)?
            }
        };
        self.still_ours()?;
        Ok(count)
    }

    /// `None` where process_vm_readv(2) and its sibling are missing or forbidden, as in some
    /// containers: then `/proc/<pid>/mem` serves.
    fn by_syscall(
        &self,
        mut copy: impl FnMut() -> Result<usize, Errno>,
    ) -> Option<Result<usize, Errno>> {
        if !self.trapped.listener().process_vm() {
            return None;
        }
        match copy() {
            Err(Errno::ENOSYS | Errno::EPERM) => None,
            done => Some(done),
        }
    }

    fn open_mem(&self, write: bool) -> Result<std::fs::File, Errno> {
        let path = format!("/proc/{}/mem", self.trapped.received().tid);
        std::fs::OpenOptions::new().read(!write).write(write).open(path).map_err(memory_error)
    }

    /// How many of `count` bytes at `address` the guest itself may access so (`r` or `w`), by
    /// `/proc/<pid>/maps`: reading and writing `/proc/<pid>/mem` passes over the protection of a
    /// mapping (FOLL_FORCE in fs/proc/base.c, mem_rw), as the guest's own kernel would not.
    fn allowed(&self, address: u64, count: usize, access: u8) -> Result<usize, Errno> {
        let path = format!("/proc/{}/maps", self.trapped.received().tid);
        let maps = std::fs::read(path).map_err(memory_error)?;
        let end = address.saturating_add(count as u64);
        let mut reached = address;
        for (first, last, access_of) in String::from_utf8_lossy(&maps).lines().filter_map(mapping) {
            if last <= reached {
                continue;
            }
            if reached >= end || first > reached || !access_of.as_bytes().contains(&access) {
                break;
            }
            reached = last;
        }
        if reached == address {
            self.still_ours()?;
            return Err(Errno::EFAULT);
        }
        Ok((reached.min(end) - address) as usize)
    }

    fn still_ours(&self) -> Result<(), Errno> {
        if self.trapped.is_valid() { Ok(()) } else { Err(Errno::ESRCH) }
    }
}

/// First address, address behind the last, and access of a line of `/proc/<pid>/maps`.
fn mapping(line: &str) -> Option<(u64, u64, &str)> {
    let mut words = line.split(' ');
    let (first, last) = words.next()?.split_once('-')?;
    let number = |hex| u64::from_str_radix(hex, 16).ok();
    Some((number(first)?, number(last)?, words.next()?))
}

/// `/proc/<pid>/mem` says EIO for an unmapped address.
fn memory_error(error: std::io::Error) -> Errno {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EIO) | None => Errno::EFAULT,
        Some(Errno::ENOENT) => Errno::ESRCH,
        Some(errno) => errno,
    }
}
