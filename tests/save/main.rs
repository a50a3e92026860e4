//! Programs that are saved in the middle and go on from the image, as if nothing had happened.
//!
//! Each guest program looks after itself: it says what is not as it should be, and its status tells.

mod clocks;
mod desk;
mod likeness;
mod failures;
mod forks;
mod ipc;
mod later;
mod lazy;
mod network;
mod outside;
mod passing;
mod programs;
mod repeats;
mod rooted;
mod sharing;
mod soon;
mod waits;
mod zeros;

#[path = "../common/mod.rs"]
mod common;
