//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use super::{Capture, Found};
use crate::save::capture::{ipc, ptys};
use crate::save::error::SaveError;
use crate::save::state::FileKind;

impl Capture<'_, '_> {
    pub(super) fn socket(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        Err(self.holder.refused(found.fd, "a socket"))
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
