//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use super::{Capture, Found};
use crate::save::capture::sockets;
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
        Err(self.holder.refused(found.fd, "a POSIX message queue"))
    }
}
