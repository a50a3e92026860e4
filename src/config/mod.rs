//! Flags and defaults become one validated, immutable description of a run.

mod spec;

pub use spec::{IdRange, Identity, Mount, MountKind, Network, RunSpec, Voice, Why, Without};
