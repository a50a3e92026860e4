//! `commit`: what an overlay changes becomes the host's.
//!
//! The order of business: what is to be changed, and whether the host has changed it meanwhile, before
//! anything is touched; then copies beside their places, all on the disk before the first one is put in
//! its place; whether the host has changed anything while they were made; then one rename each. A list of the copies' names is written first (`journal`), so that
//! whatever interrupts this leaves every path old or new, and nothing that the next commit would not
//! remove.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat, renameat2};
use nix::sys::stat::FileStat;
use nix::unistd::{AccessFlags, syncfs};
use serde_bytes::ByteBuf;

use super::apply::{Copier, Old, Root, Seen, Upper, own, safe_mode, set_times, temporary};
use super::believed;
use super::changes::{Change, Changes, Kind, What, open_host, set_mode, short};
use super::conflicts::{conflicts, late_conflicts};
use super::description::bytes;
use super::entry::{self, Type};
use super::error::{OverlayError, refuse};
use super::journal::{self, old_name};
use super::layers::{now, wait_for_the_next_tick};
use super::prune::{Pending, prune};
use super::remove::remove_tree;
use super::store::Kept;
use crate::config::{Glob, quoted};

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
        let interrupted = !options.dry_run && journal::clean_up(&self)?;
        let began = now();
        // What the host changes from the first look on has a later stamp.
        wait_for_the_next_tick();
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
        if let Some(deep) = committed.changes.iter().find(|change| change.too_deep) {
            return Err(refuse!(
                "cannot commit {}: {}; leave it out with --only; nothing was committed",
                quoted(short(&deep.path)),
                Errno::ENAMETOOLONG.desc()
            ));
        }
        let rest = pending(&all, &committed);
        let mut commit = Commit::new(&self, &committed.changes)?;
        commit.whole = rest.is_empty();
        commit.interrupted = interrupted;
        let late = |linked: &BTreeSet<(u64, u64)>| match options.force {
            true => Ok(Vec::new()),
            false => late_conflicts(&self, &committed.changes, began, linked),
        };
        let conflicts = match commit.run(&same_links, &late, tell)? {
            late if late.is_empty() => conflicts,
            late => return Ok(Outcome { conflicts: late, committed }),
        };
        if rest.is_empty() {
            drop(commit);
            self.remove(lock)?;
            return Ok(Outcome { committed, conflicts });
        }
        self.take_out(&rest)?;
        // What an interrupted commit has put in its place may be the overlay's as well, by another name: no
        // run may use it until all is committed.
        if !interrupted {
            journal::end(&self)?;
        }
        Ok(Outcome { committed, conflicts })
    }

    /// Takes everything out of the layers that is not pending.
    fn take_out(&self, rest: &HashMap<usize, Pending>) -> Result<(), OverlayError> {
        let none = Pending::new();
        for layer in 0..self.description.layers.len() {
            let mut upper = Upper::new(self.layer(layer, "upper")?);
            prune(&mut upper, rest.get(&layer).unwrap_or(&none)).map_err(|errno| {
                refuse!(
                    "the host has the changes, but they cannot be taken out of the overlay {}: {}",
                    self.id,
                    errno.desc()
                )
            })?;
        }
        Ok(())
    }
}

/// What the patterns choose, with the new directories that it lies in; and what no commit applies.
fn choose(all: &[Change], only: &[Glob]) -> (Vec<Change>, Vec<PathBuf>) {
    let carried = |change: &&Change| {
        !change.hollow && !matches!(change.now, Some(Type::Socket | Type::Device))
    };
    let matched =
        |change: &&Change| only.is_empty() || only.iter().any(|glob| glob.matches(&change.path));
    // (Paths are many, and to compare two of them is to take both apart: sets of them are by hash.)
    let mut wanted: HashSet<&Path> = HashSet::new();
    for change in all.iter().filter(matched).filter(carried) {
        for above in change.path.ancestors() {
            if !wanted.insert(above) {
                break;
            }
        }
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
    let done: HashSet<&Path> = committed.changes.iter().map(|it| &*it.path).collect();
    let skipped: HashSet<&Path> = committed.skipped.iter().map(|it| &**it).collect();
    let mut rest: HashMap<usize, Pending> = HashMap::new();
    for change in all.iter().filter(|it| !done.contains(&*it.path) && !skipped.contains(&*it.path))
    {
        rest.entry(change.layer).or_default().insert(change.relative.clone());
    }
    rest
}

/// Tells what the host has changed since the commit began, but for stamps of these files of its.
type Late<'l> = dyn Fn(&BTreeSet<(u64, u64)>) -> Result<Vec<PathBuf>, OverlayError> + 'l;

/// One commit under way.
struct Commit<'k> {
    kept: &'k Kept,
    roots: HashMap<usize, Root>,
    uppers: HashMap<usize, Upper>,
    /// What is put in its place by one step each; what lies in new directories comes with them.
    steps: Vec<Step>,
    /// Every chosen path, by layer.
    chosen: HashMap<usize, HashSet<PathBuf>>,
    total: u64,
    /// Nothing stays in the overlay: its files can be given to the host as they are.
    whole: bool,
    /// An earlier one has done that in part.
    interrupted: bool,
}

impl<'k> Commit<'k> {
    fn new(kept: &'k Kept, changes: &[Change]) -> Result<Self, OverlayError> {
        let mut commit = Commit {
            kept,
            roots: HashMap::new(),
            uppers: HashMap::new(),
            steps: Vec::new(),
            chosen: HashMap::new(),
            total: changes.iter().map(|change| change.size).sum(),
            whole: false,
            interrupted: false,
        };
        for change in changes {
            commit.chosen.entry(change.layer).or_default().insert(change.relative.clone());
        }
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

    /// `late` tells what the host has changed while the copies were made; if that is anything, nothing is
    /// put in its place, and it is given.
    fn run(
        &mut self,
        same_links: &[((u64, u64), usize, PathBuf)],
        late: &Late<'_>,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<PathBuf>, OverlayError> {
        self.write_journal()?;
        let staged = self.stage(same_links, tell);
        let staged = staged.and_then(|linked| self.sync().and_then(|()| late(&linked)));
        if !staged.as_ref().is_ok_and(Vec::is_empty) {
            journal::clean_up(self.kept)?;
            if !self.interrupted {
                journal::end(self.kept)?;
            }
            return staged.map_err(|error| refuse!("{error}; nothing was committed"));
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
        self.remove_old(&steps)?;
        Ok(Vec::new())
    }

    /// Removes what was taken out of its place.
    fn remove_old(&self, steps: &[Step]) -> Result<(), OverlayError> {
        for step in
            steps.iter().filter(|step| step.change.kind == Kind::Deleted || swaps(&step.change))
        {
            let Change { layer, relative, path, .. } = &step.change;
            let Some(root) = self.roots.get(layer) else { continue };
            let removed =
                root.open(relative.parent().unwrap_or(Path::new(""))).and_then(|parent| {
                    remove_tree(parent.as_fd(), &step.temporary)?;
                    remove_tree(parent.as_fd(), &old_name(&step.temporary))
                });
            removed.map_err(|errno| {
                refuse!(
                    "all is committed, but what was at {} cannot be removed and is beside it now, as {}: {}",
                    quoted(path),
                    step.temporary.display(),
                    errno.desc()
                )
            })?;
        }
        Ok(())
    }

    fn write_journal(&self) -> Result<(), OverlayError> {
        let names = self.steps.iter().filter(|step| step.change.kind != Kind::Attributes);
        let names = names.map(|step| {
            let parent = step.change.relative.parent().unwrap_or(Path::new(""));
            let name = ByteBuf::from(step.temporary.as_bytes());
            let place = step.change.relative.file_name().unwrap_or_default();
            (step.change.layer as u32, bytes(parent), name, ByteBuf::from(place.as_bytes()))
        });
        journal::write(self.kept, names.collect())
    }

    /// Makes every copy, and finds out what could not be put in its place. Gives the files of the host that
    /// have another name now.
    fn stage(
        &mut self,
        same_links: &[((u64, u64), usize, PathBuf)],
        tell: &mut dyn FnMut(Progress),
    ) -> Result<BTreeSet<(u64, u64)>, OverlayError> {
        let Commit { roots, uppers, steps, chosen, total, whole, .. } = self;
        let mut progress = Progress { done: 0, total: *total };
        let mut told = |more: u64| {
            progress.done += more;
            tell(progress);
        };
        let links = same_links.iter().map(|(inode, layer, at)| (*inode, (*layer, at.clone())));
        let mut copier = Copier {
            roots,
            links: links.collect(),
            wanted: &|layer, relative| chosen.get(&layer).is_some_and(|it| it.contains(relative)),
            gives: *whole,
            linked: BTreeSet::new(),
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
            let old = Old::of(parent.as_fd(), name).map_err(fail)?;
            let place = (*layer, above.join(&step.temporary));
            let seen = Seen::of(from.as_fd(), name).and_then(|it| it.ok_or(Errno::ENOENT));
            copier
                .copy(
                    upper,
                    seen.map_err(fail)?,
                    (from.as_fd(), name, relative),
                    (parent.as_fd(), &step.temporary, place),
                    old.as_ref(),
                    None,
                )
                .map_err(fail)?;
        }
        Ok(copier.linked)
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
        let Change { layer, relative, kind, what, now, .. } = &step.change;
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
            _ if swaps(&step.change) => exchange(parent, temporary, name),
            Kind::Added => place_new(parent, temporary, name),
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

/// Whether a change puts something in the place of a directory, or a directory in that of something: a rename
/// alone cannot.
fn swaps(change: &Change) -> bool {
    change.kind == Kind::Type && [change.before, change.now].contains(&Some(Type::Directory))
}

/// Sets the times of what a descriptor stands for.
fn touch(fd: BorrowedFd<'_>, stat: &FileStat) -> Result<(), Errno> {
    set_times(fd, OsStr::new("."), stat)
}

/// Gives a file of the host the attributes that differ.
fn put_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, what: What) -> Result<(), Errno> {
    let (found, there) = (nix::sys::stat::fstat(from)?, nix::sys::stat::fstat(to)?);
    let wanted = believed::wanted(found, &believed::of(from, &found));
    let attributes = entry::safe_attributes(from, &entry::capability(to)?)?;
    if what.contains(What::OWNER) {
        let (uid, gid) = (wanted.st_uid.into(), wanted.st_gid.into());
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        nix::unistd::fchownat(to, "", Some(uid), Some(gid), flags)?;
    }
    // A new owner takes capabilities away.
    if what.intersects(What::OWNER | What::XATTRS) {
        entry::set_attributes(to, &attributes)?;
    }
    // After the others, which may take bits away; an access control list sets bits as well.
    if what.intersects(What::MODE | What::OWNER | What::XATTRS) {
        set_mode(to, safe_mode(&wanted, Some(there.st_mode)))?;
    }
    Ok(())
}

/// Two names of one directory change places; where the file system cannot do that in one step, there is a
/// moment with neither, from which the journal leads back.
fn exchange(parent: BorrowedFd<'_>, temporary: &OsStr, name: &OsStr) -> Result<(), Errno> {
    match renameat2(parent, temporary, parent, name, RenameFlags::RENAME_EXCHANGE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            let old = old_name(temporary);
            renameat(parent, name, parent, old.as_os_str())?;
            renameat(parent, temporary, parent, name).inspect_err(|_| {
                let _ = renameat(parent, old.as_os_str(), parent, name);
            })
        }
        done => done,
    }
}

/// A name is given where there is none. What the host has made there meanwhile stays.
fn place_new(parent: BorrowedFd<'_>, temporary: &OsStr, name: &OsStr) -> Result<(), Errno> {
    match renameat2(parent, temporary, parent, name, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system knows that.
        Err(Errno::EINVAL | Errno::ENOSYS) => match entry::look(parent, name)? {
            Some(_) => Err(Errno::EEXIST),
            None => renameat(parent, temporary, parent, name),
        },
        done => done,
    }
}

/// The caller may change the names in a directory of the host.
fn may_write(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    nix::unistd::faccessat(directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, flags)
}

fn random_token() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    crate::sys::random::fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
