//! Pipes and FIFOs, with what waits in them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read};
use serde_bytes::ByteBuf;

use super::{Capture, Found};
use crate::save::capture::collector::Collector;
use crate::save::capture::known::PipeEnds;
use crate::save::error::SaveError;
use crate::save::state::{FileKind, Pipe};
use crate::sys::descriptors;

impl Capture<'_, '_> {
    /// The index of a pipe, of which this is an end. `named`: a FIFO; `given`: as a stream of a later program.
    pub(super) fn pipe(
        &mut self,
        found: &Found,
        named: bool,
        given: Option<u32>,
    ) -> Result<u32, SaveError> {
        let inode = found.inode();
        if !self.collector.known.pipes.contains_key(&inode) {
            let pipe = self.look_into(found)?;
            let index = self.collector.pipes.len() as u32;
            self.collector.pipes.push(pipe);
            let holder = self.holder.name.clone();
            let (found, open) = ([false; 2], [false; 2]);
            let ends = PipeEnds { index, holder, found, open, named, given };
            self.collector.known.pipes.insert(inode, ends);
        }
        let open = if found.is_path_only() { [false; 2] } else { self.open_ends(found)? };
        let Some(ends) = self.collector.known.pipes.get_mut(&found.inode()) else { return Ok(0) };
        for (at, access) in found.access().into_iter().enumerate() {
            ends.found[at] |= access;
            ends.open[at] |= open[at];
        }
        let pipe = &mut self.collector.pipes[ends.index as usize];
        // A writer of packets: what looked like a stream may be one packet.
        if found.info.flags & libc::O_DIRECT as u32 != 0
            && found.access()[1]
            && pipe.packets.is_none()
        {
            pipe.packets =
                Some(Some(pipe.content.len() as u32).into_iter().filter(|it| *it > 0).collect());
        }
        Ok(ends.index)
    }

    /// Whether anybody has the reading, the writing end open, as far as this end knows of the other
    /// (pipe_poll in fs/pipe.c).
    fn open_ends(&self, found: &Found) -> Result<[bool; 2], SaveError> {
        let [read, write] = found.access();
        if read && write {
            return Ok([true; 2]);
        }
        let copy = self.holder.copy(found.fd)?;
        let mut poll_fd = [PollFd::new(copy.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        poll(&mut poll_fd, PollTimeout::ZERO)
            .map_err(self.holder.failed_with(found.fd, "ask for the other end"))?;
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        let other = !poll_fd[0].revents().is_some_and(|it| it.intersects(gone));
        Ok(if read { [true, other] } else { [other, true] })
    }

    fn look_into(&self, found: &Found) -> Result<Pipe, SaveError> {
        let failed = self.holder.failed_with(found.fd, "read the content");
        // A reader more for a moment wakes nobody who runs: all are stopped.
        let end = if found.access()[0] {
            self.holder.copy(found.fd)?
        } else {
            self.holder.reopen(found.fd, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?
        };
        let capacity = fcntl(end.as_fd(), FcntlArg::F_GETPIPE_SZ).map_err(&failed)? as u32;
        let (content, packets) = peek(end.as_fd(), capacity).map_err(failed)?;
        Ok(Pipe { capacity, content: ByteBuf::from(content), packets })
    }
}

type Peeked = (Vec<u8>, Option<Vec<u32>>);

/// What waits in a pipe, which keeps it, and the lengths of the packets if it is of such.
fn peek(end: BorrowedFd<'_>, capacity: u32) -> Result<Peeked, Errno> {
    let waiting = descriptors::readable(end)?;
    if waiting == 0 {
        return Ok((Vec::new(), None));
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(capacity as i32))?;
    if descriptors::tee(end, writer.as_fd(), waiting)? != waiting {
        return Err(Errno::ENOBUFS);
    }
    read_out(&reader, waiting)
}

/// Buffers of packets stay such when they are copied (link_pipe in fs/splice.c), and a packet ends the
/// read that meets it (pipe_read in fs/pipe.c).
fn read_out(reader: &OwnedFd, waiting: usize) -> Result<Peeked, Errno> {
    let mut content = vec![0; waiting];
    let (mut done, mut lengths) = (0, Vec::new());
    while done < waiting {
        match read(reader, &mut content[done..])? {
            0 => return Err(Errno::ENODATA),
            count => {
                lengths.push(count as u32);
                done += count;
            }
        }
    }
    let packets = if lengths.len() > 1 { Some(lengths) } else { None };
    Ok((content, packets))
}

/// A pipe whose other end somebody outside has would lead nowhere. One that a later program was given ends where
/// what has been written to it ends; if it is to be written to, another stream takes its place.
pub(super) fn check_ends(collector: &mut Collector) -> Result<(), SaveError> {
    let known = &collector.known;
    let mut replaced = HashMap::new();
    let is_others = |inode, ends: &PipeEnds| !ends.named && !known.devices.contains_key(inode);
    for (_, ends) in known.pipes.iter().filter(|(inode, ends)| is_others(inode, ends)) {
        for (at, end) in ["reads", "writes"].into_iter().enumerate() {
            if !ends.open[at] || ends.found[at] {
                continue;
            }
            if let Some(stream) = ends.given {
                if at == 0 {
                    replaced.insert(ends.index, stream);
                }
            } else {
                return Err(SaveError::refused(format!(
                    "{} holds a pipe which somebody outside the sandbox {end}; \
                     end the program that was started with it first",
                    ends.holder
                )));
            }
        }
    }
    for file in &mut collector.files {
        if let FileKind::Pipe(index) = file.kind
            && let Some(stream) = replaced.get(&index)
        {
            file.kind = FileKind::LaterStream(*stream);
        }
    }
    for index in replaced.keys() {
        // Whoever reads it has that, or will.
        collector.pipes[*index as usize].content.clear();
    }
    Ok(())
}
