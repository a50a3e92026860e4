//! What an image cannot carry, and a program is about to end by itself: a save waits for it, a moment.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{LIMIT, finish, guest, run, start, wait_for};
use crate::desk::Desk;

/// What the guest program can have, and what a refusal says of it.
const KINDS: [(&str, &str); 5] = [
    ("inotify", "has not yet read what its inotify descriptor"),
    ("unix", "a unix connection with data in it that nobody has accepted yet"),
    ("tcp", "a TCP connection with data in it that nobody has accepted yet"),
    ("netlink", "a netlink socket with messages that were not read"),
    ("cork", "a UDP socket with a datagram that is not complete"),
];

#[test]
fn the_guest_program_takes_natively() {
    for (kind, _) in KINDS {
        let desk = Desk::new("passing-native");
        desk.touch("take");
        desk.touch("end");
        let mut command = desk.workspace.command(guest("save_passing"));
        command.args([kind, "up", "take", "end"]);
        run(command, b"", LIMIT).success().expect_out("all taken\n");
    }
}

fn begin(desk: &Desk, kind: &str) {
    desk.begin("save_passing", &format!("{kind} up take end"));
}

/// A save has looked at the guests at least once.
fn wait_for_a_try(desk: &Desk) {
    wait_for("the first try", || desk.sandbox(&["events", "it"]).out().contains("resumed"));
}

#[test]
fn a_save_waits_for_what_is_taken_soon() {
    for (kind, _) in KINDS {
        for left in [true, false] {
            let desk = Desk::new(&format!("passing-{kind}-{left}"));
            begin(&desk, kind);
            let mut words = vec!["save", "it", "-o", "image"];
            words.extend(left.then_some("--leave-running"));
            let save = start(desk.command(&words));
            wait_for_a_try(&desk);
            desk.touch("take");
            finish(save, "save".into(), b"", LIMIT).success();
            if !left {
                desk.sandbox(&["wait", "it"]).expect_status(137);
                desk.sandbox(&["restore", "image", "--detach", "--id", "it"]).success();
            }
            desk.touch("end");
            desk.ends_well("all taken\n");
            desk.is_clean();
        }
    }
}

#[test]
fn what_is_not_taken_is_refused_by_name_and_goes_on() {
    // At once: each waits for nothing but the end of two seconds.
    std::thread::scope(|scope| {
        for (kind, what) in KINDS {
            scope.spawn(move || is_refused_and_goes_on(kind, what));
        }
    });
}

fn is_refused_and_goes_on(kind: &str, what: &str) {
    let desk = Desk::new(&format!("lasting-{kind}"));
    begin(&desk, kind);
    let begun = Instant::now();
    let save = desk.sandbox(&["save", "it", "-o", "image"]);
    let time = begun.elapsed();
    save.one_line_error(125, &["it", what, "tries within 2."]);
    // The guests had their time, and no more than that.
    assert!(time >= Duration::from_secs(2), "{time:?}");
    assert!(!desk.workspace.has("image"));
    desk.touch("take");
    desk.touch("end");
    desk.ends_well("all taken\n");
    desk.is_clean();
}

#[test]
fn what_is_paused_is_not_waited_for() {
    let desk = Desk::new("lasting-paused");
    begin(&desk, "inotify");
    desk.sandbox(&["pause", "it"]).success();
    let save = desk.sandbox(&["save", "it", "-o", "image"]);
    save.one_line_error(125, &[KINDS[0].1, "does not change while it is paused"]);
    desk.sandbox(&["resume", "it"]).success();
    desk.touch("take");
    desk.touch("end");
    desk.ends_well("all taken\n");
}

#[test]
fn a_save_that_waits_can_be_interrupted() {
    let desk = Desk::new("passing-interrupted");
    begin(&desk, "inotify");
    let save = start(desk.command(&["save", "it", "-o", "image"]));
    wait_for_a_try(&desk);
    kill(Pid::from_raw(save.id() as i32), Signal::SIGINT).unwrap();
    finish(save, "save".into(), b"", LIMIT).expect_status(130);
    assert!(fs::metadata(desk.workspace.path().join("image")).is_err());
    desk.touch("take");
    // The turn of the one that nobody wants is over soon.
    wait_for("the next save", || {
        desk.sandbox(&["save", "it", "-o", "image", "--leave-running"]).status == 0
    });
    desk.touch("end");
    desk.ends_well("all taken\n");
    desk.is_clean();
}
