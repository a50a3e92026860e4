//! The project's own chores: `cargo xtask ci | tidy | codegen | bench | guests`.

fn main() {}
