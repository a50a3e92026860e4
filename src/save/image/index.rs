//! The list of what lies where in an image that is a regular file.
//!
//! Owns reading all tables without the content, and the check of the content, which can go on in
//! another thread. The checks are those of the [`Reader`](super::Reader).

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::error::ImageError;
use super::features::Features;
use super::format::{Header, Kind, Next, PAGE_BYTES, Record, Section, Summary, Table, padded};
use super::hash::Sum;
use super::reader::{
    Checks, WITHIN, check_padding, check_payload, check_sum, read_exact, read_page, read_section,
    unpack, unpacker,
};

/// Threads that check content; more gain nothing over the memory's own speed.
pub const CHECKERS: usize = 4;
/// So much is read at once: blocks that lie together, or a piece of a block. A processor's own cache
/// holds it.
const AT_ONCE: u64 = 256 << 10;

/// Where the content of some pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the file as it is, from this offset on (a multiple of 4096).
    File(u64),
    /// Nowhere: zeros.
    Zero,
    /// In a packed block ([`Index::unpack`]), from this page of it on.
    Packed {
        /// Which block.
        block: usize,
        /// The first page.
        first: u64,
    },
}

/// Pages that follow each other, in their object and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub object: u32,
    /// Of the first.
    pub address: u64,
    /// How many.
    pub pages: u64,
    /// Where they are.
    pub source: Source,
}

impl Run {
    /// The part of it between two addresses in it, which are those of pages.
    pub fn part(&self, (start, end): (u64, u64)) -> Run {
        let first = start.saturating_sub(self.address) / PAGE_BYTES;
        let source = match self.source {
            Source::File(at) => Source::File(at + first * PAGE_BYTES),
            Source::Zero => Source::Zero,
            Source::Packed { block, first: begin } => {
                Source::Packed { block, first: begin + first }
            }
        };
        let pages = end.saturating_sub(start) / PAGE_BYTES;
        Run { address: start, pages, source, ..*self }
    }

    /// The run of both, if the other one goes on where this ends.
    fn joined(&self, next: &Run) -> Option<Run> {
        let length = self.pages * PAGE_BYTES;
        let source_goes_on = match (self.source, next.source) {
            (Source::File(at), Source::File(then)) => at + length == then,
            (Source::Zero, Source::Zero) => true,
            (
                Source::Packed { block, first },
                Source::Packed { block: next_block, first: next_first },
            ) => block == next_block && first + self.pages == next_first,
            _ => false,
        };
        let goes_on =
            source_goes_on && self.object == next.object && self.address + length == next.address;
        goes_on.then(|| Run { pages: self.pages + next.pages, ..*self })
    }
}

/// A part of a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Which stream.
    pub object: u32,
    /// Of the first byte in it.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// In the file ([`Index::stream`] reads it).
    block: usize,
}

/// A payload: its record and where it lies.
#[derive(Debug, Clone, Copy)]
struct Block {
    record: Record,
    at: u64,
    /// Bytes of padding behind it.
    padding: u64,
}

impl Block {
    /// Its first byte and the one behind its padding.
    fn range(&self) -> Range<u64> {
        self.at..self.at + self.record.stored + self.padding
    }

    /// Checks the bytes of that range.
    fn check(&self, bytes: &[u8]) -> Result<(), ImageError> {
        let (stored, padding) = bytes.split_at(self.record.stored as usize);
        check_payload(&self.record, stored)?;
        check_padding(padding)
    }

    /// The same, reading them as they are needed.
    fn check_in_pieces(&self, from: &mut impl Read, room: &mut [u8]) -> Result<(), ImageError> {
        let mut sum = Sum::default();
        let mut rest = self.record.stored as usize;
        while rest > 0 {
            let size = rest.min(room.len());
            read_exact(from, &mut room[..size], WITHIN)?;
            sum.add(&room[..size]);
            rest -= size;
        }
        check_sum(&self.record, sum.finish())?;
        // Less than a page.
        let padding = &mut room[..self.padding as usize];
        read_exact(from, padding, WITHIN)?;
        check_padding(padding)
    }
}

/// What lies where. All of it has been checked but the content ([`Index::verify`]).
#[derive(Debug)]
pub struct Index {
    features: Features,
    state: (u64, Section),
    compressed: bool,
    runs: Vec<Run>,
    streams: Vec<Stream>,
    /// Every payload, in the order of the file.
    blocks: Vec<Block>,
    /// Which of them are frames of data, in the order of the file.
    data: Vec<usize>,
    summary: Summary,
}

impl Index {
    /// Reads the features alone, which are to be looked at before anything else.
    pub fn features_of(file: &File) -> Result<Features, ImageError> {
        head(file).map(|(.., features)| features)
    }

    /// Reads header, features and all tables, up to the end, which is to be the file's.
    pub fn open(file: &File) -> Result<Index, ImageError> {
        let size =
            file.metadata().map_err(|error| ImageError::io("cannot read the image", error))?.len();
        let (header, sum, features) = head(file)?;
        let state_at = PAGE_BYTES + padded(header.features.length);
        let mut checks = Checks::new(&header, sum);
        let mut index = Index {
            features,
            state: (state_at, header.state),
            compressed: header.compressed,
            runs: Vec::new(),
            streams: Vec::new(),
            blocks: Vec::new(),
            data: Vec::new(),
            summary: Summary::default(),
        };
        loop {
            let at = checks.bytes();
            match Next::decode(&read_page(&mut At { file, at }, WITHIN)?)? {
                Next::Table(table, sum) => {
                    checks.table(&table, sum)?;
                    if checks.bytes() >= size {
                        return Err(ImageError::CutShort { within: WITHIN });
                    }
                    index.take(&table, at + PAGE_BYTES, &checks)?;
                }
                Next::Trailer(trailer) => {
                    index.summary = checks.trailer(&trailer)?;
                    break;
                }
            }
        }
        if index.summary.bytes != size {
            return Err(ImageError::Trailing);
        }
        Ok(index)
    }

    /// Takes over the records of a table whose payloads begin at `base`.
    fn take(&mut self, table: &Table, base: u64, checks: &Checks) -> Result<(), ImageError> {
        let (places, end) = table.places();
        let nexts = places.iter().skip(1).chain([&end]);
        for ((record, place), next) in table.records.iter().zip(&places).zip(nexts) {
            let Record { object, at: address, count: pages, stored, .. } = *record;
            let block = self.blocks.len();
            if matches!(record.kind, Kind::Data | Kind::Bytes) {
                self.blocks.push(Block { record: *record, at: base + place, padding: 0 });
            }
            // Frames without a payload may stand between a payload and the padding behind it.
            let padding = next - place - stored;
            if let Some(last) = self.blocks.last_mut() {
                last.padding += padding;
            }
            let source = match record.kind {
                Kind::Bytes => {
                    let stream = Stream { object, offset: address, length: pages, block };
                    self.streams.push(stream);
                    continue;
                }
                Kind::Zero => Source::Zero,
                Kind::Data => {
                    self.data.push(block);
                    self.source(block, 0)
                }
                Kind::Same { from } => {
                    let found = checks.data(from, pages)?;
                    self.source(self.data[found.index], found.before)
                }
            };
            let run = Run { object, address, pages, source };
            match self.runs.last_mut().and_then(|last| Some((last.joined(&run)?, last))) {
                Some((longer, last)) => *last = longer,
                None => self.runs.push(run),
            }
        }
        Ok(())
    }

    fn source(&self, block: usize, first: u64) -> Source {
        let Block { record, at, .. } = self.blocks[block];
        if record.packed {
            Source::Packed { block, first }
        } else {
            Source::File(at + first * PAGE_BYTES)
        }
    }

    /// What the image needs of the machine.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Whether blocks may be packed.
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// What the image holds, in numbers.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// All pages, in the order of the file: ascending within each object.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// All parts of streams, in the order of the file: ascending within each stream.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Reads the state and checks it.
    pub fn state(&self, file: &File) -> Result<Vec<u8>, ImageError> {
        let (at, section) = self.state;
        read_section(&mut At { file, at }, section, "the state")
    }

    /// Reads a part of a stream and checks it.
    pub fn stream(&self, file: &File, stream: &Stream) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.unpack(file, stream.block, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a block, checks and unpacks it into `to`, which is replaced.
    pub fn unpack(&self, file: &File, block: usize, to: &mut Vec<u8>) -> Result<(), ImageError> {
        let what = || ImageError::Impossible { what: format!("it has no block {block}") };
        let Block { record, at, .. } = self.blocks.get(block).ok_or_else(what)?;
        let mut stored = vec![0; record.stored as usize];
        read_exact(&mut At { file, at: *at }, &mut stored, WITHIN)?;
        check_payload(record, &stored)?;
        if !record.packed {
            *to = stored;
            return Ok(());
        }
        unpack(&mut unpacker()?, record, &stored, to)
    }

    /// Compares all content with its checksums, with several threads. What has been mapped or read
    /// without [`Index::unpack`] is to be trusted only after this.
    pub fn verify(&self, file: &File) -> Result<(), ImageError> {
        verify(&self.blocks, file, CHECKERS)
    }

    /// The same for the content that lies where `which` says (first byte, byte behind it), with at most so many
    /// threads.
    pub fn verify_where(
        &self,
        file: &File,
        which: &dyn Fn(u64, u64) -> bool,
        threads: usize,
    ) -> Result<(), ImageError> {
        let is_wanted = |block: &&Block| which(block.at, block.at + block.record.stored);
        let blocks: Vec<Block> = self.blocks.iter().filter(is_wanted).copied().collect();
        verify(&blocks, file, threads)
    }
}

/// Compares blocks with their checksums.
fn verify(blocks: &[Block], file: &File, threads: usize) -> Result<(), ImageError> {
    let next = Mutex::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(threads);
    thread::scope(|scope| {
        let others: Vec<_> =
            (1..threads).map(|_| scope.spawn(|| verify_some(blocks, file, &next))).collect();
        let own = verify_some(blocks, file, &next);
        let outcomes = others.into_iter().map(|it| it.join().unwrap_or_else(|_| Err(died())));
        outcomes.fold(own, Result::and)
    })
}

/// Takes blocks that lie together and checks them, until there are none.
fn verify_some(blocks: &[Block], file: &File, next: &Mutex<usize>) -> Result<(), ImageError> {
    let mut room = vec![0; AT_ONCE as usize];
    loop {
        let some = {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            let some = together(blocks, *next);
            *next = some.end;
            &blocks[some]
        };
        let (Some(first), Some(last)) = (some.first(), some.last()) else { return Ok(()) };
        let (begin, end) = (first.range().start, last.range().end);
        if end - begin > AT_ONCE {
            first.check_in_pieces(&mut At { file, at: begin }, &mut room)?;
            continue;
        }
        let length = (end - begin) as usize;
        read_exact(&mut At { file, at: begin }, &mut room[..length], WITHIN)?;
        for block in some {
            let Range { start, end } = block.range();
            block.check(&room[(start - begin) as usize..(end - begin) as usize])?;
        }
    }
}

/// Blocks from this one on that are read at once.
fn together(blocks: &[Block], first: usize) -> Range<usize> {
    let rest = blocks.get(first..).unwrap_or_default();
    let limit = rest.first().map_or(0, |it| it.at + AT_ONCE);
    let more = rest.iter().skip(1).take_while(|it| it.range().end <= limit).count();
    first..(first + 1 + more).min(blocks.len())
}

/// Header, its checksum, features.
fn head(file: &File) -> Result<(Header, u64, Features), ImageError> {
    let mut from = At { file, at: 0 };
    let (header, sum) = Header::decode(&read_page(&mut from, "the header")?)?;
    let bytes = read_section(&mut from, header.features, "the list of features")?;
    Ok((header, sum, Features::decode(&bytes)?))
}

/// A thread that checks has ended otherwise than by returning.
fn died() -> ImageError {
    ImageError::impossible("checking it has failed")
}

/// Reads a file from a place on without moving its offset, which others may share.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(to, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
