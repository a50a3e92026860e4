//! CPU clocks of other processes, and timers on them.
//!
//! Neither needs a right over the process: clock_gettime and timer_create look the number up and ask
//! for nothing else (pid_for_clock in kernel/time/posix-cpu-timers.c, since Linux 2.6.12).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use libc::{c_int, clockid_t, pid_t};
use nix::errno::Errno;

/// The clock of all threads of a process, those that have ended too (CPUCLOCK_SCHED,
/// include/linux/posix-timers_types.h).
fn process_clock(pid: pid_t) -> clockid_t {
    const CPUCLOCK_SCHED: clockid_t = 2;
    !pid << 3 | CPUCLOCK_SCHED
}

/// CPU time of a process; an error where it has ended and been waited for.
pub fn process_time(pid: pid_t) -> Result<Duration, Errno> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    Errno::result(unsafe { libc::clock_gettime(process_clock(pid), &mut time) })?;
    Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}

/// The signal by which timers tell: the last real-time one, which nothing else here uses.
fn signal() -> c_int {
    libc::SIGRTMAX()
}

/// The calling thread as a receiver of its own timers' signals, which it blocks: they are meant for
/// this thread alone (SIGEV_THREAD_ID), so no other one need block them.
#[derive(Debug)]
pub struct TimerSignals {
    fd: OwnedFd,
    thread: pid_t,
}

impl TimerSignals {
    /// For the calling thread.
    pub fn of_this_thread() -> Result<TimerSignals, Errno> {
        // SAFETY: an all-zero sigset_t is a place for sigemptyset to write to.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is valid.
        unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal());
        }
        // SAFETY: the set is valid and only read.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => {}
            errno => return Err(Errno::from_raw(errno)),
        }
        // SAFETY: as above.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: no arguments.
        Ok(TimerSignals { fd, thread: unsafe { libc::gettid() } })
    }

    /// Takes all signals that are there; gives whether there was one.
    pub fn drain(&self) -> bool {
        let mut any = false;
        let mut room = [0; 16 * size_of::<libc::signalfd_siginfo>()];
        while let Ok(count) = nix::unistd::read(&self.fd, &mut room) {
            any |= count > 0;
        }
        any
    }

    /// A timer on the CPU clock of `pid` that tells this thread. EAGAIN: too many signals are queued
    /// for this user (RLIMIT_SIGPENDING; each timer holds one).
    pub fn timer(&self, pid: pid_t) -> Result<CpuTimer, Errno> {
        // SAFETY: an all-zero sigevent is valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = self.thread;
        let mut id: c_int = 0;
        // The raw call: the C library's knows no timers on the clocks of other processes in some
        // versions, and has its own numbers for them.
        // SAFETY: the kernel reads one sigevent and writes one int.
        let done = unsafe {
            libc::syscall(libc::SYS_timer_create, process_clock(pid), &raw mut event, &raw mut id)
        };
        Errno::result(done)?;
        Ok(CpuTimer { id })
    }
}

impl AsFd for TimerSignals {
    /// Readable when a timer has told.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A timer on a process's CPU clock.
#[derive(Debug)]
pub struct CpuTimer {
    id: c_int,
}

impl CpuTimer {
    /// It tells once, as soon as the process is seen running (at the host's clock tick). ESRCH: the
    /// process has ended.
    pub fn arm(&self) -> Result<(), Errno> {
        self.set(1)
    }

    /// It does not tell.
    pub fn disarm(&self) -> Result<(), Errno> {
        self.set(0)
    }

    fn set(&self, nanoseconds: i64) -> Result<(), Errno> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec { tv_sec: 0, tv_nsec: nanoseconds as _ },
        };
        // SAFETY: the kernel reads one itimerspec; a null pointer asks for no old value.
        let done = unsafe {
            libc::syscall(
                libc::SYS_timer_settime,
                self.id,
                0,
                &raw const value,
                std::ptr::null_mut::<libc::itimerspec>(),
            )
        };
        Errno::result(done).map(drop)
    }
}

impl Drop for CpuTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and not used again.
        unsafe { libc::syscall(libc::SYS_timer_delete, self.id) };
    }
}

/// Waits until one of the descriptors is readable, or `timeout` is over; `None` waits for ever. Says
/// for each whether it is.
pub fn wait<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> Result<[bool; N], Errno> {
    let mut polls =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as _,
        tv_nsec: timeout.subsec_nanos() as _,
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: N valid pollfds and a timespec or null; a null mask leaves the signals as they are.
    let done =
        unsafe { libc::ppoll(polls.as_mut_ptr(), N as libc::nfds_t, timeout, std::ptr::null()) };
    match Errno::result(done) {
        Ok(_) => Ok(polls.map(|poll| poll.revents != 0)),
        Err(Errno::EINTR) => Ok([false; N]),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_timer_tells_when_another_process_runs_and_not_before() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; while :; do :; done"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let status = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        while !status().contains(") S ") {
            std::thread::yield_now();
        }
        let signals = TimerSignals::of_this_thread().unwrap();
        let timer = signals.timer(pid).unwrap();
        timer.arm().unwrap();
        let before = process_time(pid).unwrap();
        assert_eq!(wait([signals.as_fd()], Some(Duration::from_millis(50))), Ok([false]));
        drop(child.stdin.take());
        // It ends its read and spins.
        assert_eq!(wait([signals.as_fd()], Some(Duration::from_secs(30))), Ok([true]));
        assert!(signals.drain() && !signals.drain());
        assert!(process_time(pid).unwrap() > before);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process_time(pid).is_err());
        assert!(timer.arm().is_err());
    }
}
