//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use std::os::fd::AsFd;

use super::{Capture, Found};
use crate::save::capture::{ipc, ptys, sockets};
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

    /// The master or a slave of a pseudo-terminal, or /dev/tty.
    pub(super) fn terminal(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        let copy = self.holder.copy(found.fd)?;
        let fd = (self.holder.tid == self.subject.hand.tid()).then_some(found.fd);
        // The first that was made inside.
        let own = self.streams.terminal.map(|_| 0);
        ptys::capture_copy(self.subject, copy, fd, own, self.collector)
    }

    /// A POSIX message queue.
    pub(super) fn message_queue(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        ipc::queue_descriptor(&found.link, &self.holder.name, found.fd)
    }
}
