//! Landlock for a run: which rules, and putting them in force.
//!
//! Behind mounts it is a second wall where that is asked for (`--landlock`), made of the same file view: written is where a mount lets write. What a mount
//! shows can be read, so rights to read are not asked for: then to open a file for reading costs little (where no right
//! is looked at, is_access_to_paths_allowed in security/landlock/fs.c returns at once). The right to truncate would cost
//! as much as that to read, since every open asks for it beforehand (get_required_file_open_access and hook_file_open
//! there), and is left to the mounts. All that it refuses the mounts refuse before it, with their errors (mnt_want_write comes before the
//! hooks security_path_*, do_dentry_open looks at the mount before security_file_open). Without namespaces
//! (`--walls landlock`) it is the wall for files; then `apart` makes its rules.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;

use super::apart::Apart;
use super::plan::{PlanError, c_path};
use crate::config::{MountKind, Network, RunSpec, Without};
use crate::sys::landlock::{self, Access, Ruleset};
use crate::sys::{beneath, files};

/// The rights that are looked at behind mounts.
const SECOND_WALL: Access = Access::all().difference(Access::READ).difference(Access::TRUNCATE);

/// What Landlock keeps. Immutable.
#[derive(Debug)]
pub(super) struct Confinement {
    /// Rights that need a rule; none: no files are looked at.
    files: Access,
    /// What of TCP is refused.
    network: u64,
    scopes: bool,
    /// What is allowed, and where.
    rules: Vec<(CString, Access)>,
    /// Descriptors whose files the program may open again as they are open.
    inherited: Vec<(RawFd, Access)>,
}

impl Confinement {
    /// That of a run. `terminals`: which of the standard streams a terminal replaces.
    pub(super) fn of(
        spec: &RunSpec,
        apart: Option<&Apart>,
        terminals: Option<&[bool; 3]>,
    ) -> Result<Confinement, PlanError> {
        if let Some(apart) = apart {
            return Ok(Confinement {
                files: Access::all(),
                network: if spec.network == Network::None { landlock::TCP } else { 0 },
                scopes: true,
                rules: apart.rules()?,
                inherited: inherited(spec, terminals),
            });
        }
        let abi = abi(spec);
        let files = Access::known(abi) & SECOND_WALL;
        // (`Plan::new` has looked whether the host has it.)
        let network = if spec.network == Network::Allow { landlock::TCP } else { 0 };
        let mut confinement = Confinement {
            files: Access::empty(),
            network,
            scopes: abi >= 6,
            rules: Vec::new(),
            inherited: Vec::new(),
        };
        // (Without REFER nothing could be moved from one directory to another.)
        if spec.landlock && files.contains(Access::REFER) {
            confinement.files = files;
            confinement.rules = second_wall(spec)?;
            confinement.inherited = inherited(spec, terminals);
        }
        Ok(confinement)
    }

    /// Puts it in force for the caller and all that it makes. `terminal`: that of the program. With `grows` files are
    /// not looked at: what grows from an image opens what it had open. Child side.
    pub(super) fn enforce(
        &self,
        terminal: Option<BorrowedFd<'_>>,
        grows: bool,
    ) -> Result<(), Errno> {
        let files = if grows { Access::empty() } else { self.files };
        if files.is_empty() && self.network == 0 && !self.scopes {
            return Ok(());
        }
        let scopes = if self.scopes { landlock::SCOPES } else { 0 };
        let ruleset = Ruleset::new(files, self.network, scopes)?;
        if !files.is_empty() {
            for (path, access) in &self.rules {
                // If it has gone, or become a link, it is not allowed.
                if let Ok(place) = place(path) {
                    allow(&ruleset, place.as_fd(), *access & files)?;
                }
            }
            for (fd, access) in &self.inherited {
                if let Ok(copy) = files::duplicate(*fd) {
                    allow(&ruleset, copy.as_fd(), *access & files)?;
                }
            }
            if let Some(terminal) = terminal {
                let access = Access::READ_FILE | Access::WRITE_FILE | Access::IOCTL_DEV;
                allow(&ruleset, terminal, access & files)?;
            }
        }
        ruleset.restrict()
    }
}

/// The Landlock ABI that a run can count on; 0: none.
pub(super) fn abi(spec: &RunSpec) -> i32 {
    match spec.without.contains(Without::LANDLOCK) {
        true => 0,
        false => landlock::abi(),
    }
}

/// A directory takes all rights, anything else those of files.
fn allow(ruleset: &Ruleset, place: BorrowedFd<'_>, access: Access) -> Result<(), Errno> {
    let access = match files::is_directory(place)? {
        true => access,
        false => access & Access::OF_FILES,
    };
    if access.is_empty() {
        return Ok(());
    }
    match ruleset.allow(place, access) {
        Err(Errno::EBADFD) => Ok(()),
        done => done,
    }
}

/// What is at a path, over no link (where openat2(2) is not to be had, none at its end).
fn place(path: &CString) -> Result<std::os::fd::OwnedFd, Errno> {
    match beneath::place(path) {
        Err(Errno::ENOSYS | Errno::EPERM) => files::open(path, libc::O_PATH | libc::O_NOFOLLOW, 0),
        done => done,
    }
}

/// As what a descriptor is open.
fn access_of(fd: RawFd) -> Access {
    let flags = super::plan::descriptor_flags(fd);
    let (read, write) = (Access::READ_FILE, Access::WRITE_FILE | Access::TRUNCATE);
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => read,
        libc::O_WRONLY => write,
        _ => read | write,
    };
    access | Access::IOCTL_DEV
}

/// Rules that allow what the mounts of a run allow.
fn second_wall(spec: &RunSpec) -> Result<Vec<(CString, Access)>, PlanError> {
    let mut rules = Vec::new();
    let mut allow = |path: &Path, access| -> Result<(), PlanError> {
        rules.push((c_path(path)?, access));
        Ok(())
    };
    for mount in &spec.mounts {
        let target = mount.target.as_path();
        match &mount.kind {
            MountKind::Writable { .. } | MountKind::Overlay { .. } => {
                allow(target, Access::all())?;
            }
            MountKind::Tmpfs { mode } if mode & 0o222 != 0 => allow(target, Access::all())?,
            MountKind::Dev => {
                allow(target, Access::OF_FILES)?;
                allow(&target.join("shm"), Access::all())?;
                allow(&target.join("mqueue"), Access::all())?;
            }
            MountKind::Proc => allow(target, Access::OF_FILES)?,
            _ => {}
        }
    }
    Ok(rules)
}

/// The descriptors that a program may open again, beside those that a terminal replaces, and as what each is open.
fn inherited(spec: &RunSpec, terminals: Option<&[bool; 3]>) -> Vec<(RawFd, Access)> {
    let streams = (0..3).filter(|fd| !terminals.is_some_and(|streams| streams[*fd as usize]));
    streams
        .chain(spec.descriptors.iter().copied())
        .filter(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok())
        .map(|fd| (fd, access_of(fd)))
        .collect()
}
