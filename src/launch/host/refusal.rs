//! Why a host refuses namespaces or a listener, and what to do about it there.
//!
//! Pure: the facts are gathered in `facts`, here they are only weighed. The kernel itself says
//! little more than EPERM, so causes are told apart by what else is true of the host.

use std::fmt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// What is known when user namespaces, or what a run does in them, are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalFacts {
    /// What the kernel said.
    pub errno: Errno,
    /// Whether this kernel has user namespaces at all (/proc/self/ns/user).
    pub built: bool,
    /// Whether the caller has CAP_SYS_ADMIN in its own user namespace.
    pub privileged: bool,
    /// Whether the caller's user namespace is the first one of the machine.
    pub initial_namespace: bool,
    /// Whether the caller's ids exist in its user namespace (they show as the overflow id if not).
    pub ids_mapped: bool,
    /// user.max_user_namespaces, as it holds in the caller's user namespace.
    pub max_user_namespaces: Option<u64>,
    /// kernel.unprivileged_userns_clone is 0 (a patch of Debian's).
    pub unprivileged_clone_off: bool,
    /// kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu 23.10 and later).
    pub apparmor_restricts: bool,
    /// The AppArmor profile that confines the caller, if one does.
    pub apparmor_profile: Option<String>,
    /// SELinux is enforcing.
    pub selinux_enforcing: bool,
    /// The kind of container that the caller is in.
    pub container: Option<Container>,
    /// A seccomp filter already applies to the caller (`Seccomp: 2` in /proc/self/status).
    pub filtered: bool,
    /// That filter has a listener: a new one is refused with EBUSY.
    pub listener_in_chain: bool,
    /// The caller's root directory was moved by chroot(2).
    pub chrooted: bool,
    /// Our own executable, for rules that name it.
    pub program: PathBuf,
}

/// A kind of container, because each has its own words for the same permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    /// Docker and what is compatible with it.
    Docker,
    /// Podman.
    Podman,
    /// A pod of Kubernetes.
    Kubernetes,
    /// LXC, LXD, Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// Another one, by the name it gives itself.
    Other(String),
}

/// Why user namespaces are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The kernel was built without them.
    NotBuilt,
    /// user.max_user_namespaces is 0.
    LimitZero {
        /// Whether that holds for the whole machine and not only inside a user namespace.
        initial_namespace: bool,
    },
    /// As many exist as user.max_user_namespaces allows.
    LimitReached {
        /// The limit.
        limit: Option<u64>,
    },
    /// A user namespace around the caller's allows no more, or they are nested too deeply.
    LimitAround,
    /// The caller is inside a sandbox, ours or another that supervises by a listener.
    NestedSandbox,
    /// chroot(2) environments may not create them (unshare(2), EPERM).
    Chroot,
    /// The caller's ids do not exist in its user namespace (unshare(2), EPERM).
    UnmappedIds,
    /// kernel.unprivileged_userns_clone is 0.
    DebianSysctl,
    /// Ubuntu's restriction of unprivileged user namespaces.
    AppArmorRestriction {
        /// The executable that a profile can except from it.
        program: PathBuf,
    },
    /// A profile that confines the caller.
    AppArmorProfile(String),
    /// SELinux denies the class user_namespace (Linux 6.1).
    Selinux,
    /// The seccomp filter, profile or dropped rights of a container.
    Container(Container),
    /// A seccomp filter that the caller inherited, not known to be a container's.
    SeccompFilter,
    /// None of these.
    Unknown,
}

/// Weighs the facts, the most certain first: what no other remedy could overcome, then what is
/// nearest to the caller (its container) before what is further away (the host's settings).
#[must_use]
pub fn classify(facts: &RefusalFacts) -> Cause {
    let refused = matches!(facts.errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS);
    // EINVAL: the flag means nothing to this kernel (unshare(2)).
    if !facts.built || facts.errno == Errno::EINVAL {
        return Cause::NotBuilt;
    }
    if facts.listener_in_chain && facts.filtered && facts.container != Some(Container::Lxc) {
        return Cause::NestedSandbox;
    }
    if facts.max_user_namespaces == Some(0) {
        return Cause::LimitZero { initial_namespace: facts.initial_namespace };
    }
    // ENOSPC, and EUSERS before Linux 4.9 (unshare(2)).
    if matches!(facts.errno, Errno::ENOSPC | Errno::EUSERS) {
        return if facts.initial_namespace {
            Cause::LimitReached { limit: facts.max_user_namespaces }
        } else {
            Cause::LimitAround
        };
    }
    if !refused {
        return Cause::Unknown;
    }
    if facts.chrooted {
        return Cause::Chroot;
    }
    if !facts.ids_mapped {
        return Cause::UnmappedIds;
    }
    if let (Some(container), true) = (&facts.container, facts.filtered) {
        return Cause::Container(container.clone());
    }
    if !facts.privileged && facts.unprivileged_clone_off {
        return Cause::DebianSysctl;
    }
    // SELinux alone answers EACCES here; AppArmor may as well, and is then the one that runs.
    if facts.selinux_enforcing && facts.errno == Errno::EACCES {
        return Cause::Selinux;
    }
    if let Some(profile) = confining(facts) {
        return match &facts.container {
            Some(container) => Cause::Container(container.clone()),
            None => Cause::AppArmorProfile(profile.to_owned()),
        };
    }
    if !facts.privileged && facts.apparmor_restricts {
        return Cause::AppArmorRestriction { program: facts.program.clone() };
    }
    if let Some(container) = &facts.container {
        return Cause::Container(container.clone());
    }
    if facts.filtered { Cause::SeccompFilter } else { Cause::Unknown }
}

/// The profile that refuses, where it is not merely the one that Ubuntu's restriction moves
/// everybody into.
fn confining(facts: &RefusalFacts) -> Option<&str> {
    let profile = facts.apparmor_profile.as_deref()?;
    let restriction = facts.apparmor_restricts && profile.starts_with("unprivileged_userns");
    (!restriction).then_some(profile)
}

impl Cause {
    /// What refuses, as the end of a sentence that begins with what was refused.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Cause::NotBuilt => "this kernel was built without CONFIG_USER_NS".into(),
            Cause::LimitZero { initial_namespace: true } => {
                "the sysctl user.max_user_namespaces is 0".into()
            }
            Cause::LimitZero { initial_namespace: false } => {
                "user.max_user_namespaces is 0 in the user namespace this runs in".into()
            }
            Cause::LimitReached { limit: Some(limit) } => {
                format!("user.max_user_namespaces ({limit}) is reached")
            }
            Cause::LimitAround => {
                "the sandbox or container around this allows no more of them inside (or 32 are \
                 nested already)"
                    .into()
            }
            Cause::LimitReached { limit: None } => "a limit on user namespaces is reached".into(),
            Cause::NestedSandbox => {
                "this already runs inside a sandbox, which serves the one listener that the kernel \
                 allows a process tree"
                    .into()
            }
            Cause::Chroot => "this runs in a chroot environment".into(),
            Cause::UnmappedIds => {
                "the caller's user or group id does not exist in the user namespace this runs in"
                    .into()
            }
            Cause::DebianSysctl => "the sysctl kernel.unprivileged_userns_clone is 0".into(),
            Cause::AppArmorRestriction { .. } => {
                "AppArmor restricts unprivileged user namespaces to programs with a profile".into()
            }
            Cause::AppArmorProfile(profile) => format!("the AppArmor profile {profile} forbids it"),
            Cause::Selinux => "SELinux denies it to the caller's domain".into(),
            Cause::Container(container) => format!("{container} forbids it"),
            Cause::SeccompFilter => {
                "a seccomp filter that was inherited (perhaps a service's RestrictNamespaces=) \
                 forbids it"
                    .into()
            }
            Cause::Unknown => "no setting that forbids it was found".into(),
        }
    }

    /// What to do, as one command or imperative.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Cause::NotBuilt => "boot a kernel built with CONFIG_USER_NS=y".into(),
            Cause::LimitZero { initial_namespace: true } => {
                "run `sudo sysctl -w user.max_user_namespaces=10000`, and put the setting into \
                 /etc/sysctl.d/ to keep it"
                    .into()
            }
            Cause::LimitZero { initial_namespace: false } | Cause::LimitAround => {
                "run it outside of the container or sandbox that set this limit".into()
            }
            Cause::LimitReached { .. } => "end some sandboxes or containers, or run \
                 `sudo sysctl -w user.max_user_namespaces=100000`"
                .into(),
            Cause::NestedSandbox => {
                "run the program directly, it is already confined, or start this sandbox from \
                 outside of the other"
                    .into()
            }
            Cause::Chroot => {
                "run it outside of the chroot, or enter that tree with a tool that pivots the root \
                 (systemd-nspawn, bwrap) instead"
                    .into()
            }
            Cause::UnmappedIds => {
                "run it as a user that the surrounding container maps, such as its root".into()
            }
            Cause::DebianSysctl => {
                "run `sudo sysctl -w kernel.unprivileged_userns_clone=1`, and put the setting into \
                 /etc/sysctl.d/ to keep it"
                    .into()
            }
            Cause::AppArmorRestriction { program } => format!(
                "allow this one program with `{}`, or every program with \
                 `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
                apparmor_command(program)
            ),
            Cause::AppArmorProfile(profile) => format!(
                "add the rule `userns,` to the profile {profile} in /etc/apparmor.d and load it \
                 with `sudo apparmor_parser -r FILE`, or run it unconfined"
            ),
            Cause::Selinux => {
                "allow it with `sudo ausearch -m avc -c sandbox --raw | audit2allow -M \
                 sandbox-userns && sudo semodule -i sandbox-userns.pp`"
                    .into()
            }
            Cause::Container(container) => container.remedy(),
            Cause::SeccompFilter => {
                "start it from a session or service without that filter (for a systemd unit, drop \
                 RestrictNamespaces= and SystemCallFilter=)"
                    .into()
            }
            Cause::Unknown => {
                "run `sudo sysctl -w user.max_user_namespaces=10000`, ask the security modules' \
                 log (`sudo dmesg | grep -i -E 'apparmor|avc'`) who refused, and make sure that it \
                 is not started in a chroot"
                    .into()
            }
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Container::Docker => f.write_str("the Docker container around this"),
            Container::Podman => f.write_str("the Podman container around this"),
            Container::Kubernetes => f.write_str("the Kubernetes pod around this"),
            Container::Lxc => f.write_str("the LXC container around this"),
            Container::Nspawn => f.write_str("the systemd-nspawn container around this"),
            Container::Other(name) => write!(f, "the container ({name}) around this"),
        }
    }
}

impl Container {
    /// How such a container is started so that a sandbox works in it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Container::Docker => {
                "start the container with `docker run --security-opt seccomp=unconfined \
                 --security-opt apparmor=unconfined --security-opt systempaths=unconfined ...`"
            }
            Container::Podman => {
                "start the container with `podman run --security-opt seccomp=unconfined \
                 --security-opt label=disable --security-opt unmask=ALL ...`"
            }
            Container::Kubernetes => {
                "give the pod `hostUsers: false` and the container the securityContext \
                 `{seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}, \
                 procMount: Unmasked}`"
            }
            Container::Lxc => {
                "allow nesting: `lxc config set NAME security.nesting true` (LXD, Incus), or \
                 `lxc.include = /usr/share/lxc/config/nesting.conf` in the container's config (LXC)"
            }
            Container::Nspawn => {
                "start the container with `SYSTEMD_SECCOMP=0 systemd-nspawn ...`, or run it outside \
                 of the container"
            }
            Container::Other(_) => {
                "start the container without a seccomp profile and with an unmasked /proc, or run \
                 it outside of the container"
            }
        }
        .into()
    }
}

/// The profile, in AppArmor's language, that lets one program create user namespaces and confines
/// it in no other way (apparmor.d(5); Ubuntu ships the like for the programs it knows).
#[must_use]
pub fn apparmor_profile(program: &Path) -> String {
    profile_lines(program).join("\n") + "\n"
}

fn profile_lines(program: &Path) -> [String; 5] {
    let mut attachment = String::new();
    for symbol in program.to_string_lossy().chars() {
        // An attachment is a pattern: these would be read as one.
        if r#"\"*?[]{}^@"#.contains(symbol) {
            attachment.push('\\');
        }
        attachment.push(symbol);
    }
    [
        "abi <abi/4.0>,".into(),
        "include <tunables/global>".into(),
        format!("profile sandbox \"{attachment}\" flags=(unconfined) {{"),
        "  userns,".into(),
        "}".into(),
    ]
}

/// [`apparmor_profile`] as the one shell command that installs and loads it.
fn apparmor_command(program: &Path) -> String {
    let lines: Vec<String> = profile_lines(program)
        .iter()
        .map(|line| format!("'{}'", line.replace('\'', r"'\''")))
        .collect();
    format!(
        "printf '%s\\n' {} | sudo tee /etc/apparmor.d/sandbox >/dev/null && \
         sudo apparmor_parser -r /etc/apparmor.d/sandbox",
        lines.join(" ")
    )
}

/// Why a filter with a listener is refused, and what to do: cause and remedy.
#[must_use]
pub fn classify_listener(facts: &RefusalFacts, release: (u32, u32)) -> (String, String) {
    let (major, minor) = release;
    match facts.errno {
        Errno::EBUSY => (Cause::NestedSandbox.what(), Cause::NestedSandbox.remedy()),
        Errno::EACCES => (
            "no_new_privs is not set and the caller has no CAP_SYS_ADMIN".into(),
            "start it without a wrapper that refuses prctl(PR_SET_NO_NEW_PRIVS)".into(),
        ),
        Errno::EINVAL if release < (5, 0) => (
            format!("Linux {major}.{minor} has no user notification, which came with 5.0"),
            "boot Linux 5.12 or later".into(),
        ),
        Errno::ENOSYS if !facts.filtered => (
            "this kernel was built without CONFIG_SECCOMP_FILTER".into(),
            "boot a kernel built with CONFIG_SECCOMP=y and CONFIG_SECCOMP_FILTER=y".into(),
        ),
        Errno::EMFILE | Errno::ENFILE => (
            "no file descriptor is left for the listener".into(),
            "raise the limit with `ulimit -n`".into(),
        ),
        Errno::ENOMEM => (
            "memory is short, or the filters that this process inherited leave no room".into(),
            "free memory, or start it from a session with fewer filters".into(),
        ),
        Errno::EPERM | Errno::ENOSYS => match &facts.container {
            Some(container) => (format!("{container} forbids it"), container.remedy()),
            None => (
                "a seccomp filter or security module that this process inherited forbids it".into(),
                "start it from a session or service without that filter".into(),
            ),
        },
        _ => (
            format!("Linux {major}.{minor} does not take this filter"),
            "boot Linux 5.19 or later, and report it where that is the case".into(),
        ),
    }
}
