//! Copying the content of a file, with its holes.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::uio::pwrite;
use nix::unistd::{Whence, lseek};

use super::files::{next_data, read_whole};

/// Bytes that the kernel is asked to copy at once: progress is told between.
const PIECE: u64 = 16 << 20;

/// Tells that so many more bytes are done.
pub type Tell<'t> = dyn FnMut(u64) + 't;

/// Copies what is data of `size` bytes to a place in another file, where nothing is yet; the rest stays a hole.
/// Where the file system can, nothing is copied but shared (copy_file_range(2)).
///
/// # Errors
/// EBUSY: it has become shorter meanwhile. Else what the file systems say.
pub fn copy_content(
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::sys::memfd::anonymous_file;

    fn file(size: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = anonymous_file(c"copy").unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn data_is_copied_to_its_place_and_holes_stay() {
        let size = (1 << 30) + 3;
        let from = file(size, &[(5, b"begin"), (1 << 30, b"end")]);
        let to = file(4096 + size, &[]);
        let mut told = 0;
        let mut tell = |more| told += more;
        copy_content(from.as_fd(), (to.as_fd(), 4096), size, &mut tell).unwrap();
        assert_eq!(told, size);
        let mut room = [0; 7];
        to.read_exact_at(&mut room, 4096 + 4).unwrap();
        assert_eq!(&room, b"\0begin\0");
        to.read_exact_at(&mut room, 4096 + size - 7).unwrap();
        assert_eq!(&room, b"\0\0\0\0end");
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
