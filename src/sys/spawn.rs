//! Making processes and what one does to itself between clone and exec. Child side throughout.

use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong, gid_t, pid_t, uid_t};
use nix::errno::Errno;

use super::capabilities::{self, Data};
use super::strings::StringList;

/// Makes a process which runs `child(argument)` on a copy of this one's memory, and gives its pid
/// and a descriptor that stands for it (CLONE_PIDFD, Linux 5.2; unlike pidfd_open(2), no filter of
/// a container refuses it).
///
/// A raw clone(2): no handlers of pthread_atfork run and no lock of the C library is taken. Where
/// other threads exist, what they held locked stays locked in the child, so `child` may only use
/// functions marked "child side".
pub fn spawn<T>(flags: c_int, argument: &T, child: fn(&T) -> !) -> Result<(pid_t, OwnedFd), Errno> {
    let flags = (flags | libc::SIGCHLD | libc::CLONE_PIDFD) as c_ulong;
    let mut pidfd: c_int = -1;
    // SAFETY: without CLONE_VM the child has its own copy of the whole address space and runs on
    // the same stack contents; with a null stack it continues right here. The kernel writes one int
    // for the parent, in the place of the third argument (clone(2)).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match Errno::result(pid)? {
        0 => child(argument),
        // SAFETY: the kernel has just given this descriptor to us alone; the child has no copy.
        pid => Ok((pid as pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// As [`spawn`], and the child has number `pid` in the caller's pid namespace (clone3(2), set_tid;
/// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN there). EEXIST: the number is taken. Child side.
pub fn spawn_as<T>(pid: pid_t, argument: &T, child: fn(&T) -> !) -> Result<OwnedFd, Errno> {
    let mut pidfd: c_int = -1;
    // struct clone_args (clone(2)): flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size,
    // tls, set_tid, set_tid_size, cgroup.
    let arguments = [
        libc::CLONE_PIDFD as u64,
        &raw mut pidfd as u64,
        0,
        0,
        libc::SIGCHLD as u64,
        0,
        0,
        0,
        &raw const pid as u64,
        1,
        0,
    ];
    // SAFETY: as in `spawn`; the kernel reads the arguments and one pid, and writes one int.
    let done =
        unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    match Errno::result(done)? {
        0 => child(argument),
        // SAFETY: the kernel has just given this descriptor to us alone; the child has no copy.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(pidfd) }),
    }
}

/// As [`spawn`] without flags, on this process's own memory, which waits until the child has executed a program or ended
/// (CLONE_VFORK). Nothing is copied, and nothing of a copy is torn down by the exec.
///
/// Nobody may stop such a child: only this process would notice, and it waits.
pub fn spawn_and_wait<T>(argument: &T, child: fn(&T) -> !) -> Result<(pid_t, OwnedFd), Errno> {
    struct Call<'a, T> {
        argument: &'a T,
        child: fn(&T) -> !,
    }
    extern "C" fn enter<T>(call: *mut libc::c_void) -> c_int {
        // SAFETY: it is the one below, alive while the parent waits.
        let call = unsafe { &*call.cast::<Call<'_, T>>() };
        (call.child)(call.argument)
    }
    // The child's, 32 KiB: what leads to an exec needs a few of them, and each page is touched.
    let mut stack = std::mem::MaybeUninit::<[u128; 2 << 10]>::uninit();
    let mut call = Call { argument, child };
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the child runs on a stack of its own, which like `call` is alive while this thread waits;
    // the kernel writes one int for the parent.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(1).cast();
        libc::clone(enter::<T>, top, flags, (&raw mut call).cast(), &raw mut pidfd)
    };
    let pid = Errno::result(pid)?;
    // SAFETY: the kernel has just given this descriptor to us alone; the child has no copy.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// fork(2): `None` in the child. EBUSY where the caller has other threads, which the child would lack.
pub fn fork() -> Result<Option<pid_t>, Errno> {
    // proc_pid_task(5)
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is no other thread, so the child is whole and may do all that the parent may.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Ends the calling process without running destructors or exit handlers.
pub fn exit_now(status: c_int) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// unshare(2).
pub fn unshare(flags: c_int) -> Result<(), Errno> {
    // SAFETY: plain number.
    Errno::result(unsafe { libc::unshare(flags) }).map(drop)
}

/// prctl(2) with numbers only.
fn prctl(option: c_int, arg2: c_ulong, arg3: c_ulong) -> Result<c_int, Errno> {
    // SAFETY: only options without pointer arguments are passed (see the callers).
    Errno::result(unsafe { libc::prctl(option, arg2, arg3, 0, 0) })
}

/// The calling process gets `signal` when the thread that made it ends. Forgotten when ids change,
/// so it is asked for after them.
pub fn die_with_parent(signal: c_int) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, signal as c_ulong, 0).map(drop)
}

/// What the caller's descendants leave behind becomes its children, not those of init.
pub fn become_subreaper() -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// Nobody of the same user may trace this process or open its /proc files.
pub fn forbid_tracing() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// No exec gives privileges any more; needed to load a filter.
pub fn no_new_privileges() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Names the calling thread for `ps`.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel copies at most 16 bytes of a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// No exec gives a capability any more that is not in `kept`: leaves no other in the bounding set, and empties
/// the ambient one (capabilities(7)). Needs CAP_SETPCAP, so it comes before a change of user.
pub fn limit_bounding_set(kept: u64) -> Result<(), Errno> {
    const CAPABILITIES: c_ulong = 64;
    for capability in (0..CAPABILITIES).filter(|it| kept >> it & 1 == 0) {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // The kernel knows no more of them.
            Err(Errno::EINVAL) => break,
            done => done?,
        };
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0).map(drop)
}

/// Gives up every capability that the caller holds, but for those in `kept`: they are permitted, and
/// effective only in what root executes. That no_new_privs is set does not take them (an exec gives
/// what the bounding set has, as far as it was permitted before: cap_bprm_creds_from_file in
/// security/commoncap.c).
pub fn limit_capabilities(kept: u64) -> Result<(), Errno> {
    let half = |permitted| Data { permitted, ..Data::default() };
    capabilities::set(&[half(kept as u32), half((kept >> 32) as u32)])
}

/// Does something with the rights that the calling thread has without capabilities: those stay permitted, and are
/// effective again afterwards. Where they cannot be put away, nothing is done.
pub fn without_capabilities<T>(act: impl FnOnce() -> T) -> Result<T, Errno> {
    struct Again([Data; 2]);
    impl Drop for Again {
        fn drop(&mut self) {
            let _ = capabilities::set(&self.0);
        }
    }
    let data = capabilities::get()?;
    if data.iter().all(|half| half.effective == 0) {
        return Ok(act());
    }
    capabilities::set(&data.map(|half| Data { effective: 0, ..half }))?;
    let _again = Again(data);
    Ok(act())
}

/// All capabilities that the caller is permitted become effective and inheritable, and it keeps them
/// when it changes its user (PR_SET_KEEPCAPS). Before the bounding set is dropped: nothing is made
/// inheritable that is not in it (cap_capset in security/commoncap.c). Child side.
pub fn hold_capabilities() -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    let mut data = capabilities::get()?;
    for half in &mut data {
        half.effective = half.permitted;
        half.inheritable = half.permitted;
    }
    capabilities::set(&data)
}

/// What the caller is permitted and may pass on stays with the program that it executes next
/// (PR_CAP_AMBIENT in capabilities(7)). Child side.
pub fn pass_capabilities_on() -> Result<(), Errno> {
    for capability in 0..64 {
        match prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as c_ulong, capability) {
            // EPERM: it is not permitted; EINVAL: the kernel knows no more of them.
            Ok(_) | Err(Errno::EPERM) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Executes the file behind a descriptor, with no arguments and no environment; returns only on failure.
/// Child side.
pub fn execute_descriptor(fd: BorrowedFd<'_>) -> Errno {
    let none = [std::ptr::null::<c_char>()];
    let (raw, flags) = (fd.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: an empty path and two null-terminated arrays.
    unsafe {
        libc::syscall(libc::SYS_execveat, raw, c"".as_ptr(), none.as_ptr(), none.as_ptr(), flags)
    };
    Errno::last()
}

/// Becomes `uid` and `gid`, with exactly these supplementary groups where `groups` is given. Raw
/// system calls: the C library's would ask its other threads to follow.
pub fn become_user(uid: uid_t, gid: gid_t, groups: Option<&[gid_t]>) -> Result<(), Errno> {
    if let Some(groups) = groups {
        // SAFETY: pointer and count are those of a valid slice.
        let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        Errno::result(done)?;
    }
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Starts a new, empty session keyring: the caller's keys stay outside (keyrings(7)).
pub fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) };
    Errno::result(done).map(drop)
}

/// Programs that are executed from here on lie where they would without randomisation of addresses
/// (personality(2), ADDR_NO_RANDOMIZE). Child side.
pub fn keep_addresses() -> Result<(), Errno> {
    // SAFETY: plain numbers; all ones only asks.
    let now = Errno::result(unsafe { libc::personality(0xffff_ffff) })?;
    let wanted = now | libc::ADDR_NO_RANDOMIZE;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::personality(wanted as libc::c_ulong) }).map(drop)
}

/// sethostname(2).
pub fn set_hostname(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of a valid slice.
    Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Brings the loopback of this network namespace up (netdevice(7)).
pub fn raise_loopback() -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the ioctl reads one ifreq.
    let done = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &request as *const libc::ifreq) };
    let done = Errno::result(done).map(drop);
    // SAFETY: `fd` is ours and not used again.
    unsafe { libc::close(fd) };
    done
}

/// No core dumps unless the program asks for them: a host's core_pattern may name a program that
/// runs outside.
///
/// The limit is one byte, not none: such a program is run whatever the limit, except for exactly 1
/// (fs/coredump.c, coredump_pipe), and a file needs a page at least. A hard limit of 0 stays.
pub fn soft_core_limit_one() -> Result<(), Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max.min(1);
    // SAFETY: the kernel reads one rlimit.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) }).map(drop)
}

/// Sets the soft and the hard limit of a resource to `value`, or to the hard limit if that is lower.
pub fn set_limit(resource: u32, value: u64) -> Result<(), Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit.
    Errno::result(unsafe { libc::getrlimit(resource as _, &mut limit) })?;
    let value = value.min(limit.rlim_max);
    limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the kernel reads one rlimit.
    Errno::result(unsafe { libc::setrlimit(resource as _, &limit) }).map(drop)
}

/// A set of processors, as sched_setaffinity(2) wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuMask(Vec<u64>);

impl CpuMask {
    /// These processors. Allocates.
    pub fn new(cpus: &[usize]) -> CpuMask {
        let mut words = vec![0; cpus.iter().max().map_or(0, |most| most / 64 + 1)];
        for cpu in cpus {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        CpuMask(words)
    }

    /// From the bytes of a guest, of which what does not fill a word is zero.
    pub fn from_bytes(bytes: &[u8]) -> CpuMask {
        let word =
            |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        CpuMask(bytes.chunks(8).map(word).collect())
    }

    /// The processors that are in both.
    pub fn intersection(&self, other: &CpuMask) -> CpuMask {
        CpuMask(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

/// The calling thread, and what it makes, runs on these processors only (sched_setaffinity(2)).
pub fn set_affinity(cpus: &CpuMask) -> Result<(), Errno> {
    set_affinity_of(0, cpus)
}

/// The same for another thread of the caller's user.
pub fn set_affinity_of(tid: pid_t, cpus: &CpuMask) -> Result<(), Errno> {
    let bytes = size_of_val(cpus.0.as_slice());
    // SAFETY: the kernel reads `bytes` bytes of a valid slice.
    let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, bytes, cpus.0.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Starts a session (setsid(2)): the caller leaves its controlling terminal behind.
pub fn new_session() -> Result<(), Errno> {
    // SAFETY: no arguments.
    Errno::result(unsafe { libc::setsid() }).map(drop)
}

/// Moves the caller to a process group of its own.
pub fn new_process_group() -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::setpgid(0, 0) }).map(drop)
}

/// The caller's pid as its own namespace numbers it.
pub fn own_pid() -> pid_t {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_getpid) as pid_t }
}

/// kill(2); a negative pid names a process group.
pub fn kill(pid: pid_t, signal: c_int) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// What became of a child.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// Which.
    pub pid: pid_t,
    /// Its wait status (wait(2)).
    pub status: c_int,
    /// CPU time of it and of the descendants it has waited for, in microseconds.
    pub cpu_us: u64,
    /// The largest resident set of one process among those, in KiB.
    pub peak_kib: u64,
}

/// A change of state of a child of the caller, if there is one now (wait4(2)). Stops are reported too.
pub fn reap() -> Option<Change> {
    wait_child(libc::WNOHANG | libc::WUNTRACED).ok().filter(|change| change.pid > 0)
}

/// Waits for the end of a child. ECHILD: there is none.
pub fn await_end() -> Result<Change, Errno> {
    loop {
        match wait_child(0) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

fn wait_child(options: c_int) -> Result<Change, Errno> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one int and one rusage.
    let pid = Errno::result(unsafe { libc::wait4(-1, &mut status, options, &mut usage) })?;
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    let cpu_us = micros(usage.ru_utime) + micros(usage.ru_stime);
    Ok(Change { pid, status, cpu_us, peak_kib: usage.ru_maxrss as u64 })
}

/// The signal by which child `pid` has stopped, if it has and that was not told yet. An end is left
/// for [`reap`].
pub fn stopped(pid: pid_t) -> Option<c_int> {
    // SAFETY: an all-zero siginfo is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WSTOPPED | libc::WNOHANG;
    // SAFETY: the kernel writes one siginfo.
    let done = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) };
    // SAFETY: the kernel has filled in the fields of SIGCHLD, or left zeros (waitid(2)).
    let (found, signal) = unsafe { (info.si_pid(), info.si_status()) };
    (done == 0 && found == pid).then_some(signal)
}

/// execve(2); returns only on failure.
pub fn execute(path: &CStr, argv: StringList<'_>, envp: StringList<'_>) -> Errno {
    // SAFETY: both arrays are null-terminated and their strings are alive (StringLists).
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// Gives signals back their actions of before the supervisor's runtime changed them, and unblocks all
/// those that were not blocked in the caller of the supervisor.
pub fn restore_signals(mask: &nix::sys::signal::SigSet) {
    if !super::inherited::sigpipe_ignored() {
        // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    // SAFETY: the set is valid and outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask.as_ref(), std::ptr::null_mut()) };
}

/// A signalfd(2) for `mask`, whose signals the caller blocks too.
pub fn signal_descriptor(mask: &nix::sys::signal::SigSet) -> Result<c_int, Errno> {
    // SAFETY: the set is valid and outlives both calls.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, mask.as_ref(), std::ptr::null_mut()) };
    // SAFETY: as above.
    let fd = unsafe { libc::signalfd(-1, mask.as_ref(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    Errno::result(fd)
}

/// The next signal of a signalfd, if one is there.
pub fn read_signal(fd: BorrowedFd<'_>) -> Option<c_int> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    match super::files::read_once(fd, &mut info) {
        // `ssi_signo`, an u32, comes first (signalfd(2)).
        Ok(count) if count == info.len() => {
            Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as c_int)
        }
        _ => None,
    }
}

/// Waits until one of two descriptors is readable or hung up; no limit. (first, second).
pub fn wait_readable(fds: [BorrowedFd<'_>; 2]) -> Result<(bool, bool), Errno> {
    let mut polls =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: two valid pollfds.
    match Errno::result(unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) }) {
        Ok(_) => Ok((polls[0].revents != 0, polls[1].revents != 0)),
        Err(Errno::EINTR) => Ok((false, false)),
        Err(errno) => Err(errno),
    }
}
