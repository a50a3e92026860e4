//! CPU times as a restored guest is told them: what the kernel has counted since, and what was brought along
//! (`sentry::carried`).
//!
//! The CPU clocks are read here. What has more in it than CPU times the kernel answers, and only those are
//! changed as the call returns (`sentry::remake`).

use std::time::Duration;

use super::args::{ClockId, Int, Out, Rusage, Timespec, Tms};
use super::clocks::pair;
use crate::notify::{Answer, hand_over};
use crate::sentry::call::Call;
use crate::sentry::carried::Used;
use crate::sentry::remake::{Addition, show_used};
use crate::sentry::task::Status;
use crate::sys::cpu_clock::process_time;

/// The clocks of the calling process and thread.
pub const CPU: &[u64] =
    &[libc::CLOCK_PROCESS_CPUTIME_ID as u64, libc::CLOCK_THREAD_CPUTIME_ID as u64];

/// Clocks of others, and of descriptors, have negative numbers (CPUCLOCK_PID,
/// include/linux/posix-timers_types.h).
pub const DYNAMIC: i32 = i32::MIN;

/// Whose CPU clock is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// That of the process with this number, or of the calling one.
    Process(i32),
    /// Likewise.
    Thread(i32),
}

impl Whose {
    /// None: a clock of another kind.
    fn of(clock: i32) -> Option<Whose> {
        const CPUCLOCK_SCHED: i32 = 2;
        const CPUCLOCK_PERTHREAD_MASK: i32 = 4;
        match clock {
            libc::CLOCK_PROCESS_CPUTIME_ID => Some(Whose::Process(0)),
            libc::CLOCK_THREAD_CPUTIME_ID => Some(Whose::Thread(0)),
            clock if clock >= 0 || clock & 3 != CPUCLOCK_SCHED => None,
            clock if clock & CPUCLOCK_PERTHREAD_MASK != 0 => Some(Whose::Thread(!(clock >> 3))),
            clock => Some(Whose::Process(!(clock >> 3))),
        }
    }
}

/// Serves clock_gettime(2) of CPU clocks.
pub fn clock_gettime(call: &Call<'_>, clockid: ClockId, tp: Out<Timespec>) -> Answer {
    let tid = call.received().tid;
    let found = |number: i32| match number {
        0 => Some(tid),
        number => {
            hand_over();
            call.kernel.find_thread(tid, number)
        }
    };
    let carried = call.kernel.carried();
    let read = match Whose::of(clockid.0) {
        Some(Whose::Process(number)) => found(number).and_then(|other| {
            let pid = process_of(other)?;
            // What the kernel says to the number of another thread is its own affair.
            let is_process = number == 0 || other == pid;
            let since = process_time(pid).ok().filter(|_| is_process)?;
            Some((since, carried.own(pid)))
        }),
        // Those of other processes cannot be read (pid_for_clock in kernel/time/posix-cpu-timers.c).
        Some(Whose::Thread(number)) => found(number)
            .filter(|other| process_of(*other) == process_of(tid))
            .and_then(|other| Some((thread_time(other)?, carried.thread(other)))),
        None => None,
    };
    match read {
        Some((since, brought)) if brought != Used::default() => {
            give(call, tp.address, since + brought.total())
        }
        _ => Answer::Continue,
    }
}

/// The process of a thread.
fn process_of(tid: i32) -> Option<i32> {
    Status::read(tid).ok().map(|status| status.tgid)
}

/// What the CPU clock of a thread that waits in the kernel shows (schedstat,
/// Documentation/scheduler/sched-stats.rst).
fn thread_time(tid: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn give(call: &Call<'_>, address: u64, time: Duration) -> Answer {
    call.memory().write(address, &pair(time.as_nanos() as i64, 1)).map(|()| 0).into()
}

/// Serves getrusage(2).
pub fn getrusage(call: &Call<'_>, who: Int, usage: Out<Rusage>) -> Answer {
    if call.kernel.time().remade().has(call.received()) {
        return Answer::Continue;
    }
    let (tid, carried) = (call.received().tid, call.kernel.carried());
    let Some(pid) = process_of(tid) else { return Answer::Continue };
    let brought = match who.0 {
        libc::RUSAGE_SELF => carried.own(pid),
        libc::RUSAGE_CHILDREN => carried.children(pid),
        libc::RUSAGE_THREAD => carried.thread(tid),
        _ => return Answer::Continue,
    };
    show(call, Addition::Usage { address: usage.address, used: brought })
}

/// Serves times(2).
pub fn times(call: &Call<'_>, buf: Out<Tms>) -> Answer {
    if call.kernel.time().remade().has(call.received()) || buf.address == 0 {
        return Answer::Continue;
    }
    let (tid, carried) = (call.received().tid, call.kernel.carried());
    let Some(pid) = process_of(tid) else { return Answer::Continue };
    let used = [carried.own(pid), carried.children(pid)];
    show(call, Addition::Times { address: buf.address, used })
}

fn show(call: &Call<'_>, addition: Addition) -> Answer {
    if addition.is_nothing() { Answer::Continue } else { show_used(call, addition) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_clocks_tell_whose_they_are() {
        assert_eq!(Whose::of(libc::CLOCK_PROCESS_CPUTIME_ID), Some(Whose::Process(0)));
        assert_eq!(Whose::of(libc::CLOCK_THREAD_CPUTIME_ID), Some(Whose::Thread(0)));
        // clock_getcpuclockid(3) and pthread_getcpuclockid(3) make these.
        assert_eq!(Whose::of(!7 << 3 | 2), Some(Whose::Process(7)));
        assert_eq!(Whose::of(!7 << 3 | 6), Some(Whose::Thread(7)));
        // A clock of a descriptor, one of another kind, and one of time.
        assert_eq!((Whose::of(!7 << 3 | 3), Whose::of(!7 << 3)), (None, None));
        assert_eq!(Whose::of(libc::CLOCK_MONOTONIC), None);
    }

    #[test]
    fn the_clock_of_a_thread_goes_on() {
        let own = nix::unistd::gettid().as_raw();
        let before = thread_time(own).unwrap();
        let since = std::time::Instant::now();
        // (It is told as of the last time that the thread was taken from its processor.)
        while thread_time(own).unwrap() == before {
            assert!(since.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
    }
}
