//! What is planned is carried out on memory that is a table, and compared with what each is to have.

use serde_bytes::ByteBuf;

use super::*;
use crate::save::image::Source;
use crate::save::restore::tree;
use crate::save::state::Layout;
use crate::save::state::testing::process;

const BASE: u64 = 0x7000_0000_0000;

fn mapping(first: u64, pages: u64, flags: &str) -> Mapping {
    Mapping {
        start: BASE + first * PAGE,
        end: BASE + (first + pages) * PAGE,
        protection: 3,
        kind: MappingKind::Anonymous,
        flags: flags.to_owned(),
        name: None,
        guards: Vec::new(),
    }
}

/// Pages of the object, from page `at` of the file on.
fn run(object: Object, first: u64, pages: u64, at: u64) -> Run {
    Run { object, address: BASE + first * PAGE, pages, source: Source::File(at * PAGE) }
}

fn range(first: u64, behind: u64) -> Range {
    (BASE + first * PAGE, BASE + behind * PAGE)
}

fn space(object: Object, mappings: Vec<Mapping>) -> Space {
    Space {
        object,
        mappings,
        layout: Layout::default(),
        exe: ByteBuf::new(),
        exe_memory: None,
        lock_new: 0,
        dumpable: 1,
        coredump_filter: 0,
        flags: [0; 3],
        membarrier: 0,
    }
}

/// Processes 2, 3, ... with these parents and mappings; the object of each is its number.
fn sandbox(all: &[(i32, Vec<Mapping>)]) -> Sandbox {
    let mut sandbox = crate::save::testing::empty();
    for (pid, (parent, mappings)) in (2..).zip(all) {
        let mut made = process(pid, *parent, 1, 2);
        made.space = Some(sandbox.spaces.len() as u32);
        sandbox.processes.push(made);
        sandbox.spaces.push(space(pid as Object, mappings.clone()));
    }
    sandbox
}

fn planned(sandbox: &Sandbox, runs: &[Run]) -> Heritage {
    let classes = Classes::of(&sandbox.processes, &[]).ok().unwrap();
    let steps = tree::plan(&sandbox.processes, &[], &HashMap::new(), 100).unwrap();
    Heritage::of(sandbox, &steps, &classes, runs)
}

/// What is left to be filled in.
fn rest(heritage: &Heritage, runs: &[Run]) -> Vec<Run> {
    runs.iter().flat_map(|run| heritage.there().left_of(*run)).collect()
}

/// Follows what would happen to memory: the content of each page of each process in the end, by page of the file.
fn carried_out(
    sandbox: &Sandbox,
    heritage: &Heritage,
    runs: &[Run],
) -> HashMap<i32, HashMap<u64, u64>> {
    let steps = tree::plan(&sandbox.processes, &[], &HashMap::new(), 100).unwrap();
    let space = |pid: i32| &sandbox.spaces[(pid - 2) as usize];
    let put = |memory: &mut HashMap<u64, u64>, run: &Run| {
        let Source::File(at) = run.source else { panic!("{run:?}") };
        for page in 0..run.pages {
            memory.insert(run.address + page * PAGE, at / PAGE + page);
        }
    };
    let keep = |memory: &mut HashMap<u64, u64>, stays: &Stays| {
        let inside =
            |ranges: &[Range], page: u64| ranges.iter().any(|it| it.0 <= page && page < it.1);
        memory.retain(|page, _| inside(&stays.mappings, *page) && !inside(&stays.drop, *page));
    };
    let mut all: HashMap<i32, HashMap<u64, u64>> = HashMap::new();
    let mut have_made = HashSet::new();
    for step in steps {
        let Step::Make { parent, pid, .. } = step else { continue };
        if let Some(memory) = all.get_mut(&parent)
            && have_made.insert(parent)
            && let Some(ahead) = heritage.ahead(parent, space(parent))
        {
            keep(memory, &ahead.stays);
            ahead.content.iter().for_each(|run| put(memory, run));
        }
        let memory = all.get(&parent).cloned().unwrap_or_default();
        all.insert(pid, memory);
    }
    for (pid, memory) in &mut all {
        keep(memory, &heritage.stays(*pid, space(*pid)));
        let own = runs.iter().filter(|run| run.object == *pid as Object);
        own.flat_map(|run| heritage.there().left_of(*run)).for_each(|run| put(memory, &run));
    }
    all
}

/// What each process is to have.
fn wanted(sandbox: &Sandbox, runs: &[Run]) -> HashMap<i32, HashMap<u64, u64>> {
    let mut all: HashMap<i32, HashMap<u64, u64>> =
        sandbox.processes.iter().map(|it| (it.pid, HashMap::new())).collect();
    for run in runs {
        let Source::File(at) = run.source else { continue };
        let memory = all.get_mut(&(run.object as i32)).unwrap();
        memory.extend((0..run.pages).map(|page| (run.address + page * PAGE, at / PAGE + page)));
    }
    all
}

const PLAIN: &str = "rd wr mr mw me ac";

#[test]
fn what_a_parent_and_its_children_have_in_common_comes_before_they_are_made() {
    let space = || vec![mapping(0, 100, PLAIN)];
    let sandbox = sandbox(&[(1, space()), (2, space()), (2, space())]);
    // The second child has written to ten pages, the parent to twenty others, and both children have what it had.
    let runs = [
        run(2, 0, 50, 1000),
        run(2, 50, 20, 2000),
        run(3, 0, 70, 1000),
        run(4, 0, 10, 3000),
        run(4, 10, 60, 1010),
    ];
    let heritage = planned(&sandbox, &runs);
    let parent = heritage.ahead(2, &sandbox.spaces[0]).unwrap();
    assert_eq!(parent.space.mappings, sandbox.spaces[0].mappings);
    assert_eq!(parent.content.iter().map(|run| run.pages).sum::<u64>(), 70);
    let mapped = range(0, 100);
    let stays = |pid: i32| heritage.stays(pid, &sandbox.spaces[0]);
    assert_eq!((stays(2).mappings, stays(2).drop), (vec![mapped], vec![range(50, 70)]));
    assert_eq!((stays(3).mappings, stays(3).drop), (vec![mapped], vec![]));
    assert_eq!((stays(4).mappings, stays(4).drop), (vec![mapped], vec![range(0, 10)]));
    assert_eq!(rest(&heritage, &runs), [run(2, 50, 20, 2000), run(4, 0, 10, 3000)]);
    assert_eq!(carried_out(&sandbox, &heritage, &runs), wanted(&sandbox, &runs));
}

#[test]
fn nothing_is_shared_that_is_not_worth_it_or_not_alike() {
    let plain = || vec![mapping(0, 100, PLAIN)];
    let none = |all: &[(i32, Vec<Mapping>)], runs: &[Run]| {
        let heritage = planned(&sandbox(all), runs);
        assert!(heritage.parts.is_empty() && heritage.there().is_empty(), "{heritage:?}");
    };
    let pages = |count: u64| [run(2, 0, count, 1000), run(3, 0, count, 1000)];
    none(&[(1, plain()), (2, plain())], &pages(LEAST - 1));
    // They are at other addresses, no family, or alike by accident.
    none(&[(1, plain()), (2, plain())], &[run(2, 0, 50, 1000), run(3, 50, 50, 1000)]);
    none(&[(1, plain()), (1, plain())], &pages(50));
    none(&[(1, plain()), (2, plain())], &[run(2, 0, 50, 1000), run(3, 0, 50, 1001)]);
    for flags in ["rd wr mr mw me ac lo", "rd wr mr mw me ac wf", "rd wr mr mw me ac nr"] {
        none(&[(1, plain()), (2, vec![mapping(0, 100, flags)])], &pages(50));
    }
    // More than what the parent has, which the kernel would not join to it.
    none(&[(1, plain()), (2, vec![mapping(0, 101, PLAIN)])], &pages(50));
    let mut executable = mapping(0, 100, PLAIN);
    executable.protection = 7;
    none(&[(1, plain()), (2, vec![executable])], &pages(50));
    let space = || vec![mapping(0, 100, PLAIN)];
    let both = sandbox(&[(1, space()), (2, space())]);
    assert!(!planned(&both, &pages(50)).there().is_empty());
}

#[test]
fn nothing_is_shared_that_most_would_have_in_vain() {
    let is_shared = |kept: u64, others: i32, grandchildren: i32| {
        // One child keeps some of the parent's pages; others, children or made by one of those, have their own elsewhere.
        let mut all = vec![(1, vec![mapping(0, 1000, PLAIN)]), (2, vec![mapping(0, 1000, PLAIN)])];
        let mut runs = vec![run(2, 0, 1000, 1000), run(3, 0, kept, 1000)];
        for pid in 4..4 + others {
            let parent = if (5..5 + grandchildren).contains(&pid) { 4 } else { 2 };
            all.push((parent, vec![mapping(2000, 10, PLAIN)]));
            runs.push(run(pid as Object, 2000, 10, 5000 + 10 * pid as u64));
        }
        let sandbox = sandbox(&all);
        let heritage = planned(&sandbox, &runs);
        assert_eq!(carried_out(&sandbox, &heritage, &runs), wanted(&sandbox, &runs));
        heritage.ahead(2, &sandbox.spaces[0]).is_some()
    };
    // What one child keeps is copied for that and for all others: for as many as COPIED it pays, for one more not.
    let most = COPIED as i32 - 1;
    for kept in [100, 1000] {
        assert!(is_shared(kept, most, 0) && is_shared(kept, most, 20), "{kept}");
        assert!(!is_shared(kept, most + 1, 0) && !is_shared(kept, most + 1, 50), "{kept}");
    }
}

#[test]
fn a_part_of_the_parents_mapping_is_enough() {
    let sandbox = sandbox(&[(1, vec![mapping(0, 200, PLAIN)]), (2, vec![mapping(50, 50, PLAIN)])]);
    let runs = [run(2, 0, 200, 1000), run(3, 50, 50, 1050)];
    let heritage = planned(&sandbox, &runs);
    let stays = heritage.stays(3, &sandbox.spaces[1]);
    assert_eq!(stays.outside(range(0, 200)), [range(0, 50), range(100, 200)]);
    assert!(stays.has(&sandbox.spaces[1].mappings[0]));
    assert_eq!(carried_out(&sandbox, &heritage, &runs), wanted(&sandbox, &runs));
}

#[test]
fn parts_of_one_mapping_stay_one() {
    // The child has made a page of it inaccessible, which is to be joined again when it is made accessible.
    let mut guard = mapping(50, 1, "mr mw me ac");
    guard.protection = 0;
    let parts = vec![mapping(0, 50, PLAIN), guard, mapping(51, 49, PLAIN)];
    let sandbox = sandbox(&[(1, vec![mapping(0, 100, PLAIN)]), (2, parts)]);
    let runs = [run(2, 0, 100, 1000), run(3, 0, 49, 1000)];
    let stays = planned(&sandbox, &runs).stays(3, &sandbox.spaces[1]);
    assert_eq!(stays.mappings, [range(0, 50), range(50, 51), range(51, 100)]);
    assert_eq!(stays.drop, []);
}

proptest::proptest! {
    /// Whoever has written to what: each gets its own memory, and nothing is written that it has already.
    #[test]
    fn each_gets_its_own(
        parents in proptest::collection::vec(0usize..8, 1..8),
        writes in proptest::collection::vec((0usize..9, 0u64..96, 1u64..40, 0u64..6), 0..40),
    ) {
        let halves = || vec![mapping(0, 48, PLAIN), mapping(48, 48, "rd wr mr mw me ac nr")];
        let mut all = vec![(1, halves())];
        for (made, parent) in parents.iter().enumerate() {
            all.push((2 + (*parent).min(made) as i32, halves()));
        }
        let sandbox = sandbox(&all);
        let mut pages = vec![HashMap::new(); all.len()];
        for (who, first, count, what) in writes {
            let count_of = pages.len();
            for page in first..(first + count).min(96) {
                pages[who % count_of].insert(page, what * 1000 + page);
            }
        }
        let mut runs = Vec::new();
        for (who, memory) in pages.iter().enumerate() {
            let mut own: Vec<_> = memory.iter().collect();
            own.sort();
            runs.extend(own.iter().map(|(page, at)| run(2 + who as Object, **page, 1, **at)));
        }
        let heritage = planned(&sandbox, &runs);
        proptest::prop_assert_eq!(carried_out(&sandbox, &heritage, &runs), wanted(&sandbox, &runs));
        let rest: u64 = rest(&heritage, &runs).iter().map(|run| run.pages).sum();
        proptest::prop_assert!(heritage.there().is_empty() || rest < runs.len() as u64);
    }
}

#[test]
fn packed_content_is_shared_by_block() {
    let space = || vec![mapping(0, 100, PLAIN)];
    let sandbox = sandbox(&[(1, space()), (2, space())]);
    let packed = |object, first, block| Run {
        source: Source::Packed { block, first: 3 },
        ..run(object, first, 40, 0)
    };
    let runs = [packed(2, 0, 7), packed(2, 50, 8), packed(3, 0, 7), packed(3, 50, 9)];
    let heritage = planned(&sandbox, &runs);
    assert_eq!(heritage.ahead(2, &sandbox.spaces[0]).unwrap().content, [packed(2, 0, 7)]);
    assert_eq!(rest(&heritage, &runs), [packed(2, 50, 8), packed(3, 50, 9)]);
}
