//! Following a guest's path: path_resolution(7), link_path_walk in fs/namei.c.
//!
//! A directory on the way is a descriptor, symbolic links are read and followed here, and those of procfs that
//! are no text lead to what they stand for in the guest's process. `..` stays in the guest's root.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};

use super::own::{self, Link};
use super::{Content, HANDLE, Root, Rules, Verdict, joined, mount_of, os};

/// Where a relative path starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The working directory.
    Directory,
    /// What a descriptor stands for.
    Descriptor(i32),
}

impl Start {
    /// Where the calls start that are given this descriptor or AT_FDCWD.
    pub fn of(dirfd: i32) -> Start {
        match dirfd {
            libc::AT_FDCWD => Start::Directory,
            fd => Start::Descriptor(fd),
        }
    }
}

/// Something that is there.
#[derive(Debug)]
pub struct Thing {
    /// Stands for it (O_PATH).
    pub handle: OwnedFd,
    /// What fstat(2) says of it.
    pub stat: FileStat,
}

/// Where a path has led.
#[derive(Debug)]
pub enum Landing {
    /// To a name in a directory.
    Name {
        /// The directory.
        parent: OwnedFd,
        /// The name.
        name: Vec<u8>,
        /// A slash came behind it.
        slash: bool,
        /// What has that name, if anything.
        found: Option<Thing>,
    },
    /// To something that was not looked up by a name: `/`, `..`, what a descriptor stands for.
    Thing(Thing),
}

/// What a path is followed for.
#[derive(Clone, Copy)]
struct Goal {
    /// Over a symbolic link at its end, too.
    follow: bool,
    /// To make a file there, if there is none.
    made: bool,
}

/// Follows paths of one guest thread for one call.
pub struct Resolver<'r> {
    pub(super) tid: i32,
    /// Where its absolute paths begin.
    pub(super) root: &'r Root,
    /// The root of all guests, by which rules know names.
    pub(super) view: &'r Root,
    rules: &'r dyn Rules,
    /// Of files that get it later.
    content: Option<&'r dyn Content>,
    /// Whether the number still is that thread's.
    is_valid: &'r dyn Fn() -> bool,
}

/// MAXSYMLINKS of include/linux/namei.h.
const MOST_LINKS: usize = 40;

impl Thing {
    pub(super) fn of(handle: OwnedFd) -> Result<Thing, Errno> {
        let stat = fstat(&handle)?;
        Ok(Thing { handle, stat })
    }

    /// S_IFDIR and its like.
    pub fn kind(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    pub(super) fn is_link(&self) -> bool {
        self.kind() == libc::S_IFLNK
    }
}

impl<'r> Resolver<'r> {
    /// For a thread whose root this is, as all others' is.
    pub fn new(
        tid: i32,
        root: &'r Root,
        rules: &'r dyn Rules,
        is_valid: &'r dyn Fn() -> bool,
    ) -> Resolver<'r> {
        Resolver { tid, root, view: root, rules, content: None, is_valid }
    }

    /// The same for one that may have a root of its own (chroot(2)); this is that of all. Some files may still lack
    /// their content.
    pub(super) fn within(self, view: &'r Root, content: Option<&'r dyn Content>) -> Resolver<'r> {
        Resolver { view, content, ..self }
    }

    /// Whether a file still lacks its content; else notes that it is about to be opened for writing.
    pub(super) fn lacks_content(&self, thing: &Thing, changes: bool) -> bool {
        thing.kind() == libc::S_IFREG
            && self.content.is_some_and(|it| it.lacks(thing.handle.as_fd(), &thing.stat, changes))
    }

    /// Follows a path to its end. `follow`: over a symbolic link at its end, too.
    ///
    /// # Errors
    /// What the kernel says of such a path; ENOENT and EACCES where a rule is about a link on the way.
    pub fn walk(&self, start: Start, path: &[u8], follow: bool) -> Result<Landing, Errno> {
        self.walk_to(start, path, Goal { follow, made: false })
    }

    /// The same for open(2) with O_CREAT: a last name with a slash behind it is not looked at, be it the path's or
    /// that of a link at its end (lookup_fast_for_open in fs/namei.c).
    pub fn walk_to_make(&self, start: Start, path: &[u8], follow: bool) -> Result<Landing, Errno> {
        self.walk_to(start, path, Goal { follow, made: true })
    }

    fn walk_to(&self, start: Start, path: &[u8], goal: Goal) -> Result<Landing, Errno> {
        self.check(path)?;
        let from = self.start(start, path)?;
        match self.shortcut(&from, path)? {
            Some((parent, last)) => self.step_by_step(parent, last, goal),
            None => self.step_by_step(from, path, goal),
        }
    }

    /// The directory that a path's last name is in, and that name with the slashes behind it. What has the name
    /// is not looked at (filename_parentat in fs/namei.c).
    pub fn parent(&self, start: Start, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
        self.check(path)?;
        let from = self.start(start, path)?;
        let (directory, last) = split(path);
        if last.is_empty() {
            return Ok((from, b"/".to_vec()));
        }
        if let Some((parent, _)) = self.shortcut(&from, path)? {
            return Ok((parent, last.to_vec()));
        }
        let directory = if directory.is_empty() { b"." } else { directory };
        let goal = Goal { follow: true, made: false };
        match self.step_by_step(from, &joined(directory, b"."), goal)? {
            Landing::Thing(thing) if thing.is_directory() => Ok((thing.handle, last.to_vec())),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// What a descriptor of the guest's stands for.
    pub fn descriptor(&self, fd: i32) -> Result<Thing, Errno> {
        let path = format!("/proc/{}/fd/{fd}", self.tid);
        match open(path.as_str(), HANDLE, Mode::empty()) {
            Err(Errno::ENOENT) => Err(Errno::EBADF),
            done => self.theirs(done?).and_then(Thing::of),
        }
    }

    /// What was found by the thread's number is the thread's, if that is there still: nothing is done in somebody
    /// else's directory.
    fn theirs(&self, found: OwnedFd) -> Result<OwnedFd, Errno> {
        if (self.is_valid)() { Ok(found) } else { Err(Errno::ESRCH) }
    }

    fn check(&self, path: &[u8]) -> Result<(), Errno> {
        match path.len() {
            0 => Err(Errno::ENOENT),
            length if length >= libc::PATH_MAX as usize => Err(Errno::ENAMETOOLONG),
            _ => Ok(()),
        }
    }

    fn start(&self, start: Start, path: &[u8]) -> Result<OwnedFd, Errno> {
        match start {
            _ if path.starts_with(b"/") => self.root_handle(),
            Start::Directory => {
                let path = format!("/proc/{}/cwd", self.tid);
                open(path.as_str(), HANDLE, Mode::empty()).and_then(|found| self.theirs(found))
            }
            Start::Descriptor(fd) if fd < 0 => Err(Errno::EBADF),
            Start::Descriptor(fd) => {
                let thing = self.descriptor(fd)?;
                if thing.is_directory() { Ok(thing.handle) } else { Err(Errno::ENOTDIR) }
            }
        }
    }

    pub(super) fn root_handle(&self) -> Result<OwnedFd, Errno> {
        self.root.handle.try_clone().map_err(|_| Errno::EMFILE)
    }

    /// Most paths pass no link and no `..`: then one call finds the directory.
    fn shortcut<'p>(
        &self,
        from: &OwnedFd,
        path: &'p [u8],
    ) -> Result<Option<(OwnedFd, &'p [u8])>, Errno> {
        let (directory, last) = split(path);
        let names_none = directory.iter().all(|byte| *byte == b'/');
        if names_none
            || last.is_empty()
            || directory.split(|byte| *byte == b'/').any(|part| part == b"..")
        {
            return Ok(None);
        }
        match open_in(from, directory) {
            Ok(parent) => Ok(Some((parent, last))),
            Err(Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn step_by_step(&self, from: OwnedFd, path: &[u8], goal: Goal) -> Result<Landing, Errno> {
        let mut at = from;
        let mut rest = path.to_vec();
        let mut links = 0;
        loop {
            let begin = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
            rest.drain(..begin);
            if rest.is_empty() {
                return Thing::of(at).map(Landing::Thing);
            }
            let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let name: Vec<u8> = rest.drain(..end).collect();
            let slash = !rest.is_empty();
            let last = rest.iter().all(|byte| *byte == b'/');
            if name == b"." || name == b".." {
                at = self.up(&at, &name)?;
                continue;
            }
            let found = match look_up(&at, &name) {
                found if goal.made && last && slash && !matches!(found, Err(Errno::EACCES)) => {
                    return Ok(Landing::Name { parent: at, name, slash, found: None });
                }
                Err(Errno::ENOENT) if last => {
                    return Ok(Landing::Name { parent: at, name, slash, found: None });
                }
                found => Thing::of(found?)?,
            };
            if found.is_link() && (!last || goal.follow || slash) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::ELOOP);
                }
                self.may_follow(&at, &name, &found)?;
                match own::link(self, &at, &name, &found)? {
                    Link::Text(text) if text.is_empty() => return Err(Errno::ENOENT),
                    Link::Text(text) => {
                        if text.starts_with(b"/") {
                            at = self.root_handle()?;
                        }
                        rest.splice(..0, text);
                    }
                    Link::Thing(thing) if last && !slash => return Ok(Landing::Thing(thing)),
                    Link::Thing(thing) if thing.is_directory() => at = thing.handle,
                    Link::Thing(_) => return Err(Errno::ENOTDIR),
                }
                continue;
            }
            if slash && !found.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            if last {
                return Ok(Landing::Name { parent: at, name, slash, found: Some(found) });
            }
            at = found.handle;
        }
    }

    /// `.` and `..`.
    fn up(&self, at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
        let name = if name == b".." && self.is_root(at)? { b"." } else { name };
        let how = OpenHow::new().flags(HANDLE | OFlag::O_DIRECTORY);
        patient(|| openat2(at.as_fd(), os(name), how))
    }

    fn is_root(&self, at: &OwnedFd) -> Result<bool, Errno> {
        let (one, other) = (fstat(at)?, fstat(&self.root.handle)?);
        Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
            && self.root.path_of(at)? == b"/")
    }

    /// Whether a symbolic link may be followed: rules, and what protects those who work in a directory like /tmp
    /// from links of others (may_follow_link in fs/namei.c, fs.protected_symlinks in proc_sys_fs(5)).
    fn may_follow(&self, at: &OwnedFd, name: &[u8], link: &Thing) -> Result<(), Errno> {
        self.verdict(at, name, Some(link))?.permit(false)?;
        let directory = fstat(at)?;
        let shared = libc::S_ISVTX | libc::S_IWOTH;
        if directory.st_mode & shared != shared
            || directory.st_uid == link.stat.st_uid
            || !own::protects_links()
        {
            return Ok(());
        }
        if own::user(self.tid)? == link.stat.st_uid { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// What rules say of a name in a directory. What another mount covers is the kernel's to judge: no guest can
    /// mount anything, so it is one of the view's own.
    pub(super) fn verdict(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        found: Option<&Thing>,
    ) -> Result<Verdict, Errno> {
        let directory = self.view.path_of(parent)?;
        let verdict = self.of_path(&joined(&directory, name));
        if verdict == Verdict::Plain {
            return Ok(verdict);
        }
        match found {
            Some(found) if mount_of(&found.handle)? != mount_of(parent)? => Ok(Verdict::Plain),
            _ => Ok(verdict),
        }
    }

    /// What they say of something that was reached by no name.
    pub(super) fn verdict_of(&self, thing: &Thing) -> Result<Verdict, Errno> {
        let path = self.view.path_of(&thing.handle)?;
        if !path.starts_with(b"/") {
            return Ok(Verdict::Plain);
        }
        let verdict = self.of_path_or_removed(&path);
        if verdict == Verdict::Plain {
            return Ok(verdict);
        }
        let (directory, _) = split(&path);
        let above = open_in(&self.view.handle, directory);
        match above {
            Ok(above) if mount_of(&above)? != mount_of(&thing.handle)? => Ok(Verdict::Plain),
            _ => Ok(verdict),
        }
    }

    /// The same where what has the path may have been removed.
    pub(super) fn of_path_or_removed(&self, path: &[u8]) -> Verdict {
        /// What the kernel puts behind it then (d_path in fs/d_path.c).
        const REMOVED: &[u8] = b" (deleted)";
        match (self.of_path(path), path.strip_suffix(REMOVED)) {
            (Verdict::Plain, Some(before)) => self.of_path(before),
            (verdict, _) => verdict,
        }
    }

    pub(super) fn of_path(&self, path: &[u8]) -> Verdict {
        self.rules.verdict(path)
    }

    /// Whether a directory's content means the same to the rules by another path.
    pub(super) fn same_below(&self, one: &[u8], other: &[u8]) -> bool {
        self.rules.same_below(one, other)
    }
}

/// A handle for what has this name.
pub(super) fn look_up(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(HANDLE | OFlag::O_NOFOLLOW);
    patient(|| openat2(at.as_fd(), os(name), how))
}

/// A directory below another one, by a path over no link.
pub(super) fn open_in(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let inner = path.iter().position(|byte| *byte != b'/').map(|at| &path[at..]);
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(HANDLE | OFlag::O_DIRECTORY).resolve(resolve);
    patient(|| openat2(root.as_fd(), os(inner.unwrap_or(b".")), how))
}

/// Does a call that nothing but a signal or a rename (openat2(2)) interrupts.
pub(super) fn patient<T>(call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// What is before a path's last name, and that name with the slashes behind it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let begin = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    if end == 0 { (path, b"") } else { (&path[..begin], &path[begin..]) }
}

/// Where a symbolic link leads.
pub(super) fn text_of(link: &OwnedFd) -> Result<Vec<u8>, Errno> {
    readlinkat(link.as_fd(), c"").map(OsStringExt::into_vec)
}
