//! What tests of save and restore share: an image with nothing in it, a maker on the host.

use std::collections::HashMap;

use serde_bytes::ByteBuf;

use crate::save::hand::Hand;
use crate::save::restore::maker::Maker;
use crate::save::restore::seed::tests::plant;
use crate::save::state::{Clocks, Run, Sandbox};

/// A sandbox with nothing in it.
pub(crate) fn empty() -> Sandbox {
    let run = Run {
        spec: ByteBuf::new(),
        id: String::new(),
        log: String::new(),
        program: 0,
        ran_us: 0,
        saved_us: 0,
        cpu_us: 0,
    };
    Sandbox {
        run,
        clocks: Clocks::default(),
        own_clocks: None,
        repeat: None,
        root: None,
        network: None,
        carried: None,
        spaces: Vec::new(),
        processes: Vec::new(),
        keepers: Vec::new(),
        sharing: Vec::new(),
        files: Vec::new(),
        tables: Vec::new(),
        shared: Vec::new(),
        trees: Vec::new(),
        overlay: None,
        ipc: Default::default(),
        pipes: Vec::new(),
        terminals: Vec::new(),
        terminal: None,
    }
}

/// A maker that runs on the host, for as long as `work` takes.
pub(crate) fn with_maker<T>(sandbox: &Sandbox, work: impl FnOnce(&mut Maker<'_>) -> T) -> T {
    let (mut child, mut hand, courier) = plant();
    let gate = crate::notify::Gate::default();
    let mut maker = Maker {
        hand: &mut hand,
        courier: &courier,
        sandbox,
        files: Vec::new(),
        shared: Vec::new(),
        sinks: HashMap::new(),
        finishes: Vec::new(),
        hands: Default::default(),
        gate: &gate,
        devices: Vec::new(),
        kernel: None,
    };
    let result = work(&mut maker);
    child.kill().unwrap();
    child.wait().unwrap();
    result
}

/// Puts a process that was planted on the host into namespaces of its own, where it may do everything.
pub(crate) fn isolate(hand: &mut Hand) {
    use nix::unistd::{getegid, geteuid};
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWIPC | libc::CLONE_NEWNS;
    hand.call(libc::SYS_unshare, [flags as u64]).unwrap();
    let proc = |name: &str| format!("/proc/{}/{name}", hand.tid());
    std::fs::write(proc("uid_map"), format!("0 {} 1", geteuid())).unwrap();
    std::fs::write(proc("setgroups"), "deny").unwrap();
    std::fs::write(proc("gid_map"), format!("0 {} 1", getegid())).unwrap();
    for id in [libc::SYS_setresgid, libc::SYS_setresuid] {
        hand.call(id, [0, 0, 0]).unwrap();
    }
}
