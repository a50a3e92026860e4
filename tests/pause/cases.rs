//! Everything stops, and all of it goes on.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Case;
use crate::common::{Workspace, wait_for};
use crate::supervisor::OWN_CLOCK;
use crate::user::Sandbox;

pub(crate) const ALL: &[Case] = &[
    ("nothing_counts_while_paused_and_all_go_on", nothing_counts_while_paused_and_all_go_on),
    ("waits_by_a_clock_of_its_own_are_held", waits_by_a_clock_of_its_own_are_held),
    ("pauses_nest", pauses_nest),
    ("a_storm_of_forks_stands_still", a_storm_of_forks_stands_still),
    ("vfork_parents_are_held_by_their_children", vfork_parents_are_held_by_their_children),
    ("a_vfork_child_in_a_call_is_held_with_its_parent", a_vfork_child_is_held_with_its_parent),
    ("a_stopped_task_stays_stopped", a_stopped_task_stays_stopped),
    ("what_a_guest_traces_is_paused_with_its_tracer", what_a_guest_traces_is_paused),
    ("a_tracer_outside_fails_the_pause_and_all_go_on", a_tracer_outside_fails_the_pause),
    ("tasks_may_die_while_paused", tasks_may_die_while_paused),
    ("the_census_is_the_guests_own_view", the_census_is_the_guests_own_view),
];

fn nothing_counts_while_paused_and_all_go_on() {
    for (kind, count, nap) in [
        ("threads", 8, "0"),
        ("processes", 8, "0"),
        ("threads", 200, "500"),
        ("processes", 100, "500"),
    ] {
        let mut sandbox = Sandbox::start(&["counters", kind, &count.to_string(), nap]);
        sandbox.expect_line("ready");
        let counters = sandbox.counters();
        for _ in 0..5 {
            assert_eq!(sandbox.pause(), count as u64 + 1, "{kind}");
            counters.expect_still();
            sandbox.resume();
            counters.expect_moving(count);
        }
        counters.stop();
        assert_eq!(sandbox.finish().0, 0);
    }
}

fn waits_by_a_clock_of_its_own_are_held() {
    for (kind, count, nap) in [("threads", 8, "500"), ("processes", 20, "500")] {
        let argv = ["counters", kind, &count.to_string(), nap];
        let mut sandbox = Sandbox::start_with(Workspace::new("pause"), &[OWN_CLOCK], &argv);
        sandbox.expect_line("ready");
        let counters = sandbox.counters();
        for _ in 0..10 {
            assert_eq!(sandbox.pause(), count as u64 + 1, "{kind}");
            counters.expect_still();
            sandbox.resume();
            counters.expect_moving(count);
        }
        counters.stop();
        assert_eq!(sandbox.finish().0, 0);
    }
}

fn pauses_nest() {
    let mut sandbox = Sandbox::start(&["counters", "threads", "2", "0"]);
    sandbox.expect_line("ready");
    let counters = sandbox.counters();
    assert_eq!(sandbox.order("resume"), Err("the sandbox is not paused".into()));
    assert_eq!((sandbox.pause(), sandbox.pause()), (3, 3));
    sandbox.resume();
    assert_eq!(sandbox.order("paused").as_deref(), Ok("true"));
    counters.expect_still();
    // What the kernel stops for itself does not end the user's pause.
    sandbox.order("signal-all 0").unwrap();
    counters.expect_still();
    sandbox.resume();
    assert_eq!(sandbox.order("paused").as_deref(), Ok("false"));
    counters.expect_moving(2);
}

fn a_storm_of_forks_stands_still() {
    let mut sandbox = Sandbox::start(&["counters", "storm"]);
    sandbox.expect_line("ready");
    let counters = sandbox.counters();
    for _ in 0..30 {
        // The chain and the tree are alive, each time anew.
        counters.expect_moving(2);
        let tasks = sandbox.pause();
        counters.expect_still();
        let listed = sandbox.census();
        assert_eq!(listed, sandbox.census());
        let (ended, alive): (Vec<_>, Vec<_>) = listed.iter().partition(|it| it.state == 'Z');
        assert!(alive.iter().all(|it| it.state == 't' && it.threads == 1), "{alive:?}");
        // The program, the end of the chain, and the tree.
        assert!(alive.len() > 2, "{alive:?} and {} that have ended", ended.len());
        assert_eq!(tasks, alive.len() as u64);
        sandbox.resume();
    }
    counters.expect_moving(2);
    counters.stop();
    assert_eq!(sandbox.finish().0, 0);
}

fn vfork_parents_are_held_by_their_children() {
    let mut sandbox = Sandbox::start(&["counters", "vforks"]);
    sandbox.expect_line("ready");
    let counters = sandbox.counters();
    for _ in 0..100 {
        sandbox.pause();
        let before = counters.all();
        assert!(before == counters.all());
        sandbox.resume();
    }
    sandbox.pause();
    counters.expect_still();
    sandbox.resume();
    counters.expect_moving(1);
    counters.stop();
    assert_eq!(sandbox.finish().0, 0);
}

fn a_vfork_child_is_held_with_its_parent() {
    let mut sandbox = Sandbox::start(&["counters", "vfork"]);
    sandbox.expect_line("ready");
    for _ in 0..3 {
        assert_eq!(sandbox.pause(), 2);
        sandbox.resume();
    }
    assert_eq!(sandbox.finish().0, 0);
}

fn a_stopped_task_stays_stopped() {
    let script = "sleep 1000 & kill -STOP $!; echo $!; read line; kill -CONT $!; kill $!; wait $!; \
                  echo $?";
    let mut sandbox = Sandbox::start(&["/bin/sh", "-c", script]);
    let pid: i32 = sandbox.line().parse().expect("a pid");
    let state = |sandbox: &mut Sandbox| {
        let all = sandbox.census();
        all.iter().find(|it| it.guest_pid == pid).expect("the stopped one").state
    };
    wait_for("the stop", || state(&mut sandbox) == 'T');
    for _ in 0..10 {
        assert_eq!(sandbox.pause(), 2);
        sandbox.resume();
        wait_for("the stop again", || state(&mut sandbox) == 'T');
    }
    // What continues it during a pause continues it after the pause.
    sandbox.pause();
    sandbox.order(&format!("signal {pid} {}", libc::SIGCONT)).unwrap();
    sandbox.resume();
    wait_for("sleep to sleep", || state(&mut sandbox) == 'S');
    sandbox.type_in("\n");
    sandbox.expect_line("143");
    assert_eq!(sandbox.finish().0, 0);
}

fn what_a_guest_traces_is_paused() {
    if Command::new("gdb").arg("--version").output().is_err() {
        return println!("skipped: no gdb");
    }
    let script = "echo ready; gdb -q -batch -ex 'break nanosleep' -ex 'break clock_nanosleep' \
                  -ex run -ex 'shell read line' -ex kill --args sleep 1000 >/dev/null 2>&1; echo $?";
    let mut sandbox = Sandbox::start(&["/bin/bash", "-c", script]);
    sandbox.expect_line("ready");
    wait_for("the breakpoint", || sandbox.census().iter().any(|it| it.state == 't'));
    for _ in 0..5 {
        assert!(sandbox.pause() >= 3);
        sandbox.resume();
    }
    wait_for("the breakpoint still", || sandbox.census().iter().any(|it| it.state == 't'));
    sandbox.type_in("\n");
    sandbox.expect_line("0");
}

fn a_tracer_outside_fails_the_pause() {
    let mut sandbox = Sandbox::start(&["counters", "processes", "2", "0"]);
    sandbox.expect_line("ready");
    let counters = sandbox.counters();
    let task = sandbox.census()[1].pid;
    if Command::new("gdb").arg("--version").output().is_err() {
        return println!("skipped: no gdb");
    }
    let mut gdb = Command::new("gdb")
        .args(["-q", "-batch", "-p", &task.to_string(), "-ex", "shell sleep 1000"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .process_group(0)
        .spawn()
        .expect("start gdb");
    wait_for("gdb", || sandbox.census().iter().any(|it| it.state == 't'));
    let error = sandbox.order("pause").expect_err("a pause");
    assert!(error.contains(&format!("thread {task} (counters) is traced by")), "{error}");
    assert!(error.contains("(gdb)"), "{error}");
    assert_eq!(sandbox.order("paused").as_deref(), Ok("false"));
    let before = counters.all();
    wait_for("the other process", || counters.all()[1] > before[1]);
    killpg(Pid::from_raw(gdb.id() as i32), Signal::SIGKILL).expect("kill gdb and its shell");
    gdb.wait().expect("reap gdb");
    assert_eq!(sandbox.pause(), 3);
    sandbox.resume();
    counters.expect_moving(2);
}

fn tasks_may_die_while_paused() {
    let mut sandbox = Sandbox::start(&["counters", "processes", "20", "100"]);
    sandbox.expect_line("ready");
    let counters = sandbox.counters();
    let all = sandbox.census();
    assert_eq!(sandbox.pause(), 21);
    for process in &all[11..] {
        sandbox.order(&format!("signal {} {}", process.guest_pid, libc::SIGKILL)).unwrap();
    }
    let dead = |sandbox: &mut Sandbox| sandbox.census().iter().filter(|it| it.state == 'Z').count();
    wait_for("ten to die", || dead(&mut sandbox) == 10);
    sandbox.resume();
    // Their parent reaps them.
    wait_for("ten to be gone", || sandbox.census().len() == 11);
    counters.expect_moving(10);
    // And the whole sandbox may end while it is paused.
    assert_eq!(sandbox.pause(), 11);
    sandbox.order("kill").unwrap();
    assert_eq!(sandbox.finish().0, 137);
}

fn the_census_is_the_guests_own_view() {
    let script = "sleep 1000 & (setsid sh -c 'sleep 1001; :' &); exec 3<&0; sleep 1002 <&3 & \
                  while [ $(ps -e -o args= | grep -c '^sleep') -lt 3 ]; do :; done; \
                  all=$(ps -e -o pid=,ppid=,pgid=,sid=,uid=,comm= --sort pid); \
                  echo \"$all\" | grep -v 'ps$'; \
                  echo end; read line";
    let mut sandbox = Sandbox::start(&["/bin/bash", "-c", script]);
    let mut theirs = BTreeSet::new();
    loop {
        let line = sandbox.line();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["end"] => break,
            ["1", ..] => {}
            _ => drop(theirs.insert(words.join(" "))),
        }
    }
    let ours: BTreeSet<String> = sandbox
        .census()
        .iter()
        .map(|it| {
            let ids = [it.guest_pid, it.guest_parent, it.guest_group, it.guest_session];
            format!("{} {} {}", ids.map(|id| id.to_string()).join(" "), it.uid, it.comm)
        })
        .collect();
    assert_eq!(ours, theirs);
}
