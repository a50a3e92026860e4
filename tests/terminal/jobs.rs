//! Keys, jobs and statuses: at the shell inside and at the shell outside.

use crate::common::leftovers::marked_processes;
use crate::common::{Leftovers, Workspace, have, wait_for};
use crate::user::{PROMPT, User};

/// An interactive shell inside, with a prompt of its own.
const SHELL: &str = "$S --env PS1='inside> ' -- bash --norc --noprofile --noediting -i";

#[test]
fn job_control_of_a_shell_inside() {
    let workspace = Workspace::new("jobs");
    let mut user = User::at_a_shell(&workspace);
    user.enters(SHELL, "inside> ");
    user.enters("sleep 1000 &", "[1] ");
    user.wait_for("inside> ");
    user.enters("jobs", "Running");
    user.wait_for("inside> ");
    user.enters("fg", "sleep 1000\r\n");
    // The job has the terminal once the shell has let go of it; a Ctrl-C before goes to the shell.
    wait_for("the job in the foreground", || is_in_foreground("sleep", &workspace));
    user.types("\x03");
    user.wait_for("inside> ");
    user.enters("echo status=$?=", "status=130=");
    user.wait_for("inside> ");

    // Ctrl-Z of a job is the inner shell's business alone.
    user.enters("cat", "cat\r\n");
    user.enters("one", "one\r\none\r\n");
    user.types("\x1a");
    user.wait_for("Stopped");
    user.wait_for("inside> ");
    user.enters("bg", "cat &");
    user.wait_for("inside> ");
    // A job of the background that reads is stopped.
    user.enters("until jobs | grep Stopped; do sleep 0.05; done; echo so$((1))", "so1");
    user.wait_for("inside> ");
    user.enters("fg", "cat\r\n");
    user.enters("two", "two\r\ntwo\r\n");
    user.types("\x04");
    user.wait_for("inside> ");
    let jobs = user.enters("jobs; echo none$((1))", "none1");
    assert!(!jobs.contains("Stopped"), "{jobs:?}");
    user.wait_for("inside> ");
    user.enters("exit 7", PROMPT);
    user.enters("echo status=$?=", "status=7=");
}

#[test]
fn ctrl_z_stops_the_whole_sandbox_and_fg_goes_on() {
    let workspace = Workspace::new("ctrl-z");
    let mut user = User::at_a_shell(&workspace);
    let before = user.modes();
    // What cat has written, marked by its dollar, it has written while it runs.
    user.enters("$S -- cat -E", "cat -E\r\n");
    for round in ["one", "two", "three"] {
        user.enters(round, &format!("{round}$\r\n"));
        user.types("\x1a");
        user.wait_for("Stopped");
        user.wait_for(PROMPT);
        assert_eq!(user.modes(), before);
        user.enters("echo outer$((1))", "outer1");
        user.wait_for(PROMPT);
        user.enters("fg", "$S -- cat -E\r\n");
    }
    user.enters("four", "four$\r\n");
    user.types("\x04");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=0=");
}

#[test]
fn no_key_of_the_first_moment_is_lost() {
    let workspace = Workspace::new("first-moment");
    let mut user = User::at_a_shell(&workspace);
    let before = user.modes();
    for _ in 0..15 {
        user.types("$S -- sleep 1000\r");
        // From here on the keys are the guest's.
        wait_for("the raw terminal", || user.modes() != before);
        user.types("\x1a");
        user.wait_for("Stopped");
        user.wait_for(PROMPT);
        user.enters("fg", "sleep 1000\r\n");
        wait_for("the raw terminal", || user.modes() != before);
        user.types("\x03");
        user.wait_for(PROMPT);
        user.enters("echo status=$?=", "status=130=");
        user.wait_for(PROMPT);
    }
}

#[test]
fn a_stopped_sandbox_can_be_killed() {
    let workspace = Workspace::new("kill-stopped");
    let leftovers = Leftovers::before(&workspace);
    let mut user = User::at_a_shell(&workspace);
    user.enters("$S -- sh -c 'echo up$((1)); exec sleep 1000'", "up1");
    user.types("\x1a");
    user.wait_for("Stopped");
    user.wait_for(PROMPT);
    user.enters("kill %1; while jobs %1 >file 2>&1; do sleep 0.05; done; echo gone$((1))", "gone1");
    user.wait_for(PROMPT);
    user.enters("exit", "exit");
    user.waits_for_the_end();
    leftovers.check();
}

#[test]
fn a_sandbox_in_the_background_runs_and_prints() {
    let workspace = Workspace::new("background");
    let mut user = User::at_a_shell(&workspace);
    user.enters("$S -- sh -c 'echo printed$((1)); exit 3' &", "printed1");
    // (By its number: a job whose end was told at a prompt is none any more.)
    user.enters("wait $!; echo status=$?=", "status=3=");
    user.wait_for(PROMPT);
    // One that reads is stopped until it is in the foreground.
    user.enters("$S -- sh -c 'read -r x; echo got-$x' &", PROMPT);
    user.enters("until jobs | grep Stopped; do sleep 0.05; done", "Stopped");
    user.wait_for(PROMPT);
    user.enters("fg", "got-$x'\r\n");
    user.enters("word", "got-word");
    user.wait_for(PROMPT);
}

#[test]
fn keys_become_signals() {
    let workspace = Workspace::new("keys");
    let mut user = User::at_a_shell(&workspace);
    user.enters("$S -- sh -c 'echo up$((1)); exec sleep 1000'", "up1");
    user.types("\x03");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=130=");
    user.wait_for(PROMPT);
    let guest =
        "trap \"echo caught\\$((1)); exit 3\" INT; echo up$((2)); while :; do sleep 0.1; done";
    user.enters(&format!("$S -- sh -c '{guest}'; echo status=$?="), "up2");
    user.types("\x03");
    user.wait_for("caught1");
    user.wait_for("status=3=");
    user.wait_for(PROMPT);
    user.enters("ulimit -c 0; $S -- sh -c 'echo up$((3)); exec sleep 1000'", "up3");
    user.types("\x1c");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=131=");
}

/// Without a sandbox the key reaches the whole job, and the shell gives up its loop or script.
#[test]
fn ctrl_c_ends_the_loop_and_the_script_around_it() {
    let workspace = Workspace::new("around");
    let mut user = User::at_a_shell(&workspace);
    let rounds = "for i in 1 2; do $S -- sh -c 'echo round$((10 + 1)); exec sleep 1000'; done";
    user.enters(rounds, "round11");
    user.types("\x03");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=130=");
    user.wait_for(PROMPT);
    workspace.write("script", "$S -- sh -c 'echo up; exec sleep 1000'\necho went on\n");
    user.enters("S=$S bash script; echo status=$?=", "up");
    user.types("\x03");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=130=");
}

#[test]
fn statuses_and_pipelines() {
    let workspace = Workspace::new("pipelines");
    workspace.write("lines", "3\n1\n2\n");
    let mut user = User::at_a_shell(&workspace);
    for (line, answer) in [
        ("$S -- bash -c 'exit 9'; echo status=$?=", "status=9="),
        ("$S -- no-such-program; echo status=$?=", "status=127="),
        ("$S -- /etc; echo status=$?=", "status=126="),
        ("$S --no-such-flag; echo status=$?=", "status=125="),
        ("$S -- sh -c 'exit 3' | cat; echo status=${PIPESTATUS[0]}=", "status=3="),
        ("echo x$((1)) | $S -- cat; echo status=$?=", "\r\nstatus=0="),
        ("$S -- cat < lines | $S -- sort | $S -- tr '\\n' ' '; echo =", "1 2 3 ="),
        ("$S -- cat lines | head -n1; echo status=$?=", "3\r\nstatus=0="),
        ("x=$($S -- sh -c 'echo in$((1))'); echo $x=$?=", "in1=0="),
        ("$S -- sh -c 'echo to$((1)) >&2' 2>&1 | tr a-z A-Z", "TO1"),
        ("yes | $S -- head -n1; echo status=${PIPESTATUS[*]}=", "\r\nstatus=141 0="),
        ("$S -- sh -c '[ -t 0 ] && [ -t 1 ] && [ -t 2 ]'; echo status=$?=", "status=0="),
        ("$S -- sh -c '[ -t 0 ]' < lines; echo status=$?=", "status=1="),
        ("$S -- sh -c '[ -t 1 ]' > file; echo status=$?=", "status=1="),
        ("(echo a; $S -- echo b; echo c) > f; cat f", "a\r\nb\r\nc\r\n"),
        ("($S -- head -n1; cat) < lines | tr -d '\\n'; echo =", "312="),
    ] {
        user.enters(line, answer);
        user.wait_for(PROMPT);
    }
}

#[test]
fn a_pipeline_into_a_pager_leaves_the_terminal_to_it() {
    let workspace = Workspace::new("pager");
    let mut user = User::at_a_shell(&workspace);
    // The reader of the pipe reads the terminal too, as a pager does.
    let reader = "sh -c 'cat; read -r x </dev/tty; echo got-$x'";
    user.enters(&format!("$S -- echo from$((1)) | {reader}"), "from1\r\n");
    user.enters("word", "got-word");
    user.wait_for(PROMPT);
    user.enters(&format!("echo from$((2)) | $S -- {reader}"), "from2\r");
    user.enters("other", "got-other");
    user.wait_for(PROMPT);
}

#[test]
fn closing_the_window_ends_everything() {
    let workspace = Workspace::new("unplugged");
    let leftovers = Leftovers::before(&workspace);
    let mut user = User::at_a_shell(&workspace);
    let guest = "trap \"echo hung up > hup; exit\" HUP; echo up$((1)); while :; do sleep 0.1; done";
    user.enters(&format!("$S -- sh -c '{guest}'"), "up1");
    user.unplugs();
    wait_for("the guest's hangup", || workspace.has("hup"));
    drop(user);
    leftovers.check();
}

#[test]
fn a_session_of_script() {
    if !have("script") {
        return;
    }
    let workspace = Workspace::new("script");
    let mut user = User::at_a_shell(&workspace);
    user.enters(
        "script -qec '$S -- sh -c \"echo in\\$((1)); stty size; exit 4\"' log",
        "in1\r\n24 80\r\n",
    );
    user.wait_for(PROMPT);
    user.enters("echo status=$?=; grep -c in1 log", "status=4=\r\n1\r\n");
}

#[test]
fn sandbox_runs_script() {
    if !have("script") {
        return;
    }
    let workspace = Workspace::new("in-script");
    let mut user = User::at_a_shell(&workspace);
    user.enters("$S -- script -qec 'tty; read x; echo got-$x; exit 5' log", "/dev/pts/");
    user.enters("word", "got-word");
    user.wait_for(PROMPT);
    user.enters("echo status=$?=", "status=5=");
}

/// Whether a process of this name is in the foreground of its terminal (proc(5): the state is
/// followed by parent, group, session, terminal and the terminal's foreground group).
fn is_in_foreground(name: &str, workspace: &Workspace) -> bool {
    marked_processes(workspace.mark()).iter().any(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((command, rest)) = stat.rsplit_once(") ") else { return false };
        let fields: Vec<&str> = rest.split(' ').collect();
        command.ends_with(&format!("({name}")) && fields[2] == fields[5]
    })
}
