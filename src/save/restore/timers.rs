//! Timers: those of setitimer(2), and those of timer_create(2) with the numbers that they had.
//!
//! Each runs for as long as it had left when it was saved; those that had expired without being noticed are
//! the business of [`super::overruns`]. What is not there to be restored: whether one was set for a point in time.

use super::overruns::Beginning;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::state::Process;
use crate::save::timers::{SECOND, Timer, times};
use crate::sys::agent::{Data, Table};

/// Takes the numbers that timer_create(2) finds in memory, since Linux 6.15 (include/uapi/linux/prctl.h).
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

/// Before Linux 6.15 numbers are only given in turn: one above this, which takes as many calls, is not
/// waited for.
const HIGHEST_IN_TURN: i32 = 100_000;

/// So many calls at once.
const AT_ONCE: usize = 100;

/// Makes the timers of timer_create(2), unarmed. All threads are there.
pub fn make(hand: &mut Hand, process: &Process, who: &str) -> Result<(), RestoreError> {
    if process.timers.is_empty() {
        return Ok(());
    }
    let mut timers: Vec<&Timer> = process.timers.iter().collect();
    timers.sort_by_key(|timer| timer.id);
    let failed = || RestoreError::of(format!("{who}: its timers"));
    match hand.call(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0]) {
        Ok(_) => {
            let made = by_number(hand, &timers);
            hand.call(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0])
                .map_err(failed())?;
            made.map_err(failed())
        }
        Err(HandError::Call(_)) => in_turn(hand, &timers, who),
        Err(error) => Err(failed()(error)),
    }
}

fn by_number(hand: &mut Hand, timers: &[&Timer]) -> Result<(), HandError> {
    for some in timers.chunks(AT_ONCE) {
        let mut table = hand.table();
        for timer in some {
            let event = event(&mut table, timer);
            let id = table.data(&timer.id.to_ne_bytes());
            table.call(libc::SYS_timer_create, [timer.clock as u64, event.address, id.address]);
        }
        hand.run(&table)?;
    }
    Ok(())
}

/// Makes timers until one has the number, and removes those before.
fn in_turn(hand: &mut Hand, timers: &[&Timer], who: &str) -> Result<(), RestoreError> {
    let failed = || RestoreError::of(format!("{who}: its timers"));
    for timer in timers {
        loop {
            let mut table = hand.table();
            let event = event(&mut table, timer);
            let id = table.room(4);
            table.call(libc::SYS_timer_create, [timer.clock as u64, event.address, id.address]);
            let done = hand.run(&table).map_err(failed())?;
            let id = done.half(id, 0) as i32;
            if id == timer.id {
                break;
            }
            if id > timer.id || timer.id > HIGHEST_IN_TURN {
                return Err(RestoreError::refused(format!(
                    "{who}: this kernel cannot make its timer {} again; Linux 6.15 can",
                    timer.id
                )));
            }
            hand.call(libc::SYS_timer_delete, [id as u64]).map_err(failed())?;
        }
    }
    Ok(())
}

/// A struct sigevent.
fn event(table: &mut Table, timer: &Timer) -> Data {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend(timer.value.to_ne_bytes());
    bytes.extend(timer.signal.to_ne_bytes());
    bytes.extend(timer.notify.to_ne_bytes());
    bytes.extend(timer.thread.to_ne_bytes());
    bytes.resize(64, 0);
    table.data(&bytes)
}

/// Whether there may be any that [`wind`] starts.
pub fn any_runs(process: &Process) -> bool {
    !process.timers.is_empty() || process.interval_timers.iter().any(|(_, value)| *value != 0)
}

/// Starts those that ran and nothing else is known of: just before all go on.
pub fn wind(
    hand: &mut Hand,
    process: &Process,
    beginnings: &[Beginning],
    who: &str,
) -> Result<(), RestoreError> {
    let failed = || RestoreError::of(format!("{who}: its timers"));
    let mut table = hand.table();
    for (which, (interval, value)) in process.interval_timers.iter().enumerate() {
        if *value != 0 {
            let new = table.data(&times(1_000_000, *interval, *value));
            table.call(libc::SYS_setitimer, [which as u64, new.address, 0]);
        }
    }
    if !table.is_empty() {
        hand.run(&table).map_err(failed())?;
    }
    let running = process.timers.iter().zip(beginnings).filter_map(|(timer, it)| match it {
        Beginning::In(left) if *left > 0 => Some((timer, *left)),
        _ => None,
    });
    for some in running.collect::<Vec<_>>().chunks(AT_ONCE) {
        let mut table = hand.table();
        for (timer, left) in some {
            let new = table.data(&times(SECOND, timer.interval, *left));
            table.call(libc::SYS_timer_settime, [timer.id as u64, 0, new.address, 0]);
        }
        hand.run(&table).map_err(failed())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::restore::overruns;
    use crate::save::restore::seed::tests::plant;
    use crate::save::state::testing::process;
    use crate::save::timers::testing;

    fn timer(id: i32) -> Timer {
        Timer { remaining: 100_000_000_000, ..testing::timer(id) }
    }

    /// The time that a timer has left, seconds, if it is there.
    fn left(hand: &mut Hand, id: u64) -> Option<u64> {
        let told = hand.call_with(libc::SYS_timer_gettime, &[0; 32], |at| [id, at]).ok()?.1;
        let word = told[16..24].try_into().unwrap();
        Some(u64::from_ne_bytes(word))
    }

    #[track_caller]
    fn made_and_wound(make: impl FnOnce(&mut Hand, &Process)) {
        let (mut child, mut hand, _courier) = plant();
        let mut process = process(2, 1, 1, 1);
        process.timers = vec![timer(5), timer(3)];
        make(&mut hand, &process);
        let beginnings = overruns::plan(&process);
        wind(&mut hand, &process, &beginnings, "it").unwrap();
        let all: Vec<_> = (0..8).map(|id| left(&mut hand, id)).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let is_there = |id: &usize| matches!(all[*id], Some(98..=100));
        let there: Vec<usize> = (0..8).filter(is_there).collect();
        assert_eq!(there, [3, 5], "{all:?}");
        assert_eq!(all.iter().flatten().count(), 2, "{all:?}");
    }

    #[test]
    fn timers_have_their_numbers_again() {
        made_and_wound(|hand, process| make(hand, process, "it").unwrap());
    }

    #[test]
    fn timers_have_their_numbers_again_where_the_kernel_takes_none() {
        made_and_wound(|hand, process| {
            in_turn(hand, &[&process.timers[1], &process.timers[0]], "it").unwrap();
        });
    }
}
