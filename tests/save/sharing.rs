//! Programs whose processes and threads share what others do not.

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

#[test]
fn the_guest_program_shares_natively() {
    let desk = Desk::new("sharing-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_sharing"));
    command.args(["up", "go"]);
    run(command, b"", LIMIT).success().expect_out("all so\n");
}

#[test]
fn what_tasks_share_they_share_after_a_save_and_a_restore() {
    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        let desk = Desk::new(&format!("sharing-{way:?}"));
        desk.begin("save_sharing", "up go");
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
        desk.is_clean();
    }
}

#[test]
fn peers_are_told_natively() {
    let desk = Desk::new("peers-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_peers"));
    command.args(["up", "go"]);
    run(command, b"", LIMIT).success().expect_out("all so\n");
}

#[test]
fn who_made_the_other_end_of_a_socket_is_told_after_a_save_and_a_restore() {
    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        let desk = Desk::new(&format!("peers-{way:?}"));
        desk.begin("save_peers", "up go");
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
    }
}
