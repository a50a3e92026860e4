//! Programs whose processes have most of their memory in common, as fork(2) has left it.

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

#[test]
fn the_family_is_right_natively() {
    let desk = Desk::new("forks-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_forks"));
    command.args(["up", "go"]);
    run(command, b"", LIMIT).success().out_has("all so\n");
}

#[test]
fn what_parents_and_children_have_in_common_takes_its_room_once_after_a_restore() {
    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        let desk = Desk::new(&format!("forks-{way:?}"));
        desk.begin("save_forks", "up go");
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
        desk.is_clean();
    }
}
