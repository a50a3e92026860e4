//! Clocks of the run's own, where programs read them themselves.
//!
//! What a program computes the time of day by lies in its vDSO, of which it has a copy of its own that came with
//! its memory. Owns bringing that up to date, before the program runs; what it is, is `timekeeping`'s affair.

use super::Options;
use crate::save::error::RestoreError;
use crate::save::hand;
use crate::save::state::{MappingKind, Space};

/// Programs whose vDSO is not ours are left as they are: those that have never read the sandbox's clock.
pub(super) fn renew(
    tid: i32,
    space: &Space,
    options: &Options,
    who: &str,
) -> Result<(), RestoreError> {
    let Some(patch) = &options.clock else { return Ok(()) };
    let Some((offset, length)) = patch.place() else { return Ok(()) };
    let vdsos = space.mappings.iter().filter(|it| it.kind == MappingKind::Vdso);
    for vdso in vdsos {
        let Some(at) = vdso.start.checked_add(offset) else { continue };
        if at.saturating_add(length as u64) > vdso.end {
            continue;
        }
        let mut found = vec![0; length];
        let renewed = hand::read(tid, at, &mut found).map(|()| patch.renewed(&found));
        let failed = |errno: nix::errno::Errno| {
            RestoreError::failed(format!("{who}: its clock"), errno.desc())
        };
        if let Some(renewed) = renewed.map_err(failed)? {
            hand::force(tid, at, &renewed).map_err(failed)?;
        }
    }
    Ok(())
}
