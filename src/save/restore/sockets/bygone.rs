//! Unix sockets whose names lead nowhere: their files have been removed, or are the host's; and those that were connected to
//! such ones, or are still, outside.
//!
//! What a socket tells of itself and of its peer (getsockname(2), getpeername(2)) is what bind(2) was told, wherever that led,
//! for as long as the socket is there: the peer may be gone (unix_getname, unix_stream_connect in net/unix/af_unix.c). So such a
//! name is given by the maker in a file system that is empty, and that nobody else ever sees.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::{AT_FDCWD, SOCK_DGRAM};
use nix::errno::Errno;

use super::{Entry, failed, made, make as make_one, names, of_maker, plain, unix};
use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{Detail, Socket, Unix, UnixState};
use crate::sys::socket;

/// Whether a socket has such a peer, whose name it is to tell. (What waits in one of datagrams that has no name itself
/// can only have come from the other one of a pair.)
pub(super) fn is_one(socket: &Socket) -> bool {
    let Detail::Unix(Unix { remote: Some(_), state, name, queue, .. }) = &socket.detail else {
        return false;
    };
    state.is_over()
        && match socket.kind {
            SOCK_DGRAM => name.is_some() || queue.is_empty(),
            _ => name.is_none(),
        }
}

fn remote(socket: &Socket) -> &[u8] {
    match &socket.detail {
        Detail::Unix(Unix { remote: Some(remote), .. }) => remote,
        _ => &[],
    }
}

/// A connection, and its other end. Where that cannot have its name (an abstract one that is in use in the host's network)
/// it has none.
pub(super) fn connected(
    maker: &mut Maker<'_>,
    socket: &Socket,
) -> Result<(OwnedFd, OwnedFd), RestoreError> {
    let Some((listening, address, _nowhere)) = bound(maker, socket)? else {
        return unix::pair(maker, socket, 0);
    };
    // The sentry is no process of the sandbox, nor was who had it listen (SO_PEERCRED).
    let error = failed(socket, "make an ended connection of");
    socket::listen(listening.as_fd(), 1).map_err(&error)?;
    let fd = make_one(maker, socket)?;
    socket::connect(fd.as_fd(), &address).map_err(&error)?;
    let end = socket::accept(listening.as_fd()).map_err(&error)?;
    Ok((fd, end))
}

/// Connects sockets of datagrams, once what waits in them is there. One outside is found again by its name, if programs can
/// see it by that; to any other nothing can be sent, as to one that was closed.
pub(super) fn connect_datagrams(
    maker: &mut Maker<'_>,
    all: &[Entry<'_>],
) -> Result<(), RestoreError> {
    for (index, socket) in all {
        if socket.kind != SOCK_DGRAM || !is_one(socket) {
            continue;
        }
        let fd = made(maker, *index)?.try_clone_to_owned();
        let fd = fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?;
        let is_outside =
            matches!(&socket.detail, Detail::Unix(it) if it.state == UnixState::Broken);
        if is_outside && is_found(maker, &fd, remote(socket))? {
            continue;
        }
        let Some((_bound, address, _nowhere)) = bound(maker, socket)? else { continue };
        socket::connect(fd.as_fd(), &address).map_err(failed(socket, "connect"))?;
    }
    Ok(())
}

/// Has the maker connect a socket, with the rights of a guest, to what has this name for guests. Whether it is connected.
fn is_found(maker: &mut Maker<'_>, fd: &OwnedFd, name: &[u8]) -> Result<bool, RestoreError> {
    // (A path may lead from anywhere.)
    if !matches!(name.first(), Some(b'/' | 0)) {
        return Ok(false);
    }
    let number = maker.give(fd).map_err(of_maker("cannot give a socket"))?;
    let address = names::address(name);
    let length = address.len() as u64;
    let done = maker.without_capabilities(|maker| {
        maker.hand.call_with(libc::SYS_connect, &address, |at| [number as u64, at, length])
    })?;
    names::close(maker, number)?;
    match done {
        Ok(_) => Ok(true),
        Err(HandError::Call(_)) => Ok(false),
        Err(error) => Err(of_maker("cannot connect a socket")(error)),
    }
}

/// A socket of the peer's name, the address by which the sentry reaches it, and where that leads. `None`: it cannot be had.
type Bound = Option<(OwnedFd, Vec<u8>, Option<Nowhere>)>;

fn bound(maker: &mut Maker<'_>, socket: &Socket) -> Result<Bound, RestoreError> {
    let name = remote(socket);
    let fd = plain(maker, socket.family, socket.kind, socket.protocol)?;
    match give_name(maker, &fd, name)? {
        Ok(Some(nowhere)) => Ok(Some((fd, by_handle(&nowhere.file), Some(nowhere)))),
        Ok(None) => Ok(Some((fd, names::address(name), None))),
        Err(HandError::Call(_) | HandError::Own(..)) => Ok(None),
        Err(error) => Err(of_maker("cannot name a socket's other end")(error)),
    }
}

/// Where a socket lies that has such a name: it can be reached for as long as this is there.
pub(super) struct Nowhere {
    /// A handle of its file.
    pub(super) file: OwnedFd,
    /// The directory that it is in, and what it is called there.
    pub(super) directory: OwnedFd,
    pub(super) last: Vec<u8>,
}

/// Gives a socket a name that it has only for others to be told. An abstract one is nowhere in particular.
pub(super) fn give_name(
    maker: &mut Maker<'_>,
    fd: &OwnedFd,
    name: &[u8],
) -> Result<Result<Option<Nowhere>, HandError>, RestoreError> {
    let address = names::address(name);
    if name.first() == Some(&0) {
        let bound = socket::bind(fd.as_fd(), &address).map(|()| None);
        return Ok(bound.map_err(|errno| HandError::Own("bind it", errno)));
    }
    maker.with_capabilities(|maker| {
        let number = maker.give(fd)?;
        let nowhere = apart(maker, |maker| {
            make_directories(maker, name)?;
            let length = address.len() as u64;
            maker.hand.call_with(libc::SYS_bind, &address, |at| [number as u64, at, length])?;
            let slash = name.iter().rposition(|it| *it == b'/');
            let (directory, last) = name.split_at(slash.map_or(0, |slash| slash + 1));
            let directory = if directory.is_empty() { b"." } else { directory };
            Ok(Nowhere {
                file: maker.open(name, libc::O_PATH | libc::O_NOFOLLOW, 0)?,
                directory: maker.open(directory, libc::O_PATH | libc::O_DIRECTORY, 0)?,
                last: last.to_vec(),
            })
        });
        maker.hand.call(libc::SYS_close, [number as u64])?;
        nowhere.map(Some)
    })
}

/// The address of a socket whose file this is.
pub(super) fn by_handle(file: &OwnedFd) -> Vec<u8> {
    names::address(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())
}

/// The directories on the way to a name.
fn make_directories(maker: &mut Maker<'_>, name: &[u8]) -> Result<(), HandError> {
    let mut table = maker.hand.table();
    for (at, _) in name.iter().enumerate().filter(|(at, byte)| *at > 0 && **byte == b'/') {
        let path = table.string(&name[..at]);
        // (It may be there: a//b, a/../b.)
        table.attempt(libc::SYS_mkdirat, [AT_FDCWD as u64, path.address, 0o700]);
    }
    match table.is_empty() {
        true => Ok(()),
        false => maker.hand.run(&table).map(drop),
    }
}

/// Has `work` done with the maker in a new file system of memory, which is its root and ends with it.
fn apart<T>(
    maker: &mut Maker<'_>,
    work: impl FnOnce(&mut Maker<'_>) -> Result<T, HandError>,
) -> Result<T, HandError> {
    let mounted = mounted(maker)?;
    let mut table = maker.hand.table();
    let (root, here) = (table.string(b"/"), table.string(b"."));
    let how = (libc::O_PATH | libc::O_DIRECTORY) as u64;
    let [old_root, old_home] =
        [root, here].map(|it| table.call(libc::SYS_openat, [AT_FDCWD as u64, it.address, how]));
    table.call(libc::SYS_fchdir, [mounted]);
    table.call(libc::SYS_chroot, [here.address]);
    let done = maker.hand.run(&table)?;
    let [old_root, old_home] = [old_root, old_home].map(|it| done.result(it).unwrap_or_default());
    let done = work(maker);
    let mut table = maker.hand.table();
    let here = table.string(b".");
    table.call(libc::SYS_fchdir, [old_root]);
    table.call(libc::SYS_chroot, [here.address]);
    table.call(libc::SYS_fchdir, [old_home]);
    for fd in [old_root, old_home, mounted] {
        table.call(libc::SYS_close, [fd]);
    }
    // (If it cannot come back, nothing that follows is right.)
    maker
        .hand
        .run(&table)
        .map_err(|_| HandError::Own("have the maker come back", Errno::ENOTDIR))?;
    done
}

/// A file system of memory that is mounted nowhere: a descriptor of the maker's.
fn mounted(maker: &mut Maker<'_>) -> Result<u64, HandError> {
    /// FSCONFIG_CMD_CREATE in include/uapi/linux/mount.h.
    const CREATE: u64 = 6;
    let context = maker.hand.call_path(libc::SYS_fsopen, b"tmpfs", |kind| [kind, 0])?;
    let made = maker.hand.call(libc::SYS_fsconfig, [context, CREATE, 0, 0, 0]);
    let mounted = made.and_then(|_| maker.hand.call(libc::SYS_fsmount, [context, 0, 0]));
    maker.hand.call(libc::SYS_close, [context])?;
    mounted
}
