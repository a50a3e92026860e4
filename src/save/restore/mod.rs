//! Putting guests together from an image.

pub mod courier;
pub mod descriptors;
pub mod maker;
pub mod seed;
