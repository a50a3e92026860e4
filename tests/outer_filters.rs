//! `sandbox` under the seccomp filter of somebody else, as in a container or a service: a run works
//! without what that takes away, or says who refused it and what to do.

mod common;

use std::io::Read;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use common::{LIMIT, Outcome, Workspace, finish, guest, have, run, sandbox_program, start};

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

/// What the default profiles of Docker and Kubernetes refuse besides namespaces: clone3, whose flags
/// no filter sees, other processes to those without CAP_SYS_PTRACE, and keyrings.
const RUNTIME_DEFAULT: &str =
    "clone3=ENOSYS,pidfd_getfd=EPERM,process_vm_readv=EPERM,process_vm_writev=EPERM,keyctl=EPERM";

#[test]
fn a_container_runtimes_default_filter_changes_nothing_for_a_program() {
    let workspace = Workspace::new("runtime-default");
    let outcome = under(&workspace, RUNTIME_DEFAULT, &["--", "sh", "-c", "echo a | cat; exit 3"]);
    outcome.expect_status(3).expect_out("a\n").expect_err("");
    // Trapped calls that read memory of the guest (its filter) and write to it (its log), and the
    // event of an exec, whose path is read.
    under(&workspace, RUNTIME_DEFAULT, &["--", guest("filters").to_str().unwrap(), "listener"])
        .success();
    if have("dmesg") {
        let words = ["-v", "--", "sh", "-c", "dmesg --syslog; true"];
        under(&workspace, RUNTIME_DEFAULT, &words).success().out_has("sandbox").err_has("exec: ");
    }
    if have("python3") {
        workspace.write("work.py", include_str!("programs/inputs/work.py"));
        let words = ["--", "python3", "-B", "work.py"];
        under(&workspace, RUNTIME_DEFAULT, &words).success().out_has("all done\n");
    }
}

#[test]
fn go_and_node_run_under_a_container_runtimes_default_filter() {
    let workspace = Workspace::new("runtime-default-threads");
    if have("node") {
        workspace.write("work.js", include_str!("programs/inputs/work.js"));
        let words = ["--", "node", "work.js"];
        under(&workspace, RUNTIME_DEFAULT, &words).success().out_has("all done\n");
    }
    if have("go") {
        workspace.write("go.mod", "module example.test/work\n\ngo 1.19\n");
        workspace.write("main.go", include_str!("programs/inputs/work.go"));
        let here = workspace.path().display();
        let script = format!(
            "export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local GOSUMDB=off CGO_ENABLED=0 \
             GOCACHE={here}/cache GOPATH={here}/path GOENV=off HOME={here}
             go build -o work . && ./work"
        );
        under(&workspace, RUNTIME_DEFAULT, &["--", "sh", "-c", &script])
            .success()
            .out_has("all done\n");
    }
}

#[test]
fn a_run_needs_no_pidfd_open() {
    let workspace = Workspace::new("no-pidfds");
    for rules in ["pidfd_open=ENOSYS", "pidfd_open=EPERM"] {
        let outcome = under(&workspace, rules, &["--", "sh", "-c", "echo a; exit 3"]);
        outcome.expect_status(3).expect_out("a\n").expect_err("");
    }
    // Signals reach the program by a descriptor.
    let mut command = workspace.command(guest("outer_filter"));
    command.arg("pidfd_open=ENOSYS").arg(sandbox_program());
    command.args(["--", "sh", "-c", "trap 'echo heard; exit 4' TERM; echo ready; read line"]);
    command.stdin(Stdio::piped());
    let mut child = start(command);
    // Nobody writes to it: the shell waits until the signal comes.
    let input = child.stdin.take();
    let mut output = child.stdout.take().expect("a pipe");
    let mut ready = [0; 6];
    output.read_exact(&mut ready).expect("the program says that it runs");
    nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, "heard\n");
    drop(input);
    finish(child, "sh under sandbox".into(), b"", LIMIT).expect_status(4).expect_err("");
    let doctor = under(&workspace, "pidfd_open=ENOSYS", &["doctor"]);
    doctor.out_has("not tried, because it rests on pidfd-open");
    let native = workspace.native(&[sandbox_program().as_os_str(), "doctor".as_ref()]);
    doctor.expect_status(native.status);
}

#[test]
fn refused_namespaces_name_the_cause_and_the_remedy() {
    let workspace = Workspace::new("no-namespaces");
    let words = ["user namespace", "EPERM", "forbids it; start "];
    under(&workspace, "namespaces=EPERM", &["--", "true"]).one_line_error(125, &words);
    under(&workspace, "namespaces=EPERM", &["doctor"]).expect_status(1).out_has("user-namespaces");
}

#[test]
fn what_else_a_filter_refuses_is_named_with_its_remedy() {
    let workspace = Workspace::new("refused");
    for (rules, what) in [
        ("mount=EPERM", "make the mounts private"),
        ("open_tree=EPERM", "copy the mount at"),
        ("open_tree=ENOSYS", "copy the mount at"),
        ("seccomp=EPERM", "loading the sandbox's seccomp filter"),
        ("seccomp=ENOSYS", "loading the sandbox's seccomp filter"),
        // Runtimes of before 2021: no program makes threads under it.
        ("clone3=EPERM", "start the receiving thread"),
    ] {
        let outcome = under(&workspace, rules, &["--", "true"]);
        outcome.one_line_error(125, &[what, "forbids it; "]);
    }
    // Docker's default profile among others; only such a run asks for it.
    let outcome = under(&workspace, "personality=EPERM", &["--deterministic", "--", "true"]);
    outcome.one_line_error(125, &["randomisation of addresses", "forbids it; ", "--deterministic"]);
    under(&workspace, "personality=EPERM", &["--", "true"]).success().expect_err("");
}

#[test]
fn where_descriptors_cannot_be_copied_directories_are_not_sorted_and_it_is_said() {
    let workspace = Workspace::new("unsorted");
    workspace.write("a", "");
    let outcome = under(&workspace, "pidfd_getfd=EPERM", &["--deterministic", "--", "ls"]);
    outcome.success().expect_out("a\n").err_has("a sorted directory was refused to ls");
}
