//! `--overlay`: which directories become layers of their own.
//!
//! overlayfs shows one file system, and the kernel refuses to look under what is mounted on it
//! (clone_private_mount in fs/namespace.c: EINVAL where a mount of the namespace's makers is below). So a
//! directory that has mounts of the host below it is shown as a *skeleton*, its names alone, and each
//! directory in it is an overlay of its own, or again a skeleton. Decides that; makes nothing.

use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use super::super::error::refuse;
use super::super::paths::{Found, Kind, check, quoted};
use super::super::{ConfigError, Mount, MountKind, Why};
use super::{Objects, Plan};

/// File systems that the kernel makes up as they are read: there is nothing to keep of them.
pub(super) const MADE_UP: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.gvfsd-fuse",
    "fuse.lxcfs",
    "fuse.portal",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// Files in a skeleton that are larger than this are bound, read-only; smaller ones are copied at the
/// start.
const COPIED: u64 = 1 << 20;

impl Plan<'_> {
    /// The directory that `--overlay` names.
    pub(super) fn overlaid(&self, flag: &str, path: &Path) -> Result<PathBuf, ConfigError> {
        check("--overlay", path)?;
        let place = self.find(flag, path)?;
        let words = quoted(&place.path);
        match place.kind {
            Kind::Directory => {}
            Kind::File => {
                return Err(refuse!(
                    "cannot use {flag}: {words} is not a directory, and an overlay is made of one; \
                     name the directory that it is in"
                ));
            }
            Kind::Missing => {
                return Err(refuse!(
                    "cannot use {flag}: {words} does not exist; create it first or correct the path"
                ));
            }
        }
        if let Some(kind) = self.made_up(&place.path) {
            return Err(refuse!(
                "cannot use {flag}: {words} is of the kernel's making ({kind}), and there is nothing of \
                 it to keep; name a directory of files"
            ));
        }
        self.host.access(&place.path, AccessFlags::X_OK).map_err(|errno| {
            refuse!(
                "cannot use {flag}: you may not look into {words} ({}); ask its owner for access or \
                 leave the flag out",
                errno.desc()
            )
        })?;
        Ok(place.path)
    }

    /// The type of the file system at `path`, if it is one of the kernel's making.
    fn made_up(&self, path: &Path) -> Option<&str> {
        let mounts = self.host.mounts.iter().filter(|(point, _)| path.starts_with(point));
        // Of two mounts at one place the later one shows.
        let (_, kind) = mounts.max_by_key(|(point, _)| point.components().count())?;
        MADE_UP.contains(&kind.as_str()).then_some(kind.as_str())
    }

    /// An overlay right inside another one adds nothing: they are one.
    pub(super) fn join_overlays(&mut self) {
        let is_overlay = |mount: &&Mount| matches!(mount.kind, MountKind::Overlay { .. });
        let inner = self.view.mounts().filter(is_overlay);
        let inner =
            inner.filter(|mount| self.view.above(&mount.target).as_ref().is_some_and(is_overlay));
        let inner: Vec<PathBuf> = inner.map(|mount| mount.target.clone()).collect();
        for target in inner {
            self.view.remove(&target);
        }
    }

    /// Whether the user wants changes at `path` to be the sandbox's own: it is in an overlay, whatever lies
    /// between (a private /tmp).
    pub(super) fn is_overlaid(&self, path: &Path) -> bool {
        let mut above = path.ancestors().filter_map(|above| self.view.at(above));
        above.any(|mount| matches!(mount.kind, MountKind::Overlay { .. }))
    }

    /// Lays every overlay out, but for what rules and `objects` put in its place.
    pub(super) fn lay_overlays(&mut self, objects: &Objects) {
        let named = self.view.mounts().filter(|it| matches!(it.kind, MountKind::Overlay { .. }));
        let named: Vec<Mount> = named.cloned().collect();
        for mount in named {
            self.lay(&mount.target, mount.why, objects);
        }
    }

    fn lay(&mut self, directory: &Path, why: Why, objects: &Objects) {
        let below = |point: &Path| point.starts_with(directory) && point != directory;
        let skeleton = self.host.mounts.iter().any(|(point, _)| below(point));
        let kind = MountKind::Overlay { source: directory.to_owned(), skeleton };
        self.view.insert(Mount { target: directory.to_owned(), kind, why });
        if !skeleton {
            return;
        }
        let listing = self.host.names(directory);
        for name in &listing.names {
            let path = directory.join(name);
            if self.view.at(&path).is_some() || objects.contains_key(&path) {
                continue;
            }
            let why = Why::Default("a part of an overlay");
            match self.host.look(&path) {
                Ok(Found::Directory) if self.made_up(&path).is_none() && self.is_open(&path) => {
                    self.lay(&path, why, objects);
                }
                Ok(Found::Directory) => self.show(path),
                Ok(Found::File) if !self.is_copied(&path) => self.show(path),
                _ => {}
            }
        }
    }

    /// Whether the caller can look into a directory: else there is nothing of it to change.
    fn is_open(&self, path: &Path) -> bool {
        self.host.access(path, AccessFlags::R_OK | AccessFlags::X_OK).is_ok()
    }

    /// Shows a path of the host as it is.
    fn show(&mut self, path: PathBuf) {
        let kind = MountKind::ReadOnly { source: path.clone() };
        self.view.insert(Mount {
            target: path,
            kind,
            why: Why::Default("cannot be a part of an overlay"),
        });
    }

    /// Whether a file of a skeleton is copied into it: what is small, and nobody else's (whose owner a copy
    /// could not have).
    fn is_copied(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let mount_point = self.host.mounts.iter().any(|(point, _)| point == path);
        let Ok(found) = self.host.real(path).symlink_metadata() else { return true };
        let own =
            self.host.uid == 0 || (found.uid(), found.gid()) == (self.host.uid, self.host.gid);
        let plain = found.is_file() && found.size() <= COPIED && own && !mount_point;
        // Nothing is shown of the host's sockets and pipes in a skeleton, and nothing is made of its devices.
        plain && self.host.access(path, AccessFlags::R_OK).is_ok() || !found.is_file()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use crate::config::testing::{TestHost, options};
    use crate::config::{MountKind, RunSpec};

    fn spec(host: &TestHost, rules: &[&str]) -> RunSpec {
        host.resolve(&options(rules)).unwrap()
    }

    fn at<'s>(spec: &'s RunSpec, path: &str) -> Option<&'s MountKind> {
        spec.mounts.iter().find(|mount| mount.target == Path::new(path)).map(|it| &it.kind)
    }

    fn overlay(path: &str, skeleton: bool) -> MountKind {
        MountKind::Overlay { source: path.into(), skeleton }
    }

    #[test]
    fn a_directory_without_mounts_is_one_layer() {
        let host = TestHost::ordinary();
        let spec = spec(&host, &["--overlay /home/me"]);
        assert_eq!(at(&spec, "/home/me"), Some(&overlay("/home/me", false)));
        // The working directory is in it: nothing of the host is writable.
        assert_eq!(at(&spec, "/home/me/project"), None);
        assert_eq!(spec.overlays(), [PathBuf::from("/home/me")]);
    }

    #[test]
    fn everything_is_a_skeleton_of_layers() {
        let mut host = TestHost::ordinary();
        host.host.mounts.push(("/data/in".into(), "xfs".into()));
        host.host.mounts.push(("/srv/kernel".into(), "tracefs".into()));
        host.directory("/srv/kernel");
        host.file("/home/me/.ssh/id");
        host.file("/loose");
        host.host.uid = nix::unistd::getuid().as_raw();
        host.host.gid = nix::unistd::getgid().as_raw();
        let spec = spec(&host, &["--overlay /", "--rw /home/other"]);
        assert_eq!(spec.mounts[0].kind, overlay("/", true));
        for (path, skeleton) in [
            ("/usr", false),
            ("/home", false),
            ("/data", true),
            ("/data/in", false),
            ("/srv", true),
        ] {
            assert_eq!(at(&spec, path), Some(&overlay(path, skeleton)), "{path}");
        }
        assert_eq!(at(&spec, "/tmp"), Some(&MountKind::Tmpfs { mode: 0o1777 }));
        assert_eq!(at(&spec, "/proc"), Some(&MountKind::Proc));
        assert_eq!(at(&spec, "/home/me/.ssh"), Some(&MountKind::HiddenDirectory));
        let kernel = PathBuf::from("/srv/kernel");
        assert_eq!(at(&spec, "/srv/kernel"), Some(&MountKind::ReadOnly { source: kernel }));
        let other = PathBuf::from("/home/other");
        assert_eq!(at(&spec, "/home/other"), Some(&MountKind::Writable { source: other }));
        // A small file of the caller's own is copied.
        assert_eq!(at(&spec, "/loose"), None);
        assert_eq!(spec.overlays(), [PathBuf::from("/")]);
    }

    #[test]
    fn a_working_directory_over_a_private_one_is_in_the_overlay_too() {
        let mut host = TestHost::ordinary();
        host.directory("/tmp/build");
        host.host.cwd = Ok("/tmp/build".into());
        let spec = spec(&host, &["--overlay /"]);
        assert_eq!(at(&spec, "/tmp/build"), Some(&overlay("/tmp/build", false)));
    }

    #[test]
    fn a_working_directory_that_an_ordinary_run_hides_is_none_of_its_own() {
        let mut host = TestHost::ordinary();
        host.set("XDG_RUNTIME_DIR", "/run/user/1000");
        host.directory("/tmp/keys/deep");
        host.link("/home/me/.ssh", "/tmp/keys");
        for (cwd, words) in [
            ("/run/user/1000", "where the services of your session listen"),
            ("/run/user", "where the services of your session listen"),
            ("/tmp/keys", "which is hidden (ssh keys"),
            ("/tmp/keys/deep", "which is hidden (ssh keys"),
        ] {
            host.host.cwd = Ok(cwd.into());
            let error = host.resolve(&options(&["--overlay /"])).unwrap_err();
            assert!(error.contains(words), "{cwd}: {error}");
        }
        // Homes and the root are what an overlay is for.
        for cwd in ["/home/me", "/home", "/"] {
            host.host.cwd = Ok(cwd.into());
            assert_eq!(spec(&host, &["--overlay /"]).workdir, PathBuf::from(cwd));
        }
    }

    #[test]
    fn overlays_in_overlays_are_one_unless_a_rule_lies_between() {
        let host = TestHost::ordinary();
        let joined = spec(&host, &["--overlay /home", "--overlay /home/me/project"]);
        assert_eq!(joined.overlays(), [PathBuf::from("/home")]);
        let rules = ["--overlay /home", "--rw /home/me", "--overlay /home/me/project"];
        let apart = spec(&host, &rules);
        assert_eq!(apart.overlays(), [PathBuf::from("/home"), PathBuf::from("/home/me/project")]);
    }

    #[test]
    fn what_cannot_be_one_is_named() {
        let host = TestHost::ordinary();
        host.file("/data/file");
        for (rules, words) in [
            (&["--overlay /data/file"][..], "/data/file is not a directory"),
            (&["--overlay /nowhere"], "/nowhere does not exist"),
            (&["--overlay /proc"], "of the kernel's making (proc)"),
            (&["--overlay /data", "--rw /data"], "contradict each other about /data"),
            (&["--overlay "], "the path is empty"),
        ] {
            let error = host.resolve(&options(rules)).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
