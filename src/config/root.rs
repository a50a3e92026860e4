//! `--root`: the guest is root inside, whoever the caller is.
//!
//! Decides its ids, its variables and what the kernel allows it. That it can become anybody else is the sentry's
//! work (`sentry::credentials`).

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::environment::Variables;
use super::error::refuse;
use super::paths::quoted;
use super::{
    ConfigError, Host, IdRange, Identity, Mount, MountKind, Options, Root, View, replace, sub_ids,
};
use crate::sentry::credentials::Capability;

/// What root inside is allowed by the kernel, in the sandbox's user namespace. docs/root.md says why these, and
/// why no others.
pub const ROOT_CAPABILITIES: [(Capability, &str); 3] = [
    (Capability::DacOverride, "DAC_OVERRIDE"),
    (Capability::NetBindService, "NET_BIND_SERVICE"),
    (Capability::SysChroot, "SYS_CHROOT"),
];

/// The word behind `--root=`.
pub(super) fn wish(word: &OsStr) -> Result<Root, ConfigError> {
    match word.to_str() {
        Some("true") => Ok(Root::Believed),
        Some("false") => Ok(Root::No),
        Some("sub-ids") => Ok(Root::Mapped),
        _ => Err(refuse!(
            "cannot use --root={}: write --root, --root=sub-ids or --root=false",
            quoted(word)
        )),
    }
}

/// The ids of a run with `--root`.
pub(super) fn choose(options: &Options, host: &Host) -> Result<Identity, ConfigError> {
    match &options.user {
        None if options.root == Root::Mapped => sub_ids::identity(host),
        None => Ok(identity(host)),
        Some(user) => Err(refuse!(
            "cannot use --root with --user {}: the program is one user, and --root makes it root; leave \
             one of them out",
            quoted(user)
        )),
    }
}

/// Root alone exists inside, and is the caller. For the host's root, too: so that what a guest believes
/// is the same whoever runs it, and no file of the host gets another owner.
pub(super) fn identity(host: &Host) -> Identity {
    let own = |outside| vec![IdRange { inside: 0, outside, count: 1 }];
    Identity {
        uid: 0,
        gid: 0,
        // Only root may change them (user_namespaces(7)).
        groups: (host.uid == 0).then(Vec::new),
        uid_map: own(host.uid),
        gid_map: own(host.gid),
    }
}

/// Has `--ro /proc:DST` show the sandbox's own procfs at DST: a tree that is to be a root directory (chroot(2)) needs one,
/// mount(2) is refused inside, and the host's would tell of the host's processes.
pub(super) fn give_proc(view: &mut View) {
    let proc = Path::new("/proc");
    let is_whole = |mount: &&Mount| mount.kind == MountKind::ReadOnly { source: proc.into() };
    let places: Vec<Mount> = view.mounts().filter(is_whole).cloned().collect();
    for place in places.into_iter().filter(|place| place.target != proc) {
        view.insert(Mount { kind: MountKind::Proc, ..place });
    }
}

/// Where programs are that only root needs. dpkg(1) does without none of these.
const OF_ROOT: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Variables follow the user, and PATH leads to root's programs, unless a flag set them. HOME stays: it is
/// root's own directory inside, and the one that the user database names may not be entered.
pub(super) fn follow(environment: &mut Variables, flags: &[OsString]) {
    for name in ["USER", "LOGNAME"] {
        replace(environment, name, "root".into(), flags);
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    if let Some(mut path) = path.filter(|path| !path.is_empty()) {
        let known: Vec<PathBuf> = std::env::split_paths(&path).collect();
        for directory in
            OF_ROOT.iter().filter(|it| !known.iter().any(|known| known == Path::new(it)))
        {
            path.push(":");
            path.push(directory);
        }
        replace(environment, "PATH", path, flags);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestHost, options};
    use super::*;
    use crate::sentry::Features;

    #[test]
    fn root_is_the_caller_and_nobody_else_is_there() {
        for (host, id) in [(TestHost::ordinary(), 1000), (TestHost::root(), 0)] {
            let wishes = Options { root: Root::Believed, ..options(&[]) };
            let spec = host.resolve(&wishes).unwrap();
            assert_eq!((spec.identity.uid, spec.identity.gid), (0, 0));
            let map = [IdRange { inside: 0, outside: id, count: 1 }];
            assert_eq!(
                (&spec.identity.uid_map[..], &spec.identity.gid_map[..]),
                (&map[..], &map[..])
            );
            assert!(spec.root == Root::Believed && spec.features.contains(Features::ROOT));
            let plain = host.resolve(&options(&[])).unwrap();
            assert!(!plain.root.is_root() && !plain.features.contains(Features::ROOT));
        }
    }

    #[test]
    fn variables_follow_and_a_flag_is_stronger() {
        let mut host = TestHost::ordinary();
        host.set("USER", "me");
        let mut wishes = Options { root: Root::Believed, ..options(&[]) };
        let value = |wishes: &Options, name: &str| {
            let environment = host.resolve(wishes).unwrap().environment;
            environment.into_iter().find(|(it, _)| it == name).map(|(_, value)| value)
        };
        assert_eq!(value(&wishes, "USER"), Some("root".into()));
        assert_eq!(value(&wishes, "HOME"), Some("/home/me".into()));
        let path = "/usr/bin:/usr/local/sbin:/usr/sbin:/sbin";
        assert_eq!(value(&wishes, "PATH"), Some(path.into()));
        wishes.env = vec!["PATH=/sbin:/bin".into(), "USER".into()];
        assert_eq!(value(&wishes, "PATH"), Some("/sbin:/bin".into()));
        assert_eq!(value(&wishes, "USER"), Some("me".into()));
    }

    #[test]
    fn another_root_directory_gets_a_proc_of_the_sandboxs_own() {
        let host = TestHost::ordinary();
        host.directory("/home/me/project/tree/proc");
        let wishes = options(&["--ro /proc:/home/me/project/tree/proc"]);
        let shown = |wishes: &Options| {
            let spec = host.resolve(wishes).unwrap();
            let is_it = |mount: &&Mount| mount.target.ends_with("tree/proc");
            spec.mounts.iter().find(is_it).unwrap().kind.clone()
        };
        assert_eq!(shown(&wishes), MountKind::ReadOnly { source: "/proc".into() });
        assert_eq!(shown(&Options { root: Root::Believed, ..wishes }), MountKind::Proc);
    }

    #[test]
    fn another_user_is_a_contradiction() {
        let user = Some("5:5".into());
        let wishes = Options { root: Root::Believed, user, ..options(&[]) };
        let error = TestHost::ordinary().resolve(&wishes).unwrap_err();
        assert!(error.contains("--root") && error.contains("--user 5:5"), "{error}");
    }
}
