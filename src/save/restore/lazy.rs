//! Memory that is mapped from the image in place of being filled (`sandbox restore --lazy`).
//!
//! Owns the choice of what is mapped and the mapping. Plain memory of one process alone is, in pieces that
//! are worth it; the rest is filled as ever. What the guests are kept from noticing is `sentry::lazy`'s
//! affair, and how such memory becomes plain memory `save::settle`'s.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::courier::Courier;
use super::space::has;
use crate::save::capture::maps;
use crate::save::capture::memory::join;
use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::image::{CHECKERS, Index, Run, Source};
use crate::save::state::{Mapping, MappingKind, Object, Sandbox, Space};
use crate::sentry::MappedImage;
use crate::sys::mapped::Mapped;

const PAGE: u64 = 4096;
/// A piece has at least so many pages: what is smaller is copied as fast.
const LEAST: u64 = 16;
/// At most so many pieces in one process, which may have 65530 mappings (vm.max_map_count).
const MOST: usize = 16384;

/// Pages of an object that are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Of the first.
    address: u64,
    /// How many.
    pages: u64,
    /// Where they lie in the image.
    at: u64,
}

/// An image whose pages are mapped.
#[derive(Debug)]
pub struct Lazy {
    file: File,
    index: Arc<Index>,
    image: MappedImage,
    pieces: HashMap<Object, Vec<Piece>>,
    /// What is filled.
    rest: Vec<Run>,
    /// What is wrong with what is mapped, once it has been looked at.
    damage: OnceLock<Option<String>>,
    /// From this moment on somebody may have changed it.
    good_until: OnceLock<Instant>,
}

impl Lazy {
    /// Chooses what of a plain file, which this is the list of, is mapped into the processes of `sandbox`.
    ///
    /// # Errors
    /// The image cannot be mapped.
    pub fn new(file: File, index: Arc<Index>, sandbox: &Sandbox) -> Result<Lazy, RestoreError> {
        let image = identity(&file)?;
        let mut pieces: HashMap<Object, Vec<Piece>> = HashMap::new();
        let mut rest = Vec::new();
        let spaces: HashMap<Object, &Space> =
            sandbox.spaces.iter().map(|space| (space.object, space)).collect();
        for run in index.runs() {
            match spaces.get(&run.object) {
                Some(space) => {
                    let found = pieces.entry(run.object).or_default();
                    choose(&space.mappings, run, found, &mut rest);
                }
                None => rest.push(*run),
            }
        }
        for (object, pieces) in &mut pieces {
            limit(*object, pieces, &mut rest);
        }
        // Each object's pages are filled in the order of the file, as without all this.
        rest.sort_by_key(|run| (run.object, run.address));
        Ok(Lazy {
            file,
            index,
            image,
            pieces,
            rest,
            damage: OnceLock::new(),
            good_until: OnceLock::new(),
        })
    }

    /// What is known of the image.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The image.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How to tell mappings of it.
    pub fn image(&self) -> MappedImage {
        self.image
    }

    /// What is not mapped.
    pub fn rest(&self) -> &[Run] {
        &self.rest
    }

    /// Maps what belongs to a space, over what [`super::space::map`] has put there.
    pub(super) fn map(
        &self,
        hand: &mut Hand,
        space: &Space,
        courier: &Courier,
        who: &str,
    ) -> Result<(), RestoreError> {
        let Some(pieces) = self.pieces.get(&space.object).filter(|it| !it.is_empty()) else {
            return Ok(());
        };
        let fds = courier.send(hand, &[self.file.as_fd()]).map_err(RestoreError::of(who))?;
        let fd = fds.first().map_or(u64::MAX, |fd| *fd as u64);
        let mut table = hand.table();
        for piece in pieces {
            if !table.has_room(1, 0) {
                hand.run(&table).map_err(RestoreError::of(format!("{who}: its memory")))?;
                table.clear();
            }
            let Some(mapping) = mapping_of(space, piece.address) else { continue };
            let mut protection = u64::from(mapping.protection);
            let mut flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
            // As the mapping below has been made: it counts against what may be committed, or it does not.
            if has(mapping, "ac") {
                protection |= libc::PROT_WRITE as u64;
            }
            if has(mapping, "nr") {
                flags |= libc::MAP_NORESERVE as u64;
            }
            let length = piece.pages * PAGE;
            table.call(libc::SYS_mmap, [piece.address, length, protection, flags, fd, piece.at]);
        }
        if !table.has_room(1, 0) {
            hand.run(&table).map_err(RestoreError::of(format!("{who}: its memory")))?;
            table.clear();
        }
        table.call(libc::SYS_close, [fd]);
        hand.post(table).map_err(RestoreError::of(format!("{who}: its memory")))
    }

    /// Compares what is filled with its checksums.
    ///
    /// # Errors
    /// The image is damaged.
    pub fn verify_rest(&self) -> Result<(), RestoreError> {
        self.verify(false, CHECKERS)
    }

    /// What is wrong with the parts of the image that are mapped. Looks at them once, on the calling thread
    /// alone, since the guests run; who asks meanwhile waits.
    pub fn damage(&self) -> Option<&str> {
        let damage = || {
            let error = self.verify(true, 1).err()?;
            // What has been changed since is no damage.
            let is_good = self.good_until.get().is_none_or(|until| Instant::now() < *until);
            is_good.then(|| error.to_string())
        };
        self.damage.get_or_init(damage).as_deref()
    }

    /// Somebody wants to change the image, and will not be kept from it any longer than that.
    pub fn is_good_until(&self, until: Instant) {
        let _ = self.good_until.set(until);
    }

    fn verify(&self, mapped: bool, threads: usize) -> Result<(), RestoreError> {
        let mut all: Vec<(u64, u64)> =
            self.pieces.values().flatten().map(|it| (it.at, it.at + it.pages * PAGE)).collect();
        all.sort_unstable();
        let mut joined = Vec::with_capacity(all.len());
        all.into_iter().for_each(|range| join(&mut joined, range));
        let is_mapped = |start: u64, end: u64| {
            let first = joined.partition_point(|it| it.1 <= start);
            joined.get(first).is_some_and(|it| it.0 <= start && end <= it.1)
        };
        let which = |start: u64, end: u64| is_mapped(start, end) == mapped;
        Ok(self.index.verify_where(&self.file, &which, threads)?)
    }
}

/// The parts of a run that are mapped go to `pieces`, all others to `rest`.
fn choose(mappings: &[Mapping], run: &Run, pieces: &mut Vec<Piece>, rest: &mut Vec<Run>) {
    let Source::File(at) = run.source else {
        rest.push(*run);
        return;
    };
    let end = run.address.saturating_add(run.pages.saturating_mul(PAGE));
    let mut next = run.address;
    let mut leave = |from: u64, to: u64| {
        if from < to {
            rest.push(run.part((from, to)));
        }
    };
    let first = mappings.partition_point(|mapping| mapping.end <= run.address);
    for mapping in mappings[first..].iter().take_while(|mapping| mapping.start < end) {
        let (from, to) = (mapping.start.max(next), mapping.end.min(end));
        if from >= to || !is_plain(mapping) || to - from < LEAST * PAGE {
            continue;
        }
        leave(next, from);
        pieces.push(Piece {
            address: from,
            pages: (to - from) / PAGE,
            at: at + (from - run.address),
        });
        next = to;
    }
    leave(next, end);
}

/// Keeps the longest.
fn limit(object: Object, pieces: &mut Vec<Piece>, rest: &mut Vec<Run>) {
    if pieces.len() > MOST {
        pieces.sort_unstable_by_key(|it| std::cmp::Reverse(it.pages));
        let left = pieces.split_off(MOST);
        rest.extend(left.iter().map(|it| Run {
            object,
            address: it.address,
            pages: it.pages,
            source: Source::File(it.at),
        }));
    }
}

fn mapping_of(space: &Space, address: u64) -> Option<&Mapping> {
    let found = space.mappings.partition_point(|mapping| mapping.end <= address);
    space.mappings.get(found).filter(|mapping| mapping.start <= address)
}

/// Whether a file's mapping can stand for it: nothing about it is for plain memory only (its name, memory
/// that is wiped at a fork). Locked memory would all be read at once.
fn is_plain(mapping: &Mapping) -> bool {
    matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Heap)
        && mapping.name.is_none()
        && mapping.guards.is_empty()
        && mapping.protection & libc::PROT_EXEC as u32 == 0
        && !["lo", "wf", "mg", "hg", "gd", "sl"].iter().any(|flag| has(mapping, flag))
}

/// How the kernel shows mappings of a file. (On some file systems that is not what stat(2) tells.)
fn identity(file: &File) -> Result<MappedImage, RestoreError> {
    let failed =
        |errno: nix::errno::Errno| RestoreError::failed("the image cannot be mapped", errno.desc());
    let mapped = Mapped::new(file, PAGE as usize).map_err(failed)?;
    let lines = maps::list(std::process::id() as i32).map_err(failed)?;
    let line = lines.iter().find(|it| it.start <= mapped.address() && mapped.address() < it.end);
    let line = line.ok_or_else(|| RestoreError::refused("the image's mapping is not listed"))?;
    Ok(MappedImage { device: line.device, inode: line.inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, flags: &str) -> Mapping {
        Mapping {
            start,
            end,
            protection: 3,
            kind: MappingKind::Anonymous,
            flags: flags.to_owned(),
            name: None,
            guards: Vec::new(),
        }
    }

    fn chosen(mappings: Vec<Mapping>, run: Run) -> (Vec<Piece>, Vec<Run>) {
        let (mut pieces, mut rest) = (Vec::new(), Vec::new());
        choose(&mappings, &run, &mut pieces, &mut rest);
        let pages = pieces.iter().map(|it| it.pages).sum::<u64>();
        assert_eq!(pages + rest.iter().map(|it| it.pages).sum::<u64>(), run.pages);
        (pieces, rest)
    }

    #[test]
    fn plain_memory_is_mapped_and_all_else_is_filled() {
        let plain = "rd wr mr mw me ac";
        let mappings = vec![
            mapping(0x10_0000, 0x20_0000, plain),
            mapping(0x20_0000, 0x30_0000, "rd wr mr mw me ac lo"),
            mapping(0x30_0000, 0x40_0000, plain),
        ];
        let source = Source::File(0x7000);
        let run = Run { object: 1, address: 0x18_0000, pages: 0x200, source };
        let (pieces, rest) = chosen(mappings.clone(), run);
        let expected = [
            Piece { address: 0x18_0000, pages: 0x80, at: 0x7000 },
            Piece { address: 0x30_0000, pages: 0x80, at: 0x18_7000 },
        ];
        assert_eq!(pieces, expected);
        let left = Run { address: 0x20_0000, pages: 0x100, source: Source::File(0x8_7000), ..run };
        assert_eq!(rest, [left]);
        // Zeros are not in the file; a few pages are not worth it; a name is plain memory's only.
        let zeros = Run { source: Source::Zero, ..run };
        assert_eq!(chosen(mappings.clone(), zeros).1, [zeros]);
        let few = Run { pages: LEAST - 1, ..run };
        assert_eq!(chosen(mappings.clone(), few).1, [few]);
        let mut named = mappings;
        named[0].name = Some(serde_bytes::ByteBuf::from("heap"));
        assert_eq!(chosen(named, Run { pages: 0x80, ..run }).0, []);
    }

    #[test]
    fn of_too_many_pieces_the_longest_stay() {
        let mut pieces: Vec<Piece> = (0..MOST as u64 + 2)
            .map(|at| Piece { address: at << 20, pages: 16 + at % 3, at: at << 20 })
            .collect();
        let mut rest = Vec::new();
        limit(7, &mut pieces, &mut rest);
        assert_eq!((pieces.len(), rest.len()), (MOST, 2));
        assert!(rest.iter().all(|it| it.pages == 16 && it.object == 7));
    }
}
