//! The bytes of an image: its header page, tables of frames and trailer (docs/image.md).
//!
//! Owns where each number lies and the checks that one page can be given by itself. Does not read or
//! write anything, and does not know what came before a table ([`super::reader::Checks`] does).

use super::error::ImageError;
use super::hash::checksum;

/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// Bytes of a page, of guests and of the format.
pub const PAGE: usize = 4096;
/// The same as a count of bytes in a file.
pub(super) const PAGE_BYTES: u64 = PAGE as u64;
/// A page of the image.
pub(super) type Page = [u8; PAGE];

/// The most bytes of the features section.
pub(super) const MOST_FEATURES: u64 = 64 << 10;
/// The most bytes of the state section.
pub(super) const MOST_STATE: u64 = 1 << 30;
/// The most bytes that one stored frame holds, packed or not.
pub(super) const MOST_PAYLOAD: u64 = 4 << 20;
/// The most pages of a frame of data.
pub(super) const MOST_DATA_PAGES: u64 = MOST_PAYLOAD / PAGE_BYTES;
/// The most pages of a packed frame of data.
pub(super) const MOST_PACKED_PAGES: u64 = 256;
/// Addresses and offsets end here; the kernel's own are below (loff_t, and 57 bits of address).
pub(super) const MOST_ADDRESS: u64 = i64::MAX as u64;

const MAGIC: &[u8; 8] = b"\x89SBXIMG\n";
const GROUP_MAGIC: &[u8; 8] = b"SBXGROUP";
const END_MAGIC: &[u8; 8] = b"SBXTRAIL";
const LAST_MAGIC: &[u8; 8] = b"SBX-END\n";
/// Where the header and the trailer keep their own checksum: over all that precedes.
const OWN_CHECKSUM: usize = PAGE - 16;
/// Where a table keeps its own: over the page with zeros there.
const TABLE_CHECKSUM: usize = 32;
const RECORDS: usize = 56;
const RECORD: usize = 40;
/// The most frames of one table.
pub(super) const MOST_RECORDS: usize = (PAGE - RECORDS) / RECORD;
const COMPRESSED: u32 = 1;

/// A level of zstd: 1 to 22, or negative for speed.
pub type Level = i32;

/// What an image holds, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Bytes of the whole image.
    pub bytes: u64,
    /// Pages whose content is stored.
    pub data_pages: u64,
    /// Pages present and all zeros.
    pub zero_pages: u64,
    /// Pages like an earlier one.
    pub same_pages: u64,
    /// Bytes of streams.
    pub stream_bytes: u64,
    /// Frames.
    pub frames: u64,
    /// Tables of frames.
    pub groups: u64,
}

/// A page that is filled or read number by number.
struct Layout<'a>(&'a mut Page);

impl Layout<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u64s(&mut self, at: usize, numbers: &[u64]) {
        for (index, number) in numbers.iter().enumerate() {
            self.put(at + 8 * index, &number.to_le_bytes());
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |it| u64::from_le_bytes(*it))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |it| u32::from_le_bytes(*it))
}

/// `bytes` rounded up to whole pages; the callers' are below 2^63.
pub(super) fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES)
}

fn all_zero(bytes: &[u8], of: &str) -> Result<(), ImageError> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(ImageError::impossible(format!("{of} has something where nothing belongs")))
}

/// A section: its bytes and their checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) length: u64,
    pub(super) checksum: u64,
}

impl Section {
    pub(super) fn of(bytes: &[u8]) -> Section {
        Section { length: bytes.len() as u64, checksum: checksum(bytes) }
    }

    /// An error unless its length is below `most`.
    pub(super) fn check(&self, what: &'static str, most: u64) -> Result<(), ImageError> {
        if self.length > most {
            return Err(ImageError::TooLarge { what, size: self.length, most });
        }
        Ok(())
    }
}

/// The first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Whether frames may be packed.
    pub(super) compressed: bool,
    pub(super) features: Section,
    pub(super) state: Section,
}

impl Header {
    /// Its page, and the checksum in it.
    pub(super) fn encode(&self) -> (Page, u64) {
        let mut page = [0; PAGE];
        let mut to = Layout(&mut page);
        to.put(0, MAGIC);
        to.put(8, &VERSION.to_le_bytes());
        to.put(12, &if self.compressed { COMPRESSED } else { 0 }.to_le_bytes());
        to.put(16, &(PAGE as u32).to_le_bytes());
        let (features, state) = (self.features, self.state);
        to.put_u64s(24, &[features.length, features.checksum, state.length, state.checksum]);
        let sum = checksum(&to.0[..OWN_CHECKSUM]);
        to.put_u64s(OWN_CHECKSUM, &[sum]);
        (page, sum)
    }

    /// The header and the checksum in it. Magic and version are looked at first: another version may
    /// have its checksum elsewhere.
    pub(super) fn decode(page: &Page) -> Result<(Header, u64), ImageError> {
        if !page.starts_with(MAGIC) {
            return Err(ImageError::NotAnImage);
        }
        let version = u32_at(page, 8);
        if version != VERSION {
            return Err(ImageError::Version { found: version });
        }
        let sum = u64_at(page, OWN_CHECKSUM);
        if checksum(&page[..OWN_CHECKSUM]) != sum {
            return Err(ImageError::damaged("the header"));
        }
        let (flags, page_size) = (u32_at(page, 12), u32_at(page, 16));
        if page_size as usize != PAGE {
            return Err(ImageError::PageSize { image: page_size, here: PAGE as u32 });
        }
        if flags & !COMPRESSED != 0 {
            return Err(ImageError::impossible("the header has a flag that no version 1 has"));
        }
        all_zero(&page[20..24], "the header")?;
        all_zero(&page[56..OWN_CHECKSUM], "the header")?;
        all_zero(&page[OWN_CHECKSUM + 8..], "the header")?;
        let section = |at| Section { length: u64_at(page, at), checksum: u64_at(page, at + 8) };
        let (features, state) = (section(24), section(40));
        features.check("the list of features", MOST_FEATURES)?;
        state.check("the state", MOST_STATE)?;
        Ok((Header { compressed: flags & COMPRESSED != 0, features, state }, sum))
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages, stored.
    Data,
    /// Pages of zeros.
    Zero,
    /// Pages like stored ones: those from this number on.
    Same {
        /// Counted over all stored pages of the image.
        from: u64,
    },
    /// A part of a stream.
    Bytes,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// Whether the payload is a zstd frame.
    pub(super) packed: bool,
    pub(super) object: u32,
    /// The address of the first page, or the offset of the first byte.
    pub(super) at: u64,
    /// Pages, or bytes of a stream.
    pub(super) count: u64,
    /// Bytes of the payload as stored.
    pub(super) stored: u64,
    /// Their checksum; 0 where there is no payload.
    pub(super) checksum: u64,
}

impl Record {
    /// Pages that are stored as they are; without their checksum.
    pub(super) fn of_data(object: u32, at: u64, pages: &[u8]) -> Record {
        let stored = pages.len() as u64;
        let count = stored / PAGE_BYTES;
        Record { kind: Kind::Data, packed: false, object, at, count, stored, checksum: 0 }
    }

    /// Where it ends in its object; [`Record::check`] has excluded an overflow.
    pub(super) fn end(&self) -> u64 {
        self.at.saturating_add(self.unpacked())
    }

    /// Bytes of its content.
    pub(super) fn unpacked(&self) -> u64 {
        match self.kind {
            Kind::Bytes => self.count,
            _ => self.count.saturating_mul(PAGE_BYTES),
        }
    }

    /// Whether its payload begins at a multiple of a page.
    pub(super) fn is_aligned(&self) -> bool {
        self.kind == Kind::Data && !self.packed
    }

    fn encode(&self, to: &mut Layout<'_>, at: usize) {
        let (kind, stored) = match self.kind {
            Kind::Data => (1, self.stored),
            Kind::Zero => (2, 0),
            Kind::Same { from } => (3, from),
            Kind::Bytes => (4, self.stored),
        };
        to.put(at, &[kind, u8::from(self.packed)]);
        to.put(at + 4, &self.object.to_le_bytes());
        to.put_u64s(at + 8, &[self.at, self.count, stored, self.checksum]);
    }

    fn decode(bytes: &[u8]) -> Result<Record, ImageError> {
        let number = u64_at(bytes, 24);
        let (kind, stored) = match bytes[0] {
            1 => (Kind::Data, number),
            2 if number == 0 => (Kind::Zero, 0),
            3 => (Kind::Same { from: number }, 0),
            4 => (Kind::Bytes, number),
            _ => return Err(ImageError::impossible("a frame is of an unknown kind")),
        };
        if bytes[1] > 1 {
            return Err(ImageError::impossible("a frame has an unknown encoding"));
        }
        all_zero(&bytes[2..4], "a frame")?;
        let record = Record {
            kind,
            packed: bytes[1] == 1,
            object: u32_at(bytes, 4),
            at: u64_at(bytes, 8),
            count: u64_at(bytes, 16),
            stored,
            checksum: u64_at(bytes, 32),
        };
        record.check()?;
        Ok(record)
    }

    /// What can be checked of one frame alone.
    fn check(&self) -> Result<(), ImageError> {
        let object = self.object;
        let wrong =
            |what: &str| Err(ImageError::impossible(format!("a frame of object {object} {what}")));
        let unpacked = match self.kind {
            Kind::Bytes => Some(self.count),
            _ => self.count.checked_mul(PAGE_BYTES),
        };
        let end = unpacked.and_then(|length| self.at.checked_add(length));
        if end.is_none_or(|end| end > MOST_ADDRESS) {
            return wrong("reaches beyond the largest address");
        }
        if self.count == 0 {
            return wrong("is empty");
        }
        if self.kind != Kind::Bytes && !self.at.is_multiple_of(PAGE_BYTES) {
            return wrong("does not begin at a page");
        }
        if matches!(self.kind, Kind::Zero | Kind::Same { .. }) {
            return match self.packed || self.checksum != 0 {
                true => wrong("has a payload that it cannot have"),
                false => Ok(()),
            };
        }
        let unpacked = self.unpacked();
        if unpacked > MOST_PAYLOAD {
            return wrong("is too long");
        }
        if self.kind == Kind::Data && self.packed && self.count > MOST_PACKED_PAGES {
            return wrong("is too long");
        }
        let fits = if self.packed {
            (1..unpacked).contains(&self.stored)
        } else {
            self.stored == unpacked
        };
        if fits { Ok(()) } else { wrong("has a payload of the wrong length") }
    }
}

/// A table: the headers of the frames whose payloads follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// Counted from 0.
    pub(super) number: u64,
    /// At most [`MOST_RECORDS`].
    pub(super) records: Vec<Record>,
}

impl Table {
    /// Where each payload begins, from the first byte behind the table, and where all end, padded.
    pub(super) fn places(&self) -> (Vec<u64>, u64) {
        let mut at = 0;
        let places = self.records.iter().map(|record| {
            let begin = if record.is_aligned() { padded(at) } else { at };
            at = begin + record.stored;
            begin
        });
        (places.collect(), padded(at))
    }

    /// Its page, and the checksum in it.
    pub(super) fn encode(&self) -> (Page, u64) {
        let mut page = [0; PAGE];
        let mut to = Layout(&mut page);
        to.put(0, GROUP_MAGIC);
        to.put_u64s(8, &[self.number, self.records.len() as u64, self.places().1]);
        for (index, record) in self.records.iter().enumerate() {
            record.encode(&mut to, RECORDS + RECORD * index);
        }
        let sum = checksum(to.0);
        to.put_u64s(TABLE_CHECKSUM, &[sum]);
        (page, sum)
    }

    fn decode(page: &Page) -> Result<(Table, u64), ImageError> {
        let mut blank = *page;
        blank[TABLE_CHECKSUM..TABLE_CHECKSUM + 8].fill(0);
        let sum = u64_at(page, TABLE_CHECKSUM);
        if checksum(&blank) != sum {
            return Err(ImageError::damaged("a table of frames"));
        }
        let (number, count, length) = (u64_at(page, 8), u64_at(page, 16), u64_at(page, 24));
        if count == 0 || count > MOST_RECORDS as u64 {
            return Err(ImageError::impossible(format!("a table has {count} frames")));
        }
        let end = RECORDS + RECORD * count as usize;
        all_zero(&page[40..RECORDS], "a table of frames")?;
        all_zero(&page[end..], "a table of frames")?;
        let records = page[RECORDS..end].chunks_exact(RECORD).map(Record::decode);
        let table = Table { number, records: records.collect::<Result<_, _>>()? };
        if table.places().1 != length {
            return Err(ImageError::impossible(
                "a table disagrees with its frames on their length",
            ));
        }
        Ok((table, sum))
    }
}

/// The last page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) summary: Summary,
    /// Over the checksums of the header and all tables.
    pub(super) digest: u64,
}

impl Trailer {
    pub(super) fn encode(&self) -> Page {
        let mut page = [0; PAGE];
        let mut to = Layout(&mut page);
        let sum = &self.summary;
        to.put(0, END_MAGIC);
        to.put_u64s(8, &[sum.groups, sum.frames, sum.data_pages, sum.zero_pages, sum.same_pages]);
        to.put_u64s(48, &[sum.stream_bytes, sum.bytes, self.digest]);
        let own = checksum(&to.0[..OWN_CHECKSUM]);
        to.put_u64s(OWN_CHECKSUM, &[own]);
        to.put(PAGE - 8, LAST_MAGIC);
        page
    }

    fn decode(page: &Page) -> Result<Trailer, ImageError> {
        if checksum(&page[..OWN_CHECKSUM]) != u64_at(page, OWN_CHECKSUM)
            || !page.ends_with(LAST_MAGIC)
        {
            return Err(ImageError::damaged("its end"));
        }
        all_zero(&page[72..OWN_CHECKSUM], "its end")?;
        let summary = Summary {
            groups: u64_at(page, 8),
            frames: u64_at(page, 16),
            data_pages: u64_at(page, 24),
            zero_pages: u64_at(page, 32),
            same_pages: u64_at(page, 40),
            stream_bytes: u64_at(page, 48),
            bytes: u64_at(page, 56),
        };
        Ok(Trailer { summary, digest: u64_at(page, 64) })
    }
}

/// What follows where a group could begin.
pub(super) enum Next {
    /// A table, and the checksum in it.
    Table(Table, u64),
    /// The end.
    Trailer(Trailer),
}

impl Next {
    pub(super) fn decode(page: &Page) -> Result<Next, ImageError> {
        match page.first_chunk() {
            Some(GROUP_MAGIC) => Table::decode(page).map(|(table, sum)| Next::Table(table, sum)),
            Some(END_MAGIC) => Trailer::decode(page).map(Next::Trailer),
            _ => Err(ImageError::impossible("neither a table nor the end where one has to be")),
        }
    }
}

/// The digest with one more checksum.
pub(super) fn digest(so_far: u64, checksum_of_table: u64) -> u64 {
    let mut both = [0; 16];
    both[..8].copy_from_slice(&so_far.to_le_bytes());
    both[8..].copy_from_slice(&checksum_of_table.to_le_bytes());
    checksum(&both)
}
