//! A guest has the uid of its user, and controls no sandbox all the same.

use crate::common::sandbox_program;
use crate::desk::Desk;

#[test]
fn a_guest_does_not_see_the_state_directory() {
    let desk = Desk::new("hidden");
    desk.detach_idle("x");
    let runtime = desk.runtime();
    let runtime = runtime.to_str().unwrap();
    // Its place is shown, and may be written to.
    let tries = "ls -A .; ls -A sandbox; ls -R .; cat sandbox/x/info; rmdir sandbox; mv sandbox other; \
                 touch sandbox/y";
    let words = ["--rw", runtime, "--workdir", runtime, "--", "sh", "-c", tries];
    let tried = desk.sandbox(&words);
    tried.failure().out_has("sandbox").out_lacks("control").out_lacks("info").out_lacks("other");
    desk.sandbox(&["-v", "--", "true"]).success();
    desk.sandbox(&["-v", "--rw", runtime, "--", "true"])
        .success()
        .err_has("the control sockets of your sandboxes");
    // Nor under another name.
    let words = ["--ro", &format!("{runtime}:/tmp/seen"), "--", "ls", "/tmp/seen/sandbox/x"];
    desk.sandbox(&words).failure().expect_out("");
    assert_eq!(desk.listed("x").unwrap()["state"], "running");
}

#[test]
fn a_guest_that_is_shown_the_sockets_is_refused_by_them() {
    let desk = Desk::new("shown");
    desk.detach_idle("x");
    let program = sandbox_program();
    let program = program.to_str().unwrap();
    let runtime = format!("XDG_RUNTIME_DIR={}", desk.runtime().display());
    let base = desk.runtime().join("sandbox");
    let base = base.to_str().unwrap();
    let inside = |words: &[&str]| {
        let options = ["--id", "own", "--rw", base, "--env", &runtime, "--", program];
        desk.sandbox(&[&options[..], words].concat())
    };
    for id in ["x", "own"] {
        for verb in ["kill", "pause", "ps", "stats", "wait", "dmesg", "events"] {
            inside(&[verb, id]).one_line_error(125, &[id, "another user namespace"]);
        }
    }
    inside(&["ps"]).success().out_has("unresponsive").out_lacks("running");
    assert_eq!(desk.listed("x").unwrap()["state"], "running");
}
