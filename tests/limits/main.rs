//! Limits of a run: each is kept, ends what it should end, and is explained at the end.
//!
//! Which means keep a limit depends on the host and the user (control groups where they may be made,
//! resource limits and the sentry otherwise); the tests ask for what all of them promise.

#[path = "../common/mod.rs"]
mod common;

mod counts;
mod cpu_time;
mod idle;
mod machine;
mod memory;

use common::{LIMIT, Outcome, Workspace, run};

/// Runs with the supervisor's account of the CPU time on stderr.
fn accounted(workspace: &Workspace, options: &[&str], argv: &[&str]) -> (Outcome, f64) {
    let mut command = workspace.sandbox();
    command.env("SANDBOX_LOG", "sandbox::runtime=debug").args(options).arg("--").args(argv);
    let outcome = run(command, b"", LIMIT);
    let err = outcome.err();
    let digits = err.split("cpu_us=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let micros: f64 = digits.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        panic!("no account of the CPU time\n{}", outcome.report());
    });
    (outcome, micros / 1e6)
}

/// The control groups of sandboxes that this host has below the test's own, by any hierarchy.
fn control_groups() -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    let mut next = vec![(std::path::PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((directory, depth)) = next.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with("sandbox-") {
                all.push(entry.path());
            } else if depth < 6 {
                next.push((entry.path(), depth + 1));
            }
        }
    }
    all
}
