//! What is made before the guests of a run: the kernel that serves them, and the content of their first program.

use std::sync::Arc;

use nix::errno::Errno;

use super::{Error, limits};
use crate::config::{RunSpec, Voice};
use crate::launch::{Behind, Program};
use crate::sentry::{Content, Kernel, KernelArgs, Randomness, Time};

/// What could not be done where [`fetch_program`] fails.
pub(super) const NO_CONTENT: &str = "fetch the content of the program for its overlay";

/// Fetches the content of a program that is about to be executed by a copy of init, if it is one that lacks it.
pub(super) fn fetch_program(content: &dyn Content, program: &Program<'_>) -> Result<(), Errno> {
    let mut places = program.candidates().into_iter();
    places.try_for_each(|place| content.fetch_program(&place, program.workdir))
}

/// The kernel, with the limits in force.
pub(super) fn make_kernel(
    spec: &RunSpec,
    behind: &mut Behind,
    time: Time,
    content: Option<Arc<dyn Content>>,
) -> Result<Arc<Kernel>, Error> {
    let kernel = Kernel::new(KernelArgs {
        features: spec.features,
        init: behind.take_init(),
        init_pid: behind.init_pid(),
        container: spec.container.clone(),
        banner: format!("sandbox {} started", env!("CARGO_PKG_VERSION")),
        announce: spec.voice == Voice::Verbose,
        time,
    })?;
    if spec.coming.is_some() || content.is_some() {
        kernel.perform_paths(spec.coming.clone(), content);
    }
    if let Some(chosen) = &spec.deterministic {
        kernel.draw_from(Randomness::new(&chosen.seed, spec.workdir.clone()));
    }
    kernel
        .limit(limits::of(spec, behind))
        .map_err(|error| Error::Own("put the limits in force", error))?;
    Ok(kernel)
}
