//! Whose call it is: what procfs shows to that guest, and what it may look at there.
//!
//! `self` stands for whoever looks, and the sentry is in another pid namespace. The kernel asks for no more than
//! the owner of the guests' user namespace to let somebody look into a process of it (ptrace_may_access in
//! kernel/ptrace.c): that is the sentry, so here is asked what would be asked of a guest.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OpenHow, openat2};
use nix::sys::stat::fstat;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::resolve::{Resolver, Thing, open_in, patient, text_of};
use super::{HANDLE, joined, os};
use crate::sys::disguise::Owner;
use crate::sys::{files, generated};

/// Where a symbolic link leads.
pub(super) enum Link {
    /// To this path.
    Text(Vec<u8>),
    /// To this, whatever its path is.
    Thing(Thing),
}

/// PROC_ROOT_INO of include/linux/proc_fs.h.
const PROC_ROOT: u64 = 1;

/// Of another process's directory in procfs: what tells of its memory, its files and its way.
const PRIVATE: [&[u8]; 15] = [
    b"fd",
    b"fdinfo",
    b"map_files",
    b"ns",
    b"cwd",
    b"root",
    b"exe",
    b"mem",
    b"environ",
    b"maps",
    b"smaps",
    b"smaps_rollup",
    b"numa_maps",
    b"pagemap",
    b"auxv",
];

/// Tables of the kernel that are those of whoever looks them up: the sentry would show the host's.
/// (Their tables are chosen at open: sysvipc_proc_open in ipc/util.c, set_lookup in ipc/ipc_sysctl.c.)
const OF_NAMESPACES: [&[u8]; 16] = [
    b"/proc/sys/net",
    b"/proc/sys/user",
    b"/proc/sys/fs/mqueue",
    b"/proc/sysvipc",
    b"/proc/sys/kernel/shmmax",
    b"/proc/sys/kernel/shmall",
    b"/proc/sys/kernel/shmmni",
    b"/proc/sys/kernel/shm_rmid_forced",
    b"/proc/sys/kernel/msgmax",
    b"/proc/sys/kernel/msgmni",
    b"/proc/sys/kernel/msgmnb",
    b"/proc/sys/kernel/auto_msgmni",
    b"/proc/sys/kernel/sem",
    b"/proc/sys/kernel/sem_next_id",
    b"/proc/sys/kernel/msg_next_id",
    b"/proc/sys/kernel/shm_next_id",
];

/// The value of a field of a file like `/proc/PID/status`.
pub(super) fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Who a process is to files (proc_pid_status(5): real, effective, saved, and the one that counts for files).
pub(super) fn owner(status: &str) -> Option<Owner> {
    Some(Owner {
        uid: *ids(status, "Uid")?.get(3)?,
        gid: *ids(status, "Gid")?.get(3)?,
        groups: ids(status, "Groups")?,
    })
}

fn ids(status: &str, name: &str) -> Option<Vec<u32>> {
    field(status, name)?.split_whitespace().map(|word| word.parse().ok()).collect()
}

/// The user of a guest thread, as the host numbers it.
pub(super) fn user(tid: i32) -> Result<u32, Errno> {
    owner(&status(tid)?).map(|owner| owner.uid).ok_or(Errno::EPROTO)
}

/// What proc_pid_status(5) says of a thread.
pub(super) fn status(tid: i32) -> Result<String, Errno> {
    generated::text(format!("/proc/{tid}/status")).map_err(|_| Errno::ESRCH)
}

/// Whether links in directories like /tmp are protected on this host.
pub(super) fn protects_links() -> bool {
    static PROTECTS: OnceLock<bool> = OnceLock::new();
    *PROTECTS.get_or_init(|| {
        let text = generated::text("/proc/sys/fs/protected_symlinks");
        text.map_or(true, |text| text.trim() != "0")
    })
}

/// Whether what is in a directory may be opened by a call that would also make it: not what others have put into a
/// directory like /tmp, for who does not expect it there (may_create_in_sticky in fs/namei.c).
pub(super) fn may_take(
    resolver: &Resolver<'_>,
    parent: &OwnedFd,
    found: &Thing,
) -> Result<(), Errno> {
    let directory = fstat(parent)?;
    if directory.st_mode & libc::S_ISVTX == 0 || found.stat.st_uid == directory.st_uid {
        return Ok(());
    }
    let level = protection(found.kind());
    match takes_from_others(level, directory.st_mode) && user(resolver.tid)? != found.stat.st_uid {
        true => Err(Errno::EACCES),
        false => Ok(()),
    }
}

/// How far this host protects files of this type so (proc_sys_fs(5), fs.protected_fifos and fs.protected_regular).
fn protection(kind: u32) -> u32 {
    static LEVELS: [OnceLock<u32>; 2] = [const { OnceLock::new() }; 2];
    let (at, name) = match kind {
        libc::S_IFIFO => (0, "fifos"),
        libc::S_IFREG => (1, "regular"),
        _ => return 0,
    };
    *LEVELS[at].get_or_init(|| {
        let text = generated::text(format!("/proc/sys/fs/protected_{name}")).unwrap_or_default();
        // (Most kernels let root alone read them: namei_sysctls in fs/namei.c. What they say then is mostly this.)
        text.trim().parse().unwrap_or(1)
    })
}

fn takes_from_others(level: u32, mode: u32) -> bool {
    level >= 1 && mode & libc::S_IWOTH != 0 || level >= 2 && mode & libc::S_IWGRP != 0
}

/// Where a link leads that was found by this name.
pub(super) fn link(
    resolver: &Resolver<'_>,
    at: &OwnedFd,
    name: &[u8],
    found: &Thing,
) -> Result<Link, Errno> {
    if !is_in_proc(&found.handle) {
        return text_of(&found.handle).map(Link::Text);
    }
    if fstat(at)?.st_ino == PROC_ROOT {
        let (process, thread) = numbers(&status(resolver.tid)?)?;
        return match name {
            b"self" => Ok(Link::Text(process.to_string().into())),
            b"thread-self" => Ok(Link::Text(format!("{process}/task/{thread}").into())),
            _ => text_of(&found.handle).map(Link::Text),
        };
    }
    let path = resolver.view.path_of(at)?;
    let whole = joined(&path, name);
    may_look(resolver, &whole)?;
    if process_of(&path).is_none() {
        return text_of(&found.handle).map(Link::Text);
    }
    let how = OpenHow::new().flags(HANDLE);
    Thing::of(patient(|| openat2(at.as_fd(), os(name), how))?).map(Link::Thing)
}

pub(super) fn is_in_proc(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|it| it.filesystem_type() == PROC_SUPER_MAGIC)
}

/// Process and thread as they know themselves.
fn numbers(status: &str) -> Result<(i32, i32), Errno> {
    let last = |name: &str| field(status, name)?.split_whitespace().next_back()?.parse().ok();
    last("NStgid").zip(last("NSpid")).ok_or(Errno::EPROTO)
}

/// The process whose directory a path of procfs is in, and what follows.
fn process_of(path: &[u8]) -> Option<(i32, Vec<&[u8]>)> {
    let mut parts = path.strip_prefix(b"/proc/")?.split(|byte| *byte == b'/');
    let number = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    Some((number, parts.collect()))
}

/// Whether a guest may see what is at this path of procfs, as far as the sentry could and it could not.
pub(super) fn may_look(resolver: &Resolver<'_>, path: &[u8]) -> Result<(), Errno> {
    if !path.starts_with(b"/proc/") && path != b"/proc" {
        return may_look_elsewhere(below_root(resolver, path).unwrap_or(path));
    }
    let is_at = |place: &&[u8]| {
        path.strip_prefix(*place).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    if OF_NAMESPACES.iter().any(is_at) {
        return Err(Errno::ENOENT);
    }
    let Some((number, parts)) = process_of(path) else { return Ok(()) };
    let parts = match &parts[..] {
        [b"task", _, rest @ ..] => rest,
        parts => parts,
    };
    let Some(part) = parts.first().filter(|part| PRIVATE.contains(*part)) else { return Ok(()) };
    let mine = status(resolver.tid)?;
    if numbers(&mine)?.0 == number {
        return Ok(());
    }
    other_process(resolver, &mine, number, *part == b"mem")
}

/// What of a path is below the root of the procfs that it leads into, where that can be found.
fn below_root<'p>(resolver: &Resolver<'_>, path: &'p [u8]) -> Option<&'p [u8]> {
    let slashes = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    let is_root = |end: &usize| {
        let found = open_in(&resolver.view.handle, &path[..*end]);
        found.is_ok_and(|it| is_in_proc(&it) && fstat(&it).is_ok_and(|it| it.st_ino == PROC_ROOT))
    };
    let mut ends = slashes.map(|(at, _)| at).chain([path.len()]);
    ends.find(is_root).map(|end| &path[end..])
}

/// The same where procfs is at another place: nothing tells whose processes its numbers mean, so what is private is
/// nobody's.
fn may_look_elsewhere(path: &[u8]) -> Result<(), Errno> {
    let of_namespaces = |place: &&[u8]| {
        let place = [&place[b"/proc".len()..], b"/"].concat();
        let path = joined(path, b"");
        path.windows(place.len()).any(|part| part == place)
    };
    if OF_NAMESPACES.iter().any(of_namespaces) {
        return Err(Errno::ENOENT);
    }
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let is_private = |pair: &[&[u8]]| {
        !pair[0].is_empty() && pair[0].iter().all(u8::is_ascii_digit) && PRIVATE.contains(&pair[1])
    };
    if parts.windows(2).any(is_private) { Err(Errno::EACCES) } else { Ok(()) }
}

/// What ptrace_may_access asks of a guest whose status is `mine`: the same user throughout, a process that may be looked
/// at, and for its memory what Yama asks (proc_sys_kernel(5), ptrace_scope) as far as it can be told: its tracer.
fn other_process(
    resolver: &Resolver<'_>,
    mine: &str,
    number: i32,
    memory: bool,
) -> Result<(), Errno> {
    let place = format!("proc/{number}");
    let proc = open_in(&resolver.view.handle, place.as_bytes())?;
    let how = OpenHow::new().flags(HANDLE);
    let handle = patient(|| openat2(proc.as_fd(), "status", how))?;
    let theirs = generated::text(&*files::descriptor_path(handle.as_fd()).to_string_lossy());
    let theirs = theirs.map_err(|_| Errno::ESRCH)?;
    let (own_number, _) = numbers(mine)?;
    let number_of =
        |name: &str| field(&theirs, name)?.split_whitespace().next()?.parse::<i32>().ok();
    // (The number may be a thread's.)
    if number_of("Tgid") == Some(own_number) {
        return Ok(());
    }
    let same = |name: &str| {
        let own = ids(mine, name)?.get(3).copied()?;
        Some(ids(&theirs, name)?.iter().take(3).all(|id| *id == own))
    };
    // What belongs to a process that may not be looked at belongs to root (proc_pid(5)), which is what root's guests
    // are, too. Init and keepers run the sandbox's own program.
    // (Directories that all may enter are the user's in any case: task_dump_owner in fs/proc/base.c.)
    let is_open = fstat(&handle)?.st_uid == owner(mine).ok_or(Errno::EPROTO)?.uid;
    let program = fstat(patient(|| openat2(proc.as_fd(), "exe", how))?)?;
    let is_guest = number != 1 && !is_own_program((program.st_dev, program.st_ino));
    if same("Uid") != Some(true) || same("Gid") != Some(true) || !is_guest || !is_open {
        return Err(Errno::EACCES);
    }
    if memory && number_of("TracerPid") != Some(own_number) && restricts_tracing() {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// Whether this is the program that the sentry is.
fn is_own_program(program: (u64, u64)) -> bool {
    let own = nix::sys::stat::stat("/proc/self/exe");
    own.is_ok_and(|own| (own.st_dev, own.st_ino) == program)
}

fn restricts_tracing() -> bool {
    let scope = generated::text("/proc/sys/kernel/yama/ptrace_scope");
    scope.is_ok_and(|scope| scope.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_directories_are_protected_as_far_as_the_host_says() {
        let of = |level, mode| takes_from_others(level, libc::S_ISVTX | mode);
        assert!(!of(0, 0o777) && of(1, 0o777) && of(2, 0o777));
        assert!(!of(1, 0o775) && of(2, 0o775));
        assert!(!of(2, 0o755));
        assert!(protection(libc::S_IFDIR) == 0 && protection(libc::S_IFREG) <= 2);
    }

    #[test]
    fn what_is_private_stays_so_in_a_procfs_at_another_place() {
        let of = |path: &str| may_look_elsewhere(path.as_bytes());
        assert_eq!(of("/root/tree/proc/cpuinfo"), Ok(()));
        assert_eq!(of("/tree/proc/12/status"), Ok(()));
        assert_eq!(of("/tree/proc/12/mem"), Err(Errno::EACCES));
        assert_eq!(of("/tree/proc/12/task/13/fd/1"), Err(Errno::EACCES));
        assert_eq!(of("/tree/proc/sys/net/core/somaxconn"), Err(Errno::ENOENT));
        assert_eq!(of("/tree/p/sysvipc"), Err(Errno::ENOENT));
        assert_eq!(of("/tree/proc/sys/network"), Ok(()));
    }
}
