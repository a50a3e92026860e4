//! What the host says of itself in files: settings, mounts, control groups, the caller's rights.
//!
//! Reading only; what cannot be read counts as absent.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, User, faccessat, getegid, geteuid, isatty};

use super::refusal::Container;
use crate::config::{free_sub_ids, sub_id_ranges};
use crate::launch::id_maps;

/// The kernel's release as it names itself, and its first two numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Release {
    /// `uname -r`
    pub(super) text: String,
    /// Major and minor number; zeroes where the text does not begin with them.
    pub(super) version: (u32, u32),
}

impl Release {
    /// Of the running kernel.
    #[must_use]
    pub(super) fn read() -> Self {
        let text = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Release { version: parse_release(&text), text }
    }
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
#[must_use]
pub(super) fn parse_release(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|symbol: char| !symbol.is_ascii_digit())
        .map_while(|digits| digits.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)), as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountLine {
    /// The directory of the mounted file system that is its root.
    pub(super) root: String,
    /// Where it is mounted.
    pub(super) point: String,
    /// The type of file system.
    pub(super) kind: String,
}

/// Reads lines of mountinfo; those that have not the form are left out.
#[must_use]
pub(super) fn parse_mountinfo(text: &str) -> Vec<MountLine> {
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(3);
            Some(MountLine {
                root: fields.next()?.to_owned(),
                point: fields.next()?.to_owned(),
                kind: after.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

/// What is mounted over parts of /proc, which keeps a user namespace from mounting its own
/// (mount_too_revealing in the kernel's fs/namespace.c).
#[must_use]
pub(super) fn masked_proc(mounts: &[MountLine]) -> Vec<&str> {
    mounts
        .iter()
        // An automount point lies on an empty directory, which hides nothing.
        .filter(|mount| mount.point.starts_with("/proc/") && mount.kind != "autofs")
        .filter(|mount| mount.kind != "binfmt_misc")
        .map(|mount| mount.point.as_str())
        .collect()
}

/// Facts of /proc/self/status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Status {
    /// The seccomp mode: 2 where a filter applies.
    pub(super) seccomp: u32,
    /// The effective capabilities.
    pub(super) capabilities: u64,
    /// The attribute no_new_privs.
    pub(super) no_new_privs: bool,
}

/// Reads /proc/PID/status (proc_pid_status(5)).
#[must_use]
pub(super) fn parse_status(text: &str) -> Status {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    Status {
        seccomp: field("Seccomp").and_then(|mode| mode.parse().ok()).unwrap_or(0),
        capabilities: field("CapEff")
            .and_then(|bits| u64::from_str_radix(bits, 16).ok())
            .unwrap_or(0),
        no_new_privs: field("NoNewPrivs") == Some("1"),
    }
}

/// Whether a uid_map is that of the machine's first user namespace: all ids onto themselves.
#[must_use]
pub(super) fn is_initial_map(uid_map: &str) -> bool {
    let numbers: Vec<&str> = uid_map.split_whitespace().collect();
    numbers == ["0", "0", "4294967295"]
}

/// Whether an id map, as seen inside its namespace, has this id.
#[must_use]
pub(super) fn maps_id(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map_while(|number| number.parse::<u64>().ok());
        match (numbers.next(), numbers.nth(1)) {
            (Some(first), Some(count)) => {
                (first..first.saturating_add(count)).contains(&u64::from(id))
            }
            _ => false,
        }
    })
}

/// The AppArmor profile in a line of /proc/self/attr/current, `None` where it confines nothing.
#[must_use]
pub(super) fn parse_apparmor(current: &str) -> Option<String> {
    let line = current.trim_end_matches(['\n', '\0']);
    let profile = line.strip_suffix(" (enforce)")?;
    (!profile.is_empty()).then(|| profile.to_owned())
}

/// What hints at a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ContainerHints {
    /// /run/.containerenv exists (Podman).
    pub(super) containerenv: bool,
    /// /.dockerenv exists.
    pub(super) dockerenv: bool,
    /// A service account of Kubernetes is mounted, or its variables are set.
    pub(super) kubernetes: bool,
    /// /run/systemd/container or the variable `container`: the manager's name for itself.
    pub(super) manager: Option<String>,
    /// /proc/self/cgroup.
    pub(super) cgroup: String,
}

impl ContainerHints {
    /// Of this host.
    #[must_use]
    pub(super) fn read() -> Self {
        let named = read("/run/systemd/container").or_else(|| std::env::var("container").ok());
        ContainerHints {
            containerenv: Path::new("/run/.containerenv").exists(),
            dockerenv: Path::new("/.dockerenv").exists(),
            kubernetes: Path::new("/var/run/secrets/kubernetes.io").exists()
                || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            manager: named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
            cgroup: read("/proc/self/cgroup").unwrap_or_default(),
        }
    }

    /// The kind of container, if it is one and what surrounds the caller most closely: a map of a
    /// single id, as bwrap and unshare make it, means that a sandbox stands between the two.
    /// Podman alone may map one id only.
    #[must_use]
    pub(super) fn nearest(&self, uid_map: &str) -> Option<Container> {
        let mut numbers = uid_map.split_whitespace();
        let single = numbers.nth(2) == Some("1") && numbers.next().is_none();
        self.container().filter(|container| !single || *container == Container::Podman)
    }

    /// The kind of container, if it is one.
    fn container(&self) -> Option<Container> {
        let within = |word: &str| self.cgroup.contains(word);
        let manager = self.manager.as_deref().unwrap_or("");
        if self.kubernetes || within("kubepods") {
            Some(Container::Kubernetes)
        } else if self.containerenv || manager == "podman" || within("libpod") {
            Some(Container::Podman)
        } else if self.dockerenv || manager == "docker" || within("/docker") {
            Some(Container::Docker)
        } else if manager.starts_with("lxc") || within("/lxc") {
            Some(Container::Lxc)
        } else if manager == "systemd-nspawn" {
            Some(Container::Nspawn)
        } else if !manager.is_empty() {
            Some(Container::Other(manager.to_owned()))
        } else {
            None
        }
    }
}

/// What the control groups of the host allow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cgroups {
    /// The directory of our own group in the unified hierarchy (cgroups(7), version 2).
    pub(super) unified: Option<PathBuf>,
    /// Whether we may create groups in it and move processes.
    pub(super) delegated: bool,
    /// The controllers that the unified hierarchy offers there.
    pub(super) controllers: Vec<String>,
    /// Controllers that version 1 has taken.
    pub(super) legacy: Vec<String>,
    /// Whether groups of version 2 can be frozen (Linux 5.2).
    pub(super) freezer: bool,
}

impl Cgroups {
    /// Of this process.
    #[must_use]
    pub(super) fn read(mounts: &[MountLine], release: (u32, u32)) -> Self {
        let own = read("/proc/self/cgroup").unwrap_or_default();
        let (path, legacy) = parse_cgroup(&own);
        let unified = path.and_then(|path| locate(mounts, &path));
        let delegated = unified.as_deref().is_some_and(|directory| {
            writable(directory) && writable(&directory.join("cgroup.procs"))
        });
        let controllers = unified
            .as_deref()
            .and_then(|directory| fs::read_to_string(directory.join("cgroup.controllers")).ok())
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        Cgroups {
            freezer: unified.is_some() && release >= (5, 2),
            unified,
            delegated,
            controllers,
            legacy,
        }
    }
}

/// Our path in the unified hierarchy, and the controllers of version 1.
#[must_use]
pub(super) fn parse_cgroup(text: &str) -> (Option<String>, Vec<String>) {
    let mut unified = None;
    let mut legacy = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("0"), Some(""), Some(path)) => unified = Some(path.to_owned()),
            (Some(_), Some(names), Some(_)) => legacy.extend(
                names.split(',').filter(|name| !name.starts_with("name=")).map(str::to_owned),
            ),
            _ => {}
        }
    }
    (unified, legacy)
}

/// Where a group of the unified hierarchy is found in the file tree.
fn locate(mounts: &[MountLine], path: &str) -> Option<PathBuf> {
    let mount = mounts.iter().find(|mount| mount.kind == "cgroup2")?;
    let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(path);
    let below = below.trim_start_matches('/');
    let point = Path::new(&mount.point);
    Some(if below.is_empty() { point.to_owned() } else { point.join(below) })
}

/// What an ordinary user may map beside its own ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SubIds {
    /// Count of ids in /etc/subuid.
    pub(super) uids: u64,
    /// Count of ids in /etc/subgid.
    pub(super) gids: u64,
    /// Such ids that nobody has been given, as usermod(8) takes them.
    pub(super) free: String,
    /// newuidmap(1), if it and newgidmap(1) are there.
    pub(super) newuidmap: Option<PathBuf>,
    /// The caller's login name, or its number.
    pub(super) user: String,
}

impl SubIds {
    /// Of the caller.
    #[must_use]
    pub(super) fn read() -> Self {
        let uid = geteuid();
        let number = uid.to_string();
        let user =
            User::from_uid(uid).ok().flatten().map_or_else(|| number.clone(), |user| user.name);
        let count = |text: &str, own: u32| {
            let ranges = sub_id_ranges(text, &user, &number, own);
            ranges.iter().map(|(_, count)| u64::from(*count)).sum()
        };
        let [users, groups] = ["/etc/subuid", "/etc/subgid"].map(|it| read(it).unwrap_or_default());
        let newgidmap = id_maps::program("newgidmap");
        SubIds {
            uids: count(&users, uid.as_raw()),
            gids: count(&groups, getegid().as_raw()),
            free: free_sub_ids([&users, &groups]),
            newuidmap: newgidmap.and(id_maps::program("newuidmap")),
            user,
        }
    }
}

/// Where the state of running sandboxes can be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StateDirectory {
    /// $XDG_RUNTIME_DIR is ours and private.
    Runtime(PathBuf),
    /// It is not (why), but /tmp can hold a private directory.
    Temporary(String),
    /// Neither (why).
    None(String),
}

impl StateDirectory {
    /// For the caller.
    #[must_use]
    pub(super) fn find(runtime: Option<PathBuf>, temporary: &Path) -> Self {
        let why = match runtime {
            None => "XDG_RUNTIME_DIR is not set".to_owned(),
            Some(directory) => match why_unusable(&directory) {
                None => return StateDirectory::Runtime(directory),
                Some(why) => format!("{} {why}", directory.display()),
            },
        };
        if temporary.is_dir() && writable(temporary) {
            StateDirectory::Temporary(why)
        } else {
            StateDirectory::None(format!("{why}, {} cannot be written", temporary.display()))
        }
    }
}

/// The runtime directory must be the caller's alone (XDG base directory specification).
fn why_unusable(directory: &Path) -> Option<&'static str> {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::metadata(directory) else { return Some("does not exist") };
    if !directory.is_absolute() || !metadata.is_dir() {
        Some("is not an absolute path of a directory")
    } else if metadata.uid() != geteuid().as_raw() {
        Some("belongs to another user")
    } else if metadata.mode() & 0o077 != 0 {
        Some("is open to other users")
    } else if !writable(directory) {
        Some("cannot be written")
    } else {
        None
    }
}

/// What each standard stream is.
#[must_use]
pub(super) fn streams() -> String {
    let name = |terminal: bool| if terminal { "a terminal" } else { "no terminal" };
    let of = |fd: std::os::fd::BorrowedFd<'_>| name(isatty(fd).unwrap_or(false));
    format!(
        "stdin is {}, stdout is {}, stderr is {}",
        of(std::io::stdin().as_fd()),
        of(std::io::stdout().as_fd()),
        of(std::io::stderr().as_fd())
    )
}

/// Whether the caller may write there, by its effective ids.
#[must_use]
pub(super) fn writable(path: &Path) -> bool {
    let wanted =
        if path.is_dir() { AccessFlags::W_OK | AccessFlags::X_OK } else { AccessFlags::W_OK };
    faccessat(nix::fcntl::AT_FDCWD, path, wanted, nix::fcntl::AtFlags::AT_EACCESS).is_ok()
}

/// A file's text, if it can be read.
#[must_use]
pub(super) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A file's text as a number, as sysctls are kept below /proc/sys.
#[must_use]
pub(super) fn read_number(path: &str) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_by_their_first_two_numbers() {
        assert_eq!(parse_release("6.18.44-fc-v657"), (6, 18));
        assert_eq!(parse_release("5.15.0-91-generic"), (5, 15));
        assert_eq!(parse_release("6.9-rc1"), (6, 9));
        assert_eq!(parse_release("7"), (7, 0));
        assert_eq!(parse_release("rolling"), (0, 0));
        assert_eq!(parse_release(""), (0, 0));
    }

    #[test]
    fn masks_over_proc_are_seen() {
        let text = "21 1 0:19 / /proc rw,nosuid shared:3 - proc proc rw\n\
                    22 21 0:20 / /proc/acpi ro - tmpfs tmpfs ro\n\
                    23 21 0:21 / /proc/sys/fs/binfmt_misc rw shared:9 - autofs systemd-1 rw\n\
                    24 1 8:1 /@root / rw - btrfs /dev/sda1 rw\n\
                    broken line\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[3].root, "/@root");
        assert_eq!(masked_proc(&mounts), ["/proc/acpi"]);
    }

    #[test]
    fn status_is_read() {
        let status = parse_status(
            "Name:\tx\nCapEff:\t0000000000200000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n",
        );
        assert_eq!(status, Status { seccomp: 2, capabilities: 1 << 21, no_new_privs: true });
        assert_eq!(parse_status(""), Status::default());
    }

    #[test]
    fn id_maps_are_read() {
        assert!(is_initial_map("         0          0 4294967295\n"));
        assert!(!is_initial_map("0 1000 1\n"));
        assert!(maps_id("0 1000 1\n1 100000 65536\n", 65536));
        assert!(!maps_id("0 1000 1\n", 65534));
        assert!(!maps_id("", 0));
        assert!(!maps_id("0 x\n", 0));
    }

    #[test]
    fn apparmor_labels_are_read() {
        assert_eq!(parse_apparmor("docker-default (enforce)\n").as_deref(), Some("docker-default"));
        assert_eq!(parse_apparmor("unconfined\n"), None);
        assert_eq!(parse_apparmor("snap.x (complain)\n"), None);
        assert_eq!(parse_apparmor("system_u:system_r:init_t:s0\0"), None);
    }

    #[test]
    fn containers_are_told_apart() {
        let none = ContainerHints::default();
        assert_eq!(none.container(), None);
        let podman =
            ContainerHints { containerenv: true, manager: Some("oci".into()), ..none.clone() };
        assert_eq!(podman.container(), Some(Container::Podman));
        let pod = ContainerHints { dockerenv: true, kubernetes: true, ..none.clone() };
        assert_eq!(pod.container(), Some(Container::Kubernetes));
        let docker = ContainerHints { cgroup: "4:memory:/docker/0af3\n".into(), ..none.clone() };
        assert_eq!(docker.container(), Some(Container::Docker));
        assert_eq!(docker.nearest("0 0 4294967295\n"), Some(Container::Docker));
        assert_eq!(docker.nearest("0 1000 1\n1 100000 65536\n"), Some(Container::Docker));
        assert_eq!(docker.nearest("0 1000 1\n"), None);
        assert_eq!(podman.nearest("0 1000 1\n"), Some(Container::Podman));
        let lxc = ContainerHints { manager: Some("lxc".into()), ..none.clone() };
        assert_eq!(lxc.container(), Some(Container::Lxc));
        let other = ContainerHints { manager: Some("wsl".into()), ..none };
        assert_eq!(other.container(), Some(Container::Other("wsl".into())));
    }

    #[test]
    fn cgroup_lines_are_read() {
        assert_eq!(parse_cgroup("0::/user.slice/x\n"), (Some("/user.slice/x".into()), vec![]));
        let (unified, legacy) = parse_cgroup("9:name=systemd:/\n3:cpu,cpuacct:/\n0::/\n");
        assert_eq!(unified.as_deref(), Some("/"));
        assert_eq!(legacy, ["cpu", "cpuacct"]);
        let mount = |root: &str| MountLine {
            root: root.into(),
            point: "/sys/fs/cgroup".into(),
            kind: "cgroup2".into(),
        };
        assert_eq!(locate(&[mount("/")], "/a/b"), Some("/sys/fs/cgroup/a/b".into()));
        assert_eq!(locate(&[mount("/a")], "/a/b"), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(locate(&[], "/a"), None);
    }
}
