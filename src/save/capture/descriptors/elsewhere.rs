//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use super::{Capture, Found};
use crate::save::capture::{ipc, ptys, sockets};
use crate::save::error::SaveError;
use crate::save::sockets::{Detail, Unix};
use crate::save::state::FileKind;

impl Capture<'_, '_> {
    /// A socket. What others there are is found out at the end, and so is what lies in its queue.
    pub(super) fn socket(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        let copy = self.holder.copy(found.fd)?;
        let who = format!("{} (descriptor {})", self.holder.name, found.fd);
        let mut socket = sockets::capture(self.subject, who, copy, self.collector)?;
        if let Detail::Unix(Unix { peer: Some((pid @ 0, ..)), .. }) = &mut socket.detail {
            *pid = self.ended_peer(found);
        }
        Ok(FileKind::Socket(Box::new(socket)))
    }

    /// The number of a peer that has ended is still known, but not by /proc: the guest is told it as its own
    /// namespace numbers it (SO_PEERCRED, pid_vnr in kernel/pid.c). 0: it is not.
    fn ended_peer(&mut self, found: &Found) -> i32 {
        /// sizeof(struct ucred)
        const CREDENTIALS: usize = 12;
        if self.holder.tid != self.subject.hand.tid() {
            return 0;
        }
        let mut table = self.subject.hand.table();
        let told = table.room(CREDENTIALS);
        let length = table.data(&(CREDENTIALS as u32).to_ne_bytes());
        let (level, name) = (libc::SOL_SOCKET as u64, libc::SO_PEERCRED as u64);
        let arguments = [found.fd as u64, level, name, told.address, length.address];
        let asked = table.attempt(libc::SYS_getsockopt, arguments);
        let Ok(done) = self.subject.hand.run(&table) else { return 0 };
        done.result(asked).map_or(0, |_| done.half(told, 0) as i32)
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
