//! The restoring caller's standard streams, in place of those of the caller at the save.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::{Maker, NOT_AGAIN, failed};
use crate::save::error::RestoreError;
use crate::save::state::OpenFile;
use crate::sys::descriptors;

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
        let own = match stream {
            0 => {
                let flags = file.flags as i32 & libc::O_ACCMODE | libc::O_CLOEXEC;
                let null = maker.open(b"/dev/null", flags, 0);
                return null.map_err(RestoreError::of("cannot open /dev/null"));
            }
            1 | 2 => &self.own[stream as usize],
            _ => return Err(RestoreError::refused("the image is damaged: a standard stream")),
        };
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
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(terminal));
        let flags = OFlag::from_bits_truncate(file.flags as i32 & !NOT_AGAIN)
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        open(path.as_str(), flags, Mode::empty()).map_err(failed("open another description", file))
    }
}
