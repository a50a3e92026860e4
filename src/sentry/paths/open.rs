//! open(2) at the end of a path: do_open and open_last_lookups in fs/namei.c.
//!
//! What is there is opened by its handle, so that it is what was judged; what is not there is made under the name
//! that was judged. Nothing here waits for another guest: a FIFO's other end, and who holds a
//! lease, are waited for by an [`Opening`].

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat2};
use nix::sys::stat::Mode;

use super::own;
use super::resolve::{Landing, Resolver, Start, Thing, patient};
use super::{Guest, Paths, Verdict, os, take_umask};
use crate::sentry::stat::Stat;
use crate::sys::disguise::{Disguise, Owner};
use crate::sys::files::descriptor_path;
use crate::sys::opening::Opening;

/// How something is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    flags: i32,
    mode: u32,
}

/// What became of it.
#[derive(Debug)]
pub enum Opened {
    /// It is open.
    Now(OwnedFd),
    /// It is open, and has been made.
    New(OwnedFd),
    /// It is when this is done.
    Later(Opening),
    /// It is not: its content has to be fetched before.
    Lacking(OwnedFd),
}

/// The flags that openat(2) knows; it takes no notice of others (VALID_OPEN_FLAGS in include/linux/fcntl.h), to
/// openat2(2) they are an error. Without O_PATH, which is not for us, and FASYNC.
const KNOWN: i32 = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_ASYNC
    | libc::O_DIRECT
    | libc::O_LARGEFILE
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | TMPFILE;

/// __O_TMPFILE of include/uapi/asm-generic/fcntl.h: O_TMPFILE is this and O_DIRECTORY.
const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// S_IALLUGO of include/linux/stat.h.
const MODES: u32 = 0o7777;

/// The device that stands for the terminal of whoever opens it (tty(4)): major and minor number.
const TERMINAL: (u64, u64) = (5, 0);
/// /dev/net/tun (Documentation/admin-guide/devices.txt).
const TUN: (u64, u64) = (10, 200);

/// A name that comes and goes while it is opened is tried so often.
const ATTEMPTS: usize = 100;

impl Wish {
    /// What open(2) is asked with these registers. `None`: it is not asked to open, but to give a handle (O_PATH).
    ///
    /// # Errors
    /// EINVAL, as build_open_flags in fs/open.c says it.
    pub fn of(flags: i32, mode: u32) -> Result<Option<Wish>, Errno> {
        if flags & libc::O_PATH != 0 {
            return Ok(None);
        }
        let flags = flags & KNOWN;
        let wish = Wish { flags, mode: mode & MODES };
        if wish.has(TMPFILE) {
            if !wish.has(libc::O_DIRECTORY) || !wish.writes() {
                return Err(Errno::EINVAL);
            }
        } else if wish.has(libc::O_CREAT) && wish.has(libc::O_DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        Ok(Some(wish))
    }

    fn has(self, flag: i32) -> bool {
        self.flags & flag == flag
    }

    fn writes(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether it is about what is in a file, and not about a directory or a file without a name.
    pub(in crate::sentry) fn is_plain(self) -> bool {
        !self.has(libc::O_DIRECTORY) && !self.has(TMPFILE)
    }

    pub(super) fn reads(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    /// Whether there must be nothing yet.
    pub(super) fn is_exclusive(self) -> bool {
        self.creates() && self.has(libc::O_EXCL)
    }

    /// With these a new file is made.
    pub(super) fn making(self) -> OFlag {
        // Somebody else's link or file under that name is not ours to open.
        self.flags(libc::O_NOFOLLOW) | OFlag::O_EXCL
    }

    pub(super) fn mode(self) -> Mode {
        Mode::from_bits_retain(self.mode)
    }

    pub(in crate::sentry) fn changes(self) -> bool {
        self.writes() || self.has(libc::O_TRUNC) || self.has(TMPFILE)
    }

    pub(in crate::sentry) fn creates(self) -> bool {
        self.has(libc::O_CREAT) && !self.has(TMPFILE)
    }

    /// Whether the descriptor closes on exec is for who installs it.
    fn flags(self, without: i32) -> OFlag {
        // The sentry does not want the guests' terminals for its own (O_NOCTTY).
        OFlag::from_bits_retain(self.flags & !without | libc::O_CLOEXEC | libc::O_NOCTTY)
    }
}

impl Paths {
    /// Opens what a guest's path leads to, and does something with it `then` if it has been made.
    pub(in crate::sentry) fn open(
        &self,
        guest: Guest<'_>,
        start: Start,
        path: &[u8],
        wish: Wish,
        then: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<Opened, Errno> {
        let owner = self.owner(guest)?;
        let opened =
            self.complete(|| self.with(guest, |resolver| resolver.open(start, path, wish, owner)))?;
        match opened {
            // (What has been made, is given away with the guest's rights, too.)
            Opened::New(made) => self.with(guest, |_| then(&made).map(|()| Opened::Now(made))),
            opened => Ok(opened),
        }
    }

    /// Opens a file, again once its content is there. Every file lacks it once at most.
    pub(super) fn complete(
        &self,
        open: impl Fn() -> Result<Opened, Errno>,
    ) -> Result<Opened, Errno> {
        loop {
            match (open()?, &self.content) {
                (Opened::Lacking(file), Some(content)) => content.fetch(file.as_fd())?,
                (opened, _) => return Ok(opened),
            }
        }
    }
}

impl Resolver<'_> {
    /// Opens what a path leads to, with the rights of this thread, or later of `owner`.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(
        &self,
        start: Start,
        path: &[u8],
        wish: Wish,
        owner: Option<&Owner>,
    ) -> Result<Opened, Errno> {
        let exclusive = wish.creates() && wish.has(libc::O_EXCL);
        let follow = !wish.has(libc::O_NOFOLLOW) && !exclusive;
        for _ in 0..ATTEMPTS {
            let landing = match wish.creates() {
                true => self.walk_to_make(start, path, follow)?,
                false => self.walk(start, path, follow)?,
            };
            let (parent, name, slash, found) = match landing {
                Landing::Thing(thing) => {
                    let verdict = self.verdict_of(&thing)?;
                    return self.open_thing(None, thing, verdict, wish, owner);
                }
                Landing::Name { parent, name, slash, found } => (parent, name, slash, found),
            };
            if wish.creates() && slash {
                return Err(Errno::EISDIR);
            }
            let verdict = self.verdict(&parent, &name, found.as_ref())?;
            if let Some(thing) = found {
                return self.open_thing(Some(&parent), thing, verdict, wish, owner);
            }
            if !wish.creates() {
                return Err(Errno::ENOENT);
            }
            verdict.permit(true)?;
            match self.make(&parent, &name, wish) {
                Err(Errno::EEXIST) if !exclusive => {}
                done => return done.map(Opened::New),
            }
        }
        Err(Errno::ENOENT)
    }

    fn make(&self, parent: &OwnedFd, name: &[u8], wish: Wish) -> Result<OwnedFd, Errno> {
        take_umask(self.tid)?;
        let how = OpenHow::new().flags(wish.making()).mode(wish.mode());
        let how = how.resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        match patient(|| openat2(parent.as_fd(), os(name), how)) {
            Err(Errno::ELOOP) => Err(Errno::EEXIST),
            done => done,
        }
    }

    fn open_thing(
        &self,
        parent: Option<&OwnedFd>,
        thing: Thing,
        verdict: Verdict,
        wish: Wish,
        owner: Option<&Owner>,
    ) -> Result<Opened, Errno> {
        verdict.permit(wish.changes())?;
        if wish.creates() {
            if wish.has(libc::O_EXCL) {
                return Err(Errno::EEXIST);
            }
            if thing.is_directory() {
                return Err(Errno::EISDIR);
            }
            if let Some(parent) = parent {
                own::may_take(self, parent, &thing)?;
            }
        }
        if wish.has(libc::O_DIRECTORY) && !thing.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        match thing.kind() {
            libc::S_IFLNK => return Err(Errno::ELOOP),
            libc::S_IFIFO => return open_fifo(thing, wish, owner),
            libc::S_IFCHR if numbers(&thing) == TERMINAL => return self.open_terminal(wish),
            // It would be one of the network that the sentry is in (tun_chr_open in drivers/net/tun.c).
            libc::S_IFCHR if numbers(&thing) == TUN => return Err(Errno::ENXIO),
            _ => {}
        }
        if own::is_in_proc(&thing.handle) {
            own::may_look(self, &self.view.path_of(&thing.handle)?)?;
        } else if thing.kind() == libc::S_IFREG {
            if self.lacks_content(&thing, wish.changes()) {
                return Ok(Opened::Lacking(thing.handle));
            }
            return open_unleased(thing, wish, owner);
        }
        if wish.has(TMPFILE) {
            take_umask(self.tid)?;
        }
        again(&thing.handle, wish).map(Opened::Now)
    }

    /// A guest's own terminal. (What is opened is the terminal itself: fstat(2) tells.)
    fn open_terminal(&self, wish: Wish) -> Result<Opened, Errno> {
        let number = Stat::read(self.tid).ok_or(Errno::ESRCH)?.terminal;
        // Those of devpts (Documentation/admin-guide/devices.txt), eight majors of them.
        const FIRST: u64 = 136;
        let device = number as u64;
        let (major, minor) = (libc::major(device) as u64, libc::minor(device) as u64);
        if number == 0 || !(FIRST..FIRST + 8).contains(&major) {
            return Err(Errno::ENXIO);
        }
        let path = format!("/dev/pts/{}", (major - FIRST) * 256 + minor);
        let found = match self.walk(Start::Directory, path.as_bytes(), false) {
            Ok(Landing::Name { found: Some(found), .. }) => found,
            // It is one of the host's, which is not in sight.
            _ => return Err(Errno::ENXIO),
        };
        let is_it = found.kind() == libc::S_IFCHR && found.stat.st_rdev == device;
        if !is_it {
            return Err(Errno::ENXIO);
        }
        again(&found.handle, wish).map(Opened::Now)
    }
}

/// Opens what a handle stands for.
fn again(handle: &OwnedFd, wish: Wish) -> Result<OwnedFd, Errno> {
    let flags = wish.flags(libc::O_CREAT | libc::O_NOFOLLOW);
    let mode = if wish.has(TMPFILE) { wish.mode } else { 0 };
    let path = descriptor_path(handle.as_fd());
    patient(|| open(&*path, flags, Mode::from_bits_retain(mode)))
}

/// A plain file. If somebody holds a lease on it (fcntl(2), F_SETLEASE) the kernel waits until that is given up, 45
/// seconds at most; with O_NONBLOCK, which says nothing else about such a file, it asks for it and does not wait
/// (break_lease in include/linux/filelock.h).
pub(super) fn open_unleased(
    thing: Thing,
    wish: Wish,
    owner: Option<&Owner>,
) -> Result<Opened, Errno> {
    if wish.has(libc::O_NONBLOCK) {
        return again(&thing.handle, wish).map(Opened::Now);
    }
    let at_once = Wish { flags: wish.flags | libc::O_NONBLOCK, ..wish };
    match again(&thing.handle, at_once) {
        Ok(file) => {
            let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
            fcntl(&file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
            Ok(Opened::Now(file))
        }
        Err(Errno::EAGAIN) => open_later(thing, wish, owner),
        Err(errno) => Err(errno),
    }
}

/// A plain file whose size is to be another one.
pub(super) fn open_to_cut(thing: Thing, owner: Option<&Owner>) -> Result<Opened, Errno> {
    open_unleased(thing, Wish { flags: libc::O_WRONLY, mode: 0 }, owner)
}

fn open_fifo(thing: Thing, wish: Wish, owner: Option<&Owner>) -> Result<Opened, Errno> {
    if wish.has(libc::O_NONBLOCK) || wish.flags & libc::O_ACCMODE == libc::O_RDWR {
        return again(&thing.handle, wish).map(Opened::Now);
    }
    open_later(thing, wish, owner)
}

/// Opens what somebody else has to do something for first.
fn open_later(thing: Thing, wish: Wish, owner: Option<&Owner>) -> Result<Opened, Errno> {
    let flags = wish.flags(libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW);
    let owner = owner.cloned();
    Opening::begin(move || {
        let _worn = owner.as_ref().map(Disguise::put_on).transpose()?;
        // (A signal ends the wait: then nobody asks for the result.)
        open(&*descriptor_path(thing.handle.as_fd()), flags, Mode::empty())
    })
    .map(Opened::Later)
}

fn numbers(thing: &Thing) -> (u64, u64) {
    let device = thing.stat.st_rdev;
    (libc::major(device) as u64, libc::minor(device) as u64)
}

#[cfg(test)]
mod wishes {
    use super::*;

    #[test]
    fn flags_are_judged_as_the_kernel_does() {
        let of = |flags| Wish::of(flags, 0o17777).map(|wish| wish.map(|wish| wish.mode));
        assert_eq!(of(libc::O_PATH | libc::O_CREAT), Ok(None));
        assert_eq!(of(libc::O_CREAT | 1 << 30), Ok(Some(MODES)));
        assert_eq!(of(libc::O_CREAT | libc::O_DIRECTORY), Err(Errno::EINVAL));
        assert_eq!(of(libc::O_TMPFILE), Err(Errno::EINVAL));
        assert_eq!(of(TMPFILE | libc::O_RDWR), Err(Errno::EINVAL));
        assert_eq!(of(libc::O_TMPFILE | libc::O_RDWR), Ok(Some(MODES)));
    }
}
