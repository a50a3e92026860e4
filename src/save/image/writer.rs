//! Writing an image, front to back, to anything that takes bytes.
//!
//! Owns how pages become frames: which are zero, which are like an earlier one, which are stored.
//! Pages that the caller lends are written from where they are; those that it fetches come into the
//! buffer that is written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;
use std::mem;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::error::ImageError;
use super::features::Features;
use super::format::{
    Header, Kind, Level, MOST_ADDRESS, MOST_DATA_PAGES, MOST_FEATURES, MOST_PACKED_PAGES,
    MOST_RECORDS, MOST_STATE, PAGE, PAGE_BYTES, Record, Section, Summary, Table, Trailer, digest,
    padded,
};
use super::hash::{Class, Seen, checksum, classify};
use super::output::{AT_ONCE, Batch, Output, Piece, Thread, thread_died, write_padded};

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
type Fetch<'f> = dyn Fn(u64, &mut [u8]) -> Result<(), ImageError> + Sync + 'f;

/// Writes one image. Pages of one object have to come in ascending order, and so have the bytes of one
/// stream; objects may be interleaved. After an error it writes nothing more.
pub struct Writer<W> {
    /// `None` after an error.
    output: Option<Output<W>>,
    packer: Option<zstd::bulk::Compressor<'static>>,
    /// For pages that are packed: where they are fetched to.
    scratch: Vec<u8>,
    batch: Batch,
    /// The table that is being filled, and where among the batch's pieces it will stand.
    records: Vec<Record>,
    table_at: usize,
    /// Bytes of payload behind it.
    position: u64,
    seen: Option<Seen>,
    /// How many threads fetch.
    threads: usize,
    /// The number of the first page of each frame of data.
    starts: Vec<u64>,
    /// Where each object ended last; `true` for streams.
    ends: HashMap<(u32, bool), u64>,
    digest: u64,
    summary: Summary,
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
        Writer::new(Output::Direct(out), begun, compression)
    }

    fn new(
        output: Output<W>,
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
            records: Vec::new(),
            table_at: 0,
            position: 0,
            seen: Seen::new()?,
            threads: thread::available_parallelism().map_or(1, usize::from).min(THREADS),
            starts: Vec::new(),
            ends: HashMap::new(),
            digest,
            summary: Summary { bytes, ..Summary::default() },
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
        self.claim_pages(object, address, pages.len() as u64)?;
        for (some, at) in pages.chunks(LENT).zip((address..).step_by(LENT)) {
            let mut classes = vec![Class::Unknown; some.len() / PAGE];
            classify(self.seen.as_ref(), some, &mut classes);
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
        self.claim_pages(object, address, length)?;
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
        let seen = self.seen.as_ref();
        let helpers = (place.len() / STEP).clamp(1, self.threads) - 1;
        let steps = place.chunks_mut(STEP).zip(classes.chunks_mut(STEP / PAGE));
        let steps = Mutex::new((address..).step_by(STEP).zip(steps));
        let work = || {
            loop {
                // (Held for no longer than this line.)
                let step = steps.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((at, (pages, classes))) = step else { return Ok(()) };
                fetch(at, pages)?;
                classify(seen, pages, classes);
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
        self.claim_pages(object, address, count.saturating_mul(PAGE_BYTES))?;
        if count == 0 {
            return Ok(());
        }
        self.make_room()?;
        self.push_pages(Kind::Zero, object, address, count);
        Ok(())
    }

    /// A part of a stream of bytes.
    pub fn bytes(&mut self, object: u32, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.claim((object, true), offset, bytes.len() as u64)?;
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
            self.store(record, some);
        }
        Ok(())
    }

    /// Writes what is left and the end. The output has everything when this returns; that it is on a
    /// disk is the caller's to see to ([`super::Durable`]).
    pub fn finish(mut self) -> Result<(W, Summary), ImageError> {
        self.put(&[])?;
        let mut out = self.output.take().ok_or_else(failed_before)?.finish()?;
        self.summary.bytes += PAGE_BYTES;
        let trailer = Trailer { summary: self.summary, digest: self.digest };
        write_padded(&mut out, &trailer.encode())?;
        out.flush().map_err(|error| ImageError::io("cannot write the image", error))?;
        Ok((out, self.summary))
    }

    /// Checks a range of pages and takes it.
    fn claim_pages(&mut self, object: u32, address: u64, length: u64) -> Result<(), ImageError> {
        if !address.is_multiple_of(PAGE_BYTES) || !length.is_multiple_of(PAGE_BYTES) {
            return Err(not_whole(object));
        }
        self.claim((object, false), address, length)
    }

    fn claim(&mut self, whose: (u32, bool), at: u64, length: u64) -> Result<(), ImageError> {
        let object = whose.0;
        let end = at.checked_add(length).filter(|end| *end <= MOST_ADDRESS);
        let wrong = |what: &str| {
            Err(ImageError::Unwritable { what: format!("object {object} {what} at {at:#x}") })
        };
        let Some(end) = end else { return wrong("reaches beyond the largest address") };
        if length == 0 {
            return Ok(());
        }
        match self.ends.entry(whose) {
            Entry::Occupied(mut last) if *last.get() <= at => *last.get_mut() = end,
            Entry::Occupied(_) => return wrong("is given twice or out of order"),
            Entry::Vacant(entry) => drop(entry.insert(end)),
        }
        Ok(())
    }

    /// Makes frames of pages, which have these classes. Those to be stored are packed into the batch, or are pieces of what is
    /// lent, or lie in the batch's buffer from `own` on. Returns up to where they lie there.
    fn sort(
        &mut self,
        object: u32,
        address: u64,
        (pages, classes): (&[u8], &[Class]),
        own: Option<usize>,
    ) -> usize {
        let most =
            if self.packer.is_some() { MOST_PACKED_PAGES } else { MOST_DATA_PAGES } as usize * PAGE;
        let mut kept = 0;
        // The run of stored pages that is open.
        let mut run = 0..0;
        for (class, at) in classes.iter().zip((0..).step_by(PAGE)) {
            match self.like(*class) {
                Some(kind) => {
                    self.store_run(object, address, pages, mem::replace(&mut run, at..at), own);
                    self.push_pages(kind, object, address + at as u64, 1);
                    run = at + PAGE..at + PAGE;
                }
                None => {
                    run.end = at + PAGE;
                    kept = run.end;
                    if run.len() == most {
                        self.store_run(object, address, pages, run.clone(), own);
                        run = at + PAGE..at + PAGE;
                    }
                }
            }
        }
        self.store_run(object, address, pages, run, own);
        kept
    }

    /// Whether a page is zero or like a stored one; if not, it counts as stored.
    fn like(&mut self, class: Class) -> Option<Kind> {
        let number = self.summary.data_pages;
        let found = match (class, &mut self.seen) {
            (Class::Zero, _) => return Some(Kind::Zero),
            (Class::Hashed(hash), Some(seen)) => seen.find_or_add(hash, number),
            _ => None,
        };
        if found.is_none() {
            self.summary.data_pages += 1;
        }
        found.map(|from| Kind::Same { from })
    }

    /// Makes a frame of a run of pages, all of which count as stored already.
    fn store_run(
        &mut self,
        object: u32,
        address: u64,
        pages: &[u8],
        run: Range<usize>,
        own: Option<usize>,
    ) {
        if run.is_empty() {
            return;
        }
        let count = (run.len() / PAGE) as u64;
        self.starts.push(self.summary.data_pages - count);
        let content = &pages[run.clone()];
        let record = Record {
            kind: Kind::Data,
            packed: false,
            object,
            at: address + run.start as u64,
            count,
            stored: run.len() as u64,
            checksum: 0,
        };
        if self.packer.is_some() {
            return self.store(record, content);
        }
        let record = Record { checksum: checksum(content), ..record };
        let piece = match own {
            Some(start) => Piece::Own(start + run.start..start + run.end),
            None => Piece::Lent(run),
        };
        self.push(record, Some(piece));
    }

    /// Puts a frame's content into the batch's buffer, packed if that makes it smaller.
    fn store(&mut self, record: Record, content: &[u8]) {
        let place = &mut self.batch.buffer[self.batch.used..];
        // Not worth unpacking for less than a sixteenth.
        let most = content.len() - content.len() / 16 - 1;
        let packed = self.packer.as_mut().and_then(|packer| {
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
        let start = self.batch.used;
        self.batch.used += stored;
        self.push(record, Some(Piece::Own(start..start + stored)));
    }

    /// A frame of pages without a payload; lengthens the last one if it can.
    fn push_pages(&mut self, kind: Kind, object: u32, at: u64, count: u64) {
        match kind {
            Kind::Zero => self.summary.zero_pages += count,
            _ => self.summary.same_pages += count,
        }
        if let Some(last) = self.records.last_mut()
            && (last.object, last.end()) == (object, at)
        {
            let goes_on = match (last.kind, kind) {
                (Kind::Zero, Kind::Zero) => true,
                // The pages that it is like have to be those of one frame.
                (Kind::Same { from }, Kind::Same { from: next }) => {
                    from + last.count == next && self.starts.binary_search(&next).is_err()
                }
                _ => false,
            };
            if goes_on {
                last.count += count;
                return;
            }
        }
        let record = Record { kind, packed: false, object, at, count, stored: 0, checksum: 0 };
        self.push(record, None);
    }

    fn push(&mut self, record: Record, payload: Option<Piece>) {
        if self.records.len() == MOST_RECORDS {
            self.seal();
        }
        if self.records.is_empty() {
            self.table_at = self.batch.pieces.len();
            self.batch.pieces.push(Piece::Padding(0));
        }
        if record.kind == Kind::Bytes {
            self.summary.stream_bytes += record.count;
        }
        if record.is_aligned() {
            self.pad();
        }
        self.position += record.stored;
        self.batch.pieces.extend(payload);
        self.records.push(record);
    }

    /// Zeros up to the next page.
    fn pad(&mut self) {
        let padding = padded(self.position) - self.position;
        self.position += padding;
        if padding > 0 {
            self.batch.pieces.push(Piece::Padding(padding as usize));
        }
    }

    /// Finishes the table.
    fn seal(&mut self) {
        if self.records.is_empty() {
            return;
        }
        self.pad();
        let records = mem::take(&mut self.records);
        self.summary.frames += records.len() as u64;
        let (page, sum) = Table { number: self.summary.groups, records }.encode();
        self.batch.pieces[self.table_at] = Piece::Table(Box::new(page));
        self.digest = digest(self.digest, sum);
        self.summary.groups += 1;
        self.summary.bytes += PAGE_BYTES + self.position;
        self.position = 0;
    }

    /// Writes the batch unless it has room for another portion. Frames without a payload take no room in
    /// the buffer, but their tables do in memory.
    fn make_room(&mut self) -> Result<(), ImageError> {
        let has_room = self.batch.room() >= PORTION && self.batch.pieces.len() < AT_ONCE;
        if self.output.is_some() && has_room { Ok(()) } else { self.put(&[]) }
    }

    /// Writes the batch.
    fn put(&mut self, lent: &[u8]) -> Result<(), ImageError> {
        self.seal();
        let output = self.output.take().ok_or_else(failed_before)?;
        self.output = Some(output.put(&mut self.batch, lent)?);
        Ok(())
    }
}

impl<W: Write + Send + 'static> Writer<W> {
    /// As [`Writer::begin`], but what follows is written by a thread of its own, while the caller
    /// fetches and sorts. Pays where there is a second processor; costs three buffers of 8 MiB.
    pub fn begin_in_background(
        mut out: W,
        features: &Features,
        state: &[u8],
        compression: Option<Level>,
    ) -> Result<Writer<W>, ImageError> {
        let begun = write_head(&mut out, features, state, compression.is_some())?;
        Writer::new(Output::Thread(Thread::start(out)?), begun, compression)
    }
}

fn not_whole(object: u32) -> ImageError {
    ImageError::Unwritable { what: format!("pages of object {object} are not whole pages") }
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
