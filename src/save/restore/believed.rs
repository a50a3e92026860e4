//! What a run with `--root` believes goes on: who its guests are, and whose files are that take no attribute.

use std::collections::{HashMap, HashSet};

use super::Plant;
use super::maker::Maker;
use crate::save::error::RestoreError;
use crate::save::state::Sandbox;
use crate::sentry::Kernel;

/// All files that the image carries are in their places, and all that is open has been made.
pub(super) fn resume_files(maker: &Maker<'_>, kernel: &Kernel) -> Result<(), RestoreError> {
    let Some(root) = &maker.sandbox.root else { return Ok(()) };
    // (What others have a name for is not changed by way of who has it open.)
    let open = |index: u32| {
        let index = index as usize;
        maker.sandbox.files.get(index).filter(|file| file.kind.is_nameless())?;
        maker.files.get(index)?.as_ref()?.try_clone().ok()
    };
    kernel.resume_files(&root.files, open).map_err(|errno| {
        RestoreError::failed("what is believed of its files cannot be kept", errno.desc())
    })
}

/// Numbers of processes and threads for the host, by those for the guest.
pub(super) fn tasks(plants: &[Plant<'_>]) -> HashMap<i32, i32> {
    let of = |plant: &Plant<'_>| {
        let hands = std::iter::once(&plant.hand).chain(&plant.others).map(|hand| hand.tid());
        let threads = plant.process.threads.iter().map(|thread| thread.tid);
        let process = (plant.process.pid, plant.hand.tid());
        threads.zip(hands).chain([process]).collect::<Vec<_>>()
    };
    plants.iter().flat_map(of).collect()
}

/// All stand ready, with the limits that they had: who they are is known by one of these.
pub(super) fn resume_guests(
    sandbox: &Sandbox,
    tasks: &HashMap<i32, i32>,
    kernel: &Kernel,
) -> Result<(), RestoreError> {
    let Some(root) = &sandbox.root else { return Ok(()) };
    let ended = sandbox.processes.iter().filter(|process| process.zombie.is_some());
    let ended: HashSet<i32> = ended.map(|process| process.pid).collect();
    let mut guests = root.guests.clone();
    guests.processes.retain(|(task, _)| !ended.contains(task));
    guests.threads.retain(|(task, _)| !ended.contains(task));
    let done = kernel.resume_guests(&guests, tasks);
    done.ok_or_else(|| RestoreError::refused("the image is damaged: who its programs are"))
}
