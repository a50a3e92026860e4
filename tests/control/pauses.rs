//! A paused sandbox stands still and answers all the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{LIMIT, comes_true, finish, guest, have, run, start, wait_for};
use crate::desk::Desk;

/// How long nothing is watched to happen.
const STILL: Duration = Duration::from_millis(300);

#[test]
fn a_paused_one_stands_still_and_answers() {
    let desk = Desk::new("pause");
    desk.detach("x", ": > up-x; while :; do echo >> ticks; sleep 0.01; done");
    let size = || desk.workspace.read("ticks").len();
    wait_for("a tick", || desk.workspace.has("ticks") && size() > 0);
    desk.sandbox(&["pause", "x"]).success().expect_out("").expect_err("");
    let before = size();
    assert!(!comes_true(STILL, || size() != before), "it goes on");
    assert_eq!(desk.listed("x").unwrap()["state"], "paused");
    desk.sandbox(&["pause", "x"]).one_line_error(125, &["paused already", "resume"]);
    for verb in ["ps", "stats", "dmesg", "events", "logs", "top"] {
        desk.sandbox(&[verb, "x"]).success();
    }
    desk.sandbox(&["stats", "x"]).success().out_has("paused");
    desk.sandbox(&["resume", "x"]).success();
    wait_for("more ticks", || size() > before);
    desk.sandbox(&["resume", "x"]).one_line_error(125, &["not paused"]);
    // A paused one can be killed.
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["kill", "x", "KILL"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(137);
    desk.expect_nothing();
}

/// Its threads are held in the middle of waits that the sentry makes for them, and end all the same.
#[test]
fn a_paused_one_with_a_rate_can_be_killed() {
    let desk = Desk::new("pause-rate");
    let program = guest("time_ends").to_str().expect("a path in UTF-8").to_owned();
    let words = ["run", "--detach", "--id", "x", "--time", "rate=10", "--", &program, "nap"];
    desk.sandbox(&words).success();
    wait_for("the threads", || desk.sandbox(&["logs", "x"]).out() == "naps\n");
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["kill", "x", "KILL"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(137);
    desk.expect_nothing();
}

/// Programs that are being started would run on: they are copies of the supervisor until their exec, and
/// their keepers are never stopped.
#[test]
fn no_program_is_started_while_all_are_stopped() {
    let desk = Desk::new("pause-exec");
    desk.detach_idle("x");
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["exec", "x", "--", "true"]).one_line_error(125, &["paused", "resume"]);
    desk.sandbox(&["resume", "x"]).success();

    let over = AtomicBool::new(false);
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; exit 3";
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let done = desk.sandbox(&["exec", "x", "--", "sh", "-c", script]);
                    match done.status {
                        125 => drop(done.one_line_error(125, &["paused"])),
                        _ => drop(done.expect_status(3)),
                    }
                }
            });
        }
        // (Those that have ended are nobody's to stop, and their keepers take them away.)
        let all = || {
            let mut all = desk.processes("x");
            all.retain(|it| it["state"] != "Z");
            all
        };
        let moved: Vec<_> = (0..10)
            .filter_map(|_| {
                desk.sandbox(&["pause", "x"]).success();
                let before = all();
                let moved = comes_true(STILL / 5, || all() != before);
                desk.sandbox(&["resume", "x"]).success();
                moved.then_some(before)
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        assert!(moved.is_empty(), "{moved:?}");
    });
}

#[test]
fn a_client_of_a_paused_server_waits_until_it_goes_on() {
    if !have("redis-server") || !have("redis-cli") {
        return;
    }
    let desk = Desk::new("redis");
    let socket = desk.workspace.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let words = ["run", "--detach", "--id", "redis", "--", "redis-server", "--port", "0"];
    let words = [&words[..], &["--save", "", "--unixsocket", socket]].concat();
    desk.sandbox(&words).success();
    let ping = || {
        let mut command = desk.workspace.command("redis-cli");
        command.args(["-s", socket, "ping"]);
        command
    };
    wait_for("redis", || run(ping(), b"", LIMIT).line() == "PONG");
    desk.sandbox(&["ps", "redis"]).success().out_has("redis-server");
    desk.sandbox(&["pause", "redis"]).success();
    let mut client = start(ping());
    assert!(!comes_true(STILL, || client.try_wait().unwrap().is_some()), "it was answered");
    desk.sandbox(&["resume", "redis"]).success();
    finish(client, "redis-cli".into(), b"", LIMIT).success().expect_out("PONG\n");
    desk.sandbox(&["kill", "redis"]).success();
    desk.sandbox(&["wait", "redis"]).expect_status(0);
}
