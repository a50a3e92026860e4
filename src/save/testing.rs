//! What tests of save and restore share: an image with nothing in it, a maker on the host.

use std::collections::HashMap;

use serde_bytes::ByteBuf;

use crate::save::restore::maker::Maker;
use crate::save::restore::seed::tests::plant;
use crate::save::state::{Clocks, Ipc, Run, Sandbox};

/// A sandbox with nothing in it.
pub(crate) fn empty() -> Sandbox {
    let run = Run {
        spec: ByteBuf::new(),
        id: String::new(),
        log: String::new(),
        program: 0,
        last_pid: 0,
        ran_us: 0,
        saved_us: 0,
    };
    Sandbox {
        run,
        clocks: Clocks::default(),
        spaces: Vec::new(),
        processes: Vec::new(),
        files: Vec::new(),
        tables: Vec::new(),
        shared: Vec::new(),
        trees: Vec::new(),
        ipc: Ipc::default(),
        pipes: Vec::new(),
        terminals: Vec::new(),
        terminal: None,
    }
}

/// A maker that runs on the host, for as long as `work` takes.
pub(crate) fn with_maker<T>(sandbox: &Sandbox, work: impl FnOnce(&mut Maker<'_>) -> T) -> T {
    let (mut child, mut hand, courier) = plant();
    let mut maker = Maker {
        hand: &mut hand,
        courier: &courier,
        sandbox,
        files: Vec::new(),
        sinks: HashMap::new(),
        finishes: Vec::new(),
    };
    let result = work(&mut maker);
    child.kill().unwrap();
    child.wait().unwrap();
    result
}
