//! `--memory`.

use crate::common::{Workspace, have};

#[test]
fn a_memory_hog_is_killed_and_named() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("hog");
    // (It stays until it is seen: where no control group counts, somebody has to look.)
    let script = "python3 -c 'import time; hold = bytearray(400 << 20); time.sleep(1000)'; echo $?";
    let outcome = workspace.inside_with(&["--memory", "100m"], &["sh", "-c", script]);
    outcome.success().expect_out("137\n");
    outcome.err_has("the memory limit of 100 MiB was reached").err_has("was killed (--memory)");
}

#[test]
fn memory_of_all_processes_counts_together() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("together");
    // Each has less than the limit.
    let script = "\
import os, time
made = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        hold = bytearray(40 << 20)
        time.sleep(100)
    made.append(pid)
pid, status = os.wait()
print(os.WTERMSIG(status))
";
    let options = ["--memory", "150m", "--timeout", "60s"];
    let outcome = workspace.inside_with(&options, &["python3", "-c", script]);
    outcome.expect_out("9\n").err_has("the memory limit of 150 MiB was reached");
}

#[test]
fn memory_that_is_shared_after_a_fork_counts_once() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("shared");
    let script = "\
import os, time
hold = bytearray(60 << 20)
for _ in range(5):
    if os.fork() == 0:
        end = time.process_time() + 0.1
        while time.process_time() < end: pass
        os._exit(0)
for _ in range(5): assert os.wait()[1] == 0
print('whole')
";
    let outcome = workspace.inside_with(&["--memory", "200m"], &["python3", "-c", script]);
    outcome.success().expect_out("whole\n").expect_err("");
}

#[test]
fn a_program_within_its_memory_hears_nothing_of_it() {
    let workspace = Workspace::new("within-memory");
    let outcome = workspace.inside_with(&["--memory", "300m"], &["sh", "-c", "echo done"]);
    outcome.success().expect_out("done\n").expect_err("");
}
