//! Unix sockets that are connected to processes of the host.

use std::fs;
use std::process::Child;

use crate::common::{LIMIT, Workspace, have, repository, run, start, wait_for};
use crate::desk::{Desk, Way};

/// The host's side of `outside.py`, until it is dropped.
struct Host {
    process: Child,
    place: Workspace,
}

impl Host {
    fn start(desk: &Desk) -> Host {
        for old in ["there", "serves", "served", "took", "visited", "up", "go", "finish", "answers"]
        {
            let _ = fs::remove_file(desk.workspace.path().join(old));
        }
        let place = Workspace::in_tmp("o");
        let mut command = desk.workspace.command("python3");
        command.args(["outside.py", "host"]).arg(place.path());
        let host = Host { process: start(command), place };
        wait_for("the host's side", || desk.workspace.has("there"));
        host
    }

    /// Has the guest begin inside.
    fn begin(&self, desk: &Desk) {
        let place = self.place.path().to_str().unwrap();
        let sockets = ["stream", "packets", "datagrams"].map(|name| format!("{place}/{name}"));
        let flags = sockets.iter().flat_map(|socket| ["--unix", socket]);
        let words = ["run", "--detach", "--id", "it"].into_iter().chain(flags);
        let script = format!("exec > out 2>&1; exec python3 outside.py guest {place}");
        desk.sandbox(&words.chain(["--", "sh", "-c", &script]).collect::<Vec<_>>()).success();
        wait_for("the program", || desk.workspace.has("up"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the program says that was saved or not.
fn told(desk: &Desk, way: Option<Way>) -> String {
    let host = Host::start(desk);
    host.begin(desk);
    if let Some(way) = way {
        desk.save(way);
    }
    desk.touch("go");
    desk.ends_well("again b'hello'\n");
    desk.workspace.read("out")
}

fn natively(desk: &Desk) -> String {
    let host = Host::start(desk);
    let mut command = desk.workspace.command("python3");
    command.args(["outside.py", "guest"]).arg(host.place.path());
    desk.touch("go");
    run(command, b"", LIMIT).success().out()
}

fn desk(test: &str) -> Option<Desk> {
    if !have("python3") {
        return None;
    }
    let desk = Desk::new(test);
    let script = repository().join("tests/save/outside.py");
    desk.workspace.write("outside.py", fs::read(script).unwrap());
    Some(desk)
}

#[test]
fn unix_sockets_of_the_host_are_found_broken_off_with_their_names() {
    let Some(desk) = desk("outside") else { return };
    let native = natively(&desk);
    let lines = "epoll ['0x1']\nwritten 1\nerror None\nanother\nwaiting EAGAIN\n\
                 rest b'hello' b'hello' b'hello' b'taken'\n";
    assert!(native.contains(lines), "{native}");
    let names = "who True\nnames stream stream stream packets datagrams served\n";
    assert!(native.starts_with(names), "{native}");
    assert_eq!(told(&desk, None), native);
    assert_eq!(told(&desk, Some(Way::LeftRunning)), native);
    // What was received comes first; what the other side had ended is just at its end.
    let broken = "epoll ['0x2019']\nwritten EPIPE\nerror ECONNRESET\nanother EAGAIN\nwaiting ECONNRESET\n\
                  rest b'hello ECONNRESET' b'hello' b'hello' b'taken ECONNRESET'\n";
    assert_eq!(told(&desk, Some(Way::Restored)), native.replace(lines, broken));
    desk.is_clean();
}

#[test]
fn a_strict_save_names_a_unix_socket_of_the_host() {
    let Some(desk) = desk("outside-strict") else { return };
    let host = Host::start(&desk);
    host.begin(&desk);
    for left in [&[][..], &["--leave-running"]] {
        let strict = [&["save", "it", "-o", "image", "--strict"], left].concat();
        let words = ["process 2 (python3)", "a unix socket", "outside the sandbox", "--strict"];
        desk.sandbox(&strict).one_line_error(125, &words);
        assert!(!desk.workspace.has("image"));
    }
    desk.sandbox(&["kill", "it", "KILL"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    drop(host);
    desk.is_clean();
}
