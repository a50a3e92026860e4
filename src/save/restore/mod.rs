//! Putting guests together from an image.

pub mod courier;
pub mod maker;
mod batch;
pub mod seed;
pub mod trees;
