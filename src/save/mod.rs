//! Saving a sandbox and restoring it: what an image file is made of.
//!
//! Does not decide when a sandbox is stopped or what its state means.

pub mod image;
