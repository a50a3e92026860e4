//! The notify engine: each fact of the kernel that it is built on, with a test that fails without
//! the handling of it.
//!
//! Two levels: modules that use `stage` drive an engine with handlers of their own; the others run
//! whole sandboxes, with and without what older kernels lack.

#[path = "../common/mod.rs"]
mod common;
mod stage;

mod answers;
mod deaths;
mod interrupts;
mod load;
mod memory;
mod receivers;
mod storms;
mod table;
mod walls;
