//! The guest's clocks: what they show, and what makes them tick.
//!
//! Owns what a clock of the sandbox shows for a moment of the host, how a deadline or a span of time
//! of the guest becomes one of the host, what the words of `--time` mean, the CPU time of a family of
//! processes and the ticker that looks at it. It serves no call and knows nothing of traps or of what
//! a guest is beyond "a descendant of this process": the sentry asks it.

mod clock;
mod cpu_clock;
mod family;
mod ledger;
mod pace;
mod spec;
mod ticker;
mod timekeeper;
pub mod timeout;
mod vdso;

pub use clock::{Clock, Pace, Rate};
pub use cpu_clock::{CpuClock, GroupClock};
pub use family::{Family, Relative};
pub use spec::{Start, TimeError, TimeSpec};
pub use ticker::{Consumer, Reading, Ticker};
pub use timekeeper::{ClockKind, Namespace, Passed, SavedClocks, Timekeeper};
pub use vdso::{NoVdso, Patch};

/// Nanoseconds in a second.
pub const SECOND: i64 = 1_000_000_000;
