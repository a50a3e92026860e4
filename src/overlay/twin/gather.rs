//! Gathering what guests have changed in a twin into the layer, in the form that overlayfs gives it.
//!
//! Nobody else uses the twin any more. What is as it was made stays behind; what is not is moved to the layer;
//! what is gone leaves a whiteout. Nothing that is to stay is removed from the twin before all is done, and what the
//! layer has already is left alone, so that it can be done again where it was interrupted.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, futimens, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use serde_bytes::ByteBuf;

use super::super::apply::{PATH_MAX, Root};
use super::super::changes::set_mode;
use super::super::description::bytes;
use super::super::entry::{self, OPAQUE, Type};
use super::super::remove::remove_tree;
use super::fill::{Filled, by_inode, fill};
use super::notes::{Made, Noted, Notes};
use super::tree::{born, dress, open_up};
use super::{Trouble, open_lower};
use crate::sentry::beliefs::{Belief, NAME};
use crate::sys::beneath;
use crate::sys::errno_of;
use crate::sys::files::descriptor_path;

/// Gathers. Gives the directories that were made with another owner than the host's.
pub(super) fn gather(
    notes: &Notes,
    filled: &HashMap<u32, Filled>,
    twin: OwnedFd,
    upper: OwnedFd,
) -> Result<Vec<ByteBuf>, Trouble> {
    let top = Trouble::at(Path::new(""));
    let mut children = vec![Vec::new(); notes.all.len()];
    for (number, noted) in notes.all.iter().enumerate().skip(1) {
        children[noted.parent as usize].push(number as u32);
    }
    let lower = open_lower(&notes.lower()).map(Root);
    let whole = Level { name: OsString::new(), upper: Some(upper) };
    let mut gatherer = Gatherer {
        notes,
        children,
        files: by_inode(notes),
        filled: filled.clone(),
        lower,
        levels: vec![whole],
        scaffold: Vec::new(),
    };
    let stat = fstat(&twin).map_err(&top)?;
    let mode = stat.st_mode | libc::S_IRWXU;
    set_mode(twin.as_fd(), mode).map_err(&top)?;
    gatherer.directory(0, Path::new(""), &twin, &stat)?;
    Ok(gatherer.scaffold)
}

struct Gatherer<'g> {
    notes: &'g Notes,
    /// The notes of what is in each directory.
    children: Vec<Vec<u32>>,
    /// Files by inode.
    files: HashMap<u64, u32>,
    filled: HashMap<u32, Filled>,
    /// The host's directory; an error only where something of it is needed.
    lower: Result<Root, Errno>,
    /// From the whole to the directory that is looked into.
    levels: Vec<Level>,
    scaffold: Vec<ByteBuf>,
}

/// A directory of the layer, which is made when there is something for it.
struct Level {
    name: OsString,
    upper: Option<OwnedFd>,
}

/// A directory that is walked: what is in it, and the mode that it gets back.
struct Frame {
    directory: OwnedFd,
    relative: PathBuf,
    names: IntoIter<OsString>,
    closed: Option<u32>,
}

impl Gatherer<'_> {
    /// Gathers what has become of a directory that was made. `stat` is from before it was opened.
    fn directory(
        &mut self,
        number: u32,
        relative: &Path,
        twin: &OwnedFd,
        stat: &FileStat,
    ) -> Result<(), Trouble> {
        let fail = Trouble::at(relative);
        let notes = self.notes;
        let noted = &notes.all[number as usize];
        let children = std::mem::take(&mut self.children[number as usize]);
        let mut left: HashMap<OsString, u32> =
            children.into_iter().map(|it| (notes.all[it as usize].name(), it)).collect();
        for name in entry::names(twin.as_fd()).map_err(&fail)? {
            let place = relative.join(&name);
            self.name(twin, &name, &place, left.remove(&name))?;
        }
        for (name, child) in left {
            let noted = &notes.all[child as usize];
            self.removed(&name, noted).map_err(Trouble::at(&relative.join(&name)))?;
        }
        if entry::changed(stat) != noted.changed {
            self.upper().map_err(&fail)?;
        }
        if let Some(Level { upper: Some(upper), .. }) = self.levels.last() {
            dress(upper.as_fd(), (twin.as_fd(), stat), false).map_err(&fail)?;
            let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
            let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
            futimens(upper, &accessed, &modified).map_err(&fail)?;
            if noted.foreign {
                self.scaffold.push(bytes(relative));
            }
        }
        Ok(())
    }

    /// Gathers what the twin has at a name; `number` is the note of it, if the host has something there.
    fn name(
        &mut self,
        twin: &OwnedFd,
        name: &OsStr,
        place: &Path,
        number: Option<u32>,
    ) -> Result<(), Trouble> {
        let fail = Trouble::at(place);
        let Some(stat) = entry::look(twin.as_fd(), name).map_err(&fail)? else { return Ok(()) };
        let mut own = None;
        if let Some(number) = number
            && self.is_what_was_made(number, twin, name, &stat).map_err(&fail)?
        {
            own = Some(number);
            if self.notes.all[number as usize].is_directory() {
                return self.inner(number, twin, name, place, &stat);
            }
            if self.is_unchanged(number, twin, name, place, &stat).map_err(&fail)? {
                return Ok(());
            }
        }
        if entry::is_whiteout(twin.as_fd(), name, &stat).map_err(&fail)? {
            // A guest has made one (mknod(2)): it is nothing, as in an overlay.
            return match number {
                Some(number) => self.removed(name, &self.notes.all[number as usize]),
                None => Ok(()),
            }
            .map_err(fail);
        }
        self.take(twin, name, place, &stat, (number.is_some(), own.is_some())).map_err(fail)
    }

    fn inner(
        &mut self,
        number: u32,
        twin: &OwnedFd,
        name: &OsStr,
        place: &Path,
        stat: &FileStat,
    ) -> Result<(), Trouble> {
        let fail = Trouble::at(place);
        let upper = match self.levels.last() {
            Some(Level { upper: Some(above), .. }) => match entry::look(above.as_fd(), name) {
                Ok(Some(there)) if Type::of(&there) == Type::Directory => {
                    Some(open_up(above.as_fd(), name).map_err(&fail)?.0)
                }
                _ => None,
            },
            _ => None,
        };
        let (inside, closed) = open_up(twin.as_fd(), name).map_err(&fail)?;
        self.levels.push(Level { name: name.to_owned(), upper });
        let done = self.directory(number, place, &inside, stat);
        self.levels.pop();
        // (Should it be gathered once more, it has the mode that it had.)
        closed.map_or(Ok(()), |mode| set_mode(inside.as_fd(), mode)).map_err(&fail)?;
        done
    }

    /// Whether something is the very thing that was made there.
    fn is_what_was_made(
        &self,
        number: u32,
        twin: &OwnedFd,
        name: &OsStr,
        stat: &FileStat,
    ) -> Result<bool, Errno> {
        let noted = &self.notes.all[number as usize];
        if noted.inode != stat.st_ino || noted.is_directory() != (Type::of(stat) == Type::Directory)
        {
            return Ok(false);
        }
        // (A number that was given away again is another thing's, which has changed later.)
        Ok(noted.changed == entry::changed(stat)
            || born(entry::open_path(twin.as_fd(), name)?.as_fd())? == noted.born)
    }

    fn is_unchanged(
        &self,
        number: u32,
        twin: &OwnedFd,
        name: &OsStr,
        place: &Path,
        stat: &FileStat,
    ) -> Result<bool, Errno> {
        let first = self.files.get(&stat.st_ino).copied().unwrap_or(number);
        let Some(filled) = self.filled.get(&first) else {
            return Ok(self.notes.all[number as usize].changed == entry::changed(stat));
        };
        if !filled.is_as_then(stat) {
            return Ok(false);
        }
        let (Ok(lower), Some(file)) = (&self.lower, place.file_name()) else { return Ok(false) };
        let parent = lower.open(place.parent().unwrap_or(Path::new("")));
        let Ok(there) = parent.and_then(|it| entry::open_path(it.as_fd(), file)) else {
            return Ok(false);
        };
        let here = entry::open_path(twin.as_fd(), name)?;
        Ok(entry::attributes(here.as_fd())? == entry::attributes(there.as_fd())?)
    }

    /// Takes something to the layer. `covers`: the host has something there; `own`: it is what stood for that.
    fn take(
        &mut self,
        twin: &OwnedFd,
        name: &OsStr,
        place: &Path,
        stat: &FileStat,
        (covers, own): (bool, bool),
    ) -> Result<(), Errno> {
        let mut closed = None;
        let made = match Type::of(stat) {
            Type::Directory => {
                let (inside, mode) = open_up(twin.as_fd(), name)?;
                self.settle(&inside, place)?;
                closed = mode;
                entry::strip_marks(inside.as_fd())?;
                if covers {
                    let path = descriptor_path(inside.as_fd());
                    beneath::set_attribute(&path, OPAQUE, b"y")?;
                }
                Some(inside)
            }
            Type::File => {
                let file = entry::open_path(twin.as_fd(), name)?;
                self.complete(&file, stat)?;
                if own && stat.st_nlink == 1 {
                    // It is a copy of what this run has seen (`conflicts`), as an overlay marks it.
                    let path = descriptor_path(file.as_fd());
                    let mark = || beneath::set_attribute(&path, c"user.overlay.origin", b"");
                    let _ = entry::unlocked(file.as_fd(), mark);
                }
                None
            }
            _ => None,
        };
        let upper = self.upper()?;
        if entry::look(upper, name)?.is_some() {
            remove_tree(upper, name)?;
        }
        renameat(twin, name, upper, name)?;
        match (made, closed) {
            (Some(made), Some(mode)) => set_mode(made.as_fd(), mode),
            _ => Ok(()),
        }
    }

    /// A name of the host's has gone.
    fn removed(&mut self, name: &OsStr, noted: &Noted) -> Result<(), Errno> {
        if noted.kind == Made::Nothing {
            return Ok(());
        }
        let upper = self.upper()?;
        if let Some(stat) = entry::look(upper, name)? {
            // What an earlier run has changed of a directory goes with it. Anything else was taken here before, or was
            // never brought to the twin.
            let stale = Type::of(&stat) == Type::Directory
                && noted.is_directory()
                && !entry::is_opaque(open_up(upper, name)?.0.as_fd());
            if !stale {
                return Ok(());
            }
            remove_tree(upper, name)?;
        }
        make_whiteout(upper, name)
    }

    /// Gives what was moved here from elsewhere in the twin its content, and takes from it what would mean something
    /// to overlayfs. What is deeper than a path can be long no verb looks at either.
    fn settle(&mut self, directory: &OwnedFd, relative: &Path) -> Result<(), Errno> {
        let frame = |directory: OwnedFd, relative: PathBuf, closed| {
            let names = entry::names(directory.as_fd())?.into_iter();
            Ok(Frame { directory, relative, names, closed })
        };
        let whole = directory.try_clone().map_err(|error| errno_of(&error))?;
        let mut stack = vec![frame(whole, relative.to_owned(), None)?];
        while let Some(top) = stack.last_mut() {
            let Some(name) = top.names.next() else {
                if let Some(Frame { directory, closed: Some(mode), .. }) = stack.pop() {
                    set_mode(directory.as_fd(), mode)?;
                }
                continue;
            };
            let Some(stat) = entry::look(top.directory.as_fd(), &name)? else { continue };
            match Type::of(&stat) {
                Type::Directory => {
                    let place = top.relative.join(&name);
                    if place.as_os_str().len() <= PATH_MAX {
                        let (inside, closed) = open_up(top.directory.as_fd(), &name)?;
                        entry::strip_marks(inside.as_fd())?;
                        stack.push(frame(inside, place, closed)?);
                    }
                }
                Type::File if stat.st_size == 0 || self.files.contains_key(&stat.st_ino) => {
                    let file = entry::open_path(top.directory.as_fd(), &name)?;
                    self.complete(&file, &stat)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Fills a file that still lacks its content. One that is empty must not look like a whiteout.
    fn complete(&mut self, file: &OwnedFd, stat: &FileStat) -> Result<(), Errno> {
        if let Some(number) = self.files.get(&stat.st_ino).copied()
            && !self.filled.contains_key(&number)
            && born(file.as_fd())? == self.notes.all[number as usize].born
        {
            let lower = self.lower.as_ref().map_err(|errno| *errno)?;
            match fill(lower, self.notes, number, file.as_fd()) {
                // What the user may not read nobody has read, either: it stands for the host's, and no commit puts it
                // in the place of that.
                Err(Errno::EACCES) => {
                    let hollow = Belief { hollow: true, ..Belief::default() };
                    let path = descriptor_path(file.as_fd());
                    beneath::set_attribute(&path, NAME, &hollow.text())?;
                }
                done => {
                    done?;
                }
            }
            self.filled.insert(number, Filled::default());
        }
        if stat.st_size == 0 {
            entry::strip_marks(file.as_fd())?;
        }
        Ok(())
    }

    /// The directory of the layer for what is being looked into, made where it is missing, and those above.
    fn upper(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        for at in 1..self.levels.len() {
            if self.levels[at].upper.is_some() {
                continue;
            }
            let above = self.levels[at - 1].upper.as_ref().ok_or(Errno::EIO)?;
            let name = &self.levels[at].name;
            match mkdirat(above, name.as_os_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            let (open, _) = open_up(above.as_fd(), name)?;
            self.levels[at].upper = Some(open);
        }
        let last = self.levels.last().and_then(|level| level.upper.as_ref());
        last.map(AsFd::as_fd).ok_or(Errno::EIO)
    }
}

/// Makes what stands for a removal. An ordinary user may (vfs_mknod in fs/namei.c), but for old kernels (before 5.8) and
/// file systems that are overlays themselves (ovl_mknod in fs/overlayfs/dir.c): there it is a file with an attribute,
/// in a directory with another one (Documentation/filesystems/overlayfs.rst).
fn make_whiteout(upper: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match mknodat(upper, name, SFlag::S_IFCHR, Mode::empty(), 0) {
        Err(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP) => {}
        done => return done,
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = openat(upper, name, flags | OFlag::O_CLOEXEC, mode)?;
    let path = descriptor_path(file.as_fd());
    beneath::set_attribute(&path, c"user.overlay.whiteout", b"y")?;
    if !entry::is_opaque(upper) {
        beneath::set_attribute(&descriptor_path(upper), OPAQUE, b"x")?;
    }
    Ok(())
}
