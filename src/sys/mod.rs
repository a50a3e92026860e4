//! Thin safe wrappers over kernel interfaces that nix lacks: the only unsafe code.
