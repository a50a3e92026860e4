//! Reaching the host or the net without having been given it: sockets by address, by abstract name,
//! by path, and raw.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;

use common::attack::{hex, must_be_refused, raw};
use common::{Workspace, is_root, skip};

const STREAM: i32 = libc::SOCK_STREAM;

/// The calls that connect a stream socket of a family to an address.
fn connect(family: i32, address: &[u8]) -> String {
    let (socket, connect) = (libc::SYS_socket, libc::SYS_connect);
    format!("{socket} {family} {STREAM} 0 , {connect} =0 {} {}", hex(address), address.len())
}

/// A sockaddr_un (unix(7)).
fn unix_address(name: &[u8]) -> Vec<u8> {
    let family = (libc::AF_UNIX as u16).to_ne_bytes();
    [&family[..], name].concat()
}

/// The answer to the last of several calls.
fn last_line(outcome: &common::Outcome) -> String {
    outcome.out().lines().last().unwrap_or_default().to_owned()
}

#[test]
fn by_an_abstract_socket() {
    let workspace = Workspace::new("abstract");
    let name = workspace.mark().as_bytes();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let calls = raw(&connect(libc::AF_UNIX, &unix_address(&[b"\0", name].concat())));
    assert_eq!(last_line(workspace.native(&calls).success()), "0");
    listener.accept().unwrap();
    assert_eq!(last_line(workspace.inside(&calls).success()), "ECONNREFUSED");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// With the host's network the abstract names are shared too, unless something else keeps them
/// apart; a datagram socket is no other road.
#[test]
fn by_an_abstract_datagram_socket() {
    let workspace = Workspace::new("datagram");
    let name = workspace.mark().as_bytes();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let receiver = UnixDatagram::bind_addr(&address).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let to = unix_address(&[b"\0", name].concat());
    let (socket, sendto) = (libc::SYS_socket, libc::SYS_sendto);
    let calls = raw(&format!(
        "{socket} {} {} 0 , {sendto} =0 s:x 1 0 {} {}",
        libc::AF_UNIX,
        libc::SOCK_DGRAM,
        hex(&to),
        to.len()
    ));
    assert_eq!(last_line(workspace.native(&calls).success()), "1");
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
    assert_eq!(last_line(workspace.inside(&calls).success()), "ECONNREFUSED");
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// A directory below /run that this user can make a socket in.
fn runtime_directory() -> Option<PathBuf> {
    if is_root() {
        return Some("/run".into());
    }
    let directory = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    (directory.starts_with("/run") && directory.is_dir()).then_some(directory)
}

/// Where D-Bus and the daemons of the host listen.
#[test]
fn by_a_socket_in_run() {
    let Some(directory) = runtime_directory() else {
        return skip("writable directory below /run for this user");
    };
    let workspace = Workspace::new("run");
    let path = directory.join(workspace.mark());
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    for name in [path.clone(), PathBuf::from("/var").join(path.strip_prefix("/").unwrap())] {
        let name = name.to_str().unwrap();
        let calls = raw(&connect(libc::AF_UNIX, &unix_address(name.as_bytes())));
        assert_eq!(last_line(workspace.inside(&calls).success()), "ENOENT", "{name}");
    }
    let calls = raw(&connect(libc::AF_UNIX, &unix_address(path.to_str().unwrap().as_bytes())));
    let native = last_line(workspace.native(&calls).success());
    fs::remove_file(&path).unwrap();
    assert_eq!(native, "0");
    listener.accept().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let listing = workspace.inside_sh("ls -A /run; ls -A /var/run/");
    listing.success().expect_out("");
}

/// A connection to a socket's path is no writing: a read-only mount lets it through.
#[test]
fn by_a_socket_elsewhere() {
    let host = Workspace::new("daemon");
    let path = host.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let workspace = Workspace::new("client");
    let calls = raw(&connect(libc::AF_UNIX, &unix_address(path.to_str().unwrap().as_bytes())));
    assert_eq!(last_line(workspace.native(&calls).success()), "0");
    listener.accept().unwrap();
    // It is hidden, and so not there.
    assert_eq!(last_line(workspace.inside(&calls).success()), "ENOENT");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn by_the_loopback_of_the_host() {
    let workspace = Workspace::new("loopback");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port().to_be_bytes();
    let family = (libc::AF_INET as u16).to_ne_bytes();
    let address = [&family[..], &port, &[127, 0, 0, 1], &[0; 8]].concat();
    let calls = raw(&connect(libc::AF_INET, &address));
    assert_eq!(last_line(workspace.native(&calls).success()), "0");
    listener.accept().unwrap();
    assert_eq!(last_line(workspace.inside(&calls).success()), "ECONNREFUSED");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // What `--net host` is for.
    let host = workspace.inside_with(&["--net", "host"], &calls);
    assert_eq!(last_line(host.success()), "0");
    listener.accept().unwrap();
}

/// An address in the world is not reached and does not even have a route (TEST-NET-1, RFC 5737).
#[test]
fn by_an_address_in_the_world() {
    let workspace = Workspace::new("world");
    let family = (libc::AF_INET as u16).to_ne_bytes();
    let address = [&family[..], &[0, 80], &[192, 0, 2, 1], &[0; 8]].concat();
    let outcome = workspace.inside(&raw(&connect(libc::AF_INET, &address)));
    assert_eq!(last_line(outcome.success()), "ENETUNREACH");
}

/// Sockets below the transport, and families that a network namespace does not hold: AF_VSOCK
/// reaches the hypervisor or its guests whatever the namespace (vsock(7)).
#[test]
fn by_a_raw_socket() {
    let workspace = Workspace::new("raw");
    let raw_socket = |family: i32, protocol: i32| {
        format!("{} {family} {} {protocol}", libc::SYS_socket, libc::SOCK_RAW)
    };
    let calls = [
        ("raw ICMP", raw_socket(libc::AF_INET, libc::IPPROTO_ICMP)),
        ("raw TCP", raw_socket(libc::AF_INET, libc::IPPROTO_TCP)),
        ("raw IP", raw_socket(libc::AF_INET, libc::IPPROTO_RAW)),
        ("raw IPv6", raw_socket(libc::AF_INET6, libc::IPPROTO_RAW)),
        ("packets", raw_socket(libc::AF_PACKET, i32::from(3u16.to_be()))),
        (
            "packets without headers",
            format!("{} {} {} 0x300", libc::SYS_socket, libc::AF_PACKET, libc::SOCK_DGRAM),
        ),
    ];
    must_be_refused(&workspace, &[], &calls);
    must_be_refused(&workspace, &["--net", "host"], &calls);
    let vsock = format!("{} {} {STREAM} 0", libc::SYS_socket, libc::AF_VSOCK);
    let outcome = workspace.inside(&raw(&vsock));
    assert!(outcome.success().line().starts_with('E'), "{}", outcome.report());
}
