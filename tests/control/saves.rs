//! `sandbox save`, `restore` and `inspect`: words, files, the conversation. What an image carries is
//! tested elsewhere.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use sandbox::control::protocol::{
    self, PREFIX, REPLY_MAX, Reply, Request, Save, decode_reply, encode_request,
};
use sandbox::sys::message::send_stream;
use serde_json::Value;

use crate::common::{LIMIT, finish, is_root, run, wait_for};
use crate::desk::Desk;

/// Detaches one that counts into `count` with nothing but a shell, as fast as that goes.
fn detach_counter(desk: &Desk, id: &str) {
    let script = format!("i=0; while :; do i=$((i+1)); echo $i > count; : > up-{id}; done");
    desk.detach(id, &script);
}

/// It goes on: the count grows.
fn counts(desk: &Desk) {
    let before = desk.workspace.read("count");
    wait_for("the count", || {
        let now = desk.workspace.read("count");
        !now.is_empty() && now != before
    });
}

fn partials(desk: &Desk) -> Vec<String> {
    let names = fs::read_dir(desk.workspace.path()).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".partial")).collect()
}

/// A client that speaks by hand.
struct Speaker(UnixStream);

impl Speaker {
    /// Begins a save into `out`.
    fn save(desk: &Desk, id: &str, out: &File, leave_running: bool) -> Speaker {
        let speaker = Speaker::connect(desk, id);
        let save =
            Save { leave_running, strict: false, compression: None, name: Some("by\nhand".into()) };
        let bytes = encode_request(&Request::Save(Box::new(save))).unwrap();
        let sent = send_stream(speaker.0.as_fd(), &bytes, &[out.as_fd()]).unwrap();
        assert_eq!(sent, bytes.len());
        speaker
    }

    fn connect(desk: &Desk, id: &str) -> Speaker {
        let directory = File::open(desk.state(id)).unwrap();
        let path = format!("/proc/self/fd/{}/control", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Speaker(stream)
    }

    fn say(&mut self, request: &Request) {
        self.0.write_all(&encode_request(request).unwrap()).unwrap();
    }

    /// The next reply that is no progress.
    fn hear(&mut self) -> Reply {
        loop {
            let mut prefix = [0; PREFIX];
            self.0.read_exact(&mut prefix).unwrap();
            let mut body = vec![0; protocol::length(prefix, REPLY_MAX).unwrap()];
            self.0.read_exact(&mut body).unwrap();
            match decode_reply(&body).unwrap() {
                Reply::Progress { .. } => {}
                reply => return reply,
            }
        }
    }

    fn refused(&mut self, words: &str) {
        let reply = self.hear();
        let Reply::Refused(refused) = &reply else { panic!("{reply:?}") };
        assert!(refused.reason.contains(words), "{}", refused.reason);
    }
}

#[test]
fn a_save_ends_the_sandbox_once_the_image_is_there() {
    let desk = Desk::new("save-ends");
    let script = "touch up-x; while :; do :; done";
    let caller = desk.begin(&["run", "--id", "x", "--", "sh", "-c", script]);
    wait_for("the program", || desk.workspace.has("up-x"));
    let image = desk.workspace.write("image", "what was there before");
    desk.sandbox(&["save", "x", "-o", "image"]).success().expect_out("").expect_err("");
    let ended = finish(caller, "run".into(), b"", LIMIT);
    let name = fs::canonicalize(&image).unwrap();
    let name = name.display();
    ended.expect_status(137).expect_err(&format!(
        "sandbox: saved to {name} and ended; sandbox restore {name} goes on from there\n"
    ));
    assert_eq!(fs::metadata(&image).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(partials(&desk), [""; 0]);
    // Nobody has the id any more: the image goes on under it, and under no other.
    desk.sandbox(&["restore", "image", "--detach"]).success().expect_out("x\n");
    desk.sandbox(&["restore", "image", "--detach"]).one_line_error(125, &["x", "in use", "--id"]);
    desk.sandbox(&["restore", "image", "--detach", "--id", "y"]).success().expect_out("y\n");
    desk.sandbox(&["restore", "image", "--id", "../y"]).one_line_error(125, &["cannot use the id"]);
    let ids = desk.ps().iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids, ["x", "y"]);
}

#[test]
fn one_that_is_left_running_goes_on_and_stays_paused_if_it_was() {
    let desk = Desk::new("save-leaves");
    detach_counter(&desk, "x");
    let saved = desk.sandbox(&["checkpoint", "x", "-o", "image", "--leave-running", "--json"]);
    let row: Value = serde_json::from_str(&saved.success().out()).unwrap();
    assert_eq!((&row["id"], &row["ended"]), (&"x".into(), &false.into()));
    assert_eq!(row["bytes"], fs::metadata(desk.workspace.path().join("image")).unwrap().len());
    assert_eq!((&row["processes"], &row["threads"]), (&1.into(), &1.into()));
    counts(&desk);
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["save", "x", "-o", "image", "--leave-running"]).success();
    assert_eq!(desk.listed("x").unwrap()["state"], "paused");
    desk.sandbox(&["resume", "x"]).success();
    counts(&desk);
    // Through a pipe, packed, to somebody who only looks.
    let words = ["save", "x", "-o", "-", "--leave-running", "--compress", "zstd:1"];
    let piped = desk.sandbox(&words);
    let looked = run(desk.command(&["inspect", "-", "--json"]), &piped.success().stdout, LIMIT);
    let image: Value = serde_json::from_str(&looked.success().out()).unwrap();
    assert_eq!((&image["compressed"], &image["id"]), (&true.into(), &"x".into()));
    assert_eq!(image["bytes"], piped.stdout.len());
    assert_eq!(image["processes"][0]["pid"], 2);
    desk.sandbox(&["inspect", "image"]).success().out_has("sh -c").out_has("(writable)");
    desk.sandbox(&["inspect", "x"]).success().out_has("sandbox   x, running");
    let running = desk.sandbox(&["inspect", "x", "--json"]);
    let running: Value = serde_json::from_str(&running.success().out()).unwrap();
    assert_eq!(running["processes"][0]["guest_pid"], 2);
    // Nobody reads it.
    let mut broken = desk.command(&["save", "x", "-o", "-"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let broken = broken.stdout(writer).output().unwrap();
    assert_eq!(broken.status.code(), Some(125));
    let said = String::from_utf8_lossy(&broken.stderr);
    assert!(said.contains("the sandbox x refuses") && said.contains("Broken pipe"), "{said}");
    counts(&desk);
}

#[test]
fn nothing_ends_before_the_client_says_so() {
    let desk = Desk::new("save-commit");
    detach_counter(&desk, "x");
    let out = File::create(desk.workspace.path().join("image")).unwrap();
    let mut first = Speaker::save(&desk, "x", &out, false);
    let reply = first.hear();
    assert!(matches!(reply, Reply::Written(summary) if summary.processes == 1), "{reply:?}");
    // Meanwhile: one at a time, and other verbs behave.
    desk.sandbox(&["save", "x", "-o", "other"]).one_line_error(125, &["being saved already"]);
    assert_eq!(partials(&desk), [""; 0]);
    assert!(!desk.workspace.has("other"));
    desk.sandbox(&["ps", "x"]).success();
    desk.sandbox(&["pause", "x"]).success();
    desk.sandbox(&["resume", "x"]).success();
    desk.sandbox(&["kill", "x", "WINCH"]).success();
    desk.sandbox(&["exec", "x", "--", "true"]).one_line_error(125, &["x", "paused"]);
    drop(first);
    counts(&desk);
    // One that says something else.
    let mut other = Speaker::save(&desk, "x", &out, false);
    assert!(matches!(other.hear(), Reply::Written(_)));
    other.say(&Request::Standing);
    other.refused("did not keep it");
    counts(&desk);
    let mut last = Speaker::save(&desk, "x", &out, false);
    assert!(matches!(last.hear(), Reply::Written(_)));
    last.say(&Request::Commit);
    assert_eq!(last.hear(), Reply::Done);
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    // (Its end is known before its last words are written.)
    let words = "saved to $'by\\nhand' and ended";
    wait_for("its last words", || desk.sandbox(&["logs", "x"]).out().contains(words));
    desk.sandbox(&["wait", "x"]).expect_status(137);
}

#[test]
fn a_save_needs_somewhere_to_write_to() {
    let desk = Desk::new("save-out");
    desk.detach_idle("x");
    let read_only = File::open("/dev/null").unwrap();
    Speaker::save(&desk, "x", &read_only, false).refused("cannot be written to");
    let mut without = Speaker::connect(&desk, "x");
    let save = Save { leave_running: false, strict: false, compression: None, name: None };
    without.say(&Request::Save(Box::new(save)));
    without.refused("one descriptor");
    let mut early = Speaker::connect(&desk, "x");
    early.say(&Request::Commit);
    early.refused("nothing was saved");
    fs::create_dir(desk.workspace.path().join("directory")).unwrap();
    for (words, wanted) in [
        (&["save", "x"][..], &["--output"][..]),
        (&["save", "x", "-o", "directory"], &["x", "directory", "is a directory"]),
        (&["save", "x", "-o", "none/image"], &["x", "none"]),
        (&["save", "x", "-o", "/dev/null"], &["neither a regular file nor free"]),
        (&["save", "x", "-o", "/proc/image"], &["x", "/proc"]),
        (&["save", "x", "-o", "i", "--compress", "gzip"], &["gzip", "zstd"]),
        (&["save", "x", "-o", "i", "--compress", "zstd:99"], &["zstd:99", "1 to 22"]),
        (&["save", "x", "-o", "-", "--json"], &["JSON"]),
        (&["save", "none", "-o", "i"], &["no sandbox named none"]),
        (&["save", "../x", "-o", "i"], &["cannot use the id"]),
    ] {
        desk.sandbox(words).one_line_error(125, wanted);
    }
    if !is_root() {
        let closed = desk.workspace.path().join("directory");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
        let words = ["save", "x", "-o", "directory/i"];
        desk.sandbox(&words).one_line_error(125, &["directory", "Permission denied"]);
    }
    assert_eq!(partials(&desk), [""; 0]);
    assert!(!desk.workspace.has("i"));
    desk.sandbox(&["kill", "x"]).success();
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    desk.sandbox(&["save", "x", "-o", "i"]).one_line_error(125, &["x", "has ended with status 7"]);
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let desk = Desk::new("no-image");
    desk.detach_idle("x");
    desk.sandbox(&["save", "x", "-o", "image"]).success();
    let whole = fs::read(desk.workspace.path().join("image")).unwrap();
    let mut newer = whole.clone();
    newer[8] = 9;
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    desk.workspace.write("newer", &newer);
    desk.workspace.write("damaged", &damaged);
    desk.workspace.write("longer", [&whole[..], b"x"].concat());
    desk.workspace.write("text", "no image at all\n".repeat(1000));
    desk.workspace.write("empty", "");
    desk.workspace.write("cut", &whole[..whole.len() / 2]);
    desk.workspace.write("header", &whole[..4096]);
    fs::create_dir(desk.workspace.path().join("directory")).unwrap();
    for (file, words) in [
        ("none", "No such file"),
        ("directory", "is a directory"),
        ("text", "not an image"),
        ("empty", "cut short"),
        ("cut", "cut short"),
        ("header", "cut short"),
        ("newer", "version 9"),
        ("damaged", "damaged"),
        ("longer", "follows its end"),
    ] {
        for verb in ["restore", "inspect"] {
            let path = format!("./{file}");
            desk.sandbox(&[verb, &path]).one_line_error(125, &[file, words]);
            if let Ok(bytes) = fs::read(desk.workspace.path().join(file)) {
                let piped = run(desk.command(&[verb, "-"]), &bytes, LIMIT);
                piped.one_line_error(125, &["standard input", words]);
            }
        }
        let detached = desk.sandbox(&["restore", "--detach", &format!("./{file}")]);
        detached.one_line_error(125, &[file, words]);
    }
    // The last one that ran is remembered, and none of these has left anything.
    assert!(desk.ps().iter().all(|row| row["id"] == "x" && row["state"] == "exited"));
    desk.sandbox(&["inspect", "none"]).one_line_error(125, &["neither a file nor a sandbox"]);
    for (words, wanted) in [
        (&["restore", "image", "--files", "some"][..], "--files"),
        (&["restore", "image", "--clock", "stopped"], "--clock"),
        (&["restore", "image", "--stdin", "none"], "--stdin none"),
        (&["restore", "image", "--stdout", "directory"], "--stdout directory"),
        (&["restore", "image", "--id", ""], "cannot use the id"),
        (&["restore", "image", "-v", "-q"], "--verbose"),
        (&["restore"], "IMAGE"),
    ] {
        desk.sandbox(words).one_line_error(125, &[wanted]);
    }
}

#[test]
fn what_a_run_was_allowed_is_said_and_a_path_that_is_gone_is_named() {
    let desk = Desk::new("grants");
    let other = desk.runtime().join("other");
    fs::create_dir(&other).unwrap();
    let other = other.to_str().unwrap();
    let script = "touch up-x; while :; do :; done";
    let words = ["run", "--detach", "--id", "x", "--rw", other, "--", "sh", "-c", script];
    desk.sandbox(&words).success();
    wait_for("the program", || desk.workspace.has("up-x"));
    desk.sandbox(&["save", "x", "-o", "image"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(137);
    let begun = desk.sandbox(&["restore", "image", "--detach"]);
    begun.success();
    desk.sandbox(&["logs", "x"]).success().out_has(&format!("--rw {other}"));
    desk.sandbox(&["kill", "x", "KILL"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(137);
    fs::remove_dir(Path::new(other)).unwrap();
    desk.sandbox(&["restore", "image"]).one_line_error(125, &["image", other, "any more"]);
    desk.sandbox(&["restore", "image", "--detach"]).one_line_error(125, &["image", other]);
    assert!(desk.listed("x").is_none());
}

#[test]
fn a_client_that_is_killed_leaves_no_file_and_no_pause() {
    let desk = Desk::new("save-killed");
    detach_counter(&desk, "x");
    // Held up by a pipe that nobody empties: the image does not fit into it.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut held = desk.command(&["save", "x", "-o", "-"]);
    let mut held = held.stdout(writer).spawn().unwrap();
    reader.read_exact(&mut [0]).unwrap();
    desk.sandbox(&["save", "x", "-o", "other"]).one_line_error(125, &["being saved already"]);
    held.kill().unwrap();
    held.wait().unwrap();
    drop(reader);
    counts(&desk);
    wait_for("its turn", || desk.sandbox(&["save", "x", "-o", "i", "--leave-running"]).status == 0);
    assert_eq!(partials(&desk), [""; 0]);
}
