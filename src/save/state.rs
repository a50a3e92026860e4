//! What an image says of a sandbox: plain data, as the kernel state section carries it.
//!
//! Live types are not serialisable; each component has its saved state here. Nothing in it is trusted:
//! whoever restores checks what it uses, and the host's kernel has the last word. Numbers of processes
//! and threads are those that the guest sees. Content of memory and of files is not here but in the
//! memory section, by the number of an [`Object`].

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::config::Root;
use crate::save::sharing::{Apart, Sharing};
use crate::save::timers::Timer;
use crate::sentry::{SavedNetwork, SavedRepeat, SavedRoot};
use crate::timekeeping::SavedClocks;

mod trees;

pub use trees::{Layer, Overlay, Tree, TreeEntry, TreeKind};

/// Where content lies in the memory section. Numbers are given once for a whole image.
pub type Object = u32;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What the run was asked for, and what it stood for then.
    pub run: Run,
    /// The guest's clocks at the moment of the save.
    pub clocks: Clocks,
    /// The clocks of the run's own, if it has any; the others are those of its kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_clocks: Option<SavedClocks>,
    /// What a run with `--deterministic` goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<SavedRepeat>,
    /// What a run with `--root` believes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<SavedRoot>,
    /// What a network of allowed hosts goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<SavedNetwork>,
    /// Bytes that its network has carried, of a run that may carry only so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<u64>,
    /// The address spaces.
    pub spaces: Vec<Space>,
    /// The processes; a parent comes before its children.
    pub processes: Vec<Process>,
    /// Those that keep programs which were started later: parents of processes that are not in here themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keepers: Vec<Keeper>,
    /// What tasks share that others do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sharing: Vec<Sharing>,
    /// Open file descriptions, by number. Each is restored once, whoever shares it.
    pub files: Vec<OpenFile>,
    /// Descriptor tables.
    pub tables: Vec<Table>,
    /// Memory that several mappings share.
    pub shared: Vec<SharedMemory>,
    /// Content of file systems that are private to the sandbox.
    pub trees: Vec<Tree>,
    /// The run's overlays, if it has any. Their content comes before all other content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// System V and POSIX IPC.
    pub ipc: crate::save::ipc::Ipc,
    /// What the sandbox's own network namespace and its sockets are like, beyond [`OpenFile`].
    pub pipes: Vec<Pipe>,
    /// Terminals made inside.
    pub terminals: Vec<crate::save::ptys::Pty>,
    /// The terminal of the run's program, if it has one.
    pub terminal: Option<crate::save::ptys::OwnTerminal>,
}

impl Sandbox {
    /// The capabilities that its guests have in their user namespace, as a set of bits.
    pub fn capabilities(&self) -> u64 {
        self.root.as_ref().map_or(0, |_| Root::Believed.capability_bits())
    }
}

/// What the run was asked for. Kept as the run specification's own saved form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`crate::config::RunSpec`], saved ([`crate::save::spec`]).
    pub spec: ByteBuf,
    /// The id of the sandbox.
    pub id: String,
    /// Lines of the kernel log.
    pub log: String,
    /// The guest number of the run's program.
    pub program: i32,
    /// How long it had run, microseconds.
    pub ran_us: u64,
    /// When it was saved, microseconds since the epoch by the host's clock.
    pub saved_us: i64,
    /// CPU time of all its guests so far, those that have ended included; microseconds.
    #[serde(default)]
    pub cpu_us: u64,
}

/// Nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_MONOTONIC, as the kernel of the guest tells it (the time namespace included).
    pub monotonic: i64,
    /// CLOCK_BOOTTIME, likewise.
    pub boottime: i64,
    /// CLOCK_REALTIME of the host.
    pub realtime: i64,
}

/// An address space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// Content of its private pages, by address.
    pub object: Object,
    /// By address.
    pub mappings: Vec<Mapping>,
    /// Where things are (prctl(2), PR_SET_MM_MAP).
    pub layout: Layout,
    /// The program's file, as the guest names it.
    pub exe: ByteBuf,
    /// That has been removed: index in [`Sandbox::shared`] of what takes its place.
    #[serde(default)]
    pub exe_memory: Option<u32>,
    /// What is mapped from now on is locked: MCL_FUTURE, MCL_ONFAULT of mlockall(2).
    #[serde(default)]
    pub lock_new: u32,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// PR_GET_THP_DISABLE, PR_GET_MEMORY_MERGE, PR_GET_MDWE.
    pub flags: [u64; 3],
    /// What membarrier(2) is registered for.
    pub membarrier: u64,
}

/// Fields of the memory descriptor (PR_SET_MM_MAP in prctl(2)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
    /// env_start, env_end.
    pub words: [u64; 11],
    /// The auxiliary vector.
    pub auxv: ByteBuf,
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind it.
    pub end: u64,
    /// PROT_*.
    pub protection: u32,
    /// What is mapped.
    pub kind: MappingKind,
    /// VmFlags of proc_pid_smaps(5), as there ("rd ex mr ...").
    pub flags: String,
    /// The name of PR_SET_VMA_ANON_NAME.
    #[serde(default)]
    pub name: Option<ByteBuf>,
    /// Guard regions (MADV_GUARD_INSTALL): (start, end).
    #[serde(default)]
    pub guards: Vec<(u64, u64)>,
}

/// What is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MappingKind {
    /// Private memory; its pages are in the space's object.
    Anonymous,
    /// Likewise, and it grows downwards.
    Stack,
    /// The main heap: anonymous, named by its place only.
    Heap,
    /// A file, private; changed pages are in the space's object.
    FilePrivate {
        /// Which.
        file: MappedFile,
        /// Offset in it.
        offset: u64,
    },
    /// A file, shared.
    FileShared {
        /// Which.
        file: MappedFile,
        /// Offset in it.
        offset: u64,
        /// The mapping may be made writable: the file was opened for writing.
        writable: bool,
    },
    /// Memory shared with other mappings: [`Sandbox::shared`].
    Shared {
        /// Index there.
        index: u32,
        /// Offset in it.
        offset: u64,
        /// MAP_PRIVATE of it.
        private: bool,
    },
    /// The kernel's code for fast calls. Changed pages are in the space's object.
    Vdso,
    /// The kernel's data for it, one or several mappings.
    Vvar(String),
}

/// A file that is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MappedFile {
    /// By name.
    Path {
        /// As the guest names it.
        path: ByteBuf,
        /// What it was like.
        identity: Identity,
    },
    /// One that has no name any more: an open file description keeps it ([`Sandbox::files`]).
    Open(u32),
}

/// How a file is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// st_dev, st_ino.
    pub inode: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub modified: i64,
    /// st_mode.
    pub mode: u32,
}

/// Memory that mappings share, of one process or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMemory {
    /// Its content.
    pub object: Object,
    /// Bytes.
    pub size: u64,
    /// How it comes about.
    pub kind: SharedKind,
}

/// How shared memory comes about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedKind {
    /// MAP_SHARED | MAP_ANONYMOUS.
    Anonymous,
    /// memfd_create(2); descriptors of it are [`FileKind::Memory`].
    Memfd {
        /// Its name.
        name: ByteBuf,
        /// F_GET_SEALS.
        seals: u32,
        /// st_mode.
        mode: u32,
    },
    /// shmget(2); an entry of [`Ipc::memory`] has this number.
    SystemV {
        /// shmid.
        id: i32,
    },
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's; 1 for what belongs to init, the number of a keeper for what belongs to that.
    pub parent: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// It has ended and waits to be waited for: its wait status.
    pub zombie: Option<i32>,
    /// Index in [`Sandbox::spaces`]. (None for a zombie, here and below.)
    pub space: Option<u32>,
    /// Index in [`Sandbox::tables`].
    pub table: Option<u32>,
    /// Its threads; the leader comes first, if it lives.
    pub threads: Vec<Thread>,
    /// What signals do: (handler, flags, restorer, mask) by number from 1; the kernel's struct.
    pub actions: Vec<[u64; 4]>,
    /// Signals that wait for the process: siginfo_t, 128 bytes each.
    pub pending: Vec<ByteBuf>,
    /// Working directory as the guest names it.
    pub directory: ByteBuf,
    /// Whether that has been removed.
    pub directory_gone: bool,
    /// Root directory, where it is not that of all (chroot(2)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<ByteBuf>,
    /// umask(2).
    pub umask: u32,
    /// Resource limits: (soft, hard) by number.
    pub limits: Vec<(u64, u64)>,
    /// setitimer(2): interval and value, microseconds, of REAL, VIRTUAL and PROF.
    pub interval_timers: [(u64, u64); 3],
    /// timer_create(2).
    pub timers: Vec<Timer>,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// personality(2).
    pub personality: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// It is stopped by this signal (job control).
    pub stopped: Option<i32>,
    /// Its parent could still be told of that stop by wait4(2).
    #[serde(default)]
    pub stop_unheard: bool,
    /// The signal that its parent gets at its end.
    pub exit_signal: i32,
    /// CPU time so far, microseconds: user and system of its own, user and system of its children.
    pub cpu_us: [u64; 4],
    /// The container that it is in.
    pub container: String,
    /// Its filters (seccomp(2)), in order: flags and instructions, as bytes.
    pub filters: Vec<(u32, ByteBuf)>,
}

/// Who keeps a program of `sandbox exec`, or one that opened a container: leads its session, and is the parent of
/// what it leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// Its number, which is that of its session.
    pub number: i32,
    /// The number of its program; 0: that has ended, and others that it has left behind have not.
    pub program: i32,
    /// What was executed, as it was asked for.
    pub path: String,
    /// The container of what it keeps.
    pub container: String,
    /// That ends with the program.
    pub opens_container: bool,
    /// The session had a terminal, which nobody shows any more: the program is to hear that.
    pub hang_up: bool,
}

/// A thread.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its number.
    pub tid: i32,
    /// user_regs_struct, in the order of that.
    pub registers: Vec<u64>,
    /// FPU and vector registers, as XSAVE lays them out.
    pub extended: ByteBuf,
    /// Blocked signals.
    pub mask: u64,
    /// Signals that wait for it: siginfo_t, 128 bytes each.
    pub pending: Vec<ByteBuf>,
    /// sigaltstack(2): address, flags, size.
    pub alternate_stack: [u64; 3],
    /// set_tid_address(2).
    pub clear_tid: u64,
    /// set_robust_list(2): address, length.
    pub robust_list: [u64; 2],
    /// rseq(2): address, size, signature, flags.
    pub rseq: Option<(u64, u32, u32, u32)>,
    /// Name, 15 bytes at most.
    pub name: ByteBuf,
    /// PR_GET_PDEATHSIG.
    pub parent_death_signal: i32,
    /// PR_GET_TIMERSLACK.
    pub timer_slack: u64,
    /// sched_getattr(2): policy, flags, nice, priority.
    pub scheduling: (u32, u64, i32, u32),
    /// sched_getaffinity(2), as bytes.
    pub affinity: ByteBuf,
    /// ioprio_get(2).
    pub io_priority: u32,
    /// How much is left of the timeout of the call that it is in, nanoseconds, where the kernel keeps
    /// that where nobody can read it (ERESTART_RESTARTBLOCK).
    pub remaining: Option<u64>,
    /// User, group: real, effective, saved, of the file system.
    pub users: [[u32; 4]; 2],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    /// CPU time so far, microseconds: user and system.
    #[serde(default)]
    pub cpu_us: [u64; 2],
    /// It does not share with the first thread of its process what threads usually do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apart: Option<Apart>,
}

/// A descriptor table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// By number.
    pub descriptors: Vec<Descriptor>,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// Index in [`Sandbox::files`].
    pub file: u32,
    /// FD_CLOEXEC.
    pub close_on_exec: bool,
}

/// An open file description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Flags (F_GETFL, O_CLOEXEC left out).
    pub flags: u32,
    /// Offset.
    pub position: u64,
    /// F_GETOWN_EX: type and id; F_GETSIG.
    pub owner: Option<(i32, i32, i32)>,
    /// Locks that belong to it or to processes through it.
    pub locks: Vec<Lock>,
    /// What it is open on.
    pub kind: FileKind,
}

/// A lock on a file (proc_locks(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// POSIX: the task whose table holds it; 0: the description does (OFD, flock).
    pub pid: i32,
    /// flock(2), not fcntl(2).
    pub whole: bool,
    /// Exclusive.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Number of bytes; 0: to the end.
    pub length: u64,
}

/// What a description is open on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FileKind {
    /// A file, directory, device or FIFO of the guest's view, by name.
    Path {
        /// As the guest names it.
        path: ByteBuf,
        /// What it was like.
        identity: Identity,
        /// Index in [`Sandbox::pipes`], for a FIFO.
        fifo: Option<u32>,
    },
    /// A file that has no name any more.
    Deleted {
        /// The name that it had.
        path: ByteBuf,
        /// Which of those it is: descriptions of one file share the number.
        file: u32,
        /// Its content.
        object: Object,
        /// What it was like.
        identity: Identity,
        /// It never had a name (O_TMPFILE).
        unnamed: bool,
        /// It is a directory.
        directory: bool,
    },
    /// A standard stream of the caller. The restoring caller's takes its place.
    Stream {
        /// 0, 1 or 2.
        stream: u32,
        /// A regular file of the caller, by name on the host: for who looks into the image.
        file: Option<(ByteBuf, Identity)>,
        /// It is another description of the same than the caller's.
        reopened: bool,
    },
    /// A standard stream that whoever asked for a later program gave to it. There is nobody any more: there is
    /// nothing to be read, and what is written goes where the run's own output does.
    LaterStream(u32),
    /// The terminal of the run's program ([`Sandbox::terminal`]).
    OwnTerminal,
    /// A memfd: index in [`Sandbox::shared`].
    Memory(u32),
    /// A pipe: index in [`Sandbox::pipes`].
    Pipe(u32),
    /// eventfd(2): value, semaphore.
    Event(u64, bool),
    /// signalfd(2): mask.
    Signals(u64),
    /// timerfd_create(2).
    Timer {
        /// Clock.
        clock: i32,
        /// Expirations that were not read.
        ticks: u64,
        /// Flags of timerfd_settime(2).
        flags: u32,
        /// Interval, nanoseconds.
        interval: u64,
        /// What remains; 0: not armed.
        remaining: u64,
    },
    /// epoll_create1(2): (descriptor, index in [`Sandbox::files`], events, data).
    Epoll(Vec<(i32, u32, u32, u64)>),
    /// inotify_init1(2): (watch, path, mask), and events that wait (none: those are refused).
    Inotify(Vec<(i32, ByteBuf, u32)>, ByteBuf),
    /// pidfd_open(2): process or thread, whether it is a thread's. 0: it has ended and was waited for.
    Pid(i32, bool),
    /// A socket.
    Socket(Box<crate::save::sockets::Socket>),
    /// The master of a pseudo-terminal: index in [`Sandbox::terminals`].
    PtyMaster(u32),
    /// A slave of one.
    PtySlave(u32),
    /// /dev/tty of the opening process's session, kept as what it stood for.
    ControllingTerminal,
    /// A POSIX message queue, by name.
    MessageQueue(ByteBuf),
    /// A namespace of the guest's own: the link of /proc/self/ns.
    Namespace(String),
}

impl FileKind {
    /// Whether it is a standard stream of somebody outside: what takes its place is shared with others.
    pub fn is_stream(&self) -> bool {
        matches!(self, FileKind::Stream { .. } | FileKind::LaterStream(_))
    }

    /// Whether it is one of the guests' own that no name leads to.
    pub fn is_nameless(&self) -> bool {
        matches!(
            self,
            FileKind::Deleted { .. }
                | FileKind::Memory(_)
                | FileKind::Pipe(_)
                | FileKind::Socket(_)
        )
    }
}

/// A pipe or FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// F_GETPIPE_SZ.
    pub capacity: u32,
    /// What waits in it.
    pub content: ByteBuf,
    /// O_DIRECT: lengths of the packets in it.
    pub packets: Option<Vec<u32>>,
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A process with nothing but numbers.
    pub(crate) fn process(pid: i32, parent: i32, session: i32, group: i32) -> Process {
        Process { pid, parent, session, group, exit_signal: libc::SIGCHLD, ..Process::default() }
    }
}
