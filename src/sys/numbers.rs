//! Syscall numbers that the libc crate does not have yet.
//!
//! Numbers from 424 on are the same on every architecture (arch/*/entry/syscalls in the kernel).
#![allow(missing_docs)]
