//! Much memory: its copy writes it to the image itself, and where it may not, it is read from outside.

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

/// What the copy may not do.
const KINDS: [&str; 4] = ["", "filter", "limit", "closed"];

#[test]
fn the_guest_program_finds_its_memory_natively() {
    let desk = Desk::new("large-native");
    desk.touch("go");
    for kind in KINDS {
        let mut command = desk.workspace.command(guest("save_large").to_str().unwrap());
        command.arg(kind);
        run(command, b"", LIMIT).success().expect_out("all there\n");
    }
}

#[track_caller]
fn all_there(test: &str, kind: &str, way: Way) {
    let desk = Desk::new(test);
    desk.begin("save_large", kind);
    desk.save(way);
    desk.touch("go");
    desk.ends_well("all there\n");
    desk.is_clean();
}

#[test]
fn memory_is_saved_whatever_its_copy_may_not_do() {
    for (at, kind) in KINDS.into_iter().enumerate() {
        all_there(&format!("large-{at}"), kind, Way::Restored);
        all_there(&format!("large-left-{at}"), kind, Way::LeftRunning);
    }
}

#[test]
fn an_image_of_a_program_that_goes_on_has_the_same_memory() {
    let desk = Desk::new("large-both");
    desk.begin("save_large", "");
    desk.save(Way::LeftRunning);
    desk.sandbox(&["kill", "it", "KILL"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.sandbox(&["restore", "image", "--detach", "--id", "it"]).success();
    desk.touch("go");
    desk.ends_well("all there\n");
}
