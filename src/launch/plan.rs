//! Everything that the child will do, decided and allocated before it exists.
//!
//! The child side runs on a copy of the supervisor's memory and may neither allocate nor take a
//! lock, so each string, array and table it needs lies ready here.

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use libc::c_int;

use super::apart::Apart;
use super::confine::{self, Confinement};
use super::program::Program;
use super::view::{Step, View};
use crate::config::{Limits, Means, Network, Root, RunSpec, Without};
use crate::overlay::Layer;
use crate::sentry::{Randomness, Time};
use crate::sys::fdinfo::FdInfo;
use crate::sys::memfd::SharedMemory;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};
use crate::sys::spawn::CpuMask;
use crate::sys::strings::StringLists;
use crate::sys::{files, seccomp};
use crate::terminal::Settings;
use crate::timekeeping::{NoVdso, Patch};

/// The most instructions that the kernel takes (BPF_MAXINSNS).
const PROGRAM_LIMIT: usize = 4096;

/// The namespaces of every run that has some.
const ALWAYS_OWN: c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// The child's life, prepared.
pub struct Plan {
    /// Flags of clone(2).
    pub(super) namespaces: c_int,
    /// Where the clocks of the program's own time namespace start, as timens_offsets wants it;
    /// `None` is none of its own.
    pub(super) time_namespace: Option<Vec<u8>>,
    /// What is changed in the vDSO of the program.
    pub(super) vdso: Option<Patch>,
    /// When that was made.
    pub(super) begun: Instant,
    /// Building the file view, in order.
    pub(super) steps: Vec<Step>,
    /// Detached mount trees between the step that makes them and the one that uses them.
    pub(super) trees: Vec<Cell<Option<OwnedFd>>>,
    pub(super) hostname: Option<Vec<u8>>,
    pub(super) loopback: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Option<Vec<u32>>,
    /// Capabilities of its own user namespace that the program has, as a set of bits.
    pub(super) capabilities: u64,
    /// Programs lie at addresses that are always the same.
    pub(super) keep_addresses: bool,
    /// The processors that every guest may use; `None` leaves them as they are.
    pub(super) cpus: Option<CpuMask>,
    /// Resource limits, soft and hard alike, that the program starts with.
    pub(super) rlimits: Vec<(u32, u64)>,
    pub(super) confinement: Confinement,
    /// It lives in the host's namespaces.
    pub(super) apart: bool,
    /// The confinement is in force for init, and keeps its signals from the supervisor.
    pub(super) confined: Cell<bool>,
    pub(super) wait_killable: bool,
    /// The guest's terminal, and which of the standard streams it replaces.
    pub(super) terminal: Option<(Settings, [bool; 3])>,
    /// Descriptors to open again read-only.
    pub(super) reopened: Vec<Reopen>,
    /// Layers that something lies in front of, which the supervisor makes.
    pub(super) fronts: Vec<Layer>,
    /// Descriptors from 3 on that the program keeps.
    pub(super) descriptors: Vec<RawFd>,
    pub(super) workdir: CString,
    /// What the processes of an image grow from: then none is started, and this is planted.
    pub(super) seed: Option<OwnedFd>,
    /// The program ([`super::program::Lists`]).
    pub(super) lists: StringLists,
    /// The signals that were blocked when the supervisor was started.
    pub(super) signal_mask: nix::sys::signal::SigSet,
    /// Where the filter's program is handed over.
    pub(super) program: SharedMemory,
}

/// An inherited descriptor that is a file open for reading only. The guest could open it again for
/// writing through /proc/self/fd, since its mount is the host's own writable one; so the guest
/// gets it through a read-only mount instead, at the same offset.
#[derive(Debug)]
pub(super) struct Reopen {
    pub(super) fd: RawFd,
    pub(super) tree: usize,
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// Why there is no plan: one sentence with object and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError(String);

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PlanError {}

impl PlanError {
    pub(super) fn new(sentence: String) -> Self {
        PlanError(sentence)
    }
}

impl Plan {
    /// Plans `spec` on this host, with these layers for its overlays.
    pub fn new(
        spec: &RunSpec,
        layers: &[Layer],
        terminal: Option<(Settings, [bool; 3])>,
        signal_mask: nix::sys::signal::SigSet,
        time: &Time,
        apart: Option<&Apart>,
    ) -> Result<Plan, PlanError> {
        if spec.network == Network::Allow && confine::abi(spec) < 4 {
            return Err(PlanError::new(
                "cannot use --allow-net: it needs Landlock of ABI 4 (Linux 6.7, with landlock among the kernel's lsm=), \
                 so that no program connects past it; use --net host, or --net none"
                    .to_owned(),
            ));
        }
        let mut view = View::default();
        let terminals = terminal.as_ref().map(|(_, streams)| streams);
        // (For a run apart, too: it refuses directories and block devices.)
        let mut reopened = inherited_descriptors(&mut view, spec, terminals)?;
        let is_apart = apart.is_some();
        match is_apart {
            // (Landlock keeps a file that is open for reading from being opened for writing.)
            true => {
                reopened.clear();
                view = View::default();
            }
            false => view.build(spec, layers)?,
        }
        let fronts = layers.iter().filter(|layer| layer.front.is_some()).cloned().collect();
        let own_network = spec.network != Network::Host && !is_apart;
        let program =
            Program { argv: &spec.argv, environment: &spec.environment, workdir: &spec.workdir };
        Ok(Plan {
            namespaces: match is_apart {
                true => 0,
                false => ALWAYS_OWN | if own_network { libc::CLONE_NEWNET } else { 0 },
            },
            time_namespace: (!spec.without.contains(Without::TIME_NAMESPACES))
                .then(|| time.keeper().namespace().offsets().into_bytes()),
            begun: Instant::now(),
            vdso: vdso(spec, time)?,
            steps: view.steps,
            fronts,
            trees: (0..view.trees).map(|_| Cell::new(None)).collect(),
            hostname: spec.hostname.as_ref().map(|name| name.as_bytes().to_vec()),
            loopback: own_network,
            uid: spec.identity.uid,
            gid: spec.identity.gid,
            groups: spec.identity.groups.clone(),
            capabilities: spec.root.capability_bits(),
            keep_addresses: spec.deterministic.is_some(),
            cpus: spec.limits.cpus.as_deref().map(CpuMask::new),
            rlimits: resource_limits(&spec.limits, spec.root == Root::Believed),
            confinement: Confinement::of(spec, layers, apart, terminals)?,
            apart: is_apart,
            confined: Cell::new(false),
            wait_killable: !spec.without.contains(Without::WAIT_KILLABLE)
                && seccomp::knows_filter_flags(
                    seccomp::FILTER_FLAG_NEW_LISTENER | seccomp::FILTER_FLAG_WAIT_KILLABLE_RECV,
                ),
            terminal,
            reopened,
            descriptors: spec.descriptors.clone(),
            workdir: c_string(spec.workdir.as_os_str())?,
            seed: None,
            lists: StringLists::new(&program.lists()?),
            signal_mask,
            program: SharedMemory::new(PROGRAM_LIMIT * 8)
                .map_err(|e| PlanError(format!("cannot map memory for the filter: {e}")))?,
        })
    }

    /// The caller's own streams stand where the guest's have come to: `(sandbox -- head -1; cat) < f`.
    /// Child side.
    pub(super) fn return_offsets(&self) {
        for reopen in &self.reopened {
            if let Some(original) = self.trees[reopen.tree].take() {
                let _ = files::copy_offset(reopen.fd, original.as_raw_fd());
            }
        }
    }

    /// What init plants, in place of starting a program.
    pub fn plant(&mut self, seed: OwnedFd) {
        self.seed = Some(seed);
    }

    /// The filter is loaded with WAIT_KILLABLE_RECV.
    pub fn wait_killable(&self) -> bool {
        self.wait_killable
    }
}

/// What is changed in the program before it runs.
fn vdso(spec: &RunSpec, time: &Time) -> Result<Option<Patch>, PlanError> {
    let begin = spec.deterministic.as_ref().map(|it| Randomness::first(&it.seed));
    time.patch(begin).map_err(|NoVdso| {
        PlanError::new(
            "cannot give the sandbox a clock of its own: programs on this host read clocks in a way that is \
             not known; leave --time and --deterministic out"
                .to_owned(),
        )
    })
}

/// What RLIMIT_DATA leaves above `--memory` where the sentry keeps that: room for the stacks of threads
/// and other memory that is mapped and hardly touched, which the limit is not about.
const UNTOUCHED: u64 = 4 << 30;

/// The resource limits (getrlimit(2)) of the program and all that it makes.
fn resource_limits(limits: &Limits, believes: bool) -> Vec<(u32, u64)> {
    let mut all = Vec::new();
    if believes {
        // The distance of the two tells who a process believes to be (sentry::credentials): none, to begin with.
        all.push((libc::RLIMIT_LOCKS, u64::MAX));
    }
    if let Some(bound) = limits.memory.filter(|bound| bound.by == Means::Sentry) {
        // For the moment in which one process is faster than the sentry looks.
        all.push((libc::RLIMIT_DATA, bound.limit.saturating_add(UNTOUCHED)));
    }
    if let Some(bound) = limits.pids.filter(|bound| bound.by == Means::Rlimit) {
        // One more for init, which the kernel counts in the same user namespace.
        all.push((libc::RLIMIT_NPROC, bound.limit.saturating_add(1)));
    }
    if let Some(budget) = limits.cpu_time {
        // For a process that the ticker does not notice (sentry::syscalls::processes): no single one
        // passes the budget by more than a second or two. Both limits, so that nobody gets an early
        // SIGXCPU (check_process_timers in kernel/time/posix-cpu-timers.c).
        let seconds = budget.hard.as_secs() + 2;
        all.push((libc::RLIMIT_CPU, seconds));
    }
    all.extend(limits.open_files.map(|count| (libc::RLIMIT_NOFILE, count)));
    all.extend(limits.file_size.map(|bytes| (libc::RLIMIT_FSIZE, bytes)));
    all
}

pub(super) fn c_string(text: &OsStr) -> Result<CString, PlanError> {
    CString::new(text.as_bytes()).map_err(|_| {
        PlanError(format!("{text:?} contains a NUL byte; no program can be given that"))
    })
}

pub(super) fn c_path(path: &Path) -> Result<CString, PlanError> {
    c_string(path.as_os_str())
}

/// Looks at the descriptors that the guest inherits: a directory is refused, since `..` from it
/// leads out of the walls, and so is a device with the host's data.
fn inherited_descriptors(
    view: &mut View,
    spec: &RunSpec,
    terminals: Option<&[bool; 3]>,
) -> Result<Vec<Reopen>, PlanError> {
    let mut reopened = Vec::new();
    let streams = (0..3).filter(|fd| !terminals.is_some_and(|streams| streams[*fd as usize]));
    for fd in streams.chain(spec.descriptors.iter().copied()) {
        let name = match fd {
            0 => "standard input".to_owned(),
            1 => "standard output".to_owned(),
            2 => "standard error".to_owned(),
            fd => format!("descriptor {fd}"),
        };
        let link = PathBuf::from(format!("/proc/self/fd/{fd}"));
        // A closed stream stays closed.
        let Ok(metadata) = std::fs::metadata(&link) else { continue };
        if metadata.is_dir() {
            return Err(PlanError(format!(
                "{name} is a directory, which would lead out of the sandbox; pass a file or a pipe"
            )));
        }
        if metadata.file_type().is_block_device() {
            return Err(PlanError(format!(
                "{name} is a block device; pass its content through a pipe (cat DEVICE | sandbox ...)"
            )));
        }
        let writable = descriptor_flags(fd) & libc::O_ACCMODE != libc::O_RDONLY;
        if !metadata.is_file() || writable || metadata.nlink() == 0 {
            continue;
        }
        let path = std::fs::read_link(&link).unwrap_or_default();
        let same = std::fs::metadata(&path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (metadata.dev(), metadata.ino()));
        if !same {
            // A memfd or a file of another mount namespace: nothing of this host's tree.
            continue;
        }
        let tree = view.new_tree();
        view.clones.push(Step::Clone {
            tree,
            source: c_path(&path)?,
            recursive: false,
            attributes: ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV,
        });
        reopened.push(Reopen { fd, tree, device: metadata.dev(), inode: metadata.ino() });
    }
    Ok(reopened)
}

pub(super) fn descriptor_flags(fd: RawFd) -> c_int {
    FdInfo::of("self", fd).map_or(libc::O_RDONLY, |info| info.flags as c_int)
}
