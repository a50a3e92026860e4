//! Queues of unix sockets, filled again by those who could have.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET};
use nix::errno::Errno;

use super::names;
use super::{bygone, failed, finish, list, made, of_maker, plain, unix};
use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{Detail, Message, Socket, Unix, UnixState};
use crate::save::state::FileKind;
use crate::sys::socket::{self, Sent};

/// Bytes of a message that fit into the maker's table beside all else.
const MOST: usize = 96 << 10;

/// Fills queues, closes ends whose time is over, and sets what is set last.
pub(super) fn fill(
    maker: &mut Maker<'_>,
    ends: HashMap<usize, OwnedFd>,
) -> Result<(), RestoreError> {
    let all = list(maker);
    let places: HashMap<u64, usize> = all.iter().map(|(index, it)| (it.id, *index)).collect();
    for (index, socket) in &all {
        let Detail::Unix(unix) = &socket.detail else { continue };
        if unix.queue.is_empty() {
            continue;
        }
        let from = match &unix.state {
            UnixState::Connected(peer) => places.get(peer).copied(),
            _ => None,
        };
        let peer = from.and_then(|from| all.iter().find(|(index, _)| *index == from));
        let mutual = peer.is_some_and(|(_, peer)| unix::is_pair(socket, peer));
        if socket.kind != SOCK_DGRAM || mutual || ends.contains_key(index) {
            let end = match (ends.get(index), from) {
                (Some(end), _) => Ok(end.as_fd().try_clone_to_owned()),
                (None, Some(from)) => made(maker, from).map(|fd| fd.try_clone_to_owned()),
                (None, None) => continue,
            };
            let end = end?.map_err(|error| RestoreError::failed("cannot copy a socket", error))?;
            fill_from_peer(maker, socket, &unix.queue, end.as_fd())?;
        } else {
            fill_from_names(maker, socket, unix)?;
        }
    }
    for (index, end) in ends {
        break_off(maker, index, end)?;
    }
    unix::connect_datagrams(maker, &all)?;
    bygone::connect_datagrams(maker, &all)?;
    for (index, socket) in &all {
        if matches!(socket.detail, Detail::Unix(_)) {
            finish(made(maker, *index)?, socket)?;
        }
    }
    Ok(())
}

/// Closes the other end of a socket. Who closes what has not been read to its end breaks the connection off
/// (unix_release_sock in net/unix/af_unix.c).
fn break_off(maker: &Maker<'_>, index: usize, end: OwnedFd) -> Result<(), RestoreError> {
    let file = maker.sandbox.files.get(index).map(|it| &it.kind);
    if let Some(FileKind::Socket(socket)) = file
        && let Detail::Unix(Unix { state: UnixState::Broken, .. }) = &socket.detail
    {
        let unread = Sent { bytes: &[0], ..Sent::default() };
        socket::send(made(maker, index)?, &unread).map_err(failed(socket, "break off"))?;
    }
    drop(end);
    Ok(())
}

fn fill_from_peer(
    maker: &mut Maker<'_>,
    socket: &Socket,
    queue: &[Message],
    end: BorrowedFd<'_>,
) -> Result<(), RestoreError> {
    unix::raise(end);
    let error = failed(socket, "fill the queue of");
    for message in queue {
        // (Of who is no process of the sandbox the sentry, which is none either, is told.)
        if matches!(message.credentials, Some((1.., ..))) && message.bytes.len() <= MOST {
            let number = maker.give(end).map_err(of_maker("cannot give a socket"))?;
            let sent = send_by_maker(maker, number, message, &[]);
            names::close(maker, number)?;
            sent.map_err(|it| RestoreError::failed("cannot fill the queue of a socket", it))?;
            continue;
        }
        let mut rest = &message.bytes[..];
        let mut rights = rights(maker, message)?;
        loop {
            let sent = Sent { bytes: rest, to: &[], rights: std::mem::take(&mut rights) };
            let count = socket::send(end, &sent).map_err(&error)?;
            rest = &rest[count.min(rest.len())..];
            if rest.is_empty() {
                break;
            }
            if socket.kind != SOCK_STREAM {
                return Err(error(Errno::EMSGSIZE));
            }
        }
    }
    Ok(())
}

fn rights<'a>(
    maker: &'a Maker<'_>,
    message: &Message,
) -> Result<Vec<BorrowedFd<'a>>, RestoreError> {
    message.rights.iter().map(|index| made(maker, *index as usize)).collect()
}

/// Messages that came from sockets with or without names of their own, which may be gone.
fn fill_from_names(
    maker: &mut Maker<'_>,
    socket: &Socket,
    unix: &Unix,
) -> Result<(), RestoreError> {
    if unix.name.is_none() {
        return Err(RestoreError::refused(
            "the image has messages for a unix socket that nobody can name",
        ));
    }
    let (to, directory) = names::reach(maker, unix).map_err(of_maker("cannot find a socket"))?;
    for message in &unix.queue {
        let sender = sender(maker, message)?;
        let fd = match sender {
            Some(index) => {
                let fd = made(maker, index)?.try_clone_to_owned();
                fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?
            }
            None => {
                let fd = plain(maker, socket.family, socket.kind, socket.protocol)?;
                if let Some(name) = passing_name(message) {
                    let named = bygone::give_name(maker, &fd, name)?;
                    named.map_err(of_maker("cannot name the sender of a message"))?;
                }
                fd
            }
        };
        unix::raise(&fd);
        let number = maker.give(fd).map_err(of_maker("cannot give a socket"))?;
        let sent = names::there(maker, directory.as_ref(), |maker| {
            send_by_maker(maker, number, message, &to)
        });
        names::close(maker, number)?;
        sent.map_err(|it| RestoreError::failed("cannot fill the queue of a socket", it))?;
    }
    Ok(())
}

/// The name of a sender that is gone, or outside.
fn passing_name(message: &Message) -> Option<&[u8]> {
    let name = message.from.as_ref()?.get(2..).filter(|name| !name.is_empty())?;
    let path = name.first().is_some_and(|first| *first != 0);
    let end = name.iter().position(|byte| path && *byte == 0).unwrap_or(name.len());
    Some(&name[..end])
}

/// The socket of the image that has the name of a message's sender.
fn sender(maker: &Maker<'_>, message: &Message) -> Result<Option<usize>, RestoreError> {
    let Some(from) = &message.from else { return Ok(None) };
    let all = list(maker);
    let same = |(_, socket): &&(usize, &Socket)| match &socket.detail {
        Detail::Unix(Unix { name: Some(name), .. }) => {
            socket.kind == SOCK_DGRAM && names::address(name)[..] == from[..]
        }
        _ => false,
    };
    Ok(all.iter().find(same).map(|(index, _)| *index))
}

/// Sends a message by the maker: to a path of the guest's view, and in the name of another process, which
/// root of the sandbox may (scm_check_creds in net/core/scm.c). A process that is gone, or none of the
/// sandbox's, is replaced by the maker.
fn send_by_maker(
    maker: &mut Maker<'_>,
    fd: i32,
    message: &Message,
    to: &[u8],
) -> Result<(), HandError> {
    let mut numbers = Vec::new();
    for index in &message.rights {
        let place = maker.files.get(*index as usize).and_then(|it| it.as_ref());
        let right = place.map(|it| it.try_clone());
        let Some(Ok(right)) = right else {
            return Err(HandError::Own("find a descriptor for a message", Errno::EBADF));
        };
        numbers.push(maker.give(right)?);
    }
    let mut sent = try_send(maker, fd, message, to, &numbers, message.credentials);
    if let (Err(error), Some((_, user, group))) = (&sent, message.credentials)
        && matches!(error.errno(), Some(Errno::ESRCH | Errno::EPERM))
    {
        let own = maker.hand.call(libc::SYS_getpid, [])? as i32;
        sent = try_send(maker, fd, message, to, &numbers, Some((own, user, group)));
    }
    for number in numbers {
        maker.hand.call(libc::SYS_close, [number as u64])?;
    }
    match sent? {
        count if count == message.bytes.len() => Ok(()),
        _ => Err(HandError::Own("send a whole message", Errno::EMSGSIZE)),
    }
}

fn try_send(
    maker: &mut Maker<'_>,
    fd: i32,
    message: &Message,
    to: &[u8],
    rights: &[i32],
    credentials: Option<(i32, u32, u32)>,
) -> Result<usize, HandError> {
    if message.bytes.len() > MOST {
        return Err(HandError::Own("send so large a message", Errno::EMSGSIZE));
    }
    let mut control = Vec::new();
    if !rights.is_empty() {
        let bytes: Vec<u8> = rights.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
        add_control(&mut control, libc::SCM_RIGHTS, &bytes);
    }
    if let Some((pid, user, group)) = credentials {
        let mut bytes = pid.to_ne_bytes().to_vec();
        bytes.extend(user.to_ne_bytes());
        bytes.extend(group.to_ne_bytes());
        add_control(&mut control, libc::SCM_CREDENTIALS, &bytes);
    }
    let words = |words: &[u64]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<u8>>();
    let mut table = maker.hand.table();
    let (bytes, name, extra) = (table.data(&message.bytes), table.data(to), table.data(&control));
    let vector = table.data(&words(&[bytes.address, message.bytes.len() as u64]));
    let name_at = if to.is_empty() { 0 } else { name.address };
    let control_at = if control.is_empty() { 0 } else { extra.address };
    // struct msghdr of a 64-bit kernel.
    let lengths =
        [name_at, to.len() as u64, vector.address, 1, control_at, control.len() as u64, 0];
    let header = table.data(&words(&lengths));
    let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;
    let call = table.call(libc::SYS_sendmsg, [fd as u64, header.address, flags]);
    let done = maker.hand.run(&table)?;
    let count = done.result(call).map_err(|errno| HandError::Own("send a message", errno))?;
    Ok(count as usize)
}

/// struct cmsghdr and what follows it.
fn add_control(control: &mut Vec<u8>, kind: i32, bytes: &[u8]) {
    control.extend((16 + bytes.len() as u64).to_ne_bytes());
    control.extend(SOL_SOCKET.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(bytes);
    control.resize(control.len().next_multiple_of(8), 0);
}
