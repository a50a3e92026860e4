//! Unix sockets, see unix(7).

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use libc::{SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET};
use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::ids::Ids;
use super::{Gathered, Whose, diag, queue, remember};
use crate::save::capture::collector::Passed;
use crate::save::error::SaveError;
use crate::save::sockets::{BoundFile, Message, Unix, UnixState};
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
    let entry = gathered.listing.get(&id).ok_or_else(|| {
        who.refuse(
            "a unix socket of another network namespace, which cannot be saved; close it first",
        )
    })?;
    let address = socket::name(fd).map_err(who.failed("ask the socket for its name"))?;
    let name = address.get(2..).filter(|name| !name.is_empty()).map(path_of);
    let state = state(who, (fd, id), kind, entry, gathered)?;
    let file = match &name {
        Some(path) if path.first().is_some_and(|first| *first != 0) => {
            let file = bound_file(who, fd, path, entry, gathered)?;
            can_be_bound(who, path, &file, gathered)?;
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
    Ok((Unix { name, file, state, queue, peer }, entry.shutdown))
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
        (_, Some(0)) => Ok(UnixState::Abandoned),
        (_, Some(peer)) => Ok(UnixState::Connected(u64::from(peer))),
        (ESTABLISHED, None) if connects => Ok(UnixState::Abandoned),
        (_, None) => Ok(UnixState::Unconnected),
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
    let translate = |(pid, uid, gid)| (Ids::process(pid), ids.user(uid), ids.group(gid));
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
            Ok((Ids::process(pid), gathered.ids().user(number(4)), gathered.ids().group(number(8))))
        }
    }
}

/// The file of its name. The kernel leads to it from the socket, whatever lies at that path now.
fn bound_file(
    who: &Whose,
    fd: BorrowedFd<'_>,
    path: &[u8],
    entry: &diag::Entry,
    gathered: &Gathered,
) -> Result<BoundFile, SaveError> {
    let file = match socket::bound_file(fd) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::EPERM | Errno::EACCES) => return found_by_path(who, path, entry, gathered),
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
) -> Result<BoundFile, SaveError> {
    let refuse = || {
        who.refuse(
            "a unix socket whose path cannot be found, which cannot be saved; close it first",
        )
    };
    if !path.starts_with(b"/") {
        return Err(refuse());
    }
    let gone = BoundFile {
        inode: entry.file.map_or((0, 0), |(inode, device)| (device.into(), inode.into())),
        path: None,
        mode: libc::S_IFSOCK | 0o777,
        owner: (0, 0),
    };
    let Some((wanted, _)) = entry.file else { return Ok(gone) };
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

/// Whoever restores it binds it by its name. Of a file that is gone nobody knows from which root directory that led.
fn can_be_bound(
    who: &Whose,
    path: &[u8],
    file: &BoundFile,
    gathered: &Gathered,
) -> Result<(), SaveError> {
    if file.path.is_some() || gathered.roots.is_empty() || !path.starts_with(b"/") {
        return Ok(());
    }
    let end = path.iter().rposition(|it| *it == b'/').unwrap_or(0).max(1);
    match in_view(&path[..end], gathered) {
        Some(Ok(_)) => Ok(()),
        _ => Err(who.refuse(
            "a unix socket whose file has been removed, and which a program with a root directory of its own \
             (chroot(2)) may have bound, which cannot be saved; close it first",
        )),
    }
}
