//! Random bytes that are the same in every run with the same seed (`--deterministic`).
//!
//! Each program draws from a stream of its own, whose key is made of the seed and of *what* is executed by
//! whom: the file, the arguments, the directory, and the key of the process that it was forked from. So what a
//! program gets does not depend on how processes are numbered, or on what runs beside it: under `make -j` each
//! recipe and what it starts get their own bytes whenever their turn comes. Of the same program that one
//! process starts several times each has a stream of its own, in that order. A process that was forked and
//! has executed nothing has a stream of the parent's, by the order in which such processes first ask.
//! Threads of one process share its stream.
//!
//! All of it is reproducible, so nothing of it is secret.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::kernel::Kernel;
use super::stat::Stat;
use super::task::Status;

mod saved;

pub use saved::{SavedOrigin, SavedRandomness, SavedStream};
pub(super) use saved::{halves, whole};

/// What streams are made of.
type Key = [u8; 32];

/// The random bytes of one sandbox.
#[derive(Debug)]
pub struct Randomness {
    /// Immutable.
    root: Key,
    /// The directory that the run began in, as the guests see it: what lies below it is named from there.
    /// Immutable.
    workdir: PathBuf,
    /// A leaf of the lock order. Nothing is read from /proc under it, but for a sweep.
    inner: Mutex<Inner>,
}

/// Protected by `Randomness::inner`.
#[derive(Debug)]
struct Inner {
    /// What is executed by nobody inside.
    outside: Origin,
    /// By the number of the process.
    processes: HashMap<i32, Process>,
    /// The next look for ended ones is due at this size.
    sweep_at: usize,
}

#[derive(Debug)]
struct Process {
    /// In ticks since boot: the number may be another one's by now.
    start: u64,
    origin: Origin,
    stream: ChaCha20Rng,
    /// How many devices it has opened.
    opened: u64,
}

/// What keys are derived from, and how often.
#[derive(Debug)]
struct Origin {
    key: Key,
    /// How many processes forked from it have asked before they executed anything.
    children: u64,
    /// How often each program was executed.
    executed: HashMap<u64, u32>,
    /// How often that was forgotten.
    era: u64,
}

/// What a program finds at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Its random bytes (AT_RANDOM, getauxval(3)).
    pub random: [u64; 2],
    /// The nanoseconds of its clocks.
    pub nanoseconds: u32,
}

/// So many different programs of one process are counted.
const MOST_EXECUTED: usize = 4096;
const FIRST_SWEEP: usize = 64;
/// More than that of a program's arguments is not looked at.
const MOST_ARGUMENTS: usize = 1 << 17;
/// Forks of forks that are followed up to the program.
const MOST_FORKS: usize = 64;

impl Randomness {
    /// Streams from a seed, for a run that begins in `workdir`.
    pub fn new(seed: &[u8], workdir: PathBuf) -> Randomness {
        let root = root(seed);
        let inner = Inner { outside: Origin::new(root), processes: HashMap::new(), sweep_at: 0 };
        Randomness { root, workdir, inner: Mutex::new(inner) }
    }

    /// What the first program of a run finds.
    pub fn first(seed: &[u8]) -> Begin {
        Begin::of(&root(seed))
    }

    /// A number that is the same for the whole run.
    pub(super) fn of_run(&self, label: &[u8]) -> [u8; 16] {
        half(&derived(&[&self.root, label]))
    }

    /// A program has been executed by this process, and has not run yet. Gives what it finds at its start.
    pub(super) fn executed(&self, kernel: &Kernel, tgid: i32) -> Result<Begin, Errno> {
        let Stat { start, .. } = Stat::read(tgid).ok_or(Errno::ESRCH)?;
        let program = self.program(tgid);
        let from = patiently(tgid, || {
            let Stat { parent, .. } = Stat::read(tgid).ok_or(Errno::ESRCH)?;
            let is_known = self.lock().process(tgid, start).is_some();
            // It was forked by its parent, unless that has ended.
            match is_known || is_outside(kernel, parent) {
                true => Ok((tgid, start)),
                false => self.climb(kernel, parent).map(|start| (parent, start)),
            }
        })
        .ok();
        if from.is_none() {
            let why = "which program executed it cannot be found out";
            kernel.let_through(tgid, "random bytes", why, "run it again");
        }
        let mut inner = self.lock();
        let key = inner.origin(from).executes(&program);
        inner.insert(tgid, start, key);
        Ok(Begin::of(&key))
    }

    /// Fills the bytes from the stream of a thread's process.
    pub(super) fn fill(&self, kernel: &Kernel, tid: i32, bytes: &mut [u8]) -> Result<(), Errno> {
        self.with(kernel, tid, |process| process.stream.fill_bytes(bytes))
    }

    /// Makes sure that a thread's process has a stream.
    pub(super) fn prepare(&self, kernel: &Kernel, tid: i32) -> Result<(), Errno> {
        self.with(kernel, tid, |_| ())
    }

    /// A further stream for a thread's process, which somebody reads at leisure.
    pub(super) fn open(&self, kernel: &Kernel, tid: i32) -> Result<ChaCha20Rng, Errno> {
        self.with(kernel, tid, |process| {
            process.opened += 1;
            let number = process.opened.to_le_bytes();
            ChaCha20Rng::from_seed(derived(&[&process.origin.key, b"device", &number]))
        })
    }

    fn with<T>(
        &self,
        kernel: &Kernel,
        tid: i32,
        act: impl FnOnce(&mut Process) -> T,
    ) -> Result<T, Errno> {
        let tgid = Status::read(tid)?.tgid;
        let start = self.known(kernel, tgid)?;
        let mut inner = self.lock();
        let process = inner.process(tgid, start).ok_or(Errno::ESRCH)?;
        Ok(act(process))
    }

    /// Makes sure that the process has a stream; gives its start.
    fn known(&self, kernel: &Kernel, tgid: i32) -> Result<u64, Errno> {
        patiently(tgid, || self.climb(kernel, tgid))
    }

    /// The same, unless one above it ends just now.
    fn climb(&self, kernel: &Kernel, tgid: i32) -> Result<u64, Errno> {
        // From the process upwards to one that is known, or that was not forked from a program.
        let mut line = Vec::new();
        let mut pid = tgid;
        let mut last = loop {
            let stat = Stat::read(pid).ok_or(Errno::ESRCH)?;
            if self.lock().process(pid, stat.start).is_some() {
                break Some((pid, stat.start));
            }
            line.push((pid, stat.start));
            if line.len() == MOST_FORKS || is_outside(kernel, stat.parent) {
                break None;
            }
            pid = stat.parent;
        };
        for (pid, start) in line.into_iter().rev() {
            // What stands on top was executed by init or a keeper, which no trap of the exec tells.
            let program = last.is_none().then(|| self.program(pid));
            let mut inner = self.lock();
            if inner.process(pid, start).is_none() {
                let origin = inner.origin(last);
                let key = match program {
                    Some(program) => origin.executes(&program),
                    None => origin.forks(),
                };
                inner.insert(pid, start, key);
            }
            last = Some((pid, start));
        }
        last.map(|(_, start)| start).ok_or(Errno::ESRCH)
    }

    /// What a process executes, in a few bytes. What cannot be read is left out.
    fn program(&self, tgid: i32) -> Key {
        let mut arguments = Vec::new();
        if let Ok(file) = std::fs::File::open(format!("/proc/{tgid}/cmdline")) {
            let mut file = std::io::Read::take(file, MOST_ARGUMENTS as u64);
            let _ = std::io::Read::read_to_end(&mut file, &mut arguments);
        }
        let link = |name: &str| std::fs::read_link(format!("/proc/{tgid}/{name}"));
        let (file, directory) = (link("exe").unwrap_or_default(), link("cwd").unwrap_or_default());
        let below = directory.strip_prefix(&self.workdir).unwrap_or(&directory);
        derived(&[
            b"program",
            file.as_os_str().as_bytes(),
            &arguments,
            below.as_os_str().as_bytes(),
        ])
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn process(&mut self, pid: i32, start: u64) -> Option<&mut Process> {
        self.processes.get_mut(&pid).filter(|process| process.start == start)
    }

    /// What the next key comes from: a process if it is known.
    fn origin(&mut self, process: Option<(i32, u64)>) -> &mut Origin {
        let known = process.and_then(|(pid, start)| {
            self.processes.get_mut(&pid).filter(|process| process.start == start)
        });
        known.map_or(&mut self.outside, |process| &mut process.origin)
    }

    fn insert(&mut self, pid: i32, start: u64, key: Key) {
        self.insert_at(pid, start, Origin::new(key), 0, 0);
    }

    /// One that has drawn so many words, and opened so many devices.
    fn insert_at(&mut self, pid: i32, start: u64, origin: Origin, position: u128, opened: u64) {
        if self.processes.len() >= self.sweep_at.max(FIRST_SWEEP) {
            let is_alive = |pid: i32, start| Stat::read(pid).is_some_and(|it| it.start == start);
            self.processes.retain(|pid, process| is_alive(*pid, process.start));
            self.sweep_at = self.processes.len() * 2;
        }
        let mut stream = ChaCha20Rng::from_seed(derived(&[&origin.key, b"stream"]));
        stream.set_word_pos(position);
        let process = Process { start, origin, stream, opened };
        self.processes.insert(pid, process);
    }
}

impl Origin {
    fn new(key: Key) -> Origin {
        Origin { key, children: 0, executed: HashMap::new(), era: 0 }
    }

    /// The key of the next process that executes a program.
    fn executes(&mut self, program: &Key) -> Key {
        if self.executed.len() >= MOST_EXECUTED {
            self.executed.clear();
            self.era += 1;
        }
        let count = self.executed.entry(words(program)[0]).or_default();
        *count = count.wrapping_add(1);
        derived(&[&self.key, program, &count.to_le_bytes(), &self.era.to_le_bytes()])
    }

    /// The key of the next process that is forked and executes nothing.
    fn forks(&mut self) -> Key {
        self.children += 1;
        derived(&[&self.key, b"child", &self.children.to_le_bytes()])
    }
}

impl Begin {
    fn of(key: &Key) -> Begin {
        let [first, _] = words(&derived(&[key, b"clock"]));
        Begin {
            random: words(&derived(&[key, b"start"])),
            nanoseconds: (first % 1_000_000_000) as u32,
        }
    }
}

/// Tries again while the process is there: one above it has ended, and left it to another.
fn patiently<T>(tgid: i32, mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    const MOST_ATTEMPTS: usize = 64;
    let mut done = attempt();
    for _ in 1..MOST_ATTEMPTS {
        if done.is_ok() || Stat::read(tgid).is_none() {
            break;
        }
        done = attempt();
    }
    done
}

/// Whether what this process starts is started from outside.
fn is_outside(kernel: &Kernel, pid: i32) -> bool {
    pid <= 1 || kernel.keepers.has(pid)
}

fn root(seed: &[u8]) -> Key {
    derived(&[b"sandbox --deterministic", seed])
}

/// A key of these parts and of where each ends.
fn derived(parts: &[&[u8]]) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn half(key: &Key) -> [u8; 16] {
    std::array::from_fn(|index| key[index])
}

fn words(key: &Key) -> [u64; 2] {
    let all = u128::from_le_bytes(half(key));
    [all as u64, (all >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(key: Key) -> [u8; 32] {
        let mut bytes = [0; 32];
        ChaCha20Rng::from_seed(key).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn a_stream_is_made_of_the_seed_the_program_and_how_often_it_was_executed() {
        let keys = |seed: &[u8], programs: &[&[u8]]| -> Vec<Key> {
            let mut origin = Origin::new(root(seed));
            programs.iter().map(|it| origin.executes(&derived(&[it]))).collect()
        };
        let first = keys(b"seed", &[b"cc a.c", b"cc b.c", b"mktemp", b"mktemp"]);
        // The order of different programs makes no difference; that of equal ones cannot be seen.
        let other = keys(b"seed", &[b"mktemp", b"cc b.c", b"mktemp", b"cc a.c"]);
        assert_eq!([first[0], first[1]], [other[3], other[1]]);
        assert_eq!([first[2], first[3]], [other[0], other[2]]);
        assert_ne!(first[2], first[3]);
        assert_ne!(first, keys(b"another", &[b"cc a.c", b"cc b.c", b"mktemp", b"mktemp"]));
        assert_ne!(drawn(first[0]), drawn(first[1]));
        assert_ne!(derived(&[b"ab", b"c"]), derived(&[b"a", b"bc"]));
        // What two recipes start alike is not the same.
        let mut recipes = [first[0], first[1]].map(Origin::new);
        let [a, b] = recipes.each_mut().map(|recipe| recipe.executes(&derived(&[b"mktemp"])));
        assert_ne!(a, b);
        assert_ne!(Begin::of(&a), Begin::of(&b));
        assert_ne!(recipes[0].forks(), recipes[0].forks());
    }

    #[test]
    fn the_bytes_of_a_seed_never_change() {
        // In another version neither: what was built with a seed is to be built again.
        assert_eq!(drawn([0; 32])[..8], [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        assert_eq!(Randomness::first(b"").nanoseconds, 927_393_311);
        assert_ne!(Randomness::first(b"1"), Randomness::first(b""));
    }

    #[test]
    fn ended_processes_and_rare_programs_are_forgotten() {
        let mut inner =
            Inner { outside: Origin::new([0; 32]), processes: HashMap::new(), sweep_at: 0 };
        for number in 0..10_000 {
            inner.insert(-1 - number, 1, [0; 32]);
        }
        assert!(inner.processes.len() <= FIRST_SWEEP + 1);
        let own = std::process::id() as i32;
        let start = Stat::read(own).unwrap().start;
        inner.insert(own, start, [1; 32]);
        inner.processes.retain(|_, process| process.start == start);
        assert!(inner.process(own, start).is_some() && inner.process(own, start + 1).is_none());
        assert_eq!(inner.origin(Some((own, start))).key, [1; 32]);
        assert_eq!(inner.origin(Some((own, start + 1))).key, [0; 32]);
        let mut origin = Origin::new([2; 32]);
        let before = origin.executes(&[9; 32]);
        origin.executed = (0..MOST_EXECUTED as u64).map(|it| (it, 1)).collect();
        assert_ne!(origin.executes(&[9; 32]), before);
        assert_eq!(origin.executed.len(), 1);
    }
}
