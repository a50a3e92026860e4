//! Mappings of files in overlays that show the host's file still.
//!
//! The first write to a file copies it up; what was mapped before stays what it was, though the name stands for
//! the copy by then (Documentation/filesystems/overlayfs.rst, non-standard behavior). A restore maps what the
//! name stands for. So where a private mapping shows something else than that, an image carries all of it. A shared
//! one shows what has been written once it is restored, as it would anywhere else.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::known::Known;
use super::maps::Line;
use super::memory::join;
use crate::save::hand;
use crate::save::state::{MappedFile, MappingKind};
use crate::sys::pagemap;

const PAGE: u64 = 4096;

/// Whether a mapping may show something else than what its name stands for.
pub(super) fn may_be(kind: &MappingKind, known: &Known) -> bool {
    let MappingKind::FilePrivate { file: MappedFile::Path { path, .. }, .. } = kind else {
        return false;
    };
    known.in_layers.contains(&path[..])
}

/// What of a mapping is to be carried because its file has become another one: (start, end), in order. If that goes
/// further than the file by now, `kind` becomes memory without a file. `guards`: those in it (MADV_GUARD_INSTALL of
/// madvise(2)), in order, which cannot be read.
pub(super) fn look(
    pid: i32,
    line: &Line,
    (pages, guards): (&File, &[(u64, u64)]),
    kind: &mut MappingKind,
    known: &Known,
) -> Vec<(u64, u64)> {
    let MappingKind::FilePrivate { file: MappedFile::Path { path, identity }, offset } = &*kind
    else {
        return Vec::new();
    };
    if !may_be(kind, known) {
        return Vec::new();
    }
    let root = known.view_of(pid);
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let place = Path::new(&root).join(std::ffi::OsStr::from_bytes(relative));
    // Whatever is there by now: nothing is waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // What cannot be looked at may be another one.
    let file = File::options().read(true).custom_flags(flags).open(place).ok();
    let memory = hand::memory(pid, false);
    let shows = |at: u64, to: &mut [u8]| match &memory {
        Ok(memory) => memory.read_exact_at(to, at).is_ok(),
        Err(_) => hand::read(pid, at, to).is_ok(),
    };
    // (Where that cannot be told, what a process has written differs, and is carried with the rest.)
    let own = pagemap::own_pages(pages, line.start, line.end).unwrap_or_default();
    let (mut shown, mut named) = ([0; PAGE as usize], [0; PAGE as usize]);
    let mut readable = Vec::new();
    let mut differs = file.is_none();
    let mut present = None;
    let mut at = line.start;
    while at < line.end {
        if let Some(end) = end_of(guards, at) {
            at = end;
            continue;
        }
        if !shows(at, &mut shown) {
            // The end of its file, behind which there is nothing to be read; or something that the disk does not
            // give: of what is behind that, those pages are found that are in memory.
            let all = || pagemap::present_pages(pages, at, line.end).unwrap_or_default();
            let Some(next) = next_in(present.get_or_insert_with(all), at + PAGE) else { break };
            at = next;
            continue;
        }
        if !differs
            && end_of(&own, at).is_none()
            && let Some(file) = &file
        {
            named.fill(0);
            read(file, *offset + (at - line.start), &mut named);
            differs = shown != named;
        }
        join(&mut readable, (at, at + PAGE));
        at += PAGE;
    }
    let end = readable.last().map_or(line.start, |range| range.1);
    if !differs {
        return Vec::new();
    }
    if offset.saturating_add(end - line.start) > identity.size.next_multiple_of(PAGE) {
        *kind = MappingKind::Anonymous;
    }
    readable
}

/// The end of the range that a place is in. They are in order.
fn end_of(ranges: &[(u64, u64)], at: u64) -> Option<u64> {
    let first = ranges.get(ranges.partition_point(|range| range.1 <= at))?;
    (first.0 <= at).then_some(first.1)
}

/// The first place from there on that is in one of the ranges.
fn next_in(ranges: &[(u64, u64)], from: u64) -> Option<u64> {
    let first = ranges.get(ranges.partition_point(|range| range.1 <= from))?;
    Some(first.0.max(from))
}

/// As much as there is.
fn read(file: &File, at: u64, to: &mut [u8]) {
    let mut count = 0;
    while let Ok(more) = file.read_at(&mut to[count..], at + count as u64) {
        count += more;
        if more == 0 || count == to.len() {
            break;
        }
    }
}
