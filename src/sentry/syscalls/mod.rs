//! The syscall table and the handlers that its rows name.
//!
//! One row per syscall decides everything: what the filter does, who serves it, what the
//! documentation says. Handlers live in one file per man-page topic.

pub mod apart;
mod asked;
pub mod args;
pub mod attributes;
pub mod believed;
pub mod clocks;
pub mod creations;
pub mod directories;
pub mod exec;
pub mod filters;
pub mod identity;
pub mod interfaces;
pub mod kept;
pub mod klog;
pub mod lazy;
pub mod machine;
pub mod modes;
pub mod network;
pub mod owners;
pub mod own_copies;
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
