//! How pages become frames: which are zero, which are like an earlier one, which are stored, and where in
//! the image everything lies.
//!
//! Owns the tables and the numbers of the whole. Does not fetch or write anything: what is to be written
//! it leaves as pieces, each with its place.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;
use std::ops::Range;

use super::error::ImageError;
use super::format::{
    Kind, MOST_ADDRESS, MOST_RECORDS, PAGE, PAGE_BYTES, Record, Summary, Table, Trailer, digest,
    padded,
};
use super::hash::{Class, Seen};
use super::output::Piece;

/// The frames of one image, in the order in which they are written.
pub(super) struct Frames {
    /// The table that is being filled.
    records: Vec<Record>,
    /// Bytes of payload behind it.
    position: u64,
    seen: Option<Seen>,
    /// The number of the first page of each frame of data.
    starts: Vec<u64>,
    /// Where each object ended last; `true` for streams.
    ends: HashMap<(u32, bool), u64>,
    digest: u64,
    /// Its `bytes` end where the open table begins.
    summary: Summary,
    /// What is to be written and has not been taken, each with its place in the image. A table comes behind
    /// its payloads.
    pub(super) pieces: Vec<(u64, Piece)>,
}

impl Frames {
    /// `digest`: its beginning; `bytes`: where the first table will be.
    pub(super) fn new(digest: u64, bytes: u64) -> Result<Frames, ImageError> {
        Ok(Frames {
            records: Vec::new(),
            position: 0,
            seen: Seen::new()?,
            starts: Vec::new(),
            ends: HashMap::new(),
            digest,
            summary: Summary { bytes, ..Summary::default() },
            pieces: Vec::new(),
        })
    }

    /// The pages so far, by which others are compared.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Checks a range of pages and takes it.
    pub(super) fn claim_pages(
        &mut self,
        object: u32,
        address: u64,
        length: u64,
    ) -> Result<(), ImageError> {
        if !address.is_multiple_of(PAGE_BYTES) || !length.is_multiple_of(PAGE_BYTES) {
            return Err(not_whole(object));
        }
        self.claim((object, false), address, length)
    }

    /// Checks a range of an object (`true`: of a stream) and takes it.
    pub(super) fn claim(
        &mut self,
        whose: (u32, bool),
        at: u64,
        length: u64,
    ) -> Result<(), ImageError> {
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

    /// Makes frames of pages, which have these classes. `store` is given each run of those to be stored, at most
    /// `most` bytes, as a range of bytes. Gives where the last of them ends.
    pub(super) fn sort(
        &mut self,
        object: u32,
        address: u64,
        classes: &[Class],
        most: usize,
        mut store: impl FnMut(&mut Frames, Range<usize>),
    ) -> usize {
        let mut kept = 0;
        // The run of stored pages that is open.
        let mut run = 0..0;
        let mut finish = |frames: &mut Frames, run: Range<usize>| {
            if !run.is_empty() {
                frames.starts.push(frames.summary.data_pages - (run.len() / PAGE) as u64);
                store(frames, run);
            }
        };
        for (class, at) in classes.iter().zip((0..).step_by(PAGE)) {
            match self.like(*class) {
                Some(kind) => {
                    finish(self, mem::replace(&mut run, at..at));
                    self.push_pages(kind, object, address + at as u64, 1);
                    run = at + PAGE..at + PAGE;
                }
                None => {
                    self.summary.data_pages += 1;
                    run.end = at + PAGE;
                    kept = run.end;
                    if run.len() == most {
                        finish(self, mem::replace(&mut run, kept..kept));
                    }
                }
            }
        }
        finish(self, run);
        kept
    }

    /// Whether a page is zero or like a stored one; if not, it is to be stored, as the next.
    fn like(&mut self, class: Class) -> Option<Kind> {
        let number = self.summary.data_pages;
        match (class, &mut self.seen) {
            (Class::Zero, _) => Some(Kind::Zero),
            (Class::Hashed(hash), Some(seen)) => {
                seen.find_or_add(hash, number).map(|from| Kind::Same { from })
            }
            _ => None,
        }
    }

    /// A frame of pages without a payload; lengthens the last one if it can.
    pub(super) fn push_pages(&mut self, kind: Kind, object: u32, at: u64, count: u64) {
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

    /// A frame, and what is to be written of it.
    pub(super) fn push(&mut self, record: Record, payload: Option<Piece>) {
        if self.records.len() == MOST_RECORDS {
            self.seal();
        }
        if record.kind == Kind::Bytes {
            self.summary.stream_bytes += record.count;
        }
        if record.is_aligned() {
            self.pad();
        }
        if let Some(piece) = payload {
            self.put(piece);
        }
        self.position += record.stored;
        self.records.push(record);
    }

    /// Where the payload of the next frame begins.
    fn put(&mut self, piece: Piece) {
        self.pieces.push((self.summary.bytes + PAGE_BYTES + self.position, piece));
    }

    /// Zeros up to the next page.
    fn pad(&mut self) {
        let padding = padded(self.position) - self.position;
        if padding > 0 {
            self.put(Piece::Padding(padding as usize));
        }
        self.position += padding;
    }

    /// Finishes the table.
    pub(super) fn seal(&mut self) {
        if self.records.is_empty() {
            return;
        }
        self.pad();
        let records = mem::take(&mut self.records);
        self.summary.frames += records.len() as u64;
        let (page, sum) = Table { number: self.summary.groups, records }.encode();
        self.pieces.push((self.summary.bytes, Piece::Page(Box::new(page))));
        self.digest = digest(self.digest, sum);
        self.summary.groups += 1;
        self.summary.bytes += PAGE_BYTES + self.position;
        self.position = 0;
    }

    /// Finishes the last table and adds the end. Gives the image in numbers.
    pub(super) fn end(&mut self) -> Summary {
        self.seal();
        let at = self.summary.bytes;
        self.summary.bytes += PAGE_BYTES;
        let trailer = Trailer { summary: self.summary, digest: self.digest };
        self.pieces.push((at, Piece::Page(Box::new(trailer.encode()))));
        self.summary
    }
}

pub(super) fn not_whole(object: u32) -> ImageError {
    ImageError::Unwritable { what: format!("pages of object {object} are not whole pages") }
}
