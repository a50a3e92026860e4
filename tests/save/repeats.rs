//! Runs with `--deterministic`: saved in the middle they give what they would have given.

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

const WORDS: &str = "up go many";

/// What it says, saved in this way.
#[track_caller]
fn said(desk: &Desk, save: impl FnOnce(&Desk)) -> String {
    // (Streams are made of the program's path, among other things: all run in one place.)
    for left in ["up", "go", "made", "many/zzz"] {
        let _ = std::fs::remove_file(desk.workspace.path().join(left));
    }
    desk.begin_with(&["--deterministic=seed"], "repeat_saved", WORDS);
    save(desk);
    desk.touch("go");
    desk.ends_well("that is all\n");
    desk.workspace.read("out")
}

#[test]
fn a_run_that_repeats_gives_the_same_when_it_is_saved_in_the_middle() {
    let desk = Desk::new("repeat");
    for number in 0..40 {
        desk.workspace.write(&format!("many/{}", number * 7919 % 1000), "");
    }
    desk.touch("go");
    let mut command = desk.workspace.command(guest("repeat_saved"));
    command.args(WORDS.split(' '));
    run(command, b"", LIMIT).success().out_has("that is all\n");

    let wanted = said(&desk, |_| ());
    assert_eq!(said(&desk, |_| ()), wanted);
    for way in [Way::LeftRunning, Way::RestoredTwice] {
        let found = said(&desk, |desk| {
            // It has begun to read the directory, and goes on with what was there then.
            desk.touch("many/zzz");
            desk.save(way);
        });
        assert_eq!(found, wanted, "{way:?}");
    }
}
