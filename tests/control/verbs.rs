//! What each verb says and does.

use serde_json::Value;

use crate::common::{LIMIT, finish, wait_for};
use crate::desk::{Desk, has_asked};

#[test]
fn signals_go_to_whom_they_are_meant_for() {
    let desk = Desk::new("kill");
    // The program, and a child that has pid 3 and ends it in another way.
    // (A subshell of the program does not have its trap.)
    let script = "trap 'touch program; exit 4' USR1 TERM; \
                  sh -c 'trap \"touch child; exit\" USR1; touch up-x; while :; do sleep 0.05; done' & \
                  while :; do sleep 0.05; done";
    for (words, files, status) in [
        (&["kill", "x"][..], &["program"][..], 4),
        (&["kill", "x", "USR1"], &["program"], 4),
        (&["kill", "x", "SIGUSR1"], &["program"], 4),
        (&["kill", "x", "10"], &["program"], 4),
        (&["kill", "x", "KILL"], &[], 137),
        (&["kill", "x", "usr1", "--pid", "2"], &["program"], 4),
        (&["kill", "x", "--container", "main", "KILL"], &[], 137),
        (&["kill", "x", "--all", "KILL"], &[], 137),
    ] {
        desk.detach("x", script);
        desk.sandbox(words).success().expect_out("").expect_err("");
        desk.sandbox(&["wait", "x"]).expect_status(status);
        for file in files {
            assert!(desk.workspace.has(file), "{words:?} did not reach the {file}");
            std::fs::remove_file(desk.workspace.path().join(file)).unwrap();
        }
        std::fs::remove_file(desk.workspace.path().join("up-x")).unwrap();
    }
    desk.detach("x", script);
    desk.sandbox(&["kill", "x", "USR1", "--pid", "3"]).success();
    wait_for("the child's trap", || desk.workspace.has("child"));
    desk.sandbox(&["kill", "x", "--pid", "99999"]).one_line_error(125, &["99999"]);
    desk.sandbox(&["kill", "x", "--container", "none"]).one_line_error(125, &["x", "none"]);
    let refused = desk.sandbox(&["ps", "--foo"]);
    refused.one_line_error(125, &["--foo"]);
    assert!(!refused.err().contains("as a value"), "{}", refused.err());
    desk.sandbox(&["kill", "x", "NONE"]).one_line_error(125, &["NONE"]);
    desk.sandbox(&["kill", "x", "--all", "--pid", "2"]).one_line_error(125, &["--all"]);
    assert!(!desk.workspace.has("program"));
}

#[test]
fn what_a_detached_one_prints_can_be_read_and_followed() {
    let desk = Desk::new("logs");
    let script = "echo out; echo err >&2; touch up-x; while [ ! -e go ]; do sleep 0.02; done; \
                  echo last; exit 3";
    desk.detach("x", script);
    desk.sandbox(&["logs", "x"]).success().expect_out("out\nerr\n");
    let follower = desk.begin(&["logs", "--follow", "x"]);
    wait_for("the follower", || has_asked(&follower));
    desk.workspace.write("go", "");
    finish(follower, "logs".into(), b"", LIMIT).success().expect_out("out\nerr\nlast\n");
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    desk.sandbox(&["logs", "-f", "x"]).success().expect_out("out\nerr\nlast\n");
    desk.sandbox(&["wait", "x"]).expect_status(3);
    desk.sandbox(&["logs", "x"]).one_line_error(125, &["no sandbox named x"]);
}

#[test]
fn refusals_are_explained_in_the_output_of_a_detached_one() {
    let desk = Desk::new("explained");
    // unshare(2) of a user namespace is refused, which is explained once.
    desk.detach("x", "unshare -U true; exit 0");
    desk.sandbox(&["wait", "x"]);
    desk.workspace.inside(&["sh", "-c", "unshare -U true; exit 0"]);
    let native = desk.sandbox(&["--", "sh", "-c", "unshare -U true; exit 0"]);
    desk.detach("x", "unshare -U true; exit 0");
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    // (Its end is known before its last words are written.)
    wait_for("its last words", || desk.sandbox(&["logs", "x"]).out() == native.err());
}

#[test]
fn the_kernel_log_is_that_of_the_guest() {
    let desk = Desk::new("dmesg");
    let script = "dmesg > log 2>&1; touch up-x; while [ ! -e go ]; do sleep 0.02; done";
    desk.detach("x", script);
    let outside = desk.sandbox(&["dmesg", "x"]);
    outside.success().out_has("started").out_lacks("<6>");
    assert!(outside.out().starts_with("[    0."), "{}", outside.out());
    let follower = desk.begin(&["dmesg", "-f", "x"]);
    wait_for("the follower", || has_asked(&follower));
    desk.workspace.write("go", "");
    let followed = finish(follower, "dmesg".into(), b"", LIMIT);
    followed.success().out_has("the program ended");
    assert!(followed.out().starts_with(&outside.out()));
}

#[test]
fn events_are_objects_and_following_them_ends_with_the_sandbox() {
    let desk = Desk::new("events");
    desk.detach_idle("x");
    let past = desk.sandbox(&["events", "--json", "x"]);
    let of = |text: &str| -> Vec<Value> {
        let all = text.lines().map(|line| serde_json::from_str(line).expect("an object"));
        // (Execs of the program itself are seen where the supervisor is root.)
        all.filter(|it: &Value| it["event"] != "exec").collect()
    };
    let first = &of(&past.success().out())[0];
    assert_eq!((&first["event"], &first["path"]), (&"started".into(), &"sh".into()));
    assert_eq!(first["container"], "main");
    assert!(first["time"].as_u64().is_some_and(|time| time > 1_500_000_000_000_000));
    desk.sandbox(&["events", "x"]).success().out_has("started: sh\n");
    let head = desk.sandbox(&["ps", "x"]).success().out();
    assert!(head.starts_with("PID") && !head.contains("CONTAINER"), "{head}");
    let follower = desk.begin(&["events", "--json", "--follow", "x"]);
    wait_for("the follower", || has_asked(&follower));
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["resume", "x"]).success();
    desk.sandbox(&["kill", "x"]).success();
    let followed = finish(follower, "events".into(), b"", LIMIT);
    let followed = of(&followed.success().out());
    let names: Vec<&str> = followed.iter().map(|it| it["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["started", "paused", "resumed", "exited"]);
    assert_eq!(followed[1]["tasks"], 2);
    assert_eq!(followed[3]["status"], 7);
    assert!(followed[3]["peak_memory"].as_u64().is_some_and(|bytes| bytes > 100_000));
}

#[test]
fn what_guests_execute_is_an_event_where_the_run_has_an_id() {
    let desk = Desk::new("exec-events");
    desk.detach("x", "/bin/true; touch up-x; sleep 1000");
    desk.sandbox(&["events", "x"]).success().out_has("exec: /bin/true");
}

#[test]
fn use_is_shown_as_text_and_as_json() {
    let desk = Desk::new("stats");
    desk.detach_idle("x");
    wait_for("the shell's last command to end", || {
        desk.sandbox(&["stats", "x"]).success().out().contains("tasks     2")
    });
    desk.sandbox(&["stats", "x"]).success().out_has("memory");
    let stats = desk.sandbox(&["stats", "--json", "x"]);
    let stats: Value = serde_json::from_str(stats.success().out().trim()).unwrap();
    assert_eq!((&stats["processes"], &stats["tasks"]), (&2.into(), &2.into()));
    assert_eq!(stats["paused"], false);
    assert!(stats["memory"].as_u64().is_some_and(|memory| memory > 0));
    assert!(stats["uptime_us"].as_u64().is_some_and(|time| time > 0));
    // Not on a terminal: one look.
    desk.sandbox(&["top"]).success().out_has("x ").out_has("%CPU");
    desk.sandbox(&["top", "x"]).success().out_has("sleep 1000");
    let top = desk.sandbox(&["top", "--json", "x"]);
    let top: Value = serde_json::from_str(top.success().out().trim()).unwrap();
    assert_eq!(top["sandboxes"][0]["id"], "x");
    assert_eq!(top["processes"].as_array().unwrap().len(), 2);
}

#[test]
fn a_stopped_job_is_said_to_be_one() {
    use nix::sys::signal::{Signal, kill};
    let desk = Desk::new("job");
    let child = desk.begin(&["--id", "x", "--", "sh", "-c", "touch up; exec sleep 1000"]);
    wait_for("the program", || desk.workspace.has("up"));
    let supervisor = nix::unistd::Pid::from_raw(child.id() as i32);
    kill(supervisor, Signal::SIGSTOP).unwrap();
    wait_for("its stop", || crate::desk::process_state(supervisor.as_raw()) == Some('T'));
    assert_eq!(desk.listed("x").unwrap()["state"], "stopped");
    desk.sandbox(&["kill", "x"]).one_line_error(125, &["stopped", "fg"]);
    kill(supervisor, Signal::SIGCONT).unwrap();
    wait_for("its continuation", || crate::desk::process_state(supervisor.as_raw()) != Some('T'));
    desk.sandbox(&["kill", "x"]).success();
    finish(child, "run".into(), b"", LIMIT).expect_status(143);
}
