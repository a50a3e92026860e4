//! Thin safe wrappers over kernel interfaces that nix lacks: the only unsafe code.
//!
//! Each file covers one topic and knows nothing of what its callers want. Functions that say
//! "child side" neither allocate nor lock: they are for the time between a raw clone and execve.

#![allow(unsafe_code)]

pub mod memfd;
pub mod numbers;
pub mod process;
pub mod seccomp;
