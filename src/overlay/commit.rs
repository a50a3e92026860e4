//! `commit`: what an overlay changes becomes the host's.
//!
//! The order of business: what is to be changed, and whether the host has changed it meanwhile, before
//! anything is touched; then copies beside their places, all on the disk before the first one is put in
//! its place; then one rename each. A list of the copies' names is written first (`journal`), so that
//! whatever interrupts this leaves every path old or new, and nothing that the next commit would not
//! remove.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode};
use nix::unistd::{AccessFlags, UnlinkatFlags, syncfs, unlinkat};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::apply::{Copier, Root, Upper, own, safe_mode, set_times, temporary};
use super::changes::{Change, Changes, Kind, What, open_host, set_mode};
use super::description::{Stamp, bytes, path, replace};
use super::entry::{self, Type};
use super::error::{OverlayError, refuse};
use super::glob::Glob;
use super::prune::{Pending, prune};
use super::remove::{heap, remove_tree};
use super::store::Kept;
use crate::config::quoted;

/// What to commit, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only what one of these matches, if there is any.
    pub only: Vec<Glob>,
    /// Change nothing.
    pub dry_run: bool,
    /// Apply also what the host has changed meanwhile.
    pub force: bool,
}

/// How far it is, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was changed on the host, or would be.
    pub committed: Committed,
    /// Paths that the host has changed meanwhile. If there are any, nothing was applied but by force.
    pub conflicts: Vec<PathBuf>,
}

/// What was applied.
#[derive(Debug, Default)]
pub struct Committed {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Sockets and the like, which are left out.
    pub skipped: Vec<PathBuf>,
    /// How many changes stay in the overlay.
    pub left: usize,
}

/// What one step puts in its place.
#[derive(Debug)]
struct Step {
    change: Change,
    /// The name of the copy, or of what is taken away.
    temporary: OsString,
}

/// The copies that may be on the host: the layer, the directory in it, the name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Journal(Vec<(u32, ByteBuf, ByteBuf)>);

impl Kept {
    /// Applies the overlay, or a part of it, to the host. What was applied leaves the overlay, and with the
    /// last change the overlay goes.
    ///
    /// # Errors
    /// A run uses it; something cannot be read or written. Which part was applied is said.
    pub fn commit(
        self,
        options: &Options,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, OverlayError> {
        let lock = self.lock()?;
        if !options.dry_run {
            clean_up(&self)?;
        }
        let mut walk = Changes::of(&self, true);
        let mut all = Vec::new();
        for change in walk.by_ref() {
            all.push(change?);
        }
        let same_links = std::mem::take(&mut walk.same_links);
        drop(walk);
        let (chosen, skipped) = choose(&all, &options.only);
        let conflicts = conflicts(&self, &chosen)?;
        let left = all.len() - chosen.len() - skipped.len();
        let committed = Committed { changes: chosen, skipped, left };
        if options.dry_run || !(conflicts.is_empty() || options.force) {
            return Ok(Outcome { committed, conflicts });
        }
        let mut commit = Commit::new(&self, &committed.changes)?;
        commit.run(&same_links, tell)?;
        let rest = pending(&all, &committed);
        if rest.is_empty() {
            drop(commit);
            self.remove(lock)?;
            return Ok(Outcome { committed, conflicts });
        }
        for (layer, upper) in &mut commit.uppers {
            let none = Pending::new();
            let pending = rest.get(layer).unwrap_or(&none);
            prune(upper, pending).map_err(|errno| {
                refuse!(
                    "the host has the changes, but they cannot be taken out of the overlay {}: {}",
                    self.id,
                    errno.desc()
                )
            })?;
        }
        Ok(Outcome { committed, conflicts })
    }
}

/// What the patterns choose, with the new directories that it lies in; and what no commit applies.
fn choose(all: &[Change], only: &[Glob]) -> (Vec<Change>, Vec<PathBuf>) {
    let carried = |change: &&Change| !matches!(change.now, Some(Type::Socket | Type::Device));
    let matched =
        |change: &&Change| only.is_empty() || only.iter().any(|glob| glob.matches(&change.path));
    let mut wanted: BTreeSet<&Path> = BTreeSet::new();
    for change in all.iter().filter(matched).filter(carried) {
        wanted.extend(change.path.ancestors());
    }
    let makes_room = |change: &Change| {
        change.now == Some(Type::Directory) && matches!(change.kind, Kind::Added | Kind::Type)
    };
    let chosen = all
        .iter()
        .filter(carried)
        .filter(|change| matched(change) || makes_room(change) && wanted.contains(&*change.path));
    let skipped = all.iter().filter(matched).filter(|change| !carried(change));
    (chosen.cloned().collect(), skipped.map(|change| change.path.clone()).collect())
}

/// What stays in the overlay, by layer.
fn pending(all: &[Change], committed: &Committed) -> HashMap<usize, Pending> {
    let done: BTreeSet<&Path> = committed.changes.iter().map(|it| &*it.path).collect();
    let skipped: BTreeSet<&Path> = committed.skipped.iter().map(|it| &**it).collect();
    let mut rest: HashMap<usize, Pending> = HashMap::new();
    for change in all.iter().filter(|it| !done.contains(&*it.path) && !skipped.contains(&*it.path))
    {
        rest.entry(change.layer).or_default().insert(change.relative.clone());
    }
    rest
}

/// The paths among these that the host has changed since the run that changed them began.
fn conflicts(kept: &Kept, chosen: &[Change]) -> Result<Vec<PathBuf>, OverlayError> {
    let mut found = Vec::new();
    let mut layers: HashMap<usize, (Root, Upper)> = HashMap::new();
    for change in chosen.iter().filter(|change| change.before.is_some()) {
        // Its names come and go, and that changes its stamp too.
        if (change.kind, change.now) == (Kind::Attributes, Some(Type::Directory)) {
            continue;
        }
        let fail =
            |errno: Errno| refuse!("cannot look at {}: {}", quoted(&change.path), errno.desc());
        let (root, upper) = match layers.entry(change.layer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let place = kept.description.layers[change.layer].path();
                let root = Root(open_host(&place).map_err(fail)?);
                new.insert((root, Upper::new(kept.layer(change.layer, "upper")?)))
            }
        };
        let Some(name) = change.relative.file_name() else { continue };
        let parent = change.relative.parent().unwrap_or(Path::new(""));
        let since = upper
            .open(parent)
            .map_or(kept.description.starts[0], |directory| since(kept, directory.as_fd(), name));
        let directory = root.open(parent).map_err(fail)?;
        if is_newer(directory.as_fd(), name, since).map_err(fail)? {
            found.push(change.path.clone());
        }
    }
    Ok(found)
}

/// When the run began in which an entry of a layer was made. What the host had changed before, that run
/// has seen.
fn since(kept: &Kept, directory: BorrowedFd<'_>, name: &OsStr) -> Stamp {
    let starts = &kept.description.starts;
    let born = || {
        // statx(2), stx_btime; not every file system has it.
        let place = File::from(entry::open_path(directory, name).ok()?);
        let born = place.metadata().ok()?.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let seconds = i64::try_from(born.as_secs()).ok()?;
        Some(Stamp { seconds, nanoseconds: i64::from(born.subsec_nanos()) })
    };
    let run = born().and_then(|born| starts.iter().rev().find(|start| **start <= born));
    run.copied().unwrap_or(starts[0])
}

/// Whether something, or anything in it, was changed later than this.
fn is_newer(directory: BorrowedFd<'_>, name: &OsStr, since: Stamp) -> Result<bool, Errno> {
    let Some(stat) = entry::look(directory, name)? else { return Ok(false) };
    if entry::changed(&stat) > since {
        return Ok(true);
    }
    if Type::of(&stat) != Type::Directory {
        return Ok(false);
    }
    let inside = match entry::open_directory(directory, name) {
        Ok(inside) => inside,
        // What cannot be read cannot be removed either; that is said when it is tried.
        Err(Errno::EACCES) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    for name in entry::names(inside.as_fd())? {
        if is_newer(inside.as_fd(), &name, since)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One commit under way.
struct Commit<'k> {
    kept: &'k Kept,
    roots: HashMap<usize, Root>,
    uppers: HashMap<usize, Upper>,
    /// What is put in its place by one step each; what lies in new directories comes with them.
    steps: Vec<Step>,
    /// Every chosen path.
    chosen: BTreeSet<(usize, PathBuf)>,
    total: u64,
}

impl<'k> Commit<'k> {
    fn new(kept: &'k Kept, changes: &[Change]) -> Result<Self, OverlayError> {
        let mut commit = Commit {
            kept,
            roots: HashMap::new(),
            uppers: HashMap::new(),
            steps: Vec::new(),
            chosen: changes.iter().map(|it| (it.layer, it.relative.clone())).collect(),
            total: changes.iter().map(|change| change.size).sum(),
        };
        for (layer, note) in kept.description.layers.iter().enumerate() {
            commit.uppers.insert(layer, Upper::new(kept.layer(layer, "upper")?));
            if changes.iter().any(|change| change.layer == layer) {
                let place = note.path();
                let root = open_host(&place).map_err(|errno| {
                    refuse!(
                        "cannot commit to {}: {}; make it again, or leave it out with --only",
                        quoted(&place),
                        errno.desc()
                    )
                })?;
                commit.roots.insert(layer, Root(root));
            }
        }
        let token = random_token().map_err(|errno| {
            refuse!("cannot commit the overlay {}: no random numbers: {}", kept.id, errno.desc())
        })?;
        let mut within: Option<(usize, &Path)> = None;
        for change in changes {
            if let Some((layer, above)) = within
                && change.layer == layer
                && change.relative.starts_with(above)
            {
                continue;
            }
            let makes_directory = change.now == Some(Type::Directory)
                && matches!(change.kind, Kind::Added | Kind::Type);
            within = makes_directory.then_some((change.layer, &*change.relative));
            let temporary = temporary(token, commit.steps.len());
            commit.steps.push(Step { change: change.clone(), temporary });
        }
        Ok(commit)
    }

    fn run(
        &mut self,
        same_links: &[((u64, u64), usize, PathBuf)],
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), OverlayError> {
        self.write_journal()?;
        let staged = self.stage(same_links, tell).and_then(|()| self.sync());
        if let Err(error) = staged {
            clean_up(self.kept)?;
            return Err(refuse!("{error}; nothing was committed"));
        }
        let steps = std::mem::take(&mut self.steps);
        for (done, step) in steps.iter().enumerate() {
            self.put(step).map_err(|errno| {
                refuse!(
                    "cannot commit {}: {}; {done} of {} changes were applied, and another commit goes \
                     on from here",
                    quoted(&step.change.path),
                    errno.desc(),
                    steps.len()
                )
            })?;
        }
        self.set_directory_times(&steps);
        self.sync()?;
        clean_up(self.kept)
    }

    fn write_journal(&self) -> Result<(), OverlayError> {
        let names = self.steps.iter().filter(|step| step.change.kind != Kind::Attributes);
        let names = names.map(|step| {
            let parent = step.change.relative.parent().unwrap_or(Path::new(""));
            let name = ByteBuf::from(step.temporary.as_bytes());
            (step.change.layer as u32, bytes(parent), name)
        });
        let mut text = Vec::new();
        let written = ciborium::into_writer(&Journal(names.collect()), &mut text);
        debug_assert!(written.is_ok());
        replace(self.kept.directory.as_fd(), "journal", &text).map_err(|error| {
            refuse!("cannot write the journal of the overlay {}: {error}", self.kept.id)
        })
    }

    /// Makes every copy, and finds out what could not be put in its place.
    fn stage(
        &mut self,
        same_links: &[((u64, u64), usize, PathBuf)],
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), OverlayError> {
        let Commit { roots, uppers, steps, chosen, total, .. } = self;
        let mut progress = Progress { done: 0, total: *total };
        let mut told = |more: u64| {
            progress.done += more;
            tell(progress);
        };
        let links = same_links.iter().map(|(inode, layer, at)| (*inode, (*layer, at.clone())));
        let mut copier = Copier {
            roots,
            links: links.collect(),
            wanted: &|layer, relative: &Path| chosen.contains(&(layer, relative.to_owned())),
            tell: &mut told,
        };
        for step in steps.iter() {
            let Change { layer, relative, path, kind, .. } = &step.change;
            let fail = |errno: Errno| refuse!("cannot commit {}: {}", quoted(path), errno.desc());
            let (Some(root), Some(upper)) = (roots.get(layer), uppers.get_mut(layer)) else {
                continue;
            };
            let above = relative.parent().unwrap_or(Path::new(""));
            let Some(name) = relative.file_name() else { continue };
            let parent = root.open(above).map_err(fail)?;
            if *kind != Kind::Attributes {
                may_write(parent.as_fd()).map_err(fail)?;
            }
            if matches!(kind, Kind::Deleted | Kind::Attributes) {
                continue;
            }
            let from = upper.open(above).map_err(fail)?;
            let old = entry::look(parent.as_fd(), name).map_err(fail)?.map(|stat| stat.st_mode);
            let place = (*layer, above.join(&step.temporary));
            copier
                .copy(
                    upper,
                    (from.as_fd(), name, relative),
                    (parent.as_fd(), &step.temporary, place),
                    old,
                )
                .map_err(fail)?;
        }
        Ok(())
    }

    /// Everything is on the disk.
    fn sync(&self) -> Result<(), OverlayError> {
        for (layer, root) in &self.roots {
            syncfs(&root.0).map_err(|errno| {
                let place = self.kept.description.layers[*layer].path();
                refuse!("cannot write {} to the disk: {}", quoted(place), errno.desc())
            })?;
        }
        Ok(())
    }

    /// One path becomes the new one.
    fn put(&mut self, step: &Step) -> Result<(), Errno> {
        let Change { layer, relative, kind, what, now, before, .. } = &step.change;
        let (Some(root), Some(upper)) = (self.roots.get(layer), self.uppers.get_mut(layer)) else {
            return Err(Errno::ENOENT);
        };
        let above = relative.parent().unwrap_or(Path::new(""));
        let parent = root.open(above)?;
        let (parent, temporary) = (parent.as_fd(), step.temporary.as_os_str());
        let Some(name) = relative.file_name() else {
            // The directory of the layer itself.
            return put_attributes(upper.open(relative)?.as_fd(), root.0.as_fd(), *what);
        };
        match kind {
            Kind::Deleted => renameat(parent, name, parent, temporary),
            Kind::Attributes => {
                let from = upper.open(above)?;
                let from = entry::open_path(from.as_fd(), name)?;
                let to = entry::open_path(parent, name)?;
                match now {
                    Some(Type::Link) => {
                        let stat = nix::sys::stat::fstat(&from)?;
                        own(parent, name, &stat, &nix::sys::stat::fstat(&to)?)
                    }
                    _ => put_attributes(from.as_fd(), to.as_fd(), *what),
                }
            }
            _ if [*before, *now].contains(&Some(Type::Directory)) && before.is_some() => {
                exchange(parent, temporary, name)
            }
            _ => renameat(parent, temporary, parent, name),
        }
    }

    /// Directories of the host in which names came or went get the times that they have in the overlay.
    fn set_directory_times(&mut self, steps: &[Step]) {
        let directories: BTreeSet<(usize, &Path)> = steps
            .iter()
            .filter_map(|step| Some((step.change.layer, step.change.relative.parent()?)))
            .collect();
        for (layer, relative) in directories {
            let (Some(root), Some(upper)) = (self.roots.get(&layer), self.uppers.get_mut(&layer))
            else {
                continue;
            };
            if let (Ok(to), Ok(from)) = (root.open(relative), upper.open(relative))
                && let Ok(stat) = nix::sys::stat::fstat(&from)
            {
                // Of a directory that somebody else owns they cannot be set.
                let _ = touch(to.as_fd(), &stat);
            }
        }
    }
}

/// Sets the times of what a descriptor stands for.
fn touch(fd: BorrowedFd<'_>, stat: &FileStat) -> Result<(), Errno> {
    set_times(fd, OsStr::new("."), stat)
}

/// Gives a file of the host the attributes that differ.
fn put_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, what: What) -> Result<(), Errno> {
    let (wanted, there) = (nix::sys::stat::fstat(from)?, nix::sys::stat::fstat(to)?);
    if what.contains(What::OWNER) {
        let (uid, gid) = (wanted.st_uid.into(), wanted.st_gid.into());
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        nix::unistd::fchownat(to, "", Some(uid), Some(gid), flags)?;
    }
    if what.contains(What::XATTRS) {
        entry::set_attributes(to, &entry::attributes(from)?)?;
    }
    // After the others, which may take bits away; an access control list sets bits as well.
    if what.intersects(What::MODE | What::OWNER | What::XATTRS) {
        set_mode(to, safe_mode(&wanted, Some(there.st_mode)))?;
    }
    Ok(())
}

/// Two names of one directory change places; where the file system cannot do that in one step, there is a
/// moment with neither.
fn exchange(parent: BorrowedFd<'_>, temporary: &OsStr, name: &OsStr) -> Result<(), Errno> {
    match renameat2(parent, temporary, parent, name, RenameFlags::RENAME_EXCHANGE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            renameat(parent, name, parent, old_name(temporary).as_os_str())?;
            renameat(parent, temporary, parent, name)
        }
        done => done,
    }
}

/// Where what was in the place of a copy is until it is removed.
fn old_name(temporary: &OsStr) -> OsString {
    let mut name = temporary.to_owned();
    name.push(".old");
    name
}

/// The caller may change the names in a directory of the host.
fn may_write(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    nix::unistd::faccessat(directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, flags)
}

/// Removes what an earlier commit has left on the host: copies that are in no place yet, and what was taken
/// out of its place.
pub(super) fn clean_up(kept: &Kept) -> Result<(), OverlayError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = match openat(&kept.directory, "journal", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => {
            return Err(refuse!("cannot read the journal of {}: {}", kept.id, errno.desc()));
        }
    };
    let mut text = Vec::new();
    let read = File::from(file).read_to_end(&mut text);
    let journal = read.ok().and_then(|_| ciborium::from_reader::<Journal, _>(&text[..]).ok());
    let journal = journal.ok_or_else(|| {
        refuse!(
            "the journal of the overlay {} is damaged: remove {}, and files named .sandbox-commit-* on the \
             host",
            kept.id,
            quoted(kept.path.join("journal"))
        )
    })?;
    let mut roots: HashMap<u32, Option<Root>> = HashMap::new();
    for (layer, parent, name) in &journal.0 {
        let root = roots.entry(*layer).or_insert_with(|| {
            let note = kept.description.layers.get(*layer as usize)?;
            open_host(&note.path()).ok().map(Root)
        });
        let Some(Ok(parent)) = root.as_ref().map(|root| root.open(&path(parent))) else { continue };
        let name = OsStr::from_bytes(name);
        for name in [name.to_owned(), old_name(name), heap(name), heap(&old_name(name))] {
            remove_tree(parent.as_fd(), &name).map_err(|errno| {
                refuse!(
                    "cannot remove {}, which a commit has put on the host: {}",
                    quoted(&name),
                    errno.desc()
                )
            })?;
        }
    }
    unlinkat(&kept.directory, "journal", UnlinkatFlags::NoRemoveDir)
        .map_err(|errno| refuse!("cannot remove the journal of {}: {}", kept.id, errno.desc()))
}

fn random_token() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    crate::sys::random::fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
