//! Descriptors of other processes: whether two stand for the same, copies of them, what they hold.

use std::cmp::Ordering;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{c_int, c_ulong, pid_t};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::files::adopt;

/// include/uapi/linux/kcmp.h
const KCMP_FILE: c_int = 0;
const KCMP_EPOLL_TFD: c_int = 7;

/// A descriptor of some thread's table.
pub type Place = (pid_t, RawFd);

fn kcmp(
    a: pid_t,
    b: pid_t,
    kind: c_int,
    first: c_ulong,
    second: c_ulong,
) -> Result<Ordering, Errno> {
    // SAFETY: plain numbers; what KCMP_EPOLL_TFD points to is only read and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, first, second) };
    match Errno::result(done)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // "Not equal, and no order": no kernel gives that today (kcmp_ptr in kernel/kcmp.c).
        _ => Err(Errno::EBADMSG),
    }
}

/// Whether two descriptors stand for one open file description, and else which comes first in an order
/// that lasts as long as both are open (kcmp(2)). Needs the right to trace both. ENOSYS: this kernel
/// lacks it.
pub fn compare(a: Place, b: Place) -> Result<Ordering, Errno> {
    kcmp(a.0, b.0, KCMP_FILE, a.1 as c_ulong, b.1 as c_ulong)
}

/// What processes and threads may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Common {
    /// The address space.
    Memory = 1,
    /// The descriptor table.
    Descriptors = 2,
    /// Root, working directory, umask.
    Directory = 3,
    /// What signals do.
    Handlers = 4,
    /// The list of System V semaphore adjustments; those without any have the same.
    Adjustments = 6,
}

/// Whether two of them have something in common, and else an order, as [`compare`] does.
pub fn compare_common(a: pid_t, b: pid_t, what: Common) -> Result<Ordering, Errno> {
    kcmp(a, b, what as c_int, 0, 0)
}

/// Likewise, of `a` and what is registered with an epoll descriptor under the number `target`; several
/// may be, and `which` counts them.
pub fn compare_epoll(a: Place, epoll: Place, target: u32, which: u32) -> Result<Ordering, Errno> {
    // struct kcmp_epoll_slot
    let slot = [epoll.1 as u32, target, which];
    kcmp(a.0, epoll.0, KCMP_EPOLL_TFD, a.1 as c_ulong, slot.as_ptr() as c_ulong)
}

/// As `binary_search_by` of a slice that is in the order of [`compare`] or [`compare_common`], which can fail: `compare`
/// says how an entry compares to what is looked for.
pub fn search<T, E>(
    sorted: &[T],
    compare: impl Fn(&T) -> Result<Ordering, E>,
) -> Result<Result<usize, usize>, E> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match compare(&sorted[middle])? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

/// A copy of another process's descriptor, close-on-exec (pidfd_getfd(2)).
pub fn copy(pidfd: BorrowedFd<'_>, fd: RawFd) -> Result<OwnedFd, Errno> {
    copy_by_number(pidfd.as_raw_fd(), fd)
}

/// As [`copy`], where the process is known by the number of a descriptor.
pub fn copy_by_number(pidfd: RawFd, fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) };
    Errno::result(done).map(|fd| adopt(fd as RawFd))
}

/// Has an epoll instance watch descriptor `fd` of the calling thread (epoll_ctl(2), EPOLL_CTL_ADD).
pub fn watch(epoll: BorrowedFd<'_>, fd: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one epoll_event.
    let done =
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    Errno::result(done).map(drop)
}

/// How many bytes can be read at once (FIONREAD).
pub fn readable(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut count: c_int = 0;
    // SAFETY: the kernel writes one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Who gets signals of it: (type, id) as the caller numbers processes (F_GETOWN_EX), and which signal
/// (F_GETSIG).
pub fn owner(fd: BorrowedFd<'_>) -> Result<(i32, i32, i32), Errno> {
    const F_GETSIG: c_int = 11;
    const F_GETOWN_EX: c_int = 16;
    // struct f_owner_ex
    let mut owner = [0i32; 2];
    // SAFETY: the kernel writes one struct f_owner_ex.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) })?;
    // SAFETY: plain numbers.
    let signal = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })?;
    Ok((owner[0], owner[1], signal))
}

/// Copies what waits in a pipe to another one and leaves it there (tee(2)); gives how many bytes.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
    let flags = libc::SPLICE_F_NONBLOCK;
    // SAFETY: plain numbers.
    let done = unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), most, flags) };
    Errno::result(done).map(|count| count as usize)
}

/// Makes a timer count what it has missed (timerfd_gettime(2); do_timerfd_gettime in fs/timerfd.c).
pub fn settle_timer(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: an all-zero itimerspec is valid.
    let mut left: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one itimerspec.
    Errno::result(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &mut left) }).map(drop)
}

/// Takes a lock that belongs to the open file description, or says why not at once: with `whole`
/// flock(2), else F_OFD_SETLK on a range (0 bytes: to the end).
pub fn lock(fd: BorrowedFd<'_>, whole: bool, write: bool, range: (u64, u64)) -> Result<(), Errno> {
    let fd = fd.as_raw_fd();
    if whole {
        let kind = if write { libc::LOCK_EX } else { libc::LOCK_SH };
        // SAFETY: plain numbers.
        return Errno::result(unsafe { libc::flock(fd, kind | libc::LOCK_NB) }).map(drop);
    }
    let lock = range_lock(write, range);
    // SAFETY: the kernel reads one flock.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &lock) }).map(drop)
}

/// struct flock for a range from its begin, as fcntl(2) wants it.
fn range_lock(write: bool, (start, length): (u64, u64)) -> libc::flock {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: length as i64,
        l_pid: 0,
    }
}

/// The bytes of a struct flock for fcntl(2).
pub fn range_lock_bytes(write: bool, range: (u64, u64)) -> Vec<u8> {
    let lock = range_lock(write, range);
    let mut bytes = Vec::with_capacity(size_of::<libc::flock>());
    bytes.extend(lock.l_type.to_ne_bytes());
    bytes.extend(lock.l_whence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(lock.l_start.to_ne_bytes());
    bytes.extend(lock.l_len.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// Lets this process have as many descriptors as it may (RLIMIT_NOFILE in getrlimit(2)).
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Changes the status flags (F_SETFL).
pub fn set_status(fd: BorrowedFd<'_>, flags: c_int) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// The status flags (F_GETFL).
pub fn status(fd: BorrowedFd<'_>) -> Result<c_int, Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn copies_are_the_same_and_others_are_ordered() {
        let me = std::process::id() as pid_t;
        let one = std::fs::File::open("/dev/null").unwrap();
        let copy = one.try_clone().unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        let at = |fd: &std::fs::File| (me, fd.as_raw_fd());
        assert_eq!(compare(at(&one), at(&copy)), Ok(Ordering::Equal));
        let order = compare(at(&one), at(&other)).unwrap();
        assert_eq!(compare(at(&other), at(&one)), Ok(order.reverse()));
        assert_ne!(order, Ordering::Equal);
        let by_kernel = |known: &&std::fs::File| compare(at(known), at(&other));
        let place = usize::from(order == Ordering::Less);
        assert_eq!(search(&[&one], by_kernel), Ok(Err(place)));
        assert_eq!(search(&[&other], by_kernel), Ok(Ok(0)));
        assert_eq!(search(&[0, 2, 4], |it| Err::<Ordering, i32>(*it)), Err(2));
        assert_eq!(owner(one.as_fd()), Ok((0, 0, 0)));
    }

    #[test]
    fn a_lock_is_laid_out_as_the_kernel_reads_it() {
        assert_eq!(range_lock_bytes(true, (1, 2)).len(), size_of::<libc::flock>());
    }
}
