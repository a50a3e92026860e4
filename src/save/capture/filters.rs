//! Guests' own seccomp filters.

use crate::notify::Gate;
use crate::save::bpf;
use crate::save::error::SaveError;
use crate::save::hand::{AREA, CODE, calls_for};
use crate::save::state::Process;
use crate::sentry::{FilterLog, filter_count};

/// What is needed to tell which filters a process has.
#[derive(Debug, Clone, Copy)]
pub struct Filters<'f> {
    /// Those that were loaded.
    pub log: &'f FilterLog,
    /// How many every guest has from the begin: init's.
    pub before: usize,
    /// Whose calls the sentry has made.
    pub gate: &'f Gate,
}

/// Fills in the filters of a process that has these threads.
pub fn capture_all(
    filters: Filters<'_>,
    tids: &[i32],
    who: &str,
    process: &mut Process,
) -> Result<(), SaveError> {
    let mut counts = tids.iter().filter_map(|tid| filter_count(*tid));
    let Some(first) = counts.next() else { return Ok(()) };
    if counts.any(|count| count != first) {
        return Err(differ(who));
    }
    capture(filters, (first, tids), who, process)
}

/// Fills in the filters of a process that has these threads, of which the first has so many. That the others have
/// as many is to be seen to before they are asked anything ([`differ`]).
pub fn capture(
    filters: Filters<'_>,
    (first, tids): (usize, &[i32]),
    who: &str,
    process: &mut Process,
) -> Result<(), SaveError> {
    let own = first.saturating_sub(filters.before);
    if own > 0 && tids.iter().filter_map(|tid| filter_count(*tid)).any(|it| it != first) {
        return Err(differ(who));
    }
    let known = filters.log.of(own).ok_or_else(|| {
        SaveError::refused(format!(
            "{who} has a seccomp filter of its own, and which of several it is cannot be told, so that it \
             cannot be saved"
        ))
    })?;
    process.filters = known
        .into_iter()
        .map(|filter| (filter.flags, serde_bytes::ByteBuf::from(filter.program)))
        .collect();
    may_begin(&programs(process), tids, who)
}

/// Its threads have different ones.
pub fn differ(who: &str) -> SaveError {
    SaveError::refused(format!(
        "the threads of {who} have different seccomp filters of their own, which cannot be saved"
    ))
}

/// The programs of a process's filters.
pub fn programs(process: &Process) -> Vec<Vec<u8>> {
    process.filters.iter().map(|(_, program)| program.to_vec()).collect()
}

/// Whether the filters let a hand in and out again ([`crate::save::hand::Borrowed::begin`]).
fn may_begin(programs: &[Vec<u8>], tids: &[i32], who: &str) -> Result<(), SaveError> {
    if programs.is_empty() {
        return Ok(());
    }
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let fixed = flags | libc::MAP_FIXED as u64;
    let (writable, executable) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    let calls = [
        ("mmap", libc::SYS_mmap, [0, AREA, writable as u64, flags, u64::MAX, 0]),
        ("mmap", libc::SYS_mmap, [AREA, CODE as u64, executable as u64, fixed, u64::MAX, 0]),
        ("munmap", libc::SYS_munmap, [AREA, AREA, 0, 0, 0, 0]),
    ];
    for (name, number, arguments) in calls.into_iter().chain(calls_for(tids, AREA)) {
        let call = bpf::Call { number: number as u32, instruction_pointer: AREA, arguments };
        if !programs.iter().all(|program| bpf::allows(program, &call)) {
            return Err(SaveError::refused(format!(
                "{who} has a seccomp filter of its own that denies {name}, which a save has to call in it, so \
                 that it cannot be saved"
            )));
        }
    }
    Ok(())
}
