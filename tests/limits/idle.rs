//! An idle sandbox costs nothing, whatever its limits look at.

use std::io::Read;
use std::time::Duration;

use crate::common::{Workspace, start, wait_for};

/// Context switches so far of every thread of a process.
fn switches(pid: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let count = |text: String| -> u64 {
        let lines = text.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok())
        .map(count)
        .sum()
}

#[test]
fn nothing_wakes_up_while_no_guest_runs() {
    let workspace = Workspace::new("idle");
    let mut command = workspace.sandbox();
    command.args(["--cpu-time", "60", "--memory", "500m", "--timeout", "10m", "--"]);
    command.args(["sh", "-c", "echo up; exec sleep 600"]);
    let mut child = start(command);
    let mut line = [0; 3];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("a line");
    // Parked: nothing for much longer than any tick, as soon as a busy machine has let it come to that.
    let mut before = switches(child.id());
    wait_for("more than a second without a wake-up", || {
        std::thread::sleep(Duration::from_millis(1250));
        let now = switches(child.id());
        std::mem::replace(&mut before, now) == now
    });
    // Not SIGKILL, which would leave control groups to the next run.
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("end the program");
    child.wait().expect("wait for the supervisor");
}
