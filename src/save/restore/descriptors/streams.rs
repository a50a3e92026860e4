//! The restoring caller's standard streams, in place of those of the caller at the save.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::{Maker, NOT_AGAIN, failed, pipes};
use crate::save::error::RestoreError;
use crate::save::state::OpenFile;
use crate::sys::{descriptors, files};

/// What takes the place of the streams.
#[derive(Debug)]
pub struct RestoreStreams {
    /// The restoring caller's, as the launcher has prepared them (a regular file that is only read is
    /// opened through a read-only mount there).
    pub own: [OwnedFd; 3],
    /// The guest's own terminal, opened.
    pub terminal: Option<OwnedFd>,
}

impl RestoreStreams {
    pub(super) fn make(
        &self,
        maker: &mut Maker<'_>,
        stream: u32,
        reopened: bool,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        let own = self.own.get(stream as usize).ok_or_else(|| {
            RestoreError::refused(format!(
                "the image names a standard stream {stream}; there are 0 to 2"
            ))
        })?;
        // A socket has no other description than the one it was made with.
        if reopened && let Ok(made) = maker.reopen(own, file) {
            return Ok(made);
        }
        let copy = own.try_clone().map_err(|error| {
            RestoreError::failed(format!("cannot copy standard stream {stream}"), error)
        })?;
        // The caller shares this flag, as it did with the guest before.
        if file.flags as i32 & libc::O_NONBLOCK != 0 {
            let has = descriptors::status(copy.as_fd()).map_err(failed("read the flags", file))?;
            descriptors::set_status(copy.as_fd(), has | libc::O_NONBLOCK)
                .map_err(failed("set the flags", file))?;
        }
        Ok(copy)
    }

    /// What a later program has in place of what whoever asked for it gave: nothing to be read, and the run's own
    /// streams for output.
    pub(super) fn of_later(
        &self,
        maker: &mut Maker<'_>,
        stream: u32,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        let flags = file.flags as i32;
        let own = match stream {
            // It may be watched, which /dev/null cannot be (EPERM of epoll_ctl(2)).
            0 if flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_WRONLY => {
                return pipes::ended(maker, flags & libc::O_NONBLOCK);
            }
            0 => {
                let flags = flags & (libc::O_ACCMODE | libc::O_PATH) | libc::O_CLOEXEC;
                let null = maker.open(b"/dev/null", flags, 0);
                return null.map_err(RestoreError::of("cannot open /dev/null"));
            }
            1 | 2 => &self.own[stream as usize],
            _ => return Err(RestoreError::refused("the image is damaged: a standard stream")),
        };
        if flags & (libc::O_NONBLOCK | libc::O_PATH) == libc::O_NONBLOCK
            && let Ok(made) = without_waiting(own)
        {
            return Ok(made);
        }
        own.try_clone().map_err(|error| {
            RestoreError::failed(format!("cannot copy standard stream {stream}"), error)
        })
    }

    pub(super) fn own_terminal(&self, file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        let Some(terminal) = &self.terminal else {
            return Err(RestoreError::refused(
                "the program had a terminal when it was saved, and there is none now; \
                 restore it from a terminal",
            ));
        };
        // Another description of it: each may have flags of its own.
        let flags = file.flags as i32 & !NOT_AGAIN | libc::O_NOCTTY;
        files::open_descriptor(terminal.as_fd(), flags)
            .map_err(failed("open another description", file))
    }
}

/// Another description of a pipe, one that does not wait: with the flag on `own` itself the run's own program, which
/// shares that, would lose output. (Other kinds stay as they are: another description of a file has another offset,
/// sockets have none, and that of a pseudo-terminal's master is another terminal.)
fn without_waiting(own: &OwnedFd) -> nix::Result<OwnedFd> {
    let stat = nix::sys::stat::fstat(own)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFIFO {
        return Err(Errno::ENOTSUP);
    }
    let has = descriptors::status(own.as_fd())? & (libc::O_ACCMODE | libc::O_PATH);
    files::open_descriptor(own.as_fd(), has | libc::O_NONBLOCK)
}
