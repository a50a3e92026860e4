//! The file view of a run: rules, defaults, working directory and hidden secrets become mounts.
//!
//! The order of business: the user's rules (which contradict each other or do not), the defaults
//! where no rule says otherwise, the working directory, then every place at which a secret would
//! still show. Under all mounts lies the host's tree, which the launch makes read-only.

mod again;
mod coming;
mod exceptions;
mod objects;
mod overlays;
mod patterns;
mod sockets;
mod sources;
mod walk;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::AccessFlags;

use super::error::refuse;
use super::paths::{Found, Kind, Place, check, parse_pair, quoted};
use super::view::translate;
use super::{ConfigError, Host, Mount, MountKind, Rule, RuleKind, Shown, View, Why};
use crate::sentry::paths::Rules;
use exceptions::Exception;
use objects::{Object, Objects};
use patterns::Pattern;

pub(super) use again::{Again, arrange_again};
pub(super) use exceptions::DENIED_BUT;
pub(crate) use objects::HOST_SOCKET;
pub(super) use sockets::{check_socket, is_socket};

/// Mounts in one mount namespace at most, by default (fs.mount-max, proc_sys_fs(5)).
const MOUNTS_MAX: usize = 100_000;

/// What every run has, unless a rule names the same place.
const DEFAULTS: &[(&str, MountKind, &str)] = &[
    ("/dev", MountKind::Dev, "a minimal /dev"),
    ("/proc", MountKind::Proc, "its own /proc"),
    ("/sys", MountKind::Sys, "its own /sys"),
    ("/run", MountKind::Tmpfs { mode: 0o755 }, "an empty /run"),
    ("/var/run", MountKind::Tmpfs { mode: 0o755 }, "an empty /var/run"),
    ("/tmp", MountKind::Tmpfs { mode: 0o1777 }, "a private /tmp"),
    ("/var/tmp", MountKind::Tmpfs { mode: 0o1777 }, "a private /var/tmp"),
];

/// Whether every run has a directory of its own at `place`.
pub(super) fn is_default(host: &Host, place: &Path) -> bool {
    let mut all = DEFAULTS.iter().map(|(path, ..)| Path::new(path));
    all.any(|path| path == place || host.walk(path).is_ok_and(|found| found.path == place))
}

/// The files of a run.
pub(crate) struct Arranged {
    pub(crate) view: View,
    /// The working directory in it.
    pub(crate) workdir: PathBuf,
    /// Rules that say nothing here, as sentences.
    pub(crate) idle: Vec<String>,
    /// What patterns say of names that come later.
    pub(crate) coming: Option<Arc<dyn Rules>>,
}

/// What `rules` make of the host's files.
pub(crate) fn arrange(
    host: &Host,
    rules: &[Rule],
    workdir: Option<&Path>,
    homes: &[PathBuf],
) -> Result<Arranged, ConfigError> {
    let real = |home: &PathBuf| host.walk(home).map_or_else(|_| home.clone(), |place| place.path);
    let homes: Vec<PathBuf> = homes.iter().map(real).collect();
    let mut plan = Plan::new(host, homes);
    let rules = sources::by_strength(rules);
    sources::list_crowded(host, &rules);
    for rule in rules.iter().filter(|rule| rule.kind != RuleKind::Allow) {
        plan.add_rule(rule)?;
    }
    plan.join_overlays();
    plan.add_defaults();
    for rule in rules.iter().filter(|rule| rule.kind == RuleKind::Allow) {
        plan.add_exception(rule)?;
    }
    let mut objects = plan.secret_objects();
    let workdir = plan.add_workdir(workdir, &objects)?;
    plan.settle_exceptions()?;
    plan.check_targets()?;
    plan.add_objects(&mut objects);
    plan.match_patterns(&workdir, &mut objects)?;
    plan.drop_exceptions_of_nothing(&objects);
    plan.lay_overlays(&objects);
    plan.cover(objects)?;
    plan.check_workdir(&workdir)?;
    Ok(Arranged { view: plan.view, workdir, idle: plan.idle, coming: plan.coming })
}

/// The absolute path that `path` means for the caller.
pub(crate) fn absolute(host: &Host, path: &Path) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    match &host.cwd {
        // getcwd(3): a directory that was unmounted or moved out of sight is "(unreachable)...".
        Ok(cwd) if cwd.is_absolute() => Ok(cwd.join(path)),
        Ok(_) => Err(no_cwd("it is out of reach")),
        Err(errno) => Err(no_cwd(errno.desc())),
    }
}

fn no_cwd(cause: &str) -> ConfigError {
    refuse!(
        "cannot find the current directory: {cause}; change to one that exists, or use absolute \
         paths and --workdir"
    )
}

struct Plan<'h> {
    host: &'h Host,
    /// Symlinks resolved.
    homes: Vec<PathBuf>,
    view: View,
    /// `--ro /` was given: it adds nothing, but it covers the working directory.
    root_rule: bool,
    /// How strong the source of each rule is.
    ranks: HashMap<PathBuf, usize>,
    /// Places of `--allow`.
    exceptions: BTreeMap<PathBuf, Exception>,
    patterns: Vec<Pattern>,
    /// Places of rules of a project's file that is not trusted.
    judged: HashSet<PathBuf>,
    /// Places to be hidden or denied, if there is something.
    perhaps: HashSet<PathBuf>,
    /// Rules that say nothing here, as sentences.
    idle: Vec<String>,
    /// What patterns say of names that come later.
    coming: Option<Arc<dyn Rules>>,
}

impl Plan<'_> {
    /// Adds one of the user's rules.
    fn add_rule(&mut self, rule: &Rule) -> Result<(), ConfigError> {
        let Some(path) = self.plain_path(rule)? else { return Ok(()) };
        if self.is_in_vain(rule, &path) {
            return Ok(());
        }
        let flag = rule.flag();
        let why = Why::Flag(flag.clone());
        let mount = match rule.kind {
            RuleKind::ReadOnly | RuleKind::Writable => {
                let (_, target) = parse_pair(rule.kind.flag(), &rule.text)?;
                let source = self.source(&flag, &path)?;
                let target = match target {
                    Some(target) => self.find(&flag, &target)?.path,
                    None => source.clone(),
                };
                let kind = match rule.kind {
                    RuleKind::Writable => MountKind::Writable { source },
                    _ => MountKind::ReadOnly { source },
                };
                Mount { target, kind, why }
            }
            RuleKind::Overlay => {
                let source = self.overlaid(&flag, Path::new(&rule.text))?;
                let kind = MountKind::Overlay { source: source.clone(), skeleton: false };
                Mount { target: source, kind, why }
            }
            RuleKind::Socket => self.socket(&flag, &path)?,
            RuleKind::Tmpfs | RuleKind::Hide | RuleKind::Deny | RuleKind::Allow => {
                check(rule.kind.flag(), &path)?;
                let place = match self.find(&flag, &path) {
                    Ok(place) => place,
                    // What leads nowhere (over a file, in a circle) is not there.
                    Err(_) if rule.may_be_in_vain() && rule.kind != RuleKind::Tmpfs => {
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                };
                let kind = match rule.kind {
                    RuleKind::Tmpfs => MountKind::Tmpfs { mode: 0o755 },
                    kind => {
                        let directory = place.kind == Kind::Directory;
                        MountKind::hiding(directory, kind == RuleKind::Deny)
                    }
                };
                Mount { target: place.path, kind, why }
            }
        };
        if rule.judged.as_ref().is_some_and(|place| *place != mount.target) {
            return Err(refuse!(
                "cannot use {flag}: it has come to lead elsewhere just now; see who changes the project"
            ));
        }
        if self.is_decided(&mount.target, rule.rank) {
            return Ok(());
        }
        if rule.judged.is_some() {
            self.judged.insert(mount.target.clone());
        }
        if rule.may_be_in_vain() && mount.kind.hides() {
            self.perhaps.insert(mount.target.clone());
        }
        self.insert_rule(flag, mount)
    }

    /// Puts a rule's mount in the view, unless it may not be there or another rule contradicts it.
    fn insert_rule(&mut self, flag: String, mount: Mount) -> Result<(), ConfigError> {
        let root = Path::new("/");
        let overlay = matches!(mount.kind, MountKind::Overlay { .. });
        if mount.target == root && !overlay {
            if mount.kind == (MountKind::ReadOnly { source: root.into() }) {
                self.root_rule = true;
                return Ok(());
            }
            return Err(refuse!(
                "cannot use {flag}: it would replace or open the whole file system; name the \
                 directories that it is about"
            ));
        }
        if mount.target == Path::new("/proc") || mount.target == Path::new("/dev") {
            let target = mount.target.display();
            return Err(refuse!(
                "cannot use {flag}: {target} is always the sandbox's own; name what you need below \
                 it, for example {}",
                if target.to_string() == "/dev" {
                    "--rw /dev/kvm"
                } else {
                    "--hide /proc/kallsyms"
                }
            ));
        }
        match self.view.at(&mount.target) {
            Some(other) if other.kind != mount.kind => Err(refuse!(
                "cannot use {flag} together with {}: they contradict each other about {}; keep one \
                 of them",
                flag_of(&other.why),
                quoted(&mount.target)
            )),
            Some(_) => Ok(()),
            None => {
                self.view.insert(mount);
                Ok(())
            }
        }
    }

    /// Where the path of a flag leads.
    fn find(&self, flag: &str, path: &Path) -> Result<Place, ConfigError> {
        let path = absolute(self.host, path)?;
        self.host.walk(&path).map_err(|trouble| refuse!("cannot use {flag}: {}", trouble.words()))
    }

    /// What a flag wants to show: it must exist and be readable for the caller.
    fn source(&self, flag: &str, path: &Path) -> Result<PathBuf, ConfigError> {
        let place = self.find(flag, path)?;
        let needed = match place.kind {
            Kind::Directory => AccessFlags::X_OK,
            Kind::File => AccessFlags::R_OK,
            Kind::Missing => {
                return Err(refuse!(
                    "cannot use {flag}: {} does not exist; create it first or correct the path",
                    quoted(&place.path)
                ));
            }
        };
        self.host.access(&place.path, needed).map_err(|errno| {
            refuse!(
                "cannot use {flag}: you may not read {} ({}); ask its owner for access or leave \
                 the flag out",
                quoted(&place.path),
                errno.desc()
            )
        })?;
        check(flag, &place.path)?;
        Ok(place.path)
    }

    fn add_defaults(&mut self) {
        for (path, kind, words) in DEFAULTS {
            let Ok(place) = self.host.walk(Path::new(path)) else { continue };
            let free = place.path != Path::new("/") && self.view.at(&place.path).is_none();
            if place.kind == Kind::Directory && free {
                let why = Why::Default(words);
                self.view.insert(Mount { target: place.path, kind: kind.clone(), why });
            }
        }
    }

    /// Makes the working directory writable, where no rule of the user covers it.
    fn add_workdir(
        &mut self,
        wished: Option<&Path>,
        objects: &Objects,
    ) -> Result<PathBuf, ConfigError> {
        let flag = wished.map(|path| format!("--workdir {}", quoted(path)));
        let flag = flag.unwrap_or_else(|| "the current directory".to_owned());
        if let Some(path) = wished {
            check("--workdir", path)?;
        }
        let place = self.find(&flag, wished.unwrap_or(Path::new(".")))?;
        check("as working directory", &place.path)?;
        if self.covers(&place.path)? {
            return Ok(place.path);
        }
        let words = quoted(&place.path);
        match place.kind {
            Kind::Directory => {}
            Kind::Missing => {
                return Err(refuse!(
                    "cannot start in {words}: it does not exist; create it or name another with \
                     --workdir"
                ));
            }
            Kind::File => {
                return Err(refuse!(
                    "cannot start in {words}: it is not a directory; name one with --workdir"
                ));
            }
        }
        let overlaid = self.is_overlaid(&place.path);
        if let Some(what) = self.too_wide(&place.path, overlaid, objects) {
            let allow =
                if words == "/" { String::new() } else { format!(" (--rw {words} to allow it)") };
            return Err(refuse!(
                "cannot make the working directory {words} writable: it is {what}; change to a \
                 directory of the project, or add --ro {words} to run here without writing{allow}"
            ));
        }
        let source = place.path.clone();
        let kind = match overlaid {
            true => MountKind::Overlay { source, skeleton: false },
            false => MountKind::Writable { source },
        };
        let target = place.path.clone();
        self.view.insert(Mount { target, kind, why: Why::WorkingDirectory });
        Ok(place.path)
    }

    /// Whether the view already says what the working directory is.
    fn covers(&self, workdir: &Path) -> Result<bool, ConfigError> {
        let Some(mount) = self.view.covering(workdir) else { return Ok(self.root_rule) };
        // What an exception shows is as it would be without what it is an exception of.
        let Some(mount) = self.unhidden(mount) else { return Ok(self.root_rule) };
        let exact = mount.target == workdir;
        match mount.kind {
            MountKind::ReadOnly { .. } | MountKind::Writable { .. } | MountKind::Overlay { .. } => {
                Ok(true)
            }
            MountKind::Tmpfs { .. } => Ok(exact || !self.is_host_directory(workdir)),
            MountKind::Proc | MountKind::Sys => Ok(true),
            // The guest's /dev has a shm of its own, under which a directory can be shown.
            MountKind::Dev => Ok(exact || !workdir.starts_with("/dev/shm/")),
            MountKind::HiddenDirectory
            | MountKind::HiddenFile
            | MountKind::DeniedDirectory
            | MountKind::DeniedFile => Err(refuse!(
                "cannot start in {}: {} hides it; name another directory with --workdir",
                quoted(workdir),
                flag_of(&mount.why)
            )),
        }
    }

    fn is_host_directory(&self, path: &Path) -> bool {
        self.host.look(path) == Ok(Found::Directory)
    }

    /// Why `path` is too much to be writable without being asked for. In an overlay nothing can be lost, but
    /// what is hidden would show there as well.
    fn too_wide(&self, path: &Path, overlaid: bool, objects: &Objects) -> Option<String> {
        if path == Path::new("/") && !overlaid {
            return Some("the root of the file system".to_owned());
        }
        let home = self.homes.iter().find(|home| home.starts_with(path) && !overlaid);
        if let Some(home) = home {
            let words = if home == path { "a home directory" } else { "above a home directory" };
            return Some(words.to_owned());
        }
        let runtime = self.host.variable("XDG_RUNTIME_DIR").map(Path::new);
        if runtime.is_some_and(|runtime| runtime.starts_with(path)) {
            return Some("where the services of your session listen".to_owned());
        }
        let mut above = path.ancestors();
        let (place, object) = above.find_map(|a| Some((a, objects.get(a)?)))?;
        let what = match object.why {
            Why::Default(what) => what,
            _ => "what a flag hides",
        };
        Some(format!("in {}, which is hidden ({what})", quoted(place)))
    }

    /// Every mount needs something to be mounted on: what the view shows there, or a directory in
    /// memory in which the launch can make it.
    fn check_targets(&mut self) -> Result<(), ConfigError> {
        // Parents come before their children, so that what is dropped drops what depends on it.
        let mounts: Vec<Mount> = self.view.mounts().cloned().collect();
        for mount in mounts {
            let hides = mount.kind.hides();
            let default = matches!(mount.why, Why::Default(_));
            let under = match self.view.shown_under(&mount.target) {
                // The kernel makes files of its own there.
                Shown::Private(under)
                    if hides && under.kind.is_made_up() && !self.is_perhaps_none(&mount.target) =>
                {
                    continue;
                }
                Shown::Private(_) | Shown::Hidden(_) if hides => {
                    // Not there to begin with.
                    self.view.remove(&mount.target);
                    continue;
                }
                Shown::Hidden(_) if default => {
                    self.view.remove(&mount.target);
                    continue;
                }
                Shown::Private(_) | Shown::Hidden(_) => continue,
                Shown::Host { path, .. } => path,
            };
            let flag = flag_of(&mount.why);
            let found = self.host.look(&under).unwrap_or(Found::Missing);
            let kind = match found {
                Found::Directory | Found::File if hides => {
                    MountKind::hiding(found == Found::Directory, mount.kind.denies())
                }
                Found::Missing | Found::Link(_)
                    if default || hides && self.perhaps.contains(&mount.target) =>
                {
                    self.view.remove(&mount.target);
                    continue;
                }
                Found::Missing | Found::Link(_) => return Err(no_target(&flag, &mount, &found)),
                found => {
                    self.same_type(&flag, &mount, &found)?;
                    continue;
                }
            };
            self.view.insert(Mount { kind, ..mount });
        }
        Ok(())
    }

    /// What is to be hidden if it is there, and the host has nothing of that name.
    fn is_perhaps_none(&self, target: &Path) -> bool {
        self.perhaps.contains(target) && self.host.look(target) == Ok(Found::Missing)
    }

    /// mount(2) puts directories on directories and files on files.
    fn same_type(&self, flag: &str, mount: &Mount, under: &Found) -> Result<(), ConfigError> {
        let brings_directory = match &mount.kind {
            MountKind::ReadOnly { source } | MountKind::Writable { source } => {
                self.is_host_directory(source)
            }
            _ => true,
        };
        if brings_directory == (*under == Found::Directory) {
            return Ok(());
        }
        let name = |directory| if directory { "a directory" } else { "a file" };
        Err(refuse!(
            "cannot use {flag}: it would put {} over {}, which is {}; choose a target of the same \
             kind",
            name(brings_directory),
            quoted(&mount.target),
            name(!brings_directory)
        ))
    }

    /// Hides every object at every place at which a mount would show it, unless a rule names that
    /// very place.
    fn cover(&mut self, objects: Objects) -> Result<(), ConfigError> {
        let mut hidden: BTreeMap<PathBuf, Mount> = BTreeMap::new();
        let root = (PathBuf::from("/"), None);
        let binds = self
            .view
            .mounts()
            .filter_map(|mount| mount.kind.source().map(|source| (source.to_owned(), Some(mount))));
        for (source, mount) in std::iter::once(root).chain(binds) {
            let target = mount.map_or(Path::new("/"), |mount| &mount.target);
            let below = objects.range::<Path, _>((Bound::Excluded(&*source), Bound::Unbounded));
            for (path, object) in below.take_while(|(path, _)| path.starts_with(&source)) {
                let place = translate(path, &source, target);
                // Nothing lies between this mount and the place, and no rule at the place itself.
                if self.view.covering(&place).map(|m| &m.target) == mount.map(|m| &m.target) {
                    hidden.insert(place.clone(), object.at(place));
                }
                if hidden.len() > MOUNTS_MAX {
                    return Err(refuse!(
                        "cannot hide {} in every place where the rules show it: that would take \
                         more than {MOUNTS_MAX} mounts; use fewer rules",
                        quoted(path)
                    ));
                }
            }
        }
        self.insert_hidden(hidden);
        Ok(())
    }

    /// Adds what is hidden to the view, but for what is out of sight already; and opens a hidden
    /// directory as an empty one where a rule shows something below it.
    fn insert_hidden(&mut self, mut hidden: BTreeMap<PathBuf, Mount>) {
        let ruled = self.view.mounts().filter(|mount| mount.kind.hides());
        let ruled: Vec<Mount> = ruled.cloned().collect();
        for mount in ruled {
            self.view.remove(&mount.target);
            hidden.insert(mount.target.clone(), mount);
        }
        let out_of_sight = |mount: &Mount| {
            let above = mount.target.ancestors().skip(1).find(|above| hidden.contains_key(*above));
            let shown = self.view.above(&mount.target);
            above.is_some_and(|above| shown.is_none_or(|shown| above.starts_with(&shown.target)))
        };
        let mut mounts: Vec<Mount> =
            hidden.values().filter(|mount| !out_of_sight(mount)).cloned().collect();
        for mount in &mut mounts {
            if mount.kind == MountKind::HiddenDirectory && self.view.has_below(&mount.target) {
                mount.kind = MountKind::Tmpfs { mode: 0o755 };
            }
        }
        for mount in mounts {
            match mount.kind == MountKind::DeniedDirectory && self.view.has_below(&mount.target) {
                true => self.deny_all_but(mount),
                false => drop(self.view.insert(mount)),
            }
        }
    }

    /// The program must find itself somewhere.
    fn check_workdir(&self, workdir: &Path) -> Result<(), ConfigError> {
        let words = quoted(workdir);
        match self.view.shown(workdir) {
            Shown::Hidden(mount) => Err(refuse!(
                "cannot start in {words}: {} is hidden ({}); add --rw {words} if the program may \
                 have it, or name another directory with --workdir",
                quoted(&mount.target),
                flag_of(&mount.why)
            )),
            Shown::Private(mount) => {
                let made = matches!(mount.kind, MountKind::Proc | MountKind::Sys | MountKind::Dev)
                    || mount.target == workdir
                    || self.view.has_below(workdir);
                if made {
                    return Ok(());
                }
                Err(refuse!(
                    "cannot start in {words}: the sandbox's own {} is empty; add --tmpfs {words} or \
                     name another directory with --workdir",
                    quoted(&mount.target)
                ))
            }
            Shown::Host { path, .. } => match self.host.walk(&path) {
                Ok(Place { kind: Kind::Directory, .. }) => Ok(()),
                Ok(Place { kind: Kind::File, .. }) => Err(refuse!(
                    "cannot start in {words}: it is not a directory; name one with --workdir"
                )),
                Ok(_) => Err(refuse!(
                    "cannot start in {words}: it does not exist in the sandbox; create it or name \
                     another with --workdir"
                )),
                Err(trouble) => Err(refuse!("cannot start in {words}: {}", trouble.words())),
            },
        }
    }
}

/// A rule in the words of an error.
fn flag_of(why: &Why) -> String {
    match why {
        Why::Flag(flag) | Why::Derived(flag) => flag.clone(),
        Why::Default(words) => (*words).to_owned(),
        Why::WorkingDirectory => "the working directory".to_owned(),
    }
}

fn no_target(flag: &str, mount: &Mount, found: &Found) -> ConfigError {
    let target = quoted(&mount.target);
    if *found != Found::Missing {
        return refuse!(
            "cannot use {flag}: {target} is a symlink there; name the path that it leads to"
        );
    }
    match mount.kind.hides() {
        true => {
            refuse!("cannot use {flag}: {target} does not exist; correct the path or leave it out")
        }
        false => refuse!(
            "cannot use {flag}: there is no {target} to mount it on; create it first, or choose a \
             place below /tmp or a --tmpfs"
        ),
    }
}

#[cfg(test)]
mod tests;
