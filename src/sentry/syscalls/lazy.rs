//! Calls that tell memory of an image from plain memory (`sentry::lazy`): what they are about becomes plain
//! memory first, then the kernel makes them.
//!
//! The guests are stopped for that, which backs the call out: the kernel makes it again afterwards, and then
//! nothing is left to do.

use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::args::{Addr, Advice, Flags, In, Iovec, Len, PidFd, PrctlOption, ULong, WideFlags};
use crate::notify::{Answer, GuestMemory, hand_over};
use crate::sentry::call::TaskCall;
use crate::sentry::lazy::Unsettled;
use crate::sentry::task::Status;

/// Advice that gives pages away: what they held does not matter any more.
const AWAY: [i32; 3] = [libc::MADV_DONTNEED, libc::MADV_FREE, MADV_DONTNEED_LOCKED];

/// Advice that means something else for a file, or that it does not take (mm/madvise.c, mm/khugepaged.c,
/// mm/ksm.c).
pub const ADVICE: &[u64] = &[
    libc::MADV_DONTNEED as u64,
    libc::MADV_FREE as u64,
    libc::MADV_REMOVE as u64,
    libc::MADV_MERGEABLE as u64,
    libc::MADV_HUGEPAGE as u64,
    libc::MADV_WIPEONFORK as u64,
    MADV_DONTNEED_LOCKED as u64,
    MADV_COLLAPSE,
    MADV_GUARD_INSTALL,
];

// include/uapi/asm-generic/mman-common.h
const MADV_DONTNEED_LOCKED: i32 = 24;
const MADV_COLLAPSE: u64 = 25;
const MADV_GUARD_INSTALL: u64 = 102;

/// Names a range (prctl(2)): plain memory only, a file has its own name. A row's exception names it.
pub const PR_SET_VMA: u64 = 0x5356_4d41;

/// UIO_MAXIOV (include/uapi/linux/uio.h).
const MOST_RANGES: u64 = 1024;

/// Serves madvise(2).
pub async fn madvise(call: TaskCall, addr: Addr, length: Len, advice: Advice) -> Answer {
    advised(call, vec![range(addr.0, length.0)], advice).await
}

/// Serves process_madvise(2). (To other processes only advice can be given that is the same for all memory.)
pub async fn process_madvise(
    call: TaskCall,
    _pidfd: PidFd,
    iovec: In<Iovec>,
    vlen: Len,
    advice: Advice,
    _flags: Flags,
) -> Answer {
    // What is wrong with them the kernel says.
    let ranges = ranges(call.memory(), iovec.address, vlen.0).unwrap_or_default();
    advised(call, ranges, advice).await
}

/// Serves prctl(2) of PR_SET_VMA.
pub async fn prctl(
    call: TaskCall,
    _option: PrctlOption,
    _what: ULong,
    start: ULong,
    length: ULong,
    _name: ULong,
) -> Answer {
    let ranges = vec![range(start.0, length.0)];
    settled(call, ranges, |pid, ranges| Unsettled::Ranges { pid, ranges, given_away: false }).await
}

/// Serves mremap(2), which wants one mapping where the guest knows of one.
pub async fn mremap(
    call: TaskCall,
    old: Addr,
    old_size: Len,
    _new_size: Len,
    _flags: WideFlags,
    _new: Addr,
) -> Answer {
    let old = range(old.0, old_size.0);
    settled(call, vec![old.clone()], |pid, _| Unsettled::Whole { pid, range: old }).await
}

async fn advised(call: TaskCall, ranges: Vec<Range<u64>>, advice: Advice) -> Answer {
    let given_away = AWAY.contains(&advice.0);
    settled(call, ranges, |pid, ranges| Unsettled::Ranges { pid, ranges, given_away }).await
}

/// Whole pages.
fn range(start: u64, length: u64) -> Range<u64> {
    const PAGE: u64 = 4096;
    start..start.saturating_add(length).checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}

fn ranges(memory: GuestMemory<'_>, address: u64, count: u64) -> Result<Vec<Range<u64>>, Errno> {
    let count = count.min(MOST_RANGES) as usize;
    let mut bytes = vec![0; count * 16];
    memory.read(address, &mut bytes)?;
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    Ok(bytes.chunks_exact(16).map(|it| range(word(&it[..8]), word(&it[8..]))).collect())
}

/// Lets the call go on once nothing of the image is left in the ranges.
async fn settled(
    call: TaskCall,
    ranges: Vec<Range<u64>>,
    what: impl FnOnce(i32, Vec<Range<u64>>) -> Unsettled,
) -> Answer {
    let tid = call.received().tid;
    let Some(lazy) = call.kernel.lazy().filter(|lazy| lazy.has(tid, &ranges)) else {
        return Answer::Continue;
    };
    hand_over();
    let Ok(status) = Status::read(tid) else { return Answer::Continue };
    let (lazy, kernel) = (Arc::clone(lazy), Arc::clone(&call.kernel));
    let what = what(status.tgid, ranges);
    // Not a part of this call, which is backed out as the guests are stopped.
    let done = tokio::task::spawn_blocking(move || lazy.settle(&kernel, &what));
    match done.await {
        Ok(Ok(())) => Answer::Continue,
        // (The reason is in the log.)
        _ => Answer::Fail(Errno::EAGAIN),
    }
}
