//! Making a twin: the names of a directory of the host, and of what its layer has changed of them.
//!
//! What the layer has is moved to the twin, but only when all is noted: who is killed in between loses nothing,
//! since what the layer has is taken as it is when all is gathered.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::{AccessFlags, faccessat, ftruncate, linkat, symlinkat};

use super::super::apply::{PATH_MAX, set_times};
use super::super::changes::set_mode;
use super::super::entry::{self, Type};
use super::super::store::{make_directory, open_closed};
use super::notes::{Made, Noted, Notes};
use super::tree::{born, dress, open_up};
use super::{NOTES, PLACE, Trouble, filled_file, open_lower};

/// What a twin is made of.
pub(in super::super) struct Ground<'g> {
    /// The directory that it is of.
    pub(in super::super) lower: &'g Path,
    /// Whether something is mounted on a path below it, so that nothing of it need be shown.
    pub(in super::super) covered: &'g (dyn Fn(&Path) -> bool + Sync),
    /// Whether an owner does not exist inside.
    pub(in super::super) foreign: &'g (dyn Fn(u32, u32) -> bool + Sync),
}

/// Makes the twin in the directory of a layer, and gives its notes.
pub(in super::super) fn make(layer: BorrowedFd<'_>, ground: &Ground<'_>) -> Result<Notes, Trouble> {
    let top = Trouble::at(Path::new(""));
    let twin = make_directory(layer, PLACE).map_err(&top)?;
    let upper = open_closed(layer, "upper").map_err(&top)?;
    let stat = fstat(&upper).map_err(&top)?;
    let lower = open_lower(ground.lower).map_err(&top)?;
    // What is said of this file will be said of the others; an overlay has another number for its directories
    // (Documentation/filesystems/overlayfs.rst, inode properties).
    let sample = filled_file(layer).map_err(&top)?;
    born(sample.as_fd()).map_err(&top)?;
    let device = fstat(&sample).map_err(&top)?.st_dev;
    let mut notes = Notes::new(ground.lower, device);
    notes.add(Noted::new(0, OsStr::new(""), Made::Directory));
    let mut maker = Maker { ground, notes, names: HashMap::new(), moves: Vec::new() };
    // An earlier run may have taken the rights from it.
    set_mode(upper.as_fd(), stat.st_mode | libc::S_IRWXU).map_err(&top)?;
    let filled = maker.fill(0, Path::new(""), Some(&lower), Some(&upper), &twin);
    set_mode(upper.as_fd(), stat.st_mode).map_err(&top)?;
    filled?;
    dress(twin.as_fd(), (upper.as_fd(), &stat), false).map_err(&top)?;
    set_times(layer, PLACE.as_ref(), &stat).map_err(&top)?;
    maker.note(0, twin.as_fd()).map_err(&top)?;
    maker.notes.write(layer, NOTES).map_err(&top)?;
    if !maker.moves.is_empty() {
        let mode = stat.st_mode | libc::S_IRWXU;
        [&upper, &twin].into_iter().try_for_each(|it| set_mode(it.as_fd(), mode)).map_err(&top)?;
        for moved in &maker.moves {
            move_in(moved, upper.as_fd(), twin.as_fd()).map_err(Trouble::at(moved))?;
        }
        set_mode(twin.as_fd(), stat.st_mode).map_err(&top)?;
        set_times(layer, PLACE.as_ref(), &stat).map_err(&top)?;
    }
    Ok(maker.notes)
}

struct Maker<'m> {
    ground: &'m Ground<'m>,
    notes: Notes,
    /// Of files with several names: the inode on the host, where the first of them is, and all their notes.
    names: HashMap<(u64, u64), (PathBuf, Vec<u32>)>,
    /// What of the layer is to be moved to the twin.
    moves: Vec<PathBuf>,
}

impl Maker<'_> {
    /// Makes in `twin` what the two other directories have.
    fn fill(
        &mut self,
        number: u32,
        relative: &Path,
        lower: Option<&OwnedFd>,
        upper: Option<&OwnedFd>,
        twin: &OwnedFd,
    ) -> Result<(), Trouble> {
        let fail = Trouble::at(relative);
        let mut left: BTreeSet<OsString> = match upper {
            Some(upper) => entry::names(upper.as_fd()).map_err(&fail)?.into_iter().collect(),
            None => BTreeSet::new(),
        };
        if let Some(lower) = lower {
            for name in entry::names(lower.as_fd()).map_err(&fail)? {
                let place = relative.join(&name);
                left.remove(&name);
                self.name(number, &place, &name, (lower, upper), twin)?;
            }
        }
        for name in left {
            let upper = upper.ok_or_else(|| fail(Errno::EIO))?;
            let place = relative.join(&name);
            let fail = Trouble::at(&place);
            let Some(stat) = entry::look(upper.as_fd(), &name).map_err(&fail)? else { continue };
            if !entry::is_whiteout(upper.as_fd(), &name, &stat).map_err(&fail)? {
                self.moves.push(place);
            }
        }
        Ok(())
    }

    /// One name of the host's.
    fn name(
        &mut self,
        parent: u32,
        place: &Path,
        name: &OsStr,
        (lower, upper): (&OwnedFd, Option<&OwnedFd>),
        twin: &OwnedFd,
    ) -> Result<(), Trouble> {
        let fail = Trouble::at(place);
        let Some(stat) = entry::look(lower.as_fd(), name).map_err(&fail)? else { return Ok(()) };
        let above = match upper {
            Some(upper) => entry::look(upper.as_fd(), name).map_err(&fail)?,
            None => None,
        };
        let is_directory = |stat: &FileStat| Type::of(stat) == Type::Directory;
        let Some((upper, above)) = upper.zip(above) else {
            return match is_directory(&stat) {
                true => self.directory(parent, place, name, (lower, &stat), None, twin),
                false => self.thing(parent, place, name, (lower, &stat), twin).map_err(fail),
            };
        };
        if is_directory(&stat) && is_directory(&above) {
            let (inner, closed) = open_up(upper.as_fd(), name).map_err(&fail)?;
            let merged = !entry::is_opaque(inner.as_fd());
            if merged {
                let changed = Some((&inner, &above));
                self.directory(parent, place, name, (lower, &stat), changed, twin)?;
            }
            if let Some(mode) = closed {
                set_mode(inner.as_fd(), mode).map_err(&fail)?;
            }
            if merged {
                return Ok(());
            }
        }
        self.notes.add(Noted::new(parent, name, Made::Covered));
        if !entry::is_whiteout(upper.as_fd(), name, &above).map_err(&fail)? {
            self.moves.push(place.to_owned());
        }
        Ok(())
    }

    /// A directory of the host's, which the layer may have changed.
    fn directory(
        &mut self,
        parent: u32,
        place: &Path,
        name: &OsStr,
        (lower, stat): (&OwnedFd, &FileStat),
        upper: Option<(&OwnedFd, &FileStat)>,
        twin: &OwnedFd,
    ) -> Result<(), Trouble> {
        let fail = Trouble::at(place);
        let empty = (self.ground.covered)(place) || place.as_os_str().len() > PATH_MAX;
        let inner = match empty {
            true => None,
            // One that is closed to the user is shown as it is, and nothing of what is in it.
            false => match entry::open_directory(lower.as_fd(), name) {
                Err(Errno::EACCES) => None,
                opened => Some(opened.map_err(&fail)?),
            },
        };
        let inner =
            inner.filter(|it| faccessat(it, ".", AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok());
        let kind = if inner.is_some() { Made::Directory } else { Made::Empty };
        let number = self.notes.add(Noted::new(parent, name, kind));
        mkdirat(twin, name, Mode::S_IRWXU).map_err(&fail)?;
        let made = entry::open_directory(twin.as_fd(), name).map_err(&fail)?;
        if inner.is_some() || upper.is_some() {
            self.fill(number, place, inner.as_ref(), upper.map(|it| it.0), &made)?;
        }
        let path = entry::open_path(lower.as_fd(), name).map_err(&fail)?;
        let from = match upper {
            // What an earlier run has made of it counts.
            Some((upper, stat)) => (upper.as_fd(), stat),
            None => (path.as_fd(), stat),
        };
        self.finish(number, (lower, name), from, (twin, made.as_fd())).map_err(fail)
    }

    /// Anything else of the host's.
    fn thing(
        &mut self,
        parent: u32,
        place: &Path,
        name: &OsStr,
        (lower, stat): (&OwnedFd, &FileStat),
        twin: &OwnedFd,
    ) -> Result<(), Errno> {
        let kind = Type::of(stat);
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let several = stat.st_nlink > 1;
        if several && let Some((first, _)) = self.names.get(&(stat.st_dev, stat.st_ino)) {
            let above = twin_of(twin, place, first)?;
            linkat(&above, first.file_name().unwrap_or_default(), twin, name, AtFlags::empty())?;
            let made = if kind == Type::File { Made::File } else { Made::Other };
            let number = self.notes.add(Noted::new(parent, name, made));
            self.note(number, entry::open_path(twin.as_fd(), name)?.as_fd())?;
            self.renew((stat.st_dev, stat.st_ino), number);
            return Ok(());
        }
        match kind {
            Type::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let made = openat(twin, name, flags | OFlag::O_CLOEXEC, mode)?;
                ftruncate(&made, stat.st_size)?;
            }
            Type::Link => {
                symlinkat(readlinkat(lower, name)?.as_os_str(), twin, name)?;
            }
            Type::Fifo | Type::Socket | Type::Device => {
                let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
                match mknodat(twin, name, kind, mode, stat.st_rdev) {
                    // An ordinary user makes no devices.
                    Err(Errno::EPERM) => {
                        self.notes.add(Noted::new(parent, name, Made::Nothing));
                        return Ok(());
                    }
                    made => made?,
                }
            }
            Type::Directory => return Err(Errno::EISDIR),
        }
        let note = if kind == Type::File { Made::File } else { Made::Other };
        let number = self.notes.add(Noted::new(parent, name, note));
        if several {
            self.names.insert((stat.st_dev, stat.st_ino), (place.to_owned(), vec![number]));
        }
        let (from, made) =
            (entry::open_path(lower.as_fd(), name)?, entry::open_path(twin.as_fd(), name)?);
        self.finish(number, (lower, name), (from.as_fd(), stat), (twin, made.as_fd()))
    }

    /// Gives something the attributes that it is to have, and notes it.
    fn finish(
        &mut self,
        number: u32,
        (lower, name): (&OwnedFd, &OsStr),
        (from, stat): (BorrowedFd<'_>, &FileStat),
        (twin, made): (&OwnedFd, BorrowedFd<'_>),
    ) -> Result<(), Errno> {
        let foreign = (self.ground.foreign)(stat.st_uid, stat.st_gid);
        let mut stat = *stat;
        if foreign && Type::of(&stat) != Type::Link {
            stat.st_mode = own_mode(lower, name, stat.st_mode);
        }
        dress(made, (from, &stat), foreign)?;
        set_times(twin.as_fd(), name, &stat)?;
        self.note(number, made)?;
        self.notes.all[number as usize].foreign = foreign;
        Ok(())
    }

    fn note(&mut self, number: u32, made: BorrowedFd<'_>) -> Result<(), Errno> {
        let (stat, born) = (fstat(made)?, born(made)?);
        let noted = &mut self.notes.all[number as usize];
        (noted.inode, noted.born, noted.changed) = (stat.st_ino, born, entry::changed(&stat));
        Ok(())
    }

    /// A file has changed when it was given one more name: all its notes say so.
    fn renew(&mut self, file: (u64, u64), last: u32) {
        let changed = self.notes.all[last as usize].changed;
        let Some((_, notes)) = self.names.get_mut(&file) else { return };
        notes.push(last);
        for number in notes.iter() {
            self.notes.all[*number as usize].changed = changed;
        }
    }
}

/// The directory of the twin in which another path is; `at` is the one of `place`.
fn twin_of(at: &OwnedFd, place: &Path, other: &Path) -> Result<OwnedFd, Errno> {
    let ups = place.parent().map_or(0, |above| above.components().count());
    let mut path = PathBuf::from(".");
    path.extend(std::iter::repeat_n("..", ups));
    path.extend(other.parent());
    openat(at, &path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Moves something of the layer to the twin.
fn move_in(moved: &Path, upper: BorrowedFd<'_>, twin: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut above = Vec::new();
    let (mut from, mut to) = (copy_of(upper)?, copy_of(twin)?);
    for name in moved.parent().into_iter().flatten() {
        let stat = entry::look(to.as_fd(), name)?.ok_or(Errno::ENOENT)?;
        // (What the layer's own directories get, is decided when all is gathered.)
        from = open_up(from.as_fd(), name)?.0;
        let inner = open_up(to.as_fd(), name)?.0;
        above.push((std::mem::replace(&mut to, inner), name, stat));
    }
    let name = moved.file_name().unwrap_or_default();
    let stat = entry::look(from.as_fd(), name)?.ok_or(Errno::ENOENT)?;
    if Type::of(&stat) == Type::Directory {
        // To move a directory elsewhere is to write its "..".
        let (inside, closed) = open_up(from.as_fd(), name)?;
        renameat(&from, name, &to, name)?;
        entry::strip_marks(inside.as_fd())?;
        set_times(to.as_fd(), name, &stat)?;
        if let Some(mode) = closed {
            set_mode(inside.as_fd(), mode)?;
        }
    } else {
        renameat(&from, name, &to, name)?;
    }
    // The directories above are as they were, times and all.
    for (parent, name, stat) in above.iter().rev() {
        set_mode(entry::open_path(parent.as_fd(), name)?.as_fd(), stat.st_mode)?;
        set_times(parent.as_fd(), name, stat)?;
    }
    Ok(())
}

/// The bits of a mode that a file of somebody else's has as one of the user's own: what the user may do with it.
fn own_mode(parent: &OwnedFd, name: &OsStr, mode: u32) -> u32 {
    let may = |how| faccessat(parent, name, how, AtFlags::AT_EACCESS).is_ok();
    let bits = [
        (AccessFlags::R_OK, libc::S_IRUSR),
        (AccessFlags::W_OK, libc::S_IWUSR),
        (AccessFlags::X_OK, libc::S_IXUSR),
    ];
    let own: u32 = bits.into_iter().filter(|(how, _)| may(*how)).map(|(_, bit)| bit).sum();
    mode & !(libc::S_IRWXU | libc::S_ISUID | libc::S_ISGID | libc::S_ISVTX) | own
}

fn copy_of(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    directory.try_clone_to_owned().map_err(|error| crate::sys::errno_of(&error))
}
