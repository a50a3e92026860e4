//! Which memory processes have from those that make them.
//!
//! The kernel shares private memory only by fork(2): what two processes are to have in common has to be in the memory
//! of one that makes the other, or both, before that happens (dup_mmap in kernel/fork.c). So who makes others is given
//! *ahead* what most of those have at the same address with the same content, and is made to have its own in place of it
//! when they are there. Who is made keeps that, and drops what is not its own. Pure logic: [`Heritage::of`] says who
//! keeps, drops and gets what; [`super::skeleton`] and [`super::furnish`] see to it.

use std::collections::{HashMap, HashSet};

use super::space::has;
use super::tree::Step;
use crate::save::image::Run;
use crate::save::sharing::{Classes, Resource};
use crate::save::state::{MappedFile, Mapping, MappingKind, Object, Process, Sandbox, Space};

mod extents;

use extents::{Extent, PAGE, Range, Taken, common, extent, minus, most_common, within};

/// A mapping of which less than so many pages are the same is made by each process itself, which is as fast.
const LEAST: u64 = 4;
/// To have the kernel copy the entry of a page into a new page table and drop it again, for who keeps none of it, costs
/// this part of what it takes to fill in a page (copy_page_range and unmap_page_range in mm/memory.c); the table takes
/// room until then, too.
const COPIED: u64 = 64;

/// What one process has from its maker, and gives to those that it makes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its mappings that come from its maker.
    inherited: Vec<Range>,
    /// Pages among them that are not its own.
    foreign: Vec<Range>,
    /// It makes others that keep some of its memory.
    gives: bool,
    /// Those of its mappings that it has for that before it makes anybody: by place in its space.
    ahead: Vec<usize>,
    /// Their content.
    content: Vec<Run>,
    /// Pages of that content that are not its own.
    given: Vec<Range>,
    /// What it has when all have been made, and is its own.
    own: Vec<Range>,
}

/// What is there of a process's memory, and stays when the rest of it is made.
#[derive(Debug, Default, Clone)]
pub struct Stays {
    mappings: Vec<Range>,
    /// Pages in them that are not the process's own.
    pub drop: Vec<Range>,
}

impl Stays {
    /// Whether a mapping is there already.
    pub fn has(&self, mapping: &Mapping) -> bool {
        self.mappings.binary_search(&(mapping.start, mapping.end)).is_ok()
    }

    /// The parts of a range outside all of them.
    pub fn outside(&self, range: Range) -> Vec<Range> {
        minus(&[range], &self.mappings)
    }
}

/// What has to be in the memory of a process before it makes others.
#[derive(Debug)]
pub(super) struct Ahead<'h> {
    /// The process's space with what is needed of its mappings alone.
    pub space: Space,
    /// What of it is there.
    pub stays: Stays,
    /// What comes into it.
    pub content: &'h [Run],
}

/// Who has which part, by number.
#[derive(Debug, Default)]
pub(super) struct Heritage {
    parts: HashMap<i32, Part>,
    there: There,
}

/// Pages that need not be filled in when all have been made.
#[derive(Debug, Default)]
pub struct There(HashMap<Object, Vec<Range>>);

impl There {
    /// Whether all have to be.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is not there of the pages of an object between two addresses: (start, end).
    pub fn left(&self, object: Object, start: u64, end: u64) -> Vec<(u64, u64)> {
        let there = self.0.get(&object).map_or(&[][..], Vec::as_slice);
        minus(&[(start, end)], there)
    }

    /// The same for a run.
    pub fn left_of(&self, run: Run) -> impl Iterator<Item = Run> {
        let end = run.address.saturating_add(run.pages.saturating_mul(PAGE));
        let left = self.left(run.object, run.address, end);
        left.into_iter().map(move |part| run.part(part))
    }
}

impl Heritage {
    /// What these processes, made by these steps, can have from each other. `runs`: all pages of the image.
    pub(super) fn of(
        sandbox: &Sandbox,
        steps: &[Step],
        classes: &Classes,
        runs: &[Run],
    ) -> Heritage {
        let families = Families::of(sandbox, steps, classes);
        let mut heritage = Heritage::default();
        if families.makers.is_empty() {
            return heritage;
        }
        let mut planner = Planner::new(&families, runs);
        families.makers.iter().for_each(|maker| planner.give(*maker));
        heritage.parts = planner.parts;
        heritage.parts.retain(|_, part| part.gives || !part.inherited.is_empty());
        let parts = heritage.parts.iter().filter(|(_, part)| !part.own.is_empty());
        let own =
            parts.filter_map(|(pid, it)| Some((families.spaces.get(pid)?.object, it.own.clone())));
        heritage.there = There(own.collect());
        heritage
    }

    /// What need not be filled in in the end.
    pub(super) fn there(&self) -> &There {
        &self.there
    }

    /// What process `pid` with this space needs before it makes the first.
    pub(super) fn ahead(&self, pid: i32, space: &Space) -> Option<Ahead<'_>> {
        let part = self.parts.get(&pid).filter(|part| part.gives)?;
        let is_kernels =
            |kind: &MappingKind| matches!(kind, MappingKind::Vdso | MappingKind::Vvar(_));
        let needed = space.mappings.iter().enumerate();
        let needed =
            needed.filter(|(at, it)| is_kernels(&it.kind) || part.ahead.binary_search(at).is_ok());
        let mappings = needed.map(|(_, mapping)| mapping.clone()).collect();
        Some(Ahead {
            space: Space { mappings, ..space.clone() },
            stays: Stays { mappings: part.inherited.clone(), drop: part.foreign.clone() },
            content: &part.content,
        })
    }

    /// What of the memory of process `pid` with this space is there when all have been made.
    pub(super) fn stays(&self, pid: i32, space: &Space) -> Stays {
        let Some(part) = self.parts.get(&pid) else { return Stays::default() };
        let ahead = part.ahead.iter().filter_map(|at| space.mappings.get(*at));
        let ahead = ahead.map(|mapping| (mapping.start, mapping.end));
        let mut mappings: Vec<Range> = part.inherited.iter().copied().chain(ahead).collect();
        mappings.sort_unstable();
        let drop = if part.gives { &part.given } else { &part.foreign };
        Stays { mappings, drop: drop.clone() }
    }
}

/// Who makes whom, of those whose memory is nobody else's.
struct Families<'s> {
    spaces: HashMap<i32, &'s Space>,
    /// Whom each makes, itself or by way of a stand-in.
    children: HashMap<i32, Vec<i32>>,
    /// Those that make others, in the order in which they are made themselves.
    makers: Vec<i32>,
    /// How many begin with a copy of the memory of each, at most: all that come from it, stand-ins too.
    copies: HashMap<i32, u64>,
}

impl<'s> Families<'s> {
    fn of(sandbox: &'s Sandbox, steps: &[Step], classes: &Classes) -> Families<'s> {
        let is_alone = |it: &&Process| classes.class(Resource::Memory, it.pid).is_none();
        let space = |it: &Process| sandbox.spaces.get(it.space? as usize);
        let alone = sandbox.processes.iter().filter(is_alone);
        let spaces: HashMap<i32, &Space> =
            alone.filter_map(|it| Some((it.pid, space(it)?))).collect();
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        let mut makers = Vec::new();
        // Whose memory a stand-in has.
        let mut of_stand_ins: HashMap<i32, i32> = HashMap::new();
        for step in steps {
            let Step::Make { parent, pid, stands_in, .. } = *step else { continue };
            let maker = of_stand_ins.get(&parent).copied().unwrap_or(parent);
            if !spaces.contains_key(&maker) {
                continue;
            }
            if stands_in {
                of_stand_ins.insert(pid, maker);
            } else if spaces.contains_key(&pid) {
                let own = children.entry(maker).or_default();
                if own.is_empty() {
                    makers.push(maker);
                }
                own.push(pid);
            }
        }
        // (Who is made first may make others last.)
        let order = steps.iter().filter_map(Step::makes).enumerate();
        let order: HashMap<i32, usize> = order.map(|(at, pid)| (pid, at)).collect();
        makers.sort_by_key(|maker| order.get(maker).copied());
        let mut copies: HashMap<i32, u64> = HashMap::new();
        // Whoever is made comes behind who makes it.
        for step in steps.iter().rev() {
            let Step::Make { parent, pid, .. } = *step else { continue };
            let below = copies.get(&pid).copied().unwrap_or(0);
            let all = copies.entry(parent).or_default();
            *all = all.saturating_add(below + 1);
        }
        Families { spaces, children, makers, copies }
    }
}

struct Planner<'f, 's> {
    families: &'f Families<'s>,
    /// The pages of each process that are in the image as they are.
    pages: HashMap<i32, Vec<Extent>>,
    /// Those that each has from its maker.
    had: HashMap<i32, Vec<Extent>>,
    parts: HashMap<i32, Part>,
}

/// A mapping of a child, in one of its maker's.
struct Pair {
    child: i32,
    /// The place of the maker's.
    at: usize,
    range: Range,
}

impl<'f, 's> Planner<'f, 's> {
    fn new(families: &'f Families<'s>, runs: &[Run]) -> Planner<'f, 's> {
        let mut objects: HashMap<Object, Vec<Extent>> = HashMap::new();
        for run in runs {
            objects.entry(run.object).or_default().extend(extent(run));
        }
        let all = families.makers.iter().chain(families.children.values().flatten());
        let pages = all.filter_map(|pid| {
            let pages = objects.get(&families.spaces.get(pid)?.object)?;
            Some((*pid, pages.clone()))
        });
        let pages = pages.collect();
        Planner { families, pages, had: HashMap::new(), parts: HashMap::new() }
    }

    fn pages(&self, pid: i32) -> &[Extent] {
        self.pages.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Finds what `maker`, whose own maker has had its turn, is to give to those that it makes.
    fn give(&mut self, maker: i32) {
        let Some(space) = self.families.spaces.get(&maker).copied() else { return };
        let pairs = self.pairs(maker, &space.mappings);
        let mut part = self.parts.remove(&maker).unwrap_or_default();
        let had = self.had.remove(&maker).unwrap_or_default();
        let mut by_place: HashMap<usize, Vec<&Pair>> = HashMap::new();
        pairs.iter().for_each(|pair| by_place.entry(pair.at).or_default().push(pair));
        let mut chosen = HashSet::new();
        let mut ahead = Vec::new();
        for (at, extents) in self.candidates(maker, space, &pairs, &had) {
            let mapping = &space.mappings[at];
            let pages: u64 = extents.iter().map(Extent::pages).sum();
            let is_there = part.inherited.binary_search(&(mapping.start, mapping.end)).is_ok();
            let pays = pages >= LEAST && self.pays(maker, &by_place[&at], &extents);
            if pays {
                ahead.extend(extents);
                if !is_there {
                    part.ahead.push(at);
                }
            }
            if pays || is_there {
                chosen.insert(at);
            }
        }
        ahead.sort_unstable_by_key(|it| it.start);
        part.content = ahead.iter().map(|it| it.run(space.object)).collect();
        let mut there: Vec<Extent> = had.iter().chain(&ahead).copied().collect();
        there.sort_unstable_by_key(|it| it.start);
        let kept = extents::ranges(&common(&there, self.pages(maker)));
        part.given = minus(&extents::ranges(&there), &kept);
        for pairs in pairs.chunk_by(|one, next| (one.child, one.at) == (next.child, next.at)) {
            part.gives |= chosen.contains(&pairs[0].at) && self.take(pairs, &there);
        }
        if part.gives {
            part.own = kept;
        } else {
            part.ahead.clear();
            part.content.clear();
        }
        self.parts.insert(maker, part);
    }

    /// Whether what children keep of a mapping with this content is worth that all have it at first.
    fn pays(&self, maker: i32, pairs: &[&Pair], content: &[Extent]) -> bool {
        let mut content = content.to_vec();
        content.sort_unstable_by_key(|it| it.start);
        let kept = pairs.iter().map(|pair| {
            let own: Vec<Extent> = within(self.pages(pair.child), pair.range).collect();
            common(&content, &own).iter().map(Extent::pages).sum::<u64>()
        });
        let pages: u64 = content.iter().map(Extent::pages).sum();
        let copies = self.families.copies.get(&maker).copied().unwrap_or(0);
        kept.sum::<u64>() >= pages.saturating_mul(copies) / COPIED
    }

    /// A child keeps what it has of a mapping of its maker's, where `there` is, if they have enough in common: all of
    /// it, since the kernel may join parts of it that come from one.
    fn take(&mut self, pairs: &[Pair], there: &[Extent]) -> bool {
        let there: Vec<Extent> = pairs.iter().flat_map(|pair| within(there, pair.range)).collect();
        let Some(child) = pairs.first().map(|pair| pair.child) else { return false };
        let its: Vec<Extent> =
            pairs.iter().flat_map(|pair| within(self.pages(child), pair.range)).collect();
        let had = common(&there, &its);
        if had.iter().map(Extent::pages).sum::<u64>() < LEAST {
            return false;
        }
        let own = extents::ranges(&had);
        let part = self.parts.entry(child).or_default();
        part.inherited.extend(pairs.iter().map(|pair| pair.range));
        part.foreign.extend(minus(&extents::ranges(&there), &own));
        part.own.extend(own);
        self.had.entry(child).or_default().extend(had);
        true
    }

    /// Mappings of children that can be those of their maker, by child and address.
    fn pairs(&self, maker: i32, mappings: &[Mapping]) -> Vec<Pair> {
        let is_special: Vec<bool> = mappings.iter().map(is_special).collect();
        let mut pairs = Vec::new();
        for child in self.families.children.get(&maker).into_iter().flatten() {
            let Some(space) = self.families.spaces.get(child) else { continue };
            let has_pages = |it: &Mapping| {
                it.start < it.end && within(self.pages(*child), (it.start, it.end)).next().is_some()
            };
            for mapping in space.mappings.iter().filter(|it| it.start < it.end) {
                let at = mappings.partition_point(|it| it.end <= mapping.start);
                let whole = mappings.get(at).filter(|it| !is_special[at] && has_pages(it));
                if whole.is_some_and(|whole| is_part(mapping, whole)) {
                    let range = (mapping.start, mapping.end);
                    pairs.push(Pair { child: *child, at, range });
                }
            }
        }
        pairs
    }

    /// For each of the maker's mappings that somebody could have from it: the content that most of them have, beside
    /// what is there already.
    fn candidates(
        &self,
        maker: i32,
        space: &Space,
        pairs: &[Pair],
        had: &[Extent],
    ) -> Vec<(usize, Vec<Extent>)> {
        let mut places: Vec<usize> = pairs.iter().map(|pair| pair.at).collect();
        places.sort_unstable();
        places.dedup();
        let mut of_all: HashMap<usize, Vec<Extent>> = HashMap::new();
        for at in &places {
            let mapping = &space.mappings[*at];
            let own = within(self.pages(maker), (mapping.start, mapping.end));
            of_all.entry(*at).or_default().extend(own);
        }
        for Pair { child, at, range } in pairs {
            of_all.entry(*at).or_default().extend(within(self.pages(*child), *range));
        }
        let mut taken = Taken::default();
        had.iter().for_each(|it| taken.take((it.start, it.end)));
        let mut found = Vec::with_capacity(places.len());
        for at in places {
            let mut chosen = Vec::new();
            for extent in most_common(of_all.remove(&at).unwrap_or_default()) {
                let free = taken.free((extent.start, extent.end));
                free.iter().for_each(|range| taken.take(*range));
                chosen.extend(free.iter().map(|(start, end)| extent.part(*start, *end)));
            }
            found.push((at, chosen));
        }
        found
    }
}

/// Whether a mapping cannot come from another process: it is not private, a fork does not hand it on as it is, or it is
/// locked, which gives each process its own.
fn is_special(mapping: &Mapping) -> bool {
    let is_private = match &mapping.kind {
        MappingKind::Anonymous | MappingKind::Heap => true,
        // (Who maps one that has no name needs a descriptor, and there is none yet.)
        MappingKind::FilePrivate { file, .. } => matches!(file, MappedFile::Path { .. }),
        _ => false,
    };
    !is_private || ["lo", "wf", "dc", "gd"].iter().any(|flag| has(mapping, flag))
}

/// Whether a mapping is a part of another one that can be shared, made in the same way.
///
/// All of it, since the kernel joins no mapping that was inherited to a new one beside it (is_mergeable_anon_vma in
/// mm/vma.c), and mremap(2) takes no two at once.
fn is_part(part: &Mapping, whole: &Mapping) -> bool {
    let is_alike = match (&part.kind, &whole.kind) {
        (
            MappingKind::FilePrivate { file, offset },
            MappingKind::FilePrivate { file: of_whole, offset: begin },
        ) => file == of_whole && offset.checked_sub(*begin) == part.start.checked_sub(whole.start),
        (kind, of_whole) => kind == of_whole,
    };
    let flags = |it: &Mapping| ["ac", "nr"].map(|flag| has(it, flag));
    let has_flags = || !is_special(part) && flags(part) == flags(whole);
    // Until all is in place both can be written to, if they count as such: who is not to be is changed then.
    let writable = libc::PROT_WRITE as u32;
    let has_rights = part.protection == whole.protection
        || has(whole, "ac")
            && (part.protection & writable == 0 || part.protection == whole.protection | writable);
    whole.start <= part.start
        && part.end <= whole.end
        && is_alike
        && has_rights
        && (part.flags == whole.flags || has_flags())
}

#[cfg(test)]
mod tests;
