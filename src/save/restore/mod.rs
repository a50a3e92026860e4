//! Putting guests together from an image.

pub mod courier;
pub mod maker;
pub mod seed;
pub mod sockets;
