//! Processes: memory of another one, pidfds, descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use libc::{c_int, c_uint, c_void, iovec, pid_t};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::generated;

/// Copies from the memory of `tid` (process_vm_readv(2)) and gives how much was readable.
pub fn read_memory(tid: pid_t, address: u64, into: &mut [u8]) -> Result<usize, Errno> {
    let local = iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = iovec { iov_base: address as *mut c_void, iov_len: into.len() };
    // SAFETY: `local` covers a valid exclusive slice; `remote` is only used in the other process.
    let done = unsafe { libc::process_vm_readv(tid, &local, 1, &remote, 1, 0) };
    Errno::result(done).map(|count| count as usize)
}

/// Copies to the memory of `tid` (process_vm_writev(2)) and gives how much was writable.
pub fn write_memory(tid: pid_t, address: u64, bytes: &[u8]) -> Result<usize, Errno> {
    let local = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = iovec { iov_base: address as *mut c_void, iov_len: bytes.len() };
    // SAFETY: `local` covers a valid slice that is only read; `remote` is used in the other process.
    let done = unsafe { libc::process_vm_writev(tid, &local, 1, &remote, 1, 0) };
    Errno::result(done).map(|count| count as usize)
}

/// Two pieces of memory at once, likewise.
pub fn read_two(tid: pid_t, pieces: [(u64, &mut [u8]); 2]) -> Result<usize, Errno> {
    let mut pieces = pieces;
    let remote = pieces.each_ref().map(|(address, into)| remote(*address, into.len()));
    let local = pieces
        .each_mut()
        .map(|(_, into)| iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() });
    // SAFETY: `local` covers valid exclusive slices; `remote` is only used in the other process.
    let done = unsafe { libc::process_vm_readv(tid, local.as_ptr(), 2, remote.as_ptr(), 2, 0) };
    Errno::result(done).map(|count| count as usize)
}

/// Two pieces of memory at once, likewise.
pub fn write_two(tid: pid_t, pieces: [(u64, &[u8]); 2]) -> Result<usize, Errno> {
    let remote = pieces.map(|(address, bytes)| remote(address, bytes.len()));
    let local = pieces.map(|(_, bytes)| iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    });
    // SAFETY: `local` covers valid slices that are only read; `remote` is used in the other process.
    let done = unsafe { libc::process_vm_writev(tid, local.as_ptr(), 2, remote.as_ptr(), 2, 0) };
    Errno::result(done).map(|count| count as usize)
}

fn remote(address: u64, length: usize) -> iovec {
    iovec { iov_base: address as *mut c_void, iov_len: length }
}

/// A descriptor that stands for a process, or with `thread` for one thread (PIDFD_THREAD, 6.9).
pub fn pidfd_open(pid: pid_t, thread: bool) -> Result<OwnedFd, Errno> {
    const PIDFD_THREAD: c_uint = libc::O_EXCL as c_uint;
    let flags = if thread { PIDFD_THREAD } else { 0 };
    // SAFETY: plain numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Sends a signal to one thread (tkill(2)), whose number must be its own still: that of a stopped tracee of the caller's.
pub fn signal_thread(tid: pid_t, signal: c_int) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_tkill, tid, signal) }).map(drop)
}

/// Whether the process behind a pidfd has ended, so that its number is another's, or may be soon (pidfd_open(2)).
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0)
}

/// Sends a signal to the process behind a pidfd (pidfd_send_signal(2)).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<(), Errno> {
    // SAFETY: a null siginfo asks the kernel to make one, as kill(2) does.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// The process behind a pidfd, as the caller's own pid namespace numbers it (pidfd_open(2), on
/// fdinfo). `None`: it has been reaped, or it is not in that namespace.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Option<pid_t> {
    let info = generated::text(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A resource limit of a process, soft and hard; any of its threads names it (prlimit(2)).
pub fn limit(tid: pid_t, resource: u32) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the kernel reads nothing and writes one rlimit64.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, tid, resource, none, &raw mut limit) };
    Errno::result(done).map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// Sets one, soft and hard.
pub fn set_limit(tid: pid_t, resource: u32, (soft, hard): (u64, u64)) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the kernel reads one rlimit64 and writes nothing.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, tid, resource, &raw const limit, none) };
    Errno::result(done).map(drop)
}

/// CPU time of a process, threads that have ended included (clock_getcpuclockid(3)). Needs no right
/// over it (posix_cpu_clock_get in kernel/time/posix-cpu-timers.c asks for none).
pub fn cpu_time(pid: pid_t) -> Result<Duration, Errno> {
    let mut clock = 0;
    // SAFETY: the C library writes one clockid_t.
    match unsafe { libc::clock_getcpuclockid(pid, &mut clock) } {
        0 => {}
        errno => return Err(Errno::from_raw(errno)),
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    Errno::result(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}

/// Has the calling thread scheduled before all others of ordinary priority (sched(7)). With the right to
/// it that is a real-time policy, which children do not inherit: where each session is a group for the
/// scheduler (autogroup), a nice value counts in that group only, and a thread whose group is seldom busy
/// can wait for seconds beside a busy one. Without any right nothing changes.
pub fn hurry() {
    let lowest = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads one sched_param. 0 stands for the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const lowest) } == 0 {
        return;
    }
    let own = nix::unistd::gettid().as_raw() as libc::id_t;
    // SAFETY: plain numbers. On Linux the priority is the thread's alone (NOTES of the man page).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, own, -20) };
}

/// The status for a shell that a wait status stands for (wait(2)): 128+N where signal N ended it.
pub fn exit_status(status: c_int) -> c_int {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}
