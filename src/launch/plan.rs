//! Everything that the child will do, decided and allocated before it exists.
//!
//! The child side runs on a copy of the supervisor's memory and may neither allocate nor take a
//! lock, so each string, array and table it needs lies ready here.

use std::cell::Cell;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use libc::c_int;

use super::view::{Step, View};
use crate::config::{Network, RunSpec, Without};
use crate::sentry::Time;
use crate::sys::memfd::SharedMemory;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};
use crate::sys::seccomp;
use crate::sys::spawn::StringArray;
use crate::terminal::Settings;
use crate::timekeeping::{NoVdso, Patch};

/// The most instructions that the kernel takes (BPF_MAXINSNS).
const PROGRAM_LIMIT: usize = 4096;

/// The child's life, prepared.
pub struct Plan {
    /// Flags of clone(2).
    pub(super) namespaces: c_int,
    /// Where the clocks of the program's own time namespace start, as timens_offsets wants it;
    /// `None` is none of its own.
    pub(super) time_namespace: Option<Vec<u8>>,
    /// What is changed in the vDSO of the program.
    pub(super) vdso: Option<Patch>,
    /// Building the file view, in order.
    pub(super) steps: Vec<Step>,
    /// Detached mount trees between the step that makes them and the one that uses them.
    pub(super) trees: Vec<Cell<Option<OwnedFd>>>,
    pub(super) hostname: Option<Vec<u8>>,
    pub(super) loopback: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Option<Vec<u32>>,
    pub(super) landlock_scopes: bool,
    pub(super) wait_killable: bool,
    /// The guest's terminal, and which of the standard streams it replaces.
    pub(super) terminal: Option<(Settings, [bool; 3])>,
    /// Descriptors to open again read-only.
    pub(super) reopened: Vec<Reopen>,
    /// Descriptors from 3 on that the program keeps.
    pub(super) descriptors: Vec<RawFd>,
    pub(super) workdir: CString,
    /// What is tried, in order: the path and, for a script without `#!`, how a shell runs it.
    pub(super) candidates: Vec<Candidate>,
    pub(super) argv: StringArray,
    pub(super) envp: StringArray,
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

/// One way to execute the program.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) path: CString,
    pub(super) by_shell: StringArray,
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
    /// Plans `spec` on this host.
    pub fn new(
        spec: &RunSpec,
        terminal: Option<(Settings, [bool; 3])>,
        signal_mask: nix::sys::signal::SigSet,
        time: &Time,
    ) -> Result<Plan, PlanError> {
        let mut view = View::default();
        let terminals = terminal.as_ref().map(|(_, streams)| streams);
        let reopened = inherited_descriptors(&mut view, spec, terminals)?;
        view.build(spec)?;
        let own_network = spec.network == Network::None;
        let argv = spec.argv.iter().map(|s| c_string(s)).collect::<Result<Vec<_>, _>>()?;
        let envp = spec.environment.iter().map(environment_entry).collect::<Result<_, _>>()?;
        Ok(Plan {
            namespaces: libc::CLONE_NEWUSER
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWCGROUP
                | if own_network { libc::CLONE_NEWNET } else { 0 },
            time_namespace: (!spec.without.contains(Without::TIME_NAMESPACES))
                .then(|| time.keeper().namespace().offsets().into_bytes()),
            vdso: time.patch().map_err(|NoVdso| {
                PlanError::new(
                    "cannot give the sandbox a clock of its own: programs on this host read clocks \
                     in a way that is not known; leave --time out"
                        .to_owned(),
                )
            })?,
            steps: view.steps,
            trees: (0..view.trees).map(|_| Cell::new(None)).collect(),
            hostname: spec.hostname.as_ref().map(|name| name.as_bytes().to_vec()),
            loopback: own_network,
            uid: spec.identity.uid,
            gid: spec.identity.gid,
            groups: spec.identity.groups.clone(),
            landlock_scopes: !spec.without.contains(Without::LANDLOCK)
                && crate::sys::landlock::abi() >= 6,
            wait_killable: !spec.without.contains(Without::WAIT_KILLABLE)
                && seccomp::knows_filter_flags(
                    seccomp::FILTER_FLAG_NEW_LISTENER | seccomp::FILTER_FLAG_WAIT_KILLABLE_RECV,
                ),
            terminal,
            reopened,
            descriptors: spec.descriptors.clone(),
            workdir: c_string(spec.workdir.as_os_str())?,
            candidates: candidates(spec)?,
            argv: StringArray::new(argv),
            envp: StringArray::new(envp),
            signal_mask,
            program: SharedMemory::new(PROGRAM_LIMIT * 8)
                .map_err(|e| PlanError(format!("cannot map memory for the filter: {e}")))?,
        })
    }

    /// The filter is loaded with WAIT_KILLABLE_RECV.
    pub fn wait_killable(&self) -> bool {
        self.wait_killable
    }
}

/// Where execvp(3) would look, in order.
fn candidates(spec: &RunSpec) -> Result<Vec<Candidate>, PlanError> {
    let name = &spec.argv[0];
    let paths = if name.as_bytes().contains(&b'/') {
        vec![PathBuf::from(name)]
    } else {
        let path = spec.environment.iter().rev().find(|(key, _)| key == "PATH");
        let path = path.map_or(OsString::from("/usr/local/bin:/usr/bin:/bin"), |(_, v)| v.clone());
        std::env::split_paths(&path).map(|directory| directory.join(name)).collect()
    };
    paths
        .into_iter()
        .map(|path| {
            let path = c_string(path.as_os_str())?;
            let mut shell = vec![c"/bin/sh".to_owned(), path.clone()];
            for argument in &spec.argv[1..] {
                shell.push(c_string(argument)?);
            }
            Ok(Candidate { path, by_shell: StringArray::new(shell) })
        })
        .collect()
}

fn environment_entry((name, value): &(OsString, OsString)) -> Result<CString, PlanError> {
    let mut entry = name.clone();
    entry.push("=");
    entry.push(value);
    c_string(&entry)
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

fn descriptor_flags(fd: RawFd) -> c_int {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
        .ok()
        .and_then(|info| {
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            c_int::from_str_radix(flags.trim(), 8).ok()
        })
        .unwrap_or(libc::O_RDONLY)
}
