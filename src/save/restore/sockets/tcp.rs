//! TCP sockets: those that listen first, then connections, then what depends on both.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{IPPROTO_TCP, SO_REUSEADDR, SOL_SOCKET};
use nix::errno::Errno;

use super::{Entry, ended, failed, finish, make as make_one, put, tcp_connections};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::options;
use crate::save::sockets::{Detail, Socket, Tcp, TcpState};
use crate::sys::socket;

/// include/uapi/linux/tcp.h.
pub(super) const TCP_REPAIR: i32 = 19;

/// Makes all of them.
pub(super) fn make(maker: &mut Maker<'_>, all: &[Entry<'_>]) -> Result<(), RestoreError> {
    let all: Vec<(usize, &Socket, &Tcp)> = all
        .iter()
        .filter_map(|(index, socket)| match &socket.detail {
            Detail::Tcp(tcp) => Some((*index, *socket, tcp)),
            _ => None,
        })
        .collect();
    for (index, socket, tcp) in &all {
        let backlog = match tcp.state {
            TcpState::Listening(backlog) => Some(backlog),
            TcpState::Closed => None,
            _ => continue,
        };
        let fd = make_one(maker, socket)?;
        if let Some(local) = &tcp.local {
            bind(fd.as_fd(), local, socket)?;
        }
        if let Some(backlog) = backlog {
            socket::listen(fd.as_fd(), backlog).map_err(failed(socket, "have listen"))?;
        }
        finish(fd.as_fd(), socket)?;
        put(maker, *index, fd);
    }
    tcp_connections::make(maker, &all)?;
    for (index, socket, tcp) in &all {
        let fd = match &tcp.state {
            TcpState::Pending(end) => connect(maker, socket, tcp, *end)?,
            TcpState::Connecting if tcp.outside => {
                let fd = ended::begin_again(maker, socket, tcp)?;
                put(maker, *index, fd);
                continue;
            }
            TcpState::Connecting => connect(maker, socket, tcp, false)?,
            TcpState::Ended(received, broken) => ended::make(maker, socket, received, *broken)?,
            _ => continue,
        };
        finish(fd.as_fd(), socket)?;
        put(maker, *index, fd);
    }
    Ok(())
}

/// Binds, even where others are bound already: repair mode passes over conflicts, as those that were
/// there when the socket was bound may have been none (inet_csk_get_port, SK_FORCE_REUSE).
pub(super) fn bind(fd: BorrowedFd<'_>, local: &[u8], socket: &Socket) -> Result<(), RestoreError> {
    // Which MPTCP does not know, nor the network namespace of the host to an ordinary user.
    let repaired = options::put(fd, IPPROTO_TCP, TCP_REPAIR, 1).is_ok();
    let bound = socket::bind(fd, local);
    if repaired {
        leave_repair(fd, socket, false)?;
    }
    bound.map_err(failed(socket, "bind"))
}

/// Leaves the repair mode, which forgets SO_REUSEADDR (tcp_repair_set in net/ipv4/tcp.c). With `probe`
/// the other side is asked for its window.
pub(super) fn leave_repair(
    fd: BorrowedFd<'_>,
    socket: &Socket,
    probe: bool,
) -> Result<(), RestoreError> {
    let off = if probe { 0 } else { -1 };
    options::put(fd, IPPROTO_TCP, TCP_REPAIR, off)
        .or_else(|_| options::put(fd, IPPROTO_TCP, TCP_REPAIR, 0))
        .map_err(failed(socket, "end the repair of"))?;
    let reuse = options::find(&socket.options, SOL_SOCKET, SO_REUSEADDR).unwrap_or(0);
    options::put(fd, SOL_SOCKET, SO_REUSEADDR, reuse).map_err(failed(socket, "set options of"))
}

/// Makes a connection as the guest did, with the same address of its own. The loopback has carried it out
/// by the time that connect(2) comes back, as far as somebody listens; if not, it goes on trying.
fn connect(
    maker: &mut Maker<'_>,
    socket: &Socket,
    tcp: &Tcp,
    end: bool,
) -> Result<OwnedFd, RestoreError> {
    let fd = make_one(maker, socket)?;
    if let Some(local) = &tcp.local {
        bind(fd.as_fd(), local, socket)?;
    }
    let Some(remote) = &tcp.remote else { return Ok(fd) };
    let connected = without_waiting(fd.as_fd(), |fd| socket::connect(fd, remote));
    match connected {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(failed(socket, "connect")(errno)),
    }
    if end {
        socket::shut_down(fd.as_fd(), libc::SHUT_WR).map_err(failed(socket, "close"))?;
    }
    Ok(fd)
}

fn without_waiting<T>(
    fd: BorrowedFd<'_>,
    what: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = fcntl(fd, FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let done = what(fd);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    done
}
