//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use std::os::fd::AsFd;

use super::{Capture, Found};
use crate::save::capture::{ipc, sockets};
use crate::save::error::SaveError;
use crate::save::state::FileKind;

impl Capture<'_, '_> {
    pub(super) fn socket(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        let is_message = self.holder.tid == std::process::id() as i32;
        let socket = if is_message {
            // The sentry holds it itself, as a copy from a queue.
            let copy = self.holder.copy(found.fd)?;
            sockets::capture_passed(copy.as_fd(), self.collector)?
        } else {
            sockets::capture(self.subject, found.fd, self.collector)?
        };
        Ok(FileKind::Socket(Box::new(socket)))
    }

    /// The master of a pseudo-terminal.
    pub(super) fn pty_master(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        Err(self.holder.refused(found.fd, "the master of a pseudo-terminal"))
    }

    /// A slave of one that was made inside.
    pub(super) fn pty_slave(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        Err(self.holder.refused(found.fd, "a terminal"))
    }

    /// /dev/tty.
    pub(super) fn controlling_terminal(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        Err(self.holder.refused(found.fd, "its controlling terminal (/dev/tty)"))
    }

    /// A POSIX message queue.
    pub(super) fn message_queue(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        ipc::queue_descriptor(self.subject, found.fd)
    }
}
