//! Taking what an image knows from stopped guests.

pub mod collector;
pub mod sockets;
