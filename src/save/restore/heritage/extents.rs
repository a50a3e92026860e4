//! Pages and where their content lies in an image, as ranges of addresses.

use std::collections::BTreeMap;

use crate::save::image::{Run, Source};

pub(super) const PAGE: u64 = 4096;

/// First address, address behind.
pub(super) type Range = (u64, u64);

/// Pages whose content lies in one piece in the image. Where two overlap that have the same offset in the same, they are
/// equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    /// The packed block that the content is in, if it is in one.
    block: Option<usize>,
    /// Where in that or in the file it lies less the address; it may wrap around.
    offset: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Extent {
    pub(super) fn pages(&self) -> u64 {
        (self.end - self.start) / PAGE
    }

    /// Where its content lies, but for the address.
    pub(super) fn place(&self) -> (Option<usize>, u64) {
        (self.block, self.offset)
    }

    /// The part between two addresses in it.
    pub(super) fn part(&self, start: u64, end: u64) -> Extent {
        Extent { start, end, ..*self }
    }

    /// As pages of an object.
    pub(super) fn run(&self, object: u32) -> Run {
        let at = self.start.wrapping_add(self.offset);
        let source = match self.block {
            Some(block) => Source::Packed { block, first: at / PAGE },
            None => Source::File(at),
        };
        Run { object, address: self.start, pages: self.pages(), source }
    }
}

/// A run, if it is not of zeros.
pub(super) fn extent(run: &Run) -> Option<Extent> {
    let (block, at) = match run.source {
        Source::File(at) => (None, at),
        Source::Packed { block, first } => (Some(block), first.checked_mul(PAGE)?),
        Source::Zero => return None,
    };
    let end = run.address.checked_add(run.pages.checked_mul(PAGE)?)?;
    Some(Extent { block, offset: at.wrapping_sub(run.address), start: run.address, end })
}

/// What lies in a range of extents, which are in order.
pub(super) fn within(all: &[Extent], range: Range) -> impl Iterator<Item = Extent> {
    let first = all.partition_point(|it| it.end <= range.0);
    let inside = all[first..].iter().take_while(move |it| it.start < range.1);
    inside.map(move |it| it.part(it.start.max(range.0), it.end.min(range.1)))
}

/// What is equal in both; each is in order.
pub(super) fn common(one: &[Extent], other: &[Extent]) -> Vec<Extent> {
    let mut all = Vec::new();
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        let (start, end) = (a.start.max(b.start), a.end.min(b.end));
        if start < end && a.place() == b.place() {
            all.push(a.part(start, end));
        }
        if a.end <= b.end {
            one.next();
        } else {
            other.next();
        }
    }
    all
}

/// Their addresses, joined where one begins at the end of another.
pub(super) fn ranges(all: &[Extent]) -> Vec<Range> {
    let mut ranges = Vec::new();
    all.iter().for_each(|it| crate::save::capture::memory::join(&mut ranges, (it.start, it.end)));
    ranges
}

/// Those of some ranges in order that touch one.
pub(super) fn between(ranges: &[Range], (start, end): Range) -> &[Range] {
    let first = ranges.partition_point(|it| it.1 <= start);
    let behind = ranges.partition_point(|it| it.0 < end);
    ranges.get(first..behind).unwrap_or_default()
}

/// What of the first is not in the others; both are in order.
pub(super) fn minus(ranges: &[Range], others: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    for (start, end) in ranges {
        let mut from = *start;
        for (begin, behind) in between(others, (*start, *end)) {
            if from < *begin {
                left.push((from, *begin));
            }
            from = from.max(*behind);
        }
        if from < *end {
            left.push((from, *end));
        }
    }
    left
}

/// The content that at least two of these have at the same address; what most have comes first.
pub(super) fn most_common(mut all: Vec<Extent>) -> Vec<Extent> {
    all.sort_unstable();
    let mut found: Vec<(usize, Extent)> = Vec::new();
    for equal in all.chunk_by(|one, next| one.place() == next.place()) {
        let mut edges: Vec<(u64, bool)> =
            equal.iter().flat_map(|it| [(it.start, true), (it.end, false)]).collect();
        edges.sort_unstable();
        let (mut count, mut from) = (0_usize, 0);
        for (at, begins) in edges {
            if count >= 2 && from < at {
                let extent = equal[0].part(from, at);
                match found.last_mut() {
                    Some((last, before))
                        if (*last, before.place(), before.end) == (count, extent.place(), from) =>
                    {
                        before.end = at;
                    }
                    _ => found.push((count, extent)),
                }
            }
            count = if begins { count + 1 } else { count.saturating_sub(1) };
            from = at;
        }
    }
    found.sort_by_key(|(count, extent)| (std::cmp::Reverse(*count), extent.start));
    found.into_iter().map(|(_, extent)| extent).collect()
}

/// Addresses that are spoken for.
#[derive(Debug, Default)]
pub(super) struct Taken(BTreeMap<u64, u64>);

impl Taken {
    /// The parts of a range that are not.
    pub(super) fn free(&self, (start, end): Range) -> Vec<Range> {
        let before = self.0.range(..=start).next_back();
        let inside = self.0.range(start..end).filter(|(from, _)| **from != start);
        let there: Vec<Range> = before.into_iter().chain(inside).map(|(a, b)| (*a, *b)).collect();
        minus(&[(start, end)], &there)
    }

    /// A range that is free is so no longer.
    pub(super) fn take(&mut self, (start, end): Range) {
        self.0.insert(start, end);
    }
}
