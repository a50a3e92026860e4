//! The syscall table and the handlers that its rows name.
//!
//! One row per syscall decides everything: what the filter does, who serves it, what the
//! documentation says. Handlers live in one file per man-page topic.

pub mod args;
pub mod clocks;
pub mod directories;
pub mod exec;
pub mod filters;
pub mod klog;
pub mod lazy;
pub mod machine;
pub mod owners;
pub mod paths;
pub mod processes;
pub mod random;
pub mod reach;
pub mod row;
pub mod sleeps;
pub mod stamps;
pub mod sync;
pub mod table;
pub mod timeouts;
pub mod usage;
pub mod watch;

pub use row::{Class, Handler, Row};
