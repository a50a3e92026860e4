//! The mount interface (mount_namespaces(7)). Everything here is child side: no allocation.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null;

use libc::{c_int, c_uint, c_ulong};
use nix::errno::Errno;

use super::files;

/// Attributes of mount_setattr(2) (linux/mount.h).
pub const ATTR_RDONLY: u64 = 1;
/// No setuid effect.
pub const ATTR_NOSUID: u64 = 2;
/// No devices.
pub const ATTR_NODEV: u64 = 4;
/// Nothing can be executed.
pub const ATTR_NOEXEC: u64 = 8;

/// struct mount_attr.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes every mount of this namespace private: nothing mounted outside appears later.
pub fn make_all_private() -> Result<(), Errno> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// mount(2).
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |s: Option<&CStr>| s.map_or(null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a NUL-terminated string that outlives the call.
    let done = unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    };
    Errno::result(done).map(drop)
}

/// Shows `source` at `target` too, with the attributes of its mount (MS_BIND, not recursive).
pub fn bind(source: &CStr, target: &CStr) -> Result<(), Errno> {
    mount(Some(source), target, None, libc::MS_BIND, None)
}

/// Takes what is mounted at `target` out of sight (umount2(2), MNT_DETACH). Child side.
pub fn detach(target: &CStr) -> Result<(), Errno> {
    // SAFETY: `target` is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// A detached copy of the mount tree at what `place` stands for (open_tree(2) with OPEN_TREE_CLONE, Linux
/// 5.2).
pub fn clone_tree(place: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    open_tree(place.as_raw_fd(), c"", (libc::AT_EMPTY_PATH | recursive) as c_uint)
}

/// A detached copy of the symbolic link at `path` itself: where it is attached, paths lead on from it.
pub fn clone_link(path: &CStr) -> Result<OwnedFd, Errno> {
    open_tree(libc::AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW as c_uint)
}

fn open_tree(dir: c_int, path: &CStr, flags: c_uint) -> Result<OwnedFd, Errno> {
    const OPEN_TREE_CLONE: c_uint = 1;
    const OPEN_TREE_CLOEXEC: c_uint = libc::O_CLOEXEC as c_uint;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            dir,
            path.as_ptr(),
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Attaches a detached tree at `target` (move_mount(2), Linux 5.2).
fn attach_tree(tree: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    move_mount(tree, libc::AT_FDCWD, target, 0)
}

/// Attaches a detached tree on what `target` stands for.
pub fn attach_tree_to(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
    move_mount(tree, target.as_raw_fd(), c"", MOVE_MOUNT_T_EMPTY_PATH)
}

fn move_mount(tree: BorrowedFd<'_>, dir: c_int, target: &CStr, flags: c_uint) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            dir,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | flags,
        )
    };
    Errno::result(done).map(drop)
}

/// A detached overlay (Documentation/filesystems/overlayfs.rst): `lower` shows (a layer in front, if there is one, and
/// what lies behind), `upper` takes the changes,
/// `work` is for the kernel. Its own attributes are in `user.overlay.*` (userxattr, Linux 5.11), which is
/// what a user namespace may write; directories are never redirected and attributes never copied up alone
/// then (ovl_fs_params_verify in fs/overlayfs/params.c), so that each entry of `upper` is whole.
///
/// The layers are given by descriptor: fsconfig(2) takes strings of 255 bytes at most, and the descriptors'
/// own entries in /proc lead to the very directories that were opened (Linux 5.2).
pub fn overlay(
    (front, lower): (Option<BorrowedFd<'_>>, BorrowedFd<'_>),
    upper: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    attributes: u64,
) -> Result<OwnedFd, Errno> {
    const FSOPEN_CLOEXEC: c_uint = 1;
    const FSMOUNT_CLOEXEC: c_uint = 1;
    const FSCONFIG_SET_FLAG: c_uint = 0;
    const FSCONFIG_SET_STRING: c_uint = 1;
    const FSCONFIG_CMD_CREATE: c_uint = 6;
    // SAFETY: the name is NUL-terminated.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) };
    let context = Errno::result(context)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    let context = unsafe { OwnedFd::from_raw_fd(context as c_int) };
    let set = |command: c_uint, key: Option<&CStr>, value: Option<&CStr>| {
        let pointer = |s: Option<&CStr>| s.map_or(null(), CStr::as_ptr);
        // SAFETY: key and value are null or NUL-terminated strings that outlive the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            )
        };
        Errno::result(done).map(drop)
    };
    match front {
        None => set(FSCONFIG_SET_STRING, Some(c"lowerdir"), Some(&files::descriptor_path(lower)))?,
        Some(front) => {
            // Two paths with a colon between them, the upper one first.
            let mut both = [0u8; 72];
            let front = files::descriptor_path(front);
            let (front, behind) = (front.to_bytes(), files::descriptor_path(lower));
            let behind = behind.to_bytes();
            both[..front.len()].copy_from_slice(front);
            both[front.len()] = b':';
            both[front.len() + 1..][..behind.len()].copy_from_slice(behind);
            let both = CStr::from_bytes_until_nul(&both).unwrap_or_default();
            set(FSCONFIG_SET_STRING, Some(c"lowerdir"), Some(both))?;
        }
    }
    for (key, fd) in [(c"upperdir", upper), (c"workdir", work)] {
        set(FSCONFIG_SET_STRING, Some(key), Some(&files::descriptor_path(fd)))?;
    }
    // What /proc/self/mountinfo shows; it means nothing.
    set(FSCONFIG_SET_STRING, Some(c"source"), Some(c"overlay"))?;
    set(FSCONFIG_SET_FLAG, Some(c"userxattr"), None)?;
    set(FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: plain numbers.
    let tree = unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as c_uint)
    };
    let tree = Errno::result(tree)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(tree as c_int) })
}

/// Makes `tree` the root of this mount namespace; the old root lies over it, out of the way of every path,
/// until [`leave_old_root`] with what is given here. The current directory stays.
///
/// That is pivot_root(2) with `.` twice, as its manual describes it. The old root has to stay for a while:
/// a proc file system can only be mounted where another one is seen (mount_too_revealing in fs/namespace.c).
pub fn enter_root(tree: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let (old, here) = (files::open(c"/", flags, 0)?, files::open(c".", flags, 0)?);
    attach_tree(tree, c"/")?;
    files::enter_directory(tree)?;
    // SAFETY: both paths are NUL-terminated.
    let done = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    Errno::result(done)?;
    files::enter_directory(here.as_fd())?;
    Ok(old)
}

/// Takes away what [`enter_root`] has left, and goes to the root. EBUSY: something still lies over that.
///
/// What umount2(2) takes is the uppermost mount there (LOOKUP_MOUNTPOINT in path_lookupat, fs/namei.c), which
/// need not be the one that is meant: so it is looked at what is left. `/` itself is never looked for under
/// a mount, and `..` of it is (handle_dots).
pub fn leave_old_root(old: BorrowedFd<'_>) -> Result<(), Errno> {
    files::enter_directory(old)?;
    detach(c".")?;
    files::change_directory(c"/")?;
    if whereabouts(c"/..")? == whereabouts(c"/")? { Ok(()) } else { Err(Errno::EBUSY) }
}

/// Device, inode and mount of what is at `path` (statx(2); the mount since Linux 5.8).
fn whereabouts(path: &CStr) -> Result<(u32, u32, u64, u64), Errno> {
    let wanted = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: an all-zero statx is valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated; the kernel writes one statx.
    let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, wanted, &mut stat) };
    Errno::result(done)?;
    if stat.stx_mask & wanted != wanted {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, stat.stx_mnt_id))
}

/// Adds attributes to the mount at `path` and with `recursive` to all below it (mount_setattr(2),
/// Linux 5.12).
pub fn set_attributes(path: &CStr, recursive: bool, set: u64) -> Result<(), Errno> {
    setattr(libc::AT_FDCWD, path, if recursive { libc::AT_RECURSIVE } else { 0 }, set, 0)
}

/// Takes attributes from the mount at `path`, not from those below it.
pub fn clear_attributes(path: &CStr, clear: u64) -> Result<(), Errno> {
    setattr(libc::AT_FDCWD, path, 0, 0, clear)
}

/// The same for a detached tree.
pub fn set_tree_attributes(tree: BorrowedFd<'_>, set: u64) -> Result<(), Errno> {
    setattr(tree.as_raw_fd(), c"", libc::AT_RECURSIVE | libc::AT_EMPTY_PATH, set, 0)
}

fn setattr(dir: c_int, path: &CStr, flags: c_int, set: u64, clear: u64) -> Result<(), Errno> {
    let attr = MountAttr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: `attr` is a struct mount_attr of the size given; `path` is NUL-terminated.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags as c_uint,
            &attr as *const MountAttr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(done).map(drop)
}
