//! The outer terminal and the relay between it and the guest's own pty.
