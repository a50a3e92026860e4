//! Pipes and FIFOs, filled again.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::write;

use super::Maker;
use crate::save::error::RestoreError;
use crate::save::state::{FileKind, OpenFile, Pipe, Sandbox};
use crate::sentry::SavedDevice;
use crate::sys::{descriptors, files};

/// Both ends of the pipes, until all of their descriptions are made.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    ends: HashMap<u32, Ends>,
}

#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Ends that stand for no description of the guest's yet.
    unused: [bool; 2],
}

/// Makes the pipes that have no name.
pub(super) fn make(maker: &mut Maker<'_>) -> Result<Pipes, RestoreError> {
    let mut pipes = Pipes::default();
    let sandbox = maker.sandbox;
    for file in &sandbox.files {
        let FileKind::Pipe(index) = file.kind else { continue };
        if pipes.ends.contains_key(&index) {
            continue;
        }
        let saved = saved(maker, index)?;
        let [reader, writer] = both_ends(maker, libc::O_NONBLOCK)?;
        let ends = Ends { reader, writer, unused: [true; 2] };
        fill(&ends.writer, saved)
            .map_err(|errno| RestoreError::failed("cannot fill a pipe again", errno.desc()))?;
        pipes.ends.insert(index, ends);
    }
    Ok(pipes)
}

/// The reading and the writing end of a new pipe.
fn both_ends(maker: &mut Maker<'_>, flags: i32) -> Result<[OwnedFd; 2], RestoreError> {
    let mut table = maker.hand.table();
    let both = table.room(8);
    table.call(libc::SYS_pipe2, [both.address, flags as u64]);
    let failed = || RestoreError::of("cannot make a pipe");
    let done = maker.hand.run(&table).map_err(failed())?;
    let [reader, writer] = [done.half(both, 0) as i32, done.half(both, 1) as i32];
    let mut take = |fd| maker.take_and_close(fd).map_err(failed());
    Ok([take(reader)?, take(writer)?])
}

/// The reading end of a pipe that nobody writes to. `flags`: those of pipe2(2).
pub(super) fn ended(maker: &mut Maker<'_>, flags: i32) -> Result<OwnedFd, RestoreError> {
    both_ends(maker, flags).map(|[reader, _]| reader)
}

fn saved<'s>(maker: &Maker<'s>, index: u32) -> Result<&'s Pipe, RestoreError> {
    let sandbox = maker.sandbox;
    sandbox.pipes.get(index as usize).ok_or_else(|| {
        RestoreError::refused(format!("the image names a pipe ({index}) that it does not have"))
    })
}

/// Gives a pipe its capacity and content. Its writer must be non-blocking.
fn fill(writer: &OwnedFd, saved: &Pipe) -> Result<(), Errno> {
    let capacity = i32::try_from(saved.capacity).map_err(|_| Errno::EINVAL)?;
    if fcntl(writer, FcntlArg::F_GETPIPE_SZ)? != capacity {
        fcntl(writer, FcntlArg::F_SETPIPE_SZ(capacity))?;
    }
    let Some(packets) = &saved.packets else { return write_all(writer, &saved.content) };
    // In this mode each write is a packet (pipe_write in fs/pipe.c).
    let status = descriptors::status(writer.as_fd())?;
    descriptors::set_status(writer.as_fd(), status | libc::O_DIRECT)?;
    let mut rest = saved.content.as_slice();
    for length in packets {
        let (packet, behind) = rest.split_at_checked(*length as usize).ok_or(Errno::EINVAL)?;
        write_all(writer, packet)?;
        rest = behind;
    }
    descriptors::set_status(writer.as_fd(), status)
}

fn write_all(writer: &OwnedFd, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        let count = write(writer, rest)?;
        rest = &rest[count..];
    }
    Ok(())
}

impl Pipes {
    /// Writing ends of those that the sentry keeps full.
    pub(super) fn devices(
        self,
        sandbox: &Sandbox,
    ) -> Result<Vec<(SavedDevice, OwnedFd)>, RestoreError> {
        let Pipes { mut ends } = self;
        let devices = sandbox.repeat.iter().flat_map(|repeat| &repeat.devices);
        devices
            .map(|device| {
                let ends = ends.remove(&device.pipe).ok_or_else(|| {
                    RestoreError::refused("the image names a random device that it does not have")
                })?;
                // A description that no guest shares: it must not wait.
                let flags = libc::O_WRONLY | libc::O_NONBLOCK;
                let writer = files::open_descriptor(ends.writer.as_fd(), flags)
                    .map_err(|errno| RestoreError::failed("a random device", errno.desc()))?;
                Ok((device.clone(), writer))
            })
            .collect()
    }

    /// A description of an end.
    pub(super) fn end(
        &mut self,
        maker: &mut Maker<'_>,
        index: u32,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        let Some(ends) = self.ends.get_mut(&index) else {
            return Err(RestoreError::refused("the image names a pipe that it does not have"));
        };
        let flags = file.flags as i32;
        let writes = flags & libc::O_ACCMODE == libc::O_WRONLY;
        let end = if writes { &ends.writer } else { &ends.reader };
        // The first description of an end is the one that pipe(2) made, unless it is of another kind.
        let first = std::mem::replace(&mut ends.unused[usize::from(writes)], false);
        let plain = flags & (libc::O_PATH | libc::O_ACCMODE);
        if first && (plain == libc::O_RDONLY || plain == libc::O_WRONLY) {
            return end
                .try_clone()
                .map_err(|error| RestoreError::failed("cannot copy a pipe's end", error));
        }
        maker.reopen(end, file)
    }

    /// Fills a FIFO, which keeps what it has while somebody holds it open.
    pub(super) fn fifo(
        &mut self,
        maker: &mut Maker<'_>,
        index: u32,
        path: &[u8],
    ) -> Result<(), RestoreError> {
        if self.ends.contains_key(&index) {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(path).into_owned();
        let saved = saved(maker, index)?;
        let what = format!("cannot open the FIFO {shown}");
        // Both ways: an open of one end neither waits nor fails (fifo(7)).
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        let both = maker.open(path, flags, 0).map_err(RestoreError::of(&what))?;
        let stat = nix::sys::stat::fstat(&both)
            .map_err(|errno| RestoreError::failed(&what, errno.desc()))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFIFO {
            return Err(RestoreError::refused(format!(
                "{shown} is no FIFO any more; put it back first"
            )));
        }
        // What others have written to it since is left alone.
        let waiting = descriptors::readable(both.as_fd())
            .map_err(|errno| RestoreError::failed(&what, errno.desc()))?;
        if waiting == 0 {
            fill(&both, saved).map_err(|errno| {
                RestoreError::failed(format!("cannot fill the FIFO {shown} again"), errno.desc())
            })?;
        }
        let reader = both.try_clone().map_err(|error| RestoreError::failed(&what, error))?;
        self.ends.insert(index, Ends { reader, writer: both, unused: [false; 2] });
        Ok(())
    }
}
