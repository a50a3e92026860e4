//! `sandbox exec` at a terminal: it is to the user what a program of the run itself is.

use crate::common::{Workspace, wait_for};
use crate::user::{PROMPT, User};

/// At a shell that sees a detached sandbox `x` of its own, which sleeps.
fn at_a_shell(workspace: &Workspace) -> User {
    let mut user = User::at_a_shell(workspace);
    // Not in the working directory, which the guest may write to.
    user.enters("export XDG_RUNTIME_DIR=$(mktemp -d ../exec-XXXXXX)", PROMPT);
    user.enters("XDG_RUNTIME_DIR=$(realpath $XDG_RUNTIME_DIR)", PROMPT);
    user.enters("$S run --detach --id x -- sleep 1000", "\r\nx\r\n");
    user.wait_for(PROMPT);
    user
}

fn leave(user: &mut User) {
    user.enters("$S kill x KILL; $S wait x; rmdir $XDG_RUNTIME_DIR; echo left$((1))", "left1");
}

#[test]
fn a_later_shell_has_a_terminal_and_jobs_of_its_own() {
    let workspace = Workspace::new("exec-shell");
    let mut user = at_a_shell(&workspace);
    let before = user.modes();
    user.enters(
        "$S exec --env PS1='inside> ' x -- bash --norc --noprofile --noediting -i",
        "inside> ",
    );
    user.enters("tty; stty size", "24 80");
    user.wait_for("inside> ");
    user.enters("cat", "cat\r\n");
    user.enters("one", "one\r\none\r\n");
    user.types("\x1a");
    user.wait_for("Stopped");
    user.wait_for("inside> ");
    user.enters("fg", "cat\r\n");
    // (A shell says what it brings to the foreground before it does.)
    user.enters("two", "two\r\ntwo\r\n");
    user.types("\x03");
    user.wait_for("inside> ");
    user.enters("echo status=$?=", "status=130=");
    user.wait_for("inside> ");
    user.enters("exit 7", PROMPT);
    user.enters("echo status=$?=", "status=7=");
    user.wait_for(PROMPT);
    assert_eq!(user.modes(), before);
    leave(&mut user);
}

#[test]
fn ctrl_z_stops_the_job_of_a_later_program_and_ctrl_c_ends_it() {
    let workspace = Workspace::new("exec-ctrl-z");
    let mut user = at_a_shell(&workspace);
    let before = user.modes();
    user.enters("$S exec x -- cat -E", "cat -E\r\n");
    for round in ["one", "two"] {
        user.enters(round, &format!("{round}$\r\n"));
        user.types("\x1a");
        user.wait_for("Stopped");
        user.wait_for(PROMPT);
        assert_eq!(user.modes(), before);
        user.enters("fg", "cat -E\r\n");
    }
    user.enters("three", "three$\r\n");
    user.types("\x03");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=130=");
    user.wait_for(PROMPT);
    // Two at once do not disturb one another.
    user.enters("$S exec x -- sh -c 'read a < /dev/null; tty' & wait", "/dev/pts/");
    leave(&mut user);
}

#[test]
fn a_later_program_is_hung_up_when_its_client_dies() {
    let workspace = Workspace::new("exec-hang-up");
    let mut user = at_a_shell(&workspace);
    // Nothing is forked: a key that stops a child before its exec would keep a parent in vfork.
    let script = "trap 'touch hung-up; exit' HUP; echo rea$((1))dy; read line";
    user.enters(&format!("$S exec x -- sh -c {}", quoted(script)), "rea1dy");
    user.types("\x1a");
    user.wait_for(PROMPT);
    user.enters("kill -9 %1; wait; echo dead$((1))", "dead1");
    wait_for("the hang-up", || workspace.has("hung-up"));
    leave(&mut user);
}

fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', "'\\''"))
}
