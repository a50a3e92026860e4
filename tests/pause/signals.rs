//! Signals from the outside.

use crate::Case;
use crate::common::wait_for;
use crate::user::Sandbox;

pub(crate) const ALL: &[Case] = &[
    ("a_signal_to_all_reaches_each_once", a_signal_to_all_reaches_each_once),
    ("a_signal_to_one_reaches_no_other", a_signal_to_one_reaches_no_other),
    ("a_storm_of_forks_is_killed", a_storm_of_forks_is_killed),
];

fn start() -> (Sandbox, Vec<i32>) {
    let mut sandbox = Sandbox::start(&["heeds", "pids", "3"]);
    for _ in 0..4 {
        sandbox.expect_line("ready");
    }
    let all = sandbox.census();
    let pids: Vec<i32> = all.iter().map(|it| it.guest_pid).collect();
    assert_eq!(pids.len(), 4, "{all:?}");
    (sandbox, pids)
}

fn lines(sandbox: &mut Sandbox, count: usize) -> Vec<i32> {
    let mut pids: Vec<i32> = (0..count).map(|_| sandbox.line().parse().expect("a pid")).collect();
    pids.sort_unstable();
    pids
}

fn a_signal_to_all_reaches_each_once() {
    let (mut sandbox, pids) = start();
    for _ in 0..5 {
        sandbox.order(&format!("signal-container main {}", libc::SIGUSR1)).unwrap();
        assert_eq!(lines(&mut sandbox, 4), pids);
    }
    assert_eq!(
        sandbox.order("signal-container other 15"),
        Err("kernel contains no tasks".to_owned())
    );
    sandbox.kill_all();
    assert_eq!(sandbox.finish(), (137, String::new()));
}

fn a_signal_to_one_reaches_no_other() {
    let (mut sandbox, pids) = start();
    for pid in &pids {
        sandbox.order(&format!("signal {pid} {}", libc::SIGUSR1)).unwrap();
        assert_eq!(lines(&mut sandbox, 1), [*pid]);
    }
    // Init is no guest.
    let error = sandbox.order("signal 1 9").unwrap_err();
    assert_eq!(error, "the sandbox has no process 1; `sandbox ps ID` shows those it has");
}

fn a_storm_of_forks_is_killed() {
    let mut sandbox = Sandbox::start(&["counters", "storm"]);
    sandbox.expect_line("ready");
    sandbox.order("pause").unwrap();
    sandbox.order(&format!("signal-all {}", libc::SIGSTOP)).unwrap();
    sandbox.resume();
    let counters = sandbox.counters();
    wait_for("all to stop", || sandbox.census().iter().all(|it| "TZ".contains(it.state)));
    counters.expect_still();
    sandbox.order(&format!("signal-all {}", libc::SIGCONT)).unwrap();
    counters.expect_moving(2);
    sandbox.kill_all();
    assert_eq!(sandbox.finish().0, 137);
    counters.expect_still();
}
