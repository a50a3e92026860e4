//! All that a program can see of itself is after a save what it was before.

use crate::common::{LIMIT, have, run};
use crate::desk::{Desk, Way};

const PROGRAM: &str = include_str!("../guests/save_likeness.py");

fn desk(test: &str) -> Option<Desk> {
    if !have("python3") {
        return None;
    }
    let desk = Desk::new(test);
    desk.workspace.write("likeness.py", PROGRAM);
    Some(desk)
}

#[test]
fn the_program_is_like_itself_natively() {
    let Some(desk) = desk("likeness-native") else { return };
    let mut command = desk.workspace.command("sh");
    let script = "python3 likeness.py & while ! [ -e up ]; do sleep 0.05; done; touch go; wait $!";
    command.args(["-c", script]);
    run(command, b"", LIMIT).success().expect_out("all alike\n");
}

#[track_caller]
fn likeness(test: &str, way: Way) {
    let Some(desk) = desk(test) else { return };
    desk.begin_command("exec python3 likeness.py");
    desk.save(way);
    desk.touch("go");
    desk.ends_well("all alike\n");
}

#[test]
fn a_program_that_is_left_running_notices_nothing() {
    likeness("likeness-left", Way::LeftRunning);
}

#[test]
fn a_program_that_is_restored_notices_nothing() {
    likeness("likeness-restored", Way::Restored);
}
