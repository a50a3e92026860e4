//! Programs that wait to be told of messages in POSIX queues, and those whose ends undo what they did to
//! semaphores.

use std::path::Path;

use crate::common::{LIMIT, guest, run, skip};
use crate::desk::{Desk, Way};

/// Whether this kernel has such queues.
fn have_queues() -> bool {
    let have = Path::new("/proc/sys/fs/mqueue").exists();
    if !have {
        skip("POSIX message queues");
    }
    have
}

#[test]
fn the_guest_program_is_told_natively() {
    for words in [&["up", "go"][..], &["up", "go", "thread"]] {
        if !have_queues() {
            return;
        }
        let desk = Desk::new("notified-native");
        desk.touch("go");
        let mut command = desk.workspace.command(guest("save_notified"));
        command.args(words);
        run(command, b"", LIMIT).success().expect_out("all so\n");
    }
}

#[test]
fn who_is_to_be_told_is_after_a_save_and_a_restore() {
    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        if !have_queues() {
            return;
        }
        let desk = Desk::new(&format!("notified-{way:?}"));
        desk.begin("save_notified", "up go");
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
    }
}

#[test]
fn who_is_to_be_told_by_a_thread_is_refused_by_name_and_is_told() {
    if !have_queues() {
        return;
    }
    let desk = Desk::new("notified-thread");
    desk.begin("save_notified", "up go thread");
    let save = desk.sandbox(&["save", "it", "-o", "image"]);
    save.one_line_error(125, &["it", "/notified-0-", "mq_notify", "SIGEV_THREAD"]);
    desk.touch("go");
    desk.ends_well("all so\n");
}

#[test]
fn ends_undo_natively() {
    let desk = Desk::new("undo-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_undo"));
    command.args(["up", "go", "exact"]);
    run(command, b"", LIMIT).success().expect_out("all so\n");
}

#[test]
fn what_an_end_undoes_it_undoes_after_a_save_and_a_restore() {
    for (way, how) in [(Way::LeftRunning, "exact"), (Way::Restored, ""), (Way::RestoredTwice, "")] {
        let desk = Desk::new(&format!("undo-{way:?}"));
        desk.begin("save_undo", &format!("up go {how}"));
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
    }
}
