//! `--pids`, `--open-files`, `--file-size`, and flags that cannot be granted.

use crate::common::{Workspace, have, is_root};
use crate::control_groups;

#[test]
fn a_fork_bomb_finds_its_limit_and_ends_with_the_sandbox() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("bomb");
    let script = "\
import os, time
made = 0
while True:
    try:
        pid = os.fork()
    except BlockingIOError:
        break
    if pid == 0:
        time.sleep(1000)
    made += 1
print(made)
# Where no control group counts, somebody has to see it.
end = time.process_time() + 0.3
while time.process_time() < end: pass
";
    let outcome = workspace.inside_with(&["--pids", "25"], &["python3", "-c", script]);
    // The program itself is one of them.
    outcome.success().expect_out("24\n");
    outcome.expect_err("sandbox: the limit of 25 processes was reached (--pids)\n");
}

#[test]
fn threads_count_as_processes_do() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("threads");
    let script = "\
import threading, time
hold = threading.Event()
made = 0
try:
    for _ in range(100):
        threading.Thread(target=hold.wait, daemon=True).start()
        made += 1
except RuntimeError: pass
print(made)
end = time.process_time() + 0.3
while time.process_time() < end: pass
";
    let outcome = workspace.inside_with(&["--pids", "10"], &["python3", "-c", script]);
    outcome.success().expect_out("9\n");
    outcome.expect_err("sandbox: the limit of 10 processes was reached (--pids)\n");
}

/// Nearly as many as there may be, again and again, and then one more than that.
const UP_TO_THE_LIMIT: &str = "\
import os, sys, time
def make(count):
    made = 0
    read, write = os.pipe()
    for _ in range(count):
        try:
            if os.fork() == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
        except BlockingIOError:
            break
        made += 1
    end = time.process_time() + 0.1
    while time.process_time() < end: pass
    os.close(write)
    os.close(read)
    for _ in range(made): os.wait()
    return made
print([make(10) for _ in range(5)])
if sys.argv[1] == 'more': print([make(12) for _ in range(3)])
";

#[test]
fn only_a_limit_that_was_in_the_way_is_said_to_be_reached() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("up-to");
    let run = |more| {
        let argv = ["python3", "-c", UP_TO_THE_LIMIT, more];
        workspace.inside_with(&["--pids", "12"], &argv)
    };
    run("no").success().expect_out("[10, 10, 10, 10, 10]\n").expect_err("");
    let outcome = run("more");
    outcome.success().expect_out("[10, 10, 10, 10, 10]\n[11, 11, 11]\n");
    outcome.expect_err("sandbox: the limit of 12 processes was reached (--pids)\n");
}

#[test]
fn a_limit_of_processes_that_was_reached_is_one_event() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("pids-event");
    let options = ["--pids", "12", "--verbose"];
    let outcome = workspace.inside_with(&options, &["python3", "-c", UP_TO_THE_LIMIT, "more"]);
    let events = outcome.success().err();
    let said: Vec<&str> = events.lines().filter(|line| line.contains("limit pids:")).collect();
    assert_eq!(said.len(), 1, "{}", outcome.report());
    assert!(said[0].contains("there were 12 processes and threads"), "{said:?}");
}

#[test]
fn a_shell_bomb_does_not_reach_the_host() {
    let workspace = Workspace::new("shell-bomb");
    let script = "b() { b | b & }; b 2>/dev/null; sleep 0.5; echo survived";
    let options = ["--pids", "40", "--timeout", "20s"];
    let outcome = workspace.inside_with(&options, &["sh", "-c", script]);
    assert!([0, 2, 128 + libc::SIGTERM].contains(&outcome.status), "{}", outcome.report());
}

#[test]
fn open_files_are_limited() {
    let workspace = Workspace::new("open-files");
    let script = "ulimit -n; ulimit -Hn; ulimit -n 64 2>/dev/null || echo no more";
    let outcome = workspace.inside_with(&["--open-files", "32"], &["sh", "-c", script]);
    outcome.success().expect_out("32\n32\nno more\n");
}

#[test]
fn a_run_with_fewer_open_files_than_the_sandbox_itself_needs_starts() {
    let workspace = Workspace::new("few-open-files");
    workspace.inside_with(&["--open-files", "4"], &["sh", "-c", "ulimit -n"]).expect_out("4\n");
}

#[test]
fn files_do_not_grow_beyond_their_limit() {
    let workspace = Workspace::new("file-size");
    let script = "trap '' XFSZ; dd if=/dev/zero of=f bs=64k count=4 2>/dev/null; stat -c %s f";
    let outcome = workspace.inside_with(&["--file-size", "100k"], &["sh", "-c", script]);
    outcome.success().expect_out("102400\n");
}

#[test]
fn what_cannot_be_granted_is_said_in_one_line() {
    let workspace = Workspace::new("impossible");
    for (options, words) in [
        (["--cpus", "100000"], ["--cpus 100000", "for this process"]),
        (["--memory", "much"], ["--memory much", "512m"]),
        (["--cpu-time", "2:1"], ["--cpu-time 2:1", "below the soft one"]),
        (["--timeout", "0"], ["--timeout 0", "500ms"]),
        (["--pids", "-1"], ["--pids", "'-1'"]),
        (["--open-files", "99999999999"], ["--open-files", "hard limit"]),
    ] {
        let outcome = workspace.inside_with(&options, &["true"]);
        if options[0] == "--pids" {
            outcome.expect_status(125);
        } else {
            outcome.one_line_error(125, &words);
        }
    }
}

#[test]
fn what_is_in_force_is_said_and_by_whom() {
    let workspace = Workspace::new("said");
    let options = ["--memory", "64m", "--cpus", "1", "--timeout", "5m", "--dry-run"];
    let outcome = workspace.inside_with(&options, &["true"]);
    outcome.success().out_has("64 MiB").out_has("kept by").out_has("by affinity").out_has("5 min");
    workspace.inside_with(&["--dry-run"], &["true"]).success().out_has("limits       none");
}

#[test]
fn control_groups_are_removed_with_their_run_and_by_the_next_one() {
    let workspace = Workspace::new("cgroups");
    let options = ["--memory", "64m", "--cpu-time", "60", "--verbose"];
    let said = workspace.inside_with(&options, &["true"]);
    if !said.success().err().contains("kept by a control group") {
        return crate::common::skip("writable control group");
    }
    let mut command = workspace.sandbox();
    command.args(["--memory", "64m", "--cpu-time", "60", "--", "sh", "-c", "echo up; sleep 100"]);
    let mut child = crate::common::start(command);
    let mut line = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut line).expect("a line");
    // (Named after its supervisor: other tests' groups come and go.)
    let own = |group: &std::path::PathBuf| {
        let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(&format!("sandbox-{}-", child.id()))
    };
    assert!(control_groups().iter().any(own));
    let own = control_groups().into_iter().filter(own).collect::<Vec<_>>();
    child.kill().expect("kill the supervisor");
    child.wait().expect("wait for the supervisor");
    // Init is killed by its death, and holds the groups until then.
    crate::common::wait_for("the groups of a killed run to be removed by the next", || {
        workspace.inside_with(&["--memory", "64m", "--cpu-time", "60"], &["true"]).success();
        own.iter().all(|group| !group.exists())
    });
}

#[test]
fn root_without_control_groups_needs_another_user_for_pids() {
    // Only where root has none; as an ordinary user the resource limit does it.
    if is_root() {
        let workspace = Workspace::new("root-pids");
        let outcome = workspace.inside_with(&["--pids", "10"], &["true"]);
        if outcome.status != 0 {
            outcome.one_line_error(125, &["--pids 10", "--user"]);
        }
    }
}
