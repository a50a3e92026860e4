//! Descriptors as answers of the notify engine.
//!
//! In a binary of its own: a process that another test makes at the same time would hold a copy of
//! what must have one holder.

#[path = "common/mod.rs"]
mod common;
#[path = "engine/stage.rs"]
mod stage;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use sandbox::notify::{Answer, Descriptor, Options, Outcome, Trapped};
use sandbox::sys::seccomp::Place;

use common::Workspace;
use stage::{FULL, OWN, Served, Stage};

fn descriptor(fd: impl Into<OwnedFd>, place: Place, cloexec: bool, sole: bool) -> Outcome {
    Outcome::Now(Answer::Descriptor(Descriptor { fd: fd.into(), place, cloexec, sole }))
}

#[test]
fn descriptors_are_installed_as_asked_and_a_sole_one_is_let_go_before_the_guest_runs_on() {
    for sync_wake_up in [true, false] {
        let workspace = Workspace::new("descriptors");
        let path = workspace.write("file", "content");
        let open = move || File::options().read(true).write(true).open(&path).unwrap();
        let serve = move |trapped: &Trapped| match trapped.received().number - OWN {
            // The guest locks it, closes it, and looks whether the lock is gone.
            0 => descriptor(open(), Place::Lowest, false, true),
            1 => descriptor(open(), Place::Lowest, true, false),
            2 => descriptor(open(), Place::Lowest, false, false),
            3 => descriptor(open(), Place::At(77), false, trapped.received().id.is_multiple_of(2)),
            // The kernel takes no O_PATH descriptor: the call fails, it does not hang.
            4 => {
                let flags = OFlag::O_PATH.bits();
                let path = File::options().read(true).custom_flags(flags).open("/").unwrap();
                descriptor(path, Place::Lowest, false, trapped.received().args[1] == 0)
            }
            _ => panic!("an unexpected call"),
        };
        let options = Options { sync_wake_up, ..FULL };
        let stage = Stage::start(options, &["traps", "descriptors"], Served::by(serve));
        assert_eq!(stage.finish(), 0);
    }
}
