//! Landlock (landlock(7)): rulesets, and putting them in force. Child side.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_uint};
use nix::errno::Errno;

/// struct landlock_ruleset_attr since ABI 6.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// struct landlock_path_beneath_attr: packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: c_int,
}

bitflags::bitflags! {
    /// Rights over files (LANDLOCK_ACCESS_FS_*).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: u64 {
        /// Execute a file.
        const EXECUTE = 1;
        /// Open a file for writing.
        const WRITE_FILE = 1 << 1;
        /// Open a file for reading.
        const READ_FILE = 1 << 2;
        /// Open or list a directory.
        const READ_DIR = 1 << 3;
        /// Remove or rename a directory in it.
        const REMOVE_DIR = 1 << 4;
        /// Remove or rename what is no directory in it.
        const REMOVE_FILE = 1 << 5;
        /// Make character devices.
        const MAKE_CHAR = 1 << 6;
        /// Make directories.
        const MAKE_DIR = 1 << 7;
        /// Make regular files.
        const MAKE_REG = 1 << 8;
        /// Bind unix sockets.
        const MAKE_SOCK = 1 << 9;
        /// Make FIFOs.
        const MAKE_FIFO = 1 << 10;
        /// Make block devices.
        const MAKE_BLOCK = 1 << 11;
        /// Make symbolic links.
        const MAKE_SYM = 1 << 12;
        /// Link or rename from one directory to another (ABI 2).
        const REFER = 1 << 13;
        /// Truncate a file (ABI 3).
        const TRUNCATE = 1 << 14;
        /// ioctl(2) on devices (ABI 5).
        const IOCTL_DEV = 1 << 15;
    }
}

impl Access {
    /// What makes sense for something that is no directory (ACCESS_FILE in security/landlock/fs.c): a rule about
    /// one may name nothing else.
    pub const OF_FILES: Access = Access::EXECUTE
        .union(Access::WRITE_FILE)
        .union(Access::READ_FILE)
        .union(Access::TRUNCATE)
        .union(Access::IOCTL_DEV);
    /// Reading and executing.
    pub const READ: Access = Access::EXECUTE.union(Access::READ_FILE).union(Access::READ_DIR);

    /// The rights that an ABI knows.
    pub fn known(abi: i32) -> Access {
        let unknown = match abi {
            ..1 => return Access::empty(),
            1 => Access::REFER | Access::TRUNCATE | Access::IOCTL_DEV,
            2 => Access::TRUNCATE | Access::IOCTL_DEV,
            3 | 4 => Access::IOCTL_DEV,
            _ => Access::empty(),
        };
        Access::all() - unknown
    }
}

/// Signals and abstract unix sockets (LANDLOCK_SCOPE_*, ABI 6).
pub const SCOPES: u64 = 3;
/// Binding and connecting TCP sockets, whatever the address and the network namespace (LANDLOCK_ACCESS_NET_*, ABI 4);
/// to end a connection is none of it (hook_socket_connect in security/landlock/net.c).
pub const TCP: u64 = 3;

/// The Landlock ABI of this kernel; 0 where it is missing or switched off.
pub fn abi() -> i32 {
    const CREATE_RULESET_VERSION: c_uint = 1;
    // SAFETY: a null attribute with this flag only asks for the version.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, CREATE_RULESET_VERSION) };
    Errno::result(done).map_or(0, |abi| abi as i32)
}

/// A set of rules in the making.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// What is refused unless a rule allows it. What an older ABI does not know must be 0.
    pub fn new(files: Access, network: u64, scopes: u64) -> Result<Ruleset, Errno> {
        let attr = RulesetAttr {
            handled_access_fs: files.bits(),
            handled_access_net: network,
            scoped: scopes,
        };
        // An older kernel takes a longer structure if what it does not know is 0 (copy_min_struct_from_user in
        // security/landlock/syscalls.c).
        // SAFETY: a struct landlock_ruleset_attr of the size given.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attr,
                size_of::<RulesetAttr>(),
                0,
            )
        };
        let fd = Errno::result(fd)? as c_int;
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Ruleset(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Allows `access` to what `place` stands for and everything below it. EBADFD: it lies in no file system that
    /// Landlock looks at (pipes, sockets), where nothing is refused.
    pub fn allow(&self, place: BorrowedFd<'_>, access: Access) -> Result<(), Errno> {
        const RULE_PATH_BENEATH: c_int = 1;
        let attr = PathBeneath { allowed_access: access.bits(), parent_fd: place.as_raw_fd() };
        // SAFETY: a struct landlock_path_beneath_attr, which the kernel reads.
        let done = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const attr,
                0,
            )
        };
        Errno::result(done).map(drop)
    }

    /// Puts it in force for the calling thread and all that it makes. Needs no_new_privs.
    pub fn restrict(self) -> Result<(), Errno> {
        // SAFETY: plain numbers.
        let done =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        Errno::result(done).map(drop)
    }
}
