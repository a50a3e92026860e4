//! TCP connections within the sandbox, put together in repair mode (TCP_REPAIR).
//!
//! Each side gets the numbers, the options and the received bytes that it had, without a packet. Then both
//! leave the mode, and what was on its way is sent as any other data, and so are the ends of directions:
//! the kernel brings the two sides into the states that they were in by its own rules.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{IPPROTO_TCP, SO_RCVBUF, SOL_SOCKET};
use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::tcp::{TCP_REPAIR, leave_repair};
use super::{failed, finish, made, make as make_one, put, unix};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::options;
use crate::save::sockets::{Connection, Socket, Tcp, TcpState};
use crate::sys::socket::{self, Sent};

/// include/uapi/linux/tcp.h.
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// Options of a segment (TCPOPT_* in include/net/tcp.h).
const OPTION_SEGMENT: u32 = 2;
const OPTION_SCALE: u32 = 3;
const OPTION_SELECTIVE: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;

/// One side that is being made.
struct Side<'m> {
    /// Index in the image; `None`: the other side of a connection, which was closed.
    index: Option<usize>,
    fd: OwnedFd,
    socket: &'m Socket,
    connection: Connection,
}

/// Makes all connections.
pub(super) fn make(
    maker: &mut Maker<'_>,
    all: &[(usize, &Socket, &Tcp)],
) -> Result<(), RestoreError> {
    let mut sides = Vec::new();
    for (index, socket, tcp) in all {
        let TcpState::Connected(connection) = &tcp.state else { continue };
        let (Some(local), Some(remote)) = (&tcp.local, &tcp.remote) else {
            return Err(failed(socket, "connect")(Errno::ENOTCONN));
        };
        let fd = side(maker, socket, connection, local, remote)?;
        let connection = Connection::clone(connection);
        if !connection.inside {
            let other = other_side(&connection);
            let fd = side(maker, socket, &other, remote, local)?;
            sides.push(Side { index: None, fd, socket, connection: other });
        }
        sides.push(Side { index: Some(*index), fd, socket, connection });
    }
    for side in &sides {
        leave_repair(side.fd.as_fd(), side.socket, true)?;
    }
    for side in &sides {
        send(side)?;
    }
    for side in sides {
        if side.connection.sent_end {
            socket::shut_down(side.fd.as_fd(), libc::SHUT_WR)
                .map_err(failed(side.socket, "close a direction of"))?;
        }
        if let Some(index) = side.index {
            put(maker, index, side.fd);
        }
    }
    for (index, socket, tcp) in all {
        if matches!(tcp.state, TcpState::Connected(_)) {
            finish(made(maker, *index)?, socket)?;
        }
    }
    Ok(())
}

/// What the other side was when it had been closed: it had sent all, and received what had come.
fn other_side(connection: &Connection) -> Connection {
    let [_, window, most, received, _] = connection.window;
    Connection {
        received: ByteBuf::new(),
        sent: ByteBuf::new(),
        receive_next: connection.send_next,
        send_next: connection.receive_next,
        sent_end: true,
        received_end: false,
        scales: connection.scales.map(|(send, receive)| (receive, send)),
        window: [connection.send_next, received, received.max(most), window, connection.send_next],
        inside: true,
        ..*connection
    }
}

/// One side in repair mode.
fn side(
    maker: &mut Maker<'_>,
    socket: &Socket,
    connection: &Connection,
    local: &[u8],
    remote: &[u8],
) -> Result<OwnedFd, RestoreError> {
    let fd = make_one(maker, socket)?;
    repair(fd.as_fd(), connection, local, remote).map_err(failed(socket, "connect"))?;
    Ok(fd)
}

fn repair(
    fd: BorrowedFd<'_>,
    connection: &Connection,
    local: &[u8],
    remote: &[u8],
) -> Result<(), Errno> {
    let set = |name, value: u32| options::put(fd, IPPROTO_TCP, name, value as i32);
    set(TCP_REPAIR, 1)?;
    if connection.received.len() > 64 << 10 {
        // What it had is set with the other options, at last.
        options::put(fd, SOL_SOCKET, SO_RCVBUF, 64 << 20)?;
    }
    let first = connection.receive_next.wrapping_sub(connection.received.len() as u32);
    for (queue, next) in [(RECEIVE_QUEUE, first), (SEND_QUEUE, connection.send_next)] {
        set(TCP_REPAIR_QUEUE, queue as u32)?;
        set(TCP_QUEUE_SEQ, next)?;
    }
    socket::bind(fd, local)?;
    socket::connect(fd, remote)?;
    socket::set_option(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, &agreed(connection))?;
    if let Some(timestamp) = connection.timestamp {
        set(TCP_TIMESTAMP, timestamp)?;
    }
    set(TCP_REPAIR_QUEUE, RECEIVE_QUEUE as u32)?;
    fill(fd, &connection.received)?;
    set(TCP_REPAIR_QUEUE, 0)?;
    let window = window(connection).iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<u8>>();
    socket::set_option(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window)
}

/// What both sides agreed on when the connection was made: struct tcp_repair_opt, several.
fn agreed(connection: &Connection) -> Vec<u8> {
    let mut all = vec![(OPTION_SEGMENT, connection.segment)];
    if let Some((send, receive)) = connection.scales {
        all.push((OPTION_SCALE, u32::from(send) | u32::from(receive) << 16));
    }
    if connection.selective {
        all.push((OPTION_SELECTIVE, 0));
    }
    if connection.timestamp.is_some() {
        all.push((OPTION_TIMESTAMP, 0));
    }
    all.iter()
        .flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect()
}

/// The windows, within what the kernel takes (tcp_repair_set_window in net/ipv4/tcp.c).
fn window(connection: &Connection) -> [u32; 5] {
    let [last, send, most, receive, advertised] = connection.window;
    let next = connection.receive_next;
    let not_after = |it: u32, limit: u32| {
        if (limit.wrapping_sub(it) as i32) < 0 { limit } else { it }
    };
    [not_after(last, next), send, most.max(send), receive, not_after(advertised, next)]
}

/// Fills the queue that is selected.
fn fill(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    /// Of one buffer (tcp_send_rcvq in net/ipv4/tcp_input.c makes one of each call's bytes).
    const AT_ONCE: usize = 16 << 10;
    for some in bytes.chunks(AT_ONCE) {
        let count = socket::send(fd, &Sent { bytes: some, ..Sent::default() })?;
        if count < some.len() {
            return Err(Errno::ENOBUFS);
        }
    }
    Ok(())
}

/// Sends what the other side has not received.
fn send(side: &Side<'_>) -> Result<(), RestoreError> {
    let mut rest = &side.connection.sent[..];
    if rest.is_empty() {
        return Ok(());
    }
    let fd = side.fd.as_fd();
    unix::raise(fd);
    let error = failed(side.socket, "send what was on its way in");
    // What is held back (TCP_CORK) stays so.
    let cork = options::find(&side.socket.options, IPPROTO_TCP, libc::TCP_CORK).unwrap_or(0);
    options::put(fd, IPPROTO_TCP, libc::TCP_CORK, cork).map_err(&error)?;
    while !rest.is_empty() {
        let count = socket::send(fd, &Sent { bytes: rest, ..Sent::default() }).map_err(&error)?;
        rest = &rest[count..];
    }
    Ok(())
}
