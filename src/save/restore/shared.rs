//! Memory that mappings share, made once and handed to those who map it.

use std::os::fd::OwnedFd;

use super::descriptors;
use super::maker::{Maker, Sink};
use crate::save::error::RestoreError;
use crate::save::state::{SharedKind, SharedMemory};
use crate::sys::memfd;

/// Makes all of it: by index in [`crate::save::state::Sandbox::shared`], with `None` for what is not held
/// by a descriptor (System V, see [`super::ipc`]).
///
/// Memory of MAP_SHARED | MAP_ANONYMOUS becomes a memfd, which the kernel treats alike; only its name in
/// /proc/PID/maps tells.
pub fn make(maker: &mut Maker<'_>) -> Result<Vec<Option<OwnedFd>>, RestoreError> {
    let mut all = Vec::with_capacity(maker.sandbox.shared.len());
    for (index, shared) in maker.sandbox.shared.iter().enumerate() {
        all.push(match &shared.kind {
            SharedKind::Anonymous => Some(anonymous(maker, shared)?),
            SharedKind::Memfd { .. } => Some(descriptors::shared_memory(maker, index as u32)?),
            SharedKind::SystemV { .. } => None,
        });
    }
    Ok(all)
}

fn anonymous(maker: &mut Maker<'_>, shared: &SharedMemory) -> Result<OwnedFd, RestoreError> {
    let failed =
        |error: std::io::Error| RestoreError::failed("shared memory cannot be made", error);
    let file = memfd::anonymous_file(c"dev/zero").map_err(|errno| failed(errno.into()))?;
    file.set_len(shared.size).map_err(failed)?;
    maker.sinks.insert(shared.object, Sink::File(file.try_clone().map_err(failed)?));
    Ok(file.into())
}
