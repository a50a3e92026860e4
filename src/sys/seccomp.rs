//! seccomp(2) and the ioctls of a user-notification listener (seccomp_unotify(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong};
use nix::errno::Errno;

pub use libc::{seccomp_data, seccomp_notif, seccomp_notif_resp, sock_filter};

/// Ends RECV's wait only for fatal signals (Linux 5.19).
pub const FILTER_FLAG_WAIT_KILLABLE_RECV: c_ulong = 1 << 5;
/// Gives a listener for the new filter (Linux 5.0).
pub const FILTER_FLAG_NEW_LISTENER: c_ulong = 1 << 3;
/// Wakes the receiver on the guest's own CPU (Linux 6.6).
pub const USER_NOTIF_FD_SYNC_WAKE_UP: u64 = 1;
/// SECCOMP_RET_USER_NOTIF.
pub const RET_USER_NOTIF: u32 = 0x7fc0_0000;

const IOCTL_NOTIF_RECV: c_ulong = 0xc050_2100;
const IOCTL_NOTIF_SEND: c_ulong = 0xc018_2101;
const IOCTL_NOTIF_ID_VALID: c_ulong = 0x4008_2102;
const IOCTL_NOTIF_ADDFD: c_ulong = 0x4018_2103;
const IOCTL_NOTIF_SET_FLAGS: c_ulong = 0x4008_2104;

/// A notification as the kernel fills it in; all zero before RECV, as the kernel demands.
pub fn empty_notification() -> seccomp_notif {
    seccomp_notif {
        id: 0,
        pid: 0,
        flags: 0,
        data: seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] },
    }
}

/// Blocks until a guest thread traps.
///
/// ENOENT: the task died between wake-up and read, or nobody uses the filter any more (6.11).
pub fn receive(listener: BorrowedFd<'_>, into: &mut seccomp_notif) -> Result<(), Errno> {
    *into = empty_notification();
    // SAFETY: the ioctl writes at most one `seccomp_notif` to a valid, exclusive, zeroed one.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), IOCTL_NOTIF_RECV, into as *mut _) };
    Errno::result(done).map(drop)
}

/// Answers a notification. ENOENT: its task has died or was interrupted.
pub fn send(listener: BorrowedFd<'_>, response: &seccomp_notif_resp) -> Result<(), Errno> {
    // SAFETY: the ioctl reads one `seccomp_notif_resp` from a valid one.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), IOCTL_NOTIF_SEND, response as *const _) };
    Errno::result(done).map(drop)
}

/// Whether the task of notification `id` still waits for its answer.
pub fn id_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the ioctl reads one u64.
    unsafe { libc::ioctl(listener.as_raw_fd(), IOCTL_NOTIF_ID_VALID, &id as *const u64) == 0 }
}

/// struct seccomp_notif_addfd (seccomp_unotify(2)).
#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

/// Where an installed descriptor goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The lowest free number.
    Lowest,
    /// This number, replacing what is there (SECCOMP_ADDFD_FLAG_SETFD).
    At(u32),
}

/// Installs a copy of `source` in the task of notification `id` and gives its number there; with
/// `send` the number is also the answer (SECCOMP_ADDFD_FLAG_SEND, Linux 5.14).
pub fn add_fd(
    listener: BorrowedFd<'_>,
    id: u64,
    source: BorrowedFd<'_>,
    place: Place,
    cloexec: bool,
    send: bool,
) -> Result<u32, Errno> {
    const FLAG_SETFD: u32 = 1;
    const FLAG_SEND: u32 = 2;
    let (set, number) = match place {
        Place::Lowest => (0, 0),
        Place::At(number) => (FLAG_SETFD, number),
    };
    let request = AddFd {
        id,
        flags: set | if send { FLAG_SEND } else { 0 },
        srcfd: source.as_raw_fd() as u32,
        newfd: number,
        newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the ioctl reads one `seccomp_notif_addfd` from a valid one.
    let done =
        unsafe { libc::ioctl(listener.as_raw_fd(), IOCTL_NOTIF_ADDFD, &request as *const _) };
    Errno::result(done).map(|number| number as u32)
}

/// Makes the listener wake its receiver on the guest's CPU (Linux 6.6; EINVAL before).
pub fn set_sync_wake_up(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the argument is a plain number.
    let done = unsafe {
        libc::ioctl(listener.as_raw_fd(), IOCTL_NOTIF_SET_FLAGS, USER_NOTIF_FD_SYNC_WAKE_UP)
    };
    Errno::result(done).map(drop)
}

/// Loads `program` for the calling thread and gives the listener. Child side.
///
/// Needs no_new_privs. EBUSY: the task already lives under a filter with a listener.
pub fn load_with_listener(program: &[sock_filter], wait_killable: bool) -> Result<OwnedFd, Errno> {
    let flags =
        FILTER_FLAG_NEW_LISTENER | if wait_killable { FILTER_FLAG_WAIT_KILLABLE_RECV } else { 0 };
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads `len` instructions from the slice and keeps no pointer.
    let fd = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &prog as *const _)
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Whether seccomp(2) knows these filter flags together: with a null program known ones give
/// EFAULT, unknown ones EINVAL (kernel/seccomp.c, seccomp_set_mode_filter). WAIT_KILLABLE_RECV
/// is known only beside NEW_LISTENER.
pub fn knows_filter_flags(flags: c_ulong) -> bool {
    // SAFETY: the null program is refused before anything is changed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    Errno::result(done) == Err(Errno::EFAULT)
}
