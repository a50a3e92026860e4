//! Reading the content that an image carries, and writing it there.
//!
//! Where each piece of it is to be read is [`Content`]'s to say; when, the pipeline's.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;

use crate::overlay::CONTENT_SUM;
use crate::save::capture::collector::Content;
use crate::save::capture::zeros;
use crate::save::content_sum::ContentSum;
use crate::save::error::SaveError;
use crate::save::hand;
use crate::save::image::{Fetch, ImageError, Pages, Writer};
use crate::save::state::Object;
use crate::sys::errno_of;
use crate::sys::files::next_data;
use crate::sys::memfd::anonymous_file;
use crate::sys::process;

const PAGE: u64 = 4096;

impl Content {
    /// How much it is.
    pub fn bytes(&self) -> u64 {
        match self {
            Content::Pages { ranges, .. } | Content::Read { ranges, .. } => {
                ranges.iter().map(|(start, end)| end - start).sum()
            }
            Content::Copied { mappings, .. } => {
                mappings.iter().map(|(start, end)| end - start).sum()
            }
            Content::Mapping { start, end, .. } => end - start,
            Content::File { size, .. }
            | Content::Below { size, .. }
            | Content::Kept { size, .. } => *size,
        }
    }

    /// How its pages are read; none: it is a stream.
    fn fetch(&self) -> Option<Box<Fetch<'_>>> {
        match self {
            Content::Pages { pid, copy, .. } => {
                let memory = Memory::of(*pid, copy.as_deref());
                Some(Box::new(move |address, to| memory.read(address, to).map_err(unreadable)))
            }
            Content::Read { ranges, bytes, .. } => {
                let starts = ranges.iter().scan(0, |at, (start, end)| {
                    let place = *at;
                    *at += end - start;
                    Some((*start, place))
                });
                let starts: Vec<(u64, u64)> = starts.collect();
                Some(Box::new(move |address, to| {
                    let index = starts.partition_point(|(start, _)| *start <= address);
                    let piece = index.checked_sub(1).and_then(|index| {
                        let (start, place) = starts[index];
                        let from = (place + (address - start)) as usize;
                        bytes.get(from..from.checked_add(to.len())?)
                    });
                    let piece = piece.ok_or_else(|| unreadable(Errno::EFAULT))?;
                    to.copy_from_slice(piece);
                    Ok(())
                }))
            }
            Content::Mapping { pid, start, offset, .. } => {
                let memory = Memory::of(*pid, None);
                Some(Box::new(move |at, to| {
                    memory.read(start + (at - offset), to).map_err(unreadable)
                }))
            }
            Content::Kept { spool, at, offset, pages: true, .. } => {
                Some(Box::new(move |address, to| {
                    spool.read_exact_at(to, at + (address - offset)).map_err(|error| {
                        let what = format!("what was kept of a guest cannot be read: {error}");
                        ImageError::Unwritable { what }
                    })
                }))
            }
            _ => None,
        }
    }

    /// Whether it is read in pages.
    fn has_pages(&self) -> bool {
        matches!(
            self,
            Content::Pages { .. }
                | Content::Read { .. }
                | Content::Mapping { .. }
                | Content::Kept { pages: true, .. }
        )
    }

    /// Which pages those are that are read so, and those that need not be.
    fn runs<'f>(&self, fetch: &'f Fetch<'f>) -> Vec<Pages<'f>> {
        let pages = |object: Object, start: u64, end: u64, fetch| Pages {
            object,
            address: start,
            count: (end - start) / PAGE,
            fetch,
        };
        let of = |object, start, end| pages(object, start, end, Some(fetch));
        match *self {
            Content::Pages { object, ref ranges, ref zeros, .. } => {
                let mut runs = Vec::with_capacity(ranges.len() + 2 * zeros.len());
                for (start, end) in ranges {
                    let mut at = *start;
                    for (zero, behind) in zeros::cut(zeros, *start, *end) {
                        if at < zero {
                            runs.push(of(object, at, zero));
                        }
                        runs.push(pages(object, zero, behind, None));
                        at = behind;
                    }
                    if at < *end {
                        runs.push(of(object, at, *end));
                    }
                }
                runs
            }
            Content::Read { object, ref ranges, .. } => {
                ranges.iter().map(|(start, end)| of(object, *start, *end)).collect()
            }
            Content::Mapping { object, start, end, offset, .. } => {
                vec![of(object, offset, offset + (end - start))]
            }
            Content::Kept { object, offset, size, .. } => vec![of(object, offset, offset + size)],
            _ => Vec::new(),
        }
    }

    /// Writes it to the memory section, if it is a stream.
    fn write_stream<W: Write>(&self, to: &mut Streams<'_, W>) -> Result<(), SaveError> {
        match self {
            // Their pages have to be found before.
            Content::Copied { .. } => Ok(()),
            Content::Pages { .. } | Content::Read { .. } | Content::Mapping { .. } => Ok(()),
            Content::Kept { object, spool, at, size, .. } => to.stream(*object, spool, *at, *size),
            Content::File { object, file, size } => to.stream(*object, file, 0, *size),
            Content::Below { object, directory, path, size } => {
                let file = opened(directory, path)?;
                to.stream(*object, &file, 0, *size)
            }
        }
    }
}

/// So many things that are read are open at once.
const OPEN: usize = 64;

/// Writes all of it to the memory section. `layers`: the objects of files in layers; gives the sum of their content.
pub fn write<W: Write>(
    contents: &[Content],
    layers: &HashSet<Object>,
    writer: &mut Writer<W>,
) -> Result<[u8; CONTENT_SUM], SaveError> {
    let mut to = Streams { writer, layers, sum: ContentSum::default() };
    for alike in contents.chunk_by(|one, two| one.has_pages() && two.has_pages()) {
        if !alike[0].has_pages() {
            alike.iter().try_for_each(|it| it.write_stream(&mut to))?;
            continue;
        }
        for some in alike.chunks(OPEN) {
            let read: Vec<_> = some.iter().filter_map(|it| Some((it, it.fetch()?))).collect();
            let pages: Vec<_> = read.iter().flat_map(|(it, fetch)| it.runs(&**fetch)).collect();
            to.writer.many(&pages)?;
        }
    }
    Ok(to.sum.finish())
}

/// Where streams go.
struct Streams<'w, W> {
    writer: &'w mut Writer<W>,
    layers: &'w HashSet<Object>,
    sum: ContentSum,
}

fn unreadable(errno: Errno) -> ImageError {
    let what = format!("the memory of a guest cannot be read: {}", errno.desc());
    ImageError::Unwritable { what }
}

/// Memory of a guest, also where it has no right to read it itself.
///
/// By /proc/PID/mem and not by process_vm_readv(2), which pins what it reads: a page that several processes
/// share until one of them writes to it would be copied for that (gup_must_unshare in mm/internal.h), which
/// takes longer than to read it, and room for all of it.
struct Memory<'c> {
    pid: i32,
    file: Result<File, Errno>,
    copy: Option<&'c OwnedFd>,
}

impl Memory<'_> {
    /// `copy`: what tells of the end of the process, if that can come.
    fn of(pid: i32, copy: Option<&OwnedFd>) -> Memory<'_> {
        Memory { pid, file: hand::memory(pid, false), copy }
    }

    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Errno> {
        let done = match &self.file {
            Ok(file) => file.read_exact_at(to, address).map_err(|error| errno_of(&error)),
            Err(_) => hand::read(self.pid, address, to),
        };
        // It may have been another's, with its number.
        if self.copy.is_some_and(|copy| process::has_ended(copy.as_fd())) {
            return Err(Errno::ESRCH);
        }
        done
    }
}

impl<W: Write> Streams<'_, W> {
    /// The content of a file, which is where it was at `from` of `file`. Holes stay holes: they are not in the
    /// image.
    fn stream(
        &mut self,
        object: Object,
        file: &File,
        from: u64,
        size: u64,
    ) -> Result<(), SaveError> {
        let is_in_layer = self.layers.contains(&object);
        // (No larger than a frame, so that a reader finds the same parts.)
        let mut buffer = vec![0; (1 << 20).min(size) as usize];
        let mut at = 0;
        loop {
            at = next_data(file.as_fd(), from + at, from + size) - from;
            let most = (size - at).min(buffer.len() as u64) as usize;
            match read_some(file, from + at, &mut buffer[..most])? {
                0 => return Ok(()),
                count => {
                    for (start, end) in written(&buffer[..count]) {
                        let (place, bytes) = (at + start as u64, &buffer[start..end]);
                        self.writer.bytes(object, place, bytes)?;
                        if is_in_layer {
                            self.sum.add(object, place, bytes);
                        }
                    }
                    at += count as u64;
                }
            }
        }
    }
}

/// Where blocks are that hold more than zeros: (start, end). What is between them may be a hole.
fn written(bytes: &[u8]) -> Vec<(usize, usize)> {
    const BLOCK: usize = 4096;
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK).enumerate().filter(|(_, block)| !is_zero(block)) {
        let start = index * BLOCK;
        match found.last_mut() {
            Some(last) if last.1 == start => last.1 += block.len(),
            _ => found.push((start, start + block.len())),
        }
    }
    found
}

/// Calls `each` with places and room until so many bytes are done, or it gives 0.
fn pieces(
    size: u64,
    mut each: impl FnMut(u64, &mut [u8]) -> Result<usize, SaveError>,
) -> Result<(), SaveError> {
    let mut buffer = vec![0; (1 << 20).min(size) as usize];
    let mut at = 0;
    while at < size {
        let most = (size - at).min(buffer.len() as u64) as usize;
        match each(at, &mut buffer[..most])? {
            0 => break,
            count => at += count as u64,
        }
    }
    Ok(())
}

fn read_some(file: &File, at: u64, to: &mut [u8]) -> Result<usize, SaveError> {
    file.read_at(to, at)
        .map_err(|error| SaveError::failed("a file of the sandbox cannot be read", error))
}

fn is_zero(bytes: &[u8]) -> bool {
    // In steps that the compiler turns into vector instructions.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// Reads what would change once the guests go on, into memory of the sentry's: it is read while they stand
/// still, and the image may be written to something slow.
pub fn keep(contents: &mut Vec<Content>) -> Result<(), SaveError> {
    let mut spool = None;
    let mut end = 0;
    for content in std::mem::take(contents) {
        let is_kept =
            matches!(content, Content::Copied { .. } | Content::Kept { .. } | Content::Read { .. });
        if is_kept || content.bytes() == 0 {
            contents.push(content);
            continue;
        }
        let spool = match &spool {
            Some(spool) => Arc::clone(spool),
            None => Arc::clone(spool.insert(Arc::new(anonymous_file(c"snapshot").map_err(own)?))),
        };
        let unreadable =
            |errno: Errno| SaveError::failed("the memory of a guest cannot be read", errno.desc());
        let mut kept = |object, offset, size: u64, pages, read: &mut Read<'_>| {
            let at = end;
            pieces(size, |place, buffer| {
                let count = read(place, buffer)?;
                if !is_zero(&buffer[..count]) {
                    spool.write_all_at(&buffer[..count], at + place).map_err(|e| own_io(&e))?;
                }
                Ok(count)
            })?;
            end += size.next_multiple_of(PAGE);
            spool.set_len(end).map_err(|error| own_io(&error))?;
            let spool = Arc::clone(&spool);
            contents.push(Content::Kept { object, spool, at, offset, size, pages });
            Ok::<_, SaveError>(())
        };
        let memory = |pid: i32, start: u64| {
            let memory = Memory::of(pid, None);
            move |place: u64, to: &mut [u8]| {
                memory.read(start + place, to).map_err(unreadable)?;
                Ok(to.len())
            }
        };
        match content {
            Content::Pages { object, pid, ranges, .. } => {
                for (start, end) in ranges {
                    kept(object, start, end - start, true, &mut memory(pid, start))?;
                }
            }
            Content::Mapping { object, pid, start, end, offset } => {
                kept(object, offset, end - start, true, &mut memory(pid, start))?;
            }
            Content::File { object, file, size } => {
                kept(object, 0, size, false, &mut |at, to| read_some(&file, at, to))?;
            }
            Content::Below { object, directory, path, size } => {
                let file = opened(&directory, &path)?;
                kept(object, 0, size, false, &mut |at, to| read_some(&file, at, to))?;
            }
            Content::Copied { .. } | Content::Kept { .. } | Content::Read { .. } => {}
        }
    }
    Ok(())
}

/// Reads the pages of these at once, where they are few: else [`keep`] does.
pub fn read_pages(contents: &mut [Content]) -> Result<(), SaveError> {
    const FEW: u64 = 4 << 20;
    for content in contents {
        let size = content.bytes();
        let Content::Pages { object, pid, ranges, .. } = content else { continue };
        if size > FEW {
            continue;
        }
        let memory = Memory::of(*pid, None);
        let mut bytes = vec![0; size as usize].into_boxed_slice();
        let mut rest = &mut bytes[..];
        for (start, end) in &*ranges {
            let (piece, behind) = rest.split_at_mut((end - start) as usize);
            memory.read(*start, piece).map_err(|errno| {
                SaveError::failed("the memory of a guest cannot be read", errno.desc())
            })?;
            rest = behind;
        }
        *content = Content::Read { object: *object, ranges: std::mem::take(ranges), bytes };
    }
    Ok(())
}

/// Reads a piece from a place on; gives how much it was.
type Read<'r> = dyn FnMut(u64, &mut [u8]) -> Result<usize, SaveError> + 'r;

fn own(errno: Errno) -> SaveError {
    SaveError::failed("what has to be read at once cannot be kept in memory", errno.desc())
}

fn own_io(error: &std::io::Error) -> SaveError {
    own(errno_of(error))
}

fn opened(directory: &OwnedFd, path: &CStr) -> Result<File, SaveError> {
    Content::open_below(directory, path).map_err(|errno| {
        SaveError::failed(format!("{} cannot be read", path.to_string_lossy()), errno.desc())
    })
}
