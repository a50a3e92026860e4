//! What is an overlay and what only looks like one; and that no guest reaches the places of overlays.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::common::{LIMIT, Outcome, run};
use super::desk::{Desk, same_trees, tree};

/// `sandbox` with a home in the workspace.
fn at_home(desk: &Desk) -> Command {
    fs::create_dir_all(desk.space.path().join("home")).unwrap();
    let mut command = desk.sandbox();
    command.env("HOME", desk.space.path().join("home"));
    command
}

fn words(mut command: Command, words: &[&str]) -> Outcome {
    command.args(words);
    run(command, b"", LIMIT)
}

#[test]
fn what_a_guest_made_to_look_like_an_overlay_is_none() {
    let desk = Desk::new("forged");
    desk.inside("f", "echo forged > tool").success();
    fs::copy(desk.store().join("f/description"), desk.host.join("description")).unwrap();
    desk.sh(
        &desk.host,
        "mkdir -p layers/0; cp -a ../state/sandbox/overlays/f/layers/0/upper layers/0; touch lock",
    )
    .success();
    fs::write(desk.host.join("journal"), journal(b".", b"docs")).unwrap();
    desk.words(&["discard", "f"]).success();
    let before = tree(&desk.host);
    let above = desk.space.path().to_str().unwrap();
    for verb in ["diff", "commit", "discard"] {
        let status = if verb == "diff" { 2 } else { 125 };
        desk.words(&[verb, "."]).one_line_error(status, &["no overlay is kept of"]);
        desk.words(&[verb, "./"]).one_line_error(status, &["no overlay is kept of"]);
        let named = desk.words(&[verb, ".", "--overlay-dir", above]);
        named.one_line_error(status, &["which is no overlay"]);
    }
    same_trees("something was changed", &tree(&desk.host), &before);
}

/// A journal that names one name.
fn journal(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let bytes = |it: &[u8]| [&[0x40 + u8::try_from(it.len()).unwrap()][..], it].concat();
    [&[0x81, 0x83, 0x00][..], &bytes(parent), &bytes(name)].concat()
}

#[test]
fn a_journal_of_another_form_removes_nothing() {
    let desk = Desk::new("journal");
    desk.inside("j", "echo x > y").success();
    let before = tree(&desk.host);
    let place = desk.store().join("j/journal");
    for (parent, name) in [("", "docs"), ("src", "../docs"), ("", "."), ("..", "run")] {
        fs::write(&place, journal(parent.as_bytes(), name.as_bytes())).unwrap();
        for verb in ["commit", "discard"] {
            desk.words(&[verb, "j"]).one_line_error(125, &["the journal", "is damaged"]);
        }
    }
    fs::remove_file(&place).unwrap();
    desk.sh(&desk.store(), "mkfifo j/journal").success();
    desk.words(&["discard", "j"]).one_line_error(125, &["the journal", "is damaged"]);
    same_trees("something was changed", &tree(&desk.host), &before);
    fs::remove_file(&place).unwrap();
    desk.words(&["discard", "j"]).success();
}

#[test]
fn a_directory_that_is_named_like_the_id_is_nobodys_to_remove() {
    let desk = Desk::new("named");
    let place = desk.space.path().join("place");
    for store in [&place, &desk.store()] {
        fs::create_dir_all(store.join("p")).unwrap();
        fs::write(store.join("p/file"), "mine").unwrap();
    }
    let named = ["--id", "p", "--overlay-dir", "../place", "--overlay", ".", "--", "true"];
    desk.words(&named).one_line_error(125, &["it holds p, which is no overlay"]);
    desk.inside("p", "true").one_line_error(125, &["overlays/p", "it is no overlay"]);
    for store in [&place, &desk.store()] {
        assert_eq!(fs::read_to_string(store.join("p/file")).unwrap(), "mine");
    }
    // What a killed run has left is used.
    fs::remove_file(desk.store().join("p/file")).unwrap();
    fs::create_dir(desk.store().join("p/layers")).unwrap();
    desk.inside("p", "true").one_line_error(125, &["it is no overlay"]);
    fs::write(desk.store().join("p/lock"), "").unwrap();
    desk.inside("p", "true").success();
    desk.nothing_is_kept();
}

#[test]
fn nothing_of_the_host_goes_with_a_place_above() {
    let desk = Desk::new("above");
    fs::create_dir(desk.space.path().join("lower")).unwrap();
    fs::write(desk.space.path().join("lower/file"), "mine").unwrap();
    let above = ["--overlay-dir", "..", "--overlay", ".", "--", "true"];
    desk.words(&above).one_line_error(125, &["which is no overlay", "--overlay-dir"]);
    assert!(desk.space.has("lower/file"));
    let empty = ["--overlay-dir", "empty", "--overlay", "empty", "--", "true"];
    desk.words(&empty).one_line_error(125, &["which contains it"]);
}

#[test]
fn a_named_place_is_hidden_from_later_runs_too() {
    let desk = Desk::new("later");
    let first = ["--id", "l", "--overlay", "src", "--overlay-dir", ".ov", "--", "touch", "src/new"];
    words(at_home(&desk), &first).success();
    assert!(desk.host.join(".ov/l/description").exists());
    let look = ["--", "sh", "-c", "ls .ov; mv .ov away; touch .ov/x"];
    let refused = |outcome: Outcome| {
        outcome.failure().err_has("cannot move '.ov'");
        outcome.expect_out("");
    };
    refused(words(at_home(&desk), &look));
    // Whatever the environment is then.
    let mut other = at_home(&desk);
    other.env_remove("XDG_STATE_HOME");
    refused(words(other, &look));
    words(at_home(&desk), &["why", "./.ov/l"]).expect_status(1).out_has("the overlays of your");
    let state = desk.space.path().join("state/sandbox");
    words(at_home(&desk), &["why", state.to_str().unwrap()]).expect_status(1);
    words(at_home(&desk), &["diff", "./src"]).expect_status(1).out_has("src/new");
    // One that comes to its place is another one.
    fs::rename(desk.host.join(".ov"), desk.host.join("moved")).unwrap();
    desk.sh(&desk.host, "mkdir -p .ov/l; cp moved/l/description .ov/l; touch .ov/l/lock").success();
    words(at_home(&desk), &["discard", ".ov/l"]).one_line_error(125, &["no overlay is kept of"]);
    words(at_home(&desk), &["discard", "l", "--overlay-dir", "moved"]).success();
    assert!(desk.host.join(".ov/l").exists());
}

#[test]
fn no_guest_makes_the_usual_place() {
    let desk = Desk::new("usual");
    let above = desk.space.path().to_str().unwrap();
    let script = "for at in state/sandbox home/.local/state/sandbox; do \
        mkdir -p $at/overlays/forged || rm -rf $at || mv $at $at.x; done; echo x > other";
    let words_of = ["--rw", above, "--workdir", above, "--", "sh", "-c", script];
    let made = || {
        let forged = |at: &str| desk.space.has(&format!("{at}/sandbox/overlays/forged"));
        assert!(!forged("state") && !forged("home/.local/state"));
        assert!(desk.space.has("other"));
    };
    words(at_home(&desk), &words_of).success().err_has("state/sandbox");
    made();
    let in_the_way = desk.space.path().join("state/sandbox");
    fs::remove_dir_all(&in_the_way).unwrap();
    fs::write(&in_the_way, "").unwrap();
    words(at_home(&desk), &words_of);
    assert!(Path::new(&in_the_way).is_file());
    made();
}
