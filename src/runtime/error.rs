//! Why there was no run.

use std::io;

use nix::errno::Errno;

use crate::launch::{LaunchError, PlanError, host};
use crate::notify::filter::FilterError;
use crate::save::error::RestoreError;
use crate::sentry::KernelError;
use crate::sentry::net::publish::DoorError;

/// Why there was no run: one sentence with operation, object, cause and remedy.
#[derive(Debug)]
pub enum Error {
    /// There is no plan.
    Plan(PlanError),
    /// A port of the host cannot be had.
    Door(DoorError),
    /// No sandbox came up.
    Launch(LaunchError),
    /// No filter could be made.
    Filter(FilterError),
    /// The kernel refused its arguments.
    Kernel(KernelError),
    /// The program could not be executed.
    NotExecuted {
        /// As the user named it.
        program: String,
        /// Why.
        errno: Errno,
    },
    /// The image could not be restored.
    Restore(RestoreError),
    /// A call of the supervisor itself failed.
    Own(&'static str, io::Error),
}

impl Error {
    /// The kernel makes no overlay of a directory that is what was meant.
    pub fn is_overlay_refused(&self) -> bool {
        let Error::Launch(LaunchError::Overlay(_, errno)) = self else { return false };
        !matches!(errno, Errno::ESTALE | Errno::ENOENT)
    }

    /// The exit status that stands for this error: 127 not found, 126 found but not executable,
    /// 125 otherwise.
    pub fn status(&self) -> i32 {
        match self {
            Error::NotExecuted { errno: Errno::ENOENT | Errno::ENOTDIR, .. } => 127,
            Error::NotExecuted { .. } => 126,
            _ => 125,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Plan(error) => error.fmt(f),
            Error::Door(error) => error.fmt(f),
            Error::Launch(error) => error.fmt(f),
            Error::Filter(error) => error.fmt(f),
            Error::Kernel(error) => error.fmt(f),
            Error::Restore(error) => error.fmt(f),
            Error::NotExecuted { program, errno } => match errno {
                Errno::ENOENT | Errno::ENOTDIR => {
                    write!(f, "{program}: not found inside the sandbox; check the name and PATH")
                }
                Errno::EACCES if std::path::Path::new(program).is_dir() => {
                    write!(f, "{program}: is a directory, not a program")
                }
                Errno::EACCES => write!(
                    f,
                    "{program}: found, but may not be executed; check its permissions (chmod +x)"
                ),
                Errno::ENOEXEC => {
                    write!(f, "{program}: is not built for this machine; use a native build of it")
                }
                errno => write!(f, "{program}: cannot be executed: {}", errno.desc()),
            },
            Error::Own(what, error) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                match host::explain_refusal(errno) {
                    Some(cause) => write!(f, "cannot {what}: {}: {cause}", errno.desc()),
                    None => write!(f, "cannot {what}: {error}"),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($kind:ident($error:ty)),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::$kind(error)
            }
        }
    )*};
}
from!(
    Plan(PlanError),
    Door(DoorError),
    Launch(LaunchError),
    Filter(FilterError),
    Kernel(KernelError),
    Restore(RestoreError)
);
