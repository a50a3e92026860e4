//! What goes wrong on purpose: the guest goes on, what was saved before stays whole, and nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{LIMIT, comes_true, finish, have, run, skip, start, wait_for};
use crate::desk::Desk;

/// Counts into `count` for ever, with some memory to save.
const COUNTER: &str = "
text=$(head -c 2000000 /dev/urandom | base64)
i=0
while :; do i=$((i+1)); echo $i > count; : > up; done";

fn begin_counting(desk: &Desk) {
    desk.start(&["sh", "-c", COUNTER]);
}

#[track_caller]
fn goes_on(desk: &Desk) {
    let before = desk.workspace.read("count");
    wait_for("the count", || {
        let now = desk.workspace.read("count");
        !now.is_empty() && now != before
    });
}

fn end(desk: &Desk) {
    desk.sandbox(&["kill", "it", "KILL"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.is_clean();
}

/// The supervisor of `it`.
fn supervisor(desk: &Desk) -> Pid {
    let rows = desk.sandbox(&["ps", "--json"]).out();
    let rows: Vec<Value> = serde_json::from_str(rows.trim()).unwrap();
    let row = rows.iter().find(|row| row["id"] == "it").unwrap();
    Pid::from_raw(row["pid"].as_i64().unwrap() as i32)
}

#[test]
fn a_full_disk_leaves_the_guest_and_the_image_before() {
    let desk = Desk::new("full-disk");
    begin_counting(&desk);
    // A file system of a user namespace, which this process alone holds.
    let small = desk.workspace.path().join("small");
    fs::create_dir(&small).unwrap();
    let script = "mount -t tmpfs -o size=512k tmpfs small && echo up && read -r _";
    let mut holder = Command::new("unshare");
    holder.args(["-Urm", "sh", "-c", script]).current_dir(desk.workspace.path());
    holder.stdin(std::process::Stdio::piped());
    let mut holder = start(holder);
    let root = PathBuf::from(format!("/proc/{}/cwd/small", holder.id()));
    if !comes_true(LIMIT, || {
        let is_mounted = fs::metadata(&root).is_ok_and(|it| {
            use std::os::unix::fs::MetadataExt;
            it.dev() != fs::metadata(&small).unwrap().dev()
        });
        is_mounted || holder.try_wait().unwrap().is_some()
    }) || holder.try_wait().unwrap().is_some()
    {
        return skip("file systems in memory for users");
    }
    let image = root.join("image");
    fs::write(&image, "what was there before").unwrap();
    let name = image.to_str().unwrap();
    let full = desk.sandbox(&["save", "it", "-o", name]);
    full.one_line_error(125, &["it", "No space left on device"]);
    assert_eq!(fs::read_to_string(&image).unwrap(), "what was there before");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    goes_on(&desk);
    finish(holder, "unshare".into(), b"\n", LIMIT);
    end(&desk);
}

#[test]
fn a_pipe_that_is_cut_leaves_the_guest() {
    let desk = Desk::new("cut-pipe");
    begin_counting(&desk);
    let script = "\"$0\" save it -o - | head -c 100000 | wc -c";
    let cut = run(desk.beside(&["sh", "-c", script]), b"", LIMIT);
    cut.expect_out("100000\n").err_has("Broken pipe");
    goes_on(&desk);
    end(&desk);
}

#[test]
fn a_supervisor_that_is_killed_leaves_the_image_before() {
    let mut step = 0;
    while step < 4 {
        let desk = Desk::new("supervisor-killed");
        begin_counting(&desk);
        desk.sandbox(&["save", "it", "-o", "image", "--leave-running"]).success();
        let before = fs::read(desk.workspace.path().join("image")).unwrap();
        let supervisor = supervisor(&desk);
        // Step by step: it takes what it is sent no faster than it is read.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let save = match step {
            // As it begins.
            0 => start(desk.command(&["save", "it", "-o", "image"])),
            _ => {
                let mut save = desk.command(&["save", "it", "-o", "-"]);
                save.stdout(writer).stderr(std::process::Stdio::piped());
                let save = save.spawn().unwrap();
                let mut some = vec![0; step * 65536];
                std::io::Read::read_exact(&mut reader, &mut some).unwrap();
                save
            }
        };
        kill(supervisor, Signal::SIGKILL).unwrap();
        let killed = finish(save, "save".into(), b"", LIMIT);
        if step == 0 && killed.status == 0 {
            // It was quicker than this test: once more.
            continue;
        }
        assert_eq!(killed.status, 125, "{}", killed.report());
        // (Its init, which ends with it, may hold its state for a moment longer.)
        wait_for("its state to be seen as stale", || {
            desk.sandbox(&["ps", "--json"]).success().out() == "[]\n"
        });
        assert_eq!(fs::read(desk.workspace.path().join("image")).unwrap(), before);
        desk.sandbox(&["wait", "it"]);
        desk.is_clean();
        // And it is good.
        let words = ["restore", "image", "--detach", "--files", "changed-ok"];
        desk.sandbox(&words).success();
        goes_on(&desk);
        end(&desk);
        step += 1;
    }
}

#[test]
fn a_program_that_is_about_to_end_is_saved_or_not() {
    let desk = Desk::new("ending");
    for left in [true, false, true, false, true, false] {
        let script = ": > up; until [ -e go ]; do :; done; exit 3";
        desk.start(&["sh", "-c", script]);
        let mut words = vec!["save", "it", "-o", "image"];
        words.extend(left.then_some("--leave-running"));
        let save = start(desk.command(&words));
        desk.touch("go");
        let saved = finish(save, "save".into(), b"", LIMIT);
        let status = desk.sandbox(&["wait", "it"]).status;
        if saved.status == 0 {
            assert_eq!(status, if left { 3 } else { 137 });
            desk.sandbox(&["restore", "image", "--id", "it"]).expect_status(3).expect_out("");
            fs::remove_file(desk.workspace.path().join("image")).unwrap();
        } else {
            assert_eq!(status, 3);
            let said = saved.one_line_error(125, &["it"]).err();
            let words = ["has ended", "no sandbox", "no answer"];
            assert!(words.iter().any(|it| said.contains(it)), "{said}");
            assert!(!desk.workspace.has("image"));
        }
        for file in ["up", "go"] {
            fs::remove_file(desk.workspace.path().join(file)).unwrap();
        }
        desk.is_clean();
    }
}

#[test]
fn what_makes_processes_all_the_time_is_saved() {
    let desk = Desk::new("storm");
    let script = ": > up; for i in 1 2 3; do while :; do /bin/true; done & done
                  while [ ! -e go ]; do (:); done; kill $(jobs -p); exit 4";
    desk.start(&["bash", "-c", script]);
    for _ in 0..3 {
        desk.sandbox(&["save", "it", "-o", "image", "--leave-running"]).success();
    }
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.touch("go");
    desk.sandbox(&["restore", "image", "--id", "it"]).expect_status(4);
    desk.is_clean();
}

#[test]
fn a_file_that_is_gone_or_changed_is_named() {
    let desk = Desk::new("files");
    desk.workspace.write("data", "one\ntwo\n");
    let script = ": > up; until [ -e go ]; do :; done; read -r line; echo \"$line\"; read -r line; echo \"$line\"";
    desk.start(&["sh", "-c", &format!("exec < data; {script}")]);
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.touch("go");
    let data = desk.workspace.path().join("data");
    fs::rename(&data, desk.workspace.path().join("elsewhere")).unwrap();
    let name = data.to_str().unwrap();
    let restore = ["restore", "image", "--id", "it"];
    desk.sandbox(&restore).one_line_error(125, &["image", name, "not there any more"]);
    desk.workspace.write("data", "another content\n");
    desk.sandbox(&restore).one_line_error(125, &[name, "has changed", "--files changed-ok"]);
    let changed = desk.sandbox(&[&restore[..], &["--files", "changed-ok"]].concat());
    changed.expect_out("another content\n\n");
    fs::rename(desk.workspace.path().join("elsewhere"), &data).unwrap();
    desk.sandbox(&restore).success().expect_out("one\ntwo\n");
    desk.is_clean();
}

#[test]
fn an_image_is_for_its_user_alone() {
    let desk = Desk::new("another-user");
    begin_counting(&desk);
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    let image = desk.workspace.path().join("image");
    assert_eq!(fs::metadata(image).unwrap().permissions().mode() & 0o777, 0o600);
    desk.is_clean();
}

/// Connects to the host, and says how it finds the connection once there is `go`.
const CONNECTED: &str = "
import os, socket, sys, time
it = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
it.sendall(b'hello')
open('up', 'w').close()
while not os.path.exists('go'):
    time.sleep(0.01)
try:
    found = it.recv(100).decode()
except ConnectionResetError:
    found = 'reset'
open('out', 'w').write(found)
";

#[test]
fn a_connection_in_the_hosts_network_is_found_reset_or_refused() {
    if !have("python3") {
        return;
    }
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let desk = Desk::new("host-network");
    desk.workspace.write("it.py", CONNECTED);
    let words = ["run", "--detach", "--id", "it", "--net", "host", "--", "python3", "it.py", &port];
    desk.sandbox(&words).success();
    wait_for("the program", || desk.workspace.has("up"));
    let (mut theirs, _) = server.accept().unwrap();
    for left in [&[][..], &["--leave-running"]] {
        let strict = [&["save", "it", "-o", "image", "--strict"], left].concat();
        let refused = desk.sandbox(&strict);
        refused.one_line_error(125, &["a TCP connection in the host's network", "--strict"]);
        assert!(!desk.workspace.has("image"));
    }
    // It has noticed nothing of that, nor of a save that leaves it running.
    desk.sandbox(&["save", "it", "-o", "image", "--leave-running"]).success();
    std::io::Write::write_all(&mut theirs, b"still here").unwrap();
    desk.touch("go");
    desk.sandbox(&["wait", "it"]).success();
    assert_eq!(desk.workspace.read("out"), "still here");
    desk.sandbox(&["restore", "image", "--id", "it"]).success();
    assert_eq!(desk.workspace.read("out"), "reset");
    desk.is_clean();
}
