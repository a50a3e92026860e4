//! The file view: from the mounts of a run to the steps that build it.
//!
//! Owns the order of the steps, the mounts that every run has, and what must be there to mount on.
//! Carries nothing out: `init` does.

mod hiding;
mod layers;
mod words;

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};

use libc::c_ulong;

use super::plan::{PlanError, c_path, c_string};
use crate::config::{Mount, MountKind, Network, RunSpec};
use crate::overlay::Layer;
use crate::sentry::asking::About;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};

/// Whether a step may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// It may not.
    Required,
    /// What it hides may have gone meanwhile: then nothing is left to hide.
    UnlessGone,
    /// The same in an overlay, where a guest of an earlier run may also have put something else in its place,
    /// or on the way to it: then nothing of the host's shows there.
    UnlessReplaced,
    /// There is something to fall back on.
    Optional,
}

/// One step of building the file view.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing mounted outside appears later.
    Private,
    /// Detaches a copy of the tree at `source`, with attributes added, as tree `tree`.
    Clone { tree: usize, source: CString, recursive: bool, attributes: u64 },
    /// Detaches a copy of the mount at `source`, as tree `tree`: what takes the place of an overlay.
    Twin { tree: usize, source: CString, attributes: u64 },
    /// Makes a detached overlay, as tree `tree`.
    Overlay { tree: usize, layer: Box<OverlayStep> },
    /// Mounts memory at `place`, for the supervisor to fill: directories that lie in front of layers.
    Front { place: CString },
    /// From here on, places are found over no link: there are layers in the view, which guests have filled, or
    /// something is mounted in a directory that other runs may write to, too.
    Guard,
    /// Makes tree `tree` the root of everything that is mounted from here on; the old root is tree `old`.
    Enter { tree: usize, old: usize },
    /// Takes the old root away.
    Leave { old: usize },
    /// Attaches tree `tree`.
    Attach { tree: usize, target: CString, need: Need },
    /// Shows `source` at `target` as well, with the attributes of the mount that it is seen through: one
    /// call, where a copy that is attached takes four.
    Bind { source: CString, target: CString, need: Need },
    /// Shows the symbolic link at `source`, which leads nowhere, in the place of what is at `target`.
    Nowhere { source: CString, target: CString, need: Need },
    /// Removes a file that was needed for a while.
    Remove { path: CString },
    /// Adds attributes.
    Attributes { target: CString, recursive: bool, attributes: u64 },
    /// Makes the mount at `target` writable again; what is mounted below it stays as it is.
    Writable { target: CString },
    /// Mounts a file system.
    Mount { kind: CString, target: CString, flags: c_ulong, data: CString, need: Need },
    /// Makes a directory to mount on.
    Directory { path: CString, mode: u32 },
    /// Makes an empty file to mount on.
    File { path: CString },
    /// Makes a file with this content that everybody may read.
    Content { path: CString, content: Vec<u8> },
    /// Takes the file system at `target` out of sight; what was cloned from it stays.
    Unmount { target: CString },
    /// Makes a symbolic link.
    Symlink { content: CString, path: CString },
    /// Writes a setting of the namespace.
    Setting { path: CString, value: &'static [u8] },
}

/// The directories of an overlay.
#[derive(Debug)]
pub(super) struct OverlayStep {
    /// Where it is seen.
    pub(super) target: CString,
    pub(super) lower: CString,
    /// What lies in front of that.
    pub(super) front: Option<CString>,
    /// Device and inode that `lower` must have.
    pub(super) identity: (u64, u64),
    pub(super) upper: CString,
    pub(super) work: CString,
    pub(super) attributes: u64,
}

/// The file view as it is put together.
#[derive(Debug, Default)]
pub(super) struct View {
    /// How many detached trees the steps need.
    pub(super) trees: usize,
    /// Copies that are made before the whole tree becomes read-only.
    pub(super) clones: Vec<Step>,
    /// What is mounted on top of it then.
    mounts: Vec<Step>,
    /// What is mounted at the very end.
    last: Vec<Step>,
    /// The layers of the overlays.
    layers: Vec<Layer>,
    /// Where what lies in front of them is mounted for a moment.
    front: Option<CString>,
    /// The root is an overlay: this tree.
    root: Option<usize>,
    /// Where an unopenable file can be bound from, until `last` covers it.
    unopenable: Option<PathBuf>,
    /// A link that leads nowhere, until `last` removes it.
    nowhere: Option<PathBuf>,
    /// A rule puts something where `unopenable` would be.
    null_is_ruled: bool,
    /// Something is mounted in what can be written to.
    nested: bool,
    pub(super) steps: Vec<Step>,
    /// Directories in memory mounted so far: what lies below them has to be made.
    fresh: HashSet<PathBuf>,
    /// Paths of the host shown so far: where, and what.
    bound: HashMap<PathBuf, PathBuf>,
    /// Every mount so far: where, and what of the host can be written to there, if anything.
    placed: HashMap<PathBuf, Option<PathBuf>>,
    /// Those of them that only keep what leads to another one in its place.
    pinned: HashSet<PathBuf>,
}

/// Where a mount point lies.
enum Ground {
    /// Below this directory in memory: it has to be made.
    Memory(PathBuf),
    /// On the host, at this path: it has to be there.
    Host(PathBuf),
}

/// Files of procfs that change or reveal the host: read-only, or not to be opened at all.
const PROC_READ_ONLY: [&str; 11] = [
    "sys",
    "sysrq-trigger",
    "irq",
    "bus",
    "fs",
    "acpi",
    "scsi",
    "mtrr",
    "pressure",
    "dynamic_debug",
    "driver",
];
/// The last seven are open to the owner alone, whom a guest of root's is without any capability.
const PROC_HIDDEN: [&str; 14] = [
    "kcore",
    "kmsg",
    "keys",
    "key-users",
    "timer_list",
    "latency_stats",
    "sched_debug",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "slabinfo",
    "vmallocinfo",
    "pagetypeinfo",
    "allocinfo",
];
/// The devices of every run.
pub(super) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

impl View {
    /// Fills `steps` in.
    pub(super) fn build(&mut self, spec: &RunSpec, layers: &[Layer]) -> Result<(), PlanError> {
        self.layers = layers.to_vec();
        self.null_is_ruled = spec.mounts.iter().any(|mount| mount.target.ends_with("dev/null"));
        for mount in &spec.mounts {
            self.add(mount)?;
        }
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        if let Some(cpus) = &spec.limits.cpus {
            let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let own = super::machine::files(cpus, &cpuinfo);
            files.extend(own.into_iter().map(|(path, content)| (path.into(), content)));
            // A procfs at another place shows the same.
            let other = |mount: &&Mount| mount.kind == MountKind::Proc && mount.target != *"/proc";
            for mount in spec.mounts.iter().filter(other) {
                let text = files.iter().find(|it| it.0 == *"/proc/cpuinfo").map(|it| it.1.clone());
                files.extend(text.map(|text| (mount.target.join("cpuinfo"), text)));
            }
        }
        let asks = spec.asks.about.contains(About::NET);
        files.extend(self.resolver(spec.network, asks)?);
        if !files.is_empty() {
            self.cover(&files)?;
        }
        let all = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
        self.steps.push(Step::Private);
        // No user namespace can be made inside (namespaces(7), user.max_user_namespaces): clone3
        // may then stay native, although its flags cannot be seen by the filter.
        self.steps.push(Step::Setting {
            path: c"/proc/sys/user/max_user_namespaces".to_owned(),
            value: b"0",
        });
        self.steps.append(&mut self.clones);
        // The overlays keep what they need of it.
        self.steps.extend(self.front.take().map(|target| Step::Unmount { target }));
        self.steps.push(Step::Attributes {
            target: c"/".to_owned(),
            recursive: true,
            attributes: all,
        });
        if !self.layers.is_empty() || self.nested {
            self.steps.push(Step::Guard);
        }
        let root = self.root.map(|tree| (tree, self.new_tree()));
        self.steps.extend(root.map(|(tree, old)| Step::Enter { tree, old }));
        self.steps.append(&mut self.mounts);
        self.steps.append(&mut self.last);
        self.steps.extend(root.map(|(_, old)| Step::Leave { old }));
        Ok(())
    }

    fn add(&mut self, mount: &Mount) -> Result<(), PlanError> {
        let target = mount.target.as_path();
        let writable = match &mount.kind {
            MountKind::Writable { source } => Some(source.clone()),
            _ => None,
        };
        self.pin(target)?;
        self.placed.insert(target.to_owned(), writable);
        match &mount.kind {
            MountKind::ReadOnly { source } => self.bind(source, target, ATTR_RDONLY),
            MountKind::Writable { source } => self.bind(source, target, 0),
            MountKind::Overlay { .. } => self.overlay(mount),
            MountKind::Tmpfs { mode } => {
                self.make_directory(target)?;
                self.tmpfs(target, libc::MS_NOSUID | libc::MS_NODEV, &format!("mode={mode:o}"))?;
                self.fresh.insert(target.to_owned());
                if mode & 0o222 == 0 {
                    // Whoever owns it could change that.
                    self.last.push(Step::Attributes {
                        target: c_path(target)?,
                        recursive: false,
                        attributes: ATTR_RDONLY,
                    });
                }
                Ok(())
            }
            MountKind::HiddenDirectory => self.hide_directory(target),
            MountKind::HiddenFile => self.hide_file(target),
            MountKind::DeniedDirectory => self.deny_directory(target),
            MountKind::DeniedFile => {
                self.make_in_memory(target, false)?;
                self.deny_file(target, self.unless_gone(target))
            }
            MountKind::Proc => self.proc(target),
            MountKind::Sys => self.sys(target),
            MountKind::Dev => self.dev(target),
        }
    }

    pub(super) fn new_tree(&mut self) -> usize {
        self.trees += 1;
        self.trees - 1
    }

    /// Shows `source` of the host at `target`.
    fn bind(&mut self, source: &Path, target: &Path, attributes: u64) -> Result<(), PlanError> {
        if source.is_dir() {
            self.make_directory(target)?;
        } else {
            self.make_file(target)?;
        }
        let attributes = attributes | ATTR_NOSUID | ATTR_NODEV;
        let step = |tree, source| Step::Clone { tree, source, recursive: true, attributes };
        self.bound.insert(target.to_owned(), source.to_owned());
        self.clone_and_attach(step, source, target, Need::Required)
    }

    /// What hiding `target` asks for: in an overlay there may be something else by now.
    fn unless_gone(&self, target: &Path) -> Need {
        let is_own =
            |above: &&Path| self.placed.contains_key(*above) && !self.pinned.contains(*above);
        let nearest = target.ancestors().skip(1).find(is_own);
        match nearest {
            Some(root) if self.layers.iter().any(|layer| layer.target == root) => {
                Need::UnlessReplaced
            }
            _ => Need::UnlessGone,
        }
    }

    /// Makes what leads from a writable mount to `target` mount points as well, which cannot be
    /// renamed or removed. Otherwise a guest moves a directory above `target` aside, mount and
    /// all, and puts what it likes at the path that the user protects.
    fn pin(&mut self, target: &Path) -> Result<(), PlanError> {
        let nearest = target.ancestors().find_map(|above| Some((above, self.placed.get(above)?)));
        let Some((root, Some(source))) = nearest else { return Ok(()) };
        self.nested = true;
        let between = target.parent().and_then(|parent| parent.strip_prefix(root).ok());
        let (mut place, mut path) = (root.to_owned(), source.clone());
        for component in between.into_iter().flatten() {
            place.push(component);
            path.push(component);
            // In a twin a guest of an earlier run may have put something else there.
            if self.is_twin(root) && !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                break;
            }
            self.bind(&path, &place, 0)?;
            self.placed.insert(place.clone(), Some(path.clone()));
            self.pinned.insert(place.clone());
        }
        Ok(())
    }

    fn clone_and_attach(
        &mut self,
        step: impl FnOnce(usize, CString) -> Step,
        source: &Path,
        target: &Path,
        need: Need,
    ) -> Result<(), PlanError> {
        let tree = self.new_tree();
        self.clones.push(step(tree, c_path(source)?));
        self.mounts.push(Step::Attach { tree, target: c_path(target)?, need });
        Ok(())
    }

    fn tmpfs(&mut self, target: &Path, flags: c_ulong, data: &str) -> Result<(), PlanError> {
        self.mount("tmpfs", target, flags, data, Need::Required)
    }

    fn mount(
        &mut self,
        kind: &str,
        target: &Path,
        flags: c_ulong,
        data: &str,
        need: Need,
    ) -> Result<(), PlanError> {
        self.mounts.push(Step::Mount {
            kind: c_string(OsStr::new(kind))?,
            target: c_path(target)?,
            flags,
            data: c_string(OsStr::new(data))?,
            need,
        });
        Ok(())
    }

    /// Mounts generated files over those of procfs and sysfs. They come from a file system in memory
    /// that is not seen any more when all are in place.
    fn cover(&mut self, files: &[(PathBuf, String)]) -> Result<(), PlanError> {
        let store = Path::new("/dev/shm");
        self.tmpfs(store, libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "mode=755")?;
        // (What a rule is about is what that says.)
        let unruled = files.iter().filter(|it| !self.placed.contains_key(&it.0));
        let unruled: Vec<_> = unruled.collect();
        for (number, (target, content)) in unruled.into_iter().enumerate() {
            let (path, tree) = (c_path(&store.join(number.to_string()))?, self.new_tree());
            self.mounts
                .push(Step::Content { path: path.clone(), content: content.as_bytes().to_vec() });
            let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
            self.mounts.push(Step::Clone { tree, source: path, recursive: false, attributes });
            // A kernel may lack one of them: then there is nothing to cover.
            let (target, need) = (c_path(target)?, self.unless_gone(target));
            self.mounts.push(Step::Attach { tree, target, need });
        }
        self.mounts.push(Step::Unmount { target: c_path(store)? });
        Ok(())
    }

    /// Where names are looked up: by the sentry, where it lets some through, else as on the host. Where the host keeps
    /// that in a place that is empty inside (/run, with systemd-resolved), it is made there; else it has to be
    /// covered.
    fn resolver(
        &mut self,
        network: Network,
        asks: bool,
    ) -> Result<Option<(PathBuf, String)>, PlanError> {
        if network == Network::None {
            return Ok(None);
        }
        let Ok(place) = std::fs::canonicalize("/etc/resolv.conf") else { return Ok(None) };
        let text = std::fs::read_to_string(&place).unwrap_or_default();
        let text =
            if network == Network::Allow { super::resolver::text(&text, asks) } else { text };
        match self.ground(&place) {
            Ground::Memory(_) if self.placed.contains_key(&place) => Ok(None),
            Ground::Memory(root) => {
                self.make_ancestors(&root, place.parent())?;
                let path = c_path(&place)?;
                self.mounts.push(Step::Content { path, content: text.into_bytes() });
                Ok(None)
            }
            Ground::Host(_) => Ok((network == Network::Allow).then_some((place, text))),
        }
    }

    fn proc(&mut self, target: &Path) -> Result<(), PlanError> {
        self.make_in_memory(target, true)?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        self.mount("proc", target, flags, "", Need::Required)?;
        // What is bound from a mount takes its attributes over (clone_mnt in fs/namespace.c): the whole is
        // read-only while its own entries are bound onto themselves.
        let whole = c_path(target)?;
        self.mounts.push(Step::Attributes {
            target: whole.clone(),
            recursive: false,
            attributes: ATTR_RDONLY,
        });
        for name in PROC_READ_ONLY {
            let path = target.join(name);
            let (source, target) = (c_path(&path)?, c_path(&path)?);
            // Not every kernel has all of them.
            self.mounts.push(Step::Bind { source, target, need: Need::UnlessGone });
        }
        self.mounts.push(Step::Writable { target: whole });
        for name in PROC_HIDDEN {
            if self.unopenable.is_some() || Path::new("/proc").join(name).exists() {
                self.deny_file(&target.join(name), Need::UnlessGone)?;
            }
        }
        Ok(())
    }

    /// Shows the guest's own network devices. Where the host's sysfs is covered in part, as in
    /// containers, the kernel refuses a new one (mount_too_revealing), and the host's stays,
    /// read-only. Under an overlay of the root it has to be brought there.
    fn sys(&mut self, target: &Path) -> Result<(), PlanError> {
        if self.root.is_some() {
            let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
            let step = |tree, source| Step::Clone { tree, source, recursive: true, attributes };
            self.clone_and_attach(step, target, target, Need::Required)?;
        }
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
        self.mount("sysfs", target, flags, "", Need::Optional)
    }

    fn dev(&mut self, target: &Path) -> Result<(), PlanError> {
        let plain = libc::MS_NOSUID | libc::MS_NOEXEC;
        self.tmpfs(target, plain, "mode=755")?;
        for name in DEVICES {
            // It may be a link, for all that is known of a host.
            if let Ok(source) = Path::new("/dev").join(name).canonicalize() {
                let path = target.join(name);
                self.mounts.push(Step::File { path: c_path(&path)? });
                if name == "null" && !self.null_is_ruled {
                    // Below the real one, which covers it at the end.
                    self.attach_unopenable(&path, Need::Required)?;
                    self.unopenable = Some(path.clone());
                }
                // Read-only: a device can be written to all the same, but its mode, owner and times,
                // which are the host's, cannot be changed by a guest that is root.
                let step = |tree, source| Step::Clone {
                    tree,
                    source,
                    recursive: false,
                    attributes: ATTR_RDONLY | ATTR_NOSUID,
                };
                self.clone_and_attach(step, &source, &path, Need::Required)?;
                if self.unopenable.as_ref() == Some(&path) {
                    self.last.extend(self.mounts.pop());
                }
            }
        }
        for (name, content) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            self.mounts.push(Step::Symlink {
                content: c_string(OsStr::new(content))?,
                path: c_path(&target.join(name))?,
            });
        }
        for name in ["pts", "shm", "mqueue"] {
            let path = c_path(&target.join(name))?;
            self.mounts.push(Step::Directory { path, mode: 0o755 });
        }
        let pts = "newinstance,ptmxmode=0666,mode=0620";
        self.mount("devpts", &target.join("pts"), plain, pts, Need::Required)?;
        self.tmpfs(&target.join("shm"), plain | libc::MS_NODEV, "mode=1777")?;
        self.fresh.insert(target.join("shm"));
        self.mount("mqueue", &target.join("mqueue"), plain | libc::MS_NODEV, "", Need::Optional)?;
        self.make_nowhere(target)?;
        self.last.push(Step::Attributes {
            target: c_path(target)?,
            recursive: false,
            attributes: ATTR_RDONLY,
        });
        Ok(())
    }

    /// Makes `target` and what leads to it where that lies in a fresh directory in memory.
    fn make_directory(&mut self, target: &Path) -> Result<(), PlanError> {
        match self.ground(target) {
            Ground::Memory(root) => self.make_ancestors(&root, Some(target)),
            Ground::Host(path) if path.is_dir() => Ok(()),
            Ground::Host(_) => Err(no_mount_point(target, "directory")),
        }
    }

    fn make_file(&mut self, target: &Path) -> Result<(), PlanError> {
        match self.ground(target) {
            Ground::Memory(root) => {
                self.make_ancestors(&root, target.parent())?;
                self.mounts.push(Step::File { path: c_path(target)? });
                Ok(())
            }
            Ground::Host(path) if path.exists() && !path.is_dir() => Ok(()),
            Ground::Host(_) => Err(no_mount_point(target, "file")),
        }
    }

    /// What the deepest mount above `target` says about it.
    fn ground(&self, target: &Path) -> Ground {
        for above in target.ancestors().skip(1) {
            if let Some(source) = self.bound.get(above) {
                let rest = target.strip_prefix(above);
                return Ground::Host(rest.map_or(source.clone(), |rest| source.join(rest)));
            }
            if self.fresh.contains(above) {
                return Ground::Memory(above.to_owned());
            }
        }
        Ground::Host(target.to_owned())
    }

    fn make_ancestors(&mut self, root: &Path, last: Option<&Path>) -> Result<(), PlanError> {
        let Some(below) = last.and_then(|last| last.strip_prefix(root).ok()) else { return Ok(()) };
        let mut path = root.to_owned();
        for component in below {
            path.push(component);
            self.mounts.push(Step::Directory { path: c_path(&path)?, mode: 0o755 });
        }
        Ok(())
    }
}

fn no_mount_point(target: &Path, what: &str) -> PlanError {
    PlanError::new(format!(
        "there is no {what} {} to mount on, and the host's files are read-only inside; create it, \
         or give its parent with --tmpfs",
        target.display()
    ))
}
