//! Looking for what patterns match: a walk of what the guest would see, from where patterns can match on.
//!
//! Directories are opened over no symbolic link, and links in them are not followed. What a rule, a
//! default or a secret covers is not looked into. It is a look at one moment: names that come to be later
//! are not found.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::dir::{Dir, Type};
use nix::errno::Errno;

use super::super::error::refuse;
use super::super::paths::{Found, quoted};
use super::super::view::translate;
use super::super::{ConfigError, Host, Mount, RuleKind, Shown, View};
use super::Objects;
use super::overlays::MADE_UP;
use super::patterns::{Pattern, contradiction};

/// Names that are looked at, at most: some seconds' worth.
const NAMES_MAX: usize = 5_000_000;
/// More threads are not faster: they wait for the same directories.
const THREADS_MAX: usize = 8;

/// What patterns may match: each takes a mount or more.
const MATCHES_MAX: usize = 20_000;
/// A path is shorter (PATH_MAX, limits.h): no call takes another one, that of mounting neither.
const PATH_MAX: usize = 4096;

/// Below these, patterns that begin nowhere begin.
#[derive(Debug)]
pub(super) struct Roots {
    pub(super) own: Vec<PathBuf>,
    /// Places that a project's file names which is not trusted: it must not widen what the user shows or opens.
    pub(super) others: Vec<PathBuf>,
}

impl Roots {
    /// Every one.
    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.own.iter().chain(&self.others)
    }

    /// Whether a pattern is about what is in the directory `above`.
    pub(super) fn concern(&self, above: &Path, pattern: &Pattern) -> bool {
        let closes = matches!(pattern.kind, RuleKind::Hide | RuleKind::Deny);
        let others = self.others.iter().filter(|_| closes);
        pattern.start.is_some() || self.own.iter().chain(others).any(|root| above.starts_with(root))
    }
}

/// What a pattern matches.
#[derive(Debug)]
pub(super) struct Match {
    /// Where the guest would see it.
    pub(super) guest: PathBuf,
    /// Where it is on the host.
    pub(super) host: PathBuf,
    pub(super) thing: Thing,
    /// The number of the pattern that counts there.
    pub(super) pattern: usize,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    Directory,
    /// A symbolic link.
    Link,
    Other,
}

/// A directory that is to be looked into.
struct Item {
    guest: PathBuf,
    host: PathBuf,
    /// Patterns that can match in it, and where in them one is.
    active: Vec<(usize, u64)>,
    /// What it is itself.
    state: State,
}

/// What patterns have made of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing.
    Plain,
    /// It is hidden or denied: only exceptions matter.
    Covered,
    /// It has the access that this rule gives.
    As(RuleKind),
}

impl State {
    /// What is in such a directory and matches a rule of `kind`, and whether that makes a difference.
    fn then(self, kind: RuleKind) -> (State, bool) {
        match (self, kind) {
            (State::Covered, RuleKind::Allow) => (State::Plain, true),
            (state, RuleKind::Allow) => (state, false),
            (state, RuleKind::Hide | RuleKind::Deny) => (State::Covered, state != State::Covered),
            (State::Covered, _) => (State::Covered, false),
            (state, kind) => (State::As(kind), state != State::As(kind)),
        }
    }

    /// What a mount of another rule is.
    fn of(mount: &Mount) -> State {
        if mount.kind.hides() { State::Covered } else { State::Plain }
    }
}

/// One walk.
pub(super) struct Search<'a> {
    host: &'a Path,
    view: &'a View,
    patterns: &'a [Pattern],
    roots: &'a Roots,
    objects: &'a Objects,
    /// Mount points of file systems that the kernel makes up.
    made_up: HashSet<PathBuf>,
    seeds: HashSet<PathBuf>,
    used: Vec<AtomicBool>,
    names: AtomicUsize,
}

/// Which of the patterns that match a path counts.
#[derive(Default)]
struct Best {
    /// The first of the greatest weight.
    number: Option<usize>,
    /// One of the same weight that says something else.
    rival: Option<usize>,
}

/// What the threads share.
#[derive(Default)]
struct Work {
    items: Vec<Item>,
    /// Threads that look into a directory.
    busy: usize,
    found: Vec<Match>,
    failed: Option<ConfigError>,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        host: &'a Host,
        view: &'a View,
        patterns: &'a [Pattern],
        roots: &'a Roots,
        objects: &'a Objects,
    ) -> Search<'a> {
        let starts = patterns.iter().filter_map(|pattern| pattern.start.clone());
        let mounts = view.mounts().filter(|mount| mount.kind.source().is_some());
        let mounts = mounts.map(|mount| mount.target.clone());
        // Of two mounts at one place the later one shows.
        let mounted: HashMap<&PathBuf, &String> =
            host.mounts.iter().map(|(place, kind)| (place, kind)).collect();
        let made_up = mounted.into_iter().filter(|(_, kind)| MADE_UP.contains(&kind.as_str()));
        Search {
            host: &host.root,
            view,
            patterns,
            roots,
            objects,
            made_up: made_up.map(|(place, _)| place.clone()).collect(),
            seeds: starts.chain(mounts).chain(roots.all().cloned()).collect(),
            used: patterns.iter().map(|_| AtomicBool::new(false)).collect(),
            names: AtomicUsize::new(0),
        }
    }

    /// Everything that is matched, by path.
    ///
    /// # Errors
    /// Two patterns contradict each other, or not all can be looked at.
    pub(super) fn run(&self) -> Result<Vec<Match>, ConfigError> {
        let mut work = Work::default();
        for seed in &self.seeds {
            let (item, found) = self.seed(seed)?;
            work.items.extend(item);
            work.found.extend(found);
        }
        let (work, changed) = (Mutex::new(work), Condvar::new());
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
        std::thread::scope(|scope| {
            for _ in 1..threads.min(THREADS_MAX) {
                // Without them it takes longer.
                let thread = std::thread::Builder::new();
                let _ = thread.spawn_scoped(scope, || self.work(&work, &changed));
            }
            self.work(&work, &changed);
        });
        let work = work.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = work.failed {
            return Err(error);
        }
        let mut found = work.found;
        found.sort_by(|a, b| a.guest.cmp(&b.guest));
        Ok(found)
    }

    /// The patterns that have matched nothing.
    pub(super) fn unused(&self) -> impl Iterator<Item = &Pattern> {
        let all = self.patterns.iter().zip(&self.used);
        all.filter(|(_, used)| !used.load(Ordering::Relaxed)).map(|(pattern, _)| pattern)
    }

    /// The state in which a walk from `/` would come to `path`; none if there is nothing to look for. With
    /// `path` itself, where a pattern that begins there stands for it, too (`/data/**`).
    fn seed(&self, path: &Path) -> Result<(Option<Item>, Option<Match>), ConfigError> {
        let Some(host) = self.host_of(path) else { return Ok((None, None)) };
        let mut active: Vec<(usize, u64)> =
            self.patterns.iter().map(Pattern::before).enumerate().collect();
        let (mut state, mut secret) = (State::Plain, false);
        let mut matched = None;
        let mut at = PathBuf::from("/");
        for name in path.iter().skip(1) {
            at.push(name);
            let mut best = Best::default();
            for (number, places) in &mut active {
                let pattern = &self.patterns[*number];
                *places = pattern.after(*places, name.as_bytes());
                let counts = at.parent().is_some_and(|above| self.roots.concern(above, pattern));
                if *places & pattern.whole() != 0 && counts {
                    self.weigh(&mut best, *number);
                }
            }
            let best = self.decided(&best, || at.clone())?;
            if let Some(mount) = self.view.at(&at) {
                state = State::of(mount);
                secret = mount.kind.hides() && (secret || self.is_secret_at(&at));
                continue;
            }
            secret |= self.is_secret_at(&at);
            if let Some(number) = best {
                let own = self.patterns[number].start.as_deref() == Some(path) && at == path;
                let (next, counts) = state.then(self.patterns[number].kind);
                matched = (own && counts).then_some(number);
                state = next;
            }
        }
        active.retain_mut(|(number, places)| {
            let pattern = &self.patterns[*number];
            *places &= !pattern.whole();
            *places != 0 && self.roots.concern(path, pattern)
        });
        if secret {
            return Ok((None, None));
        }
        let found = matched.zip(self.thing(&host)).map(|(pattern, thing)| {
            let (guest, host) = (path.to_owned(), host.clone());
            Match { guest, host, thing, pattern }
        });
        let item = Item { guest: path.to_owned(), host, active, state };
        Ok((self.is_worth(&item.active, state).then_some(item), found))
    }

    /// Whether anything in a directory can matter.
    fn is_worth(&self, active: &[(usize, u64)], state: State) -> bool {
        let allows = |number: usize| self.patterns[number].kind == RuleKind::Allow;
        active.iter().any(|(number, _)| state != State::Covered || allows(*number))
    }

    /// Hidden by default.
    fn is_secret(&self, host: &Path) -> bool {
        self.objects.get(host).is_some_and(|object| object.by_default)
            || self.made_up.contains(host)
    }

    /// The same of what is at a path of the guest's, whether or not a rule hides it.
    fn is_secret_at(&self, guest: &Path) -> bool {
        self.host_of(guest).is_some_and(|host| self.is_secret(&host))
    }

    /// What is at a path of the guest's, whether or not a rule hides it.
    fn host_of(&self, path: &Path) -> Option<PathBuf> {
        match self.view.shown(path) {
            Shown::Host { path, .. } => Some(path),
            Shown::Hidden(mount) => match self.view.shown_under(&mount.target) {
                Shown::Host { path: under, .. } => Some(translate(path, &mount.target, &under)),
                _ => None,
            },
            Shown::Private(_) => None,
        }
    }

    /// Another pattern matches a path.
    fn weigh(&self, best: &mut Best, other: usize) {
        self.used[other].store(true, Ordering::Relaxed);
        let Some(first) = best.number else {
            best.number = Some(other);
            return;
        };
        let (one, two) = (&self.patterns[first], &self.patterns[other]);
        match one.weight.cmp(&two.weight) {
            std::cmp::Ordering::Less => *best = Best { number: Some(other), rival: None },
            std::cmp::Ordering::Equal if one.kind != two.kind => {
                best.rival.get_or_insert(other);
            }
            _ => {}
        }
    }

    /// The pattern that counts among those that match a path.
    fn decided(
        &self,
        best: &Best,
        path: impl Fn() -> PathBuf,
    ) -> Result<Option<usize>, ConfigError> {
        match (best.number, best.rival) {
            (Some(one), Some(two)) => {
                Err(contradiction(&self.patterns[one], &self.patterns[two], &path()))
            }
            (number, _) => Ok(number),
        }
    }

    /// More is matched than there can be mounts for.
    fn too_many(&self, found: &[Match]) -> ConfigError {
        refuse!(
            "cannot use {}: more than {MATCHES_MAX} files match patterns, and each takes a mount; name the \
             directories that they are in",
            self.patterns[found.first().map_or(0, |found| found.pattern)]
        )
    }

    fn work(&self, work: &Mutex<Work>, changed: &Condvar) {
        let (mut found, mut items) = (Vec::new(), Vec::new());
        let mut shared = lock(work);
        loop {
            let Some(item) = shared.items.pop().filter(|_| shared.failed.is_none()) else {
                if shared.busy == 0 || shared.failed.is_some() {
                    return;
                }
                shared = changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            shared.busy += 1;
            drop(shared);
            let done = self.look_into(&item, &mut found, &mut items);
            shared = lock(work);
            shared.busy -= 1;
            shared.found.append(&mut found);
            shared.items.append(&mut items);
            let done = match shared.found.len() > MATCHES_MAX {
                true => done.and(Err(self.too_many(&shared.found))),
                false => done,
            };
            if let Err(error) = done {
                shared.failed.get_or_insert(error);
            }
            changed.notify_all();
        }
    }

    fn look_into(
        &self,
        item: &Item,
        found: &mut Vec<Match>,
        items: &mut Vec<Item>,
    ) -> Result<(), ConfigError> {
        let fail = |errno: Errno| {
            refuse!(
                "cannot look for what {} matches in {}: {}; name the directories that it is about",
                self.patterns[item.active.first().map_or(0, |active| active.0)],
                quoted(&item.guest),
                errno.desc()
            )
        };
        let mut directory = match self.open(&item.host) {
            Ok(directory) => directory,
            // Gone, something else by now, or closed to whoever asks, and so to the guest.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES) => return Ok(()),
            // A file system whose server is away.
            Err(Errno::ENOTCONN | Errno::ESTALE) => return Ok(()),
            // So deep that nothing in it can be mounted on.
            Err(Errno::ENAMETOOLONG) => return Ok(()),
            Err(errno) => return Err(fail(errno)),
        };
        let mut active = Vec::with_capacity(item.active.len());
        let mut count = 0;
        for entry in directory.iter() {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            count += 1;
            let best = self.hold(item, name.to_bytes(), &mut active)?;
            if best.is_none() && active.is_empty() {
                continue;
            }
            let name = OsStr::from_bytes(name.to_bytes());
            let thing = match entry.file_type() {
                Some(Type::Directory) => Thing::Directory,
                Some(Type::Symlink) => Thing::Link,
                Some(_) => Thing::Other,
                // Not every file system lists it.
                None => match self.thing(&item.host.join(name)) {
                    Some(thing) => thing,
                    None => continue,
                },
            };
            if best.is_some() || thing == Thing::Directory {
                let (guest, host) = (item.guest.join(name), item.host.join(name));
                let it = Match { guest, host, thing, pattern: best.unwrap_or(usize::MAX) };
                self.take(item, it, &active, found, items);
            }
            if found.len() > MATCHES_MAX {
                return Err(self.too_many(found));
            }
        }
        if self.names.fetch_add(count, Ordering::Relaxed) + count > NAMES_MAX {
            return Err(refuse!(
                "cannot look for what {} matches: there are more than {NAMES_MAX} names to look at; \
                 name the directories that it is about, as in --hide '/srv/app/**/*.key'",
                self.patterns[item.active.first().map_or(0, |active| active.0)],
            ));
        }
        Ok(())
    }

    /// Holds a name in a directory against the patterns: which one matches it, and, in `active`, which can
    /// match below it.
    fn hold(
        &self,
        item: &Item,
        name: &[u8],
        active: &mut Vec<(usize, u64)>,
    ) -> Result<Option<usize>, ConfigError> {
        active.clear();
        let mut best = Best::default();
        for (number, places) in &item.active {
            let pattern = &self.patterns[*number];
            let places = pattern.after(*places, name);
            if places & pattern.whole() != 0 {
                self.weigh(&mut best, *number);
            }
            let places = places & !pattern.whole();
            if places != 0 {
                active.push((*number, places));
            }
        }
        self.decided(&best, || item.guest.join(OsStr::from_bytes(name)))
    }

    /// Draws the consequences of one name.
    fn take(
        &self,
        item: &Item,
        it: Match,
        active: &[(usize, u64)],
        found: &mut Vec<Match>,
        items: &mut Vec<Item>,
    ) {
        if it.guest.as_os_str().len().max(it.host.as_os_str().len()) >= PATH_MAX {
            return;
        }
        let ruled = self.view.at(&it.guest);
        if ruled.is_some_and(|mount| !mount.kind.hides()) || self.is_secret(&it.host) {
            return;
        }
        let kind = self.patterns.get(it.pattern).map(|pattern| pattern.kind);
        let (state, counts) = match (ruled, kind) {
            (Some(mount), _) => (State::of(mount), false),
            (None, Some(kind)) => item.state.then(kind),
            (None, None) => (item.state, false),
        };
        let enters = it.thing == Thing::Directory
            && !self.seeds.contains(&it.guest)
            && self.is_worth(active, state);
        if enters {
            let (guest, host) = (it.guest.clone(), it.host.clone());
            items.push(Item { guest, host, active: active.to_vec(), state });
        }
        // What a link leads to is what it is by its own name, unless that would show a secret.
        let closes = matches!(kind, Some(RuleKind::Hide | RuleKind::Deny));
        if counts && (closes || it.thing != Thing::Link) {
            found.push(it);
        }
    }

    fn open(&self, path: &Path) -> Result<Dir, Errno> {
        let real = self.real(path).into_os_string().into_vec();
        let real = CString::new(real).map_err(|_| Errno::EINVAL)?;
        Dir::from_fd(crate::sys::beneath::directory(&real)?)
    }

    fn thing(&self, path: &Path) -> Option<Thing> {
        match Found::at(&self.real(path)) {
            Ok(Found::Directory) => Some(Thing::Directory),
            Ok(Found::Link(_)) => Some(Thing::Link),
            Ok(Found::File) => Some(Thing::Other),
            Ok(Found::Missing) | Err(_) => None,
        }
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.host.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}
