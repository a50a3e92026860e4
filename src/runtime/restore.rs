//! A run that begins with an image in place of a program.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use crate::launch::{Behind, Plan};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Sink;
use crate::save::restore::{self, Options, ptys, seed};
use crate::save::state::Sandbox;
use crate::sentry::{Kernel, KernelError, RecordedFilter};
use crate::sys::memfd::anonymous_file;
use crate::timekeeping::Namespace;

/// Brings the content of the memory section into its places.
pub type Fill = Box<dyn FnMut(&HashMap<u32, Sink>) -> Result<(), RestoreError> + Send>;

/// An image, opened and checked as far as that goes before anything is made.
pub struct Restored {
    /// What it says.
    pub sandbox: Sandbox,
    /// Its content.
    pub fill: Fill,
    /// How to restore.
    pub options: Options,
}

impl Restored {
    /// The clocks go on from where they were.
    pub(super) fn clocks(&self) -> Namespace {
        let clocks = self.sandbox.clocks;
        Namespace::standing_at(clocks.monotonic, clocks.boottime)
    }

    /// Gives init what it is to plant. Gives where that will lie in the guests' memory.
    pub(super) fn sow(&self, plan: &mut Plan) -> Result<u64, Error> {
        let area = restore::area(&self.sandbox)?;
        let own = |error| Error::Own("make a file in memory", error);
        let mut file = anonymous_file(c"seed").map_err(|errno| own(errno.into()))?;
        file.write_all(&seed::file(area)).map_err(own)?;
        plan.plant(file.into());
        Ok(area)
    }

    /// Puts the guests together and lets them go; what stands for the run's program.
    pub(super) async fn grow(
        self,
        area: u64,
        behind: &Behind,
        kernel: &Arc<Kernel>,
    ) -> Result<OwnedFd, Error> {
        let Restored { sandbox, mut fill, options } = self;
        ptys::require_terminal(&sandbox, behind.master.is_some())?;
        if let (Some(own), Some(master)) = (&sandbox.terminal, &behind.master) {
            ptys::restore_own(master.as_fd(), own)?;
        }
        let planter = behind.planter()?;
        let gate = Arc::clone(kernel.gate().ok_or(Error::Kernel(KernelError::NoTasks))?);
        for process in &sandbox.processes {
            for (depth, (flags, program)) in process.filters.iter().enumerate() {
                let filter = RecordedFilter { flags: *flags, program: program.to_vec() };
                kernel.filters().record(depth, filter);
            }
        }
        kernel.begin_cpu_time_at(Duration::from_micros(sandbox.run.cpu_us));
        let carried = Arc::clone(kernel.carried());
        let kernel = Arc::clone(kernel);
        let grown = tokio::task::spawn_blocking(move || {
            let grow = move |_: &mut _| {
                restore::grow(&planter, &gate, area, &sandbox, &options, &mut fill, &carried)
            };
            kernel.tracer().run(grow).map_err(KernelError::Tracer)
        });
        let lost = |_| Error::Own("restore the image", std::io::ErrorKind::Other.into());
        Ok(grown.await.map_err(lost)???)
    }
}
