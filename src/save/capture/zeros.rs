//! Pages that are all zeros, found by the process that has them.
//!
//! To read memory of another process is to copy it, twice (mem_rw in fs/proc/base.c). Who looks at memory of its own
//! does so ten times as fast, so a hand looks ([`Table::look`]), and what is zero is never read.
//!
//! Nothing depends on it: what is not looked at, for whatever reason, is read.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::memory::join;
use crate::save::hand::{Hand, HandError};
use crate::save::state::{Mapping, MappingKind};
use crate::sys::pagemap::Ranges;
use crate::sys::process;
use crate::sys::ptrace::Stopped;

const PAGE: u64 = 4096;
/// Fewer bytes in a row are read sooner than looked at.
const WORTH: u64 = 256 << 10;
/// A hand looks at so many at once, in so many pieces: whoever waits for the thread that traces gets its turn in
/// between, and a guest's page tables are not walked for long.
const AT_ONCE: u64 = 256 << 20;
const MOST: usize = 256;
/// At first it looks at one page in so many bytes.
const SAMPLE: u64 = 16 * PAGE;
/// If fewer of them than one in so many are zero, at no more.
const RARE: u64 = 16;
/// All copies of a save get so long for that together, and each process that stands still, even if all has to be read
/// from a disk first. Guests that run could change what a copy does, as they could kill it.
pub const LONGEST: Duration = Duration::from_secs(10);

/// The parts of ranges, which are in order, that lie within one.
pub fn cut(ranges: &[(u64, u64)], start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = ranges.partition_point(|range| range.1 <= start);
    let inside = ranges[first..].iter().take_while(move |range| range.0 < end);
    inside.map(move |range| (range.0.max(start), range.1.min(end)))
}

/// What a process may look at of pages of its own: plain memory that it can read, in pieces that are large.
pub fn worth_a_look(own: &[(u64, u64)], mappings: &[Mapping]) -> Ranges {
    let is_plain = |mapping: &&Mapping| {
        matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Heap | MappingKind::Stack)
            && mapping.protection & libc::PROT_READ as u32 != 0
    };
    let pieces = mappings.iter().filter(is_plain);
    let pieces = pieces.flat_map(|mapping| cut(own, mapping.start, mapping.end));
    pieces.filter(|(start, end)| end - start >= WORTH).collect()
}

/// Which pages of these are zero, as the hand's process says, which stands still with all others.
pub fn look(hand: &mut Hand, pieces: &[(u64, u64)]) -> Result<Ranges, HandError> {
    let until = Instant::now() + LONGEST;
    let mut zeros = Vec::new();
    for portion in &in_portions(pieces) {
        let found = look_at_portion(hand, portion, until)?;
        found.into_iter().for_each(|range| join(&mut zeros, range));
    }
    Ok(zeros)
}

/// The same of one of the portions.
fn look_at_portion(
    hand: &mut Hand,
    portion: &[(u64, u64)],
    until: Instant,
) -> Result<Ranges, HandError> {
    let mut zeros = Vec::new();
    // Of most memory nothing is zero: a few of the pages tell.
    let samples: Vec<_> = portion.iter().map(|it| (*it, SAMPLE)).collect();
    let count: u64 = samples.iter().map(|((start, end), step)| (end - start).div_ceil(*step)).sum();
    let mut found = 0;
    look_at(hand, &samples, until, |_| found += 1)?;
    if found * RARE >= count {
        let all: Vec<_> = portion.iter().map(|it| (*it, PAGE)).collect();
        look_at(hand, &all, until, |page| join(&mut zeros, (page, page + PAGE)))?;
    }
    Ok(zeros)
}

/// Pieces, cut so that a table has room for each portion of them.
pub fn in_portions(pieces: &[(u64, u64)]) -> Vec<Ranges> {
    let mut portions = Vec::new();
    let (mut portion, mut bytes) = (Ranges::new(), 0);
    for (start, end) in pieces {
        let mut at = *start;
        while at < *end {
            let behind = (*end).min(at + (AT_ONCE - bytes));
            portion.push((at, behind));
            bytes += behind - at;
            at = behind;
            if bytes == AT_ONCE || portion.len() == MOST {
                portions.push(std::mem::take(&mut portion));
                bytes = 0;
            }
        }
    }
    if !portion.is_empty() {
        portions.push(portion);
    }
    portions
}

/// Has the hand look at every page of each piece that is a multiple of so many bytes behind its beginning; tells of
/// those that are zero.
fn look_at(
    hand: &mut Hand,
    pieces: &[((u64, u64), u64)],
    until: Instant,
    mut found: impl FnMut(u64),
) -> Result<(), HandError> {
    let mut table = hand.table();
    let ask = |((start, end), step): &((u64, u64), u64)| {
        let pages = (end - start).div_ceil(*step);
        let map = table.room(pages.div_ceil(64) as usize * 8);
        table.look((*start, *step), pages, map);
        (*start, *step, pages, map)
    };
    let asked: Vec<_> = pieces.iter().map(ask).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let done = hand.run_until(&table, until)?;
    for (start, step, pages, map) in asked {
        // (It has what is asked for, whatever the process has made of it.)
        let marks = done.bytes(map);
        let is_marked = |page: &u64| marks[*page as usize / 8] >> (page % 8) & 1 == 1;
        (0..pages).filter(is_marked).for_each(|page| found(start + page * step));
    }
    Ok(())
}

/// The same of one of the portions and a copy of a process, whose agent lies at `area`. On the thread that traces.
pub fn look_in_copy(
    (pid, pidfd): (i32, BorrowedFd<'_>),
    area: u64,
    portion: &[(u64, u64)],
    until: Instant,
) -> Result<Ranges, HandError> {
    // (As long as this thread has not heard of its end its number stays its own.)
    if process::has_ended(pidfd) {
        return Err(HandError::Killed);
    }
    // What signals it is sent meanwhile is forgotten with the hand.
    look_at_portion(&mut Hand::new(Stopped::still(pid), area), portion, until)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::errno::Errno;
    use nix::sys::signal::{SigSet, Signal, kill};
    use nix::unistd::Pid;

    use super::*;
    use crate::save::hand;
    use crate::save::restore::seed::tests::plant;

    fn mapping(start: u64, end: u64, kind: MappingKind, protection: i32) -> Mapping {
        let (flags, name, guards) = (String::new(), None, Vec::new());
        Mapping { start, end, protection: protection as u32, kind, flags, name, guards }
    }

    #[test]
    fn large_pieces_of_readable_memory_are_worth_a_look() {
        const MIB: u64 = 1 << 20;
        let (both, none) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_NONE);
        let mappings = [
            mapping(MIB, 2 * MIB, MappingKind::Anonymous, both),
            mapping(2 * MIB, 3 * MIB, MappingKind::Anonymous, none),
            mapping(3 * MIB, 4 * MIB, MappingKind::Vdso, both),
            mapping(4 * MIB, 5 * MIB, MappingKind::Heap, libc::PROT_READ),
        ];
        let own = [(MIB, MIB + PAGE), (MIB + WORTH, 4 * MIB + WORTH)];
        let pieces = worth_a_look(&own, &mappings);
        assert_eq!(pieces, [(MIB + WORTH, 2 * MIB), (4 * MIB, 4 * MIB + WORTH)]);
        let (from, to) = (0, AT_ONCE + MIB);
        let portions = in_portions(&[(from, to), (to + MIB, to + 2 * MIB)]);
        assert_eq!(
            portions,
            [vec![(from, AT_ONCE)], vec![(AT_ONCE, to), (to + MIB, to + 2 * MIB)]]
        );
        let many: Ranges = (0..MOST as u64 + 1).map(|it| (it * MIB, it * MIB + WORTH)).collect();
        assert_eq!(in_portions(&many).iter().map(Vec::len).collect::<Vec<_>>(), [MOST, 1]);
    }

    #[test]
    fn a_process_finds_its_zeros() {
        // It tells when to look.
        SigSet::from_iter([Signal::SIGCHLD]).thread_block().unwrap();
        const PAGES: u64 = 700;
        let (mut child, mut hand, _courier) = plant();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let arguments =
            [0, PAGES * PAGE, (libc::PROT_READ | libc::PROT_WRITE) as u64, flags, u64::MAX, 0];
        let start = hand.call(libc::SYS_mmap, arguments).unwrap();
        let whole = [(start, start + PAGES * PAGE)];
        assert_eq!(look(&mut hand, &whole).unwrap(), whole);
        // The first byte of a page, the last of one, and some in between.
        let changed =
            [(3, 0), (64, PAGE - 1), (65, 127), (66, 128), (67, 2048 + 8), (PAGES - 1, 4000)];
        for (page, byte) in changed {
            hand::write(hand.tid(), start + page * PAGE + byte, &[1]).unwrap();
        }
        let at = |page: u64| start + page * PAGE;
        let zeros = [(at(0), at(3)), (at(4), at(64)), (at(68), at(PAGES - 1))];
        assert_eq!(look(&mut hand, &whole).unwrap(), zeros);
        let two = [(at(2), at(5)), (at(63), at(70))];
        let zeros = [(at(2), at(3)), (at(4), at(5)), (at(63), at(64)), (at(68), at(70))];
        assert_eq!(look(&mut hand, &two).unwrap(), zeros);
        // Where (nearly) nothing is zero not all is looked at.
        for page in (0..PAGES).step_by((SAMPLE / PAGE) as usize) {
            hand::write(hand.tid(), at(page), &[1]).unwrap();
        }
        assert_eq!(look(&mut hand, &whole).unwrap(), []);
        let gone = look(&mut hand, &[(PAGE, 2 * PAGE)]).unwrap_err();
        assert_eq!(gone, HandError::Astray(libc::SIGSEGV));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_hand_that_does_not_come_to_an_end_is_given_up() {
        let (mut child, mut hand, _courier) = plant();
        let mut table = hand.table();
        table.call(libc::SYS_pause, []);
        let soon = Instant::now() + Duration::from_millis(20);
        let given_up = hand.run_until(&table, soon).unwrap_err();
        assert_eq!(given_up.errno(), Some(Errno::ETIME));
        assert_eq!(hand.call(libc::SYS_getpid, []).unwrap(), u64::from(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_hand_that_is_sent_signals_all_the_time_is_given_up() {
        SigSet::from_iter([Signal::SIGCHLD]).thread_block().unwrap();
        let (mut child, mut hand, _courier) = plant();
        // (From its first breakpoint on it does not block SIGTRAP.)
        hand.call(libc::SYS_getpid, []).unwrap();
        let mut table = hand.table();
        table.call(libc::SYS_pause, []);
        let (pid, is_done) = (Pid::from_raw(child.id() as i32), AtomicBool::new(false));
        let given_up = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    kill(pid, Signal::SIGTRAP).unwrap();
                }
            });
            let given_up = hand.run_until(&table, Instant::now() + Duration::from_secs(600));
            is_done.store(true, Ordering::Relaxed);
            given_up
        });
        assert_eq!(given_up.unwrap_err().errno(), Some(Errno::EINTR));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_asked_of_a_copy_that_has_ended() {
        use std::os::fd::AsFd;
        let (mut child, hand, _courier) = plant();
        let pidfd = process::pidfd_open(hand.tid(), false).unwrap();
        assert!(!process::has_ended(pidfd.as_fd()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process::has_ended(pidfd.as_fd()));
        // (The number of somebody who lives.)
        let copy = (std::process::id() as i32, pidfd.as_fd());
        let until = Instant::now() + LONGEST;
        assert_eq!(look_in_copy(copy, hand.area(), &[], until), Err(HandError::Killed));
    }
}
