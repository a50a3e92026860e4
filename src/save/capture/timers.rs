//! Timers of timer_create(2).

use super::collector::{Collector, Subject};
use crate::save::error::SaveError;
use crate::save::state::Process;
use crate::save::timers::Timer;
use crate::sys::generated;

/// The timers of the subject (/proc/PID/timers, and how long each still runs).
pub fn capture(subject: &mut Subject<'_>) -> Result<Vec<Timer>, SaveError> {
    let text = generated::text(format!("/proc/{}/timers", subject.pid)).unwrap_or_default();
    let mut timers = parse(&text);
    for timer in timers.iter_mut().filter(|it| it.notify & libc::SIGEV_THREAD_ID != 0) {
        match super::guest_number(timer.thread) {
            Some(number) => timer.thread = number,
            // It has ended, and nobody is told of what the timer does.
            None => (timer.notify, timer.thread) = (libc::SIGEV_NONE, 0),
        }
    }
    let who = subject.to_string();
    for some in timers.chunks_mut(256) {
        let mut table = subject.hand.table();
        let asked: Vec<_> = some
            .iter()
            .map(|timer| {
                let value = table.room(32);
                let id = timer.id as u64;
                table.call(libc::SYS_timer_gettime, [id, value.address]);
                (value, table.call(libc::SYS_timer_getoverrun, [id]))
            })
            .collect();
        let done = subject.hand.run(&table).map_err(SaveError::of(&who))?;
        for (timer, (value, overrun)) in some.iter_mut().zip(asked) {
            let time = |at| done.word(value, at) * 1_000_000_000 + done.word(value, at + 1);
            (timer.interval, timer.remaining) = (time(0), time(2));
            timer.overrun = done.result(overrun).unwrap_or(0) as i32;
        }
    }
    Ok(timers)
}

/// Gives timers back what they have lost since the moment of the save.
pub fn set_back(process: &mut Process, collector: &Collector) {
    // One that repeats has never more left than until the next time.
    let left = |remaining, interval| match (collector.left_then(remaining), interval) {
        (left, 0) => left,
        (left, interval) => left.min(remaining.max(interval)),
    };
    let [(interval, value), ..] = &mut process.interval_timers;
    *value = left(*value * 1000, *interval * 1000) / 1000;
    // While its signal waits to be taken the timer of ITIMER_REAL stands and has nothing left; taking it
    // sets it going again (dequeue_signal in kernel/signal.c, which calls posixtimer_rearm_itimer in newer
    // kernels). A new one with nothing left would never go.
    if *value == 0 {
        *value = *interval;
    }
    for timer in process.timers.iter_mut().filter(|it| it.is_on_wall_clock()) {
        timer.remaining = left(timer.remaining, timer.interval);
    }
}

/// proc_pid_timers(5): "ID: 0", "signal: 14/0000000000000000", "notify: signal/pid.7", "ClockID: 1".
fn parse(text: &str) -> Vec<Timer> {
    let mut all: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else { continue };
        if key == "ID" {
            let id = value.trim().parse().unwrap_or(0);
            all.push(Timer {
                id,
                clock: 0,
                notify: 0,
                signal: 0,
                value: 0,
                thread: 0,
                interval: 0,
                remaining: 0,
                overrun: 0,
                waiting: None,
            });
            continue;
        }
        let Some(timer) = all.last_mut() else { continue };
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/').unwrap_or((value, "0"));
                timer.signal = signal.parse().unwrap_or(0);
                timer.value = u64::from_str_radix(pointer.trim(), 16).unwrap_or(0);
            }
            "notify" => {
                let (how, whom) = value.split_once('/').unwrap_or((value, ""));
                let (kind, number) = whom.split_once('.').unwrap_or((whom, "0"));
                timer.notify = match how {
                    "signal" => libc::SIGEV_SIGNAL,
                    "thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_NONE,
                };
                if kind == "tid" {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.thread = number.trim().parse().unwrap_or(0);
                }
            }
            "ClockID" => timer.clock = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_read_as_the_kernel_prints_them() {
        let text = "ID: 0\nsignal: 14/00000000deadbeef\nnotify: signal/tid.7\nClockID: 1\n\
                    ID: 3\nsignal: 0/0\nnotify: none/pid.2\nClockID: 0\n";
        let all = parse(text);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].signal, all[0].value, all[0].thread), (14, 0xdead_beef, 7));
        assert_eq!(all[0].notify, libc::SIGEV_SIGNAL | libc::SIGEV_THREAD_ID);
        assert_eq!((all[1].id, all[1].notify, all[1].clock), (3, libc::SIGEV_NONE, 0));
    }
}
