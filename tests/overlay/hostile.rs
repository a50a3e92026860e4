//! What a guest leaves in an overlay, and what the host has in its place, leads nowhere else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::common::have;
use super::desk::{Desk, same_trees, tree};

#[test]
fn a_link_of_the_hosts_leads_no_commit_elsewhere() {
    let desk = Desk::new("leads");
    let outside = desk.space.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f1"), "outside\n").unwrap();
    desk.inside("l", "echo in > src/f1; echo in > src/deep/er/new; rm src/f2").success();
    // Between the run and the commit a directory on the way becomes a link.
    fs::rename(desk.host.join("src"), desk.space.path().join("away")).unwrap();
    symlink(&outside, desk.host.join("src")).unwrap();
    let outcome = desk.words(&["commit", "l", "--force"]);
    assert_eq!(fs::read_to_string(outside.join("f1")).unwrap(), "outside\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{}", outcome.report());
    assert_eq!(fs::read_to_string(desk.space.path().join("away/f2")).unwrap(), "file 2\n");
}

#[test]
fn a_link_of_the_guests_is_committed_as_one() {
    let desk = Desk::new("guests");
    let outside = desk.space.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let script = format!("rm -r src; ln -s {} src; ln -s / root; ln -s .. up", outside.display());
    desk.inside("g", &script).success();
    desk.words(&["commit", "g"]).success();
    assert_eq!(fs::read_link(desk.host.join("src")).unwrap(), outside);
    assert!(outside.join("kept").exists());
    desk.inside("g", "rm src root; mkdir src; echo x > src/x; rm -r up").success();
    desk.words(&["commit", "g"]).success();
    assert!(desk.host.join("src/x").exists() && !outside.join("x").exists());
}

#[test]
fn no_name_of_a_guests_is_taken_for_one_of_the_overlays_own() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("own");
    // Neither a removal nor a replaced directory can be forged.
    let script = r#"
        python3 - <<'EOF'
import os
for what in (lambda: os.mknod("src/f1x", 0o020000 | 0o600, 0), lambda: os.setxattr("src", "user.overlay.opaque", b"y"),
             lambda: os.setxattr("tool", "user.overlay.whiteout", b"y"),
             lambda: os.setxattr("docs", "user.overlay.redirect", b"/src")):
    try:
        what()
    except OSError as error:
        print(error.errno)
open("still", "w").write("x")
EOF
    "#;
    desk.inside("own", script).success();
    let before = tree(&desk.host);
    let changes = desk.diff("own");
    assert!(changes.iter().all(|(letter, _)| *letter != 'D'), "{changes:?}");
    desk.words(&["commit", "own"]).success();
    let mut after = tree(&desk.host);
    assert_eq!(after.remove(Path::new("still")).map(|it| it.content), Some(b"x".to_vec()));
    let names = |tree: &super::desk::Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
}

#[test]
fn a_socket_is_left_out() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("socket");
    desk.inside(
        "s",
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'; echo x > y",
    )
    .success();
    desk.words(&["commit", "s"]).success().err_has("sock is not committed");
    assert!(!desk.host.join("sock").exists() && desk.host.join("y").exists());
    desk.nothing_is_kept();
}

#[test]
fn a_tree_deeper_than_any_path_can_be_dropped() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("deep");
    let before = tree(&desk.host);
    let script = "python3 -c '\nimport os\nfor n in range(600):\n os.mkdir(\"deeper-and-deeper\"); os.chdir(\"deeper-and-deeper\")'";
    desk.inside("deep", script).success();
    let listed = desk.words(&["diff", "deep"]);
    listed.expect_status(1);
    assert_eq!(listed.out().lines().count(), 600);
    desk.words(&["commit", "deep"])
        .one_line_error(125, &["File name too long", "nothing was committed"]);
    desk.words(&["discard", "deep"]).success();
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    desk.nothing_is_kept();
}

#[test]
fn an_overlay_of_another_version_is_named() {
    let desk = Desk::new("version");
    desk.inside("v", "echo x > y").success();
    let description = desk.store().join("v/description");
    let text = fs::read(&description).unwrap();
    let later = [b"sandbox overlay 2\n", &text[18..]].concat();
    fs::write(&description, later).unwrap();
    desk.words(&["diff", "v"]).one_line_error(2, &["it has the form 2", "knows 1"]);
    desk.inside("v", "true").one_line_error(125, &["it has the form 2", "sandbox discard v"]);
    fs::write(&description, &text[..30]).unwrap();
    desk.words(&["commit", "v"]).one_line_error(125, &["its description is damaged"]);
}

#[test]
fn a_run_goes_on_where_an_earlier_one_took_all_rights() {
    let desk = Desk::new("rights");
    let flags = ["--id", "r", "--overlay", ".", "--workdir", "/", "--ro", "/"];
    let at = desk.host.display();
    let inside = |script: &str| desk.words(&[&flags[..], &["--", "sh", "-c", script]].concat());
    inside(&format!("echo x > {at}/y; chmod 0 {at}")).success();
    inside(&format!("chmod 755 {at}; cat {at}/y")).success().expect_out("x\n");
}
