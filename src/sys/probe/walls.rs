//! A rehearsal of the walls: a child that enters the namespaces of a run and mounts what a run
//! mounts.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::{Board, ExitOnDrop, Outcomes, Tried, checked, done, exit, fork_raw, in_child, reap};
use crate::sys::mount::{ATTR_NOSUID, ATTR_RDONLY, set_tree_attributes};

/// A kind of namespace beside the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// pid_namespaces(7)
    Pid,
    /// mount_namespaces(7)
    Mount,
    /// network_namespaces(7)
    Net,
    /// ipc_namespaces(7)
    Ipc,
    /// uts_namespaces(7)
    Uts,
    /// cgroup_namespaces(7), Linux 4.6
    Cgroup,
    /// time_namespaces(7), Linux 5.6
    Time,
}

/// Every kind that a run uses.
pub const EVERY_KIND: [Kind; 7] =
    [Kind::Pid, Kind::Mount, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Time];

impl Kind {
    /// The flag of unshare(2).
    #[must_use]
    pub fn flag(self) -> libc::c_int {
        match self {
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Time => libc::CLONE_NEWTIME,
        }
    }
}

/// What came of each step of the rehearsal, in its order. A step that rests on one that was refused
/// is not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walls {
    /// A user namespace.
    pub user: Tried,
    /// Writing `deny` to /proc/self/setgroups, which an unprivileged gid_map requires.
    pub setgroups: Tried,
    /// Mapping the caller's user id to 0.
    pub uid_map: Tried,
    /// Mapping the caller's group id to 0.
    pub gid_map: Tried,
    /// The other namespaces, all at once.
    pub others: Tried,
    /// Bringing the loopback interface up.
    pub loopback: Tried,
    /// A first process of the new pid namespace.
    pub init: Tried,
    /// Cutting the mounts off from the host's.
    pub private: Tried,
    /// A copy of the whole file tree, open_tree(2).
    pub open_tree: Tried,
    /// Making that copy read-only, mount_setattr(2).
    pub mount_setattr: Tried,
    /// A proc file system of the new pid namespace.
    pub proc: Tried,
    /// A sysfs of the new network namespace.
    pub sysfs: Tried,
    /// A devpts instance.
    pub devpts: Tried,
    /// A POSIX message queue file system of the new IPC namespace.
    pub mqueue: Tried,
    /// A tmpfs.
    pub tmpfs: Tried,
    /// An overlay with its attributes in `user.overlay` (option userxattr, Linux 5.11).
    pub overlay: Tried,
}

mod slot {
    pub(super) const USER: usize = 0;
    pub(super) const SETGROUPS: usize = 1;
    pub(super) const UID_MAP: usize = 2;
    pub(super) const GID_MAP: usize = 3;
    pub(super) const OTHERS: usize = 4;
    pub(super) const LOOPBACK: usize = 5;
    pub(super) const INIT: usize = 6;
    pub(super) const PRIVATE: usize = 7;
    pub(super) const OPEN_TREE: usize = 8;
    pub(super) const MOUNT_SETATTR: usize = 9;
    pub(super) const PROC: usize = 10;
    pub(super) const SYSFS: usize = 11;
    pub(super) const DEVPTS: usize = 12;
    pub(super) const MQUEUE: usize = 13;
    pub(super) const TMPFS: usize = 14;
    pub(super) const OVERLAY: usize = 15;
}

/// Enters a user namespace and namespaces of the kinds given, and builds in them what a run builds.
///
/// The caller's ids are mapped as an ordinary user has to do it (user_namespaces(7)).
#[must_use]
pub fn rehearse_walls(kinds: &[Kind]) -> Walls {
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.flag());
    // Written out before the fork: the child must not allocate.
    let uid_map = format!("0 {} 1\n", nix::unistd::geteuid());
    let gid_map = format!("0 {} 1\n", nix::unistd::getegid());
    in_child(|board| enter(board, flags, uid_map.as_bytes(), gid_map.as_bytes())).into()
}

impl Walls {
    /// What a host that refuses user namespaces would give.
    #[must_use]
    pub fn refused(errno: Errno) -> Self {
        Outcomes::refused_at(slot::USER, errno).into()
    }
}

impl From<Outcomes> for Walls {
    fn from(outcomes: Outcomes) -> Self {
        Walls {
            user: outcomes.at(slot::USER),
            setgroups: outcomes.at(slot::SETGROUPS),
            uid_map: outcomes.at(slot::UID_MAP),
            gid_map: outcomes.at(slot::GID_MAP),
            others: outcomes.at(slot::OTHERS),
            loopback: outcomes.at(slot::LOOPBACK),
            init: outcomes.at(slot::INIT),
            private: outcomes.at(slot::PRIVATE),
            open_tree: outcomes.at(slot::OPEN_TREE),
            mount_setattr: outcomes.at(slot::MOUNT_SETATTR),
            proc: outcomes.at(slot::PROC),
            sysfs: outcomes.at(slot::SYSFS),
            devpts: outcomes.at(slot::DEVPTS),
            mqueue: outcomes.at(slot::MQUEUE),
            tmpfs: outcomes.at(slot::TMPFS),
            overlay: outcomes.at(slot::OVERLAY),
        }
    }
}

fn enter(board: &Board, flags: libc::c_int, uid_map: &[u8], gid_map: &[u8]) {
    // SAFETY: plain numbers; concerns only this child.
    if !board.put(slot::USER, done(unsafe { libc::unshare(libc::CLONE_NEWUSER) })) {
        return;
    }
    board.put(slot::SETGROUPS, write_file(c"/proc/self/setgroups", b"deny"));
    board.put(slot::UID_MAP, write_file(c"/proc/self/uid_map", uid_map));
    board.put(slot::GID_MAP, write_file(c"/proc/self/gid_map", gid_map));
    // SAFETY: as above.
    if !board.put(slot::OTHERS, done(unsafe { libc::unshare(flags) })) {
        return;
    }
    if flags & libc::CLONE_NEWNET != 0 {
        board.put(slot::LOOPBACK, raise_loopback());
    }
    if flags & libc::CLONE_NEWNS == 0 {
        return;
    }
    // The first child is init of the new pid namespace; only from in there may its proc be mounted.
    // SAFETY: the child makes raw system calls only and exits.
    match unsafe { fork_raw() } {
        Ok(None) => {
            let _never_return = ExitOnDrop;
            board.put(slot::INIT, Ok(()));
            build(board);
            exit(0);
        }
        Ok(Some(init)) => {
            reap(init);
        }
        Err(errno) => {
            board.put(slot::INIT, Err(errno));
        }
    }
}

/// The same without a word about each step, in namespaces of these kinds.
pub(super) fn enter_own(flags: libc::c_int, uid_map: &[u8], gid_map: &[u8]) -> Result<(), Errno> {
    // SAFETY: plain numbers; concerns only this child.
    done(unsafe { libc::unshare(flags) })?;
    write_file(c"/proc/self/setgroups", b"deny")?;
    write_file(c"/proc/self/uid_map", uid_map)?;
    write_file(c"/proc/self/gid_map", gid_map)
}

/// Nothing that is mounted from now on is seen elsewhere.
pub(super) fn make_private() -> Result<(), Errno> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// Mounts everything over /proc, the one directory that is known to exist: each mount hides the
/// one before, and all go with the namespace.
fn build(board: &Board) {
    if !board.put(slot::PRIVATE, make_private()) {
        return;
    }
    match copy_of_everything() {
        Ok(tree) => {
            board.put(slot::OPEN_TREE, Ok(()));
            board.put(slot::MOUNT_SETATTR, make_read_only(tree));
        }
        Err(errno) => {
            board.put(slot::OPEN_TREE, Err(errno));
        }
    }
    let guarded = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    board.put(slot::PROC, fresh(c"proc", guarded, None));
    board.put(slot::SYSFS, fresh(c"sysfs", guarded | libc::MS_RDONLY, None));
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    board.put(slot::DEVPTS, fresh(c"devpts", libc::MS_NOSUID | libc::MS_NOEXEC, Some(options)));
    board.put(slot::MQUEUE, fresh(c"mqueue", guarded, None));
    if board.put(slot::TMPFS, fresh(c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, None)) {
        board.put(slot::OVERLAY, mount_overlay());
    }
}

fn copy_of_everything() -> Result<libc::c_int, Errno> {
    /// include/uapi/linux/mount.h
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::AT_RECURSIVE | libc::O_CLOEXEC;
    // SAFETY: a constant path and plain numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), flags) };
    // A descriptor fits.
    checked(result).map(|fd| fd as libc::c_int)
}

fn make_read_only(tree: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the descriptor was opened just before and stays open in this short-lived child.
    let tree = unsafe { BorrowedFd::borrow_raw(tree) };
    set_tree_attributes(tree, ATTR_RDONLY | ATTR_NOSUID)
}

fn mount_overlay() -> Result<(), Errno> {
    for directory in [c"/proc/lower", c"/proc/upper", c"/proc/work", c"/proc/merged"] {
        // SAFETY: a constant path; it lies in the tmpfs just mounted.
        done(unsafe { libc::mkdir(directory.as_ptr(), 0o755) })?;
    }
    let options = c"lowerdir=/proc/lower,upperdir=/proc/upper,workdir=/proc/work,userxattr";
    mount(Some(c"overlay"), c"/proc/merged", Some(c"overlay"), 0, Some(options))
}

/// Mounts a new file system of the type given over /proc.
fn fresh(kind: &CStr, flags: libc::c_ulong, options: Option<&CStr>) -> Result<(), Errno> {
    mount(Some(kind), c"/proc", Some(kind), flags, options)
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null, which mount(2) allows here, or a live C string.
    done(unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast())
    })
}

fn write_file(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    // SAFETY: a live C string; the descriptor is closed below.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    done(fd)?;
    // The map files take exactly one write (user_namespaces(7)).
    // SAFETY: the kernel reads `content.len()` bytes of a live slice.
    let written = unsafe { libc::write(fd, content.as_ptr().cast(), content.len()) };
    let outcome = checked(written as libc::c_long).map(drop);
    // SAFETY: `fd` is ours.
    unsafe { libc::close(fd) };
    outcome
}

fn raise_loopback() -> Result<(), Errno> {
    // SAFETY: plain numbers; the descriptor goes with the child.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    done(socket)?;
    // SAFETY: a structure of numbers and bytes, for which all zeroes is a valid value.
    let mut request = unsafe { MaybeUninit::<libc::ifreq>::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: netdevice(7): the kernel reads the name and the flags of a live structure.
    done(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) })
}
