//! What a run with `--deterministic` goes on with: random bytes, and directories that are being read.

use std::collections::HashMap;

use std::os::fd::AsFd;

use super::maker::Maker;
use crate::save::error::RestoreError;
use crate::sentry::Kernel;

/// Everything that is open has been made, and so have all processes (`hosts`: their numbers for the host, by those
/// for the guest). Needs a tokio context.
pub(super) fn resume(
    maker: &mut Maker<'_>,
    hosts: &HashMap<i32, i32>,
    kernel: &Kernel,
) -> Result<(), RestoreError> {
    let damaged = || RestoreError::refused("the image is damaged: what it repeats makes no sense");
    let devices = std::mem::take(&mut maker.devices);
    let Some(repeat) = &maker.sandbox.repeat else { return Ok(()) };
    kernel.resume_randomness(&repeat.randomness, hosts).ok_or_else(damaged)?;
    for (device, pipe) in devices {
        kernel
            .resume_device(&device, pipe)
            .map_err(|errno| RestoreError::failed("a random device", errno.desc()))?;
    }
    for listing in &repeat.listings {
        let directory = maker.files.get(listing.file as usize).and_then(Option::as_ref);
        let directory = directory.ok_or_else(damaged)?;
        kernel.resume_listing(directory.as_fd(), listing).ok_or_else(damaged)?;
    }
    Ok(())
}
