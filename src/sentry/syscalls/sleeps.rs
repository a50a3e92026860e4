//! nanosleep(2) and clock_nanosleep(2): sleeping for a span moves the time of day on, in a run that repeats and
//! whose clock stands still (`--deterministic`).
//!
//! Some programs make a file, sleep for a second, and make another one that has to be newer (`configure` does).
//! What they count on is that they have slept; how long anything else takes means nothing to them. So
//! sleeping is what such a clock counts: the same number of sleeps in every run. The clock is moved before the
//! kernel sleeps: nothing tells the sentry of the end, and in between the program does nothing.

use super::args::{ClockId, Flags, In, Out, Timespec};
use super::timeouts;
use crate::notify::{Answer, hand_over};
use crate::sentry::call::Call;
use crate::sentry::{Features, vdso};
use crate::timekeeping::{ClockKind, SECOND};

/// Shorter sleeps count nothing: who polls for something sleeps as often as that takes.
const COUNTS: i64 = SECOND / 2;

/// Serves nanosleep(2).
pub fn nanosleep(call: &Call<'_>, request: In<Timespec>, rem: Out<Timespec>) -> Answer {
    // (A clock that stands still has no rate.)
    if call.kernel.features().contains(Features::VIRTUAL_RATE) {
        return timeouts::nanosleep(call, request, rem);
    }
    step(call, request.address);
    Answer::Continue
}

/// Serves clock_nanosleep(2).
pub fn clock_nanosleep(
    call: &Call<'_>,
    clockid: ClockId,
    flags: Flags,
    request: In<Timespec>,
    remain: Out<Timespec>,
) -> Answer {
    // A deadline on a clock that moves: how far away that is differs from run to run.
    let absolute = flags.0 & libc::TIMER_ABSTIME as u32 != 0;
    let kind = ClockKind::of(clockid.0);
    let has_rate = call.kernel.features().contains(Features::VIRTUAL_RATE);
    if !absolute && kind.is_some() && !has_rate {
        step(call, request.address);
    }
    match has_rate || absolute && kind == Some(ClockKind::Realtime) {
        true => timeouts::clock_nanosleep(call, clockid, flags, request, remain),
        false => Answer::Continue,
    }
}

fn step(call: &Call<'_>, address: u64) {
    if !call.kernel.features().contains(Features::DETERMINISTIC) {
        return;
    }
    let mut bytes = [0; 16];
    if call.memory().read(address, &mut bytes).is_err() {
        return;
    }
    let [seconds, rest] = [0, 8].map(|at| {
        let word: [u8; 8] = std::array::from_fn(|index| bytes[at + index]);
        i64::from_ne_bytes(word)
    });
    // What the kernel refuses is no sleep (timespec64_valid in include/linux/time64.h).
    let is_sleep = seconds >= 0 && (0..SECOND).contains(&rest);
    if !is_sleep || seconds.saturating_mul(SECOND).saturating_add(rest) < COUNTS {
        return;
    }
    hand_over();
    if call.kernel.time().keeper().step() {
        vdso::tell_of_setting(call.kernel, call.received().tid);
    }
}
