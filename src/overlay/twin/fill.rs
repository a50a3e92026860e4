//! Giving files of a twin their content, when they are first opened.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::ftruncate;

use super::super::apply::Root;
use super::super::changes::set_mode;
use super::super::description::Stamp;
use super::super::entry::{self, Type};
use super::notes::{Made, Notes};
use super::tree::born;
use super::{FILLED, Trouble, filled_file, open_lower};
use crate::sentry::Content;
use crate::sys::copy::copy_content;
use crate::sys::files;

/// What is known of a file that got its content.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Filled {
    /// What it was like then. None: a run that was killed has not told.
    then: Option<Then>,
    /// Somebody may have written to it.
    written: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Then {
    changed: Stamp,
    modified: Stamp,
    mode: u32,
    names: u64,
    size: i64,
}

impl Then {
    fn of(stat: &FileStat) -> Then {
        let modified = Stamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec };
        let (mode, names, size) = (stat.st_mode, stat.st_nlink, stat.st_size);
        Then { changed: entry::changed(stat), modified, mode, names, size }
    }
}

impl Filled {
    /// Whether nobody has changed it since, as far as its stamps tell. (Attributes are not among them: what was
    /// changed in the same tick of the clock has the same stamp.)
    pub(super) fn is_as_then(&self, stat: &FileStat) -> bool {
        !self.written && self.then == Some(Then::of(stat))
    }
}

/// What a run that was killed has left.
pub(super) fn left(layer: BorrowedFd<'_>) -> HashMap<u32, Filled> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut bytes = Vec::new();
    if let Ok(file) = openat(layer, FILLED, flags, Mode::empty()) {
        // (What cannot be read was changed, for all that is known: then it is looked at.)
        let _ = File::from(file).read_to_end(&mut bytes);
    }
    let numbers = bytes.chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    numbers.map(|number| (number, Filled::default())).collect()
}

/// The twins of a run.
#[derive(Debug)]
pub struct Twins(Vec<Twin>);

#[derive(Debug)]
struct Twin {
    /// The number of its layer.
    layer: usize,
    /// Where guests find it.
    target: PathBuf,
    /// Where it is.
    place: PathBuf,
    notes: Notes,
    lower: Root,
    /// Files by inode.
    files: HashMap<u64, u32>,
    state: Mutex<State>,
    /// Something was filled, or could not be.
    done: Condvar,
}

#[derive(Debug)]
struct State {
    filled: HashMap<u32, Filled>,
    /// They are being filled.
    busy: HashSet<u32>,
    log: File,
}

impl Twins {
    pub(super) fn new() -> Twins {
        Twins(Vec::new())
    }

    /// Adds the twin of a layer, whose directory this is.
    pub(super) fn add(
        &mut self,
        (layer, directory): (usize, BorrowedFd<'_>),
        (target, place): (PathBuf, PathBuf),
        notes: Notes,
    ) -> Result<(), Trouble> {
        let top = Trouble::at(Path::new(""));
        let log = filled_file(directory).map_err(&top)?;
        let lower = Root(open_lower(&notes.lower()).map_err(top)?);
        let state = State { filled: HashMap::new(), busy: HashSet::new(), log };
        let files = by_inode(&notes);
        let (state, done) = (Mutex::new(state), Condvar::new());
        self.0.push(Twin { layer, target, place, notes, lower, files, state, done });
        Ok(())
    }

    /// What was filled in the twin of a layer.
    pub(in super::super) fn filled(&self, layer: usize) -> Option<HashMap<u32, Filled>> {
        let twin = self.0.iter().find(|twin| twin.layer == layer)?;
        Some(twin.lock().filled.clone())
    }

    /// Where on the host something is that has this path inside.
    pub(super) fn place_of(&self, path: &Path) -> PathBuf {
        let below = |twin: &Twin| {
            let rest = path.strip_prefix(&twin.target).ok()?;
            Some((twin.target.components().count(), twin.place.join(rest)))
        };
        let nearest = self.0.iter().filter_map(below).max_by_key(|(depth, _)| *depth);
        nearest.map_or_else(|| path.to_owned(), |(_, place)| place)
    }

    /// The note of a file of a twin, if that is what a descriptor stands for.
    fn find(&self, file: BorrowedFd<'_>, stat: &FileStat) -> Option<(&Twin, u32)> {
        let known = |twin: &Twin| {
            let number = (twin.notes.device == stat.st_dev).then(|| twin.files.get(&stat.st_ino));
            number.flatten().copied()
        };
        let mut found = self.0.iter().filter_map(|twin| Some((twin, known(twin)?)));
        // A file that has gone leaves its inode to another one.
        found.find(|(twin, number)| born(file) == Ok(twin.notes.all[*number as usize].born))
    }
}

/// The files of a twin that may lack content.
pub(super) fn by_inode(notes: &Notes) -> HashMap<u64, u32> {
    let all = notes.all.iter().enumerate().filter(|(_, noted)| noted.kind == Made::File);
    all.map(|(number, noted)| (noted.inode, number as u32)).collect()
}

impl Content for Twins {
    fn fetch_program(&self, path: &Path, workdir: &Path) -> Result<(), Errno> {
        self.complete_program(path, workdir)
    }

    fn lacks(&self, file: BorrowedFd<'_>, stat: &FileStat, changes: bool) -> bool {
        let Some((twin, number)) = self.find(file, stat) else { return false };
        let mut state = twin.lock();
        match state.filled.get_mut(&number) {
            None => true,
            Some(filled) => {
                filled.written |= changes;
                false
            }
        }
    }

    fn fetch(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = fstat(file)?;
        match self.find(file, &stat) {
            Some((twin, number)) => twin.fetch(file, number),
            None => Ok(()),
        }
    }
}

impl Twin {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills a file, unless that was done; waits where somebody else is at it.
    fn fetch(&self, file: BorrowedFd<'_>, number: u32) -> Result<(), Errno> {
        let mut state = self.lock();
        while state.busy.contains(&number) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.filled.contains_key(&number) {
            return Ok(());
        }
        state.busy.insert(number);
        drop(state);
        let filled = fill(&self.lower, &self.notes, number, file);
        let mut state = self.lock();
        state.busy.remove(&number);
        if let Ok(stat) = &filled {
            let written = state.log.write_all(&number.to_le_bytes());
            if written.is_err() {
                tracing::debug!(number, "the disk is full: after a crash it would be filled again");
            }
            let then = Some(Then::of(stat));
            state.filled.insert(number, Filled { then, written: false });
        }
        drop(state);
        self.done.notify_all();
        filled.map(drop)
    }
}

/// Gives a file of a twin the content that the host's has. Mode and times are afterwards as they were.
///
/// # Errors
/// What opening and copying say; the file is empty as before.
pub(super) fn fill(
    lower: &Root,
    notes: &Notes,
    number: u32,
    file: BorrowedFd<'_>,
) -> Result<FileStat, Errno> {
    let path = notes.path_of(number);
    let parent = lower.open(path.parent().unwrap_or(Path::new("")))?;
    let from = entry::open_file(parent.as_fd(), path.file_name().unwrap_or_default())?;
    let there = fstat(&from)?;
    if Type::of(&there) != Type::File {
        return Err(Errno::ESTALE);
    }
    let before = fstat(file)?;
    let to = open_to_fill(file, &before)?;
    // (The host may have made it longer or shorter meanwhile.)
    let size = there.st_size as u64;
    let copied = ftruncate(&to, there.st_size)
        .and_then(|()| copy_content(from.as_fd(), (to.as_fd(), 0), size, &mut |_| {}));
    if copied.is_err() {
        let _ = ftruncate(&to, 0).and_then(|()| ftruncate(&to, before.st_size));
    }
    // Whoever writes without the right to keep them loses the set-id bits (file_remove_privs in fs/inode.c).
    if fstat(&to)?.st_mode != before.st_mode {
        set_mode(file, before.st_mode)?;
    }
    let accessed = TimeSpec::new(before.st_atime, before.st_atime_nsec);
    let modified = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
    futimens(&to, &accessed, &modified)?;
    copied.and_then(|()| fstat(&to))
}

/// Opens a file of the user's own to write to it, whatever its mode.
fn open_to_fill(file: BorrowedFd<'_>, stat: &FileStat) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let again = || open(&*files::descriptor_path(file), flags, Mode::empty());
    match again() {
        Err(Errno::EACCES) => {
            set_mode(file, stat.st_mode | libc::S_IWUSR)?;
            let opened = again();
            set_mode(file, stat.st_mode)?;
            opened
        }
        opened => opened,
    }
}
