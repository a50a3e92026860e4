//! The last steps of a restored process: what runs by itself, signals, its root directory, no capability any more that its
//! programs had not; then the agent goes,
//! and its threads are set to go on where they were.

use super::{
    Plant, adjustments, apart, descriptors, first_and_rest, notices, overruns, process,
    rest_unless_alone, space_of, stops, threads, timers, waits,
};
use crate::save::capture::instruction;
use crate::save::error::RestoreError;
use crate::save::hand::{AREA, CODE, Hand, SLOTS, remote_call, to_a_signal};
use crate::save::state::{Sandbox, Thread};
use crate::sentry::Kernel;
use crate::sys::ptrace::{Stop, Stopped};

/// All are set to go on where they were. Children first: a parent is told of what becomes of them, and that
/// is not to be seen.
pub(super) fn complete_all(
    sandbox: &Sandbox,
    plants: Vec<Plant<'_>>,
    kernel: &Kernel,
) -> Result<Vec<Vec<Stopped>>, RestoreError> {
    let mut ready = Vec::with_capacity(plants.len());
    let mut before = None;
    let spared = plants.first().and_then(|plant| process::spared(plant.hand.tid()));
    for mut plant in plants.into_iter().rev() {
        complete(sandbox, &mut plant, spared)?;
        plant.take_turns()?;
        // (This one makes its last calls while the one before is set.)
        ready.extend(before.take().map(|plant| set(sandbox, plant, kernel)).transpose()?);
        match plant.process.stopped {
            // Its parent is told of that when it stops.
            Some(_) => ready.push(set(sandbox, plant, kernel)?),
            None => before = Some(plant),
        }
    }
    ready.extend(before.map(|plant| set(sandbox, plant, kernel)).transpose()?);
    Ok(ready)
}

/// The last calls: what runs by itself, signals, its root directory, and no capability any more. `spared`: what
/// [`process::spared`] gives of all that nothing else was told.
fn complete(
    sandbox: &Sandbox,
    plant: &mut Plant<'_>,
    spared: Option<i32>,
) -> Result<(), RestoreError> {
    let space = space_of(sandbox, plant)?;
    let Plant { process, who, hand, others, courier, couriers, own, roots, kept, .. } = plant;
    for hand in std::iter::once(&mut *hand).chain(others.iter_mut()) {
        threads::block(hand, who)?;
    }
    stops::hear(hand, process, sandbox)?;
    threads::drain(hand, who)?;
    timers::make(hand, process, who)?;
    adjustments::make(hand, sandbox, process.pid, who)?;
    apart::adjust(others, sandbox, process, who)?;
    notices::register(hand, sandbox, process, who)?;
    let beginnings = overruns::plan(process);
    // While no other signal waits.
    overruns::count((&mut *hand, &mut *others), process, &beginnings, who)?;
    overruns::queue(hand, (process, None), &beginnings, who)?;
    let (first, rest) = first_and_rest(process, who)?;
    // Before there is a limit to how many may wait.
    overruns::queue(hand, (process, Some(first)), &beginnings, who)?;
    for (hand, thread) in others.iter_mut().zip(rest) {
        overruns::queue(hand, (process, Some(thread)), &beginnings, who)?;
    }
    apart::close_couriers(others, couriers, who)?;
    // No path is looked up any more for anybody who has this root in common with it.
    apart::change_roots(others, roots, process, who)?;
    if let Some(root) = process.root.as_ref().filter(|_| own.directory) {
        process::change_root(hand, root, who)?;
    }
    let mut last = hand.table();
    if own.table {
        descriptors::close_courier(&mut last, *courier);
    }
    process::limit(&mut last, process);
    if timers::any_runs(process) {
        hand.post(last).map_err(RestoreError::of(&*who))?;
        timers::wind(hand, process, &beginnings, who)?;
        last = hand.table();
    }
    threads::give_up(&mut last, first, *kept);
    process::close(&mut last, space);
    process::spare(hand, process, spared);
    hand.post(last).map_err(RestoreError::of(&*who))?;
    process::confine(hand, process, who)?;
    rest_unless_alone(hand, process, who)?;
    if process::is_furnished_for_good(process) {
        return Ok(());
    }
    // (A filter can need all the room that there is.)
    let at_once = if process.filters.is_empty() { SLOTS } else { 1 };
    threads::side_by_side((others, rest), at_once, who, |hand: &mut Hand, thread: &Thread| {
        let mut last = hand.table();
        threads::give_up(&mut last, thread, *kept);
        hand.post(last).map_err(RestoreError::of(&*who))?;
        process::confine(hand, process, who)
    })
}

/// Takes the agent out of the process and sets its threads to go on where they were.
fn set(sandbox: &Sandbox, plant: Plant<'_>, kernel: &Kernel) -> Result<Vec<Stopped>, RestoreError> {
    let space = space_of(sandbox, &plant)?;
    let Plant { process, who, mut hand, others, own, .. } = plant;
    hand.rest().map_err(RestoreError::of(&who))?;
    // (Not the agent's, which goes.)
    let without = hand.area()..hand.area() + AREA;
    let instruction = instruction::find(hand.tid(), &space.layout.auxv, without)
        .map_err(|errno| RestoreError::failed(format!("{who}: its mappings"), errno.desc()))?
        .ok_or_else(|| {
            RestoreError::refused(format!("{who} has no code that could make a system call"))
        })?;
    let (area, room) = (hand.area(), hand.area() + CODE as u64);
    let mut hands = vec![hand];
    hands.extend(others);
    let mut waits = Vec::with_capacity(hands.len());
    for (hand, thread) in hands.iter_mut().zip(&process.threads) {
        // (A breakpoint has left SIGTRAP not blocked, and a timer may send it all the time.)
        threads::block(hand, &who)?;
        let wait = waits::begin(hand, thread).map_err(RestoreError::of(&who))?;
        waits::note(kernel, hand.tid(), thread, wait);
        waits.push(wait);
    }
    let mut all = Vec::with_capacity(hands.len());
    // Its action of SIGTRAP comes first, by the leader.
    let mut leading = Some(process);
    for (mut hand, thread) in hands.into_iter().zip(&process.threads) {
        // (Its wait may have ended in one more, and what waits for the process is anybody's.)
        threads::block(&mut hand, &who)?;
        let mut traps = threads::traps(leading.take(), thread);
        if !own.handlers {
            // There are breakpoints to come: who is set last puts it back.
            traps.action = None;
        }
        traps.add(hand.strays());
        let give = |stopped| traps.put_back(stopped, instruction, room);
        all.push(hand.release().and_then(give).map_err(RestoreError::of(&who))?);
    }
    // (Others may have to work in that memory.)
    remove(&mut all, instruction, own.space.then_some(area), &who)?;
    if process.stopped.is_some() {
        all = stops::stop(all, &who)?;
    }
    let all = all.into_iter().zip(&process.threads).zip(waits);
    all.map(|((stopped, thread), wait)| threads::set(stopped, thread, wait, &who)).collect()
}

/// Takes the agent out of where it lies, by the first of the threads of a process. All of them can be set then.
fn remove(
    all: &mut Vec<Stopped>,
    instruction: u64,
    area: Option<u64>,
    who: &str,
) -> Result<(), RestoreError> {
    let mut threads = std::mem::take(all).into_iter();
    let mut leader =
        threads.next().ok_or_else(|| RestoreError::refused("a process has no thread"))?;
    if let Some(area) = area {
        let arguments = [area, AREA, 0, 0, 0, 0];
        let (back, done) = remote_call(leader, instruction, libc::SYS_munmap, arguments)
            .map_err(RestoreError::of(who))?;
        done.map_err(|errno| RestoreError::failed(format!("{who}: its memory"), errno.desc()))?;
        leader = back;
    }
    for thread in std::iter::once(leader).chain(threads) {
        let is_at_call = thread.why() == Stop::Call;
        let thread = if is_at_call { to_a_signal(thread) } else { Ok(thread) };
        all.push(thread.map_err(RestoreError::of(who))?);
    }
    Ok(())
}
