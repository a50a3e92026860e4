//! Seccomp user notification: the filter, the listener, notifications, guest memory, the engine.
//!
//! Owns the mechanics of trapping and answering. It does not know what a syscall means: who serves
//! a notification is behind [`Dispatch`].

mod engine;
pub mod filter;
mod gate;
mod listener;
mod memory;
mod notification;
mod turns;

pub use engine::{Dispatch, Engine, Outcome, hand_over};
pub use gate::Gate;
pub use listener::{Listener, Options};
pub use memory::GuestMemory;
pub use notification::{Answer, Cancelled, Descriptor, Notification, Received, Sequel, Trapped};
