//! UDP sockets: named, filled by who had sent or by one of the same address, then connected.

use std::os::fd::{AsFd, OwnedFd};

use libc::{AF_INET, SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET};
use nix::errno::Errno;

use super::{Entry, failed, finish, made, make as make_one, plain, put};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{Detail, Socket, Udp, endpoint, options};
use crate::sys::socket::{self, Sent};

/// Makes all of them.
pub(super) fn make(maker: &mut Maker<'_>, all: &[Entry<'_>]) -> Result<(), RestoreError> {
    let all: Vec<(usize, &Socket, &Udp)> = all
        .iter()
        .filter_map(|(index, socket)| match &socket.detail {
            Detail::Udp(udp) => Some((*index, *socket, udp)),
            _ => None,
        })
        .collect();
    for (index, socket, udp) in &all {
        let fd = make_one(maker, socket)?;
        if let Some(local) = &udp.local {
            socket::bind(fd.as_fd(), local).map_err(failed(socket, "bind"))?;
        }
        put(maker, *index, fd);
    }
    for (index, socket, udp) in &all {
        fill(maker, *index, (*socket, udp), &all)?;
    }
    for (index, socket, udp) in &all {
        let fd = made(maker, *index)?;
        if let Some(remote) = &udp.remote {
            socket::connect(fd, remote).map_err(failed(socket, "connect"))?;
        }
        finish(fd, socket)?;
    }
    Ok(())
}

fn fill(
    maker: &mut Maker<'_>,
    index: usize,
    (socket, udp): (&Socket, &Udp),
    all: &[(usize, &Socket, &Udp)],
) -> Result<(), RestoreError> {
    let error = failed(socket, "fill the queue of");
    let Some(local) = &udp.local else { return Ok(()) };
    let mut passing: Option<(Vec<u8>, OwnedFd)> = None;
    if !udp.queue.is_empty() {
        let fd = made(maker, index)?;
        // What it had is set with the other options, at last.
        let _ = options::put(fd, SOL_SOCKET, libc::SO_RCVBUF, 64 << 20);
    }
    for message in &udp.queue {
        let from = message.from.as_deref().map_or(&[][..], |from| from);
        let to = destination(local, from);
        let sent = Sent { bytes: &message.bytes, to: &to, rights: Vec::new() };
        let theirs = endpoint(from);
        let of_image = all.iter().find(|(_, _, other)| {
            let own = other.local.as_deref().and_then(|local| endpoint(local));
            own.zip(theirs).is_some_and(|(own, theirs)| {
                own.1 == theirs.1 && (own.0 == theirs.0 || own.0 == [0; 16])
            })
        });
        let count = match of_image {
            Some((sender, ..)) => socket::send(made(maker, *sender)?, &sent),
            None => {
                if passing.as_ref().is_none_or(|(address, _)| address != from) {
                    passing = Some((from.to_vec(), sender(maker, socket, from)?));
                }
                match &passing {
                    Some((_, fd)) => socket::send(fd.as_fd(), &sent),
                    None => Err(Errno::ENOTCONN),
                }
            }
        };
        if count.map_err(&error)? != message.bytes.len() {
            return Err(error(Errno::EMSGSIZE));
        }
    }
    Ok(())
}

/// A socket of an address whose owner is gone.
fn sender(maker: &mut Maker<'_>, socket: &Socket, from: &[u8]) -> Result<OwnedFd, RestoreError> {
    let fd = plain(maker, socket.family, socket.kind, socket.protocol)?;
    let error = failed(socket, "send once more what waited in");
    for name in [SO_REUSEADDR, SO_REUSEPORT] {
        options::put(fd.as_fd(), SOL_SOCKET, name, 1).map_err(&error)?;
    }
    socket::bind(fd.as_fd(), from).map_err(&error)?;
    super::unix::raise(&fd);
    Ok(fd)
}

/// Where to send what is to arrive at `local`: one that is bound to any address is reached by the
/// sender's own.
fn destination(local: &[u8], from: &[u8]) -> Vec<u8> {
    let (mut to, offset) = (local.to_vec(), if local.len() == 16 { 4..8 } else { 8..24 });
    let any = local.get(offset.clone()).is_some_and(|bytes| bytes.iter().all(|it| *it == 0));
    let family = u16::from_ne_bytes([local[0], local[1]]);
    debug_assert!(offset.len() == 4 || i32::from(family) != AF_INET);
    if any && from.len() >= offset.end && local.len() >= offset.end {
        to[offset.clone()].copy_from_slice(&from[offset]);
    }
    to
}
