//! Connections with the host, which an image does not carry, and what goes on without noticing: `--allow-net`,
//! `--publish`, limited or not. (Names and a network beside the host's: tests/network/saves.rs.)

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Child;

use crate::common::{LIMIT, Workspace, free_port, have, repository, start, wait_for};
use crate::desk::{Desk, Way};

/// The host's side of `network.py`, until it is dropped.
struct Host(Child);

impl Host {
    /// Its ports, as words.
    fn start(workspace: &Workspace) -> (Host, Vec<String>) {
        let _ = fs::remove_file(workspace.path().join("ports"));
        for old in ["up", "go", "take", "finish", "out"] {
            let _ = fs::remove_file(workspace.path().join(old));
        }
        let mut command = workspace.command("python3");
        command.args(["network.py", "host", "ports"]);
        let host = Host(start(command));
        wait_for("the host's side", || workspace.has("ports"));
        let ports = workspace.read("ports");
        (host, ports.split_whitespace().map(str::to_owned).collect())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the program says that was saved or not, natively or inside.
fn told(desk: &Desk, way: Option<Way>, limits: &[&str]) -> String {
    let (_host, ports) = Host::start(&desk.workspace);
    let [stream, datagrams, slow, slower] = &ports[..] else { panic!("{ports:?}") };
    let rules = [
        format!("127.0.0.1:{stream}/tcp"),
        format!("127.0.0.1:{datagrams}/udp"),
        format!("127.0.0.1:{slow}"),
        format!("127.0.0.1:{slower}"),
    ];
    let flags = rules.iter().flat_map(|rule| ["--allow-net", rule]).chain(limits.iter().copied());
    let words = ["run", "--detach", "--id", "it"].into_iter().chain(flags);
    let script = format!("exec > out 2>&1; exec python3 network.py guest {}", ports.join(" "));
    let words: Vec<&str> = words.chain(["--", "sh", "-c", &script]).collect();
    desk.sandbox(&words).success();
    wait_for("the program", || desk.workspace.has("up"));
    if let Some(way) = way {
        desk.save(way);
    }
    desk.touch("go");
    desk.ends_well("again\n");
    desk.workspace.read("out")
}

fn natively(desk: &Desk) -> String {
    let (_host, ports) = Host::start(&desk.workspace);
    let mut command = desk.workspace.command("python3");
    command.args(["network.py", "guest"]).args(&ports);
    desk.touch("go");
    crate::common::run(command, b"", LIMIT).success().out()
}

/// What comes of the program, in a run with these limits.
fn goes_on_but_for_what_is_outside(test: &str, limits: &[&str]) {
    if !have("python3") {
        return;
    }
    let desk = Desk::new(test);
    let script = repository().join("tests/save/network.py");
    desk.workspace.write("network.py", fs::read(script).unwrap());
    let native = natively(&desk);
    let lines =
        "epoll []\nshared True 1\nwritten 1\nerror None (0, True, 'end')\nmany 100000 True end\n";
    assert!(native.contains(lines), "{native}");
    assert_eq!(told(&desk, None, limits), native);
    assert_eq!(told(&desk, Some(Way::LeftRunning), limits), native);
    // What was received comes first; what the other side had ended is just at its end.
    let reset = "epoll ['0x2019']\nshared True 1\nwritten ECONNRESET\nerror ECONNRESET (0, True, 'end')\n\
                 many 100000 True ECONNRESET\n";
    let expected = native.replace(lines, reset);
    assert_eq!(told(&desk, Some(Way::RestoredTwice), limits), expected);
    desk.is_clean();
}

#[test]
fn connections_outside_are_found_reset_and_all_else_goes_on() {
    goes_on_but_for_what_is_outside("allowed-network", &[]);
}

#[test]
fn connections_that_are_carried_since_they_are_limited_are_found_so_too() {
    let limits = ["--net-rate", "100m", "--net-total", "100m"];
    goes_on_but_for_what_is_outside("limited-network", &limits);
}

/// A server on the host that answers what it is sent; gives its port.
fn serve(answer: fn(&[u8]) -> Vec<u8>) -> String {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut bytes = [0; 100];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&answer(&bytes[..length]));
                }
            });
        }
    });
    port
}

/// Asks for 1000 bytes with one, again and again, as long as it gets any; counts how often.
const ASKER: &str = "
import os, socket, sys, time
count = 0
def ask(connection, most):
    global count
    while count < most:
        connection.sendall(b'x')
        if len(connection.recv(1000, socket.MSG_WAITALL)) < 1000:
            return
        count += 1
def connect():
    return socket.create_connection(('127.0.0.1', int(sys.argv[1])))
connection = connect()
for most, up, go in (100, 'up', 'go'), (200, 'up2', 'go2'):
    ask(connection, most)
    open(up, 'w').close()
    while not os.path.exists(go):
        time.sleep(0.01)
try:
    connection.sendall(b'x')
    connection.recv(1)
    ended = 'whole'
except OSError as error:
    ended = type(error).__name__
begun = time.monotonic()
connection = connect()
try:
    ask(connection, 1000)
except OSError as error:
    pass
time.sleep(0.01)
fast = (count - 200) * 1000 / (time.monotonic() - begun) > 2 * 200_000
try:
    connect()
    refused = 'connected'
except OSError as error:
    refused = type(error).__name__
open('out', 'w').write(f'{count} {ended} {fast} {refused}')
";

#[test]
fn what_a_run_has_carried_counts_on_after_a_restore_and_its_rate_holds() {
    if !have("python3") {
        return;
    }
    let port = serve(|bytes| vec![0; 1000 * bytes.len()]);
    let desk = Desk::new("counted-network");
    desk.workspace.write("it.py", ASKER);
    let rule = format!("127.0.0.1:{port}");
    // Three hundred rounds, and no byte more.
    let limits = ["--net-rate", "200k", "--net-total", "300300"];
    let words = ["run", "--detach", "--id", "it", "--allow-net", &rule];
    let words = [&words[..], &limits, &["--", "python3", "it.py", &port]].concat();
    desk.sandbox(&words).success();
    wait_for("the program", || desk.workspace.has("up"));
    let strict = desk.sandbox(&["save", "it", "-o", "image", "--strict"]);
    let words = ["process 2 (python3)", "in the host's network to 127.0.0.1", "--strict"];
    strict.one_line_error(125, &words);
    desk.save(Way::LeftRunning);
    desk.touch("go");
    wait_for("the program", || desk.workspace.has("up2"));
    desk.save(Way::RestoredTwice);
    desk.touch("go2");
    desk.sandbox(&["wait", "it"]).success();
    let out = desk.workspace.read("out");
    assert_eq!(out, "300 ConnectionResetError False PermissionError");
    desk.is_clean();
}

/// Has somebody outside count, and connects again when the connection is reset.
const COUNTER: &str = "
import os, socket, sys, time
count, connection, resets = 0, None, 0
while count < 200:
    try:
        if not connection:
            connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
        connection.sendall(b'%d\\n' % count)
        count = int(connection.recv(100) or b'x')
        for at, up, go in (70, 'up', 'go'), (140, 'up2', 'go2'):
            if count == at:
                open(up, 'w').close()
                while not os.path.exists(go):
                    time.sleep(0.01)
    except ConnectionResetError:
        connection, resets = None, resets + 1
open('out', 'w').write(f'{count} {resets}')
";

#[test]
fn a_client_that_connects_again_counts_on_over_saves() {
    if !have("python3") {
        return;
    }
    let port = serve(|bytes| {
        let count: u32 = String::from_utf8_lossy(bytes).trim().parse().unwrap();
        (count + 1).to_string().into_bytes()
    });
    let desk = Desk::new("counting-network");
    desk.workspace.write("it.py", COUNTER);
    let rule = format!("127.0.0.1:{port}");
    let log = desk.workspace.path().join("log");
    let words = ["run", "--detach", "--id", "it", "--allow-net", &rule, "--net-log", "log", "--"];
    desk.sandbox(&[&words[..], &["python3", "it.py", &port]].concat()).success();
    wait_for("the program", || desk.workspace.has("up"));
    for left in [&[][..], &["--leave-running"]] {
        let strict = [&["save", "it", "-o", "image", "--strict"], left].concat();
        let words = ["process 2 (python3)", "in the host's network to 127.0.0.1", "--strict"];
        desk.sandbox(&strict).one_line_error(125, &words);
        assert!(!desk.workspace.has("image"));
    }
    desk.save(Way::Restored);
    desk.save(Way::LeftRunning);
    // It looks at its connection, and makes another one, before that is lost, too.
    desk.touch("go");
    wait_for("the program", || desk.workspace.has("up2"));
    desk.save(Way::Restored);
    desk.touch("go2");
    desk.sandbox(&["wait", "it"]).success();
    assert_eq!(desk.workspace.read("out"), "200 2");
    // It was recorded on in the same file; another one can be named.
    assert_eq!(fs::read_to_string(&log).unwrap().matches("\"connect\"").count(), 3);
    let inspected = desk.sandbox(&["inspect", "image"]);
    inspected.success().out_has(&format!("reaches   {rule}\n"));
    let again = ["restore", "image", "--id", "it", "--files", "changed-ok", "--net-log", "other"];
    desk.sandbox(&again).success();
    assert!(desk.workspace.read("other").contains("\"connect\""));
    desk.is_clean();
}

/// Counts whatever comes, by streams and datagrams.
const SERVER: &str = "
import socket, threading
lock, count = threading.Lock(), 0
def up():
    global count
    with lock:
        count += 1
        return b'%d' % count
def datagrams():
    it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    it.bind(('127.0.0.1', 81))
    open('up', 'w').close()
    while True:
        peer = it.recvfrom(100)[1]
        it.sendto(up(), peer)
def serve(connection):
    try:
        while connection.recv(100):
            connection.sendall(up())
        print('end', file=open('out', 'a'))
    except OSError as error:
        print(type(error).__name__, file=open('out', 'a'))
server = socket.create_server(('127.0.0.1', 80))
threading.Thread(target=datagrams).start()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
";

fn port(desk: &Desk, inside: &str) -> SocketAddr {
    desk.sandbox(&["port", "it", inside]).success().line().parse().unwrap()
}

fn open(desk: &Desk) -> TcpStream {
    let stream = TcpStream::connect(port(desk, "80")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn ask(mut stream: &TcpStream) -> std::io::Result<String> {
    stream.write_all(b"x")?;
    hear(stream)
}

fn hear(mut stream: &TcpStream) -> std::io::Result<String> {
    let mut answer = [0; 100];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn ask_by_datagram(desk: &Desk) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(port(desk, "81/udp")).unwrap();
    socket.send(b"x").unwrap();
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn published_ports_are_published_again() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("published");
    desk.workspace.write("it.py", SERVER);
    let words = ["run", "--detach", "--id", "it", "--publish", "80", "--publish", "81/udp", "--"];
    desk.sandbox(&[&words[..], &["python3", "it.py"]].concat()).success();
    wait_for("the program", || desk.workspace.has("up"));
    let stream = open(&desk);
    assert_eq!((&*ask(&stream).unwrap(), &*ask_by_datagram(&desk)), ("1", "2"));
    let strict = desk.sandbox(&["save", "it", "-o", "image", "--strict"]);
    strict.one_line_error(125, &["process 2 (python3)", "published port", "--strict"]);
    desk.save(Way::LeftRunning);
    assert_eq!(ask(&stream).unwrap(), "3");
    // One that nobody has taken yet is broken off as well, for both sides.
    desk.sandbox(&["pause", "it"]).success();
    let waiting = open(&desk);
    desk.save(Way::Restored);
    for stream in [&stream, &waiting] {
        let broken = hear(stream).unwrap_err();
        assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
    }
    wait_for("the server to see it", || {
        desk.workspace.has("out") && desk.workspace.read("out") == "ConnectionResetError\n"
    });
    assert_eq!((&*ask(&open(&desk)).unwrap(), &*ask_by_datagram(&desk)), ("4", "5"));
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    // Another place, which somebody else has.
    let number = free_port();
    let taken = TcpListener::bind(("127.0.0.1", number)).unwrap();
    let place = format!("{number}:80");
    let restore = ["restore", "image", "--detach", "--id", "it", "--publish", &place];
    let refused = desk.sandbox(&restore);
    refused.one_line_error(
        125,
        &["cannot restore image", &format!("port {number} of 127.0.0.1 is in use")],
    );
    drop(taken);
    desk.sandbox(&restore).success();
    assert_eq!(port(&desk, "80").port(), number);
    assert_eq!(ask(&open(&desk)).unwrap(), "6");
    desk.sandbox(&["kill", "it", "KILL"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.is_clean();
}

#[test]
fn a_socket_of_the_host_is_shown_again() {
    if !have("python3") {
        return;
    }
    let (desk, place) = (Desk::new("shown-socket"), Workspace::in_tmp("u"));
    let path = place.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"hello");
        }
    });
    let ask = "import os, socket, sys, time
open('up', 'w').close()
while not os.path.exists('go'): time.sleep(0.01)
it = socket.socket(socket.AF_UNIX)
it.connect(sys.argv[1])
open('out', 'w').write(it.recv(9).decode())";
    desk.workspace.write("it.py", ask);
    let path = path.to_str().unwrap();
    let words = ["run", "--detach", "--id", "it", "--unix", path, "--", "python3", "it.py", path];
    desk.sandbox(&words).success();
    wait_for("the program", || desk.workspace.has("up"));
    desk.save(Way::Restored);
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk.touch("go");
    desk.sandbox(&["restore", "image"]).success().err_has(&format!("--unix {path}"));
    assert_eq!(desk.workspace.read("out"), "hello");
    fs::remove_file(path).unwrap();
    desk.sandbox(&["restore", "image"]).one_line_error(125, &[path, "put it back"]);
    desk.is_clean();
}
