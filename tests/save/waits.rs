//! Interrupted calls, timers, signals and stopped processes.

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

/// Milliseconds of the timed waits: long enough for a save in the middle on a busy machine.
const SPAN: &str = "4000";

#[test]
fn the_guest_program_waits_natively() {
    let desk = Desk::new("save-native");
    let mut command = desk.workspace.command(guest("save_waits"));
    command.args(["up", "300"]);
    run(command, b"", LIMIT).success().expect_out("all waited\n");
}

#[track_caller]
fn waits(test: &str, way: Way) {
    let desk = Desk::new(test);
    // How long it had waited before an earlier stop, the kernel does not tell.
    let late = if way == Way::PausedAndRestored { SPAN } else { "1500" };
    desk.begin("save_waits", &format!("up {SPAN} {late}"));
    desk.save(way);
    desk.ends_well("all waited\n");
}

#[test]
fn no_wait_ends_by_a_save_that_leaves_the_program_running() {
    waits("waits-left", Way::LeftRunning);
}

#[test]
fn no_wait_ends_by_a_save_and_a_restore() {
    waits("waits-restored", Way::Restored);
}

#[test]
fn a_wait_that_was_interrupted_before_goes_on_all_the_same() {
    waits("waits-paused", Way::PausedAndRestored);
}

#[track_caller]
fn state(test: &str, way: Way) {
    let desk = Desk::new(test);
    desk.begin("save_state", "up go");
    desk.save(way);
    desk.touch("go");
    desk.ends_well("all so\n");
}

#[test]
fn timers_signals_and_stops_are_there_after_a_save() {
    state("state-left", Way::LeftRunning);
}

#[test]
fn timers_signals_and_stops_are_there_after_a_restore() {
    state("state-restored", Way::Restored);
}

#[track_caller]
fn faults(test: &str, ways: &[Way]) {
    let desk = Desk::new(test);
    desk.begin("save_faults", "up go");
    ways.iter().for_each(|way| desk.save(*way));
    desk.touch("go");
    desk.ends_well("all heard\n");
}

#[test]
fn each_fault_comes_once_after_saves_in_its_midst() {
    faults("faults-left", &[Way::LeftRunning; 12]);
}

#[test]
fn each_fault_comes_once_after_restores_in_its_midst() {
    faults("faults-restored", &[Way::TenTimes]);
}

/// What a program does of SIGTRAP, and what of that waits.
const TRAPS: [&str; 6] = ["handled", "ignored", "waits", "ignored-waits", "always", "timed"];

#[test]
fn traps_come_natively() {
    let desk = Desk::new("traps-native");
    desk.touch("go");
    for how in TRAPS {
        let mut command = desk.workspace.command(guest("save_traps"));
        command.args(["up", "go", how]);
        run(command, b"", LIMIT).success().expect_out("all so\n");
    }
}

#[track_caller]
fn traps(test: &str, ways: &[Way]) {
    for how in TRAPS {
        let desk = Desk::new(&format!("{test}-{how}"));
        desk.begin("save_traps", &format!("up go {how}"));
        ways.iter().for_each(|way| desk.save(*way));
        desk.touch("go");
        desk.ends_well("all so\n");
    }
}

#[test]
fn a_program_keeps_its_traps_after_saves() {
    traps("traps-left", &[Way::LeftRunning; 4]);
}

#[test]
fn a_program_keeps_its_traps_after_a_restore() {
    traps("traps-restored", &[Way::Restored]);
}

#[test]
fn a_program_keeps_its_traps_after_many_restores() {
    traps("traps-ten", &[Way::TenTimes]);
}

#[test]
fn timers_count_natively() {
    let desk = Desk::new("overruns-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_overruns"));
    command.args(["up", "go", "exact"]);
    run(command, b"", LIMIT).success().out_has("all so\n");
}

#[track_caller]
fn overruns(test: &str, way: Way, how: &str) {
    let desk = Desk::new(test);
    desk.begin("save_overruns", &format!("up go {how}"));
    desk.save(way);
    desk.touch("go");
    desk.ends_well("all so\n");
}

#[test]
fn what_timers_have_counted_is_there_after_a_save() {
    overruns("overruns-left", Way::LeftRunning, "exact");
}

#[test]
fn what_timers_have_counted_is_there_after_a_restore() {
    overruns("overruns-restored", Way::Restored, "");
    overruns("overruns-twice", Way::RestoredTwice, "");
}
