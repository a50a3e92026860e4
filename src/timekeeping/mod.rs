//! Clocks: what time it is for a sandbox, and what makes it tick.
//!
//! Knows nothing of notifications or of what a guest is beyond "a descendant of this process".

mod cpu_clock;
mod family;
mod ledger;
mod pace;
mod ticker;

pub use cpu_clock::{CpuClock, GroupClock};
pub use family::{Family, Relative};
pub use ticker::{Consumer, Reading, Ticker};
