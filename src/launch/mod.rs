//! From a plan to a running init process behind its walls.
