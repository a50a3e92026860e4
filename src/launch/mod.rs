//! From a run's description to a running init process behind its walls.
//!
//! Owns the plan (what the child will do, allocated beforehand), the child side (`init`) and the
//! handshake between the two. It does not know what a trapped syscall means and reads no flags.

mod apart;
mod cgroup;
mod confine;
mod handshake;
pub mod host;
pub mod id_maps;
mod init;
mod keep;
mod landing;
mod outpost;
mod machine;
mod plan;
mod plant;
mod program;
mod protocol;
mod resolver;
mod shelter;
mod view;

pub use apart::Apart;
pub use cgroup::CgroupError;
pub use handshake::{Behind, Keeper, Launch, LaunchError, Planter};
pub use plan::{Plan, PlanError};
pub use plant::FIRST;
pub use program::Program;
pub use protocol::{End, Event, Order, Stage};
