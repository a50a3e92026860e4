//! `sandbox sockets`, in the networks that need no rules.

use serde_json::Value;

use crate::common::{have, wait_for};
use crate::desk::Desk;

/// A connection with bytes that wait, one that nobody has accepted, a datagram, unix sockets, and one of no address.
const PROGRAM: &str = r#"
import os, socket, sys
held = []
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen(5)
one = socket.socket(); one.connect(listening.getsockname()); accepted, _ = listening.accept()
one.send(b"x" * 100)
accepted.send(b"y" * 40); one.recv(40)
waiting = socket.socket(); waiting.connect(listening.getsockname())
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); datagrams.bind(("127.0.0.1", 0))
path = socket.socket(socket.AF_UNIX); path.bind("sock"); path.listen(3)
pair = socket.socketpair()
idle = socket.socket(socket.AF_INET6)
child = os.fork()
if child == 0:
    for it in one, accepted, listening, waiting, datagrams, path, idle, pair[0]: it.close()
    pair[1].send(b"c")
    pair[1].recv(1)
    os._exit(0)
pair[0].recv(1)
print(listening.getsockname()[1], child, file=open("told.new", "w"), flush=True)
os.rename("told.new", "told")
pair[0].recv(1)
"#;

#[test]
fn sockets_are_listed_with_their_holders_and_what_they_have_carried() {
    if !have("python3") {
        return;
    }
    for (id, network, place) in [("inner", "none", "inside"), ("outer", "host", "outside")] {
        let desk = Desk::new(&format!("sockets-{id}"));
        desk.workspace.write("program.py", PROGRAM);
        let words =
            ["run", "--detach", "--id", id, "--net", network, "--", "python3", "program.py"];
        desk.sandbox(&words).success();
        wait_for("the sockets", || desk.workspace.has("told"));
        let told = desk.workspace.read("told");
        let (port, child) = told.trim().split_once(' ').unwrap();
        let all = list(&desk, id, &[]);
        let find = |what: &dyn Fn(&Value) -> bool| {
            let found: Vec<&Value> = all.iter().filter(|it| what(it)).collect();
            assert_eq!(found.len(), 1, "{all:#?}");
            found[0]
        };
        let end = format!("127.0.0.1:{port}");
        assert!(all.iter().all(|it| it["network"] == place), "{all:#?}");
        let listening = find(&|it| it["kind"] == "tcp" && it["state"] == "LISTEN");
        assert_eq!(listening["local"], *end);
        assert_eq!((&listening["recv_queue"], &listening["send_queue"]), (&1.into(), &5.into()));
        let holder = &listening["holders"][0];
        assert_eq!((&holder["guest_pid"], &holder["comm"]), (&2.into(), &"python3".into()));
        assert_eq!(listening["held"], 1);
        let one = find(&|it| it["peer"] == *end && it["bytes_out"] == 100);
        assert_eq!((&one["state"], &one["bytes_in"]), (&"ESTAB".into(), &40.into()));
        let accepted = find(&|it| it["local"] == *end && it["bytes_in"] == 100);
        assert_eq!((&accepted["recv_queue"], &accepted["bytes_out"]), (&100.into(), &40.into()));
        find(&|it| it["kind"] == "udp" && it["state"] == "UNCONN");
        find(&|it| it["kind"] == "unix-stream" && it["local"] == "sock" && it["state"] == "LISTEN");
        // One of a pair is held by both, the other by the program alone.
        let child: Value = child.parse::<i32>().unwrap().into();
        let shared = find(&|it| it["held"] == 2 && it["kind"] == "unix-stream");
        assert!(shared["holders"].as_array().unwrap().iter().any(|it| it["guest_pid"] == child));
        let pair = format!("#{}", shared["inode"]);
        find(&|it| it["peer"] == *pair);
        // It has neither address nor peer: the kernel lists it nowhere.
        find(&|it| it["kind"] == "tcp" && it["local"].is_null() && it["held"] == 1);
        // That nobody has accepted: no process holds it.
        let pending = all.iter().filter(|it| it["local"] == *end && it["held"] == 0).count();
        assert_eq!(pending, usize::from(network == "none"), "{all:#?}");

        let listed = desk.sandbox(&["sockets", id, "--tcp", "--listening"]);
        listed.success().out_has(&end).out_has("2/python3 fd ").expect_err("");
        assert_eq!(listed.out().lines().count(), 2, "{}", listed.out());
        assert!(list(&desk, id, &["-x"]).iter().all(|it| it["kind"] == "unix-stream"));
        assert_eq!(list(&desk, id, &["-u"]).len(), 1);
        // Who is paused keeps what it has.
        desk.sandbox(&["pause", id]).success();
        assert_eq!(list(&desk, id, &["-t"]).len(), list_kind(&all, "tcp"));
        desk.sandbox(&["kill", id, "KILL"]).success();
        desk.sandbox(&["wait", id]).expect_status(137);
    }
}

fn list_kind(all: &[Value], kind: &str) -> usize {
    all.iter().filter(|it| it["kind"] == kind).count()
}

#[track_caller]
fn list(desk: &Desk, id: &str, words: &[&str]) -> Vec<Value> {
    let listed = desk.sandbox(&[&["sockets", id, "--json"], words].concat());
    serde_json::from_str(listed.success().out().trim()).expect("a JSON list")
}
