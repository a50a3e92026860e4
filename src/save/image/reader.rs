//! Reading an image front to back, from anything that gives bytes.
//!
//! Owns the checks that need what came before ([`Checks`]): order, numbers, references, the end. The
//! caller gets content only after its checksum has been checked; that the image is whole is known only
//! when the last frame has been read.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{ErrorKind, Read};

use super::error::ImageError;
use super::features::Features;
use super::format::{
    Header, Kind, Next, PAGE, PAGE_BYTES, Page, Record, Section, Summary, Table, Trailer, digest,
    padded,
};
use super::hash::checksum;

/// Where an image that lacks its end was cut.
pub(super) const WITHIN: &str = "its frames; its end is missing";

/// An image of which the features have been read, and nothing else.
#[derive(Debug)]
pub struct Opened<R> {
    from: R,
    header: Header,
    features: Features,
    checks: Checks,
}

impl<R: Read> Opened<R> {
    /// Reads header and features.
    pub fn open(mut from: R) -> Result<Opened<R>, ImageError> {
        let (header, sum) = Header::decode(&read_page(&mut from, "the header")?)?;
        let bytes = read_section(&mut from, header.features, "the list of features")?;
        let features = Features::decode(&bytes)?;
        Ok(Opened { from, header, features, checks: Checks::new(&header, sum) })
    }

    /// What it needs of the machine.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Whether frames may be packed; such an image cannot be mapped.
    pub fn is_compressed(&self) -> bool {
        self.header.compressed
    }

    /// Reads the state; the frames are next.
    pub fn state(mut self) -> Result<(Vec<u8>, Reader<R>), ImageError> {
        let state = read_section(&mut self.from, self.header.state, "the state")?;
        let reader = Reader {
            from: self.from,
            checks: self.checks,
            table: Table { number: 0, records: Vec::new() },
            at: 0,
            position: 0,
            stored: Vec::new(),
            unpacked: Vec::new(),
            unpacker: unpacker()?,
            end: None,
        };
        Ok((state, reader))
    }
}

/// A frame. What it lends is checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Pages with this content.
    Data {
        /// Whose.
        object: u32,
        /// Of the first.
        address: u64,
        /// Whole pages, 4 MiB at most.
        pages: &'a [u8],
    },
    /// Pages that are present and all zeros.
    Zero {
        /// Whose.
        object: u32,
        /// Of the first.
        address: u64,
        /// How many; only bounded by the size of an address space.
        count: u64,
    },
    /// Pages like those of an earlier [`Frame::Data`].
    Same {
        /// Whose.
        object: u32,
        /// Of the first.
        address: u64,
        /// How many.
        count: u64,
        /// Whose the earlier ones are.
        from_object: u32,
        /// Of the first of them.
        from_address: u64,
    },
    /// A part of a stream.
    Bytes {
        /// Which stream.
        object: u32,
        /// Of the first byte.
        offset: u64,
        /// 4 MiB at most.
        bytes: &'a [u8],
    },
}

/// Reads the frames of an image.
pub struct Reader<R> {
    from: R,
    checks: Checks,
    table: Table,
    /// The next of its records, and how much of its payload has been read.
    at: usize,
    position: u64,
    stored: Vec<u8>,
    unpacked: Vec<u8>,
    unpacker: zstd::bulk::Decompressor<'static>,
    end: Option<Summary>,
}

impl<R: Read> Reader<R> {
    /// The next frame; `None` once, after the last one, the end has been read and fits.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ImageError> {
        if self.end.is_some() || self.at == self.table.records.len() && !self.next_table()? {
            return Ok(None);
        }
        let record = self.table.records[self.at];
        self.at += 1;
        if record.is_aligned() {
            self.skip_padding()?;
        }
        let Record { object, at: address, count, .. } = record;
        Ok(Some(match record.kind {
            Kind::Zero => Frame::Zero { object, address, count },
            Kind::Same { from } => {
                let found = self.checks.data(from, count)?;
                let from_address = found.frame.at + found.before * PAGE_BYTES;
                let from_object = found.frame.object;
                Frame::Same { object, address, count, from_object, from_address }
            }
            Kind::Data => Frame::Data { object, address, pages: self.payload(&record)? },
            Kind::Bytes => Frame::Bytes { object, offset: address, bytes: self.payload(&record)? },
        }))
    }

    /// The object of the next frame, which stays the next; `None`: there is none.
    pub fn next_object(&mut self) -> Result<Option<u32>, ImageError> {
        if self.end.is_some() || self.at == self.table.records.len() && !self.next_table()? {
            return Ok(None);
        }
        Ok(self.table.records.get(self.at).map(|record| record.object))
    }

    /// What the whole image holds, after `next_frame` has given `None`.
    pub fn summary(&self) -> Option<Summary> {
        self.end
    }

    /// Gives the input back, which stands behind the image if all frames have been read.
    pub fn into_inner(self) -> R {
        self.from
    }

    /// Reads on and expects nothing: for an input that holds one image and nothing else.
    pub fn expect_end(mut self) -> Result<(), ImageError> {
        let mut byte = [0];
        loop {
            match self.from.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(ImageError::Trailing),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::io("cannot read the image", error)),
            }
        }
    }

    /// Reads the next table; `false` at the end.
    fn next_table(&mut self) -> Result<bool, ImageError> {
        self.skip_padding()?;
        match Next::decode(&read_page(&mut self.from, WITHIN)?)? {
            Next::Table(table, sum) => {
                self.checks.table(&table, sum)?;
                self.table = table;
                (self.at, self.position) = (0, 0);
                Ok(true)
            }
            Next::Trailer(trailer) => {
                self.end = Some(self.checks.trailer(&trailer)?);
                Ok(false)
            }
        }
    }

    /// Reads up to the next page.
    fn skip_padding(&mut self) -> Result<(), ImageError> {
        let padding = (padded(self.position) - self.position) as usize;
        self.position += padding as u64;
        let mut room = [0; PAGE];
        read_exact(&mut self.from, &mut room[..padding], WITHIN)?;
        check_padding(&room[..padding])
    }

    /// Reads the payload of a record, checks it, unpacks it.
    fn payload(&mut self, record: &Record) -> Result<&[u8], ImageError> {
        // Both are at most 4 MiB: `Record::check`.
        let size = record.stored as usize;
        if self.stored.len() < size {
            self.stored.resize(size, 0);
        }
        let stored = &mut self.stored[..size];
        read_exact(&mut self.from, stored, WITHIN)?;
        self.position += record.stored;
        check_payload(record, stored)?;
        if !record.packed {
            return Ok(stored);
        }
        unpack(&mut self.unpacker, record, stored, &mut self.unpacked)?;
        Ok(&self.unpacked)
    }
}

pub(super) fn unpacker() -> Result<zstd::bulk::Decompressor<'static>, ImageError> {
    zstd::bulk::Decompressor::new()
        .map_err(|error| ImageError::io("cannot prepare decompression", error))
}

/// Unpacks a payload; the result has the record's length exactly.
pub(super) fn unpack(
    unpacker: &mut zstd::bulk::Decompressor<'static>,
    record: &Record,
    stored: &[u8],
    to: &mut Vec<u8>,
) -> Result<(), ImageError> {
    let length = record.unpacked() as usize;
    to.resize(length, 0);
    match unpacker.decompress_to_buffer(stored, &mut to[..]) {
        Ok(size) if size == length => Ok(()),
        _ => Err(ImageError::impossible(format!("{} cannot be unpacked", described(record)))),
    }
}

/// What a frame is called in an error.
pub(super) fn described(record: &Record) -> String {
    let what = if record.kind == Kind::Bytes { "bytes" } else { "pages" };
    format!("the {what} of object {} at {:#x}", record.object, record.at)
}

/// Compares a payload with its checksum.
pub(super) fn check_payload(record: &Record, stored: &[u8]) -> Result<(), ImageError> {
    check_sum(record, checksum(stored))
}

/// Compares the checksum of a payload with what it should be.
pub(super) fn check_sum(record: &Record, found: u64) -> Result<(), ImageError> {
    if found == record.checksum {
        return Ok(());
    }
    Err(ImageError::damaged(described(record)))
}

/// Between the parts of an image are zeros.
pub(super) fn check_padding(bytes: &[u8]) -> Result<(), ImageError> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(ImageError::impossible("there is something between its parts"))
}

/// A frame of data that has gone by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed {
    /// The number of its first page among all that are stored.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) object: u32,
    pub(super) at: u64,
}

/// Where some stored pages are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Which of the frames of data.
    pub(super) index: usize,
    pub(super) frame: Passed,
    /// Its pages before them.
    pub(super) before: u64,
}

/// What has to be remembered of an image to check what follows: a few words for each frame, so never
/// much more than the image itself.
#[derive(Debug)]
pub(super) struct Checks {
    compressed: bool,
    /// Where each object ended last; `true` for streams.
    ends: HashMap<(u32, bool), u64>,
    /// Ascending by `first`.
    passed: Vec<Passed>,
    digest: u64,
    summary: Summary,
}

impl Checks {
    pub(super) fn new(header: &Header, checksum: u64) -> Checks {
        let bytes = PAGE_BYTES + padded(header.features.length) + padded(header.state.length);
        Checks {
            compressed: header.compressed,
            ends: HashMap::new(),
            passed: Vec::new(),
            digest: checksum,
            summary: Summary { bytes, ..Summary::default() },
        }
    }

    /// Where the next table or the end begins.
    pub(super) fn bytes(&self) -> u64 {
        self.summary.bytes
    }

    /// Takes the next table.
    pub(super) fn table(&mut self, table: &Table, sum: u64) -> Result<(), ImageError> {
        if table.number != self.summary.groups {
            return Err(ImageError::impossible("a table of frames is missing or out of order"));
        }
        for record in &table.records {
            self.record(record)?;
        }
        self.digest = digest(self.digest, sum);
        let too_much = || ImageError::impossible("it is longer than a file can be");
        let bytes = PAGE_BYTES + table.places().1;
        self.summary.bytes = self.summary.bytes.checked_add(bytes).ok_or_else(too_much)?;
        self.summary.groups += 1;
        self.summary.frames += table.records.len() as u64;
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<(), ImageError> {
        if record.packed && !self.compressed {
            return Err(ImageError::impossible(
                "a frame is packed and the header says that none is",
            ));
        }
        let end = record.end();
        match self.ends.entry((record.object, record.kind == Kind::Bytes)) {
            Entry::Occupied(mut last) if *last.get() <= record.at => *last.get_mut() = end,
            Entry::Vacant(entry) => drop(entry.insert(end)),
            Entry::Occupied(_) => {
                let what = format!("{} come twice or out of order", described(record));
                return Err(ImageError::impossible(what));
            }
        }
        let sum = &mut self.summary;
        let (total, count) = match record.kind {
            Kind::Data => {
                let Record { count, object, at, .. } = *record;
                self.passed.push(Passed { first: sum.data_pages, count, object, at });
                (&mut sum.data_pages, count)
            }
            Kind::Zero => (&mut sum.zero_pages, record.count),
            Kind::Same { from } => {
                self.data(from, record.count)?;
                (&mut self.summary.same_pages, record.count)
            }
            Kind::Bytes => (&mut sum.stream_bytes, record.count),
        };
        // Many objects may have many zeros.
        let sum = total.checked_add(count);
        *total =
            sum.ok_or_else(|| ImageError::impossible("it has more pages than can be counted"))?;
        Ok(())
    }

    /// The frame that holds these stored pages, which are to be earlier ones, of one frame.
    pub(super) fn data(&self, from: u64, count: u64) -> Result<Found, ImageError> {
        let after = self.passed.partition_point(|it| it.first <= from);
        let found = after.checked_sub(1).map(|index| {
            let frame = self.passed[index];
            Found { index, frame, before: from - frame.first }
        });
        found.filter(|it| count <= it.frame.count.saturating_sub(it.before)).ok_or_else(|| {
            ImageError::impossible("a frame is like pages that no frame before it has")
        })
    }

    /// Takes the end.
    pub(super) fn trailer(&self, trailer: &Trailer) -> Result<Summary, ImageError> {
        let summary = Summary { bytes: self.summary.bytes + PAGE_BYTES, ..self.summary };
        if trailer.digest != self.digest {
            return Err(ImageError::damaged("all tables of frames"));
        }
        if trailer.summary != summary {
            return Err(ImageError::impossible("its end counts other frames than it has"));
        }
        Ok(summary)
    }
}

/// Reads exactly so many bytes.
pub(super) fn read_exact(
    from: &mut impl Read,
    to: &mut [u8],
    within: &'static str,
) -> Result<(), ImageError> {
    from.read_exact(to).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => ImageError::CutShort { within },
        _ => ImageError::io("cannot read the image", error),
    })
}

pub(super) fn read_page(from: &mut impl Read, within: &'static str) -> Result<Page, ImageError> {
    let mut page = [0; PAGE];
    read_exact(from, &mut page, within)?;
    Ok(page)
}

/// Reads a section with its padding and checks both. Its length has been capped; memory is taken as
/// bytes come, so that a header alone costs nothing.
pub(super) fn read_section(
    from: &mut impl Read,
    section: Section,
    what: &'static str,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    from.take(padded(section.length))
        .read_to_end(&mut bytes)
        .map_err(|error| ImageError::io("cannot read the image", error))?;
    if (bytes.len() as u64) < padded(section.length) {
        return Err(ImageError::CutShort { within: what });
    }
    check_padding(&bytes[section.length as usize..])?;
    bytes.truncate(section.length as usize);
    if checksum(&bytes) != section.checksum {
        return Err(ImageError::damaged(what));
    }
    Ok(bytes)
}
