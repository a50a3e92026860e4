//! Memory of all kinds, through a save and a restore.

use crate::common::{LIMIT, finish, guest};
use crate::desk::Desk;

/// Starts the guest and waits until its memory is as it will be saved.
fn detach(desk: &Desk, id: &str) {
    let program = guest("saved_memory");
    desk.detach(id, &format!("exec {} up-{id} go", program.display()));
}

#[test]
fn memory_is_after_a_restore_as_it_was() {
    let desk = Desk::new("memory-restored");
    detach(&desk, "first");
    desk.sandbox(&["save", "first", "-o", "image"]).success();
    desk.workspace.write("go", "");
    desk.sandbox(&["restore", "image", "--id", "second"]).success().expect_out("right\n");
}

#[test]
fn memory_is_not_changed_by_a_save() {
    let desk = Desk::new("memory-left");
    detach(&desk, "first");
    desk.sandbox(&["save", "first", "-o", "image", "--leave-running"]).success();
    let waiting = desk.begin(&["wait", "first"]);
    desk.workspace.write("go", "");
    assert!(finish(waiting, "wait".to_owned(), b"", LIMIT).status == 0);
    desk.sandbox(&["restore", "image", "--id", "second"]).success().expect_out("right\n");
}
