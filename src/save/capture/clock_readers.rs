//! Threads that were stopped while they read a clock.
//!
//! The vDSO reads the kernel's clock first and adds the offset of the time namespace then (do_hres_timens in
//! lib/vdso/gettimeofday.c). Who was stopped in between, and is restored, would add the offset of the new namespace to a
//! reading of before the save: it would be told a time that is as far back as the save and the restore have taken. So such
//! threads come to the end of it before anything is captured, the clocks among it.

use super::instruction::{instruction_of, vdso_of};
use super::{filters, lend, numbers_of};
use crate::save::capture::filters::Filters;
use crate::save::capture::status::Status;
use crate::save::error::SaveError;
use crate::save::hand::is_between_calls;
use crate::save::state::Process;
use crate::sentry::{ProcessInfo, Tracees};

/// All of them have their time, or are about to ask the kernel for it.
pub(super) fn finish(
    tracees: &mut Tracees,
    filters: Filters<'_>,
    guests: &[ProcessInfo],
) -> Result<(), SaveError> {
    let running: Vec<_> = tracees.registers().filter(|(_, it)| is_between_calls(it)).collect();
    for (tid, registers) in running {
        let Some(Status { process, filters: count, .. }) = Status::read(tid) else { continue };
        let guest = guests.iter().find(|it| it.guest_pid == process);
        let Some((guest, vdso)) = guest.and_then(|it| Some((it, vdso_of(it.pid)?))) else {
            continue;
        };
        if !vdso.contains(&registers.rip) {
            continue;
        }
        let who = guest.words();
        let tids = numbers_of(guest.pid)
            .map_err(|error| SaveError::failed(format!("{who}: its threads"), error.desc()))?;
        // (What denies a hand is told by name, as it would be later.)
        let mut process = Process::default();
        filters::capture(filters, (count, &tids), &who, &mut process)?;
        let instruction = instruction_of(guest.pid, &who)?;
        let (mut borrowed, _) = lend(tracees, filters.gate, (tid, &who), None, instruction)?;
        let done = borrowed.come_out_of(&vdso);
        tracees.put(borrowed.end().map_err(SaveError::of(&who))?);
        done.map_err(SaveError::of(&who))?;
    }
    Ok(())
}
