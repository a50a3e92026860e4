//! Programs of `sandbox exec` and of further containers, saved and restored with the run that they are in.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::common::{LIMIT, copy_program, finish, guest, have, run, skip, start, wait_for};
use crate::desk::{Desk, Way};

/// The run's own program.
const WAITS: &str = ": > up; until [ -e end ]; do sleep 0.01; done; exit 3";

/// A program that is asked for by somebody who stays, with half of its input written.
fn ask(desk: &Desk, words: &[&str], name: &str) -> Child {
    let mut asked = desk.command(words);
    asked.stdin(Stdio::piped());
    let mut asked = start(asked);
    asked.stdin.as_mut().unwrap().write_all(b"early\nlate\n").unwrap();
    let up = format!("up-{name}");
    wait_for(&up, || desk.workspace.has(&up));
    asked
}

fn exec(desk: &Desk, name: &str) -> Child {
    ask(desk, &["exec", "it", "--", "./save_later", name], name)
}

/// Numbers, parents, groups, sessions, containers and names of all processes.
fn shape(desk: &Desk) -> Vec<Value> {
    let listed = desk.sandbox(&["ps", "it", "--json"]).success().out();
    let all: Vec<Value> = serde_json::from_str(listed.trim()).unwrap();
    let fields = ["pid", "parent", "group", "session"].map(|it| format!("guest_{it}"));
    let of = |it: &Value| {
        let fields = fields.iter().map(String::as_str).chain(["container", "comm"]);
        fields.map(|field| it[field].clone()).collect::<Value>()
    };
    // (What the run's program waits with comes and goes.)
    all.iter().filter(|it| it["guest_parent"] != 2).map(of).collect()
}

/// How programs have ended, as events tell.
fn ended(desk: &Desk, status: i32) -> usize {
    let told = desk.sandbox(&["events", "it", "--json"]).out();
    let events = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|it| it["event"] == "exited" && it["status"] == status).count()
}

fn begin(test: &str) -> Desk {
    let desk = Desk::new(test);
    copy_program(&guest("save_later"), &desk.workspace.path().join("save_later"));
    desk.start(&["sh", "-c", WAITS]);
    desk
}

#[test]
fn two_programs_of_exec_go_on_with_the_run() {
    let native = Desk::new("later-native");
    copy_program(&guest("save_later"), &native.workspace.path().join("save_later"));
    native.touch("go");
    let mut alone = native.workspace.command("./save_later");
    alone.arg("one");
    let alone = run(alone, b"early\nlate\n", LIMIT);
    alone.expect_status(7).expect_out("one ends\n").expect_err("one says so\n");
    assert_eq!(native.workspace.read("out-one"), "well\n");

    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        let desk = begin(&format!("later-{way:?}"));
        let names = ["one", "two"];
        let asked = names.map(|name| exec(&desk, name));
        let before = shape(&desk);
        desk.save(way);
        assert_eq!(shape(&desk), before, "{way:?}");
        if way == Way::LeftRunning {
            desk.touch("go");
            for (name, asked) in names.into_iter().zip(asked) {
                let asked = finish(asked, name.into(), b"", LIMIT);
                let (out, err) = (format!("{name} ends\n"), format!("{name} says so\n"));
                asked.expect_status(7).expect_out(&out).expect_err(&err);
            }
        } else {
            for asked in asked {
                let asked = finish(asked, "whoever asked".into(), b"", LIMIT);
                asked.expect_status(137).err_has("lost");
            }
            // Nobody has gone on from what has been written for them; it ends there.
            desk.touch("go");
            wait_for("the end of both", || ended(&desk, 7) == 2);
            let logs = desk.sandbox(&["logs", "it"]);
            for name in names {
                logs.out_has(&format!("{name} ends\n")).out_has(&format!("{name} says so\n"));
            }
        }
        for name in names {
            assert_eq!(desk.workspace.read(&format!("out-{name}")), "well\n", "{way:?}");
        }
        desk.touch("end");
        desk.sandbox(&["wait", "it"]).expect_status(3);
        desk.is_clean();
    }
}

/// Waits for `go` in threads and sub-processes, with a handler, and prints what it finds.
const JOB: &str = "
import os, signal, subprocess, sys, threading, time
ids = lambda: (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
before, seen = ids(), []
signal.signal(signal.SIGHUP, lambda *_: seen.append('hup'))
def wait():
    while not os.path.exists('go'):
        time.sleep(0.001)
thread = threading.Thread(target=wait)
thread.start()
child = subprocess.Popen(['sh', '-c', 'read line; echo got $line'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
open('up-job', 'w').close()
thread.join()
told = child.communicate(b'word\\n')[0].decode()
open('out-job.part', 'w').write(f'{ids() == before} {told.strip()} {seen} {sys.stdin.read()!r}')
os.rename('out-job.part', 'out-job')
";

#[test]
fn a_python_job_goes_on() {
    if !have("python3") {
        return;
    }
    let desk = begin("later-python");
    desk.workspace.write("job.py", JOB);
    let words = ["exec", "--detach", "it", "--", "python3", "job.py"];
    desk.sandbox(&words).success();
    wait_for("the job", || desk.workspace.has("up-job"));
    let before = shape(&desk);
    desk.save(Way::RestoredTwice);
    assert_eq!(shape(&desk), before);
    desk.touch("go");
    wait_for("the end of the job", || desk.workspace.has("out-job"));
    assert_eq!(desk.workspace.read("out-job"), "True got word [] ''");
    desk.touch("end");
    desk.sandbox(&["wait", "it"]).expect_status(3);
    desk.is_clean();
}

/// Locks its output, and watches its input once there is `go`.
const SERVER: &str = "
import fcntl, os, select, sys, time
name = sys.argv[1]
fcntl.lockf(1, fcntl.LOCK_EX)
os.set_blocking(0, False)
open('up-' + name, 'w').close()
while not os.path.exists('go'):
    time.sleep(0.001)
poll = select.epoll()
poll.register(0, select.EPOLLIN)
open('part-' + name, 'w').write(f'{len(poll.poll())} {os.read(0, 9)} {os.get_blocking(0)}')
os.rename('part-' + name, 'out-' + name)
print(name, 'ends')
";

#[test]
fn an_input_that_is_gone_can_be_watched_and_locks_on_outputs_are_gone() {
    if !have("python3") {
        return;
    }
    let desk = begin("later-server");
    desk.workspace.write("server.py", SERVER);
    let names = ["one", "two"];
    let asked = names.map(|name| {
        let mut asked = desk.command(&["exec", "it", "--", "python3", "server.py", name]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = fs::File::create(desk.workspace.path().join(format!("log-{name}"))).unwrap();
        let asked = asked
            .stdin(OwnedFd::from(theirs))
            .stdout(file)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        wait_for(name, || desk.workspace.has(&format!("up-{name}")));
        (asked, ours)
    });
    desk.save(Way::RestoredTwice);
    for (asked, _ours) in asked {
        finish(asked, "whoever asked".into(), b"", LIMIT).expect_status(137);
    }
    desk.touch("go");
    wait_for("the end of both", || ended(&desk, 0) == 2);
    let logs = desk.sandbox(&["logs", "it"]);
    for name in names {
        assert_eq!(desk.workspace.read(&format!("out-{name}")), "1 b'' False");
        logs.out_has(&format!("{name} ends\n"));
    }
    desk.touch("end");
    desk.sandbox(&["wait", "it"]).expect_status(3);
    desk.is_clean();
}

/// Tells of the end of its terminal.
const SHELL: &str = "trap 'tty > gone; echo hup >> gone; mv gone hup; exit 9' HUP; tty > up-shell
                     while :; do sleep 0.01; done";

#[test]
fn one_on_a_terminal_hears_that_it_is_gone() {
    if !have("script") {
        return skip("script");
    }
    let desk = begin("later-terminal");
    desk.workspace.write("shell", SHELL);
    let line = format!("exec {:?} exec it -- sh shell", crate::common::sandbox_program());
    let mut holder = desk.workspace.command("script");
    holder.args(["-qec", &line, "/dev/null"]);
    let runtime = desk.command(&[]);
    holder.envs(runtime.get_envs().filter_map(|(name, value)| Some((name, value?))));
    holder.stdin(Stdio::piped());
    let holder = start(holder);
    wait_for("the shell", || desk.workspace.has("up-shell"));
    desk.save(Way::LeftRunning);
    assert!(!desk.workspace.has("hup"));
    desk.save(Way::Restored);
    finish(holder, "script".into(), b"", LIMIT);
    wait_for("the end of the terminal", || desk.workspace.has("hup"));
    assert_eq!(desk.workspace.read("hup"), "not a tty\nhup\n");
    wait_for("the end of the shell", || ended(&desk, 9) == 1);
    desk.touch("end");
    desk.sandbox(&["wait", "it"]).expect_status(3);
    desk.is_clean();
}

#[test]
fn containers_and_what_programs_have_left_behind_are_what_they_were() {
    let desk = begin("later-containers");
    let opened = ["run", "--id", "it", "--container", "web", "--", "./save_later", "web"];
    let opener = ask(&desk, &opened, "web");
    let script =
        "{ sleep 1000 & setsid sh -c 'sleep 1001 & sleep 1002 & wait' & } > /dev/null 2>&1; exit 4";
    let inside = ["exec", "it", "--container", "web", "--", "sh", "-c", script];
    desk.sandbox(&inside).expect_status(4);
    desk.sandbox(&["exec", "it", "--", "sh", "-c", script]).expect_status(4);
    // The run's own program, the opener and its child, and what two programs have left behind.
    let sleeping = || shape(&desk).iter().filter(|it| it[5] == "sleep").count();
    wait_for("all to be executed", || sleeping() == 6 && shape(&desk).len() == 11);
    let before = shape(&desk);
    desk.save(Way::RestoredTwice);
    finish(opener, "whoever opened it".into(), b"", LIMIT).expect_status(137);
    assert_eq!(shape(&desk), before);
    desk.sandbox(&["exec", "it", "--container", "web", "--", "echo", "here"]).expect_out("here\n");
    // With its opener the container ends, and what is not in it stays.
    desk.touch("go");
    wait_for("the end of the container", || shape(&desk).len() == 5);
    assert_eq!(desk.workspace.read("out-web"), "well\n");
    desk.touch("end");
    desk.sandbox(&["wait", "it"]).expect_status(3);
    desk.is_clean();
}
