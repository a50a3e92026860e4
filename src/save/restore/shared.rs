//! Memory that mappings share, made once and handed to those who map it.

use std::os::fd::{AsFd, OwnedFd};

use super::maker::{Maker, Sink};
use crate::save::error::RestoreError;
use crate::save::state::SharedKind;
use crate::sys::memfd;

/// Makes all of it: by index in [`crate::save::state::Sandbox::shared`], with `None` for what is not held
/// by a descriptor (System V, see [`super::ipc`]).
///
/// Memory of MAP_SHARED | MAP_ANONYMOUS becomes a memfd, which the kernel treats alike; only its name in
/// /proc/PID/maps tells.
pub fn make(maker: &mut Maker<'_>) -> Result<Vec<Option<OwnedFd>>, RestoreError> {
    let mut all = Vec::with_capacity(maker.sandbox.shared.len());
    for shared in &maker.sandbox.shared {
        let (name, seals) = match &shared.kind {
            SharedKind::Anonymous => (&b"dev/zero"[..], 0),
            SharedKind::Memfd { name, seals, .. } => (name.as_slice(), *seals),
            SharedKind::SystemV { .. } => {
                all.push(None);
                continue;
            }
        };
        let failed =
            |error: std::io::Error| RestoreError::failed("shared memory cannot be made", error);
        let file = memfd::sealable_file(name).map_err(|errno| failed(errno.into()))?;
        file.set_len(shared.size).map_err(failed)?;
        maker.sinks.insert(shared.object, Sink::File(file.try_clone().map_err(failed)?));
        let held: OwnedFd = file.into();
        if seals != 0 {
            let sealed = held.as_fd().try_clone_to_owned().map_err(failed)?;
            maker.finishes.push(Box::new(move |_| {
                memfd::seal(sealed.as_fd(), seals)
                    .map_err(|errno| RestoreError::failed("a memfd cannot be sealed", errno.desc()))
            }));
        }
        all.push(Some(held));
    }
    Ok(all)
}
