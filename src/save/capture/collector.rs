//! What is found while stopped guests are gone through, each thing once whoever shares it.

use std::fs::File;
use std::os::fd::OwnedFd;

use crate::save::capture::sockets::Gathered;
use crate::save::hand::Hand;
use crate::save::state::{Object, OpenFile, Pipe, Pty, SharedMemory};

/// A stopped process that is being captured.
#[derive(Debug)]
pub struct Subject<'s> {
    /// As the host numbers it: for /proc, pidfd_getfd(2), kcmp(2).
    pub pid: i32,
    /// As the guest does.
    pub guest_pid: i32,
    /// Calls that it makes itself.
    pub hand: &'s mut Hand,
}

/// Content for the memory section.
#[derive(Debug)]
pub enum Content {
    /// Pages of a process, which stays stopped until they are read: ranges of addresses.
    Pages {
        /// Their object; the place in it is the address.
        object: Object,
        /// The process, as the host numbers it.
        pid: i32,
        /// (start, end), page-aligned, in order.
        ranges: Vec<(u64, u64)>,
    },
    /// What can be read through a descriptor: a file or memory without a name.
    File {
        /// Its object; the place in it is the offset.
        object: Object,
        /// Open for reading.
        file: File,
        /// Bytes.
        size: u64,
    },
}

/// Gathers what processes share. Indices are those of [`crate::save::state::Sandbox`].
#[derive(Debug, Default)]
pub struct Collector {
    next: Object,
    /// What goes to the memory section.
    pub contents: Vec<Content>,
    /// Open file descriptions.
    pub files: Vec<OpenFile>,
    /// Pipes and FIFOs.
    pub pipes: Vec<Pipe>,
    /// Shared memory.
    pub shared: Vec<SharedMemory>,
    /// Pseudo-terminals.
    pub terminals: Vec<Pty>,
    /// What is remembered of sockets until all are known.
    pub sockets: Gathered,
    /// Descriptors that lie in queues of sockets, in the order in which they were found: whoever captures
    /// descriptors goes through them too, until there are no more, and fills in which files they are.
    pub passed: Vec<Passed>,
}

/// A descriptor that lies in the queue of a socket (SCM_RIGHTS).
#[derive(Debug)]
pub struct Passed {
    /// A copy of the sentry's own.
    pub fd: OwnedFd,
    /// Index in [`Collector::files`], once it is known.
    pub file: Option<u32>,
}

impl Collector {
    /// A new object.
    pub fn object(&mut self) -> Object {
        self.next += 1;
        self.next
    }
}
