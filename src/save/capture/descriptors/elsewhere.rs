//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use super::{Capture, Found};
use crate::save::capture::{ipc, ptys, sockets};
use crate::save::error::SaveError;
use crate::save::state::FileKind;

impl Capture<'_, '_> {
    /// A socket. What others there are is found out at the end, and so is what lies in its queue.
    pub(super) fn socket(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        let copy = self.holder.copy(found.fd)?;
        let who = format!("{} (descriptor {})", self.holder.name, found.fd);
        let socket = sockets::capture(self.subject, who, copy, self.collector)?;
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
