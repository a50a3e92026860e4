//! Real programs run the same inside as outside, as root and as an ordinary user.
//!
//! Each test runs natively first and then inside, from the same content of its workspace, and both
//! runs must print the same and end alike ([`common::Workspace::same`]). The programs are those of
//! the host's packages; where one is missing its test says `skipped: no ...`. None uses a network
//! other than its own loopback.

#[path = "../common/mod.rs"]
mod common;

mod builds;
mod endings;
mod languages;
mod processes;
mod servers;
mod streams;
mod tools;
