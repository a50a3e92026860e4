//! What is at hand while guests are put together.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::threads;
use crate::notify::Gate;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::restore::courier::Courier;
use crate::save::state::{Object, Sandbox};
use crate::sentry::{Kernel, SavedDevice};
use crate::sys::beneath;

/// Where content of the memory section goes.
#[derive(Debug)]
pub enum Sink {
    /// To a file, at the offset.
    File(File),
    /// To the memory of a process, at the address.
    Space {
        /// The process, as the host numbers it.
        pid: i32,
        /// Where a file lies below: a page of zeros has to be written there. Elsewhere memory is zero.
        files: Vec<(u64, u64)>,
    },
    /// To memory of a process, to the offset from this address.
    Mapping {
        /// The process.
        pid: i32,
        /// Where offset 0 is.
        address: u64,
    },
    /// To a file that is opened only then, at the offset.
    Below {
        /// A directory above it.
        directory: Arc<OwnedFd>,
        /// Its path from there, without symbolic links.
        path: CString,
    },
    /// It is where it belongs: content of layers comes before all else.
    Done,
}

impl Sink {
    /// Opens what is below a directory, for writing.
    pub fn open_below(directory: &OwnedFd, path: &CStr) -> Result<File, Errno> {
        let flags = libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        beneath::open(directory.as_fd(), path, flags).map(File::from)
    }
}

/// What is done once all content is in its place: seals, modes, locks.
pub type Finish = Box<dyn FnOnce(&mut Maker<'_>) -> Result<(), RestoreError>>;

/// Makes shared things, each once, and hands them round.
///
/// Work is done by one process of the sandbox's own, the *maker*: it is in all the namespaces of the
/// guest and has all capabilities there. It ends before any guest runs.
pub struct Maker<'m> {
    /// The maker process.
    pub hand: &'m mut Hand,
    /// Carries descriptors to it and from it.
    pub courier: &'m Courier,
    /// What is restored.
    pub sandbox: &'m Sandbox,
    /// Open file descriptions that have been made, by index in [`Sandbox::files`].
    pub files: Vec<Option<OwnedFd>>,
    /// Memory that has a descriptor, by index in [`Sandbox::shared`].
    pub shared: Vec<Option<OwnedFd>>,
    /// Where content goes.
    pub sinks: HashMap<Object, Sink>,
    /// What is left to do then, in order.
    pub finishes: Vec<Finish>,
    /// The processes of the image, as far as they have grown, by number.
    pub hands: HashMap<i32, Hand>,
    /// Lets their calls pass.
    pub gate: &'m Gate,
    /// Random devices that go on, each with its writing end, which nobody else has.
    pub devices: Vec<(SavedDevice, OwnedFd)>,
    /// The sentry's, which has connections of its own with the host's network. (None in tests.)
    pub kernel: Option<&'m Kernel>,
}

impl Maker<'_> {
    /// Has a process of this number make calls: of some things the kernel remembers who has made them. One that
    /// has ended gets a stand-in for so long, whose number is remembered as well (pid_nr_ns in kernel/pid.c). Where its
    /// number is taken by now, the maker makes them.
    pub fn in_the_name_of<T>(
        &mut self,
        pid: i32,
        work: impl FnOnce(&mut Hand, &Courier) -> Result<T, HandError>,
    ) -> Result<T, HandError> {
        if let Some(hand) = self.hands.get_mut(&pid) {
            return work(hand, self.courier);
        }
        // (The maker may have put away the right to choose a number.)
        let (2.., Some(parent)) = (pid, self.hands.values_mut().next()) else {
            return work(self.hand, self.courier);
        };
        let made = threads::children(parent, 0, 0, &[pid]).ok().and_then(|mut it| it.pop());
        let Some(mut hand) = made else { return work(self.hand, self.courier) };
        self.gate.pass(hand.tid());
        let done = work(&mut hand, self.courier);
        super::end(hand).map_err(|_| HandError::Own("end a stand-in", Errno::EBUSY))?;
        parent.call(libc::SYS_wait4, [pid as u64, 0, libc::__WALL as u64, 0])?;
        done
    }

    /// A path of the guest's view, opened by the maker, for the sentry.
    pub fn open(&mut self, path: &[u8], flags: i32, mode: u32) -> Result<OwnedFd, HandError> {
        let flags = flags as u32 as u64;
        let arguments = |at| [libc::AT_FDCWD as u64, at, flags, u64::from(mode)];
        let fd = self.hand.call_path(libc::SYS_openat, path, arguments)?;
        self.take_and_close(fd as i32)
    }

    /// Moves a descriptor of the maker's to the sentry.
    pub fn take_and_close(&mut self, fd: i32) -> Result<OwnedFd, HandError> {
        let taken = self.courier.take(self.hand, fd)?;
        self.hand.call(libc::SYS_close, [fd as u64])?;
        Ok(taken)
    }

    /// Gives the maker a descriptor; its number there.
    pub fn give(&mut self, fd: impl AsFd) -> Result<i32, HandError> {
        let numbers = self.courier.send(self.hand, &[fd.as_fd()])?;
        numbers.first().copied().ok_or(HandError::Killed)
    }
}
