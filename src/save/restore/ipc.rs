//! System V IPC and POSIX message queues, made again by the maker.
//!
//! **Numbers.** An object of System V gets the number that was written to /proc/sys/kernel/shm_next_id
//! (sem_, msg_) before (Linux 3.9, CONFIG_CHECKPOINT_RESTORE; ipc_permissions in ipc/ipc_sysctl.c asks for
//! CAP_CHECKPOINT_RESTORE in the user namespace that owns the IPC namespace). Which namespace is meant is
//! settled when the file is opened, by who opens it, so the maker must. In the guest's view /proc/sys is
//! covered by a read-only mount of itself; what lies below the cover is reached through a detached copy of
//! the mount of /proc alone (open_tree(2), OPEN_TREE_CLONE without AT_RECURSIVE), which the guests never
//! see. Making and removing objects until the number fits would need no privilege, but tens of
//! thousands of them.

use std::os::fd::OwnedFd;

use serde_bytes::ByteBuf;

use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::ipc::{Messages, Permissions, Queue, Segment, Semaphores};
use crate::save::restore::maker::{Maker, Sink};
use crate::save::state::SharedKind;

const HERE: u64 = libc::AT_FDCWD as i64 as u64;
const CREATE: u64 = (libc::IPC_CREAT | libc::IPC_EXCL) as u64;
/// include/uapi/linux/sem.h
const SETALL: u64 = 17;
/// include/linux/shm.h: a segment that goes with its last user; one that is locked into memory.
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;

/// Makes all of it.
pub fn restore(maker: &mut Maker<'_>) -> Result<(), RestoreError> {
    let ipc = &maker.sandbox.ipc;
    if !(ipc.memory.is_empty() && ipc.semaphores.is_empty() && ipc.messages.is_empty()) {
        let proc = open_proc(maker)?;
        for segment in &ipc.memory {
            let what = format!("the shared memory {}", segment.permissions.id);
            memory(maker, proc, segment, &what)?;
        }
        for semaphores in &ipc.semaphores {
            let what = format!("the semaphores {}", semaphores.permissions.id);
            set(maker, proc, semaphores, &what)?;
        }
        for messages in &ipc.messages {
            let what = format!("the message queue {}", messages.permissions.id);
            fill(maker, proc, messages, &what)?;
        }
        maker.hand.call(libc::SYS_close, [proc]).map_err(RestoreError::of("the maker"))?;
    }
    ipc.queues.iter().try_for_each(|it| queue(maker, it))
}

fn of(what: &str) -> impl Fn(HandError) -> RestoreError + '_ {
    move |error| RestoreError::failed(format!("cannot make {what} again"), error)
}

/// The root of a proc file system without the mounts that lie on it, for the maker.
fn open_proc(maker: &mut Maker<'_>) -> Result<u64, RestoreError> {
    let flags = u64::from(libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC);
    let opened = maker.hand.call_path(libc::SYS_open_tree, b"/proc", |at| [HERE, at, flags]);
    let opened = opened.or_else(|_| {
        // Something of /proc may be locked (mount_namespaces(7)): then it may do as it is.
        let flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
        maker.hand.call_path(libc::SYS_openat, b"/proc", |at| [HERE, at, flags, 0])
    });
    opened.map_err(|error| RestoreError::failed("cannot reach /proc/sys of the sandbox", error))
}

/// Makes the next object of `kind` ("shm", "sem", "msg") have this number.
fn choose(
    maker: &mut Maker<'_>,
    proc: u64,
    kind: &str,
    id: i32,
    what: &str,
) -> Result<(), RestoreError> {
    if id < 0 {
        return Err(RestoreError::refused(format!("the image is damaged: {what} cannot be")));
    }
    let path = format!("sys/kernel/{kind}_next_id");
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as u64;
    let open = |at| [proc, at, flags, 0];
    let fd = maker.hand.call_path(libc::SYS_openat, path.as_bytes(), open).map_err(|error| {
        let what = format!("cannot make {what} again: its number cannot be chosen (/proc/{path})");
        RestoreError::failed(what, error)
    })?;
    let text = id.to_string();
    let written =
        maker.hand.call_with(libc::SYS_write, text.as_bytes(), |at| [fd, at, text.len() as u64]);
    maker.hand.call(libc::SYS_close, [fd]).map_err(of(what))?;
    written.map(drop).map_err(of(what))
}

/// Whether the object has got its number.
fn check(made: u64, permissions: &Permissions, what: &str) -> Result<(), RestoreError> {
    if made == permissions.id as u64 {
        return Ok(());
    }
    Err(RestoreError::failed(format!("cannot make {what} again"), format!("it got number {made}")))
}

/// struct ipc64_perm with what IPC_SET takes, and behind it `words`.
fn status(permissions: &Permissions, words: &[u64]) -> Vec<u8> {
    let halves = [0, permissions.uid, permissions.gid, 0, 0, permissions.mode & 0o777];
    let mut bytes: Vec<u8> = halves.into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.resize(48, 0);
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    bytes.resize(128, 0);
    bytes
}

fn mode(permissions: &Permissions) -> u64 {
    CREATE | u64::from(permissions.mode & 0o777)
}

fn key(permissions: &Permissions) -> u64 {
    permissions.key as u32 as u64
}

fn memory(
    maker: &mut Maker<'_>,
    proc: u64,
    segment: &Segment,
    what: &str,
) -> Result<(), RestoreError> {
    let sandbox = maker.sandbox;
    let permissions = &segment.permissions;
    let id = permissions.id;
    let shared = sandbox.shared.get(segment.shared as usize);
    let shared = shared.filter(|shared| shared.kind == SharedKind::SystemV { id });
    let Some(shared) = shared else {
        return Err(RestoreError::refused(format!("the image is damaged: {what} has no content")));
    };
    choose(maker, proc, "shm", id, what)?;
    let arguments = [key(permissions), segment.size, mode(permissions)];
    let made = maker.hand.call(libc::SYS_shmget, arguments).map_err(of(what))?;
    check(made, permissions, what)?;
    let set = |at| [made, libc::IPC_SET as u64, at];
    maker.hand.call_with(libc::SYS_shmctl, &status(permissions, &[]), set).map_err(of(what))?;
    if permissions.mode & SHM_LOCKED != 0 {
        let lock = [made, libc::SHM_LOCK as u64, 0];
        maker.hand.call(libc::SYS_shmctl, lock).map_err(of(what))?;
    }
    // The maker keeps it attached until it ends: content gets there through its memory, and what is
    // marked for removal lasts until its users have it.
    let address = maker.hand.call(libc::SYS_shmat, [made, 0, 0]).map_err(of(what))?;
    let pid = maker.hand.tid();
    maker.sinks.insert(shared.object, Sink::Mapping { pid, address });
    if permissions.mode & SHM_DEST != 0 {
        let what = what.to_owned();
        maker.finishes.push(Box::new(move |maker| {
            let remove = [made, libc::IPC_RMID as u64, 0];
            maker.hand.call(libc::SYS_shmctl, remove).map(drop).map_err(of(&what))
        }));
    }
    Ok(())
}

fn set(
    maker: &mut Maker<'_>,
    proc: u64,
    semaphores: &Semaphores,
    what: &str,
) -> Result<(), RestoreError> {
    let permissions = &semaphores.permissions;
    choose(maker, proc, "sem", permissions.id, what)?;
    let arguments = [key(permissions), semaphores.values.len() as u64, mode(permissions)];
    let made = maker.hand.call(libc::SYS_semget, arguments).map_err(of(what))?;
    check(made, permissions, what)?;
    let values: Vec<u8> = semaphores.values.iter().flat_map(|it| it.to_ne_bytes()).collect();
    let all = |at| [made, 0, SETALL, at];
    maker.hand.call_with(libc::SYS_semctl, &values, all).map_err(of(what))?;
    let set = |at| [made, 0, libc::IPC_SET as u64, at];
    let set = maker.hand.call_with(libc::SYS_semctl, &status(permissions, &[]), set);
    set.map(drop).map_err(of(what))
}

fn fill(
    maker: &mut Maker<'_>,
    proc: u64,
    messages: &Messages,
    what: &str,
) -> Result<(), RestoreError> {
    let permissions = &messages.permissions;
    choose(maker, proc, "msg", permissions.id, what)?;
    let arguments = [key(permissions), mode(permissions)];
    let made = maker.hand.call(libc::SYS_msgget, arguments).map_err(of(what))?;
    check(made, permissions, what)?;
    for (number, text) in &messages.messages {
        let bytes = [&number.to_ne_bytes()[..], text].concat();
        let nowait = libc::IPC_NOWAIT as u64;
        let send = |at| [made, at, text.len() as u64, nowait];
        maker.hand.call_with(libc::SYS_msgsnd, &bytes, send).map_err(of(what))?;
    }
    // The sixth word behind the permissions is msg_qbytes. After the messages: there may be more in
    // it than it now takes.
    let bytes = status(permissions, &[0, 0, 0, 0, 0, messages.capacity]);
    let set = |at| [made, libc::IPC_SET as u64, at];
    maker.hand.call_with(libc::SYS_msgctl, &bytes, set).map(drop).map_err(of(what))
}

fn queue(maker: &mut Maker<'_>, queue: &Queue) -> Result<(), RestoreError> {
    let what = format!("the message queue /{}", String::from_utf8_lossy(&queue.name));
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut table = maker.hand.table();
    let name = table.string(&queue.name);
    let [most, size] = queue.limits;
    let limits: Vec<u8> =
        [0, most, size, 0, 0, 0, 0, 0].iter().flat_map(|it| it.to_ne_bytes()).collect();
    let limits = table.data(&limits);
    let open = [name.address, flags as u64, 0o600, limits.address];
    let place = table.call(libc::SYS_mq_open, open);
    let done = maker.hand.run(&table).map_err(of(&what))?;
    let fd = done.result(place).map_err(|errno| RestoreError::failed(&what, errno.desc()))?;
    for (priority, text) in &queue.messages {
        // (The kernel looks at the address of an empty one, too.)
        let bytes = [&text[..], &[0]].concat();
        let send = |at| [fd, at, text.len() as u64, u64::from(*priority), 0];
        maker.hand.call_with(libc::SYS_mq_timedsend, &bytes, send).map_err(of(&what))?;
    }
    let (uid, gid) = (u64::from(queue.uid), u64::from(queue.gid));
    maker.hand.call(libc::SYS_fchown, [fd, uid, gid]).map_err(of(&what))?;
    let mode = u64::from(queue.mode & 0o777);
    maker.hand.call(libc::SYS_fchmod, [fd, mode]).map_err(of(&what))?;
    maker.hand.call(libc::SYS_close, [fd]).map(drop).map_err(of(&what))
}

/// A descriptor of a POSIX message queue, as one that held it had it.
pub fn open_queue(
    maker: &mut Maker<'_>,
    name: &ByteBuf,
    flags: u32,
) -> Result<OwnedFd, RestoreError> {
    let what = format!("a descriptor of the message queue /{}", String::from_utf8_lossy(name));
    let kept = libc::O_ACCMODE | libc::O_NONBLOCK;
    let flags = u64::from(flags & kept as u32) | libc::O_CLOEXEC as u64;
    let open = |at| [at, flags, 0, 0];
    let fd = maker.hand.call_path(libc::SYS_mq_open, name, open).map_err(of(&what))?;
    maker.take_and_close(fd as i32).map_err(of(&what))
}

#[cfg(test)]
mod tests;
