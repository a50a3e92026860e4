//! Writing a whole sandbox to one image, and bringing it up again from it.
//!
//! Reading order: [`state`] says what an image knows; [`image`] how it lies in a file; [`capture`] takes
//! it from stopped guests, by calls that they make themselves ([`hand`]); [`restore`] puts guests together
//! from it.

pub mod bpf;
pub mod capture;
pub mod content;
pub mod content_sum;
pub mod error;
pub mod hand;
pub mod image;
pub mod ipc;
pub mod opened;
pub mod out;
pub mod patience;
pub mod pipeline;
pub mod ptys;
pub mod queues;
pub mod restore;
pub mod settle;
pub mod sharing;
pub mod sockets;
pub mod spec;
pub mod state;
mod strict;
pub mod timers;
#[cfg(test)]
mod testing;
