//! Threads that fetch pages, look at them and write them, each with a small buffer of its own.
//!
//! What a thread has fetched is still in its processor's cache when it is looked at, and when it is written: it
//! comes from the memory once. Only the decision what becomes of pages, and where, is made in their order, one
//! thread after the other. Needs an output that can be written at any place.

use std::io::IoSlice;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::error::ImageError;
use super::format::{Kind, MOST_DATA_PAGES, PAGE, PAGE_BYTES, Record};
use super::frames::Frames;
use super::hash::{Class, Key, checksum, classify};
use super::output::{AT_ONCE, Piece, Place, thread_died, write_slices_at};
use super::writer::Pages;

/// Bytes of a thread's buffer; a processor's own cache holds that much beside what else it holds.
const BUFFER: usize = 256 << 10;
/// Fewer bytes than this are not worth another thread.
const WORTH: u64 = 2 << 20;

/// Pages that come one behind the other, into one part of a buffer; no part, if they are known to be zero, all of an
/// entry's.
struct Part {
    /// The entry of what is to be fetched.
    entry: usize,
    address: u64,
    room: Range<usize>,
}

/// What is to be fetched next.
struct Feed {
    /// How many portions have been taken.
    taken: u64,
    entry: usize,
    /// Bytes of it that have been taken.
    before: u64,
}

/// Whose turn it is.
struct Turns<'a> {
    frames: &'a mut Frames,
    /// The number of the portion whose pages come next.
    next: u64,
    failure: Option<ImageError>,
}

/// The work of all threads.
pub(super) struct Lanes<'a> {
    pages: &'a [Pages<'a>],
    place: &'a dyn Place,
    key: Option<Arc<Key>>,
    feed: Mutex<Feed>,
    turns: Mutex<Turns<'a>>,
    moved: Condvar,
}

/// What one thread has room for.
struct Room {
    buffer: Vec<u8>,
    classes: Vec<Class>,
    parts: Vec<Part>,
    /// Runs of pages that are not zero, and their checksums.
    sums: Vec<(Range<usize>, u64)>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(
        frames: &'a mut Frames,
        pages: &'a [Pages<'a>],
        place: &'a dyn Place,
    ) -> Lanes<'a> {
        let key = frames.seen().map(|seen| Arc::clone(seen.key()));
        let feed = Mutex::new(Feed { taken: 0, entry: 0, before: 0 });
        let turns = Mutex::new(Turns { frames, next: 0, failure: None });
        Lanes { pages, place, key, feed, turns, moved: Condvar::new() }
    }

    /// Does all of it, with at most so many threads.
    pub(super) fn run(self, threads: usize) -> Result<(), ImageError> {
        let fetched = self.pages.iter().filter(|it| it.fetch.is_some());
        let bytes: u64 = fetched.map(|it| it.count * PAGE_BYTES).sum();
        let threads = threads.min((bytes / WORTH) as usize + 1);
        thread::scope(|scope| {
            let start = |_| {
                let builder = thread::Builder::new().name("image".to_owned());
                builder.spawn_scoped(scope, || self.work()).ok()
            };
            // Those that can be had do all of it.
            let others: Vec<_> = (1..threads).map_while(start).collect();
            self.work();
            // (What one has died of is noted.)
            others.into_iter().for_each(|other| drop(other.join()));
        });
        let turns = self.turns.into_inner().unwrap_or_else(PoisonError::into_inner);
        turns.failure.map_or(Ok(()), Err)
    }

    /// One thread's work.
    fn work(&self) {
        // Who dies must not be waited for.
        let alive = Alive(self);
        let mut room = Room {
            buffer: vec![0; BUFFER],
            classes: Vec::with_capacity(BUFFER / PAGE),
            parts: Vec::new(),
            sums: Vec::new(),
        };
        while let Some(number) = self.take(&mut room) {
            let done = self.look(&mut room).map(|()| self.decide(number, &room));
            match done {
                Ok(None) => break,
                Ok(Some(mut pieces)) => {
                    if let Err(error) = self.write(&mut pieces, &room.buffer) {
                        self.fail(error);
                        break;
                    }
                }
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        mem::forget(alive);
    }

    /// Takes the next portion. Gives its number.
    fn take(&self, room: &mut Room) -> Option<u64> {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        room.parts.clear();
        let mut used = 0;
        while used < BUFFER
            && let Some(pages) = self.pages.get(feed.entry)
        {
            let rest = match pages.fetch {
                Some(_) => pages.count * PAGE_BYTES - feed.before,
                None => 0,
            };
            let size = rest.min((BUFFER - used) as u64);
            if size > 0 || pages.fetch.is_none() && pages.count > 0 {
                let (entry, address) = (feed.entry, pages.address + feed.before);
                room.parts.push(Part { entry, address, room: used..used + size as usize });
            }
            used += size as usize;
            feed.before += size;
            if size == rest {
                (feed.entry, feed.before) = (feed.entry + 1, 0);
            }
        }
        if room.parts.is_empty() {
            return None;
        }
        feed.taken += 1;
        Some(feed.taken - 1)
    }

    /// Fetches the pages and does with them what needs no others.
    fn look(&self, room: &mut Room) -> Result<(), ImageError> {
        let Room { buffer, classes, parts, sums } = room;
        classes.clear();
        sums.clear();
        for part in &*parts {
            let Some(fetch) = self.pages[part.entry].fetch else { continue };
            let pages = &mut buffer[part.room.clone()];
            fetch(part.address, pages)?;
            let first = classes.len();
            classes.resize(first + pages.len() / PAGE, Class::Unknown);
            let classes = &mut classes[first..];
            classify(self.key.as_deref(), pages, classes);
            // As if none were like another: what that is not so of is summed up again.
            let mut at = part.room.start;
            for run in classes.chunk_by(|one, two| (*one == Class::Zero) == (*two == Class::Zero)) {
                let end = at + run.len() * PAGE;
                if run[0] != Class::Zero {
                    sums.push((at..end, checksum(&buffer[at..end])));
                }
                at = end;
            }
        }
        Ok(())
    }

    /// Decides what becomes of a portion, when all before it are decided. Gives what is to be written; nothing:
    /// another thread has failed.
    fn decide(&self, number: u64, room: &Room) -> Option<Vec<(u64, Piece)>> {
        let mut turns = self.turns();
        while turns.failure.is_none() && turns.next != number {
            turns = self.moved.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        if turns.failure.is_some() {
            return None;
        }
        let mut sums = room.sums.iter().peekable();
        for part in &room.parts {
            let (start, end) = (part.room.start, part.room.end);
            let classes = &room.classes[start / PAGE..end / PAGE];
            let Pages { object, count, fetch, .. } = self.pages[part.entry];
            if fetch.is_none() {
                turns.frames.push_pages(Kind::Zero, object, part.address, count);
                continue;
            }
            let most = MOST_DATA_PAGES as usize * PAGE;
            turns.frames.sort(object, part.address, classes, most, |frames, run| {
                let place = start + run.start..start + run.end;
                let content = &room.buffer[place.clone()];
                while sums.next_if(|(it, _)| it.end <= place.start).is_some() {}
                let known = sums.peek().filter(|(it, _)| *it == place);
                let checksum = known.map_or_else(|| checksum(content), |(_, sum)| *sum);
                let record = Record::of_data(object, part.address + run.start as u64, content);
                frames.push(Record { checksum, ..record }, Some(Piece::Own(place)));
            });
        }
        turns.next += 1;
        let pieces = mem::take(&mut turns.frames.pieces);
        drop(turns);
        self.moved.notify_all();
        Some(pieces)
    }

    /// Writes pieces, as many at once as lie together.
    fn write(&self, pieces: &mut [(u64, Piece)], buffer: &[u8]) -> Result<(), ImageError> {
        pieces.sort_by_key(|(at, _)| *at);
        let follows = |one: &(u64, Piece), two: &(u64, Piece)| {
            one.0 + one.1.bytes(buffer, &[]).len() as u64 == two.0
        };
        for together in pieces.chunk_by(follows) {
            for some in together.chunks(AT_ONCE) {
                let mut slices: Vec<IoSlice<'_>> =
                    some.iter().map(|(_, it)| IoSlice::new(it.bytes(buffer, &[]))).collect();
                write_slices_at(self.place, &mut slices, some[0].0)?;
            }
        }
        Ok(())
    }

    fn turns(&self) -> MutexGuard<'_, Turns<'a>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody goes on.
    fn fail(&self, error: ImageError) {
        self.turns().failure.get_or_insert(error);
        self.moved.notify_all();
    }
}

/// Dropped while its thread works: by a panic.
struct Alive<'l, 'a>(&'l Lanes<'a>);

impl Drop for Alive<'_, '_> {
    fn drop(&mut self) {
        self.0.fail(thread_died());
    }
}
