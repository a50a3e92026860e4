//! The layers of a run, made or found again before it starts.
//!
//! Owns what has to be there for the kernel to mount an overlay, and every refusal that can be given
//! before: it makes directories in the store and changes nothing else.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{AccessFlags, Gid, Uid, eaccess, fchown};

use super::apply::Upper;
use super::changes::open_host;
use super::description::{Description, Ids, Note, Stamp, bytes, path};
use super::entry;
use super::error::{OverlayError, refuse};
use super::front;
use super::held::Held;
use super::remove::remove_tree;
use super::restoring;
use super::store::{self, OVERLAYFS_SUPER_MAGIC, Store, make_directory, open_closed};
use super::twin;
use crate::config::{Mount, MountKind, Root, RunSpec, View, quoted};
use crate::sys::errno_of;
use crate::sys::{beneath, files};

/// One layer, for whoever mounts it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where the guest finds it.
    pub target: PathBuf,
    /// What it shows: a directory of the host, or the skeleton of one.
    pub lower: PathBuf,
    /// Device and inode of that.
    pub identity: (u64, u64),
    /// What lies in front of that: directories of the user's own (`front`).
    pub front: Option<PathBuf>,
    /// What takes the changes.
    pub upper: PathBuf,
    /// For the kernel.
    pub work: PathBuf,
    /// Nothing can be executed in the host's directory.
    pub no_exec: bool,
    /// What is shown in place of an overlay, where the kernel makes none ([`super::twin`]).
    pub twin: Option<PathBuf>,
    /// Its number.
    pub(super) number: usize,
    /// The number of the layer, if what it shows is a skeleton, which was made for this run alone.
    pub(super) skeleton: Option<usize>,
}

/// Makes the layers of `spec`, or finds those of an earlier run of the same id again. None where it has no
/// overlay.
///
/// # Errors
/// No overlay can be made here, or the one that is there is of other directories.
pub fn prepare(
    spec: &RunSpec,
    store: Option<Store>,
    id: &str,
) -> Result<Option<Held>, OverlayError> {
    let overlays = spec.overlays();
    let Some(store) = store.filter(|_| !overlays.is_empty()) else { return Ok(None) };
    check_distance(&store, &overlays)?;
    let cause = twin::cause(spec, &store);
    restoring::sweep(store.directory.as_fd(), OsStr::new(""));
    let directory = store.make_entry(id)?;
    let lock = store::lock(directory.as_fd(), id)?;
    let new = is_new(directory.as_fd());
    let mut description = match new {
        true => Description {
            overlays: overlays.iter().map(|it| bytes(it)).collect(),
            starts: Vec::new(),
            layers: Vec::new(),
            saved: None,
            ids: Ids::of(spec),
        },
        false => found_again(id, &store, directory.as_fd(), &overlays, Ids::of(spec).as_ref())?,
    };
    twin::end_all(directory.as_fd(), &mut description, None)?;
    let mut twins = None;
    let by_kernel = cause.is_none();
    let made = Maker { store: &store, id, name: id, spec, directory: directory.as_fd(), by_kernel }
        .make(&mut description)
        .and_then(|mut layers| {
            description.starts.push(now());
            if let Some(cause) = cause.or_else(|| twin::refused(&store, &layers)) {
                let made = twin::make_all((spec, &cause), directory.as_fd(), &mut layers)?;
                twins = Some((Arc::new(made), cause));
            }
            // From here on it may have what no image has.
            description.saved = None;
            let written = description.write(directory.as_fd());
            written.map_err(|error| {
                refuse!("cannot write the description of the overlay {id}: {error}")
            })?;
            wait_for_the_next_tick();
            Ok(layers)
        });
    match made {
        Ok(layers) => Ok(Some(Held { id: id.to_owned(), store, directory, lock, layers, twins })),
        Err(error) => {
            let _ = match new {
                // No guest has been there: all in it was made just now.
                true => remove_tree(store.directory.as_fd(), id.as_ref()).is_ok(),
                false => twin::end_all(directory.as_fd(), &mut description, None).is_ok(),
            };
            Err(error)
        }
    }
}

/// The place is hidden from the run, so no overlaid directory may lie in it. The other way round is usual.
pub(super) fn check_distance(store: &Store, overlays: &[PathBuf]) -> Result<(), OverlayError> {
    match overlays.iter().find(|overlaid| overlaid.starts_with(&store.path)) {
        None => Ok(()),
        Some(overlaid) => Err(refuse!(
            "cannot keep an overlay of {} in {}, which contains it; name a directory elsewhere with \
             --overlay-dir",
            quoted(overlaid),
            quoted(&store.path)
        )),
    }
}

pub(super) fn is_new(directory: BorrowedFd<'_>) -> bool {
    !matches!(entry::look(directory, "description".as_ref()), Ok(Some(_)))
}

/// The kernel can mount overlays at all.
pub(super) fn check_kernel() -> Result<(), OverlayError> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        return Ok(());
    }
    Err(refuse!(
        "cannot use --overlay: this kernel has no overlayfs, or has not loaded it; as root, modprobe \
         overlay (or boot a kernel built with CONFIG_OVERLAY_FS)"
    ))
}

fn found_again(
    id: &str,
    store: &Store,
    directory: BorrowedFd<'_>,
    overlays: &[PathBuf],
    ids: Option<&Ids>,
) -> Result<Description, OverlayError> {
    let word = store::word(store, id);
    let description = Description::read(directory).map_err(|cause| {
        refuse!("cannot go on with the overlay {id}: {cause}; sandbox discard {word} removes it")
    })?;
    let before: Vec<PathBuf> = description.overlays.iter().map(|it| path(it)).collect();
    if before != overlays {
        let list = |all: &[PathBuf]| all.iter().map(quoted).collect::<Vec<_>>().join(", ");
        return Err(refuse!(
            "cannot go on with the overlay {id}: it is of {}, and this run asks for {}; sandbox discard \
             {word} removes it, or choose another --id",
            list(&before),
            list(overlays)
        ));
    }
    if let Some(cause) = Ids::difference(description.ids.as_ref(), ids) {
        return Err(refuse!(
            "cannot go on with the overlay {id}: {cause}; sandbox discard {word} removes it, or choose another --id"
        ));
    }
    if matches!(entry::look(directory, "journal".as_ref()), Ok(Some(_))) {
        return Err(refuse!(
            "cannot go on with the overlay {id}: a commit of it was interrupted; sandbox commit {word} \
             finishes that"
        ));
    }
    Ok(description)
}

/// Now, as files are stamped (the clock of current_time in fs/inode.c).
pub(super) fn now() -> Stamp {
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).unwrap_or(TimeSpec::new(0, 0));
    Stamp { seconds: now.tv_sec(), nanoseconds: now.tv_nsec() }
}

/// Files that are changed from now on have a later stamp than those that were changed before: that clock
/// goes on with the timer interrupt, every few milliseconds.
pub(super) fn wait_for_the_next_tick() {
    let before = now();
    while now() == before {
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The file system can hold upper layers (ovl_make_workdir in fs/overlayfs/super.c says what it needs).
pub(super) fn check_place(
    store: &Store,
    layers: BorrowedFd<'_>,
    by_kernel: bool,
) -> Result<(), OverlayError> {
    let cause = match fstatfs(layers) {
        Ok(stat) if by_kernel && stat.filesystem_type().0 == OVERLAYFS_SUPER_MAGIC => {
            "it lies on an overlay itself, which cannot take another one's changes".to_owned()
        }
        _ => {
            let path = files::descriptor_path(layers);
            match beneath::set_attribute(&path, c"user.overlay.impure", b"y") {
                Ok(()) => return Ok(()),
                Err(errno) => format!(
                    "its file system keeps no extended attributes of users ({})",
                    errno.desc()
                ),
            }
        }
    };
    Err(refuse!(
        "cannot keep overlays in {}: {cause}; name a directory on another file system with \
         --overlay-dir (ext4, xfs and btrfs will do)",
        quoted(&store.path)
    ))
}

/// What the layers are made of.
pub(super) struct Maker<'a> {
    pub(super) store: &'a Store,
    pub(super) id: &'a str,
    /// The name of its directory now.
    pub(super) name: &'a str,
    pub(super) spec: &'a RunSpec,
    pub(super) directory: BorrowedFd<'a>,
    /// The kernel is to make overlays of them.
    pub(super) by_kernel: bool,
}

impl Maker<'_> {
    /// Makes the layers, or what is missing of them.
    pub(super) fn make(&self, description: &mut Description) -> Result<Vec<Layer>, OverlayError> {
        let view = View::of(&self.spec.mounts);
        let layers = make_directory(self.directory, "layers").map_err(|e| self.failed(e))?;
        check_place(self.store, layers.as_fd(), self.by_kernel)?;
        let mut made = Vec::new();
        for mount in &self.spec.mounts {
            let MountKind::Overlay { source, skeleton } = &mount.kind else { continue };
            let found = description.layers.iter().position(|note| note.path() == *source);
            let number = found.unwrap_or_else(|| {
                description.layers.push(Note { path: bytes(source), scaffold: Vec::new() });
                description.layers.len() - 1
            });
            let name = number.to_string();
            let layer_directory =
                make_directory(layers.as_fd(), &name).map_err(|e| self.failed(e))?;
            let note = &mut description.layers[number];
            self.make_upper(layer_directory.as_fd(), source, &view, note)?;
            make_directory(layer_directory.as_fd(), "work").map_err(|e| self.failed(e))?;
            let place = self.store.path.join(self.name).join("layers").join(&name);
            let lower = match skeleton {
                true => {
                    self.make_skeleton(layer_directory.as_fd(), source, &view)?;
                    place.join("lower")
                }
                false => source.clone(),
            };
            let mut layer = layer_of(mount, source, lower, (&place, number))?;
            if self.is_believed() && !skeleton {
                make_directory(self.directory, front::PLACE).map_err(|e| self.failed(e))?;
                let place = self.store.path.join(self.name).join(front::PLACE);
                layer.front = Some(place.join(&name));
            }
            layer.skeleton = skeleton.then_some(number);
            made.push(layer);
        }
        Ok(made)
    }

    /// Guests take themselves for root, and have no ids but their own.
    fn is_believed(&self) -> bool {
        self.spec.root == Root::Believed
    }

    fn failed(&self, errno: Errno) -> OverlayError {
        refuse!(
            "cannot make a layer of the overlay {}: {}; look at {}, or name another directory with \
             --overlay-dir",
            self.id,
            errno.desc(),
            quoted(&self.store.path)
        )
    }

    /// Makes the directory that takes the changes, with the attributes of the one that it changes.
    fn make_upper(
        &self,
        layer: BorrowedFd<'_>,
        source: &Path,
        view: &View,
        note: &mut Note,
    ) -> Result<(), OverlayError> {
        let new = matches!(entry::look(layer, "upper".as_ref()), Ok(None));
        // An earlier run may have taken the rights from it, or given it to one of its ids, for which nothing is prepared.
        let open = if new { make_directory } else { open_closed };
        let is_mapped = self.spec.root == Root::Mapped;
        let upper = match open(layer, "upper") {
            Err(Errno::EACCES | Errno::EPERM) if is_mapped && !new => return Ok(()),
            upper => upper.map_err(|errno| self.failed(errno))?,
        };
        if self.is_believed() {
            if new {
                let host = open_host(source).map_err(|errno| self.failed(errno))?;
                front::dress_root(&host, upper.as_fd()).map_err(|errno| self.failed(errno))?;
            }
            return Ok(());
        }
        for place in self.places() {
            let nearest = view.covering(&place).is_some_and(|mount| mount.target == source);
            if let (true, Ok(below)) = (nearest, place.strip_prefix(source)) {
                self.make_scaffold(source, below, &upper, note)?;
            }
        }
        if new && !self.imitate(source, upper.as_fd())? {
            note.scaffold.push(bytes(Path::new("")));
        }
        Ok(())
    }

    /// Where a run is sure to write: what leads there is made before.
    fn places(&self) -> Vec<PathBuf> {
        let home = self.spec.environment.iter().find(|(name, _)| name == "HOME");
        let home = home.and_then(|(_, value)| Path::new(value).canonicalize().ok());
        std::iter::once(self.spec.workdir.clone()).chain(home).collect()
    }

    /// Makes the directories on the way from `source` to `below` whose owners do not exist inside: to write
    /// below them the kernel copies them up first, and could not give them their owner (EOVERFLOW from
    /// ovl_set_attr in fs/overlayfs/copy_up.c).
    fn make_scaffold(
        &self,
        source: &Path,
        below: &Path,
        upper: &OwnedFd,
        note: &mut Note,
    ) -> Result<(), OverlayError> {
        let mut steps = Vec::new();
        let mut relative = PathBuf::new();
        for name in below {
            relative.push(name);
            let Ok(found) = source.join(&relative).symlink_metadata() else { break };
            if !found.is_dir() {
                break;
            }
            steps.push((relative.clone(), self.is_foreign(&found)));
        }
        let count = steps.iter().rposition(|(_, foreign)| *foreign).map_or(0, |last| last + 1);
        let fail = |errno| self.failed(errno);
        let mut made = Vec::new();
        // Some of them may have no rights to write in, once they are like the host's.
        let mut opener = Upper::new(upper.try_clone().map_err(|e| fail(errno_of(&e)))?);
        let mut parent = opener.open_root().map_err(fail)?;
        for (relative, _) in steps.iter().take(count) {
            let name = relative.file_name().unwrap_or_default();
            let new = match mkdirat(&parent, name, Mode::S_IRWXU) {
                Ok(()) => true,
                Err(Errno::EEXIST) => false,
                Err(errno) => return Err(fail(errno)),
            };
            // A guest may have put something else in its place.
            let Ok(next) = opener.enter(parent.as_fd(), name) else { break };
            parent = next;
            if new {
                made.push((relative, parent.try_clone().map_err(|e| fail(errno_of(&e)))?));
            }
        }
        for (relative, directory) in made.iter().rev() {
            if !self.imitate(&source.join(relative), directory.as_fd())?
                && !note.scaffold.contains(&bytes(relative))
            {
                note.scaffold.push(bytes(relative));
            }
        }
        Ok(())
    }

    fn is_foreign(&self, found: &Metadata) -> bool {
        !self.spec.gives_to(found.uid(), found.gid())
    }

    /// Gives a directory of the store the attributes of one of the host; false: but for its owner, who does
    /// not exist inside. Then it belongs to the caller, who may do with it what they may with the other.
    fn imitate(&self, source: &Path, to: BorrowedFd<'_>) -> Result<bool, OverlayError> {
        let fail = |errno| self.failed(errno);
        let found = source.metadata().map_err(|error| fail(errno_of(&error)))?;
        let foreign = self.is_foreign(&found);
        let mut mode = found.mode() & 0o7777;
        if foreign {
            mode &= !(libc::S_IRWXU | libc::S_ISUID | libc::S_ISGID | libc::S_ISVTX);
            for (how, bit) in [
                (AccessFlags::R_OK, libc::S_IRUSR),
                (AccessFlags::W_OK, libc::S_IWUSR),
                (AccessFlags::X_OK, libc::S_IXUSR),
            ] {
                mode |= if eaccess(source, how).is_ok() { bit } else { 0 };
            }
        } else {
            let (uid, gid) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
            fchown(to, Some(uid), Some(gid)).map_err(fail)?;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let from = open(source, flags, Mode::empty()).map_err(fail)?;
        if !foreign && let Ok(attributes) = entry::attributes(from.as_fd()) {
            // As far as this user and this file system can.
            let _ = entry::set_attributes(to, &attributes);
        }
        fchmod(to, Mode::from_bits_truncate(mode)).map_err(fail)?;
        let time = |seconds, nanoseconds| TimeSpec::new(seconds, nanoseconds);
        let accessed = time(found.atime(), found.atime_nsec());
        let modified = time(found.mtime(), found.mtime_nsec());
        nix::sys::stat::futimens(to, &accessed, &modified).map_err(fail)?;
        Ok(!foreign)
    }

    /// Makes the names of `source` anew: directories and bound files to mount on, links, and copies of
    /// small files.
    fn make_skeleton(
        &self,
        layer: BorrowedFd<'_>,
        source: &Path,
        view: &View,
    ) -> Result<(), OverlayError> {
        remove_tree(layer, "lower".as_ref()).map_err(|errno| self.failed(errno))?;
        let lower = make_directory(layer, "lower").map_err(|errno| self.failed(errno))?;
        for entry in std::fs::read_dir(source).into_iter().flatten().flatten() {
            let (name, from) = (entry.file_name(), entry.path());
            let covered = view.mounts().any(|mount| mount.target == from);
            self.make_name(&lower, &name, &from, covered).map_err(|error| {
                refuse!("cannot copy {} into the overlay {}: {error}", quoted(&from), self.id)
            })?;
        }
        self.imitate(source, lower.as_fd()).map(drop)
    }

    fn make_name(
        &self,
        lower: &OwnedFd,
        name: &OsStr,
        from: &Path,
        covered: bool,
    ) -> std::io::Result<()> {
        let found = match from.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let kind = found.file_type();
        if kind.is_dir() {
            mkdirat(lower, name, Mode::S_IRWXU)?;
        } else if kind.is_symlink() {
            let path = store_path(lower, name);
            symlink(from.read_link()?, &path)?;
            let _ = std::os::unix::fs::lchown(&path, Some(found.uid()), Some(found.gid()));
            if let Some(stat) = entry::look(lower.as_fd(), name)? {
                let times = with_times(&found, stat);
                super::apply::set_times(lower.as_fd(), name, &times)?;
            }
        } else if covered || kind.is_file() {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mut file = std::fs::File::from(openat(lower, name, flags, Mode::S_IRUSR)?);
            if !covered {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
                let mut whole = std::fs::File::from(open(from, flags, Mode::empty())?);
                std::io::copy(&mut whole, &mut file)?;
                let attributes = entry::attributes(whole.as_fd())?;
                let _ = entry::set_attributes(file.as_fd(), &attributes);
                let _ = std::os::unix::fs::fchown(&file, Some(found.uid()), Some(found.gid()));
                fchmod(&file, Mode::from_bits_truncate(found.mode() & 0o7777))?;
                let times = std::fs::FileTimes::new().set_modified(found.modified()?);
                file.set_times(times.set_accessed(found.accessed()?))?;
            }
        }
        Ok(())
    }
}

/// `stat` with the times of `found`.
fn with_times(found: &Metadata, mut stat: nix::sys::stat::FileStat) -> nix::sys::stat::FileStat {
    (stat.st_atime, stat.st_atime_nsec) = (found.atime(), found.atime_nsec());
    (stat.st_mtime, stat.st_mtime_nsec) = (found.mtime(), found.mtime_nsec());
    stat
}

/// A name below a descriptor, for calls that take paths alone.
fn store_path(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    let path = files::descriptor_path(directory.as_fd());
    Path::new(OsStr::from_bytes(path.to_bytes())).join(name)
}

fn layer_of(
    mount: &Mount,
    source: &Path,
    lower: PathBuf,
    (place, number): (&Path, usize),
) -> Result<Layer, OverlayError> {
    let found = lower.metadata().map_err(|error| {
        refuse!("cannot make an overlay of {}: {error}; leave it out", quoted(source))
    })?;
    let flags = statvfs(source).map_or(FsFlags::empty(), |it| it.flags());
    Ok(Layer {
        target: mount.target.clone(),
        identity: (found.dev(), found.ino()),
        lower,
        upper: place.join("upper"),
        work: place.join("work"),
        front: None,
        no_exec: flags.contains(FsFlags::ST_NOEXEC),
        twin: None,
        number,
        skeleton: None,
    })
}
