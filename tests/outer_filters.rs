//! `sandbox` under the seccomp filter of somebody else, as in a container or a service: a run works
//! without what that takes away, or says who refused it and what to do.

mod common;

use common::{LIMIT, Outcome, Workspace, guest, run, sandbox_program};

/// Runs `sandbox WORDS` under a plain filter that refuses the calls of `rules`.
#[track_caller]
fn under(workspace: &Workspace, rules: &str, words: &[&str]) -> Outcome {
    let mut command = workspace.command(guest("outer_filter"));
    command.arg(rules).arg(sandbox_program()).args(words);
    run(command, b"", LIMIT)
}

#[test]
fn a_kernel_without_time_namespaces_is_done_without() {
    let workspace = Workspace::new("no-time");
    let outcome = under(&workspace, "time=EINVAL", &["--", "readlink", "/proc/self/ns/time"]);
    let host = workspace.native(&["readlink", "/proc/self/ns/time"]);
    if host.status == 0 {
        outcome.success().expect_out(&host.out());
    }
    under(&workspace, "time=EINVAL", &["--", "true"]).success().expect_err("");
    let asked = workspace.inside_with(&["--without", "time-namespaces"], &["true"]);
    asked.success().expect_err("");
}

#[test]
fn a_refused_time_namespace_is_a_fault_with_its_cause_and_a_remedy() {
    let workspace = Workspace::new("refused-time");
    let outcome = under(&workspace, "time=EPERM", &["--", "true"]);
    outcome.one_line_error(125, &["make a time namespace", "Operation not permitted"]);
    outcome.err_has("forbids it; ").err_has("--without time-namespaces");
    under(&workspace, "time=EPERM", &["--without", "time-namespaces", "--", "true"]).success();
    // The doctor says the same of both.
    let native = workspace.native(&[sandbox_program().as_os_str(), "doctor".as_ref()]);
    let doctor = |rules| under(&workspace, rules, &["doctor"]);
    doctor("time=EINVAL").expect_status(native.status);
    doctor("time=EPERM").expect_status(1).out_has("time-namespace");
}
