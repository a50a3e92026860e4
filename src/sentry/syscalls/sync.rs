//! Calls that wait for the disk: fsync(2) and its kin, answered at once for what lies in an overlay of the run
//! (`--fake-fsync`). All others continue: files of the host, and what is no file, are the host kernel's.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::stat::fstat;

use super::args::{Fd, Flags, Offset};
use crate::notify::Answer;
use crate::sentry::call::Call;

/// Serves fsync(2).
pub fn fsync(call: &Call<'_>, fd: Fd) -> Answer {
    answer(call, fd)
}

/// Serves fdatasync(2).
pub fn fdatasync(call: &Call<'_>, fd: Fd) -> Answer {
    answer(call, fd)
}

/// Serves syncfs(2).
pub fn syncfs(call: &Call<'_>, fd: Fd) -> Answer {
    answer(call, fd)
}

/// Serves sync_file_range(2).
pub fn sync_file_range(
    call: &Call<'_>,
    fd: Fd,
    _offset: Offset,
    _nbytes: Offset,
    _flags: Flags,
) -> Answer {
    answer(call, fd)
}

/// Serves sync(2), which is only trapped where the file view has nothing of the host that can be changed. What
/// the standard streams lead to is the host's, too.
pub fn sync(_call: &Call<'_>) -> Answer {
    let (out, err) = (std::io::stdout(), std::io::stderr());
    match [out.as_fd(), err.as_fd()].into_iter().any(is_file) {
        true => Answer::Continue,
        false => Answer::Return(0),
    }
}

fn is_file(stream: BorrowedFd<'_>) -> bool {
    fstat(stream).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFREG)
}

fn answer(call: &Call<'_>, fd: Fd) -> Answer {
    match call.kernel.overlays().has(call.received().tid, fd.0) {
        true => Answer::Return(0),
        false => Answer::Continue,
    }
}
