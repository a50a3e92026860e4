//! Sleeping, timeouts and timers.

use std::time::{Duration, Instant};

use crate::common::{Workspace, guest, have};
use crate::host;

fn waits() -> String {
    guest("time_waits").to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn every_wait_lasts_as_long_as_its_own_clock_says() {
    let program = waits();
    let workspace = Workspace::new("waits");
    let native = workspace.native(&[&program, "100"]);
    native.success().expect_out("19 waits\n");
    for words in ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z,frozen", "+3d", "-2h", "+0s"] {
        let outcome = workspace.inside_with(&["--time", words], &[&program, "100"]);
        outcome.success().same_as(&native);
    }
    // A thousand of the guest's milliseconds are a hundred of the host's, and the other way round.
    for (rate, milliseconds) in [("rate=10", "1000"), ("rate=0.5", "100")] {
        let outcome = workspace.inside_with(&["--time", rate], &[&program, milliseconds]);
        outcome.success().same_as(&native);
    }
}

/// A thread that is killed while the sentry traces it for a wait would remain as a zombie.
#[test]
fn processes_end_whatever_their_threads_wait_for() {
    let program = guest("time_ends");
    let workspace = Workspace::new("ends");
    let native = workspace.native(&[&program]);
    native.success().expect_out("all ended\n");
    for words in ["rate=10", "rate=0.5"] {
        let outcome = workspace.inside_with(&["--time", words], &[&program]);
        outcome.success().same_as(&native);
    }
}

/// What cannot be given the host's timeout is left to the kernel, once, and that is told.
#[test]
fn a_wait_with_no_room_below_its_stack_ends() {
    let program = guest("time_edge").to_str().expect("a path in UTF-8").to_owned();
    let workspace = Workspace::new("edge");
    let native = workspace.native(&[&program]);
    native.success().expect_out("slept: 0\n");
    for options in [&["--time", "rate=10"][..], &["--deterministic", "--time", "rate=10"]] {
        let outcome = workspace.inside_with(options, &[&program]);
        outcome.success().expect_out("slept: 0\n").err_has("its memory cannot be changed");
    }
}

/// An exec is traced until it has come to its end, and a thread may be quicker than who traces it.
#[test]
fn an_exec_that_fails_takes_no_call_its_clock() {
    let program = guest("time_failed_exec").to_str().expect("a path in UTF-8").to_owned();
    let workspace = Workspace::new("failed-exec");
    let native = workspace.native(&[&program, "native"]);
    native.success().expect_out("0 wrong\n");
    let outcome = workspace.inside_with(&["--time", "+3d"], &[&program, "made"]);
    outcome.success().same_as(&native);
}

#[test]
fn a_rate_shortens_the_hosts_wait() {
    let workspace = Workspace::new("rate");
    let begun = Instant::now();
    let script = "a=$(date +%s); sleep 600; b=$(date +%s); echo $((b - a >= 600))";
    let outcome = workspace.inside_with(&["--time", "rate=500"], &["sh", "-c", script]);
    outcome.success().expect_out("1\n");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    if have("python3") {
        let script = "import asyncio, time, select\n\
            async def main(): await asyncio.sleep(30)\n\
            a = time.monotonic(); asyncio.run(main()); print(time.monotonic() - a >= 30)";
        let outcome = workspace.inside_with(&["--time", "rate=100"], &["python3", "-c", script]);
        outcome.success().expect_out("True\n");
        assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
    }
}

#[test]
fn the_hosts_clock_stays_where_it_is() {
    let workspace = Workspace::new("host");
    let (begun, steady) = (host(), Instant::now());
    workspace.inside_with(&["--time", "@0"], &["date", "-s", "2030-01-01"]);
    let off = host() - begun - steady.elapsed().as_secs() as i64;
    assert!((-2..=2).contains(&off), "{off}");
}
