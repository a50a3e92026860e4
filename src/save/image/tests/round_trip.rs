//! What goes in comes out, by the reader and by the index.

use std::collections::BTreeMap;

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

pub(super) fn features() -> Features {
    Features::of_this_machine().unwrap()
}

/// Reads an image front to back. Zeros are bounded, so that a forged count cannot fill memory here.
pub(super) fn read(image: &[u8]) -> Result<Content, ImageError> {
    let opened = Opened::open(image)?;
    let (state, mut reader) = opened.state()?;
    let mut content = Content { state, ..Content::default() };
    while let Some(frame) = reader.next_frame()? {
        match frame {
            Frame::Data { object, address, pages } => content.put_pages(object, address, pages),
            Frame::Zero { object, address, count } => {
                for page in 0..count.min(1000) {
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
        for page in 0..run.pages.min(1000) {
            let mut bytes = vec![0; PAGE];
            let far = page * PAGE as u64;
            match run.source {
                Source::File(at) => {
                    assert_eq!(at % PAGE as u64, 0);
                    file.read_exact_at(&mut bytes, at + far).unwrap();
                }
                Source::Zero => {}
                Source::Packed { block, first } => {
                    let mut whole = Vec::new();
                    index.unpack(&file, block, &mut whole)?;
                    bytes.copy_from_slice(&whole[((first + page) as usize) * PAGE..][..PAGE]);
                }
            }
            content.put_pages(run.object, run.address + far, &bytes);
        }
    }
    for stream in index.streams() {
        content.put_bytes(stream.object, stream.offset, &index.stream(&file, stream)?);
    }
    Ok(content)
}

/// A file without a name.
fn tempfile() -> std::fs::File {
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
