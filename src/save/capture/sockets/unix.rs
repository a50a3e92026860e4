//! Unix sockets, see unix(7).

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use libc::{SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET};
use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::ids::Ids;
use super::{Around, Gathered, Held, Whose, diag, queue, remember};
use crate::save::capture::collector::Passed;
use crate::save::error::SaveError;
use crate::save::sockets::{BoundFile, Detail, Message, Socket, Unix, UnixState};
use crate::sys::socket::{self, Received};

/// include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// A socket, and which directions of it are closed.
pub(super) fn capture(
    who: &Whose,
    fd: BorrowedFd<'_>,
    id: u64,
    kind: i32,
    gathered: &Gathered,
    passed: &mut Vec<Passed>,
) -> Result<(Unix, u8), SaveError> {
    let entry = gathered.entry(id).ok_or_else(|| {
        who.refuse(
            "a unix socket of another network namespace, which cannot be saved; close it first",
        )
    })?;
    let address = socket::name(fd).map_err(who.failed("ask the socket for its name"))?;
    let name = address.get(2..).filter(|name| !name.is_empty()).map(path_of);
    let state = state(who, (fd, id), kind, entry, gathered)?;
    let remote = peer_name(fd).filter(|_| state.is_over() && is_told(kind, name.as_deref()));
    let file = match &name {
        Some(path) if path.first().is_some_and(|first| *first != 0) => {
            let listens = matches!(state, UnixState::Listening { .. } | UnixState::Unconnected);
            let is_found = listens || kind == SOCK_DGRAM;
            let file = bound_file((who, fd), path, entry, gathered, is_found)?;
            Some(file)
        }
        _ => None,
    };
    let queue = match state {
        UnixState::Listening { .. } => Vec::new(),
        _ => waiting(who, fd, kind, gathered, passed)?,
    };
    let peer = credentials(fd, gathered).ok();
    let name = name.map(ByteBuf::from);
    Ok((Unix { name, file, state, queue, peer, remote }, entry.shutdown))
}

/// What the other end is called; `None`: it has no name, or there is none.
fn peer_name(fd: BorrowedFd<'_>) -> Option<ByteBuf> {
    let address = socket::peer_name(fd).ok()?;
    let name = address.get(2..).filter(|name| !name.is_empty())?;
    Some(ByteBuf::from(path_of(name)))
}

/// Whether the name of an end that is gone is kept: not of a connection that has been accepted, which is accepted again
/// from the name that it has itself.
fn is_told(kind: i32, own: Option<&[u8]>) -> bool {
    kind == SOCK_DGRAM || own.is_none()
}

/// A socket whose other end is outside the sandbox: what becomes of it.
pub(super) fn part(held: &Held, socket: &mut Socket, around: &Around) -> Result<(), SaveError> {
    let Held { copy, who } = held;
    let fd = copy.as_fd();
    let Detail::Unix(unix) = &mut socket.detail else { return Ok(()) };
    let remote = peer_name(fd);
    if socket.kind != SOCK_DGRAM {
        refuse_if_strict(who, remote.as_ref().map(|it| &it[..]), around)?;
    }
    // What the other end has closed is read to its end, without an error.
    let is_ended = socket.kind != SOCK_DGRAM && socket.shutdown & 1 != 0;
    unix.state = if is_ended { UnixState::Abandoned } else { UnixState::Broken };
    let own = unix.name.as_ref().map(|it| &it[..]);
    unix.remote = remote.filter(|_| is_told(socket.kind, own));
    Ok(())
}

/// A connection that would be lost is a reason not to save it.
pub(super) fn refuse_if_strict(
    who: &Whose,
    remote: Option<&[u8]>,
    around: &Around,
) -> Result<(), SaveError> {
    if !around.strict {
        return Ok(());
    }
    let to = remote.map(|name| format!(" ({})", String::from_utf8_lossy(name).replace('\0', "@")));
    Err(who.refuse(format!(
        "a unix socket that is connected to a process outside the sandbox{}, which cannot be saved; close it first, or \
         save without --strict",
        to.unwrap_or_default()
    )))
}

/// A path ends at its zero, which is part of the address; an abstract name has its length.
fn path_of(name: &[u8]) -> Vec<u8> {
    match name.first() {
        Some(0) | None => name.to_vec(),
        Some(_) => name.iter().copied().take_while(|byte| *byte != 0).collect(),
    }
}

fn state(
    who: &Whose,
    (fd, id): (BorrowedFd<'_>, u64),
    kind: i32,
    entry: &diag::Entry,
    gathered: &Gathered,
) -> Result<UnixState, SaveError> {
    let connects = matches!(kind, SOCK_STREAM | SOCK_SEQPACKET);
    let waits = gathered.unaccepted.contains(&id);
    match (entry.state, entry.peer) {
        (LISTEN, _) => {
            // Nobody can tell any more whether they have sent something.
            if entry.pending.contains(&0) {
                return Err(who.refuse_for_now(
                    "a unix socket with a connection that nobody has accepted and whose maker is gone, \
                     which cannot be saved; try again when it has been accepted",
                ));
            }
            let pending = entry.pending.iter().map(|it| u64::from(*it)).collect();
            Ok(UnixState::Listening { backlog: entry.queues.1, pending })
        }
        // One that was closed is not forgotten by the other, but has no inode either.
        (ESTABLISHED, Some(0)) if connects && waits => {
            // What it has sent is charged to it until it is read (unix_outq_len in net/unix/af_unix.c).
            // Bytes in a connection that nobody has accepted can only be read by accepting it, which
            // cannot be undone.
            match socket::to_send(fd).map_err(who.failed("ask the socket"))? {
                0 => Ok(UnixState::Pending),
                _ => Err(who.refuse_for_now(
                    "a unix connection with data in it that nobody has accepted yet, which cannot be \
                     saved; try again when it has been accepted",
                )),
            }
        }
        // Who closes one end closes both directions of the other (unix_release_sock in net/unix/af_unix.c).
        (ESTABLISHED, Some(0)) if connects && entry.shutdown != 3 => {
            // So it is one that somebody outside has not accepted yet.
            let remote = peer_name(fd);
            refuse_if_strict(who, remote.as_ref().map(|it| &it[..]), &gathered.around)?;
            Ok(if entry.shutdown & 1 != 0 { UnixState::Abandoned } else { UnixState::Broken })
        }
        (_, Some(0)) if connects => broken_off(who, fd, kind),
        (_, Some(0)) => Ok(UnixState::Abandoned),
        (_, Some(peer)) => Ok(UnixState::Connected(u64::from(peer))),
        (ESTABLISHED, None) if connects => Ok(UnixState::Abandoned),
        (_, None) => Ok(UnixState::Unconnected),
    }
}

/// A connection whose other end has been closed: in the middle, if an error waits to be told.
fn broken_off(who: &Whose, fd: BorrowedFd<'_>, kind: i32) -> Result<UnixState, SaveError> {
    let events = socket::events(fd).map_err(who.failed("ask the socket"))?;
    match (events & libc::POLLERR, kind) {
        (0, _) => Ok(UnixState::Abandoned),
        // Whoever looks at its messages is told of the error, once (__skb_try_recv_datagram in net/core/datagram.c).
        (_, SOCK_SEQPACKET) => Err(who.refuse_for_now(
            "a unix socket of messages whose connection was broken off, of which nobody has been told yet, which \
             cannot be saved; receive from it first",
        )),
        _ => Ok(UnixState::Broken),
    }
}

fn waiting(
    who: &Whose,
    fd: BorrowedFd<'_>,
    kind: i32,
    gathered: &Gathered,
    passed: &mut Vec<Passed>,
) -> Result<Vec<Message>, SaveError> {
    if kind == SOCK_STREAM {
        let urgent = socket::receive(fd, 1, libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT);
        if urgent.is_ok_and(|urgent| urgent.length > 0) {
            return Err(
                who.refuse_for_now("urgent data in a socket, which cannot be saved; read it first")
            );
        }
    }
    let found = match kind {
        SOCK_STREAM => queue::pieces(fd),
        kind => queue::messages(fd, kind == SOCK_SEQPACKET),
    };
    let found = found.map_err(who.failed("look at what waits in the socket"))?;
    let ids = gathered.ids();
    Ok(found.into_iter().map(|it| message(it, ids, passed)).collect())
}

fn message(received: Received, ids: &Ids, passed: &mut Vec<Passed>) -> Message {
    let Received { bytes, from, rights, credentials, .. } = received;
    let translate = |(pid, uid, gid)| (ids.process(pid), ids.user(uid), ids.group(gid));
    let mut message = Message {
        bytes: ByteBuf::from(bytes),
        // Without a name there is only the family.
        from: (from.len() > 2).then(|| ByteBuf::from(from)),
        rights: Vec::new(),
        credentials: credentials.map(translate),
    };
    remember(passed, &mut message, rights);
    message
}

fn credentials(fd: BorrowedFd<'_>, gathered: &Gathered) -> Result<(i32, u32, u32), Errno> {
    let bytes = socket::option(fd, SOL_SOCKET, libc::SO_PEERCRED, 12)?;
    let number = |at: usize| bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
    let number = |at| number(at).map_or(0, u32::from_ne_bytes);
    match number(0) as i32 {
        0 => Err(Errno::ENOTCONN),
        pid => {
            let ids = gathered.ids();
            Ok((ids.process(pid), ids.user(number(4)), ids.group(number(8))))
        }
    }
}

/// The file of its name. The kernel leads to it from the socket, whatever lies at that path now. `is_found`: others find it
/// by that, as nobody does a connection.
fn bound_file(
    (who, fd): (&Whose, BorrowedFd<'_>),
    path: &[u8],
    entry: &diag::Entry,
    gathered: &Gathered,
    is_found: bool,
) -> Result<BoundFile, SaveError> {
    let file = match socket::bound_file(fd) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::EPERM | Errno::EACCES) => {
            return found_by_path(who, path, entry, gathered, is_found);
        }
        Err(errno) => return Err(who.failed("find the file of the socket's name")(errno)),
    };
    let about = file.metadata();
    let about =
        about.map_err(|error| SaveError::failed("cannot look at a socket's file", error))?;
    // The path up to the root of the guest's mount namespace (prepend_path in fs/d_path.c).
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()));
    let link = link.map_err(|error| SaveError::failed("cannot name a socket's file", error))?;
    let link = link.as_os_str().as_bytes().to_vec();
    let removed = about.nlink() == 0 || link.ends_with(b" (deleted)");
    Ok(describe(&about, (!removed).then_some(link), gathered))
}

fn describe(about: &std::fs::Metadata, path: Option<Vec<u8>>, gathered: &Gathered) -> BoundFile {
    BoundFile {
        inode: (about.dev(), about.ino()),
        path: path.map(ByteBuf::from),
        mode: about.mode(),
        owner: (gathered.ids().user(about.uid()), gathered.ids().group(about.gid())),
    }
}

/// In the host's network namespace only the host's root is led to the file: it must still be where it was.
fn found_by_path(
    who: &Whose,
    path: &[u8],
    entry: &diag::Entry,
    gathered: &Gathered,
    is_found: bool,
) -> Result<BoundFile, SaveError> {
    let refuse = || {
        who.refuse(
            "a unix socket whose path cannot be found, which cannot be saved; close it first",
        )
    };
    let gone = BoundFile {
        inode: entry.file.map_or((0, 0), |(inode, device)| (device.into(), inode.into())),
        path: None,
        mode: libc::S_IFSOCK | 0o777,
        owner: (0, 0),
    };
    let Some((wanted, _)) = entry.file else { return Ok(gone) };
    match path.first() {
        Some(b'/') => {}
        _ if is_found => return Err(refuse()),
        _ => return Ok(gone),
    }
    let roots = std::iter::once(&[][..]).chain(gathered.roots.iter().map(Vec::as_slice));
    for path in roots.map(|root| [root, path].concat()) {
        let Ok(file) = in_view(&path, gathered).ok_or_else(refuse)? else { continue };
        let about = std::fs::File::from(file).metadata();
        let about =
            about.map_err(|error| SaveError::failed("cannot look at a socket's file", error))?;
        if u64::from(wanted) == about.ino() & 0xffff_ffff {
            return Ok(describe(&about, Some(path), gathered));
        }
    }
    Ok(gone)
}

/// Opens what has an absolute path in the guests' view. None: that view is not known.
fn in_view(path: &[u8], gathered: &Gathered) -> Option<Result<OwnedFd, Errno>> {
    let how = nix::fcntl::OpenHow::new()
        .flags(nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC)
        .resolve(nix::fcntl::ResolveFlag::RESOLVE_IN_ROOT);
    let root = gathered.root.as_ref()?;
    Some(nix::fcntl::openat2(root, OsStr::from_bytes(path), how))
}
