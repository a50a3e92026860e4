//! Sandboxes controlled from outside: by id, through their control sockets, as a user does.
//!
//! Each test has a runtime directory of its own, so that it sees its own sandboxes and no others.

#[path = "../common/mod.rs"]
mod common;

mod asking;
mod desk;
mod guests;
mod hostile;
mod later;
mod lifecycle;
mod limits;
mod live;
mod memory;
mod pauses;
mod saves;
mod sockets;
mod verbs;
