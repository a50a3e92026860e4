//! `sandbox save --leave-running`: the image is one moment, and the programs notice nothing of it.

use std::io::Read;

use crate::common::{LIMIT, comes_true, wait_for};
use crate::desk::Desk;

/// Starts tests/guests/live_save.c.
fn begin(desk: &Desk, id: &str) {
    let guest = crate::common::guest("live_save");
    let guest = guest.to_string_lossy();
    desk.sandbox(&["run", "--detach", "--id", id, "--", &guest]).success();
    goes_on(desk);
}

/// It ticks, and has not complained.
#[track_caller]
fn goes_on(desk: &Desk) {
    wait_for("the first tick", || desk.workspace.has("ticks"));
    let before = desk.workspace.read("ticks");
    let comes = comes_true(LIMIT, || {
        let now = desk.workspace.read("ticks");
        desk.workspace.has("broken") || !now.is_empty() && now != before
    });
    assert!(!desk.workspace.has("broken"), "{}", desk.workspace.read("broken"));
    assert!(comes, "it stands still");
}

/// How many processes are listed.
#[track_caller]
fn processes(desk: &Desk, id: &str) -> usize {
    let listed = desk.sandbox(&["ps", id, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.success().out()).unwrap();
    listed.as_array().unwrap().len()
}

#[test]
fn saves_while_it_runs_are_moments_and_go_unnoticed() {
    let desk = Desk::new("save-live");
    begin(&desk, "x");
    for round in 0..50 {
        desk.sandbox(&["save", "x", "-o", "image", "--leave-running"]).success().expect_err("");
        assert_eq!(processes(&desk, "x"), 3, "round {round}");
        goes_on(&desk);
    }
    desk.sandbox(&["kill", "x"]).success();
    desk.workspace.write("restored", "");
    desk.sandbox(&["restore", "image", "--detach", "--id", "y", "--files", "changed-ok"]).success();
    goes_on(&desk);
    goes_on(&desk);
    desk.sandbox(&["kill", "y"]).success();
}

#[test]
fn a_copy_that_is_being_read_holds_nothing_and_is_no_guest() {
    let desk = Desk::new("save-copy");
    begin(&desk, "x");
    // Nobody reads the image, so that the copies stay.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = desk.command(&["save", "x", "-o", "-", "--leave-running"]);
    let mut saving = command.stdout(writer).spawn().unwrap();
    drop(command);
    reader.read_exact(&mut [0; 1000]).unwrap();
    // The image is begun once all go on again.
    assert_eq!(processes(&desk, "x"), 3);
    goes_on(&desk);
    assert!(!desk.workspace.has("eof"));
    desk.workspace.write("close", "");
    wait_for("the end of the pipe", || desk.workspace.has("eof"));
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["resume", "x"]).success();
    goes_on(&desk);
    assert!(saving.try_wait().unwrap().is_none(), "it was to be slow");
    drop(reader);
    assert_eq!(saving.wait().unwrap().code(), Some(125));
    // All of it is there once more, and only that.
    desk.sandbox(&["save", "x", "-o", "image", "--leave-running"]).success();
    assert_eq!(processes(&desk, "x"), 3);
    goes_on(&desk);
    desk.sandbox(&["kill", "x"]).success();
}
