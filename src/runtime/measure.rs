//! What a run has used, for `sandbox learn`.

use std::time::Duration;

use super::Supervisor;
use crate::launch::End;
use crate::sentry::{Features, Measured};

impl Supervisor<'_> {
    /// What was measured, if that was asked for. Before init is waited for: it knows of those that have ended.
    pub(super) fn measured(&self) -> Option<Measured> {
        self.spec.features.contains(Features::LEARN).then(|| self.kernel.measured())
    }
}

/// Adds what the program's own account says: what came and went between two looks is in there.
pub(super) fn complete(measured: &mut Measured, end: &End) {
    measured.cpu = measured.cpu.max(Duration::from_micros(end.cpu_us));
    measured.memory = measured.memory.max(end.peak_kib.saturating_mul(1024));
}
