//! Memory without a file of the guest's view behind it: shared anonymous memory, memfds, System V, and
//! files that were removed while they were mapped.
//!
//! A descriptor of it, if any guest has one, is the descriptors' business and tells all. What only
//! mappings lead to is read through them: through shared ones, and through the pages of private ones that
//! their process has not changed. (/proc/PID/map_files would lead to the file, but only for who has
//! CAP_CHECKPOINT_RESTORE on the host: proc_map_files_get_link in fs/proc/base.c.)

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use serde_bytes::ByteBuf;

use super::collector::{Collector, Content};
use super::known::Inode;
use super::maps::Line;
use super::memory;
use crate::save::hand;
use crate::save::state::{
    FileKind, MappedFile, Mapping, MappingKind, SharedKind, SharedMemory, Space,
};

const PAGE: u64 = 4096;
/// The longest name of a memfd (memfd_create(2)).
const NAME: usize = 249;

/// (start, end) of each, in order.
type Ranges = [(u64, u64)];

/// Where a piece of it can be seen.
#[derive(Debug, Clone, Copy)]
struct Piece {
    pid: i32,
    start: u64,
    end: u64,
    offset: u64,
}

/// Memory that is only known from mappings, by index in [`Collector::shared`].
#[derive(Debug, Default)]
pub struct Mapped {
    pieces: HashMap<u32, Vec<Piece>>,
    /// So long it is at least.
    least: HashMap<u32, u64>,
    /// Those that were files.
    removed: HashMap<u32, Inode>,
}

impl Mapped {
    /// Whether no descriptor of it has been seen yet.
    pub fn has(&self, index: u32) -> bool {
        self.pieces.contains_key(&index)
    }

    /// A descriptor leads to it.
    pub fn forget(&mut self, index: u32) {
        self.pieces.remove(&index);
    }

    /// Its content shows in a mapping of `pid` but where the process has pages of its own, or guards.
    pub fn see(&mut self, index: u32, pid: i32, line: &Line, (own, guards): (&Ranges, &Ranges)) {
        let Some(pieces) = self.pieces.get_mut(&index) else { return };
        let offset = |at: u64| line.offset + (at - line.start);
        let mut hidden = [own, guards].concat();
        hidden.sort_unstable();
        let mut at = line.start;
        for (start, end) in hidden.into_iter().chain([(line.end, line.end)]) {
            if at < start {
                pieces.push(Piece { pid, start: at, end: start, offset: offset(at) });
            }
            at = at.max(end);
        }
        // Where a page of its own is, there is a file below.
        let least = self.least.entry(index).or_default();
        *least = own.last().map_or(*least, |last| offset(last.1).max(*least));
    }
}

/// Index in [`Collector::shared`] of what is mapped, unless it is a file that has a name.
pub fn index(pid: i32, line: &Line, collector: &mut Collector) -> Option<u32> {
    let name = line.deleted()?;
    let key = (line.device, line.inode);
    if let Some(index) = collector.known.shared_by_inode(key) {
        return Some(index);
    }
    let memfd = |name: &[u8]| SharedKind::Memfd {
        name: ByteBuf::from(&name[name.len().saturating_sub(NAME)..]),
        // None can be put on it while only mappings are left, and none matters.
        seals: 0,
        mode: 0o777,
    };
    let mut is_file = false;
    let kind = match name {
        b"/dev/zero" => SharedKind::Anonymous,
        name if name.starts_with(b"/SYSV") => SharedKind::SystemV { id: line.inode as i32 },
        name if name.starts_with(b"/memfd:") => memfd(&name[b"/memfd:".len()..]),
        // A file may really be called that.
        _ if memory::known_identity(pid, &line.name, &mut collector.known)
            .is_ok_and(|it| it.inode.1 == line.inode) =>
        {
            return None;
        }
        name => {
            is_file = true;
            memfd(name)
        }
    };
    let object = collector.object();
    let index = collector.shared.len() as u32;
    collector.shared.push(SharedMemory { object, size: 0, kind });
    collector.known.shared_is(key, index);
    collector.mapped.pieces.insert(index, Vec::new());
    if is_file {
        collector.mapped.removed.insert(index, key);
        collector.notes.push(format!(
            "{} has been removed while it was mapped: the image carries what is mapped of it, and \
             after a restore it is memory of that name",
            String::from_utf8_lossy(name)
        ));
    }
    Some(index)
}

/// All mappings and all descriptors are known.
pub fn finish(collector: &mut Collector, spaces: &mut [Space]) {
    let removed = std::mem::take(&mut collector.mapped.removed);
    for (index, inode) in removed {
        if let Some((number, _)) = collector.known.deleted.get(&inode) {
            collector.mapped.pieces.remove(&index);
            settle(*number, index, collector, spaces);
        }
    }
    let mut all: Vec<_> = std::mem::take(&mut collector.mapped.pieces).into_iter().collect();
    all.sort_by_key(|it| it.0);
    for (index, pieces) in all {
        let Some(shared) = collector.shared.get_mut(index as usize) else { continue };
        let object = shared.object;
        let mut end = collector.mapped.least.get(&index).copied().unwrap_or(0);
        for piece in uncovered(pieces) {
            let length = readable(&piece);
            end = end.max(piece.offset + length);
            if length > 0 {
                let Piece { pid, start, offset, .. } = piece;
                let content = Content::Mapping { object, pid, start, end: start + length, offset };
                collector.contents.push(content);
            }
        }
        // How long it is is not told: as far as it can be seen.
        shared.size = end;
    }
}

/// Mappings of a removed file that is open somewhere are of that.
fn settle(number: u32, index: u32, collector: &Collector, spaces: &mut [Space]) {
    let of_it = |kind: &FileKind| matches!(kind, FileKind::Deleted { file, .. } if *file == number);
    let Some(open) = collector.files.iter().position(|file| of_it(&file.kind)) else { return };
    for mapping in spaces.iter_mut().flat_map(|space| &mut space.mappings) {
        let MappingKind::Shared { index: other, offset, private } = mapping.kind else { continue };
        if other != index {
            continue;
        }
        let file = MappedFile::Open(open as u32);
        let writable = has(mapping, "mw");
        mapping.kind = match private {
            true => MappingKind::FilePrivate { file, offset },
            false => MappingKind::FileShared { file, offset, writable },
        };
    }
}

fn has(mapping: &Mapping, flag: &str) -> bool {
    mapping.flags.split(' ').any(|it| it == flag)
}

/// Every page once, in order.
fn uncovered(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_by_key(|piece| (piece.offset, std::cmp::Reverse(piece.end - piece.start)));
    let mut reached = 0u64;
    let mut left = Vec::new();
    for mut piece in pieces {
        let skip = reached.saturating_sub(piece.offset).min(piece.end - piece.start);
        piece.start += skip;
        piece.offset += skip;
        if piece.start < piece.end {
            reached = piece.offset + (piece.end - piece.start);
            left.push(piece);
        }
    }
    left
}

/// How much of a piece there is: what lies behind the end of a file cannot be read.
fn readable(piece: &Piece) -> u64 {
    let Ok(memory) = hand::memory(piece.pid, false) else { return 0 };
    let is_there = |page: u64| memory.read_at(&mut [0], piece.start + page * PAGE).is_ok();
    let (mut low, mut high) = (0, (piece.end - piece.start) / PAGE);
    if high > 0 && is_there(high - 1) {
        return high * PAGE;
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if is_there(middle) { low = middle + 1 } else { high = middle }
    }
    low * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_taken_once() {
        let piece = |start, end, offset| Piece { pid: 1, start, end, offset };
        let pieces = vec![
            piece(0x9000, 0xa000, 0x2000),
            piece(0x1000, 0x3000, 0),
            piece(0x5000, 0x8000, 0x1000),
            piece(0xc000, 0xd000, 0x8000),
        ];
        let left: Vec<_> =
            uncovered(pieces).iter().map(|it| (it.start, it.end, it.offset)).collect();
        let expected = [(0x1000, 0x3000, 0), (0x6000, 0x8000, 0x2000), (0xc000, 0xd000, 0x8000)];
        assert_eq!(left, expected);
    }
}
