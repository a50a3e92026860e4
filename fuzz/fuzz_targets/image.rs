//! Reads any bytes as an image, from front to back and by the index.

#![no_main]

use std::fs::File;
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use sandbox::save::image::{Frame, ImageError, Index, Opened, Source};

fuzz_target!(|image: &[u8]| {
    let by_reader = read(image);
    let by_index = index(image);
    // The content of both is checked, so they agree on which image is whole; the reader unpacks all
    // of it, as this index does.
    assert_eq!(by_reader.is_ok(), by_index.is_ok(), "{by_reader:?} {by_index:?}");
});

/// Everything from front to back.
fn read(image: &[u8]) -> Result<(), ImageError> {
    let opened = Opened::open(image)?;
    let (_, mut reader) = opened.state()?;
    while let Some(next) = reader.next_object()? {
        let frame = reader.next_frame()?.expect("a frame of the object that was told");
        let (Frame::Data { object, .. }
        | Frame::Zero { object, .. }
        | Frame::Same { object, .. }
        | Frame::Bytes { object, .. }) = &frame;
        assert_eq!(*object, next);
        match frame {
            Frame::Data { address, pages, .. } => {
                assert!(address % 4096 == 0 && !pages.is_empty() && pages.len() % 4096 == 0);
            }
            Frame::Zero { address, count, .. } | Frame::Same { address, count, .. } => {
                assert!(address % 4096 == 0 && count > 0);
            }
            Frame::Bytes { bytes, .. } => assert!(!bytes.is_empty()),
        }
    }
    reader.expect_end()
}

/// Everything by the index.
fn index(image: &[u8]) -> Result<(), ImageError> {
    let mut file: File = memfd_create(c"image", MFdFlags::MFD_CLOEXEC).expect("a memfd").into();
    file.write_all(image).expect("room for the image");
    let index = Index::open(&file)?;
    index.state(&file)?;
    index.verify(&file)?;
    let mut room = Vec::new();
    for run in index.runs() {
        match run.source {
            Source::File(at) => {
                assert!(at % 4096 == 0 && at + run.pages * 4096 <= image.len() as u64);
            }
            Source::Zero => {}
            Source::Packed { block, first } => {
                index.unpack(&file, block, &mut room)?;
                assert!(((first + run.pages) * 4096) as usize <= room.len());
            }
        }
    }
    for stream in index.streams() {
        assert_eq!(index.stream(&file, stream)?.len() as u64, stream.length);
    }
    Ok(())
}
