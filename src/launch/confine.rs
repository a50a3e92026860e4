//! Landlock for a run: which rules, and putting them in force.
//!
//! Behind mounts it is a second wall, made of the same file view: written is where a mount lets write. What a mount
//! shows can be read, so rights to read are not asked for: then to open a file for reading costs little (where no right
//! is looked at, is_access_to_paths_allowed in security/landlock/fs.c returns at once). The right to truncate would cost
//! as much as that to read, since every open asks for it beforehand (get_required_file_open_access and hook_file_open
//! there), and is left to the mounts. All that it refuses the mounts refuse before it, with their errors (mnt_want_write comes before the
//! hooks security_path_*, do_dentry_open looks at the mount before security_file_open). Who changes something has the kernel
//! look for a rule from there upwards, directory by directory, and across mounts; so the places where most is changed have
//! rules of their own, even if one further up says the same. Without namespaces
//! (`--walls landlock`) it is the wall for files; then `apart` makes its rules.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;

use super::apart::Apart;
use super::plan::{PlanError, c_path};
use super::view::DEVICES;
use crate::config::{MountKind, Network, RunSpec, View, Without};
use crate::overlay::Layer;
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
    /// That of a run with these layers for its overlays. `terminals`: which of the standard streams a terminal
    /// replaces.
    pub(super) fn of(
        spec: &RunSpec,
        layers: &[Layer],
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
            confinement.rules = second_wall(spec, layers)?;
            confinement.inherited = inherited(spec, terminals);
        }
        Ok(confinement)
    }

    /// Puts it in force for the caller and all that it makes. `terminal`: that of the program. With `grows` the wall for
    /// files is given back instead, to be put in force when the process that makes an image's files
    /// again (`save::restore::maker`), in places too that no guest may write to, is there; all that comes after it then
    /// has one domain in common, as Landlock lets nobody trace what is in another one (hook_ptrace_access_check in
    /// security/landlock/task.c). Child side.
    pub(super) fn enforce(
        &self,
        terminal: Option<BorrowedFd<'_>>,
        grows: bool,
    ) -> Result<Option<Ruleset>, Errno> {
        let scopes = if self.scopes { landlock::SCOPES } else { 0 };
        let is_open = self.network == 0 && scopes == 0;
        if self.files.is_empty() && is_open {
            return Ok(None);
        }
        if grows && !self.files.is_empty() {
            let files = self.ruleset((0, 0), terminal)?;
            if !is_open {
                below_others(self.network, scopes)?;
            }
            return Ok(Some(files));
        }
        self.ruleset((self.network, scopes), terminal)?.restrict().map(|()| None)
    }

    /// The rules about files, with what is refused besides.
    fn ruleset(
        &self,
        (network, scopes): (u64, u64),
        terminal: Option<BorrowedFd<'_>>,
    ) -> Result<Ruleset, Errno> {
        let files = self.files;
        let ruleset = Ruleset::new(files, network, scopes)?;
        if files.is_empty() {
            return Ok(ruleset);
        }
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
        Ok(ruleset)
    }
}

/// Restricts the caller where another set of rules is about files, or will be: of several, one that says nothing of files
/// refuses REFER all the same (landlock(7)), so this one allows it everywhere. Child side.
pub(super) fn below_others(network: u64, scopes: u64) -> Result<(), Errno> {
    let ruleset = Ruleset::new(Access::REFER, network, scopes)?;
    let root = files::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    ruleset.allow(root.as_fd(), Access::REFER)?;
    ruleset.restrict()
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
fn second_wall(spec: &RunSpec, layers: &[Layer]) -> Result<Vec<(CString, Access)>, PlanError> {
    let view = View::of(&spec.mounts);
    let mut rules: BTreeMap<PathBuf, Access> = BTreeMap::new();
    let mut allow = |path: PathBuf, access| {
        rules.insert(path, access);
    };
    for mount in &spec.mounts {
        let target = &mount.target;
        match &mount.kind {
            MountKind::Writable { .. } | MountKind::Overlay { .. } => {
                allow(target.clone(), Access::all());
            }
            MountKind::Tmpfs { mode } if mode & 0o222 != 0 => {
                allow(target.clone(), Access::all());
            }
            MountKind::Dev => {
                allow(target.clone(), Access::OF_FILES);
                allow(target.join("shm"), Access::all());
                allow(target.join("mqueue"), Access::all());
                // (As the host shows them as well: a later program's streams can be such.)
                let devices = DEVICES.iter().map(|name| target.join(name));
                let own = devices.filter(|device| view.at(device).is_none());
                own.for_each(|device| allow(device, Access::OF_FILES));
            }
            MountKind::Proc => allow(target.clone(), Access::OF_FILES),
            _ => {}
        }
    }
    // The nearer a rule is, the sooner it is found.
    let near = layers.iter().map(|layer| layer.target.clone());
    let workdir = spec.workdir.clone();
    let is_ours = view.covering(&workdir).is_some_and(|it| it.kind.is_writable());
    for place in near.chain(is_ours.then_some(workdir)) {
        allow(place, Access::all());
    }
    rules.iter().map(|(path, access)| Ok((c_path(path)?, *access))).collect()
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
