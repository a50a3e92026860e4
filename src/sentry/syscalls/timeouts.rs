//! The timeouts of calls that wait, and timers, in a sandbox with clocks of its own.
//!
//! Owns where each call has its timeout, whether that is a span or a deadline, and on which clock.
//! The call is made again with the host's (`sentry::remake`). A deadline on the time of day is
//! converted in every run with `--time`; spans, and deadlines on other clocks, only where there is
//! a rate.

use std::os::fd::RawFd;
use std::time::Duration;

use super::args::*;
use crate::notify::Answer;
use crate::sentry::Features;
use crate::sentry::call::Call;
use crate::sentry::remake::{Argument, Change, GivenBack, When, remake};
use crate::sys::fdinfo::FdInfo;
use crate::timekeeping::timeout::{Form, Timeout};
use crate::timekeeping::{ClockKind, SECOND};

/// futex(2) operations whose timeout is a deadline on the time of day.
pub const DAY_FUTEXES: &[u64] = &futexes::<4, 8>([
    (libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME) as u64,
    libc::FUTEX_LOCK_PI as u64,
    (LOCK_PI2 | libc::FUTEX_CLOCK_REALTIME) as u64,
    (libc::FUTEX_WAIT_REQUEUE_PI | libc::FUTEX_CLOCK_REALTIME) as u64,
]);

/// Those whose timeout is a span, or a deadline on the monotonic clock.
pub const STEADY_FUTEXES: &[u64] = &futexes::<5, 10>([
    libc::FUTEX_WAIT as u64,
    (libc::FUTEX_WAIT | libc::FUTEX_CLOCK_REALTIME) as u64,
    libc::FUTEX_WAIT_BITSET as u64,
    LOCK_PI2 as u64,
    libc::FUTEX_WAIT_REQUEUE_PI as u64,
]);

/// FUTEX_LOCK_PI2 (Linux 5.14).
const LOCK_PI2: i32 = 13;

/// Each with FUTEX_PRIVATE_FLAG and without.
const fn futexes<const N: usize, const M: usize>(operations: [u64; N]) -> [u64; M] {
    assert!(M == 2 * N);
    let mut all = [0; M];
    let mut index = 0;
    while index < N {
        all[2 * index] = operations[index];
        all[2 * index + 1] = operations[index] | libc::FUTEX_PRIVATE_FLAG as u64;
        index += 1;
    }
    all
}

/// What a timeout says.
#[derive(Clone, Copy)]
enum Meaning {
    Span,
    Deadline(ClockKind),
}

/// A timeout behind a pointer argument.
struct Pointed {
    argument: usize,
    form: Form,
    meaning: Meaning,
    /// The kernel writes what is left over it.
    updated: bool,
    /// Where the kernel writes something left besides; 0 is nowhere.
    left: u64,
    /// It does so only where the wait is interrupted.
    if_interrupted: bool,
}

impl Pointed {
    fn new(argument: usize, form: Form, meaning: Meaning) -> Pointed {
        Pointed { argument, form, meaning, updated: false, left: 0, if_interrupted: false }
    }

    fn span(argument: usize, form: Form) -> Pointed {
        Pointed::new(argument, form, Meaning::Span)
    }

    fn updated(self) -> Pointed {
        Pointed { updated: true, ..self }
    }

    fn left(self, left: u64) -> Pointed {
        Pointed { left, ..self }
    }

    fn left_if_interrupted(self, left: u64) -> Pointed {
        Pointed { left, if_interrupted: true, ..self }
    }

    /// Has the call made with the host's timeout.
    fn serve(self, call: &Call<'_>) -> Answer {
        let received = call.received();
        let address = received.args[self.argument];
        if address == 0 || call.kernel.time().remade().has(received) {
            return Answer::Continue;
        }
        let mut bytes = [0; 32];
        let bytes = &mut bytes[..8 * self.form.words()];
        if call.memory().read(address, bytes).is_err() {
            return Answer::Continue;
        }
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            .collect();
        let Some(asked) = Timeout::of_words(self.form, &words) else { return Answer::Continue };
        let keeper = call.kernel.time().keeper();
        let wanted = match self.meaning {
            Meaning::Span => asked.span_to_host(keeper),
            Meaning::Deadline(clock) => asked.deadline_to_host(keeper, clock),
        };
        let mut given_back = Vec::new();
        if call.kernel.features().contains(Features::VIRTUAL_RATE) {
            let back = |address, when| GivenBack { address, form: self.form, when };
            let when = if self.if_interrupted { When::Interrupted } else { When::Done };
            given_back.extend(self.updated.then(|| back(address, When::OverTimeout)));
            given_back.extend((self.left != 0).then(|| back(self.left, when)));
        }
        if wanted == asked && given_back.is_empty() {
            return Answer::Continue;
        }
        let argument = Some((self.argument, Argument::Timeout(wanted)));
        let span = match self.meaning {
            Meaning::Span => wanted.duration(),
            Meaning::Deadline(_) => None,
        };
        remake(call, Change { span, ..change(received.number, argument, given_back) })
    }
}

fn change(number: u32, argument: Option<(usize, Argument)>, given_back: Vec<GivenBack>) -> Change {
    Change { argument, given_back, ..Change::nothing(number) }
}

/// A number of milliseconds in an argument; a negative one is for ever.
fn milliseconds(call: &Call<'_>, argument: usize, asked: i32) -> Answer {
    let received = call.received();
    if asked <= 0 || call.kernel.time().remade().has(received) {
        return Answer::Continue;
    }
    const MILLISECOND: i64 = SECOND / 1000;
    let span = call.kernel.time().keeper().host_span(i64::from(asked) * MILLISECOND);
    let wanted = (span.saturating_add(MILLISECOND - 1) / MILLISECOND).min(i32::MAX.into());
    if wanted == i64::from(asked) {
        return Answer::Continue;
    }
    let argument = Some((argument, Argument::Value(wanted as u64)));
    let span = Some(Duration::from_millis(wanted as u64));
    remake(call, Change { span, ..change(received.number, argument, Vec::new()) })
}

/// A call that only tells what is left of a timer.
fn tells(call: &Call<'_>, address: u64, form: Form) -> Answer {
    let received = call.received();
    if address == 0 || call.kernel.time().remade().has(received) {
        return Answer::Continue;
    }
    let back = GivenBack { address, form, when: When::Done };
    remake(call, change(received.number, None, vec![back]))
}

fn on_clock(id: i32, absolute: bool) -> Option<Meaning> {
    let kind = ClockKind::of(id)?;
    Some(if absolute { Meaning::Deadline(kind) } else { Meaning::Span })
}

/// Serves nanosleep(2).
pub fn nanosleep(call: &Call<'_>, _req: In<Timespec>, rem: Out<Timespec>) -> Answer {
    Pointed::span(0, Form::Timespec).left_if_interrupted(rem.address).serve(call)
}

/// Serves clock_nanosleep(2).
pub fn clock_nanosleep(
    call: &Call<'_>,
    clockid: ClockId,
    flags: Flags,
    _request: In<Timespec>,
    remain: Out<Timespec>,
) -> Answer {
    let absolute = flags.0 & libc::TIMER_ABSTIME as u32 != 0;
    let Some(meaning) = on_clock(clockid.0, absolute) else { return Answer::Continue };
    let left = if absolute { 0 } else { remain.address };
    Pointed::new(2, Form::Timespec, meaning).left_if_interrupted(left).serve(call)
}

/// Serves futex(2).
pub fn futex(
    call: &Call<'_>,
    _uaddr: InOut<FutexWord>,
    futex_op: FutexOperation,
    _val: UInt,
    _timeout: In<Timespec>,
    _uaddr2: InOut<FutexWord>,
    _val3: UInt,
) -> Answer {
    let day = futex_op.0 & libc::FUTEX_CLOCK_REALTIME != 0;
    let clock = if day { ClockKind::Realtime } else { ClockKind::Monotonic };
    let flags = libc::FUTEX_CLOCK_REALTIME | libc::FUTEX_PRIVATE_FLAG;
    let meaning = match futex_op.0 & !flags {
        // A span whatever the clock (futex_init_timeout in kernel/futex/syscalls.c).
        libc::FUTEX_WAIT => Meaning::Span,
        libc::FUTEX_LOCK_PI => Meaning::Deadline(ClockKind::Realtime),
        libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAIT_REQUEUE_PI | LOCK_PI2 => {
            Meaning::Deadline(clock)
        }
        _ => return Answer::Continue,
    };
    Pointed::new(3, Form::Timespec, meaning).serve(call)
}

/// Serves futex_waitv(2).
pub fn futex_waitv(
    call: &Call<'_>,
    _waiters: In<FutexWaitv>,
    _nr_futexes: UInt,
    _flags: Flags,
    _timeout: In<Timespec>,
    clockid: ClockId,
) -> Answer {
    match on_clock(clockid.0, true) {
        Some(meaning) => Pointed::new(3, Form::Timespec, meaning).serve(call),
        None => Answer::Continue,
    }
}

/// Serves futex_wait(2).
pub fn futex_wait(
    call: &Call<'_>,
    _uaddr: In<FutexWord>,
    _val: ULong,
    _mask: ULong,
    _flags: Flags,
    _timeout: In<Timespec>,
    clockid: ClockId,
) -> Answer {
    match on_clock(clockid.0, true) {
        Some(meaning) => Pointed::new(4, Form::Timespec, meaning).serve(call),
        None => Answer::Continue,
    }
}

/// Serves poll(2).
pub fn poll(call: &Call<'_>, _fds: InOut<PollFd>, _nfds: UInt, timeout: Int) -> Answer {
    milliseconds(call, 2, timeout.0)
}

/// Serves ppoll(2).
pub fn ppoll(
    call: &Call<'_>,
    _fds: InOut<PollFd>,
    _nfds: UInt,
    _tmo_p: InOut<Timespec>,
    _sigmask: In<SigSet>,
    _sigsetsize: Len,
) -> Answer {
    Pointed::span(2, Form::Timespec).updated().serve(call)
}

/// Serves select(2).
pub fn select(
    call: &Call<'_>,
    _nfds: Int,
    _readfds: InOut<FdSet>,
    _writefds: InOut<FdSet>,
    _exceptfds: InOut<FdSet>,
    _timeout: InOut<Timeval>,
) -> Answer {
    Pointed::span(4, Form::Timeval).updated().serve(call)
}

/// Serves pselect6(2).
pub fn pselect6(
    call: &Call<'_>,
    _nfds: Int,
    _readfds: InOut<FdSet>,
    _writefds: InOut<FdSet>,
    _exceptfds: InOut<FdSet>,
    _timeout: InOut<Timespec>,
    _sigmask: In<SigMaskArg>,
) -> Answer {
    Pointed::span(4, Form::Timespec).updated().serve(call)
}

/// Serves epoll_wait(2).
pub fn epoll_wait(
    call: &Call<'_>,
    _epfd: Fd,
    _events: Out<EpollEvent>,
    _maxevents: Int,
    timeout: Int,
) -> Answer {
    milliseconds(call, 3, timeout.0)
}

/// Serves epoll_pwait(2).
pub fn epoll_pwait(
    call: &Call<'_>,
    _epfd: Fd,
    _events: Out<EpollEvent>,
    _maxevents: Int,
    timeout: Int,
    _sigmask: In<SigSet>,
    _sigsetsize: Len,
) -> Answer {
    milliseconds(call, 3, timeout.0)
}

/// Serves epoll_pwait2(2).
pub fn epoll_pwait2(
    call: &Call<'_>,
    _epfd: Fd,
    _events: Out<EpollEvent>,
    _maxevents: Int,
    _timeout: In<Timespec>,
    _sigmask: In<SigSet>,
    _sigsetsize: Len,
) -> Answer {
    Pointed::span(3, Form::Timespec).serve(call)
}

/// Serves rt_sigtimedwait(2).
pub fn rt_sigtimedwait(
    call: &Call<'_>,
    _set: In<SigSet>,
    _info: Out<SigInfo>,
    _timeout: In<Timespec>,
    _sigsetsize: Len,
) -> Answer {
    Pointed::span(2, Form::Timespec).serve(call)
}

/// Serves semtimedop(2).
pub fn semtimedop(
    call: &Call<'_>,
    _semid: IpcId,
    _sops: In<SemBuf>,
    _nsops: UInt,
    _timeout: In<Timespec>,
) -> Answer {
    Pointed::span(3, Form::Timespec).serve(call)
}

/// Serves mq_timedsend(2).
pub fn mq_timedsend(
    call: &Call<'_>,
    _mqdes: Fd,
    _msg_ptr: InBuf,
    _msg_len: Len,
    _msg_prio: UInt,
    _abs_timeout: In<Timespec>,
) -> Answer {
    Pointed::new(4, Form::Timespec, Meaning::Deadline(ClockKind::Realtime)).serve(call)
}

/// Serves mq_timedreceive(2).
pub fn mq_timedreceive(
    call: &Call<'_>,
    _mqdes: Fd,
    _msg_ptr: OutBuf,
    _msg_len: Len,
    _msg_prio: Out<UIntCell>,
    _abs_timeout: In<Timespec>,
) -> Answer {
    Pointed::new(4, Form::Timespec, Meaning::Deadline(ClockKind::Realtime)).serve(call)
}

/// Serves recvmmsg(2).
pub fn recvmmsg(
    call: &Call<'_>,
    _sockfd: Fd,
    _msgvec: InOut<MMsgHdr>,
    _vlen: UInt,
    _flags: MsgFlags,
    _timeout: InOut<Timespec>,
) -> Answer {
    Pointed::span(4, Form::Timespec).updated().serve(call)
}

/// Serves io_getevents(2).
pub fn io_getevents(
    call: &Call<'_>,
    _ctx_id: IoContext,
    _min_nr: Long,
    _nr: Long,
    _events: Out<IoEvent>,
    _timeout: In<Timespec>,
) -> Answer {
    Pointed::span(4, Form::Timespec).serve(call)
}

/// Serves io_pgetevents(2).
pub fn io_pgetevents(
    call: &Call<'_>,
    _ctx_id: IoContext,
    _min_nr: Long,
    _nr: Long,
    _events: Out<IoEvent>,
    _timeout: In<Timespec>,
    _usig: In<AioSigSet>,
) -> Answer {
    Pointed::span(4, Form::Timespec).serve(call)
}

/// Serves timerfd_settime(2).
pub fn timerfd_settime(
    call: &Call<'_>,
    fd: Fd,
    flags: Flags,
    _new_value: In<Itimerspec>,
    old_value: Out<Itimerspec>,
) -> Answer {
    let absolute = flags.0 & libc::TFD_TIMER_ABSTIME as u32 != 0;
    let clock = clock_of_timerfd(call.received().tid, fd.0);
    let Some(meaning) = clock.and_then(|clock| on_clock(clock, absolute)) else {
        return Answer::Continue;
    };
    Pointed::new(2, Form::Itimerspec, meaning).left(old_value.address).serve(call)
}

/// Serves timerfd_gettime(2).
pub fn timerfd_gettime(call: &Call<'_>, _fd: Fd, curr_value: Out<Itimerspec>) -> Answer {
    tells(call, curr_value.address, Form::Itimerspec)
}

/// Serves timer_settime(2).
pub fn timer_settime(
    call: &Call<'_>,
    timerid: TimerId,
    flags: Flags,
    _new_value: In<Itimerspec>,
    old_value: Out<Itimerspec>,
) -> Answer {
    let absolute = flags.0 & libc::TIMER_ABSTIME as u32 != 0;
    let clock = clock_of_timer(call.received().tid, timerid.0);
    let Some(meaning) = clock.and_then(|clock| on_clock(clock, absolute)) else {
        return Answer::Continue;
    };
    Pointed::new(2, Form::Itimerspec, meaning).left(old_value.address).serve(call)
}

/// Serves timer_gettime(2).
pub fn timer_gettime(call: &Call<'_>, timerid: TimerId, curr_value: Out<Itimerspec>) -> Answer {
    match clock_of_timer(call.received().tid, timerid.0).and_then(ClockKind::of) {
        Some(_) => tells(call, curr_value.address, Form::Itimerspec),
        None => Answer::Continue,
    }
}

/// Serves setitimer(2). Timers that count CPU time are nobody's clock.
pub fn setitimer(
    call: &Call<'_>,
    which: Operation,
    new_value: In<Itimerval>,
    old_value: Out<Itimerval>,
) -> Answer {
    if which.0 != libc::ITIMER_REAL {
        return Answer::Continue;
    }
    if new_value.address == 0 {
        return tells(call, old_value.address, Form::Itimerval);
    }
    Pointed::span(1, Form::Itimerval).left(old_value.address).serve(call)
}

/// Serves getitimer(2).
pub fn getitimer(call: &Call<'_>, which: Operation, curr_value: Out<Itimerval>) -> Answer {
    match which.0 == libc::ITIMER_REAL {
        true => tells(call, curr_value.address, Form::Itimerval),
        false => Answer::Continue,
    }
}

/// Serves alarm(2) by setitimer(2), which knows less than seconds.
pub fn alarm(call: &Call<'_>, seconds: UInt) -> Answer {
    let keeper = call.kernel.time().keeper();
    let span = Timeout::of(Form::Itimerval, i64::from(seconds.0).saturating_mul(SECOND));
    remake(
        call,
        Change {
            argument: Some((1, Argument::Timeout(span.span_to_host(keeper)))),
            values: vec![(0, Argument::Value(libc::ITIMER_REAL as u64)), (2, Argument::Room)],
            result_is_left: true,
            ..Change::nothing(libc::SYS_setitimer as u32)
        },
    )
}

/// The clock of a timerfd (proc_pid_fdinfo(5)).
fn clock_of_timerfd(tid: i32, fd: RawFd) -> Option<i32> {
    FdInfo::of(tid, fd)?.field("clockid")?.parse().ok()
}

/// The clock of a POSIX timer (proc_pid_timers(5), with CONFIG_CHECKPOINT_RESTORE).
fn clock_of_timer(tid: i32, timer: i32) -> Option<i32> {
    let timers = std::fs::read_to_string(format!("/proc/{tid}/timers")).ok()?;
    let mut lines = timers.lines().skip_while(|line| {
        line.strip_prefix("ID:").and_then(|id| id.trim().parse().ok()) != Some(timer)
    });
    let line = lines.find_map(|line| line.strip_prefix("ClockID:"))?;
    line.trim().parse().ok()
}
