//! Content from the memory section into its places.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::FileExt;

use super::heritage::There;
use super::maker::Sink;
use crate::save::error::RestoreError;
use crate::save::hand;
use crate::save::image::{Frame, ImageError, Reader};

const PAGE: u64 = 4096;

impl From<ImageError> for RestoreError {
    fn from(error: ImageError) -> Self {
        RestoreError::Refused(error.to_string())
    }
}

/// Reads all frames of an image, from a pipe or a file, and puts what is not there where it belongs.
pub fn stream<R: Read>(
    mut reader: Reader<R>,
    sinks: &HashMap<u32, Sink>,
    there: &There,
) -> Result<(), RestoreError> {
    let left = |object, address, count: u64| {
        there.left(object, address, address.saturating_add(count.saturating_mul(PAGE)))
    };
    while let Some(frame) = reader.next_frame()? {
        match frame {
            Frame::Data { object, address, pages } => {
                for (start, end) in left(object, address, pages.len() as u64 / PAGE) {
                    let part = (start - address) as usize..(end - address) as usize;
                    put(sinks, object, start, &pages[part])?;
                }
            }
            Frame::Bytes { object, offset, bytes } => put(sinks, object, offset, bytes)?,
            Frame::Zero { object, address, count } => zero(sinks, object, address, count)?,
            Frame::Same { object, address, count, from_object, from_address } => {
                for (start, end) in left(object, address, count) {
                    let from = (from_object, from_address + (start - address));
                    copy(sinks, (object, start), from, (end - start) / PAGE)?;
                }
            }
        }
    }
    Ok(reader.expect_end()?)
}

fn sink(sinks: &HashMap<u32, Sink>, object: u32) -> Result<&Sink, RestoreError> {
    let nobodys =
        || RestoreError::refused(format!("the image is damaged: content {object} is nobody's"));
    sinks.get(&object).ok_or_else(nobodys)
}

/// Puts bytes where they belong.
pub(super) fn put(
    sinks: &HashMap<u32, Sink>,
    object: u32,
    at: u64,
    bytes: &[u8],
) -> Result<(), RestoreError> {
    match sink(sinks, object)? {
        Sink::File(file) => file
            .write_all_at(bytes, at)
            .map_err(|error| RestoreError::failed("content of a file cannot be written", error)),
        Sink::Below { directory, path } => Sink::open_below(directory, path)
            .map_err(|errno| errno.into())
            .and_then(|file| file.write_all_at(bytes, at))
            .map_err(|error| RestoreError::failed("content of a file cannot be written", error)),
        Sink::Done => Err(late()),
        Sink::Mapping { pid, address } => {
            hand::write(*pid, address.wrapping_add(at), bytes).map_err(memory(at))
        }
        Sink::Space { pid, .. } => match hand::write(*pid, at, bytes) {
            Ok(()) => Ok(()),
            // The kernel's own pages, which nobody may write to.
            Err(nix::errno::Errno::EFAULT) => hand::force(*pid, at, bytes).map_err(memory(at)),
            Err(errno) => Err(memory(at)(errno)),
        },
    }
}

fn late() -> RestoreError {
    RestoreError::refused("the image is damaged: content of a layer comes after other content")
}

fn memory(at: u64) -> impl Fn(nix::errno::Errno) -> RestoreError {
    move |errno| RestoreError::failed(format!("memory at {at:x} cannot be written"), errno.desc())
}

/// Pages that are there and zero: new memory is. Where a file lies below they have to be written.
pub(super) fn zero(
    sinks: &HashMap<u32, Sink>,
    object: u32,
    address: u64,
    count: u64,
) -> Result<(), RestoreError> {
    match sink(sinks, object)? {
        Sink::File(_) | Sink::Below { .. } | Sink::Mapping { .. } => Ok(()),
        Sink::Done => Err(late()),
        Sink::Space { files, .. } => {
            let page = vec![0; PAGE as usize];
            let all = address..address.saturating_add(count.saturating_mul(PAGE));
            for (start, end) in files {
                let below = (*start).max(all.start)..(*end).min(all.end);
                for at in below.step_by(PAGE as usize) {
                    put(sinks, object, at, &page)?;
                }
            }
            Ok(())
        }
    }
}

fn copy(
    sinks: &HashMap<u32, Sink>,
    to: (u32, u64),
    from: (u32, u64),
    count: u64,
) -> Result<(), RestoreError> {
    let mut page = vec![0; PAGE as usize];
    for index in 0..count {
        let at = from.1 + index * PAGE;
        match sink(sinks, from.0)? {
            Sink::File(file) => file
                .read_exact_at(&mut page, at)
                .map_err(|error| RestoreError::failed("content cannot be read", error))?,
            Sink::Space { pid, .. } => match hand::read(*pid, at, &mut page) {
                // It may not be read by the process itself.
                Err(nix::errno::Errno::EFAULT) => hand::memory(*pid, false)
                    .and_then(|file| {
                        let read = file.read_exact_at(&mut page, at);
                        read.map_err(|_| nix::errno::Errno::EIO)
                    })
                    .map_err(memory(at))?,
                done => done.map_err(memory(at))?,
            },
            Sink::Mapping { pid, address } => {
                hand::read(*pid, address.wrapping_add(at), &mut page).map_err(memory(at))?;
            }
            Sink::Below { .. } | Sink::Done => {
                return Err(RestoreError::refused("the image is damaged: a file has pages"));
            }
        }
        put(sinks, to.0, to.1 + index * PAGE, &page)?;
    }
    Ok(())
}
