//! A copy of a process, and how its pages are had.
//!
//! A copy is stopped for good ([`super::snapshot`]), but it has a hand: asked for its pages, it writes them
//! itself to where they are wanted. For it that is one copy within its own memory; who reads them from outside
//! has the kernel look up each page and copy it twice (mem_rw in fs/proc/base.c). What has to be read from outside
//! all the same is: small pieces, and whatever the hand is refused.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::save::courier::Courier;
use crate::save::hand::{self, Hand, HandError};
use crate::sentry::{Kernel, Tracees};
use crate::sys::buffer::Place;
use crate::sys::errno_of;
use crate::sys::{descriptors, process};

/// A copy. Killed when dropped.
#[derive(Debug)]
pub struct Copied {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    kernel: Arc<Kernel>,
    /// The entry of [`super::Found::spaces`].
    space: usize,
    /// Where its hand lies.
    area: u64,
    /// Seccomp filters that the hand passes.
    filters: Vec<Vec<u8>>,
    /// Its /proc/PID/mem, opened while it still may be.
    memory: Result<File, Errno>,
    /// A leaf of the lock order; one piece is delivered at a time.
    way: Mutex<Way>,
}

/// How a copy can write to the file that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It was never asked.
    Untried,
    /// The file has this number there.
    Open(i32),
    /// It cannot.
    Refused,
}

impl Copied {
    /// `hand`: that of the process itself, in whose memory the copy's lies at the same place.
    pub fn new(
        kernel: &Arc<Kernel>,
        (pid, pidfd): (i32, OwnedFd),
        hand: &Hand,
        space: usize,
    ) -> Copied {
        Copied {
            pid,
            pidfd: Arc::new(pidfd),
            kernel: Arc::clone(kernel),
            space,
            area: hand.area(),
            filters: hand.filters().to_vec(),
            memory: hand::memory(pid, false),
            way: Mutex::new(Way::Untried),
        }
    }

    /// As the host numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells of its end.
    pub fn pidfd(&self) -> &Arc<OwnedFd> {
        &self.pidfd
    }

    /// The entry of [`super::Found::spaces`].
    pub fn space(&self) -> usize {
        self.space
    }

    /// Reads its memory from outside.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Errno> {
        match &self.memory {
            Ok(file) => file.read_exact_at(to, address).map_err(|error| errno_of(&error)),
            Err(_) => hand::read(self.pid, address, to),
        }
    }

    /// Has it write some of its memory to a place. False: it has to be read. All places that it is given
    /// have to be of one file.
    pub fn deliver(&self, address: u64, to: Place) -> bool {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if *way == Way::Refused {
            return false;
        }
        let (pid, area, filters, pidfd) =
            (self.pid, self.area, self.filters.clone(), Arc::clone(&self.pidfd));
        let number = match *way {
            Way::Open(number) => Some(number),
            _ => None,
        };
        let work = move |tracees: &mut Tracees| {
            let stopped = tracees.take_kept(pid).ok_or(HandError::Killed)?;
            let mut hand = Hand::new(stopped, area);
            hand.respect(filters);
            let done = written(&mut hand, &pidfd, number, address, &to);
            tracees.keep(hand.release()?);
            done
        };
        let done = self.kernel.tracer().run(work).map_err(|errno| HandError::Own("ask", errno));
        match done.and_then(|done| done) {
            Ok(number) => *way = Way::Open(number),
            Err(error) => {
                tracing::debug!(pid, %error, "memory is read from outside");
                *way = Way::Refused;
            }
        }
        *way != Way::Refused
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // ESRCH: it has been killed. Its tracer reaps it, then init.
        let _ = process::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        self.kernel.remove_keeper(self.pid);
    }
}

/// Has a copy write all of a piece; gives the file's number there.
fn written(
    hand: &mut Hand,
    pidfd: &OwnedFd,
    number: Option<i32>,
    address: u64,
    to: &Place,
) -> Result<i32, HandError> {
    let number = match number {
        Some(number) => number,
        None => give(hand, pidfd, &to.file)?,
    };
    let arguments = [number as u64, address, to.length as u64, to.offset];
    match hand.call(libc::SYS_pwrite64, arguments)? {
        count if count == to.length as u64 => Ok(number),
        // It may not write so far (RLIMIT_FSIZE), or may not read its own memory (PROT_NONE).
        _ => Err(HandError::Own("write all of it", Errno::EFAULT)),
    }
}

/// Gives a copy the file; gives its number there.
fn give(hand: &mut Hand, pidfd: &OwnedFd, file: &File) -> Result<i32, HandError> {
    let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
    let (_, ends) =
        hand.call_with(libc::SYS_socketpair, &[0; 8], |at| [libc::AF_UNIX as u64, kind, 0, at])?;
    let end = |at: usize| ends.get(at..at + 4).and_then(|it| it.try_into().ok());
    let (ours, theirs) = (end(0).map(i32::from_ne_bytes), end(4).map(i32::from_ne_bytes));
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return Err(HandError::Killed) };
    let socket = descriptors::copy(pidfd.as_fd(), ours)
        .map_err(|errno| HandError::Own("take a socket of it", errno))?;
    // From here on no guest gets at it or at what it has: it holds what is written of all others.
    hand.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 0, 0, 0, 0])?;
    let numbers = Courier::new(socket, theirs).send(hand, &[file.as_fd()])?;
    tracing::trace!(file = file.as_raw_fd(), ?numbers, "a copy writes its memory itself");
    numbers.first().copied().ok_or(HandError::Own("pass it a file", Errno::EBADMSG))
}
