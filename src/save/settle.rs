//! Memory of guests that is mapped from an image becomes plain memory (`sentry::lazy`).
//!
//! Owns the doing, while all stand still: a piece is read, plain memory is mapped over it by a hand, and the
//! content is written back. Nobody sees it in between. What has been mapped anew joins the mappings beside
//! it, as memory would have that was never a file's.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::save::capture::filters::{self, Filters};
use crate::save::capture::maps::{self, Line};
use crate::save::capture::{instruction_of, lend, threads_of};
use crate::save::error::SaveError;
use crate::save::hand::{self, Hand, HandError};
use crate::save::restore::space::{ADVICE, MLOCK_ONFAULT};
use crate::save::state::Process;
use crate::sentry::{Kernel, KernelError, MappedImage, Tracees, Unsettled, filter_count};
use crate::sys::errno_of;
use crate::sys::pagemap;

const PAGE: usize = 4096;
/// So much is changed at once.
const PORTION: u64 = 4 << 20;
/// What is asked for is widened to whole multiples of this: giving away much by little does not stop the
/// guests for each.
const WIDE: u64 = 16 << 20;
/// Guests stand still for so much, and go on before the next.
const AT_ONCE: u64 = 32 << 20;

/// What is settled of one process.
#[derive(Debug, Clone)]
enum What {
    /// What is the image's there, widened; nobody wants what is in `away`.
    Ranges { ranges: Vec<Range<u64>>, away: Vec<Range<u64>> },
    /// One mapping.
    Whole(Range<u64>),
    /// So many bytes of what is the image's.
    Some(u64),
}

/// A piece of a mapping that is made anew.
#[derive(Debug, Clone)]
struct Piece<'l> {
    range: Range<u64>,
    line: &'l Line,
    /// Whether all of it has content, or what of it the process has touched, or none of it matters.
    content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    All,
    Touched,
    Nothing,
}

/// Settles what is asked for.
///
/// # Errors
/// Why that is not possible; all guests are as they were then, or have been ended.
pub fn settle(
    kernel: &Arc<Kernel>,
    image: MappedImage,
    unsettled: &Unsettled,
) -> Result<(), SaveError> {
    match unsettled {
        Unsettled::Ranges { pid, ranges, given_away } => {
            let away = if *given_away { ranges.clone() } else { Vec::new() };
            let what = What::Ranges { ranges: ranges.iter().map(widened).collect(), away };
            while_stopped(kernel, image, move |_| Ok(vec![*pid]), &what).map(drop)
        }
        Unsettled::Whole { pid, range } => {
            let what = What::Whole(range.clone());
            while_stopped(kernel, image, move |_| Ok(vec![*pid]), &what).map(drop)
        }
        Unsettled::Everything => everything(kernel, image),
    }
}

/// A little of it at a time, until there is none.
fn everything(kernel: &Arc<Kernel>, image: MappedImage) -> Result<(), SaveError> {
    let all =
        |kernel: &Kernel| Ok(kernel.census_of_stopped()?.iter().map(|guest| guest.pid).collect());
    let begun = Instant::now();
    let mut rest = FIRST_REST;
    loop {
        let why = match while_stopped(kernel, image, all, &What::Some(AT_ONCE)) {
            Ok(Settled { bytes: 1.., .. }) => {
                rest = FIRST_REST;
                continue;
            }
            Ok(Settled { left: None, .. }) => return Ok(()),
            Ok(Settled { left: Some(why), .. }) | Err(why) => why,
        };
        if begun.elapsed() > LONGEST || kernel.killed().is_some() {
            return Err(why);
        }
        // Nothing tells that a process has come out of vfork(2), or can be stopped again.
        std::thread::sleep(rest);
        rest = (rest * 2).min(LONGEST_REST);
    }
}

/// So long it is tried again where something cannot be stopped, or a process has no thread that could lend a
/// hand. Who waits for the image is let in after 45 s (lease-break-time in proc_sys_fs(5)).
const LONGEST: Duration = Duration::from_secs(5);
const FIRST_REST: Duration = Duration::from_millis(2);
const LONGEST_REST: Duration = Duration::from_millis(256);

/// What has been done.
#[derive(Debug, Default)]
struct Settled {
    bytes: u64,
    /// Why something of what was wanted could not be.
    left: Option<SaveError>,
}

fn widened(range: &Range<u64>) -> Range<u64> {
    range.start / WIDE * WIDE..range.end.checked_next_multiple_of(WIDE).unwrap_or(u64::MAX)
}

/// Settles something of these processes while none runs.
fn while_stopped(
    kernel: &Arc<Kernel>,
    image: MappedImage,
    pids: impl FnOnce(&Kernel) -> Result<Vec<i32>, KernelError>,
    what: &What,
) -> Result<Settled, SaveError> {
    let gate = Arc::clone(kernel.gate().ok_or(SaveError::refused("nothing runs in it"))?);
    let done = kernel.while_stopped(|| {
        let (pids, what, log) = (pids(kernel)?, what.clone(), Arc::clone(kernel));
        let work = move |tracees: &mut Tracees| {
            let before = filter_count(log.init_pid()).unwrap_or(0);
            let filters = Filters { log: log.filters(), before, gate: &gate };
            let done = of_processes(tracees, filters, &pids, image, &what);
            gate.pass_no_more();
            done
        };
        let done = kernel.tracer().run(work).map_err(KernelError::Tracer)?;
        if let Err(Failed::Lost(why)) = &done {
            // A program must not go on with memory that is not its own: before any is let go.
            kernel.limit_reached(
                "lazy",
                "memory was lost; every process was killed".to_owned(),
                format!("memory of its programs was lost and everything was killed: {why}"),
            );
            kernel.kill(libc::SIGKILL)?;
        }
        Ok(done)
    })?;
    done.map_err(|(Failed::Before(why) | Failed::Lost(why))| why)
}

/// How far it had come.
#[derive(Debug)]
enum Failed {
    /// All is as it was.
    Before(SaveError),
    /// Something is gone.
    Lost(SaveError),
}

fn of_processes(
    tracees: &mut Tracees,
    filters: Filters<'_>,
    pids: &[i32],
    image: MappedImage,
    what: &What,
) -> Result<Settled, Failed> {
    let mut settled = Settled::default();
    for pid in pids {
        let what = match what {
            What::Some(bytes) if settled.bytes >= *bytes => break,
            What::Some(bytes) => What::Some(bytes - settled.bytes),
            other => other.clone(),
        };
        match of_process(tracees, filters, *pid, image, &what) {
            Ok(bytes) => settled.bytes += bytes,
            // (One that has ended meanwhile has nothing left.)
            Err(Failed::Before(_)) if threads_of(*pid).unwrap_or_default().is_empty() => {}
            Err(Failed::Before(why)) if matches!(what, What::Some(_)) => settled.left = Some(why),
            Err(failed) => return Err(failed),
        }
    }
    Ok(settled)
}

fn of_process(
    tracees: &mut Tracees,
    filters: Filters<'_>,
    pid: i32,
    image: MappedImage,
    what: &What,
) -> Result<u64, Failed> {
    let who = format!("process {pid} of the host");
    // (One that has ended has none.)
    let tids = threads_of(pid).unwrap_or_default();
    let Some(tid) = tids.first().copied() else { return Ok(0) };
    let failed = |errno: Errno| SaveError::failed(format!("{who}: its mappings"), errno.desc());
    let is_there = |line: &Line| is_images(line, image);
    if !maps::list(tid).map_err(failed).map_err(Failed::Before)?.iter().any(is_there) {
        return Ok(0);
    }
    let lines = maps::read(tid).map_err(failed).map_err(Failed::Before)?;
    let pieces = match what {
        // What is mapped anew has no guards (MADV_GUARD_INSTALL).
        What::Whole(range) if has_guards(tid, range) => plan(&lines, image, &around(range)),
        what => plan(&lines, image, what),
    };
    if pieces.is_empty() {
        return Ok(0);
    }
    let mut process = Process::default();
    filters::capture_all(filters, &tids, &who, &mut process).map_err(Failed::Before)?;
    let instruction = instruction_of(tid, &who).map_err(Failed::Before)?;
    let mut lent = Err(SaveError::failed(&who, "it has no thread"));
    // (One that waits in vfork(2) has nothing to lend.)
    for tid in &tids {
        lent = lend(tracees, filters.gate, (*tid, &who), None, instruction);
        if lent.is_ok() {
            break;
        }
    }
    let (mut borrowed, _) = lent.map_err(Failed::Before)?;
    borrowed.hand.respect(filters::programs(&process));
    let done = pieces.iter().try_fold(0, |so_far, piece| {
        renew(&mut borrowed.hand, piece, image, &who)
            .map(|()| so_far + piece.range.end - piece.range.start)
    });
    match borrowed.end() {
        Ok(stopped) => tracees.put(stopped),
        // Whatever was not done for it, it needs no more.
        Err(HandError::Killed) if !matches!(done, Err(Failed::Lost(_))) => return Ok(0),
        Err(HandError::Killed) => {}
        Err(error) => return Err(Failed::Lost(SaveError::of(&who)(error))),
    }
    done
}

fn is_images(line: &Line, image: MappedImage) -> bool {
    !line.shared && (line.device, line.inode) == (image.device, image.inode)
}

/// What is to be made anew, in portions.
fn plan<'l>(lines: &'l [Line], image: MappedImage, what: &What) -> Vec<Piece<'l>> {
    match what {
        What::Whole(range) if let Some(whole) = whole(lines, image, range) => whole,
        What::Whole(range) => plan(lines, image, &around(range)),
        What::Ranges { ranges, away } => {
            let mut pieces = Vec::new();
            // Where it comes to what cannot be given away, the call ends, and what lies behind stays (madvise(2)).
            let stays = |line: &&Line| ["lo", "pf", "io", "ht"].iter().any(|flag| line.has(flag));
            let overlaps =
                |line: &Line| away.iter().any(|it| cut(&(line.start..line.end), it).is_some());
            let away = if lines.iter().filter(stays).any(overlaps) { &[][..] } else { away };
            for line in lines.iter().filter(|line| is_images(line, image)) {
                let asked = ranges.iter().filter_map(|range| cut(&(line.start..line.end), range));
                for range in apart(asked.collect()) {
                    add(&mut pieces, line, range, Content::All, away);
                }
            }
            pieces
        }
        What::Some(bytes) => {
            let mut pieces: Vec<Piece<'l>> = Vec::new();
            let mut left = *bytes;
            for line in lines.iter().filter(|line| is_images(line, image)) {
                if left == 0 {
                    break;
                }
                let end = line.end.min(line.start.saturating_add(left));
                left -= end - line.start;
                add(&mut pieces, line, line.start..end, Content::All, &[]);
            }
            pieces
        }
    }
}

/// What is the image's around a range.
fn around(range: &Range<u64>) -> What {
    What::Ranges { ranges: vec![widened(range)], away: Vec::new() }
}

fn has_guards(tid: i32, range: &Range<u64>) -> bool {
    let pagemap = File::open(format!("/proc/{tid}/pagemap"));
    pagemap
        .is_ok_and(|it| pagemap::guards(&it, range.start, range.end).is_ok_and(|it| !it.is_empty()))
}

/// All of a range, if but for the image it is one mapping.
fn whole<'l>(lines: &'l [Line], image: MappedImage, range: &Range<u64>) -> Option<Vec<Piece<'l>>> {
    let first = lines.partition_point(|line| line.end <= range.start);
    let all = lines[first..].iter().take_while(|line| line.start < range.end);
    let (mut pieces, mut next) = (Vec::new(), range.start);
    let mut like: Option<&Line> = None;
    for line in all {
        let is_image = is_images(line, image);
        let is_plain = is_image || !line.has_file() && !line.shared && !line.has("gd");
        let is_like = like.is_none_or(|it| {
            (it.protection, it.key, &it.flags) == (line.protection, line.key, &line.flags)
        });
        if !is_plain || !is_like || line.start > next {
            return None;
        }
        like = Some(line);
        let part = cut(&(line.start..line.end), range)?;
        next = part.end;
        let content = if is_image { Content::All } else { Content::Touched };
        add(&mut pieces, line, part, content, &[]);
    }
    (next >= range.end).then_some(pieces)
}

/// Adds a range in portions; what nobody wants of it is a portion of its own.
fn add<'l>(
    pieces: &mut Vec<Piece<'l>>,
    line: &'l Line,
    range: Range<u64>,
    content: Content,
    away: &[Range<u64>],
) {
    let mut at = range.start;
    while at < range.end {
        let is_away = |at: u64| away.iter().any(|it| it.contains(&at));
        let borders = away.iter().flat_map(|it| [it.start, it.end]).filter(|it| *it > at);
        let end = borders.chain([range.end, at.saturating_add(PORTION)]).min().unwrap_or(range.end);
        let content = if is_away(at) { Content::Nothing } else { content };
        pieces.push(Piece { range: at..end, line, content });
        at = end;
    }
}

/// Ranges that overlap, as those that do not.
fn apart(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut apart: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match apart.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => apart.push(range),
        }
    }
    apart
}

/// What is in both.
fn cut(one: &Range<u64>, other: &Range<u64>) -> Option<Range<u64>> {
    let both = one.start.max(other.start)..one.end.min(other.end);
    (both.start < both.end).then_some(both)
}

/// Puts plain memory with the same content in place of a piece.
fn renew(hand: &mut Hand, piece: &Piece<'_>, image: MappedImage, who: &str) -> Result<(), Failed> {
    let tid = hand.tid();
    let Range { start, end } = piece.range;
    let what = format!("{who}: its memory at {start:x}-{end:x}");
    let failed = |errno: Errno| SaveError::failed(&what, errno.desc());
    let memory = hand::memory(tid, true).map_err(failed).map_err(Failed::Before)?;
    let content = read(tid, &memory, piece).map_err(failed).map_err(Failed::Before)?;
    let mut table = hand.table();
    let (line, length) = (piece.line, end - start);
    let mut flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    if line.has("nr") {
        flags |= libc::MAP_NORESERVE as u64;
    }
    // What counts against what may be committed does so again: writable memory does.
    let own = u64::from(line.protection);
    let first = if line.has("ac") { own | libc::PROT_WRITE as u64 } else { own };
    table.call(libc::SYS_mmap, [start, length, first, flags, u64::MAX, 0]);
    if first != own && line.key == 0 {
        table.call(libc::SYS_mprotect, [start, length, own]);
    }
    for (flag, advice) in ADVICE {
        if line.has(flag) {
            table.attempt(libc::SYS_madvise, [start, length, advice as u64]);
        }
    }
    if line.has("lo") {
        let on_fault = if line.has("lf") { MLOCK_ONFAULT } else { 0 };
        table.attempt(libc::SYS_mlock2, [start, length, on_fault]);
    }
    if line.key != 0 {
        let (protection, key) = (u64::from(line.protection), u64::from(line.key));
        table.attempt(libc::SYS_pkey_mprotect, [start, length, protection, key]);
    }
    let made = hand.run(&table);
    // (Nothing else is mapped there than before, or what was mapped anew.)
    let is_there = |line: &Line| is_images(line, image) && line.start <= start && end <= line.end;
    if made.is_err() && maps::list(tid).is_ok_and(|lines| lines.iter().any(is_there)) {
        return made.map(drop).map_err(SaveError::of(&what)).map_err(Failed::Before);
    }
    write(&memory, &content).map_err(|error| Failed::Lost(SaveError::failed(&what, error)))?;
    made.map(drop).map_err(SaveError::of(&what)).map_err(Failed::Before)
}

/// Content by address.
fn read(tid: i32, memory: &File, piece: &Piece<'_>) -> Result<Vec<(u64, Vec<u8>)>, Errno> {
    let Range { start, end } = piece.range;
    let ranges = match piece.content {
        Content::Nothing => Vec::new(),
        Content::All => vec![(start, end)],
        Content::Touched => {
            let pagemap = File::open(format!("/proc/{tid}/pagemap")).map_err(|_| Errno::EIO)?;
            pagemap::own_pages(&pagemap, start, end)?
        }
    };
    let content = ranges.into_iter().map(|(from, to)| {
        let mut bytes = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut bytes, from).map(|()| (from, bytes))
    });
    content.collect::<Result<_, _>>().map_err(|error| errno_of(&error))
}

/// Writes what is not zero: plain memory is.
fn write(memory: &File, content: &[(u64, Vec<u8>)]) -> std::io::Result<()> {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    for (start, bytes) in content {
        let is_zero: Vec<bool> = bytes.chunks(PAGE).map(|page| *page == ZEROS[..]).collect();
        let mut at = 0;
        for same in is_zero.chunk_by(|a, b| a == b) {
            let length = (same.len() * PAGE).min(bytes.len() - at);
            if !same[0] {
                memory.write_all_at(&bytes[at..at + length], start + at as u64)?;
            }
            at += length;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: MappedImage = MappedImage { device: 7, inode: 9 };

    fn line(start: u64, end: u64, inode: u64) -> Line {
        Line {
            start,
            end,
            protection: 3,
            shared: false,
            offset: 0,
            device: if inode == 0 { 0 } else { 7 },
            inode,
            name: Vec::new(),
            flags: "rd wr mr mw me ac".to_owned(),
            key: 0,
        }
    }

    fn ranges(pieces: &[Piece<'_>]) -> Vec<(Range<u64>, Content)> {
        pieces.iter().map(|piece| (piece.range.clone(), piece.content)).collect()
    }

    #[test]
    fn what_is_given_away_is_not_read() {
        let lines = [line(0x1000, 0x9000, 9), line(0x9000, 0xa000, 0), line(0xa000, 0xb000, 5)];
        let given = 0x3000..0x5000;
        let what = What::Ranges { ranges: Vec::from([widened(&given)]), away: Vec::from([given]) };
        let expected = [
            (0x1000..0x3000, Content::All),
            (0x3000..0x5000, Content::Nothing),
            (0x5000..0x9000, Content::All),
        ];
        assert_eq!(ranges(&plan(&lines, IMAGE, &what)), expected);
    }

    #[test]
    fn one_mapping_is_made_anew_with_what_lies_between() {
        let lines = [line(0x1000, 0x2000, 0), line(0x2000, 0x5000, 9), line(0x5000, 0x9000, 0)];
        let expected = [
            (0x1800..0x2000, Content::Touched),
            (0x2000..0x5000, Content::All),
            (0x5000..0x6000, Content::Touched),
        ];
        let what = What::Whole(0x1800..0x6000);
        assert_eq!(ranges(&plan(&lines, IMAGE, &what)), expected);
        // It never was one: only what is the image's.
        let mut other = lines;
        other[2].protection = 1;
        let expected = [(0x2000..0x5000, Content::All)];
        assert_eq!(ranges(&plan(&other, IMAGE, &what)), expected);
    }

    #[test]
    fn so_many_bytes_at_a_time_in_portions() {
        let lines = [line(0, 6 << 20, 9), line(8 << 20, 9 << 20, 9)];
        let pieces = plan(&lines, IMAGE, &What::Some(7 << 20));
        let sizes: Vec<u64> = pieces.iter().map(|it| it.range.end - it.range.start).collect();
        assert_eq!(sizes, [4 << 20, 2 << 20, 1 << 20]);
        assert_eq!(ranges(&plan(&lines, IMAGE, &What::Some(4096))), [(0..4096, Content::All)]);
    }

    #[test]
    fn overlapping_ranges_are_joined() {
        assert_eq!(apart(vec![5..9, 0..2, 1..3, 9..10]), [0..3, 5..10]);
    }
}
