//! Whatever happens to an image on its way is found out: by a clear error, never by a panic or by other
//! content.

use proptest::prelude::*;

use super::super::format::{
    Header, Kind, PAGE_BYTES, Page, Record, Section, Summary, Table, Trailer, digest,
};
use super::super::*;
use super::round_trip::{How, features, read, read_indexed, steps, write};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn damage_is_found(
        steps in steps(),
        compression in prop_oneof![Just(None), Just(Some(1))],
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..8),
        cut in any::<prop::sample::Index>(),
        tail in prop::collection::vec(any::<u8>(), 1..5000),
    ) {
        let (image, _) = write(&steps, compression, How::Direct);
        for (place, change) in &flips {
            let mut other = image.clone();
            other[place.index(image.len())] ^= change;
            prop_assert!(read(&other).is_err());
            prop_assert!(read_indexed(&other).is_err());
        }
        let cut = &image[..cut.index(image.len())];
        prop_assert!(read(cut).is_err() && read_indexed(cut).is_err());
        let longer = [&image[..], &tail].concat();
        for outcome in [read(&longer), read_indexed(&longer)] {
            prop_assert!(matches!(outcome, Err(ImageError::Trailing)));
        }
    }

    /// Without the checksums in the way: the table's numbers are anything at all.
    #[test]
    fn forged_numbers_do_no_harm(
        steps in steps(),
        table in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (image, _) = write(&steps, Some(1), How::Direct);
        let pages = image.len() / PAGE;
        let page = table.index(pages) * PAGE;
        let mut other = image.clone();
        for (place, value) in changes {
            other[page + place.index(PAGE)] = value;
        }
        mend(&mut other, page);
        // Either outcome is fine; neither panics nor takes memory beyond the input's own measure.
        let _ = (read(&other), read_indexed(&other));
    }
}

/// Gives a page (the header, a table, the trailer) the checksum that fits.
fn mend(image: &mut [u8], page: usize) {
    let page = &mut image[page..page + PAGE];
    if page.starts_with(b"SBXGROUP") {
        page[32..40].fill(0);
        let sum = super::super::hash::checksum(page);
        page[32..40].copy_from_slice(&sum.to_le_bytes());
    } else {
        let sum = super::super::hash::checksum(&page[..PAGE - 16]);
        page[PAGE - 16..PAGE - 8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// An image by hand: these tables, with zeros for payloads, and an end that fits.
fn forged(tables: &[Vec<Record>]) -> Vec<u8> {
    let bytes = features().encode().unwrap();
    let (features, state) = (Section::of(&bytes), Section::of(b""));
    let (page, mut sum) = Header { compressed: true, features, state }.encode();
    let mut image = page.to_vec();
    let mut put = |bytes: &[u8]| {
        image.extend(bytes);
        image.resize(image.len().next_multiple_of(PAGE), 0);
        image.len()
    };
    put(&bytes);
    let mut summary = Summary::default();
    for (number, records) in (0..).zip(tables) {
        for record in records {
            let total = match record.kind {
                Kind::Data => &mut summary.data_pages,
                Kind::Zero => &mut summary.zero_pages,
                Kind::Same { .. } => &mut summary.same_pages,
                Kind::Bytes => &mut summary.stream_bytes,
            };
            *total = total.wrapping_add(record.count);
        }
        let table = Table { number, records: records.clone() };
        let (page, own) = table.encode();
        put(&page);
        put(&vec![0; table.places().1.min(8 << 20) as usize]);
        sum = digest(sum, own);
        summary.groups += 1;
        summary.frames += records.len() as u64;
    }
    summary.bytes = put(&[]) as u64 + PAGE_BYTES;
    let end: Page = Trailer { summary, digest: sum }.encode();
    put(&end);
    image
}

fn zeros(at: u64, count: u64) -> Record {
    Record { kind: Kind::Zero, packed: false, object: 1, at, count, stored: 0, checksum: 0 }
}

fn data(at: u64, count: u64) -> Record {
    let stored = count * PAGE_BYTES;
    let checksum = super::super::hash::checksum(&vec![0; stored.min(8 << 20) as usize]);
    Record { kind: Kind::Data, packed: false, object: 1, at, count, stored, checksum }
}

fn same(at: u64, count: u64, from: u64) -> Record {
    Record { kind: Kind::Same { from }, ..zeros(at, count) }
}

#[test]
fn forged_frames_are_refused_by_name() {
    let most = i64::MAX as u64 / PAGE_BYTES;
    let cases: &[(&str, Vec<Record>)] = &[
        ("", vec![data(0, 2), same(0x2000, 1, 1)]),
        ("twice or out of order", vec![zeros(0x1000, 2), zeros(0x2000, 1)]),
        ("twice or out of order", vec![zeros(0x5000, 2), data(0x1000, 1)]),
        ("is empty", vec![zeros(0, 0)]),
        ("does not begin at a page", vec![zeros(1, 1)]),
        ("beyond the largest address", vec![zeros(0, u64::MAX)]),
        ("beyond the largest address", vec![zeros(u64::MAX - 4095, 1)]),
        ("", vec![zeros(0, most)]),
        ("no frame before it has", vec![same(0, 1, 0)]),
        ("no frame before it has", vec![same(0, 1, 0), data(0x1000, 1)]),
        ("no frame before it has", vec![data(0, 2), same(0x2000, 2, 1)]),
        ("no frame before it has", vec![data(0, 1), data(0x1000, 1), same(0x2000, 2, 0)]),
        ("no frame before it has", vec![data(0, 1), same(0x1000, 1, u64::MAX)]),
        ("is too long", vec![data(0, 1025)]),
        ("wrong length", vec![Record { stored: 1, ..data(0, 1) }]),
        ("wrong length", vec![Record { packed: true, ..data(0, 1) }]),
        ("wrong length", vec![Record { packed: true, stored: 0, ..data(0, 1) }]),
        ("is too long", vec![Record { packed: true, stored: 9, ..data(0, 257) }]),
        ("cannot have", vec![Record { checksum: 1, ..zeros(0, 1) }]),
        ("cannot have", vec![Record { packed: true, ..zeros(0, 1) }]),
    ];
    for (words, records) in cases {
        let image = forged(std::slice::from_ref(records));
        for outcome in [read(&image), read_indexed(&image)] {
            match outcome {
                Ok(_) => assert_eq!(*words, "", "{records:?}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!words.is_empty() && error.contains(words), "{words}: {error}");
                }
            }
        }
    }
}

#[test]
fn more_zeros_than_can_be_counted_are_refused() {
    let most = i64::MAX as u64 / PAGE_BYTES;
    let all: Vec<Record> = (0..8200).map(|object| Record { object, ..zeros(0, most) }).collect();
    let tables: Vec<_> = all.chunks(100).map(<[Record]>::to_vec).collect();
    let image = forged(&tables);
    for outcome in [Opened::open(&image[..]).and_then(count), read_index(&image)] {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("more pages than can be counted"), "{error}");
    }
}

fn count(opened: Opened<&[u8]>) -> Result<(), ImageError> {
    let (_, mut reader) = opened.state()?;
    while reader.next_frame()?.is_some() {}
    Ok(())
}

fn read_index(image: &[u8]) -> Result<(), ImageError> {
    use std::io::Write;
    let mut file = super::round_trip::tempfile();
    file.write_all(image).unwrap();
    Index::open(&file).map(drop)
}

#[test]
fn what_is_no_image_says_so() {
    let (image, _) = write(&[], None, How::Direct);
    let words = |image: &[u8]| read(image).unwrap_err().to_string();
    let end = "the image is cut short: it ends within its frames; its end is missing";
    assert_eq!(words(&image[..image.len() - 1]), end);
    assert_eq!(words(&image[..image.len() - PAGE]), end);
    assert_eq!(words(b""), "the image is cut short: it ends within the header");
    assert_eq!(words(&[7; 9000]), "this is not an image of a sandbox");
    let mut newer = image.clone();
    newer[8] = 9;
    assert_eq!(words(&newer), "the image is of format version 9; this program reads up to 1");
    let mut damaged = image.clone();
    damaged[50] ^= 1;
    let sum = "the image is damaged: the checksum of the header does not fit";
    assert_eq!(words(&damaged), sum);
    // A header that promises a state of a GiB costs nothing.
    let mut long = image;
    long[40..48].copy_from_slice(&(1u64 << 30).to_le_bytes());
    mend(&mut long, 0);
    assert_eq!(words(&long), "the image is cut short: it ends within the state");
    long[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    mend(&mut long, 0);
    assert!(words(&long).starts_with("the image is refused: the state has 18446744073709551615"));
}

#[test]
fn features_that_nest_without_end_are_refused() {
    for bytes in [vec![0x81; 60000], vec![0x9f; 60000], vec![0xd8; 60000], vec![0xbb; 9]] {
        let error = Features::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "the image is malformed: its list of features cannot be read");
    }
}

#[test]
fn a_packed_payload_unpacks_to_its_length_or_not_at_all() {
    // A zstd frame of 64 MiB of zeros, given out as one page.
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    assert!(bomb.len() < PAGE);
    let record = Record { packed: true, stored: bomb.len() as u64, ..data(0, 1) };
    let mut unpacked = Vec::new();
    let mut unpacker = super::super::reader::unpacker().unwrap();
    let outcome = super::super::reader::unpack(&mut unpacker, &record, &bomb, &mut unpacked);
    assert!(outcome.unwrap_err().to_string().contains("cannot be unpacked"));
    assert!(unpacked.capacity() <= 2 * PAGE);
}
