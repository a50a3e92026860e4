//! Programs that are started later in a running sandbox, and further containers.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use crate::common::{LIMIT, Outcome, finish, run, start, wait_for};
use crate::desk::Desk;

/// A line of a shell that sees the desk's sandboxes.
fn run_in(desk: &Desk, line: &str) -> Outcome {
    let mut shell = desk.workspace.command("sh");
    shell.args(["-c", line]).env("XDG_RUNTIME_DIR", desk.runtime());
    run(shell, b"", LIMIT)
}

#[test]
fn a_later_program_has_its_callers_streams_and_gives_its_status() {
    let desk = Desk::new("exec");
    desk.detach_idle("x");
    let script = "read line; echo got $line; echo err >&2; exit 6";
    let command = desk.command(&["exec", "x", "--", "sh", "-c", script]);
    run(command, b"one\ntwo\n", LIMIT).expect_status(6).expect_out("got one\n").expect_err("err\n");
    desk.sandbox(&["exec", "x", "--", "sh", "-c", "kill -9 $$"]).expect_status(137);
    desk.sandbox(&["exec", "x", "--", "no-such-program"])
        .one_line_error(127, &["no-such-program", "not found"]);
    desk.sandbox(&["exec", "x", "--", "/etc"]).one_line_error(126, &["/etc"]);
    desk.sandbox(&["exec", "none", "--", "true"]).one_line_error(125, &["none", "sandbox ps"]);
    desk.sandbox(&["exec", "x"]).one_line_error(125, &["PROG"]);

    // A file that is written stands where the program has come to; one that is read comes through a
    // pipe.
    let path = desk.workspace.path().to_owned();
    let sandbox = desk.command(&[]).get_program().to_owned();
    let script = format!(
        "exec > file < in; echo a; {0} exec x -- sh -c 'cat; echo b'; echo c",
        sandbox.to_string_lossy()
    );
    fs::write(path.join("in"), "from a file\n").unwrap();
    run_in(&desk, &script).success();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "a\nfrom a file\nb\nc\n");
}

/// Stops what keeps it.
const STOPPING: &str = "kill -STOP $PPID; touch stopped; exec sleep 1000";

#[test]
fn a_later_program_is_behind_the_same_walls() {
    let desk = Desk::new("exec-walls");
    desk.detach_idle("x");
    let inside = |script: &str| desk.sandbox(&["exec", "x", "--", "sh", "-c", script]);
    inside("touch /usr/not-here").failure();
    inside("echo written > here").success();
    assert_eq!(desk.workspace.read("here"), "written\n");
    inside("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'")
        .success()
        .expect_out("CapEff:0000000000000000CapBnd:0000000000000000NoNewPrivs:1Seccomp:2");
    // It sees the run's program as a process among its own, and neither init's nor its keeper's memory.
    inside("ls /proc | grep -q '^2$'").success();
    inside("cat /proc/1/environ").failure();
    inside("cat /proc/$PPID/environ").failure();
    inside("kill -9 1; echo alive").success().out_has("alive");
    // Nothing is left of keepers whose programs have ended: init, the program and its child, this
    // program's keeper, its shell and what that runs.
    let count = "ls -d /proc/[0-9]* | wc -l";
    wait_for("the keepers' end", || inside(count).line() == "7");
    // One that stops it cannot keep its caller from ending it.
    let stopping = desk.command(&["exec", "x", "--", "sh", "-c", STOPPING]);
    let caller = start(stopping);
    wait_for("a stopped keeper", || desk.workspace.has("stopped"));
    let pid = nix::unistd::Pid::from_raw(caller.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    finish(caller, "exec".into(), b"", LIMIT).expect_status(143);
    // A guest that kills its own keeper harms nobody else.
    inside("kill -9 $PPID; exec sleep 1000 < /dev/null > /dev/null 2>&1")
        .expect_status(137)
        .err_has("keeper");
    inside("echo still there").success().expect_out("still there\n");
}

#[test]
fn a_later_program_gets_the_runs_environment_and_what_is_set() {
    let desk = Desk::new("exec-env");
    let words = ["run", "--detach", "--id", "x", "--env", "A=run", "--env", "B=run", "--", "sleep"];
    desk.sandbox(&[&words[..], &["1000"]].concat()).success();
    let mut command = desk.command(&["exec", "--env", "B=exec", "--env", "MINE", "x", "--"]);
    command.args(["sh", "-c", "echo $A $B $MINE; pwd"]).env("MINE", "callers");
    let here = desk.workspace.path().display().to_string();
    run(command, b"", LIMIT).success().expect_out(&format!("run exec callers\n{here}\n"));
    desk.sandbox(&["exec", "--clear-env", "--env", "ONLY=1", "x", "--", "/usr/bin/env"])
        .success()
        .expect_out("ONLY=1\n");
    desk.sandbox(&["exec", "--workdir", "/usr", "x", "--", "pwd"]).success().expect_out("/usr\n");
    desk.sandbox(&["exec", "--workdir", "/none", "x", "--", "pwd"])
        .one_line_error(125, &["/none", "No such file"]);
    // More than a pipe holds, and more than one read of the server's takes.
    let long = "y".repeat(100_000);
    let counted = desk.sandbox(&["exec", "x", "--", "sh", "-c", "echo ${#1}", "sh", &long]);
    counted.success().expect_out("100000\n");
}

#[test]
fn closed_streams_are_what_they_are_in_a_run_and_directories_are_refused() {
    let desk = Desk::new("exec-closed");
    desk.detach_idle("x");
    let program = desk.command(&[]).get_program().display().to_string();
    let line = format!("{program} exec x -- ls /proc/self/fd <&- 2>&-");
    let of_later = run_in(&desk, &line);
    let line = format!("{program} -- ls /proc/self/fd <&- 2>&-");
    let of_run = run_in(&desk, &line);
    assert_eq!(of_later.success().out(), of_run.success().out());
    let mut command = desk.command(&["exec", "x", "--", "true"]);
    command.stdin(fs::File::open("/").unwrap());
    finish(start(command), "exec < /".into(), b"", LIMIT).one_line_error(125, &["directory"]);
}

#[test]
fn signals_to_the_caller_reach_a_later_program() {
    let desk = Desk::new("exec-signal");
    desk.detach_idle("x");
    let script =
        "trap 'echo got it; exit 3' TERM; echo ready; : > up; while :; do sleep 0.05; done";
    let child = desk.begin(&["exec", "x", "--", "sh", "-c", script]);
    wait_for("the program", || desk.workspace.has("up"));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    finish(child, "exec".into(), b"", LIMIT).expect_status(3).expect_out("ready\ngot it\n");
}

#[test]
fn a_caller_that_vanishes_leaves_its_program_and_the_sandbox_alone() {
    let desk = Desk::new("exec-vanish");
    desk.detach_idle("x");
    let mut child = desk.begin(&["exec", "x", "--", "sleep", "1001"]);
    let runs = || desk.processes("x").iter().any(|it| it["command"] == "sleep 1001");
    wait_for("the program", runs);
    child.kill().unwrap();
    child.wait().unwrap();
    desk.sandbox(&["exec", "x", "--", "true"]).success();
    assert!(runs());
}

#[test]
fn later_programs_end_with_the_sandbox() {
    let desk = Desk::new("exec-end");
    desk.detach_idle("x");
    let child = desk.begin(&["exec", "x", "--", "sh", "-c", "touch up; sleep 1000"]);
    wait_for("the program", || desk.workspace.has("up"));
    desk.sandbox(&["kill", "x", "KILL"]).success();
    finish(child, "exec".into(), b"", LIMIT).expect_status(137).err_has("the sandbox ended");
    desk.sandbox(&["wait", "x"]).expect_status(137);
}

#[test]
fn a_detached_later_program_prints_where_the_sandbox_does() {
    let desk = Desk::new("exec-detach");
    desk.detach_idle("x");
    desk.sandbox(&["exec", "--detach", "x", "--", "sh", "-c", "echo later; touch done"])
        .success()
        .expect_out("");
    wait_for("its end", || desk.workspace.has("done"));
    desk.sandbox(&["logs", "x"]).success().expect_out("later\n");
    desk.sandbox(&["exec", "--detach", "x", "--", "no-such"]).one_line_error(127, &["no-such"]);
}

#[test]
fn containers_are_addressed_separately_and_end_with_their_program() {
    let desk = Desk::new("containers");
    let words = ["run", "--detach", "--id", "x", "--container", "web", "--", "sh", "-c"];
    let idle = "trap 'exit 7' TERM; sleep 1000 & wait";
    let begin = |name: &'static str| {
        let mut words = words;
        words[5] = name;
        desk.sandbox(&[&words[..], &[idle]].concat()).success();
        desk.becomes_idle("x", name);
    };
    begin("web");
    begin("job");
    desk.sandbox(&["exec", "--container", "job", "--detach", "x", "--", "sleep", "77"]).success();
    let of = |name: &str| {
        let all = desk.processes("x");
        all.iter().filter(|it| it["container"] == name).count()
    };
    assert_eq!((of("web"), of("job")), (2, 3), "{:?}", desk.processes("x"));
    let listed = desk.sandbox(&["ps", "x"]).success().out();
    let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap()[6..], ["CONTAINER", "COMMAND"], "{listed}");
    assert_eq!(lines.filter(|words| words[6] == "job").count(), 3, "{listed}");
    desk.sandbox(&["events", "x"]).success().out_has("started: sleep (container job)");
    desk.sandbox(&["run", "--id", "x", "--container", "job", "--", "true"])
        .one_line_error(125, &["job", "already"]);
    desk.sandbox(&["exec", "--container", "none", "x", "--", "true"])
        .one_line_error(125, &["none", "job, web"]);
    desk.sandbox(&["run", "--id", "x", "--container", "c", "--ro", "/usr", "--", "true"])
        .one_line_error(125, &["--ro", "shares the walls"]);
    desk.sandbox(&["run", "--id", "x", "--container", "/", "--", "true"])
        .one_line_error(125, &["--container"]);

    // One ends, with all that is left in it; the other goes on.
    desk.sandbox(&["kill", "x", "TERM", "--pid", &leader(&desk, "job")]).success();
    wait_for("the end of a container", || of("job") == 0);
    assert_eq!(of("web"), 2);
    // A container in the foreground gives its program's status, and its name is free again.
    let again = ["run", "--id", "x", "--container", "job", "--", "sh", "-c", "exit 5"];
    wait_for("its name", || desk.sandbox(&again).status == 5);
    desk.sandbox(&["kill", "x", "TERM", "--container", "web"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(7);
}

#[test]
fn what_a_later_program_leaves_behind_holds_no_stream_that_it_has_closed() {
    let desk = Desk::new("exec-streams");
    desk.detach_idle("x");
    // The outcome is there when nobody holds the pipes any more.
    let script = "sleep 1001 < /dev/null > /dev/null 2>&1 & exit 3";
    desk.sandbox(&["exec", "x", "--", "sh", "-c", script]).expect_status(3);
    wait_for("what is left behind", || {
        desk.processes("x").iter().any(|it| it["command"] == "sleep 1001")
    });
}

/// The program of a container, as the guest numbers it.
fn leader(desk: &Desk, container: &str) -> String {
    let all = desk.processes("x");
    let found = all.iter().find(|it| {
        it["container"] == container
            && it["command"].as_str().is_some_and(|it| it.starts_with("sh "))
    });
    found.expect("its program")["guest_pid"].to_string()
}

#[test]
fn programs_are_started_while_others_end() {
    let desk = Desk::new("exec-many");
    desk.detach_idle("x");
    let children: Vec<_> = (0..20)
        .map(|n| desk.begin(&["exec", "x", "--", "sh", "-c", &format!("exit {n}")]))
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        finish(child, "exec".into(), b"", LIMIT).expect_status(n as i32);
    }
    let events = desk.sandbox(&["events", "x", "--json"]).out();
    assert_eq!(events.lines().filter(|line| line.contains("\"exited\"")).count(), 20, "{events}");
}

#[test]
fn descriptors_of_init_and_of_the_caller_do_not_leak_into_a_later_program() {
    let desk = Desk::new("exec-leak");
    let file: OwnedFd = fs::File::open("/etc/hostname").unwrap().into();
    let number = file.as_raw_fd();
    let inherited = format!("--fd={}", number);
    let words = ["run", "--detach", "--id", "x", &inherited, "--", "sleep", "1000"];
    let mut command = desk.command(&words);
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    command.process_group(0);
    run(command, b"", LIMIT).success();
    desk.sandbox(&["exec", "x", "--", "ls", "/proc/self/fd"]).success().expect_out("0\n1\n2\n3\n");
}

#[test]
fn no_program_is_started_in_a_paused_sandbox_and_none_escapes_a_pause() {
    let desk = Desk::new("exec-paused");
    desk.detach_idle("x");
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["exec", "x", "--", "true"]).one_line_error(125, &["paused", "resume"]);
    desk.sandbox(&["run", "--id", "x", "--container", "c", "--", "true"])
        .one_line_error(125, &["paused"]);
    desk.sandbox(&["resume", "x"]).success();
    desk.sandbox(&["exec", "x", "--", "true"]).success();
    // Starts and pauses against one another: each start is refused or its program stops with all.
    for round in 0..10 {
        let count = "echo $$ > pid; while :; do echo x >> count; done";
        let mut child = desk.begin(&["exec", "x", "--", "sh", "-c", count]);
        desk.sandbox(&["pause", "x"]).success();
        let length = || fs::metadata(desk.workspace.path().join("count")).map_or(0, |it| it.len());
        let (before, states) = (length(), states(&desk));
        assert!(states.iter().all(|state| state == "t"), "round {round}: {states:?}");
        assert_eq!(length(), before, "round {round}");
        desk.sandbox(&["resume", "x"]).success();
        // It runs, or has been refused.
        let begun = || desk.workspace.has("pid") && !desk.workspace.read("pid").is_empty();
        wait_for("the program or its refusal", || begun() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        desk.sandbox(&["exec", "x", "--", "sh", "-c", "kill -9 $(cat pid); rm -f pid count"]);
        // (One that has ended is listed until its keeper has seen that.)
        desk.becomes_idle("x", "main");
    }
}

/// The states of all tasks.
fn states(desk: &Desk) -> Vec<String> {
    let all = desk.processes("x");
    all.iter().map(|it| it["state"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_later_program_has_the_sandboxs_clock_also_after_it_was_set() {
    let desk = Desk::new("exec-clock");
    let words = ["run", "--detach", "--id", "x", "--time", "2030-01-01T00:00:00Z"];
    desk.sandbox(&[&words[..], &["--user", "0", "--", "sleep", "1000"]].concat()).success();
    let year = || desk.sandbox(&["exec", "x", "--", "date", "-u", "+%Y"]).success().line();
    assert_eq!(year(), "2030");
    desk.sandbox(&["exec", "x", "--", "date", "-u", "-s", "2040-02-03 04:05:06"]).success();
    // It is told of the setting once it runs: what it reads before may be the old clock's.
    let script = "until [ \"$(date -u +%Y)\" = 2040 ]; do sleep 0.01; done; date -u +%Y";
    desk.sandbox(&["exec", "x", "--", "sh", "-c", script]).success().expect_out("2040\n");
}
