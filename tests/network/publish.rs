//! `--publish` and `sandbox port`: the same client talks to the same server, natively and inside.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

use crate::as_both;
use crate::common::{LIMIT, Outcome, Workspace, have, repository, run, start, wait_for};

/// A sandbox whose ports are published. When it is dropped, it is killed.
struct Served {
    workspace: Workspace,
    runtime: Workspace,
}

impl Served {
    /// `None`: it has been said why.
    fn new(test: &str) -> Option<Served> {
        if !have("python3") {
            return None;
        }
        let workspace = Workspace::new(test);
        let script = repository().join("tests/network/ports.py");
        workspace.write("ports.py", std::fs::read(script).unwrap());
        let runtime = Workspace::new(&format!("{test}-run"));
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(runtime.path(), private).unwrap();
        Some(Served { workspace, runtime })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.sandbox();
        command.args(words).env("XDG_RUNTIME_DIR", self.runtime.path());
        command
    }

    #[track_caller]
    fn sandbox(&self, words: &[&str]) -> Outcome {
        run(self.command(words), b"", LIMIT)
    }

    /// Runs a script in the background.
    #[track_caller]
    fn detach(&self, flags: &[&str], script: &str) {
        let words = ["run", "--detach", "--id", "served"];
        let words = [&words, flags, &["--", "sh", "-c", script]].concat();
        self.sandbox(&words).success();
    }

    /// The server at the address and port inside, in the background.
    #[track_caller]
    fn serve(&self, flags: &[&str], address: &str, port: u16) {
        self.detach(flags, &format!("exec python3 ports.py {address} {port} ready"));
        wait_for("the server", || self.workspace.has("ready"));
    }

    /// Where the host listens for a port inside.
    #[track_caller]
    fn at(&self, port: &str) -> SocketAddr {
        let asked = self.sandbox(&["port", "served", port]);
        asked.success().line().parse().expect("an address")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for words in [["kill", "served", "KILL"].as_slice(), &["wait", "served"]] {
            let _ = self.command(words).output();
        }
    }
}

/// The server on the host, until it is dropped.
struct Native(Child);

impl Native {
    fn start(workspace: &Workspace) -> (Native, SocketAddr) {
        let mut command = workspace.command("python3");
        let native = Native(start({
            command.args(["ports.py", "127.0.0.1", "0", "native"]);
            command
        }));
        wait_for("the server", || workspace.has("native"));
        let port: u16 = workspace.read("native").parse().unwrap();
        (native, SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(at: SocketAddr, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(at).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream.write_all(words.as_bytes()).unwrap();
    stream
}

/// All that comes until the end, as text; or why there is no end.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{:?} after {} bytes", error.kind(), bytes.len()),
    }
}

/// Sends all, ends its half, and reads the answer.
fn ask(at: SocketAddr, words: &str, bytes: &[u8]) -> String {
    let mut stream = open(at, words);
    let mut sender = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    })
}

/// What a client has to say of a server.
fn talk(at: SocketAddr) -> String {
    let mut said = Vec::new();
    // Each half ends by itself.
    said.push(ask(at, "echo\n", b"words "));
    // More than all queues hold, either way and both ways at once.
    let many: Vec<u8> = (0..8 << 20).map(|at: u32| (at >> 3) as u8 ^ at as u8).collect();
    said.push(ask(at, "hash\n", &many));
    let mut stream = open(at, "send 400\n");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let is_whole = all.chunks(256).all(|it| it.iter().copied().eq(0..=255));
    said.push(format!("{} {is_whole}", all.len()));
    let echoed = ask(at, "echo\n", &many[..2 << 20]);
    said.push(format!("{} {}", echoed.len(), echoed.ends_with("end")));
    // What breaks off is broken off for the other side, too.
    let mut stream = open(at, "reset\n");
    let broken = stream.write_all(b"x").and_then(|()| stream.read(&mut [0]));
    said.push(format!("{:?}", broken.map_err(|error| error.kind())));
    for linger in [true, false] {
        let mut stream = open(at, "watch\n");
        stream.read_exact(&mut [0]).unwrap();
        if linger {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
        }
        drop(stream);
        let mut seen = String::new();
        wait_for("the server to see it", || {
            seen = ask(at, "seen\n", b"");
            seen == if linger { "ConnectionResetError" } else { "end" }
        });
        said.push(seen);
    }
    // Somebody who does not read holds nobody up.
    let stalled = open(at, "send 1000\n");
    let crowd: Vec<_> = (0..100)
        .map(|number| {
            std::thread::spawn(move || ask(at, "echo\n", format!("{number} ").as_bytes()))
        })
        .collect();
    said.extend(crowd.into_iter().map(|it| it.join().unwrap()));
    said.push(format!("{}", rest(stalled).len()));
    said.join("\n")
}

#[test]
fn streams_are_what_they_are_natively() {
    let Some(served) = Served::new("publish-streams") else { return };
    let (native, at) = Native::start(&served.workspace);
    let expected = talk(at);
    drop(native);
    assert!(expected.starts_with("words end\n") && expected.contains("\n99 end\n"), "{expected}");
    served.serve(&["--publish", "0:8080"], "127.0.0.1", 8080);
    let inside = served.at("8080");
    assert_eq!(talk(inside), expected);
    // Urgent data comes in its place, and nothing is stuck behind it.
    let mut stream = open(inside, "echo\n");
    stream.write_all(b"a").unwrap();
    send(stream.as_raw_fd(), b"b", MsgFlags::MSG_OOB).unwrap();
    stream.write_all(b"c").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(stream), "abcend");
}

#[test]
fn what_is_bounded_is_what_it_is_natively_until_it_is_used_up() {
    let Some(served) = Served::new("publish-bounded") else { return };
    let (native, at) = Native::start(&served.workspace);
    let expected = talk(at);
    drop(native);
    let flags = ["--publish", "0:8080", "--net-rate", "1g", "--net-total", "1t"];
    served.serve(&flags, "127.0.0.1", 8080);
    assert_eq!(talk(served.at("8080")), expected);
    drop(served);
    let Some(served) = Served::new("publish-used-up") else { return };
    served.serve(&["--publish", "0:8080", "--net-total", "100k"], "127.0.0.1", 8080);
    let at = served.at("8080");
    let words = "send 10\n";
    let left = (100 << 10) - words.len();
    // (What is under way when it is reset is lost.)
    let broken = rest(open(at, words));
    let came =
        broken.strip_prefix("ConnectionReset after ").and_then(|it| it.strip_suffix(" bytes"));
    assert!(came.is_some_and(|came| came.parse::<usize>().unwrap() <= left), "{broken}");
    assert_eq!(rest(open(at, words)), "ConnectionReset after 0 bytes");
}

#[test]
fn it_goes_with_hosts_that_are_reached_and_with_ports_of_root() {
    let Some(served) = Served::new("publish-allow") else { return };
    let flags = ["--net", "allow", "--publish", "80", "--publish", "[::1]::80"];
    served.serve(&flags, "::", 80);
    let listed = served.sandbox(&["port", "served"]);
    let listed = listed.success().out();
    let ports: Vec<SocketAddr> = listed
        .lines()
        .map(|line| line.strip_prefix("80/tcp -> ").unwrap().parse().unwrap())
        .collect();
    let [v4, v6] = ports[..] else { panic!("{listed}") };
    assert!(v4.ip().to_string() == "127.0.0.1" && v6.ip().to_string() == "::1", "{listed}");
    assert_eq!(ask(v4, "echo\n", b"x "), "x end");
    assert_eq!(ask(v6, "echo\n", b"x "), "x end");
    let json = served.sandbox(&["port", "served", "80", "--json"]);
    let json: serde_json::Value = serde_json::from_str(json.success().line().as_str()).unwrap();
    assert_eq!(
        (&json[1]["host_address"], &json[1]["host_port"]),
        (&"::1".into(), &v6.port().into())
    );
    served.sandbox(&["port", "served", "81"]).one_line_error(125, &["port 81/tcp of served"]);
}

#[test]
fn datagrams_find_their_way_back() {
    let Some(served) = Served::new("publish-datagrams") else { return };
    let (native, at) = Native::start(&served.workspace);
    let talk = |at: SocketAddr| {
        let ends = [(); 3].map(|()| UdpSocket::bind(("127.0.0.1", 0)).unwrap());
        let mut room = vec![0; 65_536];
        let mut said = Vec::new();
        for round in 0..3 {
            for (number, end) in ends.iter().enumerate() {
                end.set_read_timeout(Some(LIMIT)).unwrap();
                end.connect(at).unwrap();
                end.send(format!("{number} {round}").as_bytes()).unwrap();
            }
            for end in &ends {
                let length = end.recv(&mut room).unwrap();
                said.push(String::from_utf8_lossy(&room[..length]).into_owned());
            }
        }
        ends[0].send(&vec![7; 60_000]).unwrap();
        said.push(ends[0].recv(&mut room).unwrap().to_string());
        ends[0].send(b"").unwrap();
        said.push(ends[0].recv(&mut room).unwrap().to_string());
        said.join("\n")
    };
    let expected = talk(at);
    drop(native);
    // At all addresses of the host the answer comes from the one that was asked (a connected socket takes no other).
    let flags =
        ["--publish", "8080/udp", "--publish", "0.0.0.0::8081/udp", "--publish", "8082/udp"];
    served.detach(
        &flags,
        "python3 ports.py 127.0.0.1 8080 one & python3 ports.py ::1 8081 two & wait",
    );
    wait_for("the servers", || served.workspace.has("one") && served.workspace.has("two"));
    assert_eq!(talk(served.at("8080/udp")), expected);
    let all = served.at("8081/udp");
    assert_eq!(talk(SocketAddr::from(([127, 0, 0, 2], all.port()))), expected);
    // Where nobody listens it is lost, and the port goes on.
    let silent = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    silent.send_to(b"x", served.at("8082/udp")).unwrap();
    silent.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(silent.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(talk(served.at("8080/udp")), expected);
}

/// Natively, and then by way of a port for each of the loopback's addresses inside; `ask`s are the same but for where to.
const PEERS: &str = r#"
up() {
    until [ -e "$1" ]; do sleep 0.01; done
    rm "$1"
}
counted() {
    until [ "$(cat read 2>/dev/null)" = 1048576 ]; do sleep 0.01; done
    rm read
}
python3 peer.py serve 203.0.113.1 7100 native & up native
echo natively && python3 peer.py ask 203.0.113.1 203.0.113.1 7100
kill $! && counted
for at in 127.0.0.1 ::1 127.0.0.1,::1; do
    ports='--publish 0.0.0.0:7101:80 --publish 0.0.0.0:7101:80/udp --publish [::]:7101:80 --publish [::]:7101:80/udp'
    $sandbox run --detach --id seen $ports -- python3 peer.py serve $at 80 inside >id && up inside
    for address in 203.0.113.1 127.0.0.1 $v6 ::1; do
        echo "at $at from $address" && python3 peer.py ask $address $address 7101 && counted
    done
    $sandbox kill seen KILL
    $sandbox wait seen || true
done
"#;

#[test]
fn programs_see_who_has_come() {
    as_both("peers", |outside| {
        outside.workspace.write(
            "own/peer.py",
            std::fs::read(repository().join("tests/network/peer.py")).unwrap(),
        );
        // (An address of IPv6 can only be given by root.)
        let v6 = if outside.is_nobody() { "" } else { "2001:db8:9::1" };
        let before = if v6.is_empty() {
            String::new()
        } else {
            format!("ip addr add {v6}/128 dev lo nodad\n")
        };
        let seen = outside.sh(&format!("set -e\nv6={v6}\n{before}{PEERS}"));
        let said: Vec<String> = seen
            .success()
            .out()
            .split("at ")
            .map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let mut wanted = vec!["natively itself itself".to_owned()];
        // An address that means no host stands for one that a program cannot see where it listens.
        let (no_v4, no_v6) = ("192.0.0.8", "fd5b:73a6:e62::1");
        let all = [
            ("127.0.0.1", ["itself", "127.0.0.1", no_v4, "127.0.0.1"]),
            ("::1", [no_v6, "::1", "itself", "::1"]),
            ("127.0.0.1,::1", ["itself", "127.0.0.1", "itself", "::1"]),
        ];
        for (at, seen) in all {
            for (address, seen) in ["203.0.113.1", "127.0.0.1", v6, "::1"].iter().zip(seen) {
                if !address.is_empty() {
                    wanted.push(format!("{at} from {address} {seen} {seen}"));
                }
            }
        }
        assert_eq!(said, wanted);
    });
}

#[test]
fn who_comes_too_early_is_sent_away_and_who_comes_to_a_paused_one_waits() {
    let Some(served) = Served::new("publish-early") else { return };
    let wait = "while [ ! -e go ]; do sleep 0.02; done; exec python3 ports.py 127.0.0.1 8080 ready";
    served.detach(&["--publish", "8080"], wait);
    let at = served.at("8080");
    let early = TcpStream::connect(at).and_then(|mut early| early.read(&mut [0]));
    assert!(
        matches!(early, Ok(0)) || early.is_err_and(|it| it.kind() == ErrorKind::ConnectionReset)
    );
    served.workspace.write("go", "");
    wait_for("the server", || served.workspace.has("ready"));
    assert_eq!(ask(at, "echo\n", b"x "), "x end");
    served.sandbox(&["pause", "served"]).success();
    let waiting = open(at, "echo\nwords ");
    waiting.shutdown(Shutdown::Write).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let nothing = (&waiting).read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    waiting.set_read_timeout(Some(LIMIT)).unwrap();
    served.sandbox(&["resume", "served"]).success();
    assert_eq!(rest(waiting), "words end");
}

#[test]
fn what_a_program_says_last_is_heard() {
    let Some(served) = Served::new("publish-end") else { return };
    let script = "import socket
s = socket.create_server(('127.0.0.1', 8080)); open('ready', 'w')
c, _ = s.accept(); c.sendall(bytes(4 << 20))";
    served.workspace.write("end.py", script);
    served.detach(&["--publish", "8080"], "exec python3 end.py");
    wait_for("the server", || served.workspace.has("ready"));
    let mut stream = TcpStream::connect(served.at("8080")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 4 << 20);
    // Its end is not held up by who does not go.
    served.sandbox(&["wait", "served"]).success();
}

#[test]
fn who_floods_a_port_holds_up_neither_others_nor_the_end() {
    let Some(served) = Served::new("publish-flood") else { return };
    // (What nobody takes inside costs most: whether somebody is there is asked for each.)
    served.serve(&["--publish", "8080", "--publish", "8081/udp"], "127.0.0.1", 8080);
    let (at, flooded) = (served.at("8080"), served.at("8081/udp"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let end = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
                while !over.load(Ordering::Relaxed) {
                    let _ = end.send_to(b"x", flooded);
                }
            });
        }
        let said = std::panic::catch_unwind(|| ask(at, "echo\n", b"x "));
        let killed = served.command(&["kill", "served", "KILL"]).output();
        let ended = std::panic::catch_unwind(|| served.sandbox(&["wait", "served"]));
        over.store(true, Ordering::Relaxed);
        assert_eq!(said.unwrap(), "x end");
        assert!(killed.unwrap().status.success() && ended.is_ok());
    });
}

#[test]
fn ports_to_which_nobody_comes_take_no_place() {
    let Some(served) = Served::new("publish-places") else { return };
    // So few files that there are more ports than connections at a time.
    let mut command = served.workspace.command("sh");
    command.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\""]);
    command.arg(crate::common::sandbox_program());
    command.args(["run", "--detach", "--id", "served", "--publish", "8001-8040", "--"]);
    command.args(["python3", "ports.py", "127.0.0.1", "8040", "ready"]);
    command.env("XDG_RUNTIME_DIR", served.runtime.path());
    run(command, b"", LIMIT).success();
    wait_for("the server", || served.workspace.has("ready"));
    assert_eq!(ask(served.at("8040"), "echo\n", b"x "), "x end");
}

#[test]
fn what_cannot_be_published_is_said_before_anything_runs() {
    let workspace = Workspace::new("publish-errors");
    let refused = |flags: &[&str], words: &[&str]| {
        workspace.inside_with(flags, &["touch", "ran"]).one_line_error(125, words);
        assert!(!workspace.has("ran"));
    };
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(
        &["--publish", &format!("{port}:80")],
        &[&format!("port {port} of 127.0.0.1"), "in use"],
    );
    refused(&["--publish", "192.0.2.1:0:80"], &["no address 192.0.2.1"]);
    refused(&["--publish", "localhost:0:80"], &["--publish localhost:0:80", "no address"]);
    refused(&["--publish", "80:80/sctp"], &["/tcp or /udp"]);
    refused(&["--net", "host", "--publish", "8080:80"], &["--net host", "leave one of them out"]);
    refused(&["--walls", "landlock", "--publish", "8080:80"], &["--walls landlock"]);
    refused(&["--publish", "8080:80", "--publish", "8080:81"], &["together with", "one place"]);
    let low = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if !crate::common::is_root() && low.is_ok_and(|it| it.trim() == "1024") {
        refused(&["--publish", "1:80"], &["ports below 1024", "root"]);
    }
    // A file of the project's widens nothing.
    workspace.write("sandbox.toml", "publish = '8080'\nunix = '/none'\n");
    let told = workspace.inside(&["true"]);
    told.success().err_has("publish").err_has("unix");
}
