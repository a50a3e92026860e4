//! Runs with clocks of their own.

use std::time::Duration;

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

#[test]
fn the_guest_program_reads_its_clocks_natively() {
    let desk = Desk::new("clock-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_clock"));
    command.args(["up", "go"]);
    run(command, b"", LIMIT).success().out_has("all so\n");
}

/// Runs under such a clock, saved in these ways; gives the largest step of the time of day, milliseconds.
#[track_caller]
fn clocks(test: &str, time: &[&str], set: &str, save: impl FnOnce(&Desk)) -> u64 {
    let desk = Desk::new(test);
    desk.begin_with(time, "save_clock", &format!("up go {set}"));
    save(&desk);
    desk.touch("go");
    desk.ends_well("all so\n");
    let out = desk.workspace.read("out");
    assert_eq!(out.lines().count(), 2, "{out}");
    out.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap()
}

const TIMES: &[&[&str]] =
    &[&["--time", "+3d"], &["--time", "2020-01-01T00:00:00Z,frozen"], &["--time", "rate=7"]];

#[test]
fn clocks_go_on_after_a_save() {
    for time in TIMES {
        clocks("clock-left", time, "", |desk| (0..3).for_each(|_| desk.save(Way::LeftRunning)));
    }
}

#[test]
fn clocks_go_on_after_restores() {
    for time in TIMES {
        clocks("clock-restored", time, "", |desk| desk.save(Way::RestoredTwice));
    }
}

/// So many that one of them may be stopped between the kernel's clock and what is added to it.
#[test]
fn a_clock_that_is_being_read_runs_backwards_for_nobody() {
    let desk = Desk::new("readers");
    desk.begin("save_readers", "up go 32");
    desk.save(Way::RestoredTwice);
    desk.touch("go");
    desk.ends_well("all so\n");
}

#[test]
fn a_clock_that_was_set_goes_on() {
    let words = ["--time", "+0s", "--user", "root"];
    for way in [Way::LeftRunning, Way::RestoredTwice] {
        clocks("clock-set", &words, "2000000000", |desk| desk.save(way));
    }
}

#[test]
fn the_time_of_day_counts_the_time_in_the_image_only_where_it_is_told_to() {
    let time = ["--time", "2020-01-01T00:00:00Z,rate=100"];
    let step = |test, words: &[&str]| {
        clocks(test, &time, "", |desk| {
            desk.sandbox(&["save", "it", "-o", "image"]).success();
            desk.sandbox(&["wait", "it"]).expect_status(137);
            // There is nothing to wait for but the clock of the host.
            std::thread::sleep(Duration::from_secs(3));
            let own = ["restore", "image", "--detach", "--id", "it"];
            desk.sandbox(&[&own, words].concat()).success();
        })
    };
    let (goes_on, jumps) = (step("clock-on", &[]), step("clock-jump", &["--clock", "elapsed"]));
    assert!(jumps >= 300_000 && goes_on < jumps, "{goes_on} {jumps}");
}

/// Milliseconds of the sandbox, which are fewer of the host's.
const SPAN: &str = "7000";

#[track_caller]
fn waits(test: &str, way: Way) {
    let desk = Desk::new(test);
    desk.begin_with(&["--time", "rate=2"], "save_waits", &format!("up {SPAN} 6000"));
    desk.save(way);
    desk.ends_well("all waited\n");
}

#[test]
fn waits_at_a_rate_go_on_after_a_save() {
    waits("rated-left", Way::LeftRunning);
}

#[test]
fn waits_at_a_rate_go_on_after_a_restore() {
    waits("rated-restored", Way::Restored);
}

#[test]
fn waits_of_a_paused_sandbox_at_a_rate_go_on_after_a_restore() {
    let desk = Desk::new("rated-paused");
    // (The clock goes on while it is paused, so that a busy machine makes all of them late.)
    desk.begin_with(&["--time", "rate=2"], "save_waits", &format!("up {SPAN} 60000"));
    desk.sandbox(&["pause", "it"]).success();
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.sandbox(&["restore", "image", "--detach", "--id", "it"]).success();
    desk.ends_well("all waited\n");
}
