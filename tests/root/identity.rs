//! The rules of ids and capabilities, against the kernel's own answers where the tests run as root.

use std::fs;

use super::common::{Workspace, guest, is_root, repository};
use super::{as_root, as_root_sh};

/// What the guest program says where root runs it natively; kept in a file, so that an ordinary user's run is
/// compared with it, too.
#[test]
fn ids_follow_the_rules_of_the_kernel() {
    let workspace = Workspace::new("root-rules");
    let program = guest("identity");
    let kept = fs::read_to_string(repository().join("tests/root/identity.out")).unwrap();
    if is_root() {
        workspace.native(&[&program]).success().expect_out(&kept);
    }
    as_root(&workspace, &[&program]).success().expect_out(&kept);
}

/// Each is a run of its own: what one has become is nothing to the next, and nothing is left of it.
#[test]
fn every_run_begins_as_root() {
    let workspace = Workspace::new("root-begin");
    as_root_sh(&workspace, "id; whoami; echo $USER $LOGNAME").success();
    let outcome = as_root_sh(&workspace, "id -u; id -g; id -G; command -v chroot");
    outcome.success().out_has("0\n0\n0\n").out_has("chroot");
    workspace
        .inside_with(&["--root", "--env", "USER=me"], &["sh", "-c", "echo $USER"])
        .success()
        .expect_out("me\n");
}

#[test]
fn contradictions_and_decisions_are_said() {
    let workspace = Workspace::new("root-words");
    workspace
        .inside_with(&["--root", "--user", "5:5"], &["true"])
        .expect_status(125)
        .err_has("--root")
        .err_has("--user 5:5");
    workspace.inside_with(&["--root=nonsense"], &["true"]).expect_status(125);
    let outcome = workspace.inside_with(&["--root", "--dry-run"], &["true"]);
    outcome.success().out_has("--root").out_has("SYS_CHROOT");
    // Without the flag nothing of it is there.
    let outcome = workspace.inside_with(&["--dry-run"], &["true"]);
    outcome.success().out_has("no capabilities").out_lacks("--root");
}
