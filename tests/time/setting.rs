//! Setting the clock.

use crate::common::{Workspace, guest, is_root};

fn set() -> String {
    guest("time_set").to_str().expect("a path in UTF-8").to_owned()
}

const SET: &str = "clock_settime: 10000000\nsettimeofday: 15000000\nadjtimex: 15001000\n\
    a child of before: 15001000\n";
const REFUSED: &str = "clock_settime: Operation not permitted\n\
    settimeofday: Operation not permitted\nadjtimex: Operation not permitted\n";

#[test]
fn root_of_a_sandbox_with_its_own_clock_sets_it_for_every_program() {
    let workspace = Workspace::new("root");
    for words in ["+0s", "2020-01-01T00:00:00Z,frozen"] {
        let outcome = workspace.inside_with(&["--time", words, "--user", "root"], &[set()]);
        outcome.success().expect_out(SET);
    }
    let script = "date -u -s '2031-02-03 12:00' >/dev/null; touch f; date -u +%F; date -u -r f +%F";
    let outcome =
        workspace.inside_with(&["--time", "+0s", "--user", "root"], &["sh", "-c", script]);
    outcome.success().expect_out("2031-02-03\n2031-02-03\n");
}

#[test]
fn others_may_not_set_it() {
    let workspace = Workspace::new("others");
    let user: &[&str] = if is_root() { &["--user", "nobody"] } else { &[] };
    let options = [&["--time", "+0s"], user].concat();
    let outcome = workspace.inside_with(&options, &[set()]);
    assert!(outcome.success().out().starts_with(REFUSED), "{}", outcome.report());
}

#[test]
fn without_a_clock_of_its_own_the_refusal_names_the_flag() {
    let workspace = Workspace::new("default");
    let outcome = workspace.inside_with(&["--user", "root"], &[set()]);
    assert!(outcome.success().out().starts_with(REFUSED), "{}", outcome.report());
    outcome.err_has("--time +0s gives the sandbox a clock of its own");
}
