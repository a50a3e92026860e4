//! What is saved can be restored in the same breath: its id is free when the save's last word has come.

use std::fs;

use crate::common::{LIMIT, finish, start, wait_for};
use crate::desk::Desk;

/// Makes `up`, and waits for `go`.
const WAITS: &str = ": > up; until [ -e go ]; do sleep 0.01; done; exit 3";

#[test]
fn a_detached_one_is_restored_at_once_again_and_again() {
    let desk = Desk::new("soon");
    desk.start(&["sh", "-c", WAITS]);
    for _ in 0..20 {
        desk.sandbox(&["save", "it", "-o", "image"]).success();
        desk.sandbox(&["restore", "image", "--detach"]).success();
    }
    desk.touch("go");
    desk.sandbox(&["wait", "it"]).expect_status(3);
    desk.is_clean();
}

#[test]
fn one_in_the_foreground_too() {
    let desk = Desk::new("soon-foreground");
    let mut held = start(desk.command(&["run", "--id", "it", "--", "sh", "-c", WAITS]));
    wait_for("the program", || desk.workspace.has("up"));
    for _ in 0..5 {
        desk.sandbox(&["save", "it", "-o", "image"]).success();
        // Nobody has asked how the one before ended.
        let next = start(desk.command(&["restore", "image"]));
        let before = finish(held, "the one before".into(), b"", LIMIT);
        before.expect_status(137).err_has("saved to");
        held = next;
        wait_for("what was restored", || desk.sandbox(&["ps", "it"]).out().contains("sleep"));
    }
    desk.touch("go");
    finish(held, "the last".into(), b"", LIMIT).expect_status(3);
    desk.is_clean();
}

#[test]
fn one_with_an_overlay_takes_its_place() {
    let desk = Desk::new("soon-overlay");
    fs::create_dir(desk.workspace.path().join("layer")).unwrap();
    let script = format!("echo one > layer/file; {WAITS}");
    fs::create_dir(desk.workspace.path().join("kept")).unwrap();
    let own = ["run", "--detach", "--id", "it", "--overlay", "layer", "--overlay-dir", "kept"];
    desk.sandbox(&[&own[..], &["--", "sh", "-c", &script]].concat()).success();
    wait_for("the program", || desk.workspace.has("up"));
    for _ in 0..3 {
        desk.sandbox(&["save", "it", "-o", "image"]).success();
        let restore = ["restore", "image", "--detach", "--overlay-dir", "kept"];
        desk.sandbox(&restore).success();
    }
    desk.touch("go");
    desk.sandbox(&["wait", "it"]).expect_status(3);
}
