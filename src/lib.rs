//! Runs Linux programs natively behind the host kernel's walls, with a sentry in front of them.
//!
//! The modules in reading order; each may use those below it and none above it
//! (`cargo xtask tidy` checks that).

pub mod cli;
pub mod runtime;
pub mod control;
pub mod save;
pub mod launch;
pub mod overlay;
pub mod terminal;
pub mod config;
pub mod sentry;
pub mod notify;
pub mod timekeeping;
pub mod sys;
