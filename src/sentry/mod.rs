//! The kernel state of the sandbox and the handlers of trapped syscalls.

mod features;

pub use features::Features;
pub mod call;
pub mod kernel;
pub mod syscalls;
