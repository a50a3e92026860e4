//! Overlays, as a user meets them: what a program does in one is what it does natively, the host's files
//! stay as they are, and what it did can be listed, applied or dropped.

mod builds;
mod conflicts;
mod desk;
mod everything;
mod hostile;
mod interrupted;
mod likeness;
mod places;
mod saves;
mod syncs;
mod twins;
mod verbs;

#[path = "../common/mod.rs"]
mod common;
