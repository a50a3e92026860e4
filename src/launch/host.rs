//! What this host offers to a sandbox, and why it refuses what it refuses.
//!
//! Owns the facts about the host (each found by trying it where that is harmless), what follows
//! from them for a run, and the remedies. It changes nothing, and decides nothing about a run:
//! `launch` asks it to explain a failure, `sandbox doctor` asks it for everything.

mod facts;
mod findings;
mod refusal;

use std::path::PathBuf;

use nix::errno::Errno;

use crate::config::Without;
use crate::sys::probe::{self, EVERY_KIND, FilterFlag, Kind, Notify, NotifySizes, Tried, Walls};

use facts::{
    Cgroups, ContainerHints, MountLine, Release, StateDirectory, Status, SubIds, parse_mountinfo,
};

pub use findings::{Finding, Group, State, able};
pub use refusal::{Cause, Container, RefusalFacts, apparmor_profile, classify, classify_listener};

/// One sentence for the operator: why the namespaces of a run were refused with `errno`, and the
/// remedy for this host.
#[must_use]
pub fn explain_userns_refusal(errno: Errno) -> String {
    let cause = classify(&refusal_facts(errno));
    format!(
        "creating the sandbox's user namespace failed with {}: {}; {}",
        name(errno),
        cause.what(),
        cause.remedy()
    )
}

/// Who refused with `errno` what a run does besides, in namespaces of its own or before, and the
/// remedy for this host; `None` where it was nobody who is known to refuse such things.
#[must_use]
pub fn explain_refusal(errno: Errno) -> Option<String> {
    if !matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS) {
        return None;
    }
    let cause = classify(&refusal_facts(errno));
    // EACCES is what file permissions say; only security modules say it besides.
    let known = match cause {
        Cause::AppArmorRestriction { .. } | Cause::AppArmorProfile(_) | Cause::Selinux => true,
        Cause::Container(_) | Cause::SeccompFilter => errno != Errno::EACCES,
        _ => false,
    };
    known.then(|| format!("{}; {}", cause.what(), cause.remedy()))
}

/// One sentence for the operator: why loading the filter and its listener was refused with
/// `errno`, and the remedy for this host.
#[must_use]
pub fn explain_seccomp_refusal(errno: Errno) -> String {
    let (what, remedy) = classify_listener(&refusal_facts(errno), Release::read().version);
    format!("loading the sandbox's seccomp filter failed with {}: {what}; {remedy}", name(errno))
}

/// Everything that was found out about the host.
#[derive(Debug, Clone)]
pub struct Host {
    release: Release,
    walls: Walls,
    kinds: Vec<(Kind, Tried)>,
    open_tree: Tried,
    mount_setattr: Tried,
    landlock: Result<u32, Errno>,
    user_notify: Tried,
    flags: Vec<(FilterFlag, Tried)>,
    sizes: Result<NotifySizes, Errno>,
    notify: Notify,
    pidfd_open: Tried,
    pidfd_thread: Tried,
    clone3: Tried,
    close_range: Tried,
    refusal: RefusalFacts,
    status: Status,
    masked_proc: Vec<String>,
    cgroups: Cgroups,
    sub_ids: SubIds,
    state: StateDirectory,
    overlays: Result<PathBuf, String>,
    legacy_tiocsti: Option<u64>,
    ptrace_scope: Option<u64>,
    core_pattern: Option<String>,
    cpus: usize,
    libseccomp: Option<(u32, u32, u32)>,
    streams: String,
}

impl Host {
    /// Looks at the host, in a few tens of milliseconds. The facilities in `without` are taken to
    /// be absent, as on a host that refuses them.
    #[must_use]
    pub fn probe(without: Without) -> Self {
        let release = Release::read();
        let mounts = parse_mountinfo(&facts::read("/proc/self/mountinfo").unwrap_or_default());
        let (mut walls, kinds) = try_walls(without);
        if without.contains(Without::OVERLAYFS) {
            walls.overlay = Tried::Refused(Errno::EPERM);
        }
        let notify = try_notify(without);
        let errno = first_refusal(&walls).unwrap_or(Errno::EPERM);
        Host {
            walls,
            kinds,
            open_tree: probe::open_tree_known(),
            mount_setattr: probe::mount_setattr_known(),
            landlock: absent_if(without, Without::LANDLOCK, Errno::ENOSYS)
                .and_then(|()| probe::landlock_abi()),
            user_notify: absent_if(without, Without::SECCOMP_NOTIFY, Errno::EOPNOTSUPP)
                .map_or_else(Tried::Refused, |()| probe::user_notify_known()),
            flags: FilterFlag::ALL.map(|flag| (flag, try_flag(flag, without))).into(),
            sizes: absent_if(without, Without::SECCOMP_NOTIFY, Errno::EINVAL)
                .and_then(|()| probe::notify_sizes()),
            pidfd_open: probe::pidfd_open(),
            pidfd_thread: probe::pidfd_thread(),
            clone3: probe::clone3_known(),
            close_range: probe::close_range_known(),
            refusal: RefusalFacts {
                listener_in_chain: notify.listener.errno() == Some(Errno::EBUSY),
                ..host_facts(errno, &mounts)
            },
            notify,
            status: facts::parse_status(&facts::read("/proc/self/status").unwrap_or_default()),
            masked_proc: facts::masked_proc(&mounts).into_iter().map(str::to_owned).collect(),
            cgroups: Cgroups::read(&mounts, release.version),
            release,
            sub_ids: SubIds::read(),
            state: StateDirectory::find(
                std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
                "/tmp".as_ref(),
            ),
            overlays: crate::overlay::usual_place(),
            legacy_tiocsti: facts::read_number("/proc/sys/dev/tty/legacy_tiocsti"),
            ptrace_scope: facts::read_number("/proc/sys/kernel/yama/ptrace_scope"),
            core_pattern: facts::read("/proc/sys/kernel/core_pattern"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            libseccomp: libseccomp::ScmpVersion::current()
                .ok()
                .map(|version| (version.major, version.minor, version.micro)),
            streams: facts::streams(),
        }
    }

    /// What follows for a run, grouped, each with its remedy.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        findings::of(self)
    }
}

/// Rehearses the walls, all together first; where that is refused, kind by kind, and then again
/// with what is left, so that one missing kind does not hide the rest.
fn try_walls(without: Without) -> (Walls, Vec<(Kind, Tried)>) {
    if without.contains(Without::USER_NAMESPACES) {
        let kinds = EVERY_KIND.map(|kind| (kind, Tried::NotReached));
        return (Walls::refused(Errno::EPERM), kinds.into());
    }
    let absent = |kind| kind == Kind::Time && without.contains(Without::TIME_NAMESPACES);
    let wanted: Vec<Kind> = EVERY_KIND.into_iter().filter(|kind| !absent(*kind)).collect();
    let walls = probe::rehearse_walls(&wanted);
    let alone = |kind: Kind| match walls.others {
        _ if absent(kind) => Tried::Refused(Errno::EINVAL),
        Tried::Refused(_) => probe::namespaces(libc::CLONE_NEWUSER | kind.flag()),
        all => all,
    };
    let kinds: Vec<(Kind, Tried)> = EVERY_KIND.map(|kind| (kind, alone(kind))).into();
    let left: Vec<Kind> =
        kinds.iter().filter(|(_, tried)| tried.works()).map(|(kind, _)| *kind).collect();
    if walls.others.works() || left.is_empty() {
        return (walls, kinds);
    }
    (probe::rehearse_walls(&left), kinds)
}

fn try_notify(without: Without) -> Notify {
    if without.contains(Without::SECCOMP_NOTIFY) {
        return Notify::refused(Errno::EINVAL);
    }
    let mut notify = probe::rehearse_notify();
    if without.contains(Without::SYNC_WAKE_UP) {
        notify.sync_wake_up = Tried::Refused(Errno::EINVAL);
    }
    if without.contains(Without::PROCESS_VM) {
        notify.vm_read = Tried::Refused(Errno::ENOSYS);
        notify.vm_write = Tried::Refused(Errno::ENOSYS);
    }
    notify
}

fn try_flag(flag: FilterFlag, without: Without) -> Tried {
    let gone = match flag {
        FilterFlag::WaitKillable => Without::WAIT_KILLABLE | Without::SECCOMP_NOTIFY,
        FilterFlag::NewListener => Without::SECCOMP_NOTIFY,
        _ => Without::empty(),
    };
    if without.intersects(gone) { Tried::Refused(Errno::EINVAL) } else { probe::filter_flag(flag) }
}

fn absent_if(without: Without, facility: Without, errno: Errno) -> Result<(), Errno> {
    if without.contains(facility) { Err(errno) } else { Ok(()) }
}

/// The error of the first step that a run cannot do without.
fn first_refusal(walls: &Walls) -> Option<Errno> {
    [walls.user, walls.setgroups, walls.uid_map, walls.gid_map, walls.others, walls.private]
        .into_iter()
        .find_map(Tried::errno)
}

/// The facts for one refusal: looks at the host anew.
fn refusal_facts(errno: Errno) -> RefusalFacts {
    let mounts = parse_mountinfo(&facts::read("/proc/self/mountinfo").unwrap_or_default());
    RefusalFacts {
        listener_in_chain: probe::rehearse_notify().listener.errno() == Some(Errno::EBUSY),
        ..host_facts(errno, &mounts)
    }
}

/// [`refusal_facts`] but for the listener, which the caller has tried or has yet to try.
fn host_facts(errno: Errno, mounts: &[MountLine]) -> RefusalFacts {
    /// linux/capability.h
    const CAP_SYS_ADMIN: u32 = 21;
    let text = |path: &str| facts::read(path).unwrap_or_default();
    let uid_map = text("/proc/self/uid_map");
    let status = facts::parse_status(&text("/proc/self/status"));
    let label = facts::read("/proc/self/attr/apparmor/current")
        .or_else(|| facts::read("/proc/self/attr/current"));
    RefusalFacts {
        errno,
        built: std::path::Path::new("/proc/self/ns/user").exists(),
        privileged: status.capabilities & (1 << CAP_SYS_ADMIN) != 0,
        initial_namespace: facts::is_initial_map(&uid_map),
        ids_mapped: uid_map.is_empty()
            || (facts::maps_id(&uid_map, nix::unistd::geteuid().as_raw())
                && facts::maps_id(&text("/proc/self/gid_map"), nix::unistd::getegid().as_raw())),
        max_user_namespaces: facts::read_number("/proc/sys/user/max_user_namespaces"),
        unprivileged_clone_off: facts::read_number("/proc/sys/kernel/unprivileged_userns_clone")
            == Some(0),
        apparmor_restricts: facts::read_number(
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        ) == Some(1),
        apparmor_profile: label.as_deref().and_then(facts::parse_apparmor),
        selinux_enforcing: facts::read_number("/sys/fs/selinux/enforce") == Some(1),
        container: ContainerHints::read().nearest(&uid_map),
        filtered: status.seccomp == 2,
        listener_in_chain: false,
        chrooted: probe::chrooted()
            .unwrap_or_else(|| !mounts.is_empty() && mounts.iter().all(|line| line.point != "/")),
        program: std::env::current_exe().unwrap_or_else(|_| "sandbox".into()),
    }
}

/// `EPERM (Operation not permitted)`
fn name(errno: Errno) -> String {
    format!("{errno:?} ({})", errno.desc())
}
