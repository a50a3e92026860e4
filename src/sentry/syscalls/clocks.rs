//! Reading and setting the clocks of a sandbox that has its own (`--time`).
//!
//! Timeouts are `timeouts`' affair; most readings never come here, see `timekeeping::vdso`.

use nix::errno::Errno;
use nix::time::{ClockId as HostClock, clock_gettime as host_clock};

use super::args::{ClockId, In, InOut, Out, Time, Timespec, Timeval, Timex, Timezone};
use crate::notify::Answer;
use crate::sentry::call::Call;
use crate::sentry::vdso;
use crate::sys::clock::{self as sys, Timex as RawTimex};
use crate::timekeeping::{ClockKind, SECOND};

/// The clocks that show the time of day.
pub const TIME_OF_DAY: &[u64] = &[
    libc::CLOCK_REALTIME as u64,
    libc::CLOCK_REALTIME_COARSE as u64,
    libc::CLOCK_REALTIME_ALARM as u64,
    libc::CLOCK_TAI as u64,
];

/// The clocks that count from the start.
pub const STEADY: &[u64] = &[
    libc::CLOCK_MONOTONIC as u64,
    libc::CLOCK_MONOTONIC_RAW as u64,
    libc::CLOCK_MONOTONIC_COARSE as u64,
    libc::CLOCK_BOOTTIME as u64,
    libc::CLOCK_BOOTTIME_ALARM as u64,
];

/// Serves clock_gettime(2).
pub fn clock_gettime(call: &Call<'_>, clockid: ClockId, tp: Out<Timespec>) -> Answer {
    let Some(kind) = ClockKind::of(clockid.0) else { return Answer::Continue };
    let keeper = call.kernel.time().keeper();
    let mut now = match clockid.0 {
        libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE => keeper.now_by_ticks(kind),
        _ => keeper.now(kind),
    };
    if clockid.0 == libc::CLOCK_TAI {
        now = now.saturating_add(leap_seconds() * SECOND);
    }
    give(call, tp.address, pair(now, 1))
}

/// Serves gettimeofday(2).
pub fn gettimeofday(call: &Call<'_>, tv: Out<Timeval>, tz: Out<Timezone>) -> Answer {
    let now = call.kernel.time().keeper().now(ClockKind::Realtime);
    if tv.address != 0
        && let Err(errno) = call.memory().write(tv.address, &pair(now, 1000))
    {
        return Answer::Fail(errno);
    }
    // The host's kernel has a time zone only where its hardware clock keeps local time.
    if tz.address != 0
        && let Err(errno) = call.memory().write(tz.address, &[0; 8])
    {
        return Answer::Fail(errno);
    }
    Answer::Return(0)
}

/// Serves time(2).
pub fn time(call: &Call<'_>, tloc: Out<Time>) -> Answer {
    // (ktime_get_real_seconds in kernel/time/timekeeping.c.)
    let seconds = call.kernel.time().keeper().now_by_ticks(ClockKind::Realtime).div_euclid(SECOND);
    if tloc.address != 0
        && let Err(errno) = call.memory().write(tloc.address, &seconds.to_ne_bytes())
    {
        return Answer::Fail(errno);
    }
    Answer::Return(seconds)
}

/// Serves clock_settime(2): the clock of the sandbox, for its root.
pub fn clock_settime(call: &Call<'_>, clockid: ClockId, tp: In<Timespec>) -> Answer {
    // Clocks that nobody can set are for the kernel to refuse (posix_clock_settime, EINVAL).
    if clockid.0 != libc::CLOCK_REALTIME {
        return Answer::Continue;
    }
    match read_pair(call, tp.address) {
        Ok((seconds, nanoseconds)) => set(call, seconds, nanoseconds, 1),
        Err(errno) => Answer::Fail(errno),
    }
}

/// Serves settimeofday(2). A time zone of the kernel's is not kept.
pub fn settimeofday(call: &Call<'_>, tv: In<Timeval>, _tz: In<Timezone>) -> Answer {
    if tv.address == 0 {
        return if call.kernel.time().may_set() { Answer::Return(0) } else { not_root() };
    }
    match read_pair(call, tv.address) {
        Ok((seconds, microseconds)) => set(call, seconds, microseconds, 1000),
        Err(errno) => Answer::Fail(errno),
    }
}

/// Serves adjtimex(2).
pub fn adjtimex(call: &Call<'_>, buf: InOut<Timex>) -> Answer {
    adjust(call, buf.address)
}

/// Serves clock_adjtime(2).
pub fn clock_adjtime(call: &Call<'_>, clk_id: ClockId, buf: InOut<Timex>) -> Answer {
    match clk_id.0 {
        libc::CLOCK_REALTIME => adjust(call, buf.address),
        _ => Answer::Continue,
    }
}

/// Shows the host's state of synchronisation with the sandbox's time. What would slew the clock
/// steps it at once; its frequency stays the host's.
fn adjust(call: &Call<'_>, address: u64) -> Answer {
    let mut raw = [0; size_of::<RawTimex>()];
    if let Err(errno) = call.memory().read(address, &mut raw) {
        return Answer::Fail(errno);
    }
    let asked = sys::Adjustment::read(&raw);
    if asked.changes() {
        if !call.kernel.time().may_set() {
            return not_root();
        }
        if let Some(step) = asked.step() {
            let keeper = call.kernel.time().keeper();
            let now = keeper.now(ClockKind::Realtime);
            change(call, now.saturating_add(step).max(0));
        }
    }
    let now = call.kernel.time().keeper().now(ClockKind::Realtime);
    match sys::state_of_clock((now.div_euclid(SECOND), now.rem_euclid(SECOND))) {
        Ok((state, text)) => match call.memory().write(address, &text) {
            Ok(()) => Answer::Return(state.into()),
            Err(errno) => Answer::Fail(errno),
        },
        Err(errno) => Answer::Fail(errno),
    }
}

/// Sets the clock, as do_sys_settimeofday64 and timespec64_valid_settod (kernel/time) allow it.
fn set(call: &Call<'_>, seconds: i64, fraction: i64, unit: i64) -> Answer {
    /// TIME_SETTOD_SEC_MAX (include/linux/time64.h).
    const LATEST: i64 = i64::MAX / SECOND - 30 * 365 * 24 * 3600;
    if !(0..LATEST).contains(&seconds) || !(0..SECOND / unit).contains(&fraction) {
        return Answer::Fail(Errno::EINVAL);
    }
    if !call.kernel.time().may_set() {
        return not_root();
    }
    change(call, seconds * SECOND + fraction * unit);
    Answer::Return(0)
}

fn change(call: &Call<'_>, guest: i64) {
    crate::notify::hand_over();
    call.kernel.time().keeper().set(guest);
    vdso::tell_of_setting(call.kernel, call.received().tid);
}

/// Who is not root inside may not set the clock (settimeofday(2)).
fn not_root() -> Answer {
    Answer::Fail(Errno::EPERM)
}

/// TAI - UTC of the host.
fn leap_seconds() -> i64 {
    let read = |id| host_clock(id).map_or(0, |time| time.tv_sec() * SECOND + time.tv_nsec());
    // The two are read one after the other, so their distance is not a whole number.
    let (day, atomic) = (read(HostClock::CLOCK_REALTIME), read(HostClock::CLOCK_TAI));
    (atomic - day + SECOND / 2).div_euclid(SECOND)
}

/// Seconds and the rest of a time in units of so many nanoseconds.
pub(super) fn pair(time: i64, unit: i64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.div_euclid(SECOND).to_ne_bytes());
    bytes[8..].copy_from_slice(&(time.rem_euclid(SECOND) / unit).to_ne_bytes());
    bytes
}

fn give(call: &Call<'_>, address: u64, bytes: [u8; 16]) -> Answer {
    match call.memory().write(address, &bytes) {
        Ok(()) => Answer::Return(0),
        Err(errno) => Answer::Fail(errno),
    }
}

/// Two words: a timespec or a timeval.
fn read_pair(call: &Call<'_>, address: u64) -> Result<(i64, i64), Errno> {
    let mut raw = [0; 16];
    call.memory().read(address, &mut raw)?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&raw[at..at + 8]);
        i64::from_ne_bytes(word)
    };
    Ok((word(0), word(8)))
}
