//! Seccomp user notification: the filter, the listener, the engine.
