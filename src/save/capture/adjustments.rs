//! What the ends of processes do to System V semaphores (SEM_UNDO of semop(2)).
//!
//! The kernel shows that to nobody, but it minds its bounds: operations that would bring an adjustment above SEMAEM
//! fail as a whole, by another error (ERANGE) than those that would have to wait (EAGAIN with IPC_NOWAIT), and change
//! nothing (perform_atomic_semop in ipc/sem.c). So a process is asked whether its adjustment and some number
//! are above SEMAEM, by operations of which the last cannot be done in any case, until it is known. No value
//! changes meanwhile, and no semaphore's last user.
//!
//! Who has adjustments at all is seen: its list is not the same as the one of a thread that has none (kcmp(2)). A
//! list is also made with a process's first thread (copy_semundo), so to have one is no proof.

use std::cmp::Ordering;
use std::collections::HashSet;

use nix::errno::Errno;
use nix::unistd::gettid;

use super::kin::Kin;
use super::{Found, filters, guest_number, instruction_of, lend, threads_of};
use crate::notify::Gate;
use crate::save::error::SaveError;
use crate::save::hand::{Hand, HandError};
use crate::save::ipc::{Semaphores, adjusting, operation};
use crate::save::sharing::Resource;
use crate::sentry::{ProcessInfo, Tracees};
use crate::sys::descriptors::{self, Common};
use crate::sys::spawn;

const GETPID: u64 = 11;

/// Adds the adjustments of all processes to [`Found::ipc`].
pub fn capture(
    tracees: &mut Tracees,
    gate: &Gate,
    guests: &[ProcessInfo],
    found: &mut Found,
) -> Result<(), SaveError> {
    if found.ipc.semaphores.is_empty() {
        return Ok(());
    }
    for Holder { guest, tid, number, others } in holders(guests, &found.kin)? {
        let who = guest.words();
        let process = found.processes.iter().find(|it| it.pid == guest.guest_pid);
        let programs = process.map(filters::programs).unwrap_or_default();
        let instruction = instruction_of(guest.pid, &who)?;
        let (mut borrowed, _) = lend(tracees, gate, (tid, &who), None, instruction)?;
        borrowed.hand.respect(programs);
        let asked = Asked { guest_pid: guest.guest_pid, threads: 1 + others, who: &who };
        let all = ask(&mut borrowed.hand, &found.ipc.semaphores, &asked);
        tracees.put(borrowed.end().map_err(SaveError::of(&who))?);
        for (set, semaphore, adjustment) in all? {
            let adjustments = &mut found.ipc.semaphores[set].adjustments;
            adjustments.push((number, semaphore, adjustment));
        }
    }
    Ok(())
}

fn own(errno: Errno) -> SaveError {
    SaveError::failed("adjustments of semaphores", errno.desc())
}

/// A task that may have some. It stands for all that share them.
struct Holder<'g> {
    guest: &'g ProcessInfo,
    tid: i32,
    /// As the guest numbers it.
    number: i32,
    /// How many share them with it, at least, if any does.
    others: usize,
}

/// A thread that has none: the calling one, until it makes a thread or wants something undone itself. (What it shares
/// with the other threads of the supervisor it leaves: CLONE_SYSVSEM in unshare(2).)
pub fn one_without() -> Result<i32, Errno> {
    spawn::unshare(libc::CLONE_SYSVSEM)?;
    Ok(gettid().as_raw())
}

/// Those that may have some.
fn holders<'g>(guests: &'g [ProcessInfo], kin: &Kin) -> Result<Vec<Holder<'g>>, SaveError> {
    let none = one_without().map_err(own)?;
    let mut holders = Vec::new();
    let mut seen = HashSet::new();
    for guest in guests.iter().filter(|guest| guest.state != 'Z') {
        let tids = threads_of(guest.pid).map_err(own)?;
        for (at, tid) in tids.iter().copied().enumerate() {
            let class = kin.class(Resource::Adjustments, tid);
            let is_task = at == 0 || kin.is_apart(tid, Resource::Adjustments);
            if !is_task || class.is_some_and(|class| !seen.insert(class)) {
                continue;
            }
            let order = descriptors::compare_common(tid, none, Common::Adjustments);
            if order.map_err(own)? == Ordering::Equal {
                continue;
            }
            let threads = if at == 0 { tids.len() - 1 } else { 0 };
            let others = threads + usize::from(class.is_some());
            let number = match at {
                0 => guest.guest_pid,
                _ => guest_number(tid).ok_or_else(|| own(Errno::ESRCH))?,
            };
            holders.push(Holder { guest, tid, number, others });
        }
    }
    Ok(holders)
}

/// Who is asked.
#[derive(Debug)]
pub struct Asked<'a> {
    /// As the guest numbers it.
    pub guest_pid: i32,
    /// How many threads it has.
    pub threads: usize,
    /// As an error names it.
    pub who: &'a str,
}

/// The bounds of an adjustment, as numbers of which the least is looked for that makes it too large together
/// with it.
#[derive(Debug)]
struct Search {
    set: usize,
    number: u16,
    value: u16,
    low: i32,
    high: i32,
}

/// SEMAEM of include/uapi/linux/sem.h, plus one: what is too large for an adjustment.
const TOO_LARGE: i32 = 32768;

/// The adjustments that are not zero: the place of the set, the number in it, the adjustment.
pub fn ask(
    hand: &mut Hand,
    sets: &[Semaphores],
    asked: &Asked<'_>,
) -> Result<Vec<(usize, u16, i32)>, SaveError> {
    let mut found = Vec::new();
    for (set, semaphores) in sets.iter().enumerate() {
        let all = (0..).zip(&semaphores.values);
        let mut searches: Vec<Search> = all
            .map(|(number, value)| Search {
                set,
                number,
                value: *value,
                low: 1,
                high: 2 * TOO_LARGE,
            })
            .collect();
        // Most are zero, of which two questions are the proof.
        let mut at = [TOO_LARGE, TOO_LARGE - 1].into_iter();
        while searches.iter().any(|it| it.low < it.high) {
            let zero = at.next();
            let middle = |it: &Search| match zero.filter(|at| (it.low..it.high).contains(at)) {
                Some(at) => at,
                None => it.low + (it.high - it.low) / 2,
            };
            if !step(hand, semaphores, &mut searches, middle, asked)? {
                searches.clear();
            }
        }
        let adjustments = searches.iter().map(|it| (it.set, it.number, TOO_LARGE - it.low));
        found.extend(adjustments.filter(|(.., adjustment)| *adjustment != 0));
    }
    Ok(found)
}

/// Asks once for each semaphore of a set of which it is not known yet. None can be asked for where it says so.
fn step(
    hand: &mut Hand,
    set: &Semaphores,
    searches: &mut [Search],
    middle: impl Fn(&Search) -> i32,
    asked: &Asked<'_>,
) -> Result<bool, SaveError> {
    let id = set.permissions.id as u64;
    let mut open: Vec<&mut Search> = searches.iter_mut().filter(|it| it.low < it.high).collect();
    let mut rest = &mut open[..];
    while !rest.is_empty() {
        let mut table = hand.table();
        let mut places = Vec::new();
        for search in rest.iter() {
            let Search { number, value, .. } = **search;
            let mut operations = adjusting(number, value, middle(search));
            // Below zero it does not go.
            operations.extend(operation(number, -i32::from(value) - 1, 0));
            if !table.has_room(1, operations.len()) {
                break;
            }
            let count = (operations.len() / 6) as u64;
            let operations = table.data(&operations);
            places.push(table.attempt(libc::SYS_semop, [id, operations.address, count]));
        }
        if places.is_empty() {
            return Err(own(Errno::E2BIG));
        }
        let done = match hand.run(&table) {
            Err(HandError::Denied(_)) => return unknown(hand, set, asked),
            done => done.map_err(SaveError::of(asked.who))?,
        };
        let (now, later) = rest.split_at_mut(places.len());
        for (search, place) in now.iter_mut().zip(places) {
            let at = middle(search);
            match done.result(place) {
                Err(Errno::ERANGE) => search.high = at,
                Err(Errno::EAGAIN) => search.low = at + 1,
                // It may not change this set.
                Err(Errno::EACCES) => return unknown(hand, set, asked),
                Err(errno) => return Err(own(errno)),
                Ok(_) => return Err(own(Errno::EIO)),
            }
        }
        rest = later;
    }
    Ok(true)
}

/// A process that cannot be asked is believed to have changed a set only where it has a list for no other
/// reason, or was the last to change one of its semaphores.
fn unknown(hand: &mut Hand, set: &Semaphores, asked: &Asked<'_>) -> Result<bool, SaveError> {
    let mut is_last = false;
    for number in 0..set.values.len() as u64 {
        let arguments = [set.permissions.id as u64, number, GETPID];
        // Who may not even read it is none of its users.
        let user = hand.call(libc::SYS_semctl, arguments).unwrap_or(0);
        is_last |= user == asked.guest_pid as u64;
    }
    if asked.threads == 1 || is_last {
        return Err(SaveError::refused(format!(
            "{} uses System V semaphores, and what it may want undone at its end (SEM_UNDO) cannot be \
             asked for; end it, or remove the semaphores, first",
            asked.who
        )));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_gives_up_what_it_shares_has_no_adjustments() {
        let (told, tid) = channel();
        let (hold, end) = channel::<()>();
        let other = thread::spawn(move || {
            told.send(one_without().unwrap()).unwrap();
            let _ = end.recv();
        });
        let (own, without) = (gettid().as_raw(), tid.recv().unwrap());
        let compare = || descriptors::compare_common(own, without, Common::Adjustments).unwrap();
        // It shares a list with what it has made (copy_semundo in ipc/sem.c).
        assert_ne!(compare(), Ordering::Equal);
        assert_eq!(one_without(), Ok(own));
        assert_eq!(compare(), Ordering::Equal);
        drop(hold);
        other.join().unwrap();
    }
}
