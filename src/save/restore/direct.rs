//! Content from an image that is a plain file, into memory without a detour.
//!
//! Where the image is a regular file that is not packed, its list is read first ([`Index`]), and pages go
//! from the page cache into the guests' memory, by several threads, while others compare the whole with
//! its checksums. Nothing of it is in use before both are done. Memory is filled at once and not mapped
//! from the image, unless the user asks for that ([`super::lazy`]): a mapping would give the image's content
//! back where the guest gives memory away (MADV_DONTNEED of madvise(2)) and expects zeros.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::fill;
use super::heritage::There;
use super::lazy::Lazy;
use super::maker::Sink;
use crate::save::error::RestoreError;
use crate::save::image::{Index, Run, Source};
use crate::sys::errno_of;
use crate::sys::mapped::Mapped;

const PAGE: u64 = 4096;
/// So many pages are copied by one call.
const PORTION: u64 = 512;
/// Threads that copy. More would wait for the memory.
const THREADS: usize = 4;

/// Puts all content that is not there where it belongs, and compares all of the image with its checksums. `done` is
/// told of bytes.
pub fn fill(
    file: &File,
    index: &Index,
    (sinks, there): (&HashMap<u32, Sink>, &There),
    done: &(dyn Fn(u64) + Sync),
) -> Result<(), RestoreError> {
    let left: Vec<Run>;
    let pages = if there.is_empty() {
        index.runs()
    } else {
        left = index.runs().iter().flat_map(|run| there.left_of(*run)).collect();
        &left
    };
    put_all(file, index, pages, sinks, done, &|| Ok(index.verify(file)?))
}

/// Puts these pages where they belong, packed ones as well. What is not packed is not compared.
pub fn fill_ahead(
    file: &File,
    (index, pages): (&Index, &[Run]),
    sinks: &HashMap<u32, Sink>,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(), RestoreError> {
    let is_packed = |run: &&Run| matches!(run.source, Source::Packed { .. });
    let (packed, plain): (Vec<&Run>, Vec<&Run>) = pages.iter().partition(is_packed);
    put_packed(file, index, packed, sinks)?;
    let plain: Vec<Run> = plain.into_iter().copied().collect();
    let work = Work::new(file, index, &plain, sinks, done);
    thread::scope(|scope| {
        let others = work.begin(scope);
        finish(work.copy_some(), others)
    })
}

/// Unpacks each block once.
fn put_packed(
    file: &File,
    index: &Index,
    pages: Vec<&Run>,
    sinks: &HashMap<u32, Sink>,
) -> Result<(), RestoreError> {
    let mut by_block: BTreeMap<usize, Vec<(&Run, u64)>> = BTreeMap::new();
    for run in pages {
        if let Source::Packed { block, first } = run.source {
            by_block.entry(block).or_default().push((run, first));
        }
    }
    let mut bytes = Vec::new();
    for (block, runs) in by_block {
        index.unpack(file, block, &mut bytes)?;
        for (run, first) in runs {
            let part = (first * PAGE) as usize..((first + run.pages) * PAGE) as usize;
            let missing = || RestoreError::refused("the image is damaged: a block is too short");
            let part = bytes.get(part).ok_or_else(missing)?;
            fill::put(sinks, run.object, run.address, part)?;
        }
    }
    Ok(())
}

/// The same for what is not mapped.
pub fn fill_rest(
    lazy: &Lazy,
    sinks: &HashMap<u32, Sink>,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(), RestoreError> {
    put_all(lazy.file(), lazy.index(), lazy.rest(), sinks, done, &|| lazy.verify_rest())
}

fn put_all(
    file: &File,
    index: &Index,
    runs: &[Run],
    sinks: &HashMap<u32, Sink>,
    done: &(dyn Fn(u64) + Sync),
    verify: &(dyn Fn() -> Result<(), RestoreError> + Sync),
) -> Result<(), RestoreError> {
    let work = Work::new(file, index, runs, sinks, done);
    thread::scope(|scope| {
        let others = work.begin(scope);
        let check = scope.spawn(verify);
        let mut outcome = work.copy_some();
        let there = |object: &u32| matches!(sinks.get(object), Some(Sink::Done));
        for stream in index.streams().iter().filter(|stream| !there(&stream.object)) {
            let bytes = index.stream(file, stream)?;
            outcome = outcome.and_then(|()| fill::put(sinks, stream.object, stream.offset, &bytes));
        }
        let outcome = finish(outcome, others);
        // What is wrong with the image is the better reason.
        check.join().map_err(|_| died())??;
        outcome
    })
}

type Worker<'scope> = thread::ScopedJoinHandle<'scope, Result<(), RestoreError>>;

/// Waits for threads that copy.
fn finish(outcome: Result<(), RestoreError>, others: Vec<Worker<'_>>) -> Result<(), RestoreError> {
    let others = others.into_iter().map(|it| it.join().unwrap_or_else(|_| Err(died())));
    others.fold(outcome, Result::and)
}

fn died() -> RestoreError {
    RestoreError::failed("the memory of the programs cannot be filled", "a thread has died")
}

/// A run in pieces.
fn portions(run: &Run) -> impl Iterator<Item = Run> + use<> {
    let run = *run;
    let step = if run.source == Source::Zero { run.pages.max(1) } else { PORTION };
    (0..run.pages).step_by(step as usize).map(move |first| {
        let behind = first + step.min(run.pages - first);
        run.part((run.address + first * PAGE, run.address + behind * PAGE))
    })
}

struct Work<'w> {
    file: &'w File,
    /// Missing where the file cannot be mapped.
    mapped: Option<Mapped>,
    sinks: &'w HashMap<u32, Sink>,
    portions: Vec<Run>,
    next: AtomicUsize,
    done: &'w (dyn Fn(u64) + Sync),
}

impl<'w> Work<'w> {
    fn new(
        file: &'w File,
        index: &Index,
        runs: &[Run],
        sinks: &'w HashMap<u32, Sink>,
        done: &'w (dyn Fn(u64) + Sync),
    ) -> Work<'w> {
        let length = index.summary().bytes;
        let mapped = usize::try_from(length).ok().and_then(|length| Mapped::new(file, length).ok());
        let portions: Vec<Run> = runs.iter().flat_map(portions).collect();
        Work { file, mapped, sinks, portions, next: AtomicUsize::new(0), done }
    }

    /// Others copy as well: the calling thread is one of them.
    fn begin<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
    ) -> Vec<Worker<'scope>> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let threads = threads.min(self.portions.len());
        (1..threads).map(|_| scope.spawn(move || self.copy_some())).collect()
    }

    /// Copies one portion after another until there are none.
    fn copy_some(&self) -> Result<(), RestoreError> {
        let mut buffer = Vec::new();
        loop {
            let portion = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = self.portions.get(portion) else { return Ok(()) };
            self.copy(run, &mut buffer)?;
        }
    }

    fn copy(&self, run: &Run, buffer: &mut Vec<u8>) -> Result<(), RestoreError> {
        let length = (run.pages * PAGE) as usize;
        let at = match run.source {
            Source::File(at) => at,
            Source::Zero => return fill::zero(self.sinks, run.object, run.address, run.pages),
            Source::Packed { .. } => {
                return Err(RestoreError::refused("the image is damaged: it is packed after all"));
            }
        };
        (self.done)(length as u64);
        let target = match self.sinks.get(&run.object) {
            Some(Sink::Space { pid, .. }) => Some((*pid, run.address)),
            Some(Sink::Mapping { pid, address }) => Some((*pid, address.wrapping_add(run.address))),
            _ => None,
        };
        if let (Some(mapped), Some((pid, address))) = (&self.mapped, target)
            && mapped.write_memory(pid, address, at as usize, length) == Ok(length)
        {
            return Ok(());
        }
        // Memory that has to be forced, or a file.
        buffer.resize(length, 0);
        self.file.read_exact_at(buffer, at).map_err(|error| {
            let errno = errno_of(&error);
            RestoreError::failed("the image cannot be read", errno.desc())
        })?;
        fill::put(self.sinks, run.object, run.address, buffer)
    }
}
