//! A sandbox with a clock of its own (`--time`): what programs of every kind read, how long they
//! wait, how their files are stamped, who may set the clock; and that a run without it is native.

#[path = "../common/mod.rs"]
mod common;

mod clocks;
mod files;
mod setting;
mod waits;

use std::time::{SystemTime, UNIX_EPOCH};

/// 2020-01-01T00:00:00Z.
const Y2020: i64 = 1_577_836_800;
const DAY: i64 = 86_400;

/// The host's time of day.
fn host() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs() as i64
}

/// Fails unless `line` is a number of seconds not before `wanted` and not long after it.
#[track_caller]
fn expect_time(line: &str, wanted: i64) {
    let shown: i64 = line.trim().parse().unwrap_or_else(|_| panic!("no seconds: {line:?}"));
    assert!((wanted - 1..wanted + 120).contains(&shown), "{shown} is not {wanted}");
}
