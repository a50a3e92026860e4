//! Whether what a layer has is what the host has.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::changes::What;
use super::{believed, entry};
use crate::sentry::beliefs::Belief;
use crate::sys::files::{next_data, read_whole};

/// Bytes that are compared at once.
const PIECE: usize = 256 << 10;

/// In which attributes two entries of the same type differ. `upper` and `host` stand for them.
pub(super) fn attributes(
    upper: (BorrowedFd<'_>, &FileStat),
    host: (BorrowedFd<'_>, &FileStat),
) -> Result<What, Errno> {
    let mut what = What::empty();
    let link = upper.1.st_mode & libc::S_IFMT == libc::S_IFLNK;
    let (uid, gid, mode) = believed::seen(upper.1, &believed::of(upper.0, upper.1));
    let there = believed::seen(host.1, &Belief::default());
    what.set(What::MODE, !link && (mode ^ there.2) & 0o7777 != 0);
    what.set(What::OWNER, (uid, gid) != (there.0, there.1));
    // Those of users cannot be on links (xattr(7)).
    if !link {
        let differ = entry::attributes(upper.0)? != entry::attributes(host.0)?;
        what.set(What::XATTRS, differ || !believed::attributes(upper.0)?.is_empty());
    }
    Ok(what)
}

/// Whether two files of `size` bytes have the same content. Holes are not read.
pub(super) fn same_content(
    one: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
    size: u64,
) -> Result<bool, Errno> {
    let mut rooms = (vec![0u8; PIECE], vec![0u8; PIECE]);
    let mut at = 0;
    while at < size {
        at = next_data(one, at, size).min(next_data(other, at, size));
        let length = (size - at).min(PIECE as u64) as usize;
        let (a, b) = (&mut rooms.0[..length], &mut rooms.1[..length]);
        if read_whole(one, a, at)? != length || read_whole(other, b, at)? != length || a != b {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::memfd::anonymous_file;

    fn file(size: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = anonymous_file(c"compare").unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn holes_are_zeros_and_every_byte_counts() {
        let size = 3 << 30;
        let same = |a: &File, b: &File| same_content(a.as_fd(), b.as_fd(), size).unwrap();
        let one = file(size, &[(5, b"x"), (2 << 30, b"y")]);
        let zeros = vec![0; 1 << 20];
        assert!(same(&one, &file(size, &[(1 << 20, &zeros), (5, b"x"), (2 << 30, b"y")])));
        assert!(!same(&one, &file(size, &[(5, b"x"), (2 << 30, b"z")])));
        assert!(!same(&one, &file(size, &[(5, b"x")])));
        assert!(!same(&one, &file(size, &[(5, b"x"), (2 << 30, b"y"), (size - 1, b"z")])));
    }
}
