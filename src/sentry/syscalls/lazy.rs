//! Calls that tell memory of an image from plain memory (`sentry::lazy`): what they are about becomes plain
//! memory first, then the kernel makes them.
//!
//! The guests are stopped for that, which backs the call out: the kernel makes it again afterwards, and then
//! nothing is left to do.

use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::args::{
    Addr, Advice, Flags, In, InOut, IoContextCell, Iovec, Len, PidFd, PrctlOption, UInt, ULong,
    WideFlags,
};
use crate::notify::{Answer, GuestMemory, hand_over};
use crate::sentry::call::TaskCall;
use crate::sentry::lazy::{Lazy, Unsettled};
use crate::sentry::task::Status;

/// Advice that gives pages away for sure: what they held does not matter any more.
const AWAY: [i32; 2] = [libc::MADV_DONTNEED, MADV_DONTNEED_LOCKED];

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
    MADV_GUARD_REMOVE,
];

// include/uapi/asm-generic/mman-common.h
const MADV_DONTNEED_LOCKED: i32 = 24;
const MADV_COLLAPSE: u64 = 25;
const MADV_GUARD_INSTALL: u64 = 102;
const MADV_GUARD_REMOVE: u64 = 103;

/// Names a range (prctl(2)): plain memory only, a file has its own name. A row's exception names it.
pub const PR_SET_VMA: u64 = 0x5356_4d41;

/// UIO_MAXIOV (include/uapi/linux/uio.h).
const MOST_RANGES: u64 = 1024;

/// Serves madvise(2).
pub async fn madvise(call: TaskCall, addr: Addr, length: Len, advice: Advice) -> Answer {
    let given_away = AWAY.contains(&advice.0);
    let ranges = vec![range(addr.0, length.0)];
    settled(call, ranges, |pid, ranges| Unsettled::Ranges { pid, ranges, given_away }).await
}

/// Serves process_madvise(2). To other processes only advice can be given that is the same for all memory, and
/// whose it is is not looked at: nothing is given away before the kernel does.
pub async fn process_madvise(
    call: TaskCall,
    _pidfd: PidFd,
    iovec: In<Iovec>,
    vlen: Len,
    _advice: Advice,
    _flags: Flags,
) -> Answer {
    // What is wrong with them the kernel says.
    let ranges = ranges(call.memory(), iovec.address, vlen.0).unwrap_or_default();
    settled(call, ranges, kept).await
}

/// Serves mseal(2), after which nothing could be mapped there any more.
pub async fn mseal(call: TaskCall, addr: Addr, size: Len, _flags: WideFlags) -> Answer {
    settled(call, vec![range(addr.0, size.0)], kept).await
}

/// Serves io_setup(2): what devices write goes on while all stand still, to pages that would not be there any
/// more. So nothing is left to be settled later.
pub async fn io_setup(call: TaskCall, _nr_events: UInt, _ctx: InOut<IoContextCell>) -> Answer {
    match call.kernel.lazy().filter(|lazy| !lazy.is_over()).map(Arc::clone) {
        Some(lazy) => serve(call, lazy, 0, Unsettled::Everything).await,
        None => Answer::Continue,
    }
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
    settled(call, ranges, kept).await
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

fn kept(pid: i32, ranges: Vec<Range<u64>>) -> Unsettled {
    Unsettled::Ranges { pid, ranges, given_away: false }
}

const PAGE: u64 = 4096;

/// Whole pages. Nothing, if the kernel refuses them: they do not begin with one, or end behind all addresses.
fn range(start: u64, length: u64) -> Range<u64> {
    let end = start.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE));
    end.filter(|_| start.is_multiple_of(PAGE)).map_or(0..0, |end| start..end)
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
    let Ok(status) = Status::read(tid) else { return Answer::Continue };
    let start = ranges.first().map_or(0, |range| range.start);
    let lazy = Arc::clone(lazy);
    serve(call, lazy, start, what(status.tgid, ranges)).await
}

/// Settles, which backs the call out; made again, it is told if that has failed.
async fn serve(call: TaskCall, lazy: Arc<Lazy>, start: u64, what: Unsettled) -> Answer {
    hand_over();
    let tid = call.received().tid;
    if lazy.has_failed(tid, start) {
        return Answer::Fail(Errno::EAGAIN);
    }
    let (kernel, own) = (Arc::clone(&call.kernel), Arc::clone(&lazy));
    // Not a part of this call, which ends as the guests are stopped.
    let done = tokio::task::spawn_blocking(move || {
        let done = own.settle(&kernel, &what);
        if done.is_err() {
            own.fail(tid, start);
        }
        done
    });
    match done.await {
        Ok(Ok(())) => Answer::Continue,
        // (It failed before anybody was stopped. The reason is in the log.)
        _ => {
            lazy.has_failed(tid, start);
            Answer::Fail(Errno::EAGAIN)
        }
    }
}
