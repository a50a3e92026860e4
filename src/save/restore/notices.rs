//! Processes that are told when a POSIX message queue gets a message (mq_notify(3)): registered again, by
//! themselves, once they have their descriptors and the queues their messages.

use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::state::{FileKind, Process, Sandbox};

/// Registers a process for all queues of which it is told.
pub fn register(
    hand: &mut Hand,
    sandbox: &Sandbox,
    process: &Process,
    who: &str,
) -> Result<(), RestoreError> {
    let table = process.table.and_then(|index| sandbox.tables.get(index as usize));
    for queue in &sandbox.ipc.queues {
        let Some(notice) = queue.notice.filter(|it| it.pid == process.pid) else { continue };
        let is_it = |file: u32| {
            let kind = sandbox.files.get(file as usize).map(|it| &it.kind);
            matches!(kind, Some(FileKind::MessageQueue(name)) if *name == queue.name)
        };
        let mut all = table.into_iter().flat_map(|table| &table.descriptors);
        let name = String::from_utf8_lossy(&queue.name).into_owned();
        let descriptor = all.find(|it| is_it(it.file)).ok_or_else(|| {
            RestoreError::refused(format!(
                "the image is damaged: {who} is told of the message queue /{name} and does not hold it"
            ))
        })?;
        hand.call_with(libc::SYS_mq_notify, &notice.event(), |at| [descriptor.fd as u64, at])
            .map_err(RestoreError::of(format!("{who}: to be told of the message queue /{name}")))?;
    }
    Ok(())
}
