//! Which files the guests touch (`--record-files`).
//!
//! Owns the list of paths with what was done to each, and what was looked for in vain. Calls are watched, not
//! decided: they go on in the host's kernel, so what is listed is what was asked for, and a guest that changes
//! a path while it is looked at deceives its user about its own inputs only.

mod content;
mod look;

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub use content::Content;
use content::Hasher;
use look::{Found, There, View};
pub use look::{Kind, Start, touch_of_open};

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
    /// Calls of which it could not be told what they are about.
    pub untold: u64,
}

/// The log itself.
#[derive(Debug, Default)]
pub struct FileLog {
    view: OnceLock<View>,
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
    hasher: Hasher,
    untold: AtomicU64,
}

/// Protected by `FileLog::inner`.
#[derive(Debug, Clone, Default)]
struct Inner {
    files: BTreeMap<Vec<u8>, Entry>,
    missing: BTreeSet<Vec<u8>>,
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

impl FileLog {
    /// A guest thread uses a path, from where it starts. Blocks: file systems may take their time.
    pub fn note(&self, tid: i32, start: Start, path: &[u8], how: Use) {
        let Some(view) = self.view(tid) else { return self.could_not_tell() };
        match view.find(tid, start, path, how.follow) {
            Some((links, found)) => {
                links.into_iter().for_each(|link| self.there(link, Touch::INSPECTED));
                match found {
                    Found::There(there) => self.there(there, how.touch),
                    Found::Missing(path) => self.missing(path, how),
                }
            }
            None => self.could_not_tell(),
        }
    }

    /// A guest thread executes what a path leads to: interpreters are executed, too.
    pub fn note_exec(&self, tid: i32, start: Start, path: &[u8]) {
        /// BINPRM_BUF_SIZE of the kernel; and so many interpreters of interpreters (exec_binprm in fs/exec.c).
        const MOST: usize = 5;
        let how = Use { touch: Touch::EXECUTED, follow: true, creates: false };
        self.note(tid, start, path, how);
        let Some(view) = self.view.get() else { return };
        let mut next = view.open(tid, start, path).and_then(|file| look::interpreter(&file));
        for _ in 0..MOST {
            let Some(path) = next else { return };
            self.note(tid, Start::Directory, &path, how);
            next =
                view.open(tid, Start::Directory, &path).and_then(|file| look::interpreter(&file));
        }
    }

    /// The program of a process, which may have been executed unseen.
    pub fn note_program(&self, pid: i32) {
        let Some(view) = self.view(pid) else { return self.could_not_tell() };
        if let Some(path) = view.program(pid) {
            self.note_exec(pid, Start::Directory, &path);
        }
    }

    fn could_not_tell(&self) {
        self.untold.fetch_add(1, Ordering::Relaxed);
    }

    fn view(&self, tid: i32) -> Option<&View> {
        if let Some(view) = self.view.get() {
            return Some(view);
        }
        let view = View::of(tid)?;
        Some(self.view.get_or_init(|| view))
    }

    fn there(&self, there: There, touch: Touch) {
        let There { path, kind, file, target } = there;
        let touch = match kind {
            Kind::Directory if touch.contains(Touch::READ) => (touch - Touch::READ) | Touch::LISTED,
            _ => touch,
        };
        let is_file = kind == Kind::File;
        let mut is_own = false;
        {
            let mut inner = self.lock();
            match inner.files.entry(path.clone()) {
                Place::Occupied(mut known) => {
                    let known = known.get_mut();
                    is_own = known.touch.intersects(Touch::WRITTEN | Touch::CREATED);
                    known.touch |= touch;
                    if known.touch.contains(Touch::REMOVED) {
                        (known.kind, known.target) = (kind, target);
                    }
                }
                Place::Vacant(place) => {
                    place.insert(Entry { kind, touch, target });
                }
            }
        }
        let Some(file) = file.filter(|_| is_file) else { return };
        // What is read is to be known as it was, before anybody writes to it.
        if touch.intersects(Touch::CONTENT) && !is_own {
            self.hasher.look(path, &file);
        } else if touch.contains(Touch::WRITTEN) {
            self.hasher.wait_for(&file);
        }
    }

    fn missing(&self, path: Vec<u8>, how: Use) {
        let mut inner = self.lock();
        if how.creates {
            let made = inner.files.entry(path).or_default();
            made.touch |= how.touch | Touch::CREATED;
            return;
        }
        // (What the guests have made and removed is not looked for outside.)
        if !inner.files.contains_key(&path) {
            inner.missing.insert(path);
        }
    }

    /// Everything, once no guest is left that matters. Blocks.
    pub fn report(&self) -> Report {
        let before = self.hasher.all();
        let Inner { files, missing } = self.lock().clone();
        let line = |(path, entry): (Vec<u8>, Entry)| {
            let Entry { mut kind, touch, mut target } = entry;
            let mut after = None;
            if touch.may_change()
                && let Some(there) = self.view.get().and_then(|view| view.at(&path))
            {
                (kind, target) = (there.kind, there.target);
                let opened = there.file.as_ref().and_then(look::reopen);
                after = match opened {
                    Some(file) if kind == Kind::File => content::of(&file),
                    _ => Some(Content::default()),
                };
            }
            let before = before.get(&path).copied();
            Touched { path, kind, touch, target, before, after }
        };
        Report {
            files: files.into_iter().map(line).collect(),
            missing: missing.into_iter().collect(),
            untold: self.untold.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
