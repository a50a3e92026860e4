//! A run's description as an image carries it, and the way back.
//!
//! Owns the saved form of [`RunSpec`] and its checks. What is saved is hostile when it comes back: it can
//! ask for nothing that [`resolve`](super::resolve) could not grant to the restoring user here and now.
//! So everything that depends on the host (ids, limits, defaults, what is hidden) is decided anew, the
//! user's rules are rules again, and what was hidden when it was saved stays hidden besides. Not carried:
//! descriptors (they are the guests' by then), which variables were withheld, and the wish to do without
//! Landlock, since that is a wall.

mod grants;
mod identity;
mod mounts;
mod network;
mod wishes;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::error::refuse;
use super::files::DENIED_BUT;
use super::paths::{Kind, check, quoted};
use super::{
    ConfigError, Host, Mount, MountKind, Network, Root, RuleKind, RunSpec, Voice, Why, Without,
};
use super::{check_container, check_hostname, check_program, files, homes, root};
use crate::sentry::Features;
pub use grants::grants;
use identity::SavedIdentity;
use network::SavedReach;
use wishes::{SavedLimits, SavedTime};

/// Mounts in a saved run at most: as many as one mount namespace takes (fs.mount-max, proc_sys_fs(5)).
const MOUNTS_MAX: usize = 100_000;
/// Bytes of all arguments and variables together at most: more than execve(2) takes on any host.
const WORDS_MAX: usize = 16 << 20;
/// The name of a path at most (PATH_MAX, limits.h).
const PATH_MAX: usize = 4096;

/// [`RunSpec`] as an image carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSpec {
    /// The program and its arguments.
    pub argv: Vec<ByteBuf>,
    /// The guest's environment.
    pub environment: Vec<(ByteBuf, ByteBuf)>,
    /// Where the program started.
    pub workdir: ByteBuf,
    /// Its container.
    pub container: String,
    /// The host name inside, if it is not the host's.
    pub hostname: Option<ByteBuf>,
    /// Who the guest was.
    pub identity: SavedIdentity,
    /// It took itself for root (`--root`). Who does not know this word may not go on without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
    /// The host's network instead of its own.
    pub host_network: bool,
    /// Which hosts might be reached from its own, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<SavedReach>,
    /// Ports of the host that led inside, as `--publish` is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// The file view.
    pub mounts: Vec<SavedMount>,
    /// What it might use.
    pub limits: SavedLimits,
    /// [`Features`], as a number.
    pub features: u32,
    /// [`Without`], as a number.
    pub without: u32,
    /// How much was said: 0 quiet, 1 normal, 2 verbose.
    pub voice: u8,
    /// The sandbox's own clock.
    pub time: Option<SavedTime>,
    /// What random bytes are made of, in a run that repeats (`--deterministic`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deterministic: Option<ByteBuf>,
}

/// [`Mount`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMount {
    /// Where the guest found it.
    pub target: ByteBuf,
    /// What was there.
    pub kind: SavedKind,
    /// Which rule put it there.
    pub by: SavedRule,
}

/// [`MountKind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedKind {
    /// This path of the host, read-only.
    ReadOnly(ByteBuf),
    /// This path of the host.
    Writable(ByteBuf),
    /// A directory in memory with this mode.
    Tmpfs(u32),
    /// See [`MountKind`], here and below.
    HiddenDirectory,
    /// See there.
    HiddenFile,
    /// See there.
    DeniedDirectory,
    /// See there.
    DeniedFile,
    /// See there.
    Proc,
    /// See there.
    Sys,
    /// See there.
    Dev,
    /// This directory of the host, changed for the guest alone. What it is made of is found anew.
    Overlay(ByteBuf),
}

/// [`Why`]; its words are found anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedRule {
    /// A default of every run.
    Default,
    /// The working directory of the run.
    WorkingDirectory,
    /// A flag.
    Flag,
    /// A flag that excepts it from what is hidden or denied of an overlay.
    Exception,
}

impl SavedSpec {
    /// What is kept of `spec`.
    pub fn of(spec: &RunSpec) -> SavedSpec {
        SavedSpec {
            argv: spec.argv.iter().map(bytes).collect(),
            environment: spec.environment.iter().map(|(n, v)| (bytes(n), bytes(v))).collect(),
            workdir: bytes(&spec.workdir),
            container: spec.container.clone(),
            hostname: spec.hostname.as_ref().map(bytes),
            identity: SavedIdentity::of(&spec.identity),
            root: spec.root == Root::Believed,
            host_network: spec.network == Network::Host,
            reach: SavedReach::of(spec),
            publish: spec.publish.iter().map(ToString::to_string).collect(),
            mounts: spec.mounts.iter().filter_map(SavedMount::of).collect(),
            limits: SavedLimits::of(&spec.limits),
            features: spec.features.difference(Features::OF_THIS_RUN).bits(),
            without: spec.without.bits(),
            voice: match spec.voice {
                Voice::Quiet => 0,
                Voice::Normal => 1,
                Voice::Verbose => 2,
            },
            time: spec.time.map(SavedTime::of),
            deterministic: spec.deterministic.as_ref().map(|it| ByteBuf::from(it.seed.clone())),
        }
    }

    /// The run again, for the user and on the machine that `host` describes.
    ///
    /// # Errors
    /// The first thing that this user cannot have here, with what to do.
    pub fn restore(&self, host: &Host) -> Result<RunSpec, ConfigError> {
        let argv: Vec<OsString> = self.argv.iter().map(text).collect();
        check_program(&argv)?;
        let environment = self.environment()?;
        let workdir = path("the working directory", &self.workdir)?;
        let identity = self.identity.restore(host, self.root)?;
        let limits = self.limits.restore(host, &identity)?;
        let time = self.time.map(SavedTime::restore).transpose()?;
        let voice = match self.voice {
            0 => Voice::Quiet,
            1 => Voice::Normal,
            2 => Voice::Verbose,
            _ => return Err(unknown("the voice", self.voice.into())),
        };
        let (saved, own) = (self.features()?, self.without()?);
        let mut features = Features::ALWAYS;
        features.set(Features::EXEC_EVENTS, saved.contains(Features::EXEC_EVENTS));
        features.set(Features::KMSG, saved.contains(Features::KMSG));
        features.set(Features::FOREIGN_IDS, host.uid != 0);
        features.insert(Features::RESTORED);
        features.set(Features::ROOT, self.root);
        features |= super::derived_features(&limits, time.as_ref());
        let (network, reach, net_log) = self.network()?;
        features.set(Features::NETWORK, network == Network::Allow);
        let publish = self.published(network)?;
        let mounts = self.view(host, &workdir, identity.uid)?;
        features |= syncs(saved, &mounts);
        let without = match host.time_namespaces {
            true => own,
            false => own | Without::TIME_NAMESPACES,
        };
        let spec = RunSpec {
            argv,
            environment,
            withheld: Vec::new(),
            mounts,
            idle: Vec::new(),
            coming: None,
            workdir,
            container: check_container(&self.container)?,
            hostname: match &self.hostname {
                Some(name) => Some(check_hostname(OsStr::from_bytes(name))?),
                None => None,
            },
            identity,
            root: if self.root { Root::Believed } else { Root::No },
            time,
            deterministic: None,
            network,
            walls: super::Walls::Namespaces,
            landlock: true,
            reach,
            net_log,
            asks: Default::default(),
            publish,
            descriptors: Vec::new(),
            limits,
            features,
            without,
            voice,
        };
        Ok(spec.with_deterministic(self.repeats()?))
    }

    /// The directories whose changes were the sandbox's own. Unchecked.
    pub fn overlays(&self) -> impl Iterator<Item = &[u8]> {
        self.mounts.iter().filter_map(|mount| match &mount.kind {
            SavedKind::Overlay(source) if mount.by != SavedRule::Exception => Some(&source[..]),
            _ => None,
        })
    }

    /// The paths of the host that the user or the working directory showed: source, target, whether it
    /// could be changed. Unchecked.
    pub fn shown(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        self.mounts.iter().filter_map(|mount| match &mount.kind {
            SavedKind::ReadOnly(source) => Some((&source[..], &mount.target[..], false)),
            SavedKind::Overlay(source) if mount.by == SavedRule::Exception => {
                Some((&source[..], &mount.target[..], false))
            }
            SavedKind::Writable(source) => Some((&source[..], &mount.target[..], true)),
            _ => None,
        })
    }

    /// Variables are for programs that are started later.
    fn environment(&self) -> Result<Vec<(OsString, OsString)>, ConfigError> {
        let words = self.environment.iter().flat_map(|(name, value)| [name, value]);
        let total: usize = words.chain(&self.argv).map(|word| word.len() + 1).sum();
        if total > WORDS_MAX {
            return Err(refuse!(
                "cannot restore its environment: arguments and variables have {total} bytes, which no \
                 program can be given"
            ));
        }
        let sound = |name: &ByteBuf, value: &ByteBuf| {
            !name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0)
        };
        match self.environment.iter().find(|(name, value)| !sound(name, value)) {
            Some((name, _)) => Err(refuse!(
                "cannot restore its environment: {} is no variable",
                quoted(text(name))
            )),
            None => Ok(self.environment.iter().map(|(n, v)| (text(n), text(v))).collect()),
        }
    }

    /// What a flag has asked for that shows this: `--ro /proc:DST` means another thing to root inside.
    fn asked_for(&self, kind: MountKind) -> MountKind {
        match kind {
            MountKind::Proc if self.root => MountKind::ReadOnly { source: "/proc".into() },
            kind => kind,
        }
    }

    fn features(&self) -> Result<Features, ConfigError> {
        Features::from_bits(self.features).ok_or_else(|| unknown("the features", self.features))
    }

    fn without(&self) -> Result<Without, ConfigError> {
        let saved = Without::from_bits(self.without);
        let saved = saved.ok_or_else(|| unknown("the facilities", self.without))?;
        Ok(saved - Without::LANDLOCK - Without::OVERLAYFS)
    }

    /// The file view, arranged anew of the user's rules; with what was hidden besides.
    fn view(&self, host: &Host, workdir: &Path, uid: u32) -> Result<Vec<Mount>, ConfigError> {
        if self.mounts.len() > MOUNTS_MAX {
            return Err(refuse!("cannot restore its file view: it has too many mounts"));
        }
        let account = host.accounts.by_uid(uid).ok().flatten();
        let homes = homes(host, account.as_ref());
        let mut again = files::Again {
            workdir,
            opened: None,
            rules: vec![],
            exceptions: vec![],
            hidden: vec![],
        };
        let mut targets = HashSet::new();
        let mut needed = Vec::new();
        for mount in &self.mounts {
            let target = place(&mount.target)?;
            if !targets.insert(target.clone()) {
                return Err(wrong(&target, "is mounted twice"));
            }
            match (mount.by, mount.kind.restore()?) {
                (SavedRule::Flag, kind) => {
                    again.rules.push(rule(host, target, self.asked_for(kind))?);
                }
                (
                    SavedRule::WorkingDirectory,
                    kind @ (MountKind::Writable { .. } | MountKind::Overlay { .. }),
                ) if kind.source() == Some(&*target) && target == workdir => {
                    let place = find(host, &target)?;
                    if place != (target.clone(), Kind::Directory) {
                        return Err(moved(&target, &place.0));
                    }
                    again.opened = Some(kind);
                }
                (SavedRule::Exception, MountKind::Overlay { source, .. }) if source == target => {
                    let place = find(host, &target)?;
                    if place != (target.clone(), Kind::Directory) {
                        return Err(moved(&target, &place.0));
                    }
                    again.exceptions.push(target);
                }
                (SavedRule::Default, kind) if kind.hides() => {
                    again.hidden.push((target, kind.denies()));
                }
                // A hidden directory in which something shows; perhaps none that is hidden here by default.
                (SavedRule::Default, kind @ MountKind::Tmpfs { mode: 0o755 })
                    if !files::is_default(host, &target) =>
                {
                    again.hidden.push((target.clone(), false));
                    needed.push((target, kind));
                }
                (SavedRule::Default, kind) if kind.source().is_some() => {
                    return Err(wrong(&target, "is mounted in a way that no run has"));
                }
                (SavedRule::WorkingDirectory | SavedRule::Exception, _) => {
                    return Err(wrong(&target, "is mounted in a way that no run has"));
                }
                (SavedRule::Default, kind) => needed.push((target, kind)),
            }
        }
        let mut view = files::arrange_again(host, again, &homes)?;
        if self.root {
            root::give_proc(&mut view);
        }
        // Guests may have files there.
        for (target, kind) in needed {
            if view.at(&target).is_none_or(|mount| mount.kind != kind) {
                return Err(refuse!(
                    "cannot restore its file view: the sandbox had {} of its own, and on this host \
                     there is no such directory; create it",
                    quoted(&target)
                ));
            }
        }
        Ok(view.into_mounts())
    }
}

/// Which calls that wait for the disk trap, of those that did: they are about overlays, and sync(2) about a run
/// that can change nothing of the host.
fn syncs(saved: Features, mounts: &[Mount]) -> Features {
    let has = |wanted: fn(&MountKind) -> bool| mounts.iter().any(|mount| wanted(&mount.kind));
    let mut kept = saved & (Features::FAKE_SYNC | Features::FAKE_SYNC_ALL);
    if !has(|kind| matches!(kind, MountKind::Overlay { .. })) {
        return Features::empty();
    }
    if has(|kind| matches!(kind, MountKind::Writable { .. })) {
        kept.remove(Features::FAKE_SYNC_ALL);
    }
    if kept.contains(Features::FAKE_SYNC) { kept } else { Features::empty() }
}

/// One of the user's rules again. Its words are made of what it does, so that they cannot lie.
fn rule(host: &Host, target: PathBuf, kind: MountKind) -> Result<Mount, ConfigError> {
    // A directory that is denied but for something in it, which is a rule of its own.
    let kind = if kind == DENIED_BUT { MountKind::DeniedDirectory } else { kind };
    let (flag, source) = match &kind {
        MountKind::ReadOnly { source } => (RuleKind::ReadOnly, Some(source)),
        MountKind::Writable { source } => (RuleKind::Writable, Some(source)),
        MountKind::Tmpfs { mode: 0o755 } => (RuleKind::Tmpfs, None),
        MountKind::HiddenDirectory | MountKind::HiddenFile => (RuleKind::Hide, None),
        MountKind::Overlay { source, .. } if *source == target => (RuleKind::Overlay, None),
        MountKind::DeniedDirectory | MountKind::DeniedFile => (RuleKind::Deny, None),
        _ => return Err(wrong(&target, "is mounted in a way that no flag asks for")),
    };
    let is_socket = source.is_some_and(|it| *it == target && files::is_socket(host, it));
    let flag = if is_socket && flag == RuleKind::ReadOnly { RuleKind::Socket } else { flag };
    let mut words = OsString::from(flag.flag());
    words.push(" ");
    let pair = match source {
        Some(source) if *source != target => {
            let mut pair = escape(source);
            pair.push(":");
            pair.push(escape(&target));
            pair
        }
        Some(source) => escape(source),
        None => target.clone().into(),
    };
    words.push(quoted(pair));
    if let Some(source) = source {
        let (place, found) = find(host, source)?;
        if place != *source {
            return Err(moved(source, &place));
        }
        let needed = match found {
            Kind::Directory => AccessFlags::X_OK,
            Kind::File => AccessFlags::R_OK,
            Kind::Missing => return Err(wrong(source, "does not exist any more; put it back")),
        };
        if flag == RuleKind::Socket {
            files::check_socket(host, "cannot restore its file view", source)?;
        } else if let Err(errno) = host.access(source, needed) {
            return Err(wrong(
                source,
                &format!("may not be read by you ({}); ask its owner for access", errno.desc()),
            ));
        }
    }
    let (place, _) = find(host, &target)?;
    if place != target {
        return Err(moved(&target, &place));
    }
    Ok(Mount { target, kind, why: Why::Flag(words.to_string_lossy().into_owned()) })
}

/// A colon of a path itself, as `PATH[:DST]` writes it.
fn escape(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let escaped = bytes.iter().flat_map(|byte| match byte {
        b':' => vec![b'\\', b':'],
        byte => vec![*byte],
    });
    OsString::from_vec(escaped.collect())
}

fn find(host: &Host, path: &Path) -> Result<(PathBuf, Kind), ConfigError> {
    match host.walk(path) {
        Ok(place) => Ok((place.path, place.kind)),
        Err(trouble) => Err(refuse!("cannot restore its file view: {}", trouble.words())),
    }
}

fn wrong(path: &Path, what: &str) -> ConfigError {
    refuse!("cannot restore its file view: {} {what}", quoted(path))
}

fn moved(path: &Path, to: &Path) -> ConfigError {
    if path == to {
        return wrong(path, "is no directory any more; put it back");
    }
    let to = format!("leads to {} by now; undo that", quoted(to));
    wrong(path, &to)
}

fn unknown(what: &str, number: u32) -> ConfigError {
    refuse!(
        "cannot restore {what} of the saved run ({number:#x}): this version does not know all of it; \
         use the version that saved it"
    )
}

fn bytes(text: impl AsRef<OsStr>) -> ByteBuf {
    ByteBuf::from(text.as_ref().as_bytes())
}

fn text(bytes: &ByteBuf) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// An absolute path without `.`, `..` and double slashes.
fn path(what: &str, bytes: &ByteBuf) -> Result<PathBuf, ConfigError> {
    let path = plain_path(what, bytes)?;
    check(what, &path)?;
    Ok(path)
}

/// One of a mount, which a pattern may have found: whatever is in its names.
fn place(bytes: &ByteBuf) -> Result<PathBuf, ConfigError> {
    plain_path("a mount", bytes)
}

fn plain_path(what: &str, bytes: &ByteBuf) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(text(bytes));
    let normal: PathBuf = path.components().collect();
    let plain = path.is_absolute()
        && normal.as_os_str() == path.as_os_str()
        && !path.components().any(|part| part == std::path::Component::ParentDir);
    if !plain || bytes.len() > PATH_MAX || bytes.contains(&0) {
        return Err(refuse!("cannot restore {what} {}: it is no such path", quoted(&path)));
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
