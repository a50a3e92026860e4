//! One name in a directory, of a layer or of the host: what is there, without following anything.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::believed;
use super::description::Stamp;
use super::store::DIRECTORY;
use crate::sentry::beliefs::NAME;
use crate::sys::attributes::set_mode;
use crate::sys::{beneath, files};

/// Names of overlayfs's own attributes begin so, in a user namespace (OVL_XATTR_USER_PREFIX).
const OWN: &[u8] = b"user.overlay.";
/// A directory has it that hides what lower layers have in its place.
pub(super) const OPAQUE: &CStr = c"user.overlay.opaque";
/// What overlayfs makes of such a name that a guest sets itself (OVL_XATTR_ESCAPE_PREFIX, Linux 6.7).
const ESCAPED: &[u8] = b"user.overlay.overlay.";

/// What kind of thing is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket that was bound to the name.
    Socket,
    /// A character or block device.
    Device,
}

impl Type {
    pub(super) fn of(stat: &FileStat) -> Type {
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => Type::File,
            libc::S_IFDIR => Type::Directory,
            libc::S_IFLNK => Type::Link,
            libc::S_IFIFO => Type::Fifo,
            libc::S_IFSOCK => Type::Socket,
            _ => Type::Device,
        }
    }

    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Type::File => "file",
            Type::Directory => "directory",
            Type::Link => "symlink",
            Type::Fifo => "fifo",
            Type::Socket => "socket",
            Type::Device => "device",
        }
    }
}

/// What is at a name, if anything.
pub(super) fn look(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileStat>, Errno> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The names in a directory, in the order of their bytes.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let own = openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut listing = nix::dir::Dir::from_fd(own)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Opens the directory at a name.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Opens a regular file for reading; whatever else has come to the name does not block.
pub(super) fn open_file(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(parent, name, flags | OFlag::O_NOCTTY, Mode::empty())
}

/// Opens what is at a name as a place, without any right to it.
pub(super) fn open_path(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// When the attributes of an inode were changed last.
pub(super) fn changed(stat: &FileStat) -> Stamp {
    Stamp { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec }
}

/// Extended attributes that are carried, in the order of their names; overlayfs's own are none of them.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Rights that a file gives to whoever executes it (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";

/// Of what a descriptor stands for (O_PATH too), as far as they can be read.
pub(super) fn attributes(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    read_attributes(fd, is_carried)
}

/// Those of security modules, and capabilities.
pub(super) fn security(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    read_attributes(fd, is_security)
}

/// Whether an attribute is one of those.
pub(super) fn is_security(name: &[u8]) -> bool {
    name.starts_with(b"security.")
}

/// The capabilities of a file.
pub(super) fn capability(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    read_attributes(fd, |name| name == CAPABILITY)
}

/// The names of all that can be seen.
pub(super) fn attribute_names(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    match beneath::attribute_names(&files::descriptor_path(fd)) {
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        done => done,
    }
}

/// The same of what has a name in a directory, itself.
pub(super) fn attribute_names_at(
    directory: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<Vec<Vec<u8>>, Errno> {
    /// listxattrat(2) is not there (before Linux 6.13), or a filter of the host's is against it.
    static WITHOUT: AtomicBool = AtomicBool::new(false);
    if !WITHOUT.load(Ordering::Relaxed) {
        match beneath::attribute_names_in(directory, &c_name(name)?) {
            // (To list names is never EPERM: path_listxattrat in fs/xattr.c.)
            Err(Errno::ENOSYS | Errno::EPERM) => WITHOUT.store(true, Ordering::Relaxed),
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            done => return done,
        }
    }
    attribute_names(open_path(directory, name)?.as_fd())
}

fn read_attributes(
    fd: BorrowedFd<'_>,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Attributes, Errno> {
    let path = files::descriptor_path(fd);
    let mut found = Vec::new();
    for name in attribute_names(fd)?.into_iter().filter(|name| wanted(name)) {
        let Ok(c_name) = CString::new(name.clone()) else { continue };
        match beneath::attribute(&path, &c_name) {
            Ok(value) => found.push((name, value)),
            // It has gone meanwhile, or is not for us to see.
            Err(Errno::ENODATA | Errno::EACCES | Errno::EPERM | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an attribute of a layer is one of the host's file too. Those of a guest that look like overlayfs's
/// own are none: a later overlay would take them for its own.
fn is_carried(name: &[u8]) -> bool {
    let kinds: [&[u8]; 3] = [b"user.", b"system.posix_acl_", CAPABILITY];
    let own = [OWN, NAME.to_bytes()];
    kinds.iter().any(|kind| name.starts_with(kind)) && !own.iter().any(|own| name.starts_with(own))
}

/// The attributes of `from` that the host's file gets. Capabilities count on what has the same already (see
/// `there`), as a set-id bit does.
pub(super) fn safe_attributes(
    from: BorrowedFd<'_>,
    there: &[(Vec<u8>, Vec<u8>)],
) -> Result<Attributes, Errno> {
    let mut wanted = attributes(from)?;
    wanted.retain(|it| it.0 != CAPABILITY || there.contains(it));
    Ok(wanted)
}

/// The names of what a guest has set and the host does not get.
pub(super) fn withheld(
    upper: BorrowedFd<'_>,
    host: Option<BorrowedFd<'_>>,
) -> Result<Vec<String>, Errno> {
    let there = host.map_or(Ok(Vec::new()), capability)?;
    let found = read_attributes(upper, |name| name == CAPABILITY || name.starts_with(ESCAPED))?;
    let name = |name: &[u8]| match name.strip_prefix(ESCAPED) {
        Some(rest) => String::from_utf8_lossy(&[OWN, rest].concat()).into_owned(),
        None => String::from_utf8_lossy(name).into_owned(),
    };
    let mut names: Vec<String> =
        found.iter().filter(|it| !there.contains(it)).map(|it| name(&it.0)).collect();
    names.extend(believed::attributes(upper)?.iter().map(|it| name(it)));
    Ok(names)
}

/// Does something to the attributes of a file of the user's own, also where its mode keeps even its owner from writing
/// (xattr_permission in fs/xattr.c).
pub(super) fn unlocked(
    fd: BorrowedFd<'_>,
    job: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match job() {
        Err(Errno::EACCES) => {
            let mode = fstat(fd)?.st_mode & 0o7777;
            set_mode(fd, mode | libc::S_IWUSR)?;
            let done = job();
            set_mode(fd, mode)?;
            done
        }
        done => done,
    }
}

/// Whether an attribute is overlayfs's own, one of a guest that looks like them, or a belief.
pub(super) fn is_stripped(name: &[u8]) -> bool {
    name.starts_with(OWN) || name.starts_with(NAME.to_bytes())
}

/// Takes such attributes from what was a layer's file.
pub(super) fn strip(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let path = files::descriptor_path(fd);
    let names = beneath::attribute_names(&path)?;
    for name in names.into_iter().filter(|name| is_stripped(name)) {
        let name = c_name(OsStr::from_bytes(&name))?;
        unlocked(fd, || beneath::remove_attribute(&path, &name))?;
    }
    Ok(())
}

/// Takes the attributes that mean something to overlayfs from what is none of a layer's for the time being, or was made
/// by a guest.
pub(super) fn strip_marks(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let path = files::descriptor_path(fd);
    for name in attribute_names(fd)?.into_iter().filter(|name| name.starts_with(OWN)) {
        let name = c_name(OsStr::from_bytes(&name))?;
        unlocked(fd, || beneath::remove_attribute(&path, &name))?;
    }
    Ok(())
}

/// One of overlayfs's own attributes of what a descriptor stands for.
pub(super) fn own_attribute(fd: BorrowedFd<'_>, name: &CStr) -> Option<Vec<u8>> {
    beneath::attribute(&files::descriptor_path(fd), name).ok()
}

/// Whether what is at a name of a layer stands for a removal: a character device 0/0, or an empty file
/// with an attribute (Documentation/filesystems/overlayfs.rst, whiteouts).
pub(super) fn is_whiteout(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
) -> Result<bool, Errno> {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFCHR => Ok(stat.st_rdev == 0),
        libc::S_IFREG if stat.st_size == 0 => {
            let place = open_path(directory, name)?;
            Ok(own_attribute(place.as_fd(), c"user.overlay.whiteout").is_some())
        }
        _ => Ok(false),
    }
}

/// Whether a directory of a layer hides what the host has in its place.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    own_attribute(directory, OPAQUE).is_some_and(|value| value == b"y")
}

/// A name as the kernel takes it.
pub(super) fn c_name(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Sets the attributes of what `to` stands for to these, and removes others of the kinds that are carried.
pub(super) fn set_attributes(to: BorrowedFd<'_>, wanted: &Attributes) -> Result<(), Errno> {
    let there = attributes(to)?;
    let path = files::descriptor_path(to.as_fd());
    for (name, value) in wanted.iter().filter(|it| !there.contains(it)) {
        beneath::set_attribute(&path, &c_name(OsStr::from_bytes(name))?, value)?;
    }
    for (name, _) in there.iter().filter(|(name, _)| wanted.iter().all(|(it, _)| it != name)) {
        beneath::remove_attribute(&path, &c_name(OsStr::from_bytes(name))?)?;
    }
    Ok(())
}
