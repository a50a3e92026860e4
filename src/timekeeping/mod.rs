//! The guest's clocks.
//!
//! Owns what a clock of the sandbox shows for a moment of the host, how a deadline or a span of time
//! of the guest becomes one of the host, and what the words of `--time` mean. It serves no call and
//! knows nothing of traps: the sentry asks it.

mod clock;
mod spec;
mod timekeeper;
pub mod timeout;
mod vdso;

pub use clock::{Clock, Pace, Rate};
pub use spec::{Start, TimeError, TimeSpec};
pub use timekeeper::{ClockKind, Namespace, Timekeeper};
pub use vdso::{NoVdso, Patch};

/// Nanoseconds in a second.
pub const SECOND: i64 = 1_000_000_000;
