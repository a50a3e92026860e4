//! Thin safe wrappers over kernel interfaces that nix lacks: the only unsafe code.
//!
//! Each file covers one topic and knows nothing of what its callers want. Functions that say
//! "child side" neither allocate nor lock: they are for the time between a raw clone and execve.

#![allow(unsafe_code)]

pub mod agent;
pub mod attributes;
pub mod beneath;
mod capabilities;
pub mod clmul;
pub mod clock;
pub mod copy;
pub mod cpu;
pub mod cpu_clock;
pub mod descriptors;
pub mod disguise;
pub mod fdinfo;
pub mod files;
pub mod generated;
pub mod id_map;
pub mod inherited;
pub mod interface;
pub mod landlock;
pub mod lease;
pub mod listing;
pub mod look;
pub mod mapped;
pub mod mapping;
pub mod memfd;
pub mod message;
pub mod message_queue;
pub mod mount;
pub mod netlink;
pub mod nudge;
pub mod numbers;
pub mod opening;
pub mod pagemap;
pub mod probe;
pub mod process;
pub mod ptrace;
pub mod pty;
pub mod pty_state;
pub mod random;
pub mod ready;
pub mod seccomp;
pub mod socket;
pub mod spawn;
pub mod strings;
pub mod terminal;
pub mod tracing;
pub mod vdso;

/// The kernel's own number of an error of the standard library; EIO where there is none.
pub fn errno_of(error: &std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
