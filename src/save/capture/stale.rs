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
use crate::save::hand;
use crate::save::state::{MappedFile, MappingKind};
use crate::sys::pagemap;

const PAGE: u64 = 4096;

/// What of a mapping is to be carried because its file has become another one: (start, end). If that is more than
/// the file has by now, `kind` becomes memory without a file.
pub(super) fn look(
    pid: i32,
    line: &Line,
    pages: &File,
    kind: &mut MappingKind,
    known: &Known,
) -> Option<(u64, u64)> {
    let MappingKind::FilePrivate { file: MappedFile::Path { path, identity }, offset } = &*kind
    else {
        return None;
    };
    if !known.in_layers.contains(&path[..]) {
        return None;
    }
    let root = format!("/proc/{pid}/root");
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
    let is_own = |at: u64| {
        let first = own.partition_point(|range| range.1 <= at);
        own.get(first).is_some_and(|range| range.0 <= at)
    };
    let (mut shown, mut named) = ([0; PAGE as usize], [0; PAGE as usize]);
    let mut end = line.start;
    let mut differs = file.is_none();
    // Behind the end of its file there is nothing to be read.
    while end < line.end && shows(end, &mut shown) {
        if !differs
            && !is_own(end)
            && let Some(file) = &file
        {
            named.fill(0);
            read(file, *offset + (end - line.start), &mut named);
            differs = shown != named;
        }
        end += PAGE;
    }
    if !differs || end == line.start {
        return None;
    }
    if offset.saturating_add(end - line.start) > identity.size.next_multiple_of(PAGE) {
        *kind = MappingKind::Anonymous;
    }
    Some((line.start, end))
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
