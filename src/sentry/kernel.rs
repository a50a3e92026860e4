//! The root of the state.

/// The kernel of one sandbox.
#[derive(Debug)]
pub struct Kernel {}
