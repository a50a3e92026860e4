//! Clients that do what no client should: they harm nothing.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::common::{LIMIT, have, is_root, run, skip, wait_for};
use crate::desk::Desk;

/// A raw connection; its address may be longer than an address can be.
fn connect(desk: &Desk) -> UnixStream {
    let directory = File::open(desk.state("x")).unwrap();
    let path = format!("/proc/self/fd/{}/control", directory.as_raw_fd());
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// All that the server says until it hangs up.
fn rest(mut stream: &UnixStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

/// `{"version": 4, "request": "wait"}`
fn wait_request() -> Vec<u8> {
    frame(b"\xa2\x67version\x04\x67request\x64wait")
}

#[test]
fn malformed_requests_are_refused_in_words() {
    let desk = Desk::new("malformed");
    desk.detach_idle("x");
    let nested = vec![0x81; 60_000];
    for (bytes, words) in [
        (frame(b""), "cannot be understood"),
        (frame(b"\xff\xff\xff"), "cannot be understood"),
        (frame(&nested), "cannot be understood"),
        (frame(b"\xa2\x67version\x04\x67request\x64what"), "cannot be understood"),
        (frame(b"\xa2\x67version\x05\x67request\x64what"), "version 5"),
        (u32::MAX.to_be_bytes().to_vec(), "too many"),
        ([wait_request(), b"x".to_vec()].concat(), "cannot be understood"),
    ] {
        let stream = connect(&desk);
        (&stream).write_all(&bytes).unwrap();
        let said = rest(&stream);
        assert!(said.contains("refused") && said.contains(words), "{words}: {said}");
        desk.sandbox(&["ps", "x"]).success();
    }
}

#[test]
fn slow_and_vanished_clients_are_let_go() {
    let desk = Desk::new("slow");
    desk.detach_idle("x");
    let supervisor = desk.supervisor("x");
    let open = || fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().count();
    let before = open();
    // One that goes away in the middle, one that waits and goes away, one that never ends.
    for bytes in [&b"\0\0"[..], &frame(b"\xa2\x67")[..5], &wait_request()] {
        (&connect(&desk)).write_all(bytes).unwrap();
    }
    let slow = connect(&desk);
    (&slow).write_all(&wait_request()[..9]).unwrap();
    let said = rest(&slow);
    assert!(said.contains("not complete"), "{said:?}");
    wait_for("the connections to be closed", || open() <= before);
    desk.sandbox(&["ps", "x"]).success();
}

#[test]
fn a_flood_keeps_nobody_else_from_being_served() {
    let desk = Desk::new("flood");
    desk.detach_idle("x");
    let silent: Vec<UnixStream> = (0..300).map(|_| connect(&desk)).collect();
    assert_eq!(desk.listed("x").unwrap()["state"], "running");
    drop(silent);
    let waiting: Vec<UnixStream> = (0..300).map(|_| connect(&desk)).collect();
    for stream in &waiting {
        // Some of them have been dropped for their silence.
        let _ = (&*stream).write_all(&wait_request());
    }
    assert_eq!(desk.listed("x").unwrap()["state"], "running");
    // There may be more of them than can wait at once; who comes after the end needs no room.
    desk.sandbox(&["kill", "x"]).success();
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    desk.sandbox(&["wait", "x"]).expect_status(7);
    desk.expect_nothing();
}

#[test]
fn descriptors_that_nobody_wants_are_closed() {
    let desk = Desk::new("descriptors");
    desk.detach_idle("x");
    for count in [1, 3, 20] {
        let (mut read, write) = std::io::pipe().unwrap();
        let numbers = vec![write.as_raw_fd(); count];
        let stream = connect(&desk);
        let request = wait_request();
        let message = [ControlMessage::ScmRights(&numbers)];
        let bytes = [IoSlice::new(&request)];
        sendmsg::<()>(stream.as_raw_fd(), &bytes, &message, MsgFlags::empty(), None).unwrap();
        drop(write);
        // Ends once no copy is left, although the request is still being served.
        assert_eq!(read.read(&mut [0; 1]).unwrap(), 0);
        desk.sandbox(&["ps", "x"]).success();
    }
}

#[test]
fn another_user_is_refused() {
    if !is_root() {
        return skip("root, who can be another user");
    }
    if !have("setpriv") || !have("perl") {
        return;
    }
    let desk = Desk::new("stranger");
    desk.detach_idle("x");
    // The directories keep strangers out; here they are opened to them.
    let mut path = desk.state("x").join("control");
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&path, 0o777);
    while path.pop() && path.starts_with(desk.runtime()) {
        mode(&path, 0o755);
    }
    let script = "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0); \
                  connect($s, sockaddr_un('control')) or die $!; sysread($s, my $b, 1000); print $b";
    let mut command = desk.workspace.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-e", script]);
    command.current_dir(desk.state("x"));
    run(command, b"", LIMIT).success().out_has("another user");
    mode(&desk.runtime(), 0o700);
    mode(&desk.runtime().join("sandbox"), 0o700);
    desk.sandbox(&["ps", "x"]).success();
}
