//! A run that begins with an image in place of a program.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Error, lazy};
use crate::config::RunSpec;
use crate::launch::{Behind, Plan};
use crate::save::error::RestoreError;
use crate::save::image::Index;
use crate::save::restore::lazy::Lazy;
use crate::save::restore::maker::Sink;
use crate::save::restore::{self, Content, Grown, Options, Wanted, network, ptys, seed};
use crate::save::state::Sandbox;
use crate::sentry::net::Meter;
use crate::sentry::{Features, Kernel, KernelError, Level, RecordedFilter, Time};
use crate::sys::memfd::anonymous_file;
use crate::timekeeping::{Namespace, Passed};

/// Brings content of the memory section into its places.
pub type Fill = Box<dyn FnMut(&HashMap<u32, Sink>, Wanted<'_>) -> Result<(), RestoreError> + Send>;

/// An image, opened and checked as far as that goes before anything is made.
pub struct Restored {
    /// What it says.
    pub sandbox: Sandbox,
    /// Its content.
    pub fill: Fill,
    /// The list of it, if it can be had in any order.
    pub index: Option<Arc<Index>>,
    /// What is mapped, if that can be, and not filled.
    pub lazy: Option<Arc<Lazy>>,
    /// Tells the user why nothing is mapped after all.
    pub tell: Box<dyn Fn(&str) + Send>,
    /// How to restore.
    pub options: Options,
    /// What becomes of the time since the save. (The clocks of the kernel have been told.)
    pub passed: Passed,
}

impl Restored {
    /// The clocks go on from where they were.
    pub(super) fn clocks(&self) -> Namespace {
        let clocks = self.sandbox.clocks;
        Namespace::standing_at(clocks.monotonic, clocks.boottime)
    }

    /// The clocks of the run's own, if it has any.
    pub(super) fn time(&self, spec: &RunSpec, namespace: Namespace) -> Result<Time, Error> {
        let root = spec.identity.uid == 0;
        match (&spec.time, &self.sandbox.own_clocks) {
            (None, None) => Ok(Time::new(None, namespace, root)),
            (Some(time), Some(saved)) => {
                let time = Time::resumed(time, namespace, root, saved, self.passed);
                Ok(time.map_err(RestoreError::refused)?)
            }
            _ => Err(RestoreError::refused("the image is damaged: its clocks").into()),
        }
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

    /// Puts the guests together and lets them go.
    pub(super) async fn grow(
        self,
        area: u64,
        behind: &Behind,
        kernel: &Arc<Kernel>,
    ) -> Result<Grown, Error> {
        let Restored { sandbox, mut fill, index, mut options, lazy, tell, .. } = self;
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
        if sandbox.repeat.is_some() != kernel.features().contains(Features::DETERMINISTIC) {
            return Err(RestoreError::refused("the image is damaged: what it repeats").into());
        }
        let root = sandbox.root.as_ref();
        let is_root = kernel.features().contains(Features::ROOT);
        if root.is_some() != is_root || root.is_some_and(|root| !root.is_sound()) {
            return Err(RestoreError::refused("the image is damaged: what root believes").into());
        }
        if kernel.meter().and_then(Meter::used).is_some() != sandbox.carried.is_some() {
            return Err(RestoreError::refused(
                "the image is damaged: what its network has carried",
            )
            .into());
        }
        if let Some(network) = kernel.network() {
            network::prepare(&sandbox, kernel, network).await?;
        }
        if let (Some(meter), Some(carried)) = (kernel.meter(), sandbox.carried) {
            meter.go_on_from(carried);
        }
        kernel.begin_cpu_time_at(Duration::from_micros(sandbox.run.cpu_us));
        let mut mapped = None;
        let lazy = lazy.filter(|lazy| match lazy::keep(kernel, lazy) {
            Ok(sender) => {
                mapped = Some(sender);
                true
            }
            Err(why) => {
                let told = format!("all is read at once and not --lazy: {why}");
                kernel.log().write(Level::Warning, &told);
                tell(&told);
                false
            }
        });
        options.clock = kernel.time().patch(None).map_err(|_| {
            RestoreError::refused(
                "the host's vDSO, through which programs read clocks, is not known",
            )
        })?;
        kernel.time().grow(true);
        let whole = Arc::clone(kernel);
        let context = tokio::runtime::Handle::current();
        let (of_image, own) = (lazy.clone(), Arc::clone(kernel));
        let grown = tokio::task::spawn_blocking(move || {
            let grow = move |_: &mut _| {
                let _context = context.enter();
                let pages = index.as_deref().map(Index::runs);
                let content = Content { fill: &mut *fill, lazy: of_image.as_deref(), pages };
                restore::grow(&planter, &gate, area, &sandbox, &options, content, &whole)
            };
            own.tracer().run(grow).map_err(KernelError::Tracer)
        });
        let lost = |_| Error::Own("restore the image", std::io::ErrorKind::Other.into());
        let grown = grown.await;
        kernel.time().grow(false);
        let grown = grown.map_err(lost)???;
        if let Some((lazy, mapped)) = lazy.zip(mapped) {
            lazy::check(kernel, lazy, &mapped);
        }
        Ok(grown)
    }
}
