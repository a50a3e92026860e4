//! What the end of a process does to System V semaphores (SEM_UNDO of semop(2)): made again by operations of
//! its own that leave the semaphores as they are. Who shares it is there, and does.

use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::ipc::adjusting;
use crate::save::state::Sandbox;

/// Makes those of a process or a thread, by its number.
pub fn make(hand: &mut Hand, sandbox: &Sandbox, task: i32, who: &str) -> Result<(), RestoreError> {
    for set in &sandbox.ipc.semaphores {
        let id = set.permissions.id;
        for (_, number, by) in set.adjustments.iter().filter(|it| it.0 == task) {
            // More than an adjustment can be is no adjustment (SEMAEM of include/uapi/linux/sem.h).
            let value =
                set.values.get(usize::from(*number)).filter(|_| (-32768..=32767).contains(by));
            let value = value.ok_or_else(|| {
                RestoreError::refused(format!(
                    "the image is damaged: {who} adjusts what is not in the semaphores {id}"
                ))
            })?;
            let operations = adjusting(*number, *value, *by);
            let count = (operations.len() / 6) as u64;
            hand.call_with(libc::SYS_semop, &operations, |at| [id as u64, at, count]).map_err(
                RestoreError::of(format!("{who}: what it undoes of the semaphores {id}")),
            )?;
        }
    }
    Ok(())
}
