//! Many calls at once.

use crate::stage::{FULL, Served, Stage, unexpected};
use sandbox::notify::Options;

#[test]
fn sixteen_threads_get_each_answer_exactly_once() {
    let dispatch = Served::by(unexpected);
    let stage = Stage::start(FULL, &["traps", "hammer", "16", "2000"], dispatch);
    let dispatch = std::sync::Arc::clone(&stage.dispatch);
    // The guest compares each answer with what its call must return.
    assert_eq!(stage.finish(), 0);
    let calls = dispatch.reports()[0];
    println!("{calls} calls in 2 s");
    assert!(calls > 1000, "{calls}");
}

#[test]
fn without_the_newer_flags_it_is_the_same() {
    let options = Options { wait_killable: false, sync_wake_up: false, process_vm: false };
    let dispatch = Served::by(unexpected);
    let stage = Stage::start(options, &["traps", "hammer", "16", "500"], dispatch);
    assert!(!stage.listener.sync_wake_up());
    assert_eq!(stage.finish(), 0);
}

#[test]
fn two_thousand_children_are_served() {
    let stage = Stage::start(FULL, &["traps", "forks", "2000"], Served::by(unexpected));
    assert_eq!(stage.finish(), 0);
}
