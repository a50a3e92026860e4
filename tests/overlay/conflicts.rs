//! The host changes what the overlay changes.

use std::fs;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::{LIMIT, comes_true, finish, start, wait_for};
use super::desk::{Desk, both};

#[test]
fn a_path_that_the_host_changed_meanwhile_stops_everything() {
    both(|| {
        let desk = Desk::new("conflict");
        desk.inside(
            "c",
            "echo in > src/f1; echo in > src/f2; rm docs/long; rm -r linked; chmod 700 tool",
        )
        .success();
        fs::write(desk.host.join("src/f1"), "out\n").unwrap();
        fs::write(desk.host.join("linked/c"), "out\n").unwrap();
        let host = desk.host.to_str().unwrap();
        let refused = desk.words(&["commit", "c"]);
        refused.expect_status(1).expect_out("");
        refused.err_has(&format!("{host}/src/f1 was changed on the host meanwhile"));
        refused.err_has(&format!("{host}/linked was changed on the host meanwhile"));
        refused.err_has("nothing was committed").err_has("--force");
        assert_eq!(refused.err().lines().count(), 3, "{}", refused.report());
        assert_eq!(fs::read_to_string(desk.host.join("src/f2")).unwrap(), "file 2\n");
        assert!(desk.host.join("docs/long").exists());
        // What is not in conflict can go.
        desk.words(&["commit", "c", "--only", "f2", "--only", "long"]).success();
        assert_eq!(fs::read_to_string(desk.host.join("src/f2")).unwrap(), "in\n");
        let json = desk.words(&["commit", "c", "--json"]);
        json.expect_status(1).out_has("\"applied\":false").out_has(&format!("\"{host}/src/f1\""));
        desk.words(&["commit", "c", "--force"]).success();
        assert_eq!(fs::read_to_string(desk.host.join("src/f1")).unwrap(), "in\n");
        assert!(!desk.host.join("linked").exists());
        desk.nothing_is_kept();
    });
}

#[test]
fn what_was_changed_before_a_run_began_is_no_conflict() {
    both(|| {
        let desk = Desk::new("before");
        fs::write(desk.host.join("src/f1"), "just now\n").unwrap();
        desk.inside("b", "echo in >> src/f1; echo new > new").success();
        desk.words(&["commit", "b", "--only", "f1"]).success();
        // Written by that commit, and by the host, between two runs.
        fs::write(desk.host.join("src/f2"), "between\n").unwrap();
        desk.inside("b", "echo again >> src/f1; echo in >> src/f2").success();
        desk.words(&["commit", "b"]).success();
        let read = |name| fs::read_to_string(desk.host.join(name)).unwrap();
        assert_eq!(read("src/f1"), "just now\nin\nagain\n");
        assert_eq!(read("src/f2"), "between\nin\n");
    });
}

#[test]
fn what_the_host_has_come_to_itself_is_no_change() {
    both(|| {
        let desk = Desk::new("same");
        desk.inside("s", "echo same > src/f1; rm src/f2; mkdir new; echo n > new/n").success();
        desk.sh(&desk.host, "echo same > src/f1; rm src/f2; mkdir new; echo n > new/n").success();
        assert_eq!(desk.diff("s"), []);
        desk.words(&["commit", "s"]).success().expect_out("committed: nothing\n");
        desk.nothing_is_kept();
    });
}

#[test]
fn a_file_that_both_made_is_a_conflict() {
    both(|| {
        let desk = Desk::new("both");
        desk.inside("b", "echo in > new").success();
        fs::write(desk.host.join("new"), "out").unwrap();
        desk.words(&["commit", "b"]).expect_status(1).err_has("/new was changed");
    });
}

#[test]
fn what_an_earlier_run_had_covered_no_later_run_has_seen() {
    both(|| {
        let desk = Desk::new("covered");
        desk.inside("c", "echo in > src/f1; echo in > src/f2; echo in > src/f3").success();
        desk.sh(&desk.host, "for n in 1 2 4; do echo out > src/f$n; done").success();
        let script =
            "grep -q in src/f1; echo two > new; mv new src/f1; rm src/f2; echo in >> src/f4";
        desk.inside("c", script).success();
        let refused = desk.words(&["commit", "c"]);
        refused.expect_status(1).err_has("/src/f1 was changed").err_has("/src/f2 was changed");
        assert_eq!(refused.err().lines().count(), 3, "{}", refused.report());
        let read = |name| std::fs::read_to_string(desk.host.join(name)).unwrap();
        assert_eq!((read("src/f1"), read("src/f2")), ("out\n".to_owned(), "out\n".to_owned()));
        desk.words(&["commit", "c", "--force"]).success();
        assert_eq!((read("src/f1"), read("src/f4")), ("two\n".to_owned(), "out\nin\n".to_owned()));
    });
}

/// A commit that was stopped as it made copies; `None`: it was quicker.
fn caught_as_it_copies() -> Option<(Desk, Child)> {
    let desk = Desk::new("late");
    let work =
        "echo in > src/f1; echo in > made; head -c 200000000 /dev/urandom > a-big; echo k > keeps";
    desk.inside("l", work).success();
    let mut command = desk.sandbox();
    // With a part of it files are copied and not linked.
    command.args(["commit", "l", "--only", "a-big", "--only", "f1", "--only", "made"]);
    let mut commit = start(command);
    wait_for("the first copy", || {
        let mut names = fs::read_dir(&desk.host).unwrap().flatten();
        let copies =
            |it: fs::DirEntry| it.file_name().to_string_lossy().starts_with(".sandbox-commit-");
        names.any(copies) || commit.try_wait().unwrap().is_some()
    });
    if commit.try_wait().unwrap().is_none() {
        kill(Pid::from_raw(commit.id() as i32), Signal::SIGSTOP).unwrap();
        wait_for("its stop", || {
            let stat = format!("/proc/{}/stat", commit.id());
            fs::read_to_string(stat).is_ok_and(|it| it.contains(") T ") || it.contains(") Z "))
        });
        if fs::read_to_string(desk.host.join("src/f1")).unwrap() == "file 1\n" {
            return Some((desk, commit));
        }
        kill(Pid::from_raw(commit.id() as i32), Signal::SIGCONT).unwrap();
    }
    finish(commit, "commit".into(), b"", LIMIT).success();
    None
}

#[test]
fn what_the_host_does_while_copies_are_made_is_kept() {
    let mut caught = None;
    let is_caught = comes_true(LIMIT, || {
        caught = caught_as_it_copies();
        caught.is_some()
    });
    assert!(is_caught, "no commit was met as it copied");
    let (desk, commit) = caught.unwrap();
    fs::write(desk.host.join("src/f1"), "out\n").unwrap();
    fs::write(desk.host.join("made"), "out\n").unwrap();
    kill(Pid::from_raw(commit.id() as i32), Signal::SIGCONT).unwrap();
    let refused = finish(commit, "commit".into(), b"", LIMIT);
    refused.expect_status(1).err_has("/src/f1 was changed").err_has("/made was changed");
    let read = |name| fs::read_to_string(desk.host.join(name)).unwrap();
    assert_eq!((read("src/f1"), read("made")), ("out\n".to_owned(), "out\n".to_owned()));
    let names: Vec<_> =
        fs::read_dir(&desk.host).unwrap().flatten().map(|it| it.file_name()).collect();
    assert!(names.iter().all(|it| !it.to_string_lossy().starts_with(".sandbox")), "{names:?}");
    desk.words(&["commit", "l", "--force"]).success();
    assert_eq!(read("made"), "in\n");
    desk.nothing_is_kept();
}
