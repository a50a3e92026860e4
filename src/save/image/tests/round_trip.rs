//! What goes in comes out, by the reader and by the index.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Write};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::*;

/// The content of an image: bytes of each object by page, bytes of each stream by offset.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) state: Vec<u8>,
    pub(super) pages: BTreeMap<(u32, u64), Vec<u8>>,
    pub(super) streams: BTreeMap<(u32, u64), u8>,
}

impl Content {
    fn put_pages(&mut self, object: u32, address: u64, bytes: &[u8]) {
        for (page, at) in bytes.chunks(PAGE).zip((address..).step_by(PAGE)) {
            assert_eq!(self.pages.insert((object, at), page.to_vec()), None);
        }
    }

    fn put_bytes(&mut self, object: u32, offset: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(offset..) {
            assert_eq!(self.streams.insert((object, at), *byte), None);
        }
    }
}

/// The most zeros of a frame that are looked at, since a forged frame may say any number.
const ZEROS: u64 = 2000;

pub(super) fn features() -> Features {
    Features::of_this_machine().unwrap()
}

/// Reads an image front to back.
pub(super) fn read(image: &[u8]) -> Result<Content, ImageError> {
    let opened = Opened::open(image)?;
    let (state, mut reader) = opened.state()?;
    let mut content = Content { state, ..Content::default() };
    while let Some(next) = reader.next_object()? {
        let Some(frame) = reader.next_frame()? else { panic!("there was to be one of {next}") };
        let (Frame::Data { object, .. }
        | Frame::Zero { object, .. }
        | Frame::Same { object, .. }
        | Frame::Bytes { object, .. }) = &frame;
        assert_eq!(*object, next);
        match frame {
            Frame::Data { object, address, pages } => content.put_pages(object, address, pages),
            Frame::Zero { object, address, count } => {
                for page in 0..count.min(ZEROS) {
                    content.put_pages(object, address + page * PAGE as u64, &[0; PAGE]);
                }
            }
            Frame::Same { object, address, count, from_object, from_address } => {
                for page in 0..count {
                    let far = page * PAGE as u64;
                    let earlier = content.pages[&(from_object, from_address + far)].clone();
                    content.put_pages(object, address + far, &earlier);
                }
            }
            Frame::Bytes { object, offset, bytes } => content.put_bytes(object, offset, bytes),
        }
    }
    assert!(reader.summary().is_some());
    reader.expect_end()?;
    Ok(content)
}

/// Reads an image by its index.
pub(super) fn read_indexed(image: &[u8]) -> Result<Content, ImageError> {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    let mut file = tempfile();
    file.write_all(image).unwrap();
    let index = Index::open(&file)?;
    index.verify(&file)?;
    let mut content = Content { state: index.state(&file)?, ..Content::default() };
    for run in index.runs() {
        let pages = if run.source == Source::Zero { run.pages.min(ZEROS) } else { run.pages };
        let mut bytes = vec![0; pages as usize * PAGE];
        match run.source {
            Source::File(at) => {
                assert_eq!(at % PAGE as u64, 0);
                file.read_exact_at(&mut bytes, at).unwrap();
            }
            Source::Zero => {}
            Source::Packed { block, first } => {
                let mut whole = Vec::new();
                index.unpack(&file, block, &mut whole)?;
                let begin = first as usize * PAGE;
                bytes = whole[begin..begin + bytes.len()].to_vec();
            }
        }
        content.put_pages(run.object, run.address, &bytes);
    }
    for stream in index.streams() {
        content.put_bytes(stream.object, stream.offset, &index.stream(&file, stream)?);
    }
    Ok(content)
}

/// A file without a name.
pub(super) fn tempfile() -> std::fs::File {
    nix::sys::memfd::memfd_create(c"image", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap().into()
}

#[test]
fn a_few_pages_come_back() {
    let mut pages = vec![0; 6 * PAGE];
    pages[..PAGE].fill(1);
    pages[2 * PAGE..3 * PAGE].fill(1);
    pages[3 * PAGE] = 7;
    pages[5 * PAGE..].fill(1);
    for compression in [None, Some(1)] {
        let mut writer = Writer::begin(Vec::new(), &features(), b"the state", compression).unwrap();
        writer.pages(1, 0x10000, &pages).unwrap();
        writer.zeros(1, 0x20000, 3).unwrap();
        writer.bytes(9, 5, b"hello").unwrap();
        writer.pages(2, 0, &pages).unwrap();
        let (image, summary) = writer.finish().unwrap();
        assert_eq!(summary.bytes, image.len() as u64);
        assert_eq!((summary.data_pages, summary.same_pages), (2, 6));
        assert_eq!((summary.zero_pages, summary.stream_bytes), (7, 5));
        let mut content = Content { state: b"the state".to_vec(), ..Content::default() };
        content.put_pages(1, 0x10000, &pages);
        content.put_pages(1, 0x20000, &[0; 3 * PAGE]);
        content.put_pages(2, 0, &pages);
        content.put_bytes(9, 5, b"hello");
        assert_eq!(read(&image).unwrap(), content);
        assert_eq!(read_indexed(&image).unwrap(), content);
    }
}

/// Something to be written.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Pages, each of one byte or of a row of numbers, behind a gap of so many pages.
    Pages {
        object: u32,
        gap: u64,
        pages: Vec<u8>,
        fetched: bool,
    },
    Zeros {
        object: u32,
        gap: u64,
        count: u64,
    },
    Bytes {
        object: u32,
        gap: u64,
        bytes: Vec<u8>,
    },
}

/// A page that compresses, one that does not, or zeros.
fn page(seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 24) as u8
    };
    match seed {
        0..6 => vec![seed / 3; PAGE],
        6..8 => (0..PAGE).map(|at| at as u8 & seed).collect(),
        _ => (0..PAGE).map(|_| next()).collect(),
    }
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let object = 0..3u32;
    let gap = prop_oneof![3 => Just(0u64), 1 => 0..5u64, 1 => 0..1u64 << 30];
    let pages = (object.clone(), gap.clone(), prop::collection::vec(0..12u8, 0..24), any::<bool>())
        .prop_map(|(object, gap, seeds, fetched)| {
            let pages = seeds.into_iter().flat_map(page).collect();
            Step::Pages { object, gap, pages, fetched }
        });
    let zeros = (object.clone(), gap.clone(), 0..5u64)
        .prop_map(|(object, gap, count)| Step::Zeros { object, gap, count });
    let bytes = (object, gap, prop::collection::vec(any::<u8>(), 0..9000))
        .prop_map(|(object, gap, bytes)| Step::Bytes { object, gap, bytes });
    prop::collection::vec(prop_oneof![4 => pages, 1 => zeros, 1 => bytes], 0..8)
}

/// A file in memory that takes a little at a time, at any place.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Vec<u8>>>);

impl Write for Places {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Place for Places {
    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let slice = slices.iter().find(|slice| !slice.is_empty()).unwrap();
        let some = &slice[..slice.len().min(70_000)];
        let mut all = self.0.lock().unwrap();
        let end = at as usize + some.len();
        let longer = all.len().max(end);
        all.resize(longer, 0xee);
        all[at as usize..end].copy_from_slice(some);
        Ok(some.len())
    }
}

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Direct,
    Background,
    Places,
}

/// Writes the steps and says what should come back.
pub(super) fn write(steps: &[Step], compression: Option<Level>, how: How) -> (Vec<u8>, Content) {
    let state = b"some state".to_vec();
    let out = Places::default();
    let place = (how == How::Places).then(|| Arc::new(out.clone()) as Arc<dyn Place>);
    let mut writer = match how {
        How::Direct => Writer::begin(out, &features(), &state, compression),
        _ => Writer::begin_in(out, place, &features(), &state, compression),
    }
    .unwrap();
    let mut content = Content { state, ..Content::default() };
    let mut ends = BTreeMap::new();
    for step in steps {
        match step {
            Step::Pages { object, gap, pages, fetched } => {
                let end = ends.entry((*object, false)).or_insert(0);
                let at = *end + gap * PAGE as u64;
                *end = at + pages.len() as u64;
                if *fetched {
                    let count = (pages.len() / PAGE) as u64;
                    let fetch = |address, to: &mut [u8]| {
                        to.copy_from_slice(&pages[(address - at) as usize..][..to.len()]);
                        Ok(())
                    };
                    // The first three, and the rest.
                    let pages = |from: u64, to: u64| Pages {
                        object: *object,
                        address: at + from * PAGE as u64,
                        count: to - from,
                        fetch: Some(&fetch),
                    };
                    let some = [pages(0, count.min(3)), pages(count.min(3), count)];
                    match how {
                        How::Direct => writer.pages_with(*object, at, count, &fetch).unwrap(),
                        _ => writer.many(&some).unwrap(),
                    }
                } else {
                    writer.pages(*object, at, pages).unwrap();
                }
                content.put_pages(*object, at, pages);
            }
            Step::Zeros { object, gap, count } => {
                let end = ends.entry((*object, false)).or_insert(0);
                let at = *end + gap * PAGE as u64;
                *end = at + count * PAGE as u64;
                let (object, address, count) = (*object, at, *count);
                match how {
                    How::Direct => writer.zeros(object, address, count).unwrap(),
                    _ => writer.many(&[Pages { object, address, count, fetch: None }]).unwrap(),
                }
                content.put_pages(object, at, &vec![0; count as usize * PAGE]);
            }
            Step::Bytes { object, gap, bytes } => {
                let end = ends.entry((*object, true)).or_insert(0);
                let at = *end + gap;
                *end = at + bytes.len() as u64;
                writer.bytes(*object, at, bytes).unwrap();
                content.put_bytes(*object, at, bytes);
            }
        }
    }
    let (out, summary) = writer.finish().unwrap();
    let image = std::mem::take(&mut *out.0.lock().unwrap());
    assert_eq!(summary.bytes, image.len() as u64);
    let pages = summary.data_pages + summary.zero_pages + summary.same_pages;
    assert_eq!(pages, content.pages.len() as u64);
    assert_eq!(summary.stream_bytes, content.streams.len() as u64);
    (image, content)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_goes_in_comes_out(
        steps in steps(),
        compression in prop_oneof![Just(None), Just(Some(1)), Just(Some(-5))],
        how in prop_oneof![Just(How::Direct), Just(How::Background), Just(How::Places)],
    ) {
        let (image, content) = write(&steps, compression, how);
        prop_assert_eq!(image.len() % PAGE, 0);
        prop_assert!(read(&image).unwrap() == content);
        prop_assert!(read_indexed(&image).unwrap() == content);
    }
}

#[test]
fn many_small_runs_take_many_tables_and_large_ones_many_batches() {
    // 10 MiB: zeros, repetitions and different pages by turns, then a long stretch of the latter.
    let mut pages = vec![0u8; 10 << 20];
    for (at, page) in pages.chunks_mut(PAGE).enumerate() {
        match at % 4 {
            _ if at > 600 => page[..8].copy_from_slice(&(at as u64).to_le_bytes()),
            0 => {}
            1 => page.fill(1),
            _ => page[..8].copy_from_slice(&(at as u64).to_le_bytes()),
        }
    }
    for (compression, how, fetched) in [
        (None, How::Direct, false),
        (None, How::Background, true),
        (None, How::Direct, true),
        (Some(1), How::Background, false),
        (None, How::Places, true),
        (None, How::Places, false),
        (Some(1), How::Places, true),
    ] {
        let step = Step::Pages { object: 1, gap: 3, pages: pages.clone(), fetched };
        let (image, content) = write(&[step], compression, how);
        assert!(read(&image).unwrap() == content);
        assert!(read_indexed(&image).unwrap() == content);
    }
}

#[test]
fn zeros_cost_nothing() {
    let mut writer = Writer::begin(Vec::new(), &features(), b"", None).unwrap();
    for part in 0..64 {
        writer.pages(1, part << 20, &vec![0; 1 << 20]).unwrap();
        let fetch = |_, to: &mut [u8]| {
            to.fill(0);
            Ok(())
        };
        writer.pages_with(2, part << 20, 256, &fetch).unwrap();
    }
    let (image, summary) = writer.finish().unwrap();
    assert_eq!((summary.zero_pages, summary.frames), (2 * 64 * 256, 128));
    assert!(image.len() <= 6 * PAGE, "{}", image.len());
}

#[test]
fn frames_without_payloads_do_not_gather_in_memory() {
    let mut writer = Writer::begin(Vec::new(), &features(), b"", None).unwrap();
    // Every other page: each is a frame.
    for at in 0..300_000u64 {
        writer.zeros(1, at * 2 * PAGE as u64, 1).unwrap();
    }
    let (image, summary) = writer.finish().unwrap();
    assert_eq!(summary.frames, 300_000);
    assert!(summary.groups < 3000, "{}", summary.groups);
    let mut file = tempfile();
    std::io::Write::write_all(&mut file, &image).unwrap();
    assert_eq!(Index::open(&file).unwrap().runs().len(), 300_000);
}

#[test]
fn a_pipe_carries_an_image_and_what_follows_it() {
    let (mut from, to) = std::io::pipe().unwrap();
    let writing = std::thread::spawn(move || {
        use std::io::Write;
        let mut writer = Writer::begin_in_background(to, &features(), b"state", Some(1)).unwrap();
        writer.pages(1, 0, &page(9).repeat(300)).unwrap();
        writer.bytes(1, 0, b"stream").unwrap();
        let (mut to, _) = writer.finish().unwrap();
        to.write_all(b"another message").unwrap();
    });
    let (state, mut reader) = Opened::open(&mut from).unwrap().state().unwrap();
    assert_eq!(state, b"state");
    let mut pages = 0;
    while let Some(frame) = reader.next_frame().unwrap() {
        match frame {
            Frame::Data { pages: some, .. } => pages += some.len() / PAGE,
            Frame::Same { count, .. } => pages += count as usize,
            Frame::Bytes { bytes, .. } => assert_eq!(bytes, b"stream"),
            Frame::Zero { .. } => unreachable!("there are no zeros"),
        }
    }
    assert_eq!(pages, 300);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut reader.into_inner(), &mut rest).unwrap();
    assert_eq!(rest, "another message");
    writing.join().unwrap();
}

#[test]
fn a_reader_that_goes_away_is_an_error() {
    for background in [false, true] {
        let (from, to) = std::io::pipe().unwrap();
        let begin = if background { Writer::begin_in_background } else { Writer::begin };
        let mut writer = begin(to, &features(), b"state", None).unwrap();
        drop(from);
        let written = writer.pages(1, 0, &page(9)).and_then(|()| writer.finish());
        assert!(written.unwrap_err().to_string().contains("Broken pipe"));
    }
}
