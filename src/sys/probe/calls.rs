//! Facilities that one harmless call is enough to try.

use std::mem::MaybeUninit;

use nix::errno::Errno;

use super::{Tried, checked, done, in_child};

/// A flag of SECCOMP_SET_MODE_FILTER (seccomp(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterFlag {
    /// Loads the filter in every thread (Linux 3.17).
    Tsync,
    /// Logs refusals (Linux 4.14).
    Log,
    /// Leaves speculative-store-bypass mitigations off (Linux 4.17).
    SpecAllow,
    /// Gives a listener (Linux 5.0).
    NewListener,
    /// Tells a failed TSYNC by ESRCH (Linux 5.7).
    TsyncEsrch,
    /// Only fatal signals end a received notification (Linux 5.19).
    WaitKillable,
}

impl FilterFlag {
    /// All of them, oldest first.
    pub const ALL: [FilterFlag; 6] = [
        FilterFlag::Tsync,
        FilterFlag::Log,
        FilterFlag::SpecAllow,
        FilterFlag::NewListener,
        FilterFlag::TsyncEsrch,
        FilterFlag::WaitKillable,
    ];

    /// The flag as it is spelt after SECCOMP_FILTER_FLAG_.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FilterFlag::Tsync => "TSYNC",
            FilterFlag::Log => "LOG",
            FilterFlag::SpecAllow => "SPEC_ALLOW",
            FilterFlag::NewListener => "NEW_LISTENER",
            FilterFlag::TsyncEsrch => "TSYNC_ESRCH",
            FilterFlag::WaitKillable => "WAIT_KILLABLE_RECV",
        }
    }

    fn bits(self) -> libc::c_ulong {
        match self {
            FilterFlag::Tsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            FilterFlag::Log => libc::SECCOMP_FILTER_FLAG_LOG,
            FilterFlag::SpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            FilterFlag::NewListener => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            FilterFlag::TsyncEsrch => libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
            // The kernel refuses this one without a listener (seccomp_set_mode_filter).
            FilterFlag::WaitKillable => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
                    | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
            }
        }
    }
}

/// Whether the kernel knows a flag: with no program to load it says EFAULT if it does and EINVAL
/// if not (seccomp(2), NOTES), and loads nothing either way.
#[must_use]
pub fn filter_flag(flag: FilterFlag) -> Tried {
    // SAFETY: the kernel refuses the null program before it changes anything.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flag.bits(),
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    known_by(result, &[Errno::EFAULT])
}

/// Whether SECCOMP_RET_USER_NOTIF is an action of this kernel (SECCOMP_GET_ACTION_AVAIL).
#[must_use]
pub fn user_notify_known() -> Tried {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: the kernel reads one u32.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    checked(result).map(drop).into()
}

/// Sizes in bytes of the structures that a listener and its supervisor exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotifySizes {
    /// `struct seccomp_notif`.
    pub request: u16,
    /// `struct seccomp_notif_resp`.
    pub response: u16,
    /// `struct seccomp_data`.
    pub data: u16,
}

/// The sizes that this kernel uses (SECCOMP_GET_NOTIF_SIZES, Linux 5.0).
pub fn notify_sizes() -> Result<NotifySizes, Errno> {
    let mut sizes = MaybeUninit::<libc::seccomp_notif_sizes>::zeroed();
    // SAFETY: the kernel fills in exactly this structure.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, sizes.as_mut_ptr())
    };
    checked(result)?;
    // SAFETY: all zeroes is a valid value, so this holds whatever the kernel wrote.
    let sizes = unsafe { sizes.assume_init() };
    Ok(NotifySizes {
        request: sizes.seccomp_notif,
        response: sizes.seccomp_notif_resp,
        data: sizes.seccomp_data,
    })
}

/// Whether a child may create namespaces of these kinds, `libc::CLONE_NEW*`, in one unshare(2).
#[must_use]
pub fn namespaces(flags: libc::c_int) -> Tried {
    in_child(|board| {
        // SAFETY: plain numbers; concerns only the child.
        board.put(0, done(unsafe { libc::unshare(flags) }));
    })
    .at(0)
}

/// Whether this process runs in a chroot(2) environment, where no user namespace can be created:
/// `None` where the caller's privilege does not suffice to tell.
///
/// A child enters its own mount namespace anew, which resets its root directory to that of the
/// namespace (setns(2), CLONE_NEWNS), and compares.
#[must_use]
pub fn chrooted() -> Option<bool> {
    let outcomes = in_child(|board| {
        let before = root_identity();
        board.put(0, reenter_mount_namespace());
        if before.is_some() && before != root_identity() {
            board.put(1, Ok(()));
        }
    });
    outcomes.at(0).works().then(|| outcomes.at(1).works())
}

/// The root directory's inode and mount (statx(2); the mount since Linux 5.8, 0 before): a bind
/// mount of the host's own root differs from it in the mount only.
fn root_identity() -> Option<(u64, u64)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let wanted = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: a constant path and a structure that the kernel fills in.
    done(unsafe { libc::statx(libc::AT_FDCWD, c"/".as_ptr(), 0, wanted, stat.as_mut_ptr()) })
        .ok()?;
    // SAFETY: all zeroes is a valid value.
    let stat = unsafe { stat.assume_init() };
    Some((stat.stx_ino, stat.stx_mnt_id))
}

fn reenter_mount_namespace() -> Result<(), Errno> {
    // SAFETY: a constant path; the descriptor is closed with the child.
    let fd = unsafe { libc::open(c"/proc/self/ns/mnt".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    done(fd)?;
    // SAFETY: plain numbers; concerns only the child.
    done(unsafe { libc::setns(fd, libc::CLONE_NEWNS) })
}

/// Whether a pidfd of a process can be had (pidfd_open(2), Linux 5.3); tried on this one.
#[must_use]
pub fn pidfd_open() -> Tried {
    pidfd_of_self(std::process::id() as libc::pid_t, 0)
}

/// Whether a pidfd of a single thread can be had (PIDFD_THREAD, Linux 6.9).
#[must_use]
pub fn pidfd_thread() -> Tried {
    // The kernel gives PIDFD_THREAD the value of O_EXCL (include/uapi/linux/pidfd.h).
    pidfd_of_self(nix::unistd::gettid().as_raw(), libc::O_EXCL)
}

fn pidfd_of_self(pid: libc::pid_t, flags: libc::c_int) -> Tried {
    // SAFETY: plain numbers; the descriptor, if any, is closed below by its only owner.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    let outcome = checked(result).map(|fd| {
        // SAFETY: `fd` is ours and used by nobody else.
        unsafe { libc::close(fd as libc::c_int) };
    });
    outcome.into()
}

/// Whether clone3(2) (Linux 5.3) gets as far as its arguments; some container runtimes answer
/// ENOSYS so that the C library falls back to clone(2).
#[must_use]
pub fn clone3_known() -> Tried {
    // SAFETY: a size of zero is refused (EINVAL) before the null pointer is looked at.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0usize) };
    known_by(result, &[Errno::EINVAL])
}

/// Whether close_range(2) (Linux 5.9) with its flag CLOSE_RANGE_CLOEXEC (5.11) works; tried on a
/// descriptor number that cannot exist.
#[must_use]
pub fn close_range_known() -> Tried {
    // SAFETY: no descriptor has this number, so nothing changes.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    checked(result).map(drop).into()
}

/// Whether mount_setattr(2) (Linux 5.12) gets as far as its arguments.
#[must_use]
pub fn mount_setattr_known() -> Tried {
    // SAFETY: a size of zero is refused (EINVAL) before the null pointer is looked at.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            -1,
            c"".as_ptr(),
            0,
            std::ptr::null_mut::<u8>(),
            0usize,
        )
    };
    known_by(result, &[Errno::EINVAL])
}

/// Whether open_tree(2) (Linux 5.2) gets as far as its arguments.
#[must_use]
pub fn open_tree_known() -> Tried {
    // SAFETY: an empty path names nothing, so nothing is opened.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, -1, c"".as_ptr(), 0) };
    known_by(result, &[Errno::ENOENT, Errno::EBADF])
}

/// The version of Landlock's interface (landlock_create_ruleset(2), Linux 5.13). ENOSYS: not
/// built; EOPNOTSUPP: switched off at boot.
pub fn landlock_abi() -> Result<u32, Errno> {
    /// include/uapi/linux/landlock.h
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the kernel wants a null pointer and a size of zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    checked(result).map(|version| version as u32)
}

/// A call made with impossible arguments is known to the kernel if it fails because of them.
fn known_by(result: libc::c_long, errors: &[Errno]) -> Tried {
    match checked(result) {
        Err(errno) if errors.contains(&errno) => Tried::Works,
        outcome => outcome.map(drop).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_flag_of_unshare_is_refused() {
        // CLONE_VFORK means nothing to unshare(2).
        assert_eq!(namespaces(libc::CLONE_VFORK), Tried::Refused(Errno::EINVAL));
        assert_eq!(namespaces(0), Tried::Works);
    }

    #[test]
    fn sizes_are_those_of_the_structures() {
        let Ok(sizes) = notify_sizes() else {
            println!("skipped: no seccomp user notification");
            return;
        };
        assert!(usize::from(sizes.request) >= size_of::<libc::seccomp_notif>());
        assert!(usize::from(sizes.response) >= size_of::<libc::seccomp_notif_resp>());
        assert_eq!(usize::from(sizes.data), size_of::<libc::seccomp_data>());
    }

    #[test]
    fn a_call_is_known_only_by_the_errors_expected() {
        Errno::EFAULT.set();
        assert_eq!(known_by(-1, &[Errno::EFAULT]), Tried::Works);
        Errno::ENOSYS.set();
        assert_eq!(known_by(-1, &[Errno::EFAULT]), Tried::Refused(Errno::ENOSYS));
    }
}
