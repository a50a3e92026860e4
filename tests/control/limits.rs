//! Limits of a sandbox as they look from outside: what ends it, what does not count, what is left.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{LIMIT, finish, wait_for};
use crate::desk::{Desk, has_asked};

impl Desk {
    /// Starts a shell script in a detached sandbox `x` with these options; it has come to
    /// `touch up-x` when this returns.
    #[track_caller]
    fn limited(&self, options: &[&str], script: &str) {
        let words = [&["run", "--detach", "--id", "x"], options, &["--", "sh", "-c", script]];
        self.sandbox(&words.concat()).success().expect_err("");
        wait_for("the program", || self.workspace.has("up-x"));
    }

    #[track_caller]
    fn stats(&self) -> Value {
        let stats = self.sandbox(&["stats", "--json", "x"]);
        serde_json::from_str(stats.success().out().trim()).expect("a JSON object")
    }

    /// The events named `name`.
    #[track_caller]
    fn events(&self, name: &str) -> Vec<Value> {
        let events = self.sandbox(&["events", "--json", "x"]);
        named(&events.success().out(), name)
    }
}

fn named(events: &str, name: &str) -> Vec<Value> {
    let all = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    all.filter(|event| event["event"] == name).collect()
}

/// How one limit is described.
#[track_caller]
fn limit<'s>(stats: &'s Value, name: &str) -> &'s Value {
    let limits = stats["limits"].as_array().expect("a list");
    limits.iter().find(|limit| limit["name"] == name).unwrap_or_else(|| panic!("{stats}"))
}

#[test]
fn what_uses_its_budget_up_is_killed_with_a_status_and_an_account() {
    let desk = Desk::new("hard-limit");
    // It ignores the warning, and makes children all the time. (Not in the background: a signal that
    // comes at the trap of a fork, see docs/limits.md, would end it.)
    let script = "trap '' XCPU; touch up-x; while :; do (:); done";
    desk.limited(&["--cpu-time", "300ms:600ms"], script);
    let follower = desk.begin(&["events", "--json", "--follow", "x"]);
    desk.sandbox(&["wait", "x"]).expect_status(137);
    let followed = finish(follower, "events".into(), b"", LIMIT);
    // A slow machine has the follower come too late.
    if followed.status == 0 {
        let exited = named(&followed.out(), "exited");
        assert_eq!(exited.len(), 1, "{}", followed.report());
        assert_eq!(exited[0]["status"], 137);
        let cpu = exited[0]["cpu_us"].as_u64().unwrap();
        assert!((500_000..2_000_000).contains(&cpu), "{}", followed.report());
    }
    desk.expect_nothing();
}

#[test]
fn a_later_program_is_killed_with_the_sandbox() {
    let desk = Desk::new("hard-limit-exec");
    // (Long enough for a busy machine to have started the later program by then, which ignores the first signal.)
    desk.limited(&["--timeout", "3s"], "trap '' TERM; touch up-x; while :; do sleep 100; done");
    let script = "trap '' TERM; touch up-y; while :; do sleep 100; done";
    let later = desk.begin(&["exec", "x", "sh", "-c", script]);
    desk.sandbox(&["wait", "x"]).expect_status(137);
    finish(later, "exec".into(), b"", LIMIT).expect_status(137);
    desk.expect_nothing();
}

#[test]
fn a_pause_does_not_count_for_the_time_limit() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let desk = Desk::new("timeout-pause");
    let before = Instant::now();
    desk.limited(&["--timeout", "3s"], "touch up-x; exec sleep 1000");
    desk.sandbox(&["pause", "x"]).success();
    let ran = before.elapsed();
    let paused = Instant::now();
    let used = limit(&desk.stats(), "timeout")["used"].as_u64().unwrap();
    let waiting = desk.begin(&["wait", "x"]);
    wait_for("the waiter", || has_asked(&waiting));
    // There is nothing to see of time that does not count but that it goes by.
    std::thread::sleep((TIMEOUT + Duration::from_millis(500)).saturating_sub(paused.elapsed()));
    assert_eq!(desk.listed("x").expect("the sandbox is there")["state"], "paused");
    assert_eq!(desk.events("limit"), [] as [Value; 0]);
    let stats = desk.stats();
    assert_eq!(limit(&stats, "timeout")["used"].as_u64().unwrap(), used, "{stats}");
    assert!(stats["uptime_us"].as_u64().unwrap() > 3_500_000, "{stats}");
    let resumed = Instant::now();
    desk.sandbox(&["resume", "x"]).success();
    finish(waiting, "wait".into(), b"", LIMIT).expect_status(143);
    let ran = ran + resumed.elapsed();
    assert!(ran >= TIMEOUT, "it was ended after {ran:?}");
}

#[test]
fn limits_and_what_is_used_of_them_can_be_asked_for() {
    let desk = Desk::new("stats-limits");
    let options = ["--cpu-time", "60", "--timeout", "10m", "--memory", "500m", "--pids", "50"];
    let options = [&options[..], &["--open-files", "64", "--file-size", "1m"]].concat();
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; touch up-x; sleep 1000 & wait";
    desk.limited(&options, script);
    let mut stats = desk.stats();
    wait_for("the child", || {
        let is_idle = stats["tasks"] == 2 && stats["running"] == 0;
        if !is_idle {
            stats = desk.stats();
        }
        is_idle
    });
    for (name, bound) in [
        ("cpu-time", 60_000_000),
        ("timeout", 600_000_000),
        ("memory", 500 << 20),
        ("pids", 50),
        ("open-files", 64),
        ("file-size", 1 << 20),
    ] {
        assert_eq!(limit(&stats, name)["limit"], bound, "{stats}");
    }
    assert_eq!(limit(&stats, "pids")["used"], 2);
    assert_eq!(limit(&stats, "cpu-time")["used"], stats["cpu_us"]);
    assert_eq!(limit(&stats, "memory")["used"], stats["memory"]);
    assert_eq!(limit(&stats, "open-files")["used"], Value::Null);
    assert_eq!(limit(&stats, "open-files")["by"], "rlimit");
    assert_eq!(limit(&stats, "timeout")["by"], "sentry");
    assert!(["cgroup", "rlimit"].map(Value::from).contains(&limit(&stats, "pids")["by"]));
    assert!(["cgroup", "sentry"].map(Value::from).contains(&limit(&stats, "memory")["by"]));
    let number = |stats: &Value, name: &str| stats[name].as_u64().unwrap();
    assert!(number(&stats, "cpu_us") > 1000 && number(&stats, "peak_memory") > 0, "{stats}");
    assert!(number(&stats, "traps") > 0 && stats["running"] == 0, "{stats}");
    let later = desk.stats();
    assert!(number(&later, "uptime_us") > number(&stats, "uptime_us"));
    assert!(number(&later, "cpu_us") >= number(&stats, "cpu_us"));
    desk.sandbox(&["kill", "x"]).success();
}
