//! How often timers of timer_create(2) have expired since their signals wait to be taken.
//!
//! The kernel counts that when the signal is taken, by how long ago the first of those expirations was
//! (__posixtimer_deliver_signal and common_hrtimer_rearm in kernel/time/posix-timers.c), and tells nobody
//! before: timer_getoverrun(2) is about the signal taken last. So the signal is taken (rt_sigtimedwait(2)), and
//! the timer is set anew to where it was: to a time in the past, at which it first expired. It expires at once,
//! its signal waits again, and when the program takes that, the kernel counts what it would have counted. Only the
//! count of the signal before that is lost on the way, since timer_settime(2) forgets it.
//!
//! A signal that cannot be told from others of its number, or of a guest that goes on and would notice, is left
//! alone; it then counts from the save on.

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::collector::Collector;
use crate::save::hand::{Hand, HandError};
use crate::save::state::{Process, Thread};
use crate::save::timers::{SECOND, Timer, times};
use crate::sys::agent::{Data, Table};

/// What is known of a thread whose hand is asked.
#[derive(Debug)]
pub struct Told {
    /// It is its process's first, and asked for the process's signals as well.
    pub leader: bool,
    /// So many of the thread's signals, from the first, are its business already.
    pub taken: usize,
    /// The guest goes on after the save.
    pub goes_on: bool,
}

/// Finds out about timers whose signals wait for the thread, or for the process.
pub fn capture(
    hand: &mut Hand,
    told: &Told,
    process: &mut Process,
    thread: &mut Thread,
    collector: &Collector,
) -> Result<(), HandError> {
    let Process { pid, timers, pending, .. } = process;
    for timer in timers.iter_mut().filter(|it| it.is_on_wall_clock()) {
        let (queue, first) = match timer.told_thread() {
            None if told.leader => (&*pending, 0),
            Some(tid) if tid == thread.tid => (&thread.pending, told.taken),
            _ => continue,
        };
        let Some(at) =
            queue.iter().rposition(|it| timer.is_sender_of(it)).filter(|at| *at >= first)
        else {
            continue;
        };
        // The thread would be given its own ones first.
        let private = thread.pending.get(told.taken..).unwrap_or_default();
        let others = match timer.told_thread() {
            None => private,
            Some(_) => &[],
        };
        let alone =
            queue[first..].iter().chain(others).filter(|it| is_of(it, timer.signal)).count();
        // Set anew, a timer forgets its last count, and on the clock of the time of day also whether it
        // follows that or not: it was set for a span or for a point in time (common_hrtimer_arm).
        let unnoticed = !told.goes_on || timer.overrun == 0 && timer.clock != libc::CLOCK_REALTIME;
        let waits = match alone == 1 && unnoticed && timer.interval > 0 {
            true => take(hand, timer, (*pid, thread.tid))?,
            false => look(hand, timer)?,
        };
        timer.remaining = collector.left_then(timer.remaining);
        timer.waiting = waits;
        if waits.is_none() && timer.interval > 0 {
            // The timer was set anew after the signal, which then is never delivered.
            match timer.told_thread() {
                None => drop(pending.remove(at)),
                Some(_) => drop(thread.pending.remove(at)),
            }
        }
    }
    Ok(())
}

fn is_of(signal: &ByteBuf, number: i32) -> bool {
    signal.first_chunk::<4>().is_some_and(|it| i32::from_ne_bytes(*it) == number)
}

/// Its time and what it has left.
struct Asked {
    now: Data,
    value: Data,
}

impl Asked {
    fn ask(table: &mut Table, timer: &Timer) -> Asked {
        let asked = Asked { now: table.room(16), value: table.room(32) };
        table.call(libc::SYS_clock_gettime, [timer.clock as u64, asked.now.address]);
        table.call(libc::SYS_timer_gettime, [timer.id as u64, asked.value.address]);
        asked
    }
}

/// It is left alone.
fn look(hand: &mut Hand, timer: &mut Timer) -> Result<Option<u64>, HandError> {
    let mut table = hand.table();
    let asked = Asked::ask(&mut table, timer);
    let done = hand.run(&table)?;
    timer.remaining = done.word(asked.value, 2) * SECOND + done.word(asked.value, 3);
    // One that does not repeat and yet runs was set anew.
    Ok((timer.interval > 0 || timer.remaining == 0).then_some(0))
}

/// Takes the signal and puts it back; none: there was none that would have been delivered. `numbers`: of the
/// process and the thread, as the guest numbers them.
fn take(hand: &mut Hand, timer: &mut Timer, numbers: (i32, i32)) -> Result<Option<u64>, HandError> {
    let mut table = hand.table();
    let set = table.data(&timer.signal_set());
    let (information, no_time) = (table.room(128), table.room(16));
    let arguments = [set.address, information.address, no_time.address, 8];
    let taken = table.attempt(libc::SYS_rt_sigtimedwait, arguments);
    let asked = Asked::ask(&mut table, timer);
    if !hand.may_run(&table) || !hand.may_run(&setting(hand, timer, 1)) {
        return look(hand, timer);
    }
    let done = hand.run(&table)?;
    let time = |data, at| done.word(data, at) * SECOND + done.word(data, at + 1);
    timer.remaining = time(asked.value, 2);
    match done.result(taken) {
        Ok(_) => {}
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(HandError::Own("take the signal of a timer", errno)),
    }
    if !timer.is_sender_of(done.bytes(information)) {
        // It was none, and another has come meanwhile.
        put_back(hand, timer, numbers, done.bytes(information))?;
        return Ok(None);
    }
    // si_overrun: less than nothing was never counted.
    let count = (done.half(information, 5) as i32).max(0) as u64;
    let next = u128::from(time(asked.now, 0)) + u128::from(timer.remaining);
    let since = next.saturating_sub(u128::from(count + 1) * u128::from(timer.interval));
    let set = setting(hand, timer, since.try_into().unwrap_or(u64::MAX));
    hand.run(&set)?;
    Ok(Some(count))
}

/// Puts a signal back that is not of this timer, in the queue that it comes from.
fn put_back(
    hand: &mut Hand,
    timer: &Timer,
    (pid, tid): (i32, i32),
    signal: &[u8],
) -> Result<(), HandError> {
    let mut table = hand.table();
    let information = table.data(signal).address;
    let (pid, tid, number) = (pid as u64, tid as u64, timer.signal as u64);
    match timer.told_thread() {
        None => table.call(libc::SYS_rt_sigqueueinfo, [pid, number, information]),
        Some(_) => table.call(libc::SYS_rt_tgsigqueueinfo, [pid, tid, number, information]),
    };
    hand.run(&table).map(drop)
}

/// Has it expire at a point in time.
fn setting(hand: &Hand, timer: &Timer, first: u64) -> Table {
    let mut table = hand.table();
    // Nothing at all would stop it.
    let first = first.max(1);
    let new = table.data(&times(SECOND, timer.interval, first));
    let how = libc::TIMER_ABSTIME as u64;
    table.call(libc::SYS_timer_settime, [timer.id as u64, how, new.address, 0]);
    table
}
