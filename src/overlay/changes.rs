//! What an overlay changes of the host's directories, found by comparing the two.
//!
//! Owns the walk and the words for a change. Only what is in a layer is looked at, and what it hides: an
//! overlay of everything costs what was changed. The walk keeps its own stack, two descriptors a level, and
//! ends where paths are longer than any program can use.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat};

use super::apply::PATH_MAX;
use super::description::path;
use super::entry::{self, Type};
use super::error::{OverlayError, refuse};
use super::store::Kept;
use super::{believed, compare, store, twin};
use crate::config::quoted;
use crate::sentry::beliefs::Belief;
use crate::sys::{descriptors, files};

/// What was done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The host has nothing there.
    Added,
    /// Its content is another one (of a file or a link).
    Modified,
    /// Only its mode, owner or extended attributes are others.
    Attributes,
    /// It is of another type.
    Type,
    /// It was removed, a directory with all that is in it.
    Deleted,
}

impl Kind {
    /// The letter that stands for it.
    pub fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Modified => 'M',
            Kind::Attributes => 'P',
            Kind::Type => 'T',
            Kind::Deleted => 'D',
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Added => "added",
            Kind::Modified => "modified",
            Kind::Attributes => "attributes",
            Kind::Type => "type",
            Kind::Deleted => "deleted",
        }
    }
}

bitflags::bitflags! {
    /// In what a path differs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct What: u8 {
        /// Bytes of a file, or where a link leads.
        const CONTENT = 1;
        /// Permissions.
        const MODE = 1 << 1;
        /// User or group.
        const OWNER = 1 << 2;
        /// Extended attributes, among them access control lists.
        const XATTRS = 1 << 3;
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Of which path of the host.
    pub path: PathBuf,
    /// What was done to it.
    pub kind: Kind,
    /// Of what the host has there too: in what it differs.
    pub what: What,
    /// What the host has there.
    pub before: Option<Type>,
    /// What the overlay has there.
    pub now: Option<Type>,
    /// Bytes of the file that the overlay has there.
    pub size: u64,
    /// A directory that is so deep that it was not looked into.
    pub too_deep: bool,
    /// Names of attributes of the overlay's that no commit gives the host.
    pub withheld: Vec<String>,
    /// Owner, set-id bits and the like that a run with `--root` believed in, in words.
    pub believed: Option<String>,
    /// It stands for a file of the host's that nobody could read.
    pub hollow: bool,
    /// The layer that it is in.
    pub(super) layer: usize,
    /// Where it is below the directory of the layer.
    pub(super) relative: PathBuf,
}

/// A directory that is being walked.
struct Frame {
    layer: usize,
    /// Below the directory of the layer.
    relative: PathBuf,
    upper: OwnedFd,
    host: Option<OwnedFd>,
    names: IntoIter<OsString>,
    /// What the host has and the layer does not name is removed.
    opaque: bool,
    /// The mode that it has to get back.
    mode: Option<u32>,
}

/// The walk: every change of an overlay, a directory before what is in it, names in order, layer by layer.
pub struct Changes<'k> {
    kept: &'k Kept,
    /// Nobody else uses the overlay: what its owner may not read is made readable for a moment.
    alone: bool,
    _lock: Option<store::Lock>,
    layers: std::ops::Range<usize>,
    stack: Vec<Frame>,
    failed: bool,
    /// Files of layers with more than one name that are as on the host: device, inode, and where.
    pub(super) same_links: Vec<((u64, u64), usize, PathBuf)>,
}

/// The descriptor of a directory of the host, found without following anything.
pub(super) fn open_host(place: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(AT_FDCWD, place, how)
}

impl Kept {
    /// What it changes of the host.
    pub fn changes(&self) -> Changes<'_> {
        let mut changes = Changes::of(self, false);
        changes._lock = self.lock().ok();
        changes.alone = changes._lock.is_some();
        changes
    }
}

impl<'k> Changes<'k> {
    /// The same for who knows whether the overlay is in use.
    pub(super) fn of(kept: &'k Kept, alone: bool) -> Changes<'k> {
        // (Each level of a tree takes some.)
        descriptors::raise_limit();
        let layers = 0..kept.description.layers.len();
        Changes {
            kept,
            alone,
            _lock: None,
            layers,
            stack: Vec::new(),
            failed: false,
            same_links: Vec::new(),
        }
    }

    fn step(&mut self) -> Result<Option<Change>, OverlayError> {
        loop {
            let Some(frame) = self.stack.last_mut() else {
                match self.layers.next() {
                    None => return Ok(None),
                    Some(layer) => {
                        if let Some(change) = self.begin(layer)? {
                            return Ok(Some(change));
                        }
                        continue;
                    }
                }
            };
            match frame.names.next() {
                None => {
                    if let Some(frame) = self.stack.pop() {
                        give_back(&frame);
                    }
                }
                Some(name) => {
                    if let Some(change) = self.look_at(&name)? {
                        return Ok(Some(change));
                    }
                }
            }
        }
    }

    /// The directory of a layer itself.
    fn begin(&mut self, layer: usize) -> Result<Option<Change>, OverlayError> {
        let note = &self.kept.description.layers[layer];
        let place = note.path();
        let fail = |errno: Errno| trouble(&place, errno);
        if twin::has_twin(self.kept.directory.as_fd(), layer) {
            return Err(refuse!(
                "cannot tell what has changed in the overlay {}: a run uses it, and where there is no overlayfs \
                 that is known when it has ended; wait for that",
                self.kept.id
            ));
        }
        let upper = self.kept.layer(layer, "upper")?;
        let host = match open_host(&place) {
            Ok(host) => Some(host),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => None,
            // It is closed to this user now; then it matters only if something was changed in it.
            Err(Errno::EACCES) if entry::names(upper.as_fd()).is_ok_and(|it| it.is_empty()) => {
                return Ok(None);
            }
            Err(errno) => return Err(fail(errno)),
        };
        let mut change = None;
        if let Some(host) = &host {
            let (now, before) = (stat(&upper).map_err(fail)?, stat(host).map_err(fail)?);
            let what = self.attributes(layer, Path::new(""), (&upper, &now), (host, &before));
            let what = what.map_err(fail)?;
            if !what.is_empty() {
                let withheld = entry::withheld(upper.as_fd(), Some(host.as_fd()));
                change = Some(Change {
                    path: place.clone(),
                    kind: Kind::Attributes,
                    what,
                    before: Some(Type::Directory),
                    now: Some(Type::Directory),
                    size: 0,
                    too_deep: false,
                    withheld: withheld.map_err(fail)?,
                    believed: believed::words(&now, &believed::of(upper.as_fd(), &now)),
                    hollow: false,
                    layer,
                    relative: PathBuf::new(),
                });
            }
        }
        let mode = stat(&upper).map_err(fail)?.st_mode;
        let closed = mode & libc::S_IRWXU != libc::S_IRWXU && !nix::unistd::geteuid().is_root();
        if closed && !self.alone {
            return Ok(change);
        }
        if closed {
            set_mode(upper.as_fd(), mode | libc::S_IRWXU).map_err(fail)?;
        }
        self.enter(layer, PathBuf::new(), upper, host, closed.then_some(mode)).map_err(fail)?;
        Ok(change)
    }

    fn enter(
        &mut self,
        layer: usize,
        relative: PathBuf,
        upper: OwnedFd,
        host: Option<OwnedFd>,
        mode: Option<u32>,
    ) -> Result<(), Errno> {
        let opaque = entry::is_opaque(upper.as_fd());
        let mut names = entry::names(upper.as_fd())?;
        if let (true, Some(host)) = (opaque, &host) {
            names.extend(entry::names(host.as_fd())?);
            names.sort();
            names.dedup();
        }
        let names = names.into_iter();
        self.stack.push(Frame { layer, relative, upper, host, names, opaque, mode });
        Ok(())
    }

    /// What became of one name of the directory that is on top.
    fn look_at(&mut self, name: &OsStr) -> Result<Option<Change>, OverlayError> {
        let Some(frame) = self.stack.last() else { return Ok(None) };
        let (layer, relative) = (frame.layer, frame.relative.join(name));
        let place = self.kept.description.layers[layer].path().join(&relative);
        self.judge(layer, name, relative, &place).map_err(|errno| trouble(&place, errno))
    }

    fn judge(
        &mut self,
        layer: usize,
        name: &OsStr,
        relative: PathBuf,
        place: &Path,
    ) -> Result<Option<Change>, Errno> {
        let Some(frame) = self.stack.last() else { return Ok(None) };
        let upper = frame.upper.as_fd();
        let now = entry::look(upper, name)?;
        let before = match &frame.host {
            Some(host) => entry::look(host.as_fd(), name)?,
            None => None,
        };
        let removed = match &now {
            None if !frame.opaque => return Ok(None),
            None => true,
            Some(stat) => entry::is_whiteout(upper, name, stat)?,
        };
        let change = |kind, what, now: Option<&FileStat>| Change {
            path: place.to_owned(),
            kind,
            what,
            before: before.as_ref().map(Type::of),
            now: now.map(Type::of),
            size: now.filter(|it| Type::of(it) == Type::File).map_or(0, |it| it.st_size as u64),
            too_deep: false,
            withheld: Vec::new(),
            believed: None,
            hollow: false,
            layer,
            relative: relative.clone(),
        };
        let Some(now) = now.filter(|_| !removed) else {
            return Ok(before.is_some().then(|| change(Kind::Deleted, What::empty(), None)));
        };
        let same_type = before.as_ref().is_some_and(|it| Type::of(it) == Type::of(&now));
        let kind = if before.is_none() { Kind::Added } else { Kind::Type };
        let mut found = match (&before, &frame.host) {
            (Some(before), Some(host)) if same_type => {
                let what =
                    self.differ(layer, &relative, name, (upper, &now), (host.as_fd(), before))?;
                let kind = match what.contains(What::CONTENT) {
                    true => Kind::Modified,
                    false => Kind::Attributes,
                };
                (!what.is_empty()).then(|| change(kind, what, Some(&now)))
            }
            _ => Some(change(kind, What::empty(), Some(&now))),
        };
        if let Some(found) = &mut found
            && matches!(found.now, Some(Type::File | Type::Directory | Type::Fifo))
        {
            // (Most have no attributes, which is found out by one call.)
            let belief = if entry::attribute_names_at(upper, name)?.is_empty() {
                Belief::default()
            } else {
                let place = entry::open_path(upper, name)?;
                let host = match &frame.host {
                    Some(host) if before.is_some() => Some(entry::open_path(host.as_fd(), name)?),
                    _ => None,
                };
                found.withheld = entry::withheld(place.as_fd(), host.as_ref().map(OwnedFd::as_fd))?;
                believed::of(place.as_fd(), &now)
            };
            found.believed = believed::words(&now, &belief);
            found.hollow = belief.hollow;
            if belief.device_of(now.st_mode).is_some() {
                found.now = Some(Type::Device);
            }
        }
        if found.is_none() && Type::of(&now) == Type::File && now.st_nlink > 1 {
            self.same_links.push(((now.st_dev, now.st_ino), layer, relative.clone()));
        }
        if Type::of(&now) == Type::Directory && relative.as_os_str().len() > PATH_MAX {
            // Whatever is in it is told of as one change, so that a guest cannot make paths without end.
            let mut found =
                found.unwrap_or_else(|| change(Kind::Modified, What::CONTENT, Some(&now)));
            found.too_deep = true;
            return Ok(Some(found));
        }
        if Type::of(&now) == Type::Directory {
            let host = match &frame.host {
                Some(host) if same_type => Some(entry::open_directory(host.as_fd(), name)?),
                _ => None,
            };
            let (directory, mode) = self.open_upper(upper, name, &now)?;
            if let Some(directory) = directory {
                self.enter(layer, relative, directory, host, mode)?;
            }
        }
        Ok(found)
    }

    /// In what two entries of the same type and name differ.
    fn differ(
        &self,
        layer: usize,
        relative: &Path,
        name: &OsStr,
        upper: (BorrowedFd<'_>, &FileStat),
        host: (BorrowedFd<'_>, &FileStat),
    ) -> Result<What, Errno> {
        let (one, other) = (entry::open_path(upper.0, name)?, entry::open_path(host.0, name)?);
        let mut what = self.attributes(layer, relative, (&one, upper.1), (&other, host.1))?;
        let content = match Type::of(upper.1) {
            Type::File if upper.1.st_size != host.1.st_size => true,
            Type::File => !self.same_content(name, upper, host)?,
            Type::Link => readlinkat(upper.0, name)? != readlinkat(host.0, name)?,
            Type::Device => upper.1.st_rdev != host.1.st_rdev,
            _ => false,
        };
        what.set(What::CONTENT, content);
        Ok(what)
    }

    fn same_content(
        &self,
        name: &OsStr,
        upper: (BorrowedFd<'_>, &FileStat),
        host: (BorrowedFd<'_>, &FileStat),
    ) -> Result<bool, Errno> {
        let one = open_upper_file(upper.0, name, upper.1, self.alone);
        match (one, entry::open_file(host.0, name)) {
            (Ok(one), Ok(other)) => {
                compare::same_content(one.as_fd(), other.as_fd(), upper.1.st_size as u64)
            }
            // What cannot be read is taken to be another one: it was copied up, or made anew.
            (Err(Errno::EACCES), _) | (_, Err(Errno::EACCES | Errno::EPERM)) => Ok(false),
            (Err(errno), _) | (_, Err(errno)) => Err(errno),
        }
    }

    fn attributes(
        &self,
        layer: usize,
        relative: &Path,
        upper: (&OwnedFd, &FileStat),
        host: (&OwnedFd, &FileStat),
    ) -> Result<What, Errno> {
        let note = &self.kept.description.layers[layer];
        if note.scaffold.iter().any(|it| path(it) == relative) {
            return Ok(What::empty());
        }
        compare::attributes((upper.0.as_fd(), upper.1), (host.0.as_fd(), host.1))
    }

    /// Opens a directory of a layer, and gives the mode that it gets back where that has to be changed.
    /// None: it cannot be read while a run uses it.
    fn open_upper(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
    ) -> Result<(Option<OwnedFd>, Option<u32>), Errno> {
        match entry::open_directory(parent, name) {
            // Without the right to search it, what is in it has names only.
            Ok(open) if stat.st_mode & libc::S_IXUSR != 0 || nix::unistd::geteuid().is_root() => {
                Ok((Some(open), None))
            }
            Ok(_) | Err(Errno::EACCES) if self.alone => {
                let place = entry::open_path(parent, name)?;
                set_mode(place.as_fd(), stat.st_mode | libc::S_IRWXU)?;
                let open = entry::open_directory(parent, name)?;
                Ok((Some(open), Some(stat.st_mode)))
            }
            Ok(_) | Err(Errno::EACCES) => Ok((None, None)),
            Err(errno) => Err(errno),
        }
    }
}

/// Opens a file of a layer for reading; where its mode forbids that and nobody else uses the layer, the
/// mode is another one for a moment.
pub(super) fn open_upper_file(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    alone: bool,
) -> Result<OwnedFd, Errno> {
    match entry::open_file(parent, name) {
        Err(Errno::EACCES) if alone => {
            let place = entry::open_path(parent, name)?;
            set_mode(place.as_fd(), stat.st_mode | libc::S_IRUSR)?;
            let open = entry::open_file(parent, name);
            set_mode(place.as_fd(), stat.st_mode)?;
            open
        }
        open => open,
    }
}

/// chmod(2) of what a descriptor stands for, O_PATH too.
pub(super) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    fchmodat(AT_FDCWD, &*files::descriptor_path(fd), mode, FchmodatFlags::FollowSymlink)
}

/// The mode that a directory had before it was walked.
fn give_back(frame: &Frame) {
    if let Some(mode) = frame.mode {
        let _ = set_mode(frame.upper.as_fd(), mode);
    }
}

fn stat(fd: &OwnedFd) -> Result<FileStat, Errno> {
    nix::sys::stat::fstat(fd)
}

fn trouble(place: &Path, errno: Errno) -> OverlayError {
    match errno {
        Errno::EMFILE | Errno::ENFILE => refuse!(
            "cannot look at {} in the overlay: its directories are nested too deeply for the limit of \
             open files; raise that (ulimit -n)",
            quoted(short(place))
        ),
        errno => {
            refuse!("cannot look at {} in the overlay: {}", quoted(short(place)), errno.desc())
        }
    }
}

/// A path that fits on a line.
pub(super) fn short(place: &Path) -> PathBuf {
    match place.as_os_str().len() > 4096 {
        true => place.iter().take(20).collect::<PathBuf>().join("..."),
        false => place.to_owned(),
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change, OverlayError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let found = self.step().transpose();
        self.failed = matches!(found, Some(Err(_)));
        found
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        self.stack.iter().rev().for_each(give_back);
    }
}
