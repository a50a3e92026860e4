//! What a run did with files, compared with what it may do without a rule.
//!
//! The list of files says what was asked for. What the program's user could not have done natively either is
//! no need: that is judged by the permissions of the host's files, and by nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use super::super::paths::Found;
use super::super::{Host, Identity, Mount, MountKind, RuleKind, Shown, View, Why, homes};
use super::Seen;
use crate::sentry::file_log::{Kind, Touch, Touched};

/// Directories of the system that are too much to be opened for one file in them (hier(7)).
const SYSTEM: [&str; 15] = [
    "/", "/bin", "/boot", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/root",
    "/sbin", "/srv", "/usr", "/var",
];

/// A place that has to be writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// A directory that the program made, which the host does not have.
    pub(super) is_made: bool,
    /// How many paths there were written to.
    pub(super) count: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Places that have to be writable and are not by default.
    pub(super) places: BTreeMap<PathBuf, Place>,
    /// Something was written in the working directory, or it was asked whether that may be.
    pub(super) writes_workdir: bool,
    /// Directories that are too much to be writable, and what was to be made in them.
    pub(super) too_wide: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    /// What is hidden and was looked for, with the reason why it is.
    pub(super) hidden: BTreeMap<PathBuf, String>,
    /// What the host has where the sandbox has something of its own, and what that is.
    pub(super) covered: BTreeMap<PathBuf, String>,
    /// What a rule of the user's keeps from being changed, with the rule.
    pub(super) kept: BTreeMap<PathBuf, String>,
    /// What was looked for in homes and in the working directory, and is nowhere: by the directory that lacks it.
    pub(super) absent: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    /// What was executed.
    pub(super) executed: BTreeSet<PathBuf>,
    /// How many files were read, and written to or made.
    pub(super) read: usize,
    pub(super) written: usize,
    /// Calls of which nobody could tell what they were about.
    pub(super) untold: u64,
    homes: Vec<PathBuf>,
    /// The directories of PATH.
    searched: BTreeSet<PathBuf>,
    writer: Writer,
}

/// Who writes inside, as the host knows them.
#[derive(Debug, Default, Clone, Copy)]
struct Writer {
    uid: u32,
    gid: u32,
    /// Only the permission bits count: the caller may do what the program may not.
    by_bits: bool,
}

impl Needs {
    /// What the run that was seen needs besides what `view` gives.
    pub(super) fn of(seen: &Seen<'_>, view: &View, host: &Host) -> Needs {
        let own = View::of(&seen.spec.mounts);
        let account = host.accounts.by_uid(seen.spec.identity.uid).ok().flatten();
        let real = |home: PathBuf| host.walk(&home).map_or(home, |place| place.path);
        let mut needs = Needs {
            homes: homes(host, account.as_ref()).into_iter().map(real).collect(),
            searched: searched(seen).filter_map(|it| Some(host.walk(&it).ok()?.path)).collect(),
            writer: Writer::of(&seen.spec.identity, host),
            untold: seen.report.untold
                - seen.report.closed.len().min(seen.report.untold as usize) as u64,
            ..Needs::default()
        };
        let made = Made::of(&seen.report.files, host);
        for touched in &seen.report.files {
            needs.touched(touched, seen, &own, view, &made, host);
        }
        let is_made = |path: &&Vec<u8>| {
            let found = seen.report.files.binary_search_by(|touched| touched.path.cmp(path));
            found.is_ok_and(|at| seen.report.files[at].touch.contains(Touch::CREATED))
        };
        // (What was looked for before it was made is not missed.)
        let missing = seen.report.missing.iter().filter(|path| !is_made(path));
        for path in missing.chain(&seen.report.closed) {
            needs.missed(Path::new(OsStr::from_bytes(path)), &seen.spec.workdir, &own, host);
        }
        needs
    }

    /// Something that is, or was, there.
    fn touched(
        &mut self,
        touched: &Touched,
        seen: &Seen<'_>,
        own: &View,
        view: &View,
        made: &Made,
        host: &Host,
    ) {
        let path = Path::new(OsStr::from_bytes(&touched.path));
        let is_file = !matches!(touched.kind, Kind::Kernel | Kind::Directory);
        self.read += usize::from(is_file && touched.touch.contains(Touch::READ));
        if touched.touch.contains(Touch::EXECUTED) {
            self.executed.insert(path.to_owned());
        }
        let by = match own.shown(path) {
            Shown::Hidden(mount) => return self.is_hidden(mount),
            Shown::Host { by, .. } if touched.kind != Kind::Kernel => by,
            _ => return,
        };
        let workdir = &seen.spec.workdir;
        let asked = touched.touch.contains(Touch::ASKED) && path.starts_with(workdir);
        self.writes_workdir |= asked;
        if !touched.touch.may_change() {
            return;
        }
        if let Some(Mount {
            kind: MountKind::ReadOnly { .. },
            // (What a pattern has found. A file that is an exception is so in an overlay alone.)
            why: Why::Flag(flag) | Why::Derived(flag),
            ..
        }) = by
            && !flag.starts_with(RuleKind::Allow.flag())
        {
            self.kept.insert(path.to_owned(), flag.clone());
            return;
        }
        let Some((place, is_made)) = self.place(path, touched, made, host) else { return };
        self.written += usize::from(is_file);
        self.writes_workdir |= place.starts_with(workdir);
        let open = match view.shown(&place) {
            Shown::Host { by, .. } => by.is_some_and(|mount| mount.kind.is_writable()),
            Shown::Private(_) => true,
            Shown::Hidden(mount) => return self.is_hidden(mount),
        };
        if open {
            return;
        }
        if !is_made && self.is_wide(&place) {
            self.too_wide.entry(place).or_default().insert(path.to_owned());
            return;
        }
        let known = self.places.entry(place).or_insert(Place { is_made, count: 0 });
        known.count += 1;
    }

    /// The place that has to be writable for that, and whether the program has made it; none if its user may
    /// not write there.
    fn place(
        &self,
        path: &Path,
        touched: &Touched,
        made: &Made,
        host: &Host,
    ) -> Option<(PathBuf, bool)> {
        let names = Touch::CREATED | Touch::REMOVED | Touch::REPLACED;
        if !touched.touch.intersects(names) && touched.kind != Kind::Link {
            let is_kind = matches!(touched.kind, Kind::File | Kind::Directory);
            let changes = touched.touch.contains(Touch::CHANGED);
            let may = self.may_write(path, host) || changes && self.owns(path, host);
            return (is_kind && may).then(|| (path.to_owned(), false));
        }
        // The first directory on the way that the host does not have.
        let missing = |path: &&Path| matches!(host.look(path), Ok(Found::Missing));
        let first = path.ancestors().take_while(missing).last();
        let parent = first.unwrap_or(path).parent()?;
        if !self.may_write(parent, host) || host.look(parent) != Ok(Found::Directory) {
            return None;
        }
        match first.filter(|first| made.stays(first)) {
            Some(first) => Some((first.to_owned(), true)),
            None => Some((parent.to_owned(), false)),
        }
    }

    /// Something that was looked for in vain.
    fn missed(&mut self, path: &Path, workdir: &Path, own: &View, host: &Host) {
        let is_there = || host.real(path).exists();
        match own.shown(path) {
            Shown::Hidden(mount) => self.is_hidden(mount),
            Shown::Private(mount) if is_own_place(mount) && is_there() => {
                let words = match &mount.why {
                    Why::Default(words) => (*words).to_owned(),
                    Why::Flag(flag) | Why::Derived(flag) => flag.clone(),
                    Why::WorkingDirectory => "the working directory".to_owned(),
                };
                self.covered.insert(path.to_owned(), words);
            }
            Shown::Host { .. } => {
                let near = path.starts_with(workdir)
                    || self.homes.iter().any(|home| path.starts_with(home));
                // (Where programs are looked for says nothing of what one needs.)
                let searched = path.parent().is_some_and(|it| self.searched.contains(it));
                let missing = |path: &&Path| matches!(host.look(path), Ok(Found::Missing));
                let first = path.ancestors().take_while(missing).last();
                if near
                    && !searched
                    && !is_there()
                    && let Some(first) = first
                    && let Some(directory) = first.parent()
                {
                    let names = self.absent.entry(directory.to_owned()).or_default();
                    names.insert(first.to_owned());
                }
            }
            Shown::Private(_) => {}
        }
    }

    fn is_hidden(&mut self, mount: &Mount) {
        let why = match &mount.why {
            Why::Default(what) => (*what).to_owned(),
            Why::Flag(flag) | Why::Derived(flag) => flag.clone(),
            Why::WorkingDirectory => return,
        };
        self.hidden.insert(mount.target.clone(), why);
    }

    /// Whether a directory is too much to be opened for what is in it.
    fn is_wide(&self, directory: &Path) -> bool {
        let is_system = SYSTEM.iter().any(|known| directory == Path::new(known));
        is_system || self.homes.iter().any(|home| home.starts_with(directory))
    }

    /// Whether a directory can stand for places in it.
    pub(super) fn may_stand(&self, directory: &Path, host: &Host) -> bool {
        let is_top = directory.parent().is_none_or(|above| above == Path::new("/"));
        !is_top
            && !self.is_wide(directory)
            && host.access(directory, AccessFlags::R_OK).is_ok()
            && self.may_write(directory, host)
    }

    /// Whether the program's user may write to something of the host.
    fn may_write(&self, path: &Path, host: &Host) -> bool {
        let Ok(found) = host.real(path).metadata() else { return false };
        let how = match found.is_dir() {
            true => AccessFlags::W_OK | AccessFlags::X_OK,
            false => AccessFlags::W_OK,
        };
        // (That tells of file systems that are read-only, and of access control lists.)
        host.access(path, how).is_ok() && self.writer.may_write(&found)
    }

    fn owns(&self, path: &Path, host: &Host) -> bool {
        host.real(path).symlink_metadata().is_ok_and(|found| found.uid() == self.writer.uid)
    }
}

/// Where programs are looked for.
fn searched(seen: &Seen<'_>) -> impl Iterator<Item = PathBuf> {
    let path = seen.spec.environment.iter().find(|(name, _)| name == "PATH");
    let all = path.map(|(_, value)| std::env::split_paths(value).collect::<Vec<_>>());
    all.unwrap_or_default().into_iter().filter(|it| it.is_absolute())
}

/// Whether the sandbox has a place for itself, in which things of the host are out of sight.
fn is_own_place(mount: &Mount) -> bool {
    matches!(mount.kind, MountKind::Tmpfs { .. } | MountKind::Dev)
}

impl Writer {
    fn of(identity: &Identity, host: &Host) -> Writer {
        let outside = |id: u32, map: &[super::super::IdRange]| {
            map.iter().find_map(|range| {
                let offset = id.checked_sub(range.inside).filter(|it| *it < range.count)?;
                range.outside.checked_add(offset)
            })
        };
        let uid = outside(identity.uid, &identity.uid_map).unwrap_or(u32::MAX);
        let gid = outside(identity.gid, &identity.gid_map).unwrap_or(u32::MAX);
        // Inside nobody has capabilities, root neither.
        Writer { uid, gid, by_bits: host.uid == 0 || host.uid != uid }
    }

    fn may_write(self, found: &std::fs::Metadata) -> bool {
        let bit = match (found.uid() == self.uid, found.gid() == self.gid) {
            (true, _) => libc::S_IWUSR,
            (_, true) => libc::S_IWGRP,
            _ => libc::S_IWOTH,
        };
        !self.by_bits || found.mode() & bit != 0
    }
}

/// Directories that the program made for good, and the host does not have.
struct Made(BTreeSet<PathBuf>);

impl Made {
    fn of(files: &[Touched], host: &Host) -> Made {
        let gone = Touch::REMOVED | Touch::REPLACED;
        let stays = |touched: &&Touched| {
            touched.kind == Kind::Directory
                && touched.after.is_some()
                && touched.touch.contains(Touch::CREATED)
                // What has got its name later, or lost it for a time, cannot be made beforehand.
                && !touched.touch.intersects(gone)
        };
        let paths = files.iter().filter(stays).map(|it| PathBuf::from(OsStr::from_bytes(&it.path)));
        Made(paths.filter(|path| host.look(path) == Ok(Found::Missing)).collect())
    }

    fn stays(&self, path: &Path) -> bool {
        self.0.contains(path)
    }
}
