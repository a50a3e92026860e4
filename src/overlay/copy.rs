//! Copying the content of a file, with its holes.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::uio::pwrite;
use nix::unistd::{Whence, lseek};

use super::compare::read_whole;
use crate::sys::files::next_data;

/// Bytes that the kernel is asked to copy at once: progress is told between.
const PIECE: u64 = 16 << 20;

/// Tells that so many more bytes are done.
pub(super) type Tell<'t> = dyn FnMut(u64) + 't;

/// Copies what is data of `size` bytes to a place in another file, where nothing is yet; the rest stays a hole.
/// Where the file system can, nothing is copied but shared (copy_file_range(2)).
pub(super) fn copy_content(
    from: BorrowedFd<'_>,
    to: (BorrowedFd<'_>, u64),
    size: u64,
    tell: &mut Tell<'_>,
) -> Result<(), Errno> {
    let mut at = 0;
    let mut by_kernel = true;
    while at < size {
        let start = next_data(from, at, size);
        tell(start - at);
        at = start;
        let hole = lseek(from, at as i64, Whence::SeekHole).map_or(size, |end| end as u64);
        let end = hole.clamp(at, size).min(at + PIECE);
        if at >= size {
            break;
        }
        let end = if end == at { (at + PIECE).min(size) } else { end };
        let count = copy_piece(from, to, at, (end - at) as usize, &mut by_kernel)?;
        if count == 0 {
            // It has become shorter: nobody but its owner, outside, can do that.
            return Err(Errno::EBUSY);
        }
        tell(count);
        at += count;
    }
    Ok(())
}

fn copy_piece(
    from: BorrowedFd<'_>,
    (to, offset): (BorrowedFd<'_>, u64),
    at: u64,
    length: usize,
    by_kernel: &mut bool,
) -> Result<u64, Errno> {
    if *by_kernel {
        let (mut source, mut target) = (at as i64, (offset + at) as i64);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(count) if count > 0 => return Ok(count as u64),
            Ok(_) => {}
            Err(Errno::EINTR) => return copy_piece(from, (to, offset), at, length, by_kernel),
            // Between file systems, or where it cannot.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        *by_kernel = false;
    }
    let mut room = vec![0; length.min(1 << 20)];
    let count = read_whole(from, &mut room, at)?;
    let mut written = 0;
    while written < count {
        let place = (offset + at + written as u64) as i64;
        match pwrite(to, &room[written..count], place) {
            Ok(more) => written += more,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(count as u64)
}
