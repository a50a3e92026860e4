//! Calls that change names: each is made in the directories that were judged, with the names that were judged.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::open::{Opened, open_to_cut};
use super::resolve::{Landing, Resolver, Start, Thing, look_up};
use super::{Guest, Paths, Verdict, is_dots, joined, mount_of, os, own, plain, take_umask};
use crate::sys::files::descriptor_path;
use crate::sys::generated;

/// A path of a guest's.
pub(in crate::sentry) type Spot<'p> = (Start, &'p [u8]);

/// What is made under a new name.
#[derive(Debug, Clone, Copy)]
pub(in crate::sentry) enum New<'n> {
    /// A directory.
    Directory(u32),
    /// A file, FIFO, socket or device: mode and device.
    Node(u32, u64),
    /// A symbolic link with this text.
    Link(&'n [u8]),
}

/// A name in a directory, judged.
struct Name {
    parent: OwnedFd,
    /// With the slashes behind it.
    name: Vec<u8>,
    path: Vec<u8>,
    verdict: Verdict,
    found: Option<Thing>,
    /// Something is mounted there.
    covered: bool,
}

impl Name {
    /// Whether it may be removed or renamed. That the kernel asks this of the caller's mount namespace
    /// (is_local_mountpoint in fs/mount.h), and the sentry is in another one: there nothing would hold what covers a
    /// name. No guest can mount anything or move what is mounted on, so the answer stays true.
    fn may_go(&self) -> Result<(), Errno> {
        self.verdict.permit(true)?;
        if self.covered { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn is_directory(&self) -> bool {
        self.found.as_ref().is_some_and(Thing::is_directory)
    }
}

impl Resolver<'_> {
    fn name(&self, (start, path): Spot<'_>) -> Result<Name, Errno> {
        let (parent, name) = self.parent(start, path)?;
        let plain = plain(&name);
        // Neither is made, removed or renamed: the kernel has an error for each call.
        if is_dots(plain) {
            let (path, verdict) = (Vec::new(), Verdict::Plain);
            return Ok(Name { parent, name, path, verdict, found: None, covered: false });
        }
        let path = joined(&self.view.path_of(&parent)?, plain);
        let found = match look_up(&parent, plain) {
            Ok(found) => Some(Thing::of(found)?),
            Err(Errno::ENOENT) => None,
            // What cannot be looked at cannot be judged, and may be another thing by the time of the call.
            Err(errno) => return Err(errno),
        };
        let covered = match &found {
            Some(found) => mount_of(&found.handle)? != mount_of(&parent)?,
            None => false,
        };
        let verdict = if covered { Verdict::Plain } else { self.of_path(&path) };
        Ok(Name { parent, name, path, verdict, found, covered })
    }
}

impl Paths {
    /// mkdir(2), mknod(2), symlink(2), and `then` something with what has been made.
    pub(in crate::sentry) fn make(
        &self,
        guest: Guest<'_>,
        at: Spot<'_>,
        new: New<'_>,
        then: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.with(guest, |resolver| {
            let Name { parent, name, verdict, .. } = resolver.name(at)?;
            verdict.permit(true)?;
            take_umask(guest.tid)?;
            let made = match new {
                New::Directory(mode) => {
                    mkdirat(parent.as_fd(), os(&name), Mode::from_bits_retain(mode & 0o7777))
                }
                New::Node(mode, device) => {
                    let kind = SFlag::from_bits_retain(mode & libc::S_IFMT);
                    let mode = Mode::from_bits_retain(mode & 0o7777);
                    mknodat(parent.as_fd(), os(&name), kind, mode, device)
                }
                New::Link([]) => Err(Errno::ENOENT),
                New::Link(text) => symlinkat(os(text), parent.as_fd(), os(&name)),
            };
            made.and_then(|()| then(&look_up(&parent, plain(&name))?))
        })
    }

    /// unlink(2), or with `directory` rmdir(2).
    pub(in crate::sentry) fn remove(
        &self,
        guest: Guest<'_>,
        at: Spot<'_>,
        directory: bool,
    ) -> Result<(), Errno> {
        self.with(guest, |resolver| {
            let at = resolver.name(at)?;
            at.may_go()?;
            let flag =
                if directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            unlinkat(at.parent.as_fd(), os(&at.name), flag)
        })
    }

    /// rename(2). EXDEV, which who moves things takes for copying them: rules are about what is in a directory by
    /// its path, and would say something else of it then.
    pub(in crate::sentry) fn rename(
        &self,
        guest: Guest<'_>,
        old: Spot<'_>,
        new: Spot<'_>,
        flags: u32,
    ) -> Result<(), Errno> {
        self.with(guest, |resolver| {
            let _turn = self.renames.lock().unwrap_or_else(PoisonError::into_inner);
            let (old, new) = (resolver.name(old)?, resolver.name(new)?);
            old.may_go()?;
            new.may_go()?;
            let exchanges = flags & libc::RENAME_EXCHANGE != 0;
            if !old.path.is_empty()
                && !new.path.is_empty()
                && !resolver.same_below(&old.path, &new.path)
                && (old.is_directory() || exchanges && new.is_directory())
            {
                return Err(Errno::EXDEV);
            }
            let flags = RenameFlags::from_bits_retain(flags);
            let (from, to) = (old.parent.as_fd(), new.parent.as_fd());
            renameat2(from, os(&old.name), to, os(&new.name), flags)
        })
    }

    /// link(2).
    pub(in crate::sentry) fn link(
        &self,
        guest: Guest<'_>,
        old: Spot<'_>,
        new: Spot<'_>,
        flags: i32,
    ) -> Result<(), Errno> {
        if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Err(Errno::EINVAL);
        }
        self.with(guest, |resolver| {
            let thing = match old {
                (Start::Descriptor(fd), []) if flags & libc::AT_EMPTY_PATH != 0 => {
                    Landing::Thing(resolver.descriptor(fd)?)
                }
                (start, path) => {
                    resolver.walk(start, path, flags & libc::AT_SYMLINK_FOLLOW != 0)?
                }
            };
            let new = resolver.name(new)?;
            match thing {
                Landing::Name { found: None, .. } => Err(Errno::ENOENT),
                Landing::Name { parent, name, found, .. } => {
                    resolver.verdict(&parent, &name, found.as_ref())?.permit(true)?;
                    new.verdict.permit(true)?;
                    let flags = AtFlags::empty();
                    linkat(parent.as_fd(), os(&name), new.parent.as_fd(), os(&new.name), flags)
                }
                Landing::Thing(thing) => {
                    resolver.verdict_of(&thing)?.permit(true)?;
                    new.verdict.permit(true)?;
                    // What a descriptor stands for gets a name by this path (open(2) on O_TMPFILE).
                    let path = descriptor_path(thing.handle.as_fd());
                    let flags = AtFlags::AT_SYMLINK_FOLLOW;
                    linkat(AT_FDCWD, &*path, new.parent.as_fd(), os(&new.name), flags)
                }
            }
        })
    }

    /// Whether something that has been found may be changed.
    pub(in crate::sentry) fn permit_change(
        &self,
        guest: Guest<'_>,
        found: &OwnedFd,
    ) -> Result<(), Errno> {
        let handle = found.try_clone().map_err(|_| Errno::EMFILE)?;
        self.with(guest, |resolver| resolver.verdict_of(&Thing::of(handle)?)?.permit(true))
    }

    /// Opens what truncate(2) is about, so that whoever holds a lease on it can be waited for; the caller cuts it.
    pub(in crate::sentry) fn truncate(
        &self,
        guest: Guest<'_>,
        (start, path): Spot<'_>,
        length: i64,
    ) -> Result<Opened, Errno> {
        if length < 0 {
            return Err(Errno::EINVAL);
        }
        let owner = self.owner(guest)?;
        let open = |resolver: &Resolver<'_>| {
            let (thing, verdict) = resolver.thing(start, path, true)?;
            verdict.permit(true)?;
            // A file that grows has a limit, which is the guest's, and the signal that goes with it would be sent to
            // the sentry (inode_newsize_ok in fs/attr.c).
            if length > thing.stat.st_size && length as u64 > largest(guest.tid)? {
                return Err(Errno::EFBIG);
            }
            if own::is_in_proc(&thing.handle) {
                return Err(Errno::EACCES);
            }
            // (vfs_truncate in fs/open.c.)
            match thing.kind() {
                libc::S_IFREG if resolver.lacks_content(&thing, true) => {
                    Ok(Opened::Lacking(thing.handle))
                }
                libc::S_IFREG => open_to_cut(thing, owner),
                libc::S_IFDIR => Err(Errno::EISDIR),
                _ => Err(Errno::EINVAL),
            }
        };
        self.complete(|| self.with(guest, open))
    }

    /// Whether a program may be executed, as far as rules go.
    pub(in crate::sentry) fn permit_program(
        &self,
        guest: Guest<'_>,
        (start, path): Spot<'_>,
        flags: i32,
    ) -> Result<(), Errno> {
        self.with(guest, |resolver| {
            let (_, verdict) = match start {
                Start::Descriptor(fd) if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 => {
                    let thing = resolver.descriptor(fd)?;
                    let verdict = resolver.verdict_of(&thing)?;
                    (thing, verdict)
                }
                _ => {
                    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
                    resolver.thing(start, path, follow)?
                }
            };
            verdict.permit(false)
        })
    }

    /// Whether rules are against what a stopped thread has just executed: the program, or what interprets it.
    pub(in crate::sentry) fn forbids_running(&self, tid: i32) -> bool {
        let Ok(maps) = generated::contents(format!("/proc/{tid}/maps")) else { return true };
        let guest = Guest { tid, is_valid: &|| true };
        let judged = self.with(guest, |resolver| {
            let forbids = |path: &[u8]| {
                let path = resolver.view.known(generated::unescape(path));
                resolver.of_path_or_removed(&path).permit(false).is_err()
            };
            Ok(maps.split(|byte| *byte == b'\n').filter_map(mapped).any(forbids))
        });
        judged.unwrap_or(true)
    }
}

/// The path in a line of `/proc/PID/maps`, if it is one (proc_pid_maps(5)).
fn mapped(line: &[u8]) -> Option<&[u8]> {
    let at = line.iter().position(|byte| *byte == b'/')?;
    Some(&line[at..])
}

impl Resolver<'_> {
    /// What a path leads to, and what rules say of it.
    fn thing(&self, start: Start, path: &[u8], follow: bool) -> Result<(Thing, Verdict), Errno> {
        match self.walk(start, path, follow)? {
            Landing::Thing(thing) => {
                let verdict = self.verdict_of(&thing)?;
                Ok((thing, verdict))
            }
            Landing::Name { found: None, .. } => Err(Errno::ENOENT),
            Landing::Name { parent, name, found: Some(thing), .. } => {
                let verdict = self.verdict(&parent, &name, Some(&thing))?;
                Ok((thing, verdict))
            }
        }
    }
}

/// How long a file of a guest thread may become (proc_pid_limits(5)), and of the sentry.
fn largest(tid: i32) -> Result<u64, Errno> {
    let text = generated::text(format!("/proc/{tid}/limits")).map_err(|_| Errno::ESRCH)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max file size"));
    let limit = line.and_then(|line| line.split_whitespace().next()).ok_or(Errno::EPROTO)?;
    let guests = limit.parse().unwrap_or(u64::MAX);
    Ok(getrlimit(Resource::RLIMIT_FSIZE)?.0.min(guests))
}
