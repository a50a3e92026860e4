//! What is found while stopped guests are gone through, each thing once whoever shares it.

use std::cell::OnceCell;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use crate::save::capture::known::Known;
use crate::save::capture::{ptys, sockets};
use crate::save::hand::Hand;
use crate::save::ptys::Pty;
use crate::save::state::{Object, OpenFile, Pipe, SharedMemory};
use crate::sys::beneath;
use crate::sys::generated;

/// A stopped process that is being captured.
#[derive(Debug)]
pub struct Subject<'s> {
    /// As the host numbers it: for /proc, pidfd_getfd(2), kcmp(2).
    pub pid: i32,
    /// As the guest does.
    pub guest_pid: i32,
    /// Calls that it makes itself.
    pub hand: &'s mut Hand,
    /// Once somebody has asked.
    name: OnceCell<String>,
}

impl<'s> Subject<'s> {
    /// `pid`: as the host numbers it; `guest_pid`: as the guest does.
    pub fn new(pid: i32, guest_pid: i32, hand: &'s mut Hand) -> Subject<'s> {
        Subject { pid, guest_pid, hand, name: OnceCell::new() }
    }

    /// For complaints: "process 12 (python3)".
    pub fn name(&self) -> &str {
        self.name.get_or_init(|| {
            let name = generated::contents(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
            let name = String::from_utf8_lossy(&name);
            // (A guest chooses it.)
            let name: String = name.trim_end().chars().filter(|it| !it.is_control()).collect();
            format!("process {} ({name})", self.guest_pid)
        })
    }
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
        /// Those of them that are known to be zero ([`super::zeros`]), likewise.
        zeros: Vec<(u64, u64)>,
        /// What tells of its end, if it is a copy: guests may kill that, and then its number may be another's.
        copy: Option<Arc<OwnedFd>>,
    },
    /// Mappings of a copy of a process ([`super::snapshot`]), whose pages are looked for and read while
    /// the process itself goes on.
    Copied {
        /// Their object; the place in it is the address.
        object: Object,
        /// The copy, as the host numbers it.
        pid: i32,
        /// (start, end), in order.
        mappings: Vec<(u64, u64)>,
    },
    /// Pages of a process that were read at once, since they are few.
    Read {
        /// Their object; the place in it is the address.
        object: Object,
        /// (start, end), page-aligned, in order.
        ranges: Vec<(u64, u64)>,
        /// All of them, one behind the other.
        bytes: Box<[u8]>,
    },
    /// What was read while all stood still.
    Kept {
        /// Its object.
        object: Object,
        /// Where it was read to; holes are zeros that are not in the image.
        spool: Arc<File>,
        /// Where in the spool.
        at: u64,
        /// Where in the object.
        offset: u64,
        /// Bytes.
        size: u64,
        /// They are pages; else a stream.
        pages: bool,
    },
    /// Shared memory, read through a mapping of a process, which stays stopped until then.
    Mapping {
        /// Its object; the place in it is the offset.
        object: Object,
        /// The process, as the host numbers it.
        pid: i32,
        /// First address.
        start: u64,
        /// Address behind it.
        end: u64,
        /// Offset of the first address.
        offset: u64,
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
    /// Likewise, of a file that is opened only then: there may be more files than descriptors.
    Below {
        /// Its object; the place in it is the offset.
        object: Object,
        /// A directory above it.
        directory: Arc<OwnedFd>,
        /// Its path from there, without symbolic links.
        path: CString,
        /// Bytes.
        size: u64,
    },
}

impl Content {
    /// Opens what is below a directory, for reading.
    pub fn open_below(directory: &OwnedFd, path: &CStr) -> Result<File, Errno> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        // Its time of access stays, unless it is somebody else's (open(2)).
        beneath::open(directory.as_fd(), path, flags | libc::O_NOATIME)
            .or_else(|_| beneath::open(directory.as_fd(), path, flags))
            .map(File::from)
    }
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
    /// Ends of those that guests hold.
    pub ptys: ptys::Gathered,
    /// Files that are safe on the disk.
    pub synced: super::flush::Synced,
    /// Memory that is only known from mappings.
    pub mapped: super::shared::Mapped,
    /// What of these belongs to which object of the kernel.
    pub known: Known,
    /// CLOCK_MONOTONIC of the host at the moment that [`crate::save::state::Clocks`] tells of,
    /// nanoseconds: what timers have lost since then is given back to them.
    pub moment: Option<i64>,
    /// What a user should know of, one sentence each.
    pub notes: Vec<String>,
    /// What is remembered of sockets until all are known.
    pub sockets: sockets::Gathered,
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

    /// What a running timer that has so much left now had left at the moment of the save.
    pub fn left_then(&self, remaining: u64) -> u64 {
        let Some(moment) = self.moment.filter(|_| remaining > 0) else { return remaining };
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return remaining };
        let now = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
        remaining.saturating_add(u64::try_from(now - moment).unwrap_or(0))
    }
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
