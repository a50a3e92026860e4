//! The test harness itself: what the other tests rely on.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use common::{LIMIT, Leftovers, Workspace, finish_within, leftovers, run, start};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// The message with which `doomed` fails.
fn failure_of<T>(doomed: impl FnOnce() -> T) -> String {
    match catch_unwind(AssertUnwindSafe(doomed)) {
        Ok(_) => panic!("it did not fail"),
        Err(message) => *message.downcast::<String>().expect("a formatted message"),
    }
}

#[test]
fn an_outcome_holds_status_and_both_outputs() {
    let outcome = run(shell("cat; echo problem >&2; exit 7"), b"text", LIMIT);
    outcome.expect_status(7).expect_out("text").expect_err("problem\n");
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    run(shell("kill -TERM $$"), b"", LIMIT).expect_status(128 + 15);
}

#[test]
fn large_outputs_and_an_unread_input_do_not_block() {
    let script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2";
    let outcome = run(shell(script), &vec![0; 3 << 20], LIMIT);
    outcome.success();
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (3_000_000, 3_000_000));
}

#[test]
fn the_limit_kills_the_whole_group_and_shows_what_was_printed() {
    let workspace = Workspace::new("limit");
    let mut command = workspace.command("sh");
    command.args(["-c", "echo before; sleep 1000 & sleep 1000"]);
    let began = Instant::now();
    let message = failure_of(|| run(command, b"", Duration::from_millis(300)));
    assert!(message.contains("not finished") && message.contains("before"), "{message}");
    assert!(began.elapsed() < LIMIT);
    common::wait_for("the group's end", || {
        leftovers::marked_processes(workspace.mark()).is_empty()
    });
}

#[test]
fn a_process_that_holds_the_output_open_is_a_failure() {
    let child = start(shell("sleep 1000 & echo done"));
    let soon = Duration::from_millis(300);
    let message = failure_of(|| finish_within(child, "sh".into(), b"", LIMIT, soon));
    assert!(message.contains("holds the output open") && message.contains("done"), "{message}");
}

#[test]
fn a_workspace_is_removed_even_where_a_directory_is_locked() {
    let workspace = Workspace::new("locked");
    let path = workspace.path().to_owned();
    workspace.write("a/b", "text");
    workspace.native(&["chmod", "000", "a"]).success();
    assert!(workspace.has("a"));
    drop(workspace);
    assert!(!path.exists());
}

#[test]
fn a_native_run_can_be_undone() {
    let workspace = Workspace::new("undone");
    workspace.write("kept", "before");
    let outcome = workspace.native_and_undone(&["sh", "-c", "echo after | tee kept new"]);
    outcome.success().expect_out("after\n");
    assert_eq!(workspace.read("kept"), "before");
    assert!(!workspace.has("new"));
}

#[test]
fn a_process_left_over_is_found_wherever_it_went() {
    let workspace = Workspace::new("daemon");
    let before = Leftovers::before(&workspace);
    before.check();
    let mut command = workspace.command("setsid");
    command.args(["sh", "-c", "cd /; exec sleep 1000"]);
    // A leader of a process group: setsid forks, and its child is nobody's here.
    start(command).wait().unwrap();
    // (As it executes a program it has no environment for a moment, and is not found.)
    let is_there = || before.left().iter().any(|it| it.ends_with(": sleep 1000 "));
    common::wait_for("the daemon", is_there);
    for pid in leftovers::marked_processes(workspace.mark()) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    before.check();
}

#[test]
fn a_guest_program_is_compiled_with_the_flags_of_its_first_line() {
    assert_eq!(common::guests::flags("// cc: -static -pthread\nint x;"), ["-static", "-pthread"]);
    assert_eq!(common::guests::flags("int x;"), [""; 0]);
    let program = common::guest("raw");
    run(Command::new(&program), b"", LIMIT).expect_status(2).err_has("usage");
    let mut command = Command::new(program);
    let [dup, write] = [libc::SYS_dup, libc::SYS_write].map(|number| number.to_string());
    command.args([&dup, "1", ",", &write, "=0", "s:text\n", "5", ",", &dup, "-1"]);
    run(command, b"", LIMIT).success().expect_out("3\ntext\n5\nEBADF\n");
}
