//! Timers that had expired more often than their program has noticed (timer_getoverrun(2)).
//!
//! Nobody can tell the kernel such a count. It counts by itself when the signal of a timer that repeats is
//! taken: how many intervals ago it first expired (__posixtimer_deliver_signal and common_hrtimer_rearm in
//! kernel/time/posix-timers.c). So a timer is set to a time in the past (TIMER_ABSTIME of timer_settime(2)):
//!
//! - Where its signal waits ([`Timer::waiting`]), to when it first expired. It expires at once, its signal
//!   waits, and whoever takes it finds the count.
//! - Where its signal was taken, to so many intervals ago that its count is what it was; and the signal is taken
//!   here, at once. From then on it expires when it would have.
//!
//! What that cannot do: go back behind the beginning of the clock, of the guest or of the host (a time
//! before that counts as the beginning, do_timens_ktime_to_host in kernel/time/namespace.c), so that a count
//! can come out smaller; both at once, a signal that waits and the count of the one before; and clocks of CPU
//! time, which begin anew. A timer on CLOCK_REALTIME that is set for a point in time follows that clock, and
//! does not when it is set for a span (common_hrtimer_arm): these all follow it.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde_bytes::ByteBuf;

use super::threads;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::state::{Process, Thread};
use crate::save::timers::{SECOND, Timer, times};

/// How a timer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// It expires after this time (nanoseconds); 0: it does not run.
    In(u64),
    /// Likewise, and its last signal had this count.
    Counted(u64, u64),
    /// Its signal waits, and it first expired so long ago.
    Waiting(u128),
}

/// How each of the process's timers begins.
pub fn plan(process: &Process) -> Vec<Beginning> {
    process.timers.iter().map(|timer| beginning(process, timer)).collect()
}

fn beginning(process: &Process, timer: &Timer) -> Beginning {
    let Timer { interval, remaining, .. } = *timer;
    let first = match timer.waiting {
        Some(count) if entry(process, timer).is_some() => {
            let passed = (u128::from(count) + 1) * u128::from(interval);
            match u128::from(remaining).checked_sub(passed) {
                None | Some(0) => return Beginning::Waiting(passed - u128::from(remaining)),
                // It did while all stood still, which is after the moment of the image.
                Some(left) => left as u64,
            }
        }
        _ => remaining,
    };
    let counts = timer.overrun > 0 && first > 0 && interval > 0 && is_told(timer);
    match counts && timer.is_on_wall_clock() {
        true => Beginning::Counted(first.min(interval), timer.overrun as u64),
        false => Beginning::In(first),
    }
}

/// Whether its signal is one that can be taken.
fn is_told(timer: &Timer) -> bool {
    timer.notify & !libc::SIGEV_THREAD_ID != libc::SIGEV_NONE
        && (1..=64).contains(&timer.signal)
        && !matches!(timer.signal, libc::SIGKILL | libc::SIGSTOP)
}

/// The signal that is the timer's own, in its queue: who has the process's number has its threads' as well,
/// so the queue is told by whom the timer tells. (An earlier one is a copy, which was taken already.)
fn entry(process: &Process, timer: &Timer) -> Option<usize> {
    if !is_told(timer) || !timer.is_on_wall_clock() {
        return None;
    }
    let queue = match timer.told_thread() {
        None => &process.pending,
        Some(tid) => &process.threads.iter().find(|it| it.tid == tid)?.pending,
    };
    queue.iter().rposition(|it| timer.is_sender_of(it))
}

/// Starts those whose signals were taken. All is blocked, and no signal waits.
pub fn count(
    (hand, others): (&mut Hand, &mut [Hand]),
    process: &Process,
    beginnings: &[Beginning],
    who: &str,
) -> Result<(), RestoreError> {
    for (timer, beginning) in process.timers.iter().zip(beginnings) {
        let Beginning::Counted(next, overrun) = *beginning else { continue };
        let at = match timer.told_thread() {
            None => Some(0),
            Some(tid) => process.threads.iter().position(|it| it.tid == tid),
        };
        let hand = match at {
            Some(0) => Some(&mut *hand),
            at => at.and_then(|at| others.get_mut(at - 1)),
        };
        let Some(hand) = hand else { continue };
        count_one(hand, timer, next, overrun)
            .map_err(RestoreError::of(format!("{who}: its timers")))?;
    }
    Ok(())
}

/// A timer that expires again before its signal was taken here has counted once more. It is tried again
/// then, with what is known of how long it takes; where the intervals are too short for that, the count
/// may be too large by as many.
const TRIES: usize = 8;

/// It expires neither just before nor just after its signal is taken, if its intervals are longer than twice
/// this: nanoseconds.
const MARGIN: u64 = 500_000;

fn count_one(hand: &mut Hand, timer: &Timer, next: u64, overrun: u64) -> Result<(), HandError> {
    let interval = timer.interval;
    let margin = MARGIN.min(interval / 4);
    let next = next.clamp(margin, interval - margin);
    let mut late = 0;
    for _ in 0..TRIES {
        let now = now(hand, timer)?;
        let wanted = (u128::from(overrun) + 1) * u128::from(interval) - u128::from(next);
        let ago = within(wanted, interval, age(timer, now));
        let left = (u128::from(ago) + u128::from(next)) / u128::from(interval);
        let mut table = hand.table();
        if left < 2 {
            // Nothing is left to be counted.
            let new = table.data(&times(SECOND, interval, next));
            table.call(libc::SYS_timer_settime, [timer.id as u64, 0, new.address, 0]);
            return hand.run(&table).map(drop);
        }
        let new = table.data(&times(SECOND, interval, (now + late - ago).max(1)));
        let id = timer.id as u64;
        table.call(libc::SYS_timer_settime, [id, libc::TIMER_ABSTIME as u64, new.address, 0]);
        let set = table.data(&timer.signal_set());
        let time = table.data(&[0, ARRIVAL.as_nanos() as u64].map(u64::to_ne_bytes).concat());
        let arguments = [set.address, 0, time.address, 8];
        let taken = table.attempt(libc::SYS_rt_sigtimedwait, arguments);
        let count = table.call(libc::SYS_timer_getoverrun, [id]);
        let then = table.room(16);
        table.call(libc::SYS_clock_gettime, [timer.clock as u64, then.address]);
        let done = hand.run(&table)?;
        if done.result(taken).is_err() {
            break;
        }
        if done.result(count).is_ok_and(|count| u128::from(count) + 1 == left) {
            return Ok(());
        }
        late = (done.word(then, 0) * SECOND + done.word(then, 1)).saturating_sub(now);
    }
    Ok(())
}

/// A signal that is on its way has come by then.
const ARRIVAL: Duration = Duration::from_millis(50);

fn now(hand: &mut Hand, timer: &Timer) -> Result<u64, HandError> {
    let (_, time) =
        hand.call_with(libc::SYS_clock_gettime, &[0; 16], |at| [timer.clock as u64, at])?;
    let word = |at: usize| time[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    Ok(word(0).saturating_mul(SECOND).saturating_add(word(8)))
}

/// How far one can go back: the clock may have begun later for the host than for the guest.
fn age(timer: &Timer, now: u64) -> u64 {
    let host = clock_gettime(ClockId::from_raw(timer.clock)).map_or(u64::MAX, |it| {
        (it.tv_sec() as u64).saturating_mul(SECOND).saturating_add(it.tv_nsec() as u64)
    });
    host.min(now)
}

/// `ago`, less as many intervals as it takes to be within an age.
fn within(ago: u128, interval: u64, age: u64) -> u64 {
    let over = (ago + 1).saturating_sub(u128::from(age));
    let intervals = over.div_ceil(u128::from(interval.max(1)));
    let less = intervals.saturating_mul(u128::from(interval));
    // (Below the age, which has 64 bits.)
    ago.saturating_sub(less).min(u128::from(age.saturating_sub(1))) as u64
}

/// Puts signals in the queue of a thread, or of its process; those that timers have sent, by the timers.
pub fn queue(
    hand: &mut Hand,
    (process, thread): (&Process, Option<&Thread>),
    beginnings: &[Beginning],
    who: &str,
) -> Result<(), RestoreError> {
    let (signals, tid) = match thread {
        Some(thread) => (&thread.pending, Some(thread.tid)),
        None => (&process.pending, None),
    };
    let all = process.timers.iter().zip(beginnings);
    let theirs = all.filter(|(timer, _)| timer.waiting.is_some() && timer.told_thread() == tid);
    let mut theirs: Vec<(usize, &Timer, &Beginning)> = theirs
        .filter_map(|(timer, beginning)| Some((entry(process, timer)?, timer, beginning)))
        .collect();
    theirs.sort_by_key(|(at, ..)| *at);
    let numbers = (process.pid, tid.unwrap_or(process.pid));
    let mut from = 0;
    for (at, timer, beginning) in theirs {
        if let Some(before) = signals.get(from..at) {
            threads::queue(hand, numbers, before, tid.is_none(), who)?;
        }
        from = at + 1;
        // (Else it had not expired yet.)
        if let Beginning::Waiting(ago) = *beginning {
            let is_last = !signals[from..].iter().any(|it| is_of(it, timer.signal));
            expire(hand, timer, ago, is_last)
                .map_err(RestoreError::of(format!("{who}: its timers")))?;
        }
    }
    let rest = signals.get(from..).unwrap_or_default();
    threads::queue(hand, numbers, rest, tid.is_none(), who)
}

fn is_of(signal: &ByteBuf, number: i32) -> bool {
    signal.first_chunk::<4>().is_some_and(|it| i32::from_ne_bytes(*it) == number)
}

/// Has a timer expire that did so first some time ago. `is_last`: no signal comes behind that must not come
/// before.
fn expire(hand: &mut Hand, timer: &Timer, ago: u128, is_last: bool) -> Result<(), HandError> {
    let now = now(hand, timer)?;
    let first = now.saturating_sub(within(ago, timer.interval, age(timer, now))).max(1);
    let mut table = hand.table();
    let new = table.data(&times(SECOND, timer.interval, first));
    let how = libc::TIMER_ABSTIME as u64;
    table.call(libc::SYS_timer_settime, [timer.id as u64, how, new.address, 0]);
    hand.run(&table)?;
    let shared = timer.told_thread().is_none();
    let end = Instant::now() + ARRIVAL;
    while !is_last && Instant::now() < end {
        let waiting = hand.stopped()?.pending_signals(shared);
        let waiting = waiting.map_err(|errno| HandError::Own("read its signals", errno))?;
        let bytes = |it: &libc::siginfo_t| crate::sys::ptrace::signal_bytes(it);
        if waiting.iter().any(|it| timer.is_sender_of(&bytes(it))) {
            break;
        }
        // A timer interrupt away.
        std::thread::yield_now();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::restore::seed::tests::plant;
    use crate::save::restore::timers;
    use crate::save::state::testing::process;
    use crate::save::timers::testing;

    const MS: u64 = 1_000_000;

    fn timer(id: i32, overrun: i32, remaining: u64, waiting: Option<u64>) -> Timer {
        Timer { interval: 100 * MS, remaining, overrun, waiting, ..testing::timer(id) }
    }

    /// A siginfo_t of a timer's.
    fn signal(timer: &Timer) -> ByteBuf {
        let mut bytes = vec![0; 128];
        bytes[..4].copy_from_slice(&timer.signal.to_ne_bytes());
        bytes[8..12].copy_from_slice(&libc::SI_TIMER.to_ne_bytes());
        bytes[16..20].copy_from_slice(&timer.id.to_ne_bytes());
        ByteBuf::from(bytes)
    }

    #[test]
    fn each_begins_as_it_was() {
        let mut one = process(2, 1, 1, 1);
        let once = Timer { interval: 0, ..timer(4, 0, 0, Some(0)) };
        let silent = Timer { notify: libc::SIGEV_NONE, ..timer(7, 3, 50 * MS, None) };
        let on_cpu =
            Timer { clock: libc::CLOCK_PROCESS_CPUTIME_ID, ..timer(8, 3, 50 * MS, Some(1)) };
        one.timers = vec![
            timer(1, 0, 60 * MS, None),
            timer(2, 5, 60 * MS, None),
            timer(3, 0, 60 * MS, Some(2)),
            once,
            // It expired after the moment of the save.
            timer(5, 4, 130 * MS, Some(0)),
            // The signal that it should have is not there.
            timer(6, 0, 60 * MS, Some(2)),
            silent,
            on_cpu,
        ];
        one.pending = one.timers.iter().filter(|it| it.id != 6).map(signal).collect();
        let expected = [
            Beginning::In(60 * MS),
            Beginning::Counted(60 * MS, 5),
            Beginning::Waiting(u128::from(240 * MS)),
            Beginning::Waiting(0),
            Beginning::Counted(30 * MS, 4),
            Beginning::In(60 * MS),
            Beginning::In(50 * MS),
            Beginning::In(50 * MS),
        ];
        assert_eq!(plan(&one), expected);
    }

    #[test]
    fn whole_intervals_are_left_out_that_the_clock_does_not_have() {
        assert_eq!(within(950, 100, 1000), 950);
        assert_eq!(within(950, 100, 400), 350);
        assert_eq!(within(950, 100, 350), 250);
        assert_eq!(within(950, 0, 400), 399);
        // None that would fit.
        assert_eq!(within(950, 1000, 400), 0);
        assert_eq!(within(u128::MAX / 2, 1, 7), 6);
        assert_eq!(within(5, 10, 0), 0);
    }

    /// What a process that was planted on the host tells of timers that were begun in it: their counts, and
    /// milliseconds that they have left.
    fn begun(all: Vec<Timer>) -> Vec<(u64, u64)> {
        let (mut child, mut hand, _courier) = plant();
        let mut process = process(child.id() as i32, 1, 1, 1);
        process.pending = all.iter().filter(|it| it.waiting.is_some()).map(signal).collect();
        process.timers = all;
        threads::block(&mut hand, "it").unwrap();
        timers::make(&mut hand, &process, "it").unwrap();
        let beginnings = plan(&process);
        count((&mut hand, &mut []), &process, &beginnings, "it").unwrap();
        queue(&mut hand, (&process, None), &beginnings, "it").unwrap();
        timers::wind(&mut hand, &process, &beginnings, "it").unwrap();
        let ask = |timer: &Timer| {
            let mut table = hand.table();
            let (id, value) = (timer.id as u64, table.room(32));
            let (set, time) = (table.data(&[0xff; 8]), table.room(16));
            if timer.waiting.is_some() {
                table.call(libc::SYS_rt_sigtimedwait, [set.address, 0, time.address, 8]);
            }
            let count = table.call(libc::SYS_timer_getoverrun, [id]);
            table.call(libc::SYS_timer_gettime, [id, value.address]);
            let done = hand.run(&table).unwrap();
            let left = done.word(value, 2) * SECOND + done.word(value, 3);
            (done.result(count).unwrap(), left / MS)
        };
        let told = process.timers.iter().map(ask).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        told
    }

    #[test]
    fn the_kernel_counts_what_had_been_counted() {
        let long = |timer| Timer { interval: 10_000 * MS, ..timer };
        let real = |timer| Timer { clock: libc::CLOCK_REALTIME, ..timer };
        let told = begun(vec![
            real(long(timer(1, 1000, 7000 * MS, None))),
            real(long(timer(2, i32::MAX, 7000 * MS, None))),
            long(timer(3, 0, 7000 * MS, None)),
            real(long(timer(4, 0, 7000 * MS, Some(12)))),
        ]);
        let counts: Vec<u64> = told.iter().map(|it| it.0).collect();
        // Nobody can have counted the second one: it would have begun before 1970.
        let most = clock_gettime(ClockId::CLOCK_REALTIME).unwrap().tv_sec() as u64 / 10;
        assert!(counts[1] + 2 > most && counts[1] <= most, "{told:?}");
        assert_eq!([counts[0], counts[2], counts[3]], [1000, 0, 12]);
        assert!(told.iter().all(|it| (6000..7000).contains(&it.1)), "{told:?}");
    }

    #[test]
    fn short_intervals_are_counted_as_well() {
        for interval in [5 * MS, 50 * MS] {
            for remaining in [1, interval / 2, interval] {
                let one = Timer { interval, ..timer(1, 9, remaining, None) };
                assert_eq!(begun(vec![one])[0].0, 9, "{interval} {remaining}");
            }
        }
    }
}
