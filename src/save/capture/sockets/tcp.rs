//! TCP sockets, see tcp(7).
//!
//! Queues and numbers of a connection are read in its repair mode (TCP_REPAIR), for all connections
//! together once all sockets are known: first what every side has to send, then what every side has
//! received. The guests stand still but the kernel does not: a timer may move bytes from one side to the
//! other in between. Those are found on both sides then, and are dropped from the first by their numbers.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use libc::{IPPROTO_MPTCP, IPPROTO_TCP, MSG_DONTWAIT, MSG_PEEK, SO_REUSEADDR, SOL_SOCKET};
use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::queue::Meanwhile;
use super::{Gathered, Held, Whose, outside};
use crate::save::error::SaveError;
use crate::save::sockets::{
    Connection, Detail, Endpoint, Ends, Socket, Tcp, TcpState, endpoint, options,
};
use crate::sys::socket;

/// include/uapi/linux/tcp.h.
pub(super) const TCP_REPAIR: i32 = 19;
pub(super) const TCP_REPAIR_QUEUE: i32 = 20;
pub(super) const TCP_QUEUE_SEQ: i32 = 21;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
/// TCP_REPAIR_OFF_NO_WP: without a probe of the other side's window, since Linux 4.19.
const OFF_SILENTLY: i32 = -1;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;

/// include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;
pub(super) const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
pub(super) const CLOSE: u8 = 7;
pub(super) const CLOSE_WAIT: u8 = 8;
pub(super) const LAST_ACK: u8 = 9;
pub(super) const LISTEN: u8 = 10;
pub(super) const CLOSING: u8 = 11;

/// The fields of struct tcp_info that matter here.
pub(super) struct Info {
    pub(super) state: u8,
    options: u8,
    scales: (u8, u8),
    /// Of one that listens: connections that nobody has accepted, and its backlog.
    queues: (u32, u32),
    /// Bytes that the other side has acknowledged, the ends of the direction included.
    acknowledged: u64,
}

impl Info {
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Info, Errno> {
        let bytes = socket::option(fd, IPPROTO_TCP, libc::TCP_INFO, 256)?;
        let word = |at: usize| bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
        let word = |at: usize| word(at).map_or(0, u32::from_ne_bytes);
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        Ok(Info {
            state: byte(0),
            options: byte(5),
            scales: (byte(6) & 15, byte(6) >> 4),
            queues: (word(24), word(28)),
            acknowledged: u64::from(word(120)) | u64::from(word(124)) << 32,
        })
    }
}

/// A socket as far as it can be told alone, and which directions of it are closed by itself.
pub(super) fn capture(
    who: &Whose,
    fd: BorrowedFd<'_>,
    protocol: i32,
) -> Result<(Tcp, u8), SaveError> {
    let failed = who.failed("ask the socket");
    let info = Info::of(fd).map_err(&failed)?;
    let events = socket::events(fd).map_err(&failed)?;
    let local = socket::name(fd).map_err(&failed)?;
    let local = endpoint(&local).is_some_and(|(_, port)| port != 0).then(|| ByteBuf::from(local));
    let remote = socket::peer_name(fd).ok().map(ByteBuf::from);
    if protocol == IPPROTO_MPTCP && !matches!(info.state, CLOSE | LISTEN) {
        return Err(who.refuse(
            "an MPTCP connection, which cannot be saved; use TCP (GODEBUG=multipathtcp=0 for Go)",
        ));
    }
    let over = events & libc::POLLRDHUP != 0;
    let state = match info.state {
        LISTEN => TcpState::Listening(info.queues.1),
        // tcp_done in net/ipv4/tcp.c closes both directions of what was connected once.
        CLOSE if over => TcpState::Ended(unread(who, fd)?, events & libc::POLLERR != 0),
        CLOSE => TcpState::Closed,
        SYN_SENT => TcpState::Connecting,
        ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING => {
            refuse_urgent(who, fd)?;
            TcpState::Connected(Box::new(Connection {
                sent_end: matches!(info.state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING),
                received_end: matches!(info.state, CLOSE_WAIT | LAST_ACK | CLOSING),
                scales: (info.options & 4 != 0).then_some(info.scales),
                selective: info.options & 2 != 0,
                timestamp: (info.options & 1 != 0).then_some(0),
                ..Connection::default()
            }))
        }
        state => {
            return Err(who.refuse_for_now(format!(
                "a TCP socket in state {state}, which cannot be saved; try again"
            )));
        }
    };
    let closed_by_itself = match &state {
        TcpState::Connected(connection) => over && !connection.received_end,
        _ => false,
    };
    Ok((Tcp { local, remote, state, outside: false }, u8::from(closed_by_itself)))
}

fn refuse_urgent(who: &Whose, fd: BorrowedFd<'_>) -> Result<(), SaveError> {
    let urgent = socket::receive(fd, 1, libc::MSG_OOB | MSG_PEEK | MSG_DONTWAIT);
    match urgent {
        Ok(urgent) if urgent.length > 0 => Err(who.refuse_for_now(
            "urgent data in a TCP connection, which cannot be saved; read it first",
        )),
        _ => Ok(()),
    }
}

pub(super) fn unread(who: &Whose, fd: BorrowedFd<'_>) -> Result<ByteBuf, SaveError> {
    let failed = who.failed("look at what waits in the socket");
    let count = socket::to_read(fd).map_err(&failed)? as usize;
    if count == 0 {
        return Ok(ByteBuf::new());
    }
    peek(fd, count).map(ByteBuf::from).map_err(failed)
}

/// All of a queue, at most `room` bytes.
fn peek(fd: BorrowedFd<'_>, room: usize) -> Result<Vec<u8>, Errno> {
    // Streams of TCP know an offset for that since Linux 6.9.
    let _offset = Meanwhile::set(fd, libc::SO_PEEK_OFF, -1).ok();
    match socket::receive(fd, room, MSG_PEEK | MSG_DONTWAIT) {
        Ok(received) => Ok(received.bytes),
        Err(Errno::EAGAIN) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

/// Reads all connections and brings their two sides together.
pub(super) fn settle(mut sockets: Vec<&mut Socket>, gathered: &Gathered) -> Result<(), SaveError> {
    settle_pending(&mut sockets, gathered)?;
    read_connections(&mut sockets, gathered)?;
    trim(&mut sockets, gathered)
}

/// Where both sides of each connection are.
fn sides(sockets: &[&mut Socket]) -> HashMap<Ends, usize> {
    let ends = |socket: &Socket| match &socket.detail {
        Detail::Tcp(tcp) if matches!(tcp.state, TcpState::Connected(_)) => tcp.ends(),
        _ => None,
    };
    let all = sockets.iter().enumerate();
    all.filter_map(|(index, socket)| Some((ends(socket)?, index))).collect()
}

fn held<'g>(socket: &Socket, gathered: &'g Gathered) -> Result<&'g Held, SaveError> {
    let held = gathered.held.get(&socket.id);
    held.ok_or_else(|| SaveError::passing("a socket changed while it was being saved; try again"))
}

/// Tells apart connections without another side among the sockets: nobody has accepted them, the other
/// side was closed, or it is outside.
fn settle_pending(sockets: &mut [&mut Socket], gathered: &Gathered) -> Result<(), SaveError> {
    let sides = sides(sockets);
    let of_sentry = outside::sides_of_sentry(gathered)?;
    let mut listeners = Vec::new();
    for socket in sockets.iter() {
        let Detail::Tcp(Tcp { local: Some(local), state: TcpState::Listening(_), .. }) =
            &socket.detail
        else {
            continue;
        };
        let it = held(socket, gathered)?;
        let info = Info::of(it.copy.as_fd()).map_err(it.who.failed("ask the socket"))?;
        listeners.extend(endpoint(local).map(|at| (at, info.queues.0, &it.who)));
    }
    let takes = |listener: &Endpoint, to: &Endpoint| {
        listener.1 == to.1 && (listener.0 == [0; 16] || listener.0 == to.0)
    };
    let mut found = HashMap::<u16, u32>::new();
    for socket in sockets.iter_mut() {
        let it = held(socket, gathered)?;
        let Detail::Tcp(tcp) = &mut socket.detail else { continue };
        let ends = tcp.ends();
        let (TcpState::Connected(connection), Some((local, remote))) = (&mut tcp.state, ends)
        else {
            continue;
        };
        connection.inside = sides.contains_key(&(remote, local));
        if of_sentry.contains(&(remote, local)) {
            outside::refuse_if_strict(it, gathered, remote)?;
            tcp.state =
                TcpState::Ended(unread(&it.who, it.copy.as_fd())?, !connection.received_end);
            continue;
        }
        // The repair mode is not for the sockets of the host's own network namespace. What has been
        // received to its end has had all that the other side ever sent.
        if !gathered.shares_host && (connection.inside || connection.received_end) {
            continue;
        }
        let taken = listeners.iter().any(|(at, count, _)| *count > 0 && takes(at, &remote));
        if taken && !connection.inside {
            let end = connection.sent_end;
            refuse_data(it, end)?;
            *found.entry(remote.1).or_default() += 1;
            tcp.state = TcpState::Pending(end);
        } else if !gathered.shares_host {
            return Err(it.who.refuse_for_now(
                "a TCP connection whose other side was closed while data was on its way, which cannot be \
                 saved; read it to its end first",
            ));
        } else if gathered.around.strict {
            return Err(outside::refuse(&it.who, it.copy.as_fd()));
        } else {
            // What the other side has ended is read to its end.
            tcp.state =
                TcpState::Ended(unread(&it.who, it.copy.as_fd())?, !connection.received_end);
        }
    }
    // What the sentry has led inside and nobody has accepted yet is broken off: no listener knows it any more.
    let accepted = |(theirs, ours): &&Ends| sides.contains_key(&(*ours, *theirs));
    for (_, to) in of_sentry.iter().filter(|it| !accepted(it)) {
        let waits = listeners.iter().any(|(at, count, _)| *count > 0 && takes(at, to));
        if waits {
            *found.entry(to.1).or_default() += 1;
        }
    }
    let mut expected = HashMap::<u16, u32>::new();
    for (at, count, _) in &listeners {
        *expected.entry(at.1).or_default() += count;
    }
    for (at, count, who) in &listeners {
        if *count > 0 && expected.get(&at.1) != found.get(&at.1) {
            return Err(who.refuse_for_now(
                "TCP connections that nobody has accepted and whose other sides are closed or outside the \
                 sandbox, which cannot be saved; accept them first",
            ));
        }
    }
    Ok(())
}

/// Bytes in a connection that nobody has accepted can only be read by accepting it.
fn refuse_data(held: &Held, end: bool) -> Result<(), SaveError> {
    let fd = held.copy.as_fd();
    let failed = held.who.failed("ask the socket");
    // The beginning of the direction counts for one, and so does its end.
    let most = 1 + u32::from(end);
    let (info, to_send) = (Info::of(fd).map_err(&failed)?, socket::to_send(fd).map_err(&failed)?);
    if info.acknowledged > u64::from(most) || to_send > u32::from(end) {
        return Err(held.who.refuse_for_now(
            "a TCP connection with data in it that nobody has accepted yet, which cannot be saved; \
             try again when it has been accepted",
        ));
    }
    Ok(())
}

/// A connection in repair mode; out of it again when it goes.
struct Repair<'f> {
    fd: BorrowedFd<'f>,
    /// SO_REUSEADDR, which the mode forgets (tcp_repair_set in net/ipv4/tcp.c).
    reuse: i32,
}

impl<'f> Repair<'f> {
    fn begin(fd: BorrowedFd<'f>) -> Result<Repair<'f>, Errno> {
        let reuse = options::get(fd, SOL_SOCKET, SO_REUSEADDR)?;
        options::put(fd, IPPROTO_TCP, TCP_REPAIR, 1)?;
        Ok(Repair { fd, reuse })
    }

    /// What is in a queue, and the number behind it.
    fn queue(&self, queue: i32, room: usize) -> Result<(Vec<u8>, u32), Errno> {
        options::put(self.fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)?;
        let read = options::get(self.fd, IPPROTO_TCP, TCP_QUEUE_SEQ);
        let bytes = if room > 0 { peek(self.fd, room) } else { Ok(Vec::new()) };
        // While the send queue is selected nothing is sent (tcp_write_xmit).
        options::put(self.fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, 0)?;
        Ok((bytes?, read? as u32))
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        // Neither can fail for one that could begin; before Linux 4.19 the end is not silent: a probe of
        // the other side's window, which does no harm.
        let ended = options::put(self.fd, IPPROTO_TCP, TCP_REPAIR, OFF_SILENTLY);
        let _ = ended.or_else(|_| options::put(self.fd, IPPROTO_TCP, TCP_REPAIR, 0));
        let _ = options::put(self.fd, SOL_SOCKET, SO_REUSEADDR, self.reuse);
    }
}

/// A buffer may be larger than what of it is still to be acknowledged: a whole segment with offload.
const SLACK: usize = 1 << 20;

fn read_connections(sockets: &mut [&mut Socket], gathered: &Gathered) -> Result<(), SaveError> {
    let mut open = Vec::new();
    for socket in sockets.iter_mut() {
        let it = held(socket, gathered)?;
        let Detail::Tcp(Tcp { state: TcpState::Connected(connection), .. }) = &mut socket.detail
        else {
            continue;
        };
        let repair = Repair::begin(it.copy.as_fd())
            .map_err(it.who.failed("read the connection (TCP_REPAIR)"))?;
        open.push((repair, connection, &it.who));
    }
    for (repair, connection, who) in &mut open {
        read_sent(repair, connection).map_err(who.failed("read what the connection is to send"))?;
    }
    for (repair, connection, who) in &mut open {
        read_received(repair, connection)
            .map_err(who.failed("read what the connection received"))?;
    }
    Ok(())
}

fn read_sent(repair: &Repair<'_>, connection: &mut Connection) -> Result<(), Errno> {
    let waiting = socket::to_send(repair.fd)? as usize;
    let room = if waiting > 0 { waiting + SLACK } else { 0 };
    let (bytes, end) = repair.queue(SEND_QUEUE, room)?;
    connection.send_next =
        end.wrapping_sub(u32::from(connection.sent_end)).wrapping_sub(bytes.len() as u32);
    connection.sent = ByteBuf::from(bytes);
    connection.segment = options::get(repair.fd, IPPROTO_TCP, libc::TCP_MAXSEG)? as u32;
    if let Some(timestamp) = &mut connection.timestamp {
        *timestamp = options::get(repair.fd, IPPROTO_TCP, TCP_TIMESTAMP)? as u32;
    }
    Ok(())
}

fn read_received(repair: &Repair<'_>, connection: &mut Connection) -> Result<(), Errno> {
    let waiting = socket::to_read(repair.fd)? as usize;
    let room = if waiting > 0 { waiting + SLACK } else { 0 };
    let (bytes, end) = repair.queue(RECEIVE_QUEUE, room)?;
    connection.receive_next = end.wrapping_sub(u32::from(connection.received_end));
    connection.received = ByteBuf::from(bytes);
    let window = socket::option(repair.fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, 20)?;
    for (into, from) in connection.window.iter_mut().zip(window.chunks_exact(4)) {
        *into = u32::from_ne_bytes([from[0], from[1], from[2], from[3]]);
    }
    Ok(())
}

/// Drops from what each side has to send what the other has received already.
fn trim(sockets: &mut [&mut Socket], gathered: &Gathered) -> Result<(), SaveError> {
    let sides = sides(sockets);
    let mut received = HashMap::new();
    for socket in sockets.iter() {
        if let Detail::Tcp(tcp) = &socket.detail
            && let (TcpState::Connected(connection), Some(ends)) = (&tcp.state, tcp.ends())
        {
            received.insert(ends, connection.receive_next);
        }
    }
    for ((local, remote), index) in sides {
        let socket = &mut sockets[index];
        let who = &held(socket, gathered)?.who;
        let Detail::Tcp(Tcp { state: TcpState::Connected(connection), .. }) = &mut socket.detail
        else {
            continue;
        };
        let Some(up_to) = received.get(&(remote, local)) else { continue };
        let known = up_to.wrapping_sub(connection.send_next) as usize;
        if known > connection.sent.len() {
            return Err(who.refuse_for_now(
                "a TCP connection whose two sides do not agree, which cannot be saved; try again",
            ));
        }
        connection.sent.drain(..known);
        connection.send_next = *up_to;
    }
    Ok(())
}
