//! What waits in sockets, looked at without taking it.

use std::os::fd::BorrowedFd;

use libc::{MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, SO_PASSCRED, SO_PEEK_OFF, SOL_SOCKET};
use nix::errno::Errno;

use crate::save::sockets::options;
use crate::sys::socket::{self, Received};

const PEEK: i32 = MSG_PEEK | MSG_DONTWAIT;

/// Room for a message at first.
const ROOM: usize = 256 << 10;

/// Puts an option back when it goes.
pub(super) struct Meanwhile<'f> {
    fd: BorrowedFd<'f>,
    name: i32,
    before: i32,
}

impl<'f> Meanwhile<'f> {
    /// Sets an option of SOL_SOCKET for a while.
    pub(super) fn set(fd: BorrowedFd<'f>, name: i32, value: i32) -> Result<Meanwhile<'f>, Errno> {
        let before = options::get(fd, SOL_SOCKET, name)?;
        options::put(fd, SOL_SOCKET, name, value)?;
        Ok(Meanwhile { fd, name, before })
    }

    /// What it was.
    pub(super) fn before(&self) -> i32 {
        self.before
    }
}

impl Drop for Meanwhile<'_> {
    fn drop(&mut self) {
        // What was read can be set; nobody could be told if not.
        let _ = options::put(self.fd, SOL_SOCKET, self.name, self.before);
    }
}

/// The messages of a socket of datagrams, in order.
///
/// An offset of SO_PEEK_OFF passes over whole messages (__skb_try_recv_from_queue in
/// net/core/datagram.c). A message without bytes is shown once only: the kernel marks it as seen for
/// those who peek by offset, here for good.
pub(super) fn messages(fd: BorrowedFd<'_>, sequenced: bool) -> Result<Vec<Received>, Errno> {
    let _offset = Meanwhile::set(fd, SO_PEEK_OFF, 0)?;
    // At its end a closed socket of this kind gives an empty message too, but one without credentials.
    let asked = match sequenced {
        true => Some(Meanwhile::set(fd, SO_PASSCRED, 1)?),
        false => None,
    };
    let hide = asked.as_ref().is_some_and(|asked| asked.before() == 0);
    let mut all = Vec::new();
    let (mut at, mut room) = (0usize, ROOM);
    loop {
        options::put(fd, SOL_SOCKET, SO_PEEK_OFF, at as i32)?;
        let mut message = match socket::receive(fd, room, PEEK | MSG_TRUNC) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::ENOTCONN) => return Ok(all),
            Err(errno) => return Err(errno),
        };
        if sequenced && message.length == 0 && message.credentials.is_none() {
            return Ok(all);
        }
        if message.length > room {
            room = message.length;
            continue;
        }
        if hide {
            message.credentials = None;
        }
        at += message.length;
        all.push(message);
    }
}

/// What waits in a stream of unix sockets, in pieces: descriptors come with the first byte of one.
pub(super) fn pieces(fd: BorrowedFd<'_>) -> Result<Vec<Received>, Errno> {
    let total = socket::to_read(fd)? as usize;
    let mut all = Vec::new();
    if total == 0 {
        return Ok(all);
    }
    let _offset = Meanwhile::set(fd, SO_PEEK_OFF, 0)?;
    let mut at = 0;
    while at < total {
        let mut piece = peek(fd, at, total - at)?;
        if piece.length == 0 {
            return Err(Errno::EIO);
        }
        let length = piece.length;
        if !piece.rights.is_empty() {
            let before = first_with_rights(fd, at, length)?;
            if before > 0 {
                let rest = piece.bytes.split_off(before);
                let credentials = piece.credentials;
                let front = Received { length: before, credentials, ..Received::default() };
                all.push(Received { bytes: std::mem::replace(&mut piece.bytes, rest), ..front });
                piece.length -= before;
            }
        }
        at += length;
        all.push(piece);
    }
    Ok(all)
}

fn peek(fd: BorrowedFd<'_>, at: usize, length: usize) -> Result<Received, Errno> {
    options::put(fd, SOL_SOCKET, SO_PEEK_OFF, at as i32)?;
    socket::receive(fd, length, PEEK)
}

/// Descriptors lie in the last of the buffers that one call gives bytes of, which may be several
/// (unix_stream_read_generic in net/unix/af_unix.c): how many bytes lie in front of it. A buffer that
/// cannot be copied as a whole does not count, so the last does not if there is room for all but a byte.
fn first_with_rights(fd: BorrowedFd<'_>, at: usize, length: usize) -> Result<usize, Errno> {
    options::put(fd, SOL_SOCKET, SO_PEEK_OFF, at as i32)?;
    match socket::peek_whole_buffers(fd, length - 1) {
        Err(Errno::EFAULT) => Ok(0),
        count => count,
    }
}
