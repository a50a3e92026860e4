//! What guests that take themselves for root believe of files (`--root`).
//!
//! To the kernel every guest is the user alone, so it can give no file to anybody else, nor a bit that would give
//! rights to whoever executes it. What a guest asks for in this way is noted (`belief`) and shown to those who look.
//! Owns where a belief is kept, and what is shown of a file; what a call asks for is the handlers' affair.
//!
//! Nothing here is a wall. Whatever is believed, the kernel decides by what is the case.

mod belief;
mod copy;
mod gone;
mod place;
mod saved;
mod sight;
mod table;

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, OnceLock};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{getegid, geteuid};

pub use belief::{Belief, Device, INSTEAD, MODE, NAME};
pub(super) use place::{Spot, base_of, find, find_open, find_spot, flags_of, place_of};
pub use saved::{FileSearch, SavedBelief, SavedPlace, is_sound};
pub(super) use sight::{Sight, copy_of};

use self::sight::{ROOM, at_path};
use self::table::{Key, MOST, Table};
use crate::sys::disguise::{self, Disguise, Owner};
use crate::sys::{beneath, files};

/// What the kernel says of a file, as far as a belief is about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Real {
    /// The host's numbers.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// With its type.
    pub(super) mode: u32,
}

impl Real {
    pub(super) fn of(stat: &FileStat) -> Real {
        Real { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode }
    }

    fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Extended attributes of users can be on these (xattr(7)).
    fn takes_attributes(&self) -> bool {
        matches!(self.kind(), libc::S_IFREG | libc::S_IFDIR)
    }
}

/// What guests are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    /// A device that a plain file stands for.
    pub(super) device: Option<u64>,
}

/// What is believed, and of what.
#[derive(Debug)]
pub(super) struct FileBeliefs {
    /// Who the guests are to the kernel. Immutable.
    user: u32,
    group: u32,
    /// What is believed of what takes no attribute: links, pipes, sockets, and all that is on file systems without any.
    /// It ends with the run.
    table: Table,
    /// Files that are being copied. A leaf of the lock order.
    copying: Mutex<HashSet<(u64, u64)>>,
    /// One of them has been.
    copied: Condvar,
    /// The root of the guests' file view, which none of them can leave.
    view: OnceLock<OwnedFd>,
    /// What is mounted there to be written to.
    writable: OnceLock<Vec<Vec<u8>>>,
    /// To look at a file in that view takes no other machine, and no program.
    fast: OnceLock<bool>,
    /// With whose rights files are found and changed, where the sentry has more; none where it has not.
    owner: OnceLock<Option<Owner>>,
}

impl Default for FileBeliefs {
    fn default() -> Self {
        FileBeliefs {
            user: geteuid().as_raw(),
            group: getegid().as_raw(),
            table: Table::with(MOST),
            copying: Mutex::default(),
            copied: Condvar::new(),
            view: OnceLock::new(),
            writable: OnceLock::new(),
            fast: OnceLock::new(),
            owner: OnceLock::new(),
        }
    }
}

impl FileBeliefs {
    /// Whether the user may change a file's attributes.
    pub(super) fn is_users(&self, real: &Real) -> bool {
        real.uid == self.user
    }

    /// Whether the kernel copies it up besides: its ids are there inside.
    pub(super) fn is_own(&self, real: &Real) -> bool {
        self.is_users(real) && real.gid == self.group
    }

    /// Has this thread act with the rights of the guests until the value is dropped; `owner` finds out whose those are, if
    /// they are not its own already. No thread may be made meanwhile: it would keep them.
    pub(super) fn disguise(
        &self,
        owner: impl FnOnce() -> Result<Option<Owner>, Errno>,
    ) -> Result<Option<Disguise>, Errno> {
        self.owner(owner)?.map(Disguise::put_on).transpose()
    }

    /// The same for all calls of one kind that follow on this thread, as [`disguise::keep_on`] says.
    pub(super) fn keep_disguise(
        &self,
        kind: u32,
        owner: impl FnOnce() -> Result<Option<Owner>, Errno>,
    ) -> Result<(), Errno> {
        disguise::keep_on(kind, || self.owner(owner))
    }

    fn owner(
        &self,
        owner: impl FnOnce() -> Result<Option<Owner>, Errno>,
    ) -> Result<Option<&Owner>, Errno> {
        if let Some(owner) = self.owner.get() {
            return Ok(owner.as_ref());
        }
        let found = owner()?;
        Ok(self.owner.get_or_init(|| found).as_ref())
    }

    /// The owner that a file of the host's number has inside.
    fn inside(&self, real: &Real) -> (u32, u32) {
        let uid = if real.uid == self.user { 0 } else { real.uid };
        let gid = if real.gid == self.group { 0 } else { real.gid };
        (uid, gid)
    }

    /// What is believed of the file at `path`: where that is a place in procfs, of what it stands for, else of what has
    /// that name itself.
    pub(super) fn of(&self, path: &CStr, real: &Real) -> Belief {
        let attribute = |room: &mut [u8; ROOM]| at_path(path, room);
        self.told(real, attribute, || Key::of(path))
    }

    /// What is believed of a file by what the kernel says of it: the attribute that `attribute` reads, or else the table's
    /// word on `key`.
    fn told(
        &self,
        real: &Real,
        attribute: impl FnOnce(&mut [u8; ROOM]) -> Result<usize, Errno>,
        key: impl FnOnce() -> Result<Key, Errno>,
    ) -> Belief {
        if real.uid != self.user {
            return Belief::default();
        }
        let mut room = [0; ROOM];
        if real.takes_attributes() {
            match attribute(&mut room) {
                Ok(length) => return Belief::parse(&room[..length]).unwrap_or_default(),
                // Nobody has written such a long one.
                Err(Errno::ERANGE) => return Belief::default(),
                Err(_) => {}
            }
        }
        if self.table.is_empty() {
            return Belief::default();
        }
        let Ok(key) = key() else { return Belief::default() };
        self.table.get(&key).unwrap_or_default()
    }

    /// What guests are shown of the file at `path`.
    pub(super) fn shown(&self, path: &CStr, real: &Real) -> Shown {
        self.shown_with(self.of(path, real), real)
    }

    /// What they are shown of a file that is looked at.
    pub(super) fn shown_of(&self, sight: Sight<'_>, real: &Real) -> Shown {
        let attribute = |room: &mut [u8; ROOM]| sight.attribute(room);
        self.shown_with(self.told(real, attribute, || sight.key()), real)
    }

    fn shown_with(&self, belief: Belief, real: &Real) -> Shown {
        let (uid, gid) = self.inside(real);
        Shown {
            uid: belief.uid.unwrap_or(uid),
            gid: belief.gid.unwrap_or(gid),
            mode: belief.mode_of(real.mode),
            device: belief.device_of(real.mode),
        }
    }

    /// Has `belief` believed of a file of the user's own, which `file` stands for (O_PATH).
    pub(super) fn set(&self, file: BorrowedFd<'_>, belief: &Belief) -> Result<(), Errno> {
        let path = files::descriptor_path(file);
        let real = Real::of(&fstat(file)?);
        let mut belief = *belief;
        // What is the case need not be believed.
        belief.uid = belief.uid.filter(|uid| *uid != self.inside(&real).0);
        belief.gid = belief.gid.filter(|gid| *gid != self.inside(&real).1);
        belief.mode = belief.mode.filter(|mode| *mode != real.mode & MODE);
        if real.takes_attributes() {
            match self.set_attribute(file, &path, &real, belief) {
                Err(Errno::EOPNOTSUPP) => {}
                done => return done,
            }
        }
        let key = Key::of(&path)?;
        match self.table.set(key, belief) {
            Err(Errno::ENOSPC) => {
                self.table.forget(|all| self.gone(all))?;
                self.table.set(key, belief)
            }
            done => done,
        }
    }

    fn set_attribute(
        &self,
        file: BorrowedFd<'_>,
        path: &CStr,
        real: &Real,
        mut belief: Belief,
    ) -> Result<(), Errno> {
        if belief.is_nothing() {
            return match beneath::remove_attribute(path, NAME) {
                Err(Errno::ENODATA) => Ok(()),
                // A belief makes the file one that can be read and written: there is none.
                Err(Errno::EACCES) => Ok(()),
                done => done,
            };
        }
        // Who sets an attribute has to be allowed to write to the file (xattr_permission in fs/xattr.c).
        let open = real.mode | room(real);
        if open != real.mode {
            belief.mode.get_or_insert(real.mode & MODE);
            set_mode(file, open)?;
        }
        beneath::set_attribute(path, NAME, &belief.text())
    }

    /// Gives a file of the user's own these permissions, what of them cannot be in belief.
    pub(super) fn set_permissions(&self, file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        let path = files::descriptor_path(file);
        let real = Real::of(&fstat(file)?);
        let belief = self.of(&path, &real);
        // Set-id bits are never the case: such a file would outlive the sandbox.
        let possible = possible(real.kind(), mode) | room(&real);
        set_mode(file, possible)?;
        let wanted = Belief { mode: Some(mode & MODE), ..belief };
        // (The kernel takes the setgid bit from who is not in the group.)
        if belief.is_nothing() && fstat(file)?.st_mode & MODE == mode & MODE {
            return Ok(());
        }
        self.set(file, &wanted)
    }

    /// The same for what an access control list tells of: set-id bits and the sticky bit stay.
    pub(super) fn set_access(&self, file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        let real = Real::of(&fstat(file)?);
        let before = self.of(&files::descriptor_path(file), &real).mode_of(real.mode);
        self.set_permissions(file, before & MODE & !0o777 | mode)
    }

    /// Has a file of the user's own belong to somebody else; all ones leave an id as it is.
    pub(super) fn give(&self, file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
        let path = files::descriptor_path(file);
        let real = Real::of(&fstat(file)?);
        let before = self.of(&path, &real);
        let mut belief = before;
        if uid != u32::MAX {
            belief.uid = Some(uid);
        }
        if gid != u32::MAX {
            belief.gid = Some(gid);
        }
        // Whoever gets it does not get rights with it (chown(2)).
        if let (Some(mode), false) = (belief.mode, real.kind() == libc::S_IFDIR) {
            let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
            belief.mode = Some(mode & !(libc::S_ISUID | group));
        }
        let (own, group) = self.inside(&real);
        let is = |id: Option<u32>, real: u32| id.is_none_or(|id| id == real);
        if before.is_nothing() && is(belief.uid, own) && is(belief.gid, group) {
            // As it is. The kernel would say so, too, if it may not be changed.
            return match fstatvfs(file)?.flags().contains(FsFlags::ST_RDONLY) {
                true => Err(Errno::EROFS),
                false => Ok(()),
            };
        }
        self.set(file, &belief)
    }
}

/// What the user always may do with a file of their own, as root may with any.
fn room(real: &Real) -> u32 {
    match real.kind() {
        libc::S_IFDIR => libc::S_IRWXU,
        libc::S_IFREG => libc::S_IRUSR | libc::S_IWUSR,
        _ => 0,
    }
}

/// Those of these permissions that a file of this type may really have.
fn possible(kind: u32, mode: u32) -> u32 {
    let never = if kind == libc::S_IFDIR { libc::S_ISUID } else { libc::S_ISUID | libc::S_ISGID };
    mode & MODE & !never
}

fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let kind = fstat(file)?.st_mode & libc::S_IFMT;
    let mode = Mode::from_bits_truncate(possible(kind, mode));
    fchmodat(AT_FDCWD, &*files::descriptor_path(file), mode, FchmodatFlags::FollowSymlink)
}

/// Whether a path is one by which procfs knows a descriptor, or a working directory; else a name follows.
fn is_descriptor(path: &CStr) -> bool {
    let mut parts = path.to_bytes().split(|byte| *byte == b'/').skip(3);
    let parts = (parts.next(), parts.next(), parts.next());
    matches!(parts, (Some(b"cwd"), None, _) | (Some(b"fd"), Some(_), None))
}
