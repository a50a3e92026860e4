//! Which files the guests touch (`--record-files`, `sandbox learn`).
//!
//! Owns the list of paths with what was done to each, and what was looked for in vain. Calls are watched, not
//! decided: they go on in the host's kernel, so what is listed is what was asked for, and a guest that changes
//! a path while it is looked at deceives its user about its own inputs only.

mod content;
mod look;

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use content::Content;
use content::Hasher;
use look::{Found, There};
pub use look::{Kind, touch_of_open};
pub(super) use look::{View, own_descriptor};

use super::paths::{Start, interpreter_of};

bitflags::bitflags! {
    /// What was done to a file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Touch: u16 {
        /// Its attributes were asked for.
        const INSPECTED = 1;
        /// It was opened for reading.
        const READ = 1 << 1;
        /// A directory was opened for reading.
        const LISTED = 1 << 2;
        /// It was executed, or is the interpreter of what was.
        const EXECUTED = 1 << 3;
        /// It was opened for writing.
        const WRITTEN = 1 << 4;
        /// It was not there before.
        const CREATED = 1 << 5;
        /// Its name or its attributes were changed.
        const CHANGED = 1 << 6;
        /// It was removed, or given another name.
        const REMOVED = 1 << 7;
        /// Something that had another name was put in its place. Never without WRITTEN.
        const REPLACED = 1 << 8;
        /// It was asked whether it may be written to.
        const ASKED = 1 << 9;
    }
}

impl Touch {
    /// Whether a file may be another one afterwards.
    pub fn may_change(self) -> bool {
        self.intersects(Touch::AFTER)
    }

    const AFTER: Touch =
        Touch::WRITTEN.union(Touch::CREATED).union(Touch::CHANGED).union(Touch::REMOVED);
    /// Their content is what counts.
    const CONTENT: Touch = Touch::READ.union(Touch::EXECUTED);
}

/// What is known of one path.
#[derive(Debug, Clone, Default)]
struct Entry {
    kind: Kind,
    touch: Touch,
    /// Where a symbolic link leads.
    target: Option<Vec<u8>>,
}

/// One line of the report.
#[derive(Debug, Clone)]
pub struct Touched {
    /// Absolute, as the guest sees it, without symbolic links but for its last part.
    pub path: Vec<u8>,
    /// What it is, or was.
    pub kind: Kind,
    /// What was done to it.
    pub touch: Touch,
    /// Where a symbolic link leads.
    pub target: Option<Vec<u8>>,
    /// Content of a file as the guests found it, if they read or executed it.
    pub before: Option<Content>,
    /// What was left of it, if they changed it: `None` where nothing is.
    pub after: Option<Content>,
}

/// What was touched.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// By path.
    pub files: Vec<Touched>,
    /// What was looked for and is not there, by path.
    pub missing: Vec<Vec<u8>>,
    /// What was looked for in directories that the guests' user may not look into, by path.
    pub closed: Vec<Vec<u8>>,
    /// Calls of which it could not be told what they are about.
    pub untold: u64,
}

/// The log itself.
#[derive(Debug, Default)]
pub struct FileLog {
    /// Once there is a guest that can be looked at, and until the end. A leaf of the lock order.
    view: Mutex<Option<Arc<View>>>,
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
    /// Immutable; `None`: nobody wants to know of contents.
    hasher: Option<Hasher>,
    untold: AtomicU64,
}

/// Protected by `FileLog::inner`.
#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<Vec<u8>, Entry>,
    missing: BTreeSet<Vec<u8>>,
    closed: BTreeSet<Vec<u8>>,
    /// About what all that takes.
    bytes: usize,
}

/// What a call does with a path.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// What is done to what is there.
    pub touch: Touch,
    /// A symbolic link at the end is followed.
    pub follow: bool,
    /// What is not there is made.
    pub creates: bool,
}

/// A guest thread that makes a call.
pub struct Caller<'c> {
    /// As the host numbers it.
    pub tid: i32,
    /// Whether the number is still that thread's.
    pub is_valid: &'c dyn Fn() -> bool,
}

/// More paths than this are not kept: guests must not use up the sentry's memory.
const MOST_BYTES: usize = 256 << 20;

impl FileLog {
    /// An empty one, which notes contents (size and hash) too, or not.
    pub fn new(contents: bool) -> FileLog {
        FileLog { hasher: contents.then(Hasher::default), ..FileLog::default() }
    }

    /// A guest thread uses a path, from where it starts. Blocks: file systems may take their time.
    pub fn note(&self, caller: &Caller<'_>, start: Start, path: &[u8], how: Use) {
        let Some((links, found)) = self.find(caller, start, path, how.follow) else { return };
        links.into_iter().for_each(|link| self.there(caller, link, Touch::INSPECTED));
        match found {
            Found::There(there) => self.there(caller, there, how.touch),
            Found::Missing(path) => self.missing(path, how),
            Found::Closed(path) => self.closed(path),
        }
    }

    /// A guest thread gives what is at one path another one.
    pub fn note_moved(
        &self,
        caller: &Caller<'_>,
        (from, old): (Start, &[u8]),
        (to, new): (Start, &[u8]),
    ) {
        let removed = Use { touch: Touch::REMOVED, follow: false, creates: false };
        let touch = Touch::WRITTEN | Touch::REPLACED;
        let replaced = Use { touch, follow: false, creates: true };
        let old_path = match self.find(caller, from, old, false) {
            Some((_, Found::There(there))) => there.path,
            _ => return self.note(caller, from, old, removed),
        };
        self.note(caller, from, old, removed);
        self.note(caller, to, new, replaced);
        let Some((_, found)) = self.find(caller, to, new, false) else { return };
        let new_path = match found {
            Found::There(there) => there.path,
            Found::Missing(path) => path,
            Found::Closed(_) => return,
        };
        self.carry(&old_path, &new_path);
    }

    /// A guest thread executes what a path leads to: interpreters are executed, too.
    pub fn note_exec(&self, caller: &Caller<'_>, start: Start, path: &[u8]) {
        /// So many interpreters of interpreters (exec_binprm in fs/exec.c).
        const MOST: usize = 5;
        let how = Use { touch: Touch::EXECUTED, follow: true, creates: false };
        self.note(caller, start, path, how);
        let Some(view) = self.view(caller) else { return };
        let next = |start, path: &[u8]| {
            view.open(caller.tid, start, path).and_then(|file| interpreter_of(&file))
        };
        let mut interpreter = next(start, path);
        for _ in 0..MOST {
            let Some(path) = interpreter else { return };
            self.note(caller, Start::Directory, &path, how);
            interpreter = next(Start::Directory, &path);
        }
    }

    /// The program of a process, which may have been executed unseen.
    pub fn note_program(&self, caller: &Caller<'_>) {
        let Some(view) = self.view(caller) else { return self.could_not_tell() };
        if let Some(path) = view.program(caller.tid) {
            self.note_exec(caller, Start::Directory, &path);
        }
    }

    fn could_not_tell(&self) {
        self.untold.fetch_add(1, Ordering::Relaxed);
    }

    fn find(
        &self,
        caller: &Caller<'_>,
        start: Start,
        path: &[u8],
        follow: bool,
    ) -> Option<(Vec<There>, Found)> {
        let found = self.view(caller).and_then(|view| view.find(caller.tid, start, path, follow));
        // What was found by its number counts only if it is still that thread's.
        let found = found.filter(|_| (caller.is_valid)());
        if found.is_none() {
            self.could_not_tell();
        }
        found
    }

    fn view(&self, caller: &Caller<'_>) -> Option<Arc<View>> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if view.is_none() {
            *view = View::of(caller.tid).filter(|_| (caller.is_valid)()).map(Arc::new);
        }
        view.clone()
    }

    fn there(&self, caller: &Caller<'_>, there: There, touch: Touch) {
        let There { path, kind, file, target } = there;
        let touch = match kind {
            Kind::Directory if touch.contains(Touch::READ) => (touch - Touch::READ) | Touch::LISTED,
            _ => touch,
        };
        let Some(is_own) = self.lock().add(path.clone(), Entry { kind, touch, target }) else {
            return self.could_not_tell();
        };
        let (Some(file), Some(hasher)) = (file.filter(|_| kind == Kind::File), &self.hasher) else {
            return;
        };
        // What was there before is to be known as it was, before anybody writes to it.
        if touch.intersects(Touch::CONTENT | Touch::WRITTEN) && !is_own {
            let readable = || look::may_read(caller.tid, &file).then(|| look::reopen(&file))?;
            if !hasher.look(path, readable) {
                self.could_not_tell();
            }
        }
        if touch.contains(Touch::WRITTEN)
            && let Some(identity) = look::identity(&file)
        {
            hasher.wait_for(identity);
        }
    }

    fn missing(&self, path: Vec<u8>, how: Use) {
        let mut inner = self.lock();
        let is_kept = match how.creates {
            true => {
                let touch = how.touch | Touch::CREATED;
                inner.add(path, Entry { touch, ..Entry::default() }).is_some()
            }
            // (What the guests have made and removed is not looked for outside.)
            false => inner.files.contains_key(&path) || inner.add_missing(path),
        };
        if !is_kept {
            self.could_not_tell();
        }
    }

    /// Nobody can tell whether it is there.
    fn closed(&self, path: Vec<u8>) {
        self.lock().add_closed(path);
        self.could_not_tell();
    }

    /// What the guests have made at one path, or below it, they have now at another.
    fn carry(&self, old: &[u8], new: &[u8]) {
        let mut inner = self.lock();
        let below = |path: &[u8]| {
            path.strip_prefix(old).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let made = inner.files.range(old.to_vec()..).take_while(|(path, _)| path.starts_with(old));
        let made = made.filter(|(path, entry)| {
            below(path) && entry.touch.contains(Touch::CREATED) && path.as_slice() != new
        });
        let made: Vec<(Vec<u8>, Entry)> =
            made.map(|(path, entry)| (path.clone(), entry.clone())).collect();
        for (path, entry) in made {
            let moved = [new, &path[old.len()..]].concat();
            let touch = entry.touch - Touch::REMOVED;
            let is_kept = inner.add(moved, Entry { touch, ..entry }).is_some();
            if !is_kept {
                self.could_not_tell();
            }
            if let Some(entry) = inner.files.get_mut(&path) {
                entry.touch |= Touch::REMOVED;
            }
        }
    }

    /// Everything, once no guest is left that matters; ends the log, and the file view with it. Blocks.
    pub fn report(&self) -> Report {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner).take();
        let before = self.hasher.as_ref().map(Hasher::all).unwrap_or_default();
        let Inner { files, missing, closed, .. } = std::mem::take(&mut *self.lock());
        let line = |(path, entry): (Vec<u8>, Entry)| {
            let Entry { mut kind, touch, mut target } = entry;
            let mut after = None;
            if touch.may_change()
                && let Some(there) = view.as_ref().and_then(|view| view.at(&path))
            {
                (kind, target) = (there.kind, there.target);
                let file = there.file.filter(|_| kind == Kind::File);
                let file = self.hasher.as_ref().zip(file.as_ref().and_then(look::reopen));
                after = Some(file.and_then(|(hasher, file)| hasher.of(&file)).unwrap_or_default());
            }
            let before = before.get(&path).copied();
            Touched { path, kind, touch, target, before, after }
        };
        Report {
            files: files.into_iter().map(line).collect(),
            missing: missing.into_iter().collect(),
            closed: closed.into_iter().collect(),
            untold: self.untold.load(Ordering::Relaxed),
        }
    }

    /// Nobody is to wait for hashes any more.
    pub fn hurry(&self) {
        self.hasher.iter().for_each(Hasher::stop);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Adds to what is known of a path. Gives whether the guests have made it; `None`: there is no room for more.
    fn add(&mut self, path: Vec<u8>, entry: Entry) -> Option<bool> {
        let bytes = cost(&path) + entry.target.as_ref().map_or(0, Vec::len);
        match self.files.entry(path) {
            Place::Occupied(mut known) => {
                let known = known.get_mut();
                let is_own = known.touch.contains(Touch::CREATED);
                if known.kind == Kind::Unknown || known.touch.contains(Touch::REMOVED) {
                    (known.kind, known.target) = (entry.kind, entry.target);
                }
                known.touch |= entry.touch;
                Some(is_own)
            }
            Place::Vacant(_) if self.bytes + bytes > MOST_BYTES => None,
            Place::Vacant(place) => {
                self.bytes += bytes;
                let is_own = entry.touch.contains(Touch::CREATED);
                place.insert(entry);
                Some(is_own)
            }
        }
    }

    fn add_missing(&mut self, path: Vec<u8>) -> bool {
        add(&mut self.missing, &mut self.bytes, path)
    }

    fn add_closed(&mut self, path: Vec<u8>) -> bool {
        add(&mut self.closed, &mut self.bytes, path)
    }
}

/// Adds to a set of paths, whose bytes count; gives whether it is in there.
fn add(paths: &mut BTreeSet<Vec<u8>>, bytes: &mut usize, path: Vec<u8>) -> bool {
    let cost = cost(&path);
    if paths.contains(&path) {
        return true;
    }
    if *bytes + cost > MOST_BYTES {
        return false;
    }
    *bytes += cost;
    paths.insert(path)
}

fn cost(path: &[u8]) -> usize {
    path.len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(touch: Touch) -> Entry {
        Entry { touch, ..Entry::default() }
    }

    #[test]
    fn what_is_made_is_own_wherever_it_goes() {
        let log = FileLog::default();
        log.lock().add(b"/a/made".to_vec(), made(Touch::CREATED));
        log.lock().add(b"/a/found".to_vec(), made(Touch::READ));
        log.lock().add(b"/ab".to_vec(), made(Touch::CREATED));
        log.carry(b"/a", b"/b");
        let inner = log.lock();
        assert_eq!(inner.files[b"/b/made".as_slice()].touch, Touch::CREATED);
        assert_eq!(inner.files[b"/a/made".as_slice()].touch, Touch::CREATED | Touch::REMOVED);
        assert!(!inner.files.contains_key(b"/b/found".as_slice()));
        assert_eq!(inner.files[b"/ab".as_slice()].touch, Touch::CREATED);
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let mut inner = Inner { bytes: MOST_BYTES - 200, ..Inner::default() };
        assert!(inner.add_missing(b"/one".to_vec()) && inner.add_missing(b"/one".to_vec()));
        assert!(!inner.add_missing(b"/two".to_vec()));
        assert_eq!(inner.add(b"/three".to_vec(), made(Touch::READ)), None);
    }
}
