//! What one run is: the validated, immutable outcome of flags and defaults.
//!
//! Owns the vocabulary that `config` (which fills it in), `launch` (which carries it out) and the
//! command line (which explains it) share. Nothing here looks at the host.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::deterministic::Deterministic;
use super::limits::Limits;
use super::{MAPPED_CAPABILITIES, ROOT_CAPABILITIES};
use crate::sentry::Features;
use crate::sentry::asking::{About, Places};
use crate::sentry::credentials::Capability;
use crate::sentry::net::publish::Wish;
use crate::sentry::net::{Policy, UNPRIVILEGED};
use crate::sentry::paths::Rules;
use crate::timekeeping::TimeSpec;

/// One run, complete. Immutable once [`crate::config::resolve`] has returned it.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// The program as the user named it and its arguments; never empty.
    pub argv: Vec<OsString>,
    /// The guest's whole environment, in order.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables of the caller that were left out because they look like secrets or lead to
    /// services of the host.
    pub withheld: Vec<Withheld>,
    /// Where the program starts: absolute, as the guest sees it.
    pub workdir: PathBuf,
    /// The container that the program is in.
    pub container: String,
    /// The host name inside; `None` keeps the host's.
    pub hostname: Option<OsString>,
    /// Who the guest is.
    pub identity: Identity,
    /// Who is root inside (`--root`).
    pub root: Root,
    /// The sandbox's own clock; `None` is the host's.
    pub time: Option<TimeSpec>,
    /// It does the same whenever it is done (`--deterministic`).
    pub deterministic: Option<Deterministic>,
    /// Which network it lives in.
    pub network: Network,
    /// What keeps it in.
    pub walls: Walls,
    /// Landlock keeps files behind the mounts as well.
    pub landlock: bool,
    /// What may be reached from it, with [`Network::Allow`].
    pub reach: Policy,
    /// What is asked about.
    pub asks: Asks,
    /// Where what is decided of that is recorded; absolute.
    pub net_log: Option<PathBuf>,
    /// Ports of the host that lead inside; none with [`Network::Host`].
    pub publish: Vec<Wish>,
    /// The file view, in the order in which it is mounted (later entries lie over earlier ones).
    pub mounts: Vec<Mount>,
    /// Rules about files that say nothing here, as sentences.
    pub idle: Vec<String>,
    /// What patterns say of names that come to be while it lasts.
    pub coming: Option<Arc<dyn Rules>>,
    /// Descriptors besides the three standard ones that the guest inherits (`--fd`).
    pub descriptors: Vec<RawFd>,
    /// What it may use.
    pub limits: Limits,
    /// Decides which rows of the syscall table trap.
    pub features: Features,
    /// Facilities that this run does without: because they are to be taken for absent (`--without`,
    /// hidden: the fallbacks are tested with it), or because they are, where that takes no wall away
    /// (time namespaces).
    pub without: Without,
    /// How much is said on stderr.
    pub voice: Voice,
}

/// What is asked about (`--ask`).
#[derive(Debug, Clone, Default)]
pub struct Asks {
    /// Names and hosts, or files.
    pub about: About,
    /// Which files.
    pub places: Option<Arc<dyn Places>>,
    /// The profile that answers are written to, by a path over no link.
    pub save: Option<PathBuf>,
    /// Somebody is likely to come who answers: the run has an id that a person knows.
    pub awaited: bool,
}

impl RunSpec {
    /// The directories that are overlays by a flag, in ascending order.
    pub fn overlays(&self) -> Vec<PathBuf> {
        let named = |mount: &&Mount| {
            matches!((&mount.kind, &mount.why), (MountKind::Overlay { .. }, Why::Flag(_)))
        };
        let mut all: Vec<PathBuf> =
            self.mounts.iter().filter(named).map(|mount| mount.target.clone()).collect();
        all.sort();
        all
    }

    /// Whether this user and this group of the host's exist inside, and the caller can give files to both: not so to
    /// subordinate ids.
    pub fn gives_to(&self, uid: u32, gid: u32) -> bool {
        let count = if self.root == Root::Mapped { 1 } else { usize::MAX };
        let known = |id: u32, map: &[IdRange]| {
            let mut own = map.iter().take(count);
            own.any(|range| id.checked_sub(range.outside).is_some_and(|n| n < range.count))
        };
        known(uid, &self.identity.uid_map) && known(gid, &self.identity.gid_map)
    }

    /// Whether the sentry needs sockets in the guests' own network.
    pub fn needs_outpost(&self) -> bool {
        self.network == Network::Allow || !self.publish.is_empty()
    }

    /// The first port that guests may listen at without any rights: published ones are for them.
    pub fn lowest_port(&self) -> u16 {
        self.publish.iter().map(|wish| wish.guest).fold(UNPRIVILEGED, u16::min)
    }

    /// Where file systems in memory are that the sandbox has for itself.
    pub fn own_trees(&self) -> Vec<PathBuf> {
        // In one that nobody can write to there is nothing of a guest's.
        let tmpfs =
            |mount: &&Mount| matches!(mount.kind, MountKind::Tmpfs { mode } if mode & 0o222 != 0);
        let mut all: Vec<PathBuf> =
            self.mounts.iter().filter(tmpfs).map(|mount| mount.target.clone()).collect();
        let devices = self.mounts.iter().filter(|mount| mount.kind == MountKind::Dev);
        all.extend(devices.map(|mount| mount.target.join("shm")));
        all
    }
}

/// A variable of the caller that the guest does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// Its name.
    pub name: OsString,
    /// Why, as the end of a sentence that begins with the name.
    pub reason: &'static str,
}

/// Who the guest is, inside and outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user and group id that the guest's processes have *inside*.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Supplementary groups to set (only where the caller is root, or has subordinate groups: an ordinary user may
    /// not change them, see user_namespaces(7) on `setgroups`).
    pub groups: Option<Vec<u32>>,
    /// Lines of uid_map.
    pub uid_map: Vec<IdRange>,
    /// Lines of gid_map.
    pub gid_map: Vec<IdRange>,
}

/// Who is root inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Root {
    /// Nobody: the program is the user, or another one, without rights.
    #[default]
    No,
    /// The program is, and the kernel knows no other id inside: others are believed (`--root`).
    Believed,
    /// The program is, and other ids are the user's subordinate ones (`--root=sub-ids`).
    Mapped,
}

impl Root {
    /// The program is.
    pub fn is_root(self) -> bool {
        self != Root::No
    }

    /// What it is allowed by the kernel, in the sandbox's user namespace, with names.
    pub fn capabilities(self) -> &'static [(Capability, &'static str)] {
        match self {
            Root::No => &[],
            Root::Believed => &ROOT_CAPABILITIES,
            Root::Mapped => &MAPPED_CAPABILITIES,
        }
    }

    /// The same, as a set of bits.
    pub fn capability_bits(self) -> u64 {
        self.capabilities().iter().fold(0, |set, (it, _)| set | it.bit())
    }
}

/// One line of a uid_map or gid_map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Which network the guest lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Its own, empty but for a working loopback.
    None,
    /// Its own, from which some hosts can be reached.
    Allow,
    /// The host's.
    Host,
}

/// What keeps the guest in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Walls {
    /// Namespaces of its own.
    #[default]
    Namespaces,
    /// Landlock, the filter and the sentry, in the host's namespaces.
    Landlock,
}

/// One piece of the file view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where the guest finds it: absolute, without `.` or `..`, symlinks of the host resolved.
    pub target: PathBuf,
    /// What is there.
    pub kind: MountKind,
    /// Which rule put it there.
    pub why: Why,
}

/// What lies at a place of the file view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the host (with everything mounted below it) that can only be read.
    ReadOnly {
        /// Absolute, symlinks resolved.
        source: PathBuf,
    },
    /// A path of the host that can be changed.
    Writable {
        /// Absolute, symlinks resolved.
        source: PathBuf,
    },
    /// A directory of the host that is changed for the guest alone: what it writes goes to a layer of the
    /// sandbox's own (`--overlay`).
    Overlay {
        /// Absolute, symlinks resolved.
        source: PathBuf,
        /// The host has mounts below it, which no overlay may look under: a copy of its names shows
        /// instead, and what they stand for is mounted on them.
        skeleton: bool,
    },
    /// An empty directory in memory, private to the sandbox.
    Tmpfs {
        /// Permission bits of its root.
        mode: u32,
    },
    /// A directory of the host shown as an empty one: nothing in it exists.
    HiddenDirectory,
    /// A file of the host shown as a link to nowhere: to open it says that it does not exist.
    HiddenFile,
    /// A directory of the host shown as one that cannot be entered.
    DeniedDirectory,
    /// A file of the host shown as a device that cannot be opened.
    DeniedFile,
    /// A proc file system of the guest's own pid namespace.
    Proc,
    /// A sysfs of the guest's own network namespace, read-only.
    Sys,
    /// The minimal /dev: null, zero, full, random, urandom, tty, pts, ptmx, shm, mqueue.
    Dev,
}

impl MountKind {
    /// What of the host this shows, if anything.
    pub fn source(&self) -> Option<&std::path::Path> {
        match self {
            MountKind::ReadOnly { source }
            | MountKind::Writable { source }
            | MountKind::Overlay { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether the guest can change what this shows.
    pub fn is_writable(&self) -> bool {
        matches!(self, MountKind::Writable { .. } | MountKind::Overlay { .. })
    }

    /// Whether what is in it is made for the sandbox, and yet shows something of the machine.
    pub fn is_made_up(&self) -> bool {
        matches!(self, MountKind::Proc | MountKind::Sys | MountKind::Dev)
    }

    /// Whether this takes something of the host out of sight.
    pub fn hides(&self) -> bool {
        matches!(self, MountKind::HiddenDirectory | MountKind::HiddenFile) || self.denies()
    }

    /// Whether this does so by refusing.
    pub fn denies(&self) -> bool {
        matches!(self, MountKind::DeniedDirectory | MountKind::DeniedFile)
    }

    /// What takes a directory or a file out of sight.
    pub fn hiding(directory: bool, denied: bool) -> MountKind {
        match (directory, denied) {
            (true, false) => MountKind::HiddenDirectory,
            (false, false) => MountKind::HiddenFile,
            (true, true) => MountKind::DeniedDirectory,
            (false, true) => MountKind::DeniedFile,
        }
    }
}

/// Which rule decided something; printed by `-v`, `--dry-run` and `why`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A default of every run, with the words that describe it.
    Default(&'static str),
    /// The working directory of the run.
    WorkingDirectory,
    /// A flag, as the user wrote it.
    Flag(String),
    /// A flag that is about more than this place, or about what it is an exception of.
    Derived(String),
}

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Voice {
    /// Errors only; refusals are not explained (`--quiet`).
    Quiet,
    /// Errors, and at the end what was refused.
    Normal,
    /// Also what was decided and why (`-v`).
    Verbose,
}

bitflags::bitflags! {
    /// Facilities of the host to do without.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Without: u32 {
        /// User namespaces: creating one fails as on a host that refuses it.
        const USER_NAMESPACES = 1;
        /// Seccomp user notification.
        const SECCOMP_NOTIFY = 1 << 1;
        /// SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19).
        const WAIT_KILLABLE = 1 << 2;
        /// SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6).
        const SYNC_WAKE_UP = 1 << 3;
        /// process_vm_readv(2) and process_vm_writev(2).
        const PROCESS_VM = 1 << 4;
        /// Landlock.
        const LANDLOCK = 1 << 5;
        /// Time namespaces.
        const TIME_NAMESPACES = 1 << 6;
        /// overlayfs, for `--overlay`.
        const OVERLAYFS = 1 << 7;
    }
}

impl Without {
    /// Their names for people.
    pub const NAMES: &[&str] = &[
        "user-namespaces",
        "seccomp-notify",
        "wait-killable",
        "sync-wake-up",
        "process-vm",
        "landlock",
        "time-namespaces",
        "overlayfs",
    ];

    /// The facility of that name; none if there is none.
    pub fn named(name: &str) -> Without {
        Without::from_name(&name.to_uppercase().replace('-', "_")).unwrap_or_default()
    }
}
