//! What the writer refuses, and what it does when the output fails.

use std::io::{self, Write};

use super::super::*;
use super::round_trip::features;

fn refused(outcome: Result<(), ImageError>, words: &str) {
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
fn what_an_image_cannot_hold_is_refused_by_name() {
    let mut writer = Writer::begin(Vec::new(), &features(), b"", None).unwrap();
    refused(writer.pages(7, 1, &[0; PAGE]), "object 7 are not whole pages");
    refused(writer.pages(7, 0, &[0; 5]), "object 7 are not whole pages");
    writer.pages(7, 0x2000, &[0; PAGE]).unwrap();
    refused(writer.pages(7, 0x2000, &[0; PAGE]), "object 7 is given twice or out of order");
    refused(writer.zeros(7, 0, 1), "object 7 is given twice or out of order");
    refused(writer.zeros(8, 0x1000, u64::MAX), "object 8");
    refused(writer.zeros(8, 0x1000, (i64::MAX as u64) / 4096 + 1), "beyond the largest address");
    writer.bytes(7, 3, b"abc").unwrap();
    refused(writer.bytes(7, 5, b"c"), "object 7 is given twice or out of order");
    refused(writer.bytes(9, u64::MAX, b"c"), "beyond the largest address");
    // None of that has harmed what was accepted.
    let (image, summary) = writer.finish().unwrap();
    assert_eq!((summary.zero_pages, summary.stream_bytes), (1, 3));
    super::round_trip::read(&image).unwrap();
}

#[test]
fn an_image_with_a_hole_is_not_finished() {
    for compression in [None, Some(1)] {
        let mut writer = Writer::begin(Vec::new(), &features(), b"", compression).unwrap();
        let failure = || ImageError::Unwritable { what: "the process is gone".into() };
        refused(writer.pages_with(1, 0, 4, &|_, _| Err(failure())), "the process is gone");
        refused(writer.pages(1, 0x10000, &[1; PAGE]), "an earlier part of it");
        refused(writer.zeros(1, 0x20000, 1), "an earlier part of it");
        refused(writer.bytes(1, 0, b"x"), "an earlier part of it");
        refused(writer.finish().map(drop), "an earlier part of it");
    }
}

#[test]
fn a_thread_that_cannot_fetch_or_write_ends_all_of_them() {
    use std::sync::Arc;
    /// Takes the first 3 MiB.
    struct Short;
    impl Place for Short {
        fn write_at(&self, slices: &[io::IoSlice<'_>], at: u64) -> io::Result<usize> {
            match at < 3 << 20 {
                true => Ok(slices.iter().map(|it| it.len()).sum()),
                false => Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)),
            }
        }
    }
    let whole = |address: u64, to: &mut [u8]| {
        for (page, at) in to.chunks_mut(PAGE).zip(address..) {
            page[..8].copy_from_slice(&(at + 1).to_le_bytes());
        }
        Ok(())
    };
    let short = |address: u64, to: &mut [u8]| match address < 5 << 20 {
        true => whole(address, to),
        false => Err(ImageError::Unwritable { what: "the process is gone".into() }),
    };
    let dies = |address: u64, to: &mut [u8]| match address < 1 << 20 {
        true => whole(address, to),
        false => panic!("to see what becomes of the others"),
    };
    let attempt = |place, fetch: &Fetch<'_>| {
        let mut writer = Writer::begin_in(io::sink(), Some(place), &features(), b"", None).unwrap();
        let done = writer.many(&[Pages { object: 1, address: 0, count: 4096, fetch: Some(fetch) }]);
        assert!(writer.finish().is_err());
        done
    };
    let places = || Arc::new(super::round_trip::Places::default());
    refused(attempt(places(), &short), "the process is gone");
    refused(attempt(Arc::new(Short), &whole), "No space left");
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attempt(places(), &dies)));
    assert!(died.is_err() || died.is_ok_and(|done| done.is_err()));
}

/// Takes so many bytes and then none, a few at a time, with interruptions.
struct Small {
    room: usize,
    calls: usize,
    taken: Vec<u8>,
}

impl Write for Small {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = bytes.len().min(self.room).min(5000);
        if count == 0 && !bytes.is_empty() {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        }
        self.room -= count;
        self.taken.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an image of 12 MiB that nothing makes smaller.
fn write(room: usize, background: bool) -> Result<Vec<u8>, ImageError> {
    let out = Small { room, calls: 0, taken: Vec::new() };
    let begin = if background { Writer::begin_in_background } else { Writer::begin };
    let mut writer = begin(out, &features(), b"state", None)?;
    for part in 0..12u64 {
        let mut pages = vec![0; 1 << 20];
        for (page, at) in pages.chunks_mut(PAGE).zip(part << 8..) {
            page[..8].copy_from_slice(&at.to_le_bytes());
            page[8] = 1;
        }
        writer.pages(1, part << 20, &pages)?;
    }
    writer.finish().map(|(out, _)| out.taken)
}

#[test]
fn an_output_that_takes_little_at_a_time_gets_all() {
    let whole = write(usize::MAX, false).unwrap();
    super::round_trip::read(&whole).unwrap();
    super::round_trip::read(&write(usize::MAX, true).unwrap()).unwrap();
}

#[test]
fn a_full_output_is_an_error_wherever_it_happens() {
    for background in [false, true] {
        for room in [0, 100, 4096, 12288, 1 << 20, 9 << 20, 12 << 20] {
            let error = write(room, background).unwrap_err().to_string();
            assert!(error.contains("cannot write the image: No space left"), "{room}: {error}");
        }
    }
}

#[test]
fn a_full_device_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let error = Writer::begin(full, &features(), b"", None).err().unwrap().to_string();
    assert!(error.contains("No space left"), "{error}");
}

#[test]
fn a_state_above_the_limit_is_refused() {
    let error = super::super::format::Section { length: (1 << 30) + 1, checksum: 0 }
        .check("the state", super::super::format::MOST_STATE)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the image is refused: the state has 1073741825 bytes; 1073741824 is the most"
    );
}
