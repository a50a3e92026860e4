//! `--cpu-time` and `--timeout`.

use std::ops::Range;

use crate::accounted;
use crate::common::{LIMIT, Outcome, Workspace, comes_true, have};

const SPIN: &str = "while :; do :; done";

/// `count` processes that spin, the program among them.
fn spinners(count: usize) -> String {
    format!("for i in $(seq {}); do ({SPIN}) & done; {SPIN}", count - 1)
}

/// Runs until what is used lies in a range of seconds, which it always is to reach. (A busy machine wakes the
/// supervisor late now and then; the bench says how exact it is on an idle one.)
#[track_caller]
fn used(
    workspace: &Workspace,
    options: &[&str],
    argv: &[&str],
    range: Range<f64>,
    check: impl Fn(&Outcome),
) {
    let mut all = Vec::new();
    let fits = comes_true(LIMIT, || {
        let (outcome, cpu) = accounted(workspace, options, argv);
        check(&outcome);
        assert!(cpu >= range.start, "{cpu} s were used\n{}", outcome.report());
        all.push(cpu);
        range.contains(&cpu)
    });
    assert!(fits, "{argv:?} used {all:?} s and never less than {} s", range.end);
}

#[test]
fn a_budget_ends_any_number_of_processes_by_sigxcpu() {
    let workspace = Workspace::new("budget");
    for count in [1, 2, 8] {
        let script = if count == 1 { SPIN.to_owned() } else { spinners(count) };
        used(&workspace, &["--cpu-time", "300ms"], &["sh", "-c", &script], 0.29..0.8, |outcome| {
            outcome.expect_status(128 + libc::SIGXCPU);
            outcome.err_has("the CPU time limit of 300 ms was reached (--cpu-time 300ms)");
        });
    }
}

#[test]
fn who_ignores_sigxcpu_is_killed_at_the_hard_limit() {
    let workspace = Workspace::new("hard");
    let script = format!("trap '' XCPU; {SPIN}");
    let options = ["--cpu-time", "100ms:400ms"];
    used(&workspace, &options, &["sh", "-c", &script], 0.39..0.9, |outcome| {
        outcome.expect_status(128 + libc::SIGKILL);
        outcome.err_has("the hard CPU time limit of 400 ms was reached");
    });
}

#[test]
fn sigxcpu_comes_once() {
    let workspace = Workspace::new("once");
    // (A shell has its handler long before the budget is used up, on a slow machine, too. After the signal it goes
    // on for as long as the budget, about.)
    let script = "n=0; trap 'n=$((n+1))' XCPU; until [ $n -gt 0 ]; do :; done
        i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo $n";
    let options = ["--cpu-time", "200ms:60s"];
    let outcome = workspace.inside_with(&options, &["sh", "-c", script]);
    outcome.success().expect_out("1\n").err_has("--cpu-time 200ms");
}

#[test]
fn a_program_within_its_budget_hears_nothing_of_it() {
    let workspace = Workspace::new("within");
    let outcome = workspace.inside_with(&["--cpu-time", "60"], &["sh", "-c", "echo done"]);
    outcome.success().expect_out("done\n").expect_err("");
}

/// The program, its clock in Python, and what the kernel says of it.
const COUNT: &str = "\
import os, sys, time, signal, resource
if sys.argv[1] == 'ignore':
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(4):
    if os.fork() == 0:
        while time.process_time() < 0.5: pass
        os._exit(0)
try:
    while True: os.wait()
except ChildProcessError: pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
";

#[test]
fn children_count_whether_or_not_their_parent_waits_for_them() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("children");
    for how in ["wait", "ignore"] {
        let argv = ["python3", "-c", COUNT, how];
        // Of children that nobody waits for what is used after the last look is lost: a tick each,
        // more where the supervisor itself has to wait for a processor, as it does on a busy machine now and then.
        let mut all = Vec::new();
        let fits = comes_true(LIMIT, || {
            let (outcome, cpu) = accounted(&workspace, &["--cpu-time", "1m"], &argv);
            let own: f64 = outcome.success().line().parse().expect("a number of seconds");
            let expected = 2.0 + own;
            let least = expected * if how == "wait" { 0.97 } else { 0.9 };
            all.push((cpu, expected));
            (least..expected + 0.3).contains(&cpu)
        });
        assert!(fits, "{how}: counted and expected {all:?}");
    }
}

#[test]
fn short_lived_children_use_the_budget_up() {
    let workspace = Workspace::new("short");
    let script = "while :; do /bin/true; done";
    used(&workspace, &["--cpu-time", "300ms"], &["sh", "-c", script], 0.25..1.0, |outcome| {
        outcome.expect_status(128 + libc::SIGXCPU);
    });
}

#[test]
fn what_was_started_after_a_long_sleep_uses_the_budget_up() {
    // The ticker has parked by then, and the spinning process is one that it has never seen.
    let workspace = Workspace::new("parked");
    let script = format!("sleep 0.3; (sleep 0.3; {SPIN}); exit 3");
    used(&workspace, &["--cpu-time", "200ms"], &["sh", "-c", &script], 0.19..0.7, |outcome| {
        outcome.expect_status(128 + libc::SIGXCPU);
    });
}

#[test]
fn a_timeout_ends_the_run_with_sigterm() {
    let workspace = Workspace::new("timeout");
    let outcome = workspace.inside_with(&["--timeout", "300ms"], &["sleep", "100"]);
    outcome.expect_status(128 + libc::SIGTERM);
    outcome.expect_err("sandbox: the time limit of 300 ms was reached (--timeout 300ms)\n");
}

#[test]
fn who_ignores_sigterm_is_killed_five_seconds_later() {
    let workspace = Workspace::new("timeout-hard");
    let script = "trap '' TERM; echo ready; while :; do sleep 100; done";
    // (By then it has begun to ignore it, also on a busy machine.)
    let outcome = workspace.inside_with(&["--timeout", "1s"], &["sh", "-c", script]);
    outcome.expect_status(128 + libc::SIGKILL).expect_out("ready\n");
    outcome.err_has("something still ran 5 s after the time limit");
}

#[test]
fn a_limit_reached_is_not_explained_where_nothing_is_to_be_said() {
    let workspace = Workspace::new("quiet");
    let outcome = workspace.inside_with(&["--quiet", "--timeout", "100ms"], &["sleep", "100"]);
    outcome.expect_status(128 + libc::SIGTERM).expect_err("");
}

#[test]
fn a_shell_that_forks_among_signals_is_not_disturbed_by_a_budget() {
    let workspace = Workspace::new("cpu-time-forks");
    // Each end of a job in the background is a signal, which may come with the next fork.
    let script =
        "i=0; while [ $i -lt 100 ]; do sleep 0.01 & /bin/true; i=$((i+1)); done; wait; echo end";
    for _ in 0..5 {
        let inside = workspace.inside_with(&["--cpu-time", "60"], &["sh", "-c", script]);
        inside.success().expect_out("end\n").expect_err("");
    }
}
