//! Exit statuses, signals to the supervisor, and what dies with the sandbox.

use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{
    LIMIT, Leftovers, Outcome, Workspace, finish, guest, run, sandbox_program, start, wait_for,
};

#[test]
fn the_status_is_the_programs_own() {
    let workspace = Workspace::new("status");
    for status in [0, 1, 77, 125, 126, 127, 128, 254, 255] {
        let script = format!("exit {status}");
        workspace.inside_sh(&script).expect_status(status).expect_out("").expect_err("");
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    let workspace = Workspace::new("died");
    for signal in [1, 2, 3, 6, 8, 9, 10, 11, 13, 14, 15, 31, 34, 64] {
        let script = format!("kill -{signal} $$");
        let outcome = workspace.inside_sh(&script);
        outcome.expect_status(128 + signal).expect_out("").expect_err("");
    }
    // A real fault, not a signal that was sent.
    if crate::common::have("python3") {
        let script = "import ctypes; ctypes.string_at(0)";
        workspace.inside(&["python3", "-c", script]).expect_status(128 + 11);
    }
}

#[test]
fn a_program_that_cannot_be_executed() {
    let workspace = Workspace::new("not-executed");
    workspace.write("data", "text");
    workspace.write("directory/file", "");
    workspace.write("bad", "#!/no/such/interpreter\n");
    workspace.native(&["chmod", "+x", "bad"]).success();
    workspace.inside(&["no-such-program"]).one_line_error(127, &["no-such-program", "not found"]);
    workspace.inside(&["./missing"]).one_line_error(127, &["./missing"]);
    workspace.inside(&["./bad"]).one_line_error(127, &["./bad"]);
    workspace.inside(&["./data"]).one_line_error(126, &["./data", "chmod +x"]);
    workspace.inside(&["./directory"]).one_line_error(126, &["./directory", "directory"]);
    workspace.inside(&["./data/below"]).one_line_error(127, &["./data/below"]);
    workspace.inside(&[""]).failure().expect_out("");
}

/// A program inside that has said `up`; its standard input is not used.
fn started(workspace: &Workspace, script: &str) -> (Child, Leftovers) {
    let leftovers = Leftovers::before(workspace);
    let mut command = workspace.sandbox();
    command.args(["--", "bash", "-c", script]).stdin(Stdio::null());
    let child = start(command);
    wait_for("the program's start", || workspace.has("up"));
    (child, leftovers)
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[track_caller]
fn ended(child: Child) -> Outcome {
    finish(child, "sandbox -- bash ...".to_owned(), b"", LIMIT)
}

#[test]
fn signals_to_the_supervisor_reach_the_program() {
    use Signal::*;
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2] {
        let workspace = Workspace::new("caught");
        let name = signal.as_str().trim_start_matches("SIG");
        let script = format!(
            "trap 'echo caught {name}; kill $!; exit 5' {name}; sleep 1000 & echo > up; wait; wait"
        );
        let (child, leftovers) = started(&workspace, &script);
        send(&child, signal);
        ended(child).expect_status(5).expect_out(&format!("caught {name}\n"));
        leftovers.check();
    }
}

#[test]
fn uncaught_signals_to_the_supervisor_end_the_program() {
    use Signal::*;
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGUSR1] {
        let workspace = Workspace::new("uncaught");
        let (child, leftovers) = started(&workspace, "echo > up; exec sleep 1000");
        send(&child, signal);
        ended(child).expect_status(128 + signal as i32);
        leftovers.check();
    }
}

#[test]
fn signals_come_one_after_another() {
    let workspace = Workspace::new("several");
    let script = format!("exec {} count", guest("heeds").display());
    let (child, leftovers) = started(&workspace, &script);
    for number in 1..=20 {
        send(&child, Signal::SIGUSR1);
        wait_for("the count", || {
            workspace.has("count") && workspace.read("count").trim() == number.to_string()
        });
    }
    send(&child, Signal::SIGTERM);
    ended(child).expect_status(6);
    leftovers.check();
}

#[test]
fn an_ignored_hangup_stays_ignored() {
    let workspace = Workspace::new("nohup");
    let leftovers = Leftovers::before(&workspace);
    let mut command = workspace.command("nohup");
    command.arg(sandbox_program());
    command.args(["--", "bash", "-c", "grep SigIgn /proc/self/status; echo > up; until [ -e go ]; do read -t 0.01 <> <(:); done; exit 8"]);
    command.stdin(Stdio::null());
    let child = start(command);
    wait_for("the program's start", || workspace.has("up"));
    send(&child, Signal::SIGHUP);
    workspace.write("go", "");
    let outcome = ended(child);
    outcome.expect_status(8);
    let mask = outcome.out().split_whitespace().last().map(|hex| u64::from_str_radix(hex, 16));
    assert_eq!(mask.unwrap().unwrap() & 1, 1, "{}", outcome.report());
    leftovers.check();
}

#[test]
fn a_blocked_signal_stays_blocked() {
    let workspace = Workspace::new("mask");
    let script = "grep -E '^(SigBlk|SigIgn)' /proc/self/status";
    workspace.same(&["sh", "-c", script]);
    if crate::common::have("python3") {
        let wrap = "import signal, os, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])";
        let sandbox = sandbox_program();
        let inner = ["grep", "-E", "^(SigBlk|SigIgn)", "/proc/self/status"];
        let natively = workspace.native(&[&["python3", "-c", wrap], &inner[..]].concat());
        let prefix = ["python3", "-c", wrap, sandbox.to_str().unwrap(), "--"];
        let inside = workspace.native(&[&prefix, &inner[..]].concat());
        assert_eq!(inside.success().out(), natively.success().out());
    }
}

#[test]
fn background_children_die_with_the_sandbox() {
    let workspace = Workspace::new("background");
    let leftovers = Leftovers::before(&workspace);
    let script =
        "sleep 1000 & setsid sleep 1000 & (trap '' TERM HUP INT; sleep 1000 & sleep 1000) &
                  setsid sh -c 'setsid nohup sleep 1000 >/dev/null 2>&1 </dev/null &' ; exit 4";
    workspace.inside(&["bash", "-c", script]).expect_status(4);
    leftovers.check();
}

#[test]
fn everything_dies_with_the_supervisor() {
    let workspace = Workspace::new("supervisor");
    let script = "setsid sh -c 'trap \"\" TERM HUP; echo > up; sleep 1000' & sleep 1000";
    let (child, leftovers) = started(&workspace, script);
    send(&child, Signal::SIGKILL);
    leftovers.check();
    ended(child).expect_status(128 + 9);
}

#[test]
fn a_stopped_program_stops_the_supervisor_and_goes_on_with_it() {
    let workspace = Workspace::new("stopped");
    let (child, leftovers) = started(&workspace, "echo > up; kill -STOP $$; exit 12");
    let pid = child.id();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    wait_for("the supervisor's stop", || state() == Some('T'));
    send(&child, Signal::SIGCONT);
    ended(child).expect_status(12);
    leftovers.check();
}

#[test]
fn timeout_ends_a_sandbox() {
    let workspace = Workspace::new("timeout");
    let leftovers = Leftovers::before(&workspace);
    let sandbox = sandbox_program();
    let mut command = workspace.command("timeout");
    command.arg("0.5").arg(&sandbox).args(["--", "sh", "-c", "sleep 1000 & wait"]);
    run(command, b"", LIMIT).expect_status(124);
    let mut command = workspace.command("timeout");
    command.args(["-s", "KILL", "0.5"]).arg(&sandbox).args(["--", "sleep", "1000"]);
    run(command, b"", LIMIT).expect_status(137);
    leftovers.check();
}
