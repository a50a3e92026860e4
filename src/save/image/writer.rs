//! Writing an image, front to back, to anything that takes bytes.
//!
//! Owns where pages come from on their way: those that the caller lends are written from where they are,
//! those that it fetches come into the buffer that is written. What becomes of them is decided by [`Frames`].
//! Into a plain file several threads write at once ([`Lanes`]).

use std::io::Write;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::error::ImageError;
use super::features::Features;
use super::format::{
    Header, Kind, Level, MOST_DATA_PAGES, MOST_FEATURES, MOST_PACKED_PAGES, MOST_STATE, PAGE,
    PAGE_BYTES, Record, Section, Summary, padded,
};
use super::frames::{Frames, not_whole};
use super::hash::{Class, checksum, classify};
use super::lanes::Lanes;
use super::output::{
    AT_ONCE, Batch, Output, Piece, Place, Target, Thread, thread_died, write_padded,
};

/// Pages are fetched in portions of this many bytes, which a processor's own cache holds. That is also
/// the room that one needs in a batch's buffer: packed it never takes more.
const PORTION: usize = 1 << 20;
/// So many bytes are fetched at once by several threads, if the batch has room for them.
const WAVE: usize = 4 << 20;
/// Each of them takes so many at a time.
const STEP: usize = 256 << 10;
/// Threads that fetch. More would wait for the memory.
const THREADS: usize = 4;
/// So many lent bytes become one write; more would push them out of the caches before.
const LENT: usize = 4 << 20;
/// Fewer lent bytes than this are copied and written with others.
const SMALL: usize = 64 << 10;

/// Fetches pages from an address on.
pub type Fetch<'f> = dyn Fn(u64, &mut [u8]) -> Result<(), ImageError> + Sync + 'f;

/// Pages of an object that the caller fetches.
#[derive(Clone, Copy)]
pub struct Pages<'f> {
    /// Whose.
    pub object: u32,
    /// The address of the first one.
    pub address: u64,
    /// How many.
    pub count: u64,
    /// Gets an address and the place for some of them. None: they are known to be zero.
    pub fetch: Option<&'f Fetch<'f>>,
}

/// Writes one image. Pages of one object have to come in ascending order, and so have the bytes of one
/// stream; objects may be interleaved. After an error it writes nothing more.
pub struct Writer<W> {
    /// `None` after an error.
    output: Option<Output<W>>,
    packer: Option<zstd::bulk::Compressor<'static>>,
    /// For pages that are packed: where they are fetched to.
    scratch: Vec<u8>,
    batch: Batch,
    frames: Frames,
    /// How many threads fetch.
    threads: usize,
    /// Where several may write.
    place: Option<Arc<dyn Place>>,
}

impl<W: Write> Writer<W> {
    /// Writes header, features and state.
    pub fn begin(
        mut out: W,
        features: &Features,
        state: &[u8],
        compression: Option<Level>,
    ) -> Result<Writer<W>, ImageError> {
        let begun = write_head(&mut out, features, state, compression.is_some())?;
        Writer::new(Output::Direct(Target { out, place: None }), None, begun, compression)
    }

    fn new(
        output: Output<W>,
        place: Option<Arc<dyn Place>>,
        (digest, bytes): (u64, u64),
        compression: Option<Level>,
    ) -> Result<Writer<W>, ImageError> {
        let packer = compression.map(|level| {
            zstd::bulk::Compressor::new(level)
                .map_err(|error| ImageError::io("cannot prepare compression", error))
        });
        Ok(Writer {
            output: Some(output),
            scratch: if packer.is_some() { vec![0; PORTION] } else { Vec::new() },
            packer: packer.transpose()?,
            batch: Batch::new(),
            frames: Frames::new(digest, bytes)?,
            threads: thread::available_parallelism().map_or(1, usize::from).min(THREADS),
            place,
        })
    }

    /// Pages that lie in memory already, at an address that is a multiple of 4096.
    pub fn pages(&mut self, object: u32, address: u64, pages: &[u8]) -> Result<(), ImageError> {
        let lend = matches!(self.output, Some(Output::Direct(_))) && self.packer.is_none();
        if !pages.len().is_multiple_of(PAGE) {
            return Err(not_whole(object));
        }
        if !lend || pages.len() <= SMALL {
            let count = pages.len() as u64 / PAGE_BYTES;
            return self.pages_with(object, address, count, &|at, to| {
                let at = (at - address) as usize;
                to.copy_from_slice(&pages[at..at + to.len()]);
                Ok(())
            });
        }
        self.frames.claim_pages(object, address, pages.len() as u64)?;
        for (some, at) in pages.chunks(LENT).zip((address..).step_by(LENT)) {
            let mut classes = vec![Class::Unknown; some.len() / PAGE];
            classify(self.frames.seen().map(|seen| &**seen.key()), some, &mut classes);
            if self.sort(object, at, (some, &classes), None) > 0 {
                self.put(some)?;
            }
        }
        Ok(())
    }

    /// Pages that the caller fetches: `fetch` gets an address and the place for some pages, again and
    /// again until there are `count`, from several threads and in any order. What it fetches is written
    /// from that place.
    pub fn pages_with(
        &mut self,
        object: u32,
        address: u64,
        count: u64,
        fetch: &Fetch<'_>,
    ) -> Result<(), ImageError> {
        let length = count.saturating_mul(PAGE_BYTES);
        self.frames.claim_pages(object, address, length)?;
        let end = address + length;
        let mut at = address;
        while at < end {
            self.make_room()?;
            let most = if self.packer.is_some() { PORTION } else { self.batch.room().min(WAVE) };
            let size = (end - at).min(most as u64) as usize;
            self.portion(object, at, size, fetch)?;
            at += size as u64;
        }
        Ok(())
    }

    /// Pages of several places that the caller fetches. Those of one object are in order.
    pub fn many(&mut self, pages: &[Pages<'_>]) -> Result<(), ImageError> {
        let Some(place) = self.place.clone().filter(|_| self.packer.is_none()) else {
            return pages.iter().try_for_each(|it| match it.fetch {
                Some(fetch) => self.pages_with(it.object, it.address, it.count, fetch),
                None => self.zeros(it.object, it.address, it.count),
            });
        };
        for Pages { object, address, count, .. } in pages {
            self.frames.claim_pages(*object, *address, count.saturating_mul(PAGE_BYTES))?;
        }
        // What lies before them.
        self.put(&[])?;
        let done = Lanes::new(&mut self.frames, pages, &*place).run(self.threads);
        self.or_stop(done)?;
        // The end of the last table.
        self.put(&[])
    }

    /// Fetches and sorts one portion.
    fn portion(
        &mut self,
        object: u32,
        at: u64,
        size: usize,
        fetch: &Fetch<'_>,
    ) -> Result<(), ImageError> {
        let mut classes = vec![Class::Unknown; size / PAGE];
        if self.packer.is_some() {
            let mut scratch = mem::take(&mut self.scratch);
            let fetched = self.fetch_all(at, &mut scratch[..size], &mut classes, fetch);
            if fetched.is_ok() {
                self.sort(object, at, (&scratch[..size], &classes), None);
            }
            self.scratch = scratch;
            return self.or_stop(fetched);
        }
        self.batch.prepare(size);
        let mut buffer = mem::take(&mut self.batch.buffer);
        let start = self.batch.used;
        let place = &mut buffer[start..start + size];
        let fetched = self.fetch_all(at, place, &mut classes, fetch);
        if fetched.is_ok() {
            self.batch.used += self.sort(object, at, (place, &classes), Some(start));
        }
        self.batch.buffer = buffer;
        self.or_stop(fetched)
    }

    /// Fetches pages and looks at them, where there are many with several threads.
    fn fetch_all(
        &self,
        address: u64,
        place: &mut [u8],
        classes: &mut [Class],
        fetch: &Fetch<'_>,
    ) -> Result<(), ImageError> {
        let key = self.frames.seen().map(|seen| &**seen.key());
        let helpers = (place.len() / STEP).clamp(1, self.threads) - 1;
        let steps = place.chunks_mut(STEP).zip(classes.chunks_mut(STEP / PAGE));
        let steps = Mutex::new((address..).step_by(STEP).zip(steps));
        let work = || {
            loop {
                // (Held for no longer than this line.)
                let step = steps.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((at, (pages, classes))) = step else { return Ok(()) };
                fetch(at, pages)?;
                classify(key, pages, classes);
            }
        };
        thread::scope(|scope| {
            let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
            let own = work();
            helpers.into_iter().fold(own, |done, helper| {
                done.and(helper.join().unwrap_or_else(|_| Err(thread_died())))
            })
        })
    }

    /// An image with a hole in it is not finished.
    fn or_stop(&mut self, fetched: Result<(), ImageError>) -> Result<(), ImageError> {
        if fetched.is_err() {
            self.output = None;
        }
        fetched
    }

    /// So many pages of zeros.
    pub fn zeros(&mut self, object: u32, address: u64, count: u64) -> Result<(), ImageError> {
        self.frames.claim_pages(object, address, count.saturating_mul(PAGE_BYTES))?;
        if count == 0 {
            return Ok(());
        }
        self.make_room()?;
        self.frames.push_pages(Kind::Zero, object, address, count);
        Ok(())
    }

    /// A part of a stream of bytes.
    pub fn bytes(&mut self, object: u32, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.frames.claim((object, true), offset, bytes.len() as u64)?;
        for (some, at) in bytes.chunks(PORTION).zip((offset..).step_by(PORTION)) {
            self.make_room()?;
            let record = Record {
                kind: Kind::Bytes,
                packed: false,
                object,
                at,
                count: some.len() as u64,
                stored: some.len() as u64,
                checksum: 0,
            };
            store(&mut self.frames, &mut self.packer, &mut self.batch, record, some);
        }
        Ok(())
    }

    /// Writes what is left and the end. The output has everything when this returns; that it is on a
    /// disk is the caller's to see to ([`super::Durable`]).
    pub fn finish(mut self) -> Result<(W, Summary), ImageError> {
        if self.output.is_none() {
            return Err(failed_before());
        }
        let summary = self.frames.end();
        self.put(&[])?;
        let Target { mut out, .. } = self.output.take().ok_or_else(failed_before)?.finish()?;
        out.flush().map_err(|error| ImageError::io("cannot write the image", error))?;
        Ok((out, summary))
    }

    /// Makes frames of pages, which have these classes. Those to be stored are packed into the batch, or are
    /// pieces of what is lent, or lie in the batch's buffer from `own` on. Returns up to where they lie there.
    fn sort(
        &mut self,
        object: u32,
        address: u64,
        (pages, classes): (&[u8], &[Class]),
        own: Option<usize>,
    ) -> usize {
        let Writer { frames, packer, batch, .. } = self;
        let most = if packer.is_some() { MOST_PACKED_PAGES } else { MOST_DATA_PAGES };
        frames.sort(object, address, classes, most as usize * PAGE, |frames, run| {
            let content = &pages[run.clone()];
            let record = Record::of_data(object, address + run.start as u64, content);
            if packer.is_some() {
                return store(frames, packer, batch, record, content);
            }
            let piece = match own {
                Some(start) => Piece::Own(start + run.start..start + run.end),
                None => Piece::Lent(run),
            };
            frames.push(Record { checksum: checksum(content), ..record }, Some(piece));
        })
    }

    /// Writes the batch unless it has room for another portion. Frames without a payload take no room in
    /// the buffer, but their tables do in memory.
    fn make_room(&mut self) -> Result<(), ImageError> {
        let has_room = self.batch.room() >= PORTION && self.frames.pieces.len() < AT_ONCE;
        if self.output.is_some() && has_room { Ok(()) } else { self.put(&[]) }
    }

    /// Writes the batch.
    fn put(&mut self, lent: &[u8]) -> Result<(), ImageError> {
        self.frames.seal();
        self.batch.pieces.append(&mut self.frames.pieces);
        let output = self.output.take().ok_or_else(failed_before)?;
        self.output = Some(output.put(&mut self.batch, lent)?);
        Ok(())
    }
}

impl<W: Write + Send + 'static> Writer<W> {
    /// As [`Writer::begin_in`], without a place.
    #[cfg(test)]
    pub fn begin_in_background(
        out: W,
        features: &Features,
        state: &[u8],
        compression: Option<Level>,
    ) -> Result<Writer<W>, ImageError> {
        Writer::begin_in(out, None, features, state, compression)
    }

    /// As [`Writer::begin`], but what follows is written by a thread of its own, while the caller
    /// fetches and sorts. Pays where there is a second processor; costs up to three buffers of 8 MiB.
    /// If there is a place, it is what `out` writes to, at its beginning, and [`Writer::many`] writes there with
    /// several threads.
    pub fn begin_in(
        mut out: W,
        place: Option<Arc<dyn Place>>,
        features: &Features,
        state: &[u8],
        compression: Option<Level>,
    ) -> Result<Writer<W>, ImageError> {
        let begun = write_head(&mut out, features, state, compression.is_some())?;
        let target = Target { out, place: place.clone() };
        Writer::new(Output::Thread(Thread::start(target)?), place, begun, compression)
    }
}

/// Puts a frame's content into the batch's buffer, packed if that makes it smaller.
fn store(
    frames: &mut Frames,
    packer: &mut Option<zstd::bulk::Compressor<'static>>,
    batch: &mut Batch,
    record: Record,
    content: &[u8],
) {
    batch.prepare(content.len());
    let place = &mut batch.buffer[batch.used..];
    // Not worth unpacking for less than a sixteenth.
    let most = content.len() - content.len() / 16 - 1;
    let packed = packer.as_mut().and_then(|packer| {
        packer.compress_to_buffer(content, &mut place[..most]).ok().filter(|size| *size > 0)
    });
    let stored = packed.unwrap_or(content.len());
    if packed.is_none() {
        place[..stored].copy_from_slice(content);
    }
    let record = Record {
        packed: packed.is_some(),
        stored: stored as u64,
        checksum: checksum(&place[..stored]),
        ..record
    };
    let start = batch.used;
    batch.used += stored;
    frames.push(record, Some(Piece::Own(start..start + stored)));
}

fn failed_before() -> ImageError {
    ImageError::Unwritable { what: "an earlier part of it could not be written".to_owned() }
}

/// Writes all that precedes the frames. Returns the digest's beginning and the bytes written.
fn write_head(
    out: &mut impl Write,
    features: &Features,
    state: &[u8],
    compressed: bool,
) -> Result<(u64, u64), ImageError> {
    let features = features.encode()?;
    let header = Header { compressed, features: Section::of(&features), state: Section::of(state) };
    header.features.check("the list of features", MOST_FEATURES)?;
    header.state.check("the state", MOST_STATE)?;
    let (page, sum) = header.encode();
    for part in [&page[..], &features, state] {
        write_padded(out, part)?;
    }
    Ok((sum, PAGE_BYTES + padded(header.features.length) + padded(header.state.length)))
}
