//! Seeing, signalling or reading processes of the host or the sandbox's own first process, staying
//! alive after the end, and descriptors that nobody meant to pass on.

mod common;

use std::process::{Child, Stdio};
use std::time::Duration;
use std::{fs, thread};

use common::attack::{REFUSALS, raw};
use common::{
    LIMIT, Leftovers, Workspace, command_line, finish, guest, have, run, sandbox_program, start,
    wait_for,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process of the host; it ends with the test.
struct HostProcess(Child);

impl HostProcess {
    fn new(workspace: &Workspace) -> HostProcess {
        let mut command = workspace.command("sleep");
        HostProcess(command.arg("98765.4321").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    #[track_caller]
    fn must_live(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "the process of the host has died");
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn host_processes_are_not_seen() {
    let workspace = Workspace::new("seen");
    let _process = HostProcess::new(&workspace);
    let script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
    workspace.native(&["sh", "-c", script]).out_has("98765.4321");
    workspace.inside_sh(script).success().out_has("cmdline").out_lacks("98765.4321");
    // All that is seen is the first process, the shell and what the shell started.
    let outcome = workspace.inside_sh("for p in /proc/[0-9]*; do echo ${p#/proc/}; done");
    let seen: Vec<u32> = outcome.out().lines().map(|line| line.parse().unwrap()).collect();
    assert!(!seen.is_empty() && seen.len() <= 3, "{}", outcome.report());
}

#[test]
fn host_processes_are_not_reached_by_their_ids() {
    let workspace = Workspace::new("reached");
    let mut process = HostProcess::new(&workspace);
    let pid = process.pid();
    let calls = [
        format!("{} {pid} 9", libc::SYS_kill),
        format!("{} -{pid} 9", libc::SYS_kill),
        format!("{} {pid} 9", libc::SYS_tkill),
        format!("{} {pid} {pid} 9", libc::SYS_tgkill),
        format!("{} {pid} 9 z:128", libc::SYS_rt_sigqueueinfo),
        format!("{} {pid} 0", libc::SYS_pidfd_open),
        format!("{} {} {pid} 0 0", libc::SYS_ptrace, libc::PTRACE_ATTACH),
        format!("{} {} {pid} 0 0", libc::SYS_ptrace, libc::PTRACE_SEIZE),
        format!("{} {pid} {pid} 2 0 0", libc::SYS_kcmp),
        format!("{} {pid} {} 0 z:16", libc::SYS_prlimit64, libc::RLIMIT_NOFILE),
        format!("{} {} {pid} 19", libc::SYS_setpriority, libc::PRIO_PROCESS),
        format!("{} 1 {pid} 0x6000", libc::SYS_ioprio_set),
        format!("{} {pid} 8 h:0100000000000000", libc::SYS_sched_setaffinity),
        format!("{} {pid} 0 z:8", libc::SYS_sched_setscheduler),
        format!("{} {pid} z:8 z:8", libc::SYS_get_robust_list),
        format!("{} {pid} 1 z:8 0 z:8 0", libc::SYS_move_pages),
        format!("{} {pid}", libc::SYS_getpgid),
        format!("{} 1 {} {pid}", libc::SYS_fcntl, libc::F_SETOWN),
        format!("{} s:/proc/{pid}/mem 2", libc::SYS_open),
    ];
    let outcome = workspace.inside(&raw(&calls.join(" , ")));
    outcome.success();
    assert_eq!(outcome.out().lines().count(), calls.len(), "{}", outcome.report());
    for (call, answer) in calls.iter().zip(outcome.out().lines()) {
        let refused = ["ESRCH", "ENOENT"].contains(&answer) || REFUSALS.contains(&answer);
        assert!(refused, "{call} answers {answer}");
    }
    process.must_live();
    let program = guest("read_process");
    let read = [program.to_str().unwrap(), &pid.to_string()];
    workspace.native(&read).success().expect_out("read\n");
    workspace.inside(&read).success().expect_out("ESRCH\n");
    // The same number reaches it natively.
    workspace.native(&raw(&calls[0])).success().expect_out("0\n");
    process.0.wait().unwrap();
}

/// kill(0) and kill(-1) reach whole groups: those of the host must not be among them.
#[test]
fn signals_to_a_group_stay_inside() {
    let workspace = Workspace::new("group");
    for target in ["0", "-1"] {
        let script = format!(
            "sleep 1000 & \
             {} -- sh -c 'kill -s KILL -- {target}; echo survived'; echo status $?; \
             kill -0 $! && echo alive; kill $!",
            sandbox_program().display()
        );
        let mut command = workspace.command("sh");
        command.args(["-c", &script]).stdin(Stdio::null());
        let words = command_line(&command);
        let outcome = finish(start(command), words, b"", LIMIT);
        outcome.out_has("alive");
    }
}

#[test]
fn the_first_process_cannot_be_read_or_traced() {
    let workspace = Workspace::new("init");
    let open = |name: &str, flags| format!("{} s:/proc/1/{name} {flags}", libc::SYS_open);
    let calls = [
        format!("{} {} 1 0 0", libc::SYS_ptrace, libc::PTRACE_ATTACH),
        format!("{} {} 1 0 0", libc::SYS_ptrace, libc::PTRACE_SEIZE),
        format!("{} 1 1 2 0 0", libc::SYS_kcmp),
        open("mem", libc::O_RDONLY),
        open("mem", libc::O_RDWR),
        open("environ", libc::O_RDONLY),
        open("maps", libc::O_RDONLY),
        open("auxv", libc::O_RDONLY),
        open("fd/0", libc::O_RDONLY),
        open("root/etc/passwd", libc::O_RDONLY),
        open("cwd/.", libc::O_RDONLY),
        open("exe", libc::O_RDONLY),
        open("ns/user", libc::O_RDONLY),
    ];
    let outcome = workspace.inside(&raw(&calls.join(" , ")));
    outcome.success();
    assert_eq!(outcome.out().lines().count(), calls.len(), "{}", outcome.report());
    for (call, answer) in calls.iter().zip(outcome.out().lines()) {
        assert!(answer == "ENOENT" || REFUSALS.contains(&answer), "{call} answers {answer}");
    }
    // A descriptor for it can be had, and nothing can be taken through it.
    let take = format!("{} 1 0 , {} =0 0 0", libc::SYS_pidfd_open, libc::SYS_pidfd_getfd);
    let outcome = workspace.inside(&raw(&take));
    let answer = outcome.line().lines().last().unwrap_or_default().to_owned();
    assert!(answer == "EBADF" || REFUSALS.contains(&&*answer), "{}", outcome.report());
    let program = guest("read_process");
    workspace.inside(&[program.to_str().unwrap(), "1"]).success().expect_out("EPERM\n");
}

#[test]
fn the_first_process_does_not_show_the_callers_environment() {
    let workspace = Workspace::new("environ");
    let mut command = workspace.sandbox();
    command.env("A_PASSWORD", "the secret");
    let script = "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -a -e PASSWORD -e TEST_MARK";
    command.args(["--", "sh", "-c", script]);
    run(command, b"", LIMIT).out_has("SANDBOX_TEST_MARK").out_lacks("the secret");
}

#[test]
fn the_first_process_survives_its_guests_signals() {
    let workspace = Workspace::new("init-signals");
    let outcome = workspace.inside_sh("kill -KILL 1; kill -STOP 1; kill -SEGV 1; echo still here");
    outcome.success().out_has("still here");
}

/// Scripts that start something which wants to stay.
const STAYERS: &[&str] = &[
    "setsid sleep 1000 &",
    "(setsid sh -c 'trap \"\" HUP TERM INT QUIT; sleep 1000; sleep 1000' &)",
    "sh -c 'sh -c \"setsid sleep 1000 &\" &' & wait",
    "sh -c 'kill -STOP $$' & sleep 1000 & kill -STOP $!",
    "i=0; while [ $i -lt 100 ]; do setsid sleep 1000 & i=$((i + 1)); done",
    "setsid sleep 1000 & kill -KILL $$",
    "setsid sh -c 'while :; do sleep 0.01 & done' &",
];

#[test]
fn no_process_stays_after_the_end() {
    for script in STAYERS {
        let workspace = Workspace::new("stay");
        let leftovers = Leftovers::before(&workspace);
        // The processes hold the output open: `run` fails if it does not end with the sandbox.
        let outcome = workspace.inside_sh(script);
        let status = if script.ends_with("kill -KILL $$") { 128 + 9 } else { 0 };
        outcome.expect_status(status);
        leftovers.check();
    }
}

#[test]
fn no_process_stays_when_the_supervisor_is_killed() {
    for script in STAYERS {
        let workspace = Workspace::new("orphan");
        let leftovers = Leftovers::before(&workspace);
        let script = format!("{script}\n: > ready; while :; do sleep 1000; done");
        if script.contains("kill -KILL $$") {
            continue;
        }
        let mut command = workspace.sandbox();
        command.args(["--", "sh", "-c", &script]).stdin(Stdio::null());
        let words = command_line(&command);
        let mut child = start(command);
        wait_for("the guest", || workspace.has("ready"));
        child.kill().unwrap();
        // `finish` fails if a guest still holds the output open.
        finish(child, words, b"", LIMIT).expect_status(128 + 9);
        leftovers.check();
    }
}

#[test]
fn no_process_stays_when_the_supervisor_is_killed_while_it_starts() {
    let workspace = Workspace::new("early");
    let leftovers = Leftovers::before(&workspace);
    for delay in 0..40 {
        let mut command = workspace.sandbox();
        command.args(["--", "sh", "-c", "setsid sleep 1000 & sleep 1000"]).stdin(Stdio::null());
        let words = command_line(&command);
        let mut child = start(command);
        // Any moment of the start will do; there is no event to wait for.
        thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        finish(child, words, b"", LIMIT).expect_status(128 + 9);
    }
    leftovers.check();
}

#[test]
fn a_terminated_supervisor_takes_its_guests_along() {
    for (signal, status) in [(Signal::SIGTERM, 128 + 15), (Signal::SIGHUP, 128 + 1)] {
        let workspace = Workspace::new("terminated");
        let leftovers = Leftovers::before(&workspace);
        let mut command = workspace.sandbox();
        let script = "setsid sleep 1000 & : > ready; exec sleep 1000";
        command.args(["--", "sh", "-c", script]).stdin(Stdio::null());
        let words = command_line(&command);
        let child = start(command);
        wait_for("the guest", || workspace.has("ready"));
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        finish(child, words, b"", LIMIT).expect_status(status);
        leftovers.check();
    }
}

/// Runs `argv` from a shell that holds descriptors open for it.
fn with_descriptors(workspace: &Workspace, redirections: &str, argv: &[&str]) -> common::Outcome {
    let mut command = workspace.command("bash");
    command.arg("-c").arg(format!("exec \"$@\" {redirections}")).arg("bash").args(argv);
    run(command, b"", LIMIT)
}

#[test]
fn descriptors_are_passed_only_when_asked_for() {
    if !have("bash") {
        return;
    }
    let workspace = Workspace::new("descriptors");
    workspace.write("secret", "the secret\n");
    workspace.write("wanted", "wanted\n");
    let sandbox = sandbox_program();
    let sandbox = sandbox.to_str().unwrap();
    let open = "7< secret 8<> secret 200< secret 9< wanted";
    let list = ["ls", "/proc/self/fd"];
    let native = with_descriptors(&workspace, open, &list).success().out();
    assert!(native.lines().any(|it| it == "7") && native.lines().any(|it| it == "200"), "{native}");
    // The last is the directory that `ls` reads.
    let inside = with_descriptors(&workspace, open, &[&[sandbox, "--"][..], &list].concat());
    inside.success().expect_out("0\n1\n2\n3\n");
    let passed = [sandbox, "--fd", "9", "--", "sh", "-c", "cat <&9; cat <&7; ls /proc/self/fd"];
    let inside = with_descriptors(&workspace, open, &passed);
    inside.expect_out("wanted\n0\n1\n2\n3\n9\n").out_lacks("the secret");
}

/// A standard stream that the caller closed must not be filled by a descriptor of ours.
#[test]
fn a_closed_standard_stream_is_nothing_else() {
    let workspace = Workspace::new("closed");
    let script = "for fd in /proc/self/fd/*; do readlink $fd; done > list; exit 0";
    for closed in ["0<&-", "2>&-", "0<&- 2>&-"] {
        let mut command = workspace.command("sh");
        let words = format!("exec \"$@\" {closed}");
        command.args(["-c", &words, "sh"]).arg(sandbox_program()).args(["--", "sh", "-c", script]);
        run(command, b"", LIMIT).success();
        let list = workspace.read("list");
        for ours in ["anon_inode", "socket", "seccomp", "pidfd", "memfd"] {
            assert!(!list.contains(ours), "{closed}: {list}");
        }
        fs::remove_file(workspace.path().join("list")).unwrap();
    }
}

/// Tracing inside is for guests: a tracer works, on its own children.
#[test]
fn guests_may_trace_each_other() {
    if !have("strace") {
        return;
    }
    let workspace = Workspace::new("trace");
    let traced = ["strace", "-f", "-e", "trace=exit_group", "sh", "-c", "exit 3"];
    if workspace.native(&traced).status != 3 {
        return common::skip("ptrace on this host");
    }
    workspace.inside(&traced).expect_status(3).err_has("exit_group(3)");
}

/// Ordinary job control between guests goes on working behind the walls.
#[test]
fn guests_may_signal_each_other() {
    let workspace = Workspace::new("signals");
    // (Whether dash says "Terminated" depends on when it hears of the end, natively too.)
    let script = "exec 2> /dev/null; sleep 1000 & kill -TERM $!; wait $!; echo $?; \
                  trap 'echo caught' USR1; kill -USR1 $$";
    workspace.same(&["sh", "-c", script]).expect_out("143\ncaught\n");
}

/// The children of a process of the host.
fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn state(pid: i32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:\t"))?.chars().next()
}

/// A user may press Ctrl-Z before the program is executed: it stops, as a job, and goes on. A start
/// that hung would outlive its terminal.
#[test]
fn a_stop_before_the_program_is_executed_stops_the_job() {
    let workspace = Workspace::new("early-stop");
    if fs::metadata(format!("/proc/self/task/{}/children", nix::unistd::gettid())).is_err() {
        return common::skip("lists of children in /proc");
    }
    // So many directories to look through that the process is found before it is executed.
    let path = format!("PATH={}/bin:/usr/bin", "x:".repeat(50_000));
    let mut command = workspace.sandbox();
    command.args(["--env", &path, "--", "cat"]).stdin(Stdio::piped());
    let line = command_line(&command);
    let supervisor = start(command);
    let pid = supervisor.id() as i32;
    let mut program = None;
    wait_for("the program's process", || {
        program = children(pid).first().and_then(|init| children(*init).first().copied());
        program.is_some()
    });
    kill(Pid::from_raw(program.unwrap()), Signal::SIGTSTP).unwrap();
    wait_for("the stop of the job", || state(pid) == Some('T'));
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    finish(supervisor, line, b"text", LIMIT).success().expect_out("text");
}
