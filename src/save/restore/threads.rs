//! Threads, made and given what they had.

use std::collections::{HashMap, HashSet};

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::waits::Begun;
use crate::save::capture;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError, Traps, first_stop};
use crate::save::state::{Process, Thread};
use crate::sys::agent::Table;
use crate::sys::ptrace::{self, REGISTERS, Stop, Stopped, place, registers_of, signal_of};

/// Flags of a thread of the same process (pthread_create(3)).
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// Of these, what a thread can be made without (clone(2)).
const LOOSE: u64 = (libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SYSVSEM) as u64;

/// Makes processes of these numbers by calls of `hand`; they have stopped. An error comes with the number of the
/// first one that has not been made. `flags`: what they share with it.
pub fn children(
    hand: &mut Hand,
    flags: u64,
    exit_signal: i32,
    numbers: &[i32],
) -> Result<Vec<Hand>, (i32, HandError)> {
    clone_all(hand, flags, exit_signal, numbers)
}

/// Makes a thread that shares no more than these flags say of what threads need not share.
pub fn apart(leader: &mut Hand, flags: u64, number: i32) -> Result<Hand, HandError> {
    let made = clone_all(leader, THREAD & !LOOSE | flags, 0, &[number]);
    made.map_err(|(_, error)| error)?.pop().ok_or(HandError::Killed)
}

/// Makes the threads beside the leader, but for those that are there `early`.
pub fn make(
    leader: &mut Hand,
    threads: &[Thread],
    early: &mut HashMap<i32, Hand>,
    who: &str,
) -> Result<Vec<Hand>, RestoreError> {
    let numbers = threads.iter().map(|thread| thread.tid);
    let numbers: Vec<i32> = numbers.filter(|tid| !early.contains_key(tid)).collect();
    let made = crowd(leader, &numbers)
        .map_err(|(tid, error)| RestoreError::of(format!("{who}: thread {tid}"))(error))?;
    let mut made = made.into_iter();
    let all = threads.iter().map(|thread| early.remove(&thread.tid).or_else(|| made.next()));
    let lost = || RestoreError::refused(format!("the image is damaged: {who}: its threads"));
    all.map(|it| it.ok_or_else(lost)).collect()
}

/// Makes threads without a stop for each of them. What is made with CLONE_PTRACE is traced as its maker is
/// (ptrace_init_task in include/linux/ptrace.h), though the tracer is told of none. All threads of the process are
/// made by its leader, so who is new is one of these.
fn crowd(leader: &mut Hand, numbers: &[i32]) -> Result<Vec<Hand>, (i32, HandError)> {
    /// What a table has room for.
    const AT_ONCE: usize = 512;
    let mut all = Vec::with_capacity(numbers.len());
    for some in numbers.chunks(AT_ONCE) {
        all.extend(crowd_by_one_table(leader, some).map_err(|error| {
            let at = if let HandError::Call(failed) = error { failed.at } else { 0 };
            (some[at.min(some.len() - 1)], error)
        })?);
    }
    Ok(all)
}

fn crowd_by_one_table(leader: &mut Hand, numbers: &[i32]) -> Result<Vec<Hand>, HandError> {
    let failed = |errno| HandError::Own("look at its threads", errno);
    let before = capture::numbers_of(leader.tid()).map_err(failed)?;
    let table = clones(leader, THREAD | libc::CLONE_PTRACE as u64, 0, numbers);
    let tell = |leader: &mut Hand, told| leader.stopped()?.tell_of_clones(told).map_err(failed);
    tell(leader, false)?;
    leader.run(&table)?;
    tell(leader, true)?;
    let mut made: Vec<Option<Hand>> = numbers.iter().map(|_| None).collect();
    let area = leader.area();
    let now = capture::numbers_of(leader.tid()).map_err(failed)?;
    let before: HashSet<i32> = before.into_iter().collect();
    for tid in now.into_iter().filter(|tid| !before.contains(tid)) {
        let mut stopped = ptrace::wait_for_one_of_several(tid).map_err(failed)?;
        stopped.tell_of_clones(true).map_err(failed)?;
        // Its registers are those that its maker had.
        let at = table.under_way(stopped.registers().map_err(failed)?.r14);
        let slot = at.and_then(|at| made.get_mut(at)).ok_or(HandError::Killed)?;
        *slot = Some(Hand::new(stopped, area));
    }
    made.into_iter().collect::<Option<_>>().ok_or(HandError::Killed)
}

/// Makes threads or processes, likewise.
fn clone_all(
    hand: &mut Hand,
    flags: u64,
    exit_signal: i32,
    numbers: &[i32],
) -> Result<Vec<Hand>, (i32, HandError)> {
    /// What a table has room for, by far.
    const AT_ONCE: usize = 64;
    let mut all = Vec::with_capacity(numbers.len());
    for some in numbers.chunks(AT_ONCE) {
        let (made, done) = clone_some(hand, flags, exit_signal, some);
        let next = some.get(made.len()).or(some.last()).copied().unwrap_or(0);
        done.map_err(|error| (next, error))?;
        all.extend(made);
    }
    match numbers.get(all.len()) {
        Some(next) => Err((*next, HandError::Killed)),
        None => Ok(all),
    }
}

/// Likewise, of so many as a table takes. Gives those that were made, and whether it went well.
fn clone_some(
    hand: &mut Hand,
    flags: u64,
    exit_signal: i32,
    numbers: &[i32],
) -> (Vec<Hand>, Result<(), HandError>) {
    let table = clones(hand, flags, exit_signal, numbers);
    let mut made = Vec::with_capacity(numbers.len());
    let done = run_making(hand, &table, &mut made);
    (made, done)
}

/// The calls for that.
fn clones(hand: &Hand, flags: u64, exit_signal: i32, numbers: &[i32]) -> Table {
    let mut table = hand.table();
    for number in numbers {
        let set_tid = table.data(&number.to_ne_bytes());
        // struct clone_args
        let mut arguments = [0u64; 11];
        arguments[0] = flags;
        arguments[4] = exit_signal as u64;
        arguments[8] = set_tid.address;
        arguments[9] = 1;
        let bytes: Vec<u8> = arguments.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let arguments = table.data(&bytes);
        table.call(libc::SYS_clone3, [arguments.address, bytes.len() as u64]);
    }
    table
}

/// Runs a table whose calls make threads or processes, which stop.
fn run_making(hand: &mut Hand, table: &Table, made: &mut Vec<Hand>) -> Result<(), HandError> {
    hand.begin(table)?;
    let mut tids = Vec::new();
    loop {
        match hand.go_on()? {
            Stop::Made(tid) if tid > 0 => tids.push(tid),
            Stop::Signal(libc::SIGTRAP) => break,
            Stop::Signal(signal @ (libc::SIGSEGV | libc::SIGBUS)) => {
                return Err(HandError::Astray(signal));
            }
            _ => {}
        }
    }
    let area = hand.area();
    for tid in tids {
        made.push(Hand::new(first_stop(tid)?, area));
    }
    hand.done(table).map(drop)
}

/// Has threads make calls that `each` posts, so many at a time: while one makes them, the next is told of its
/// own. All are done when this returns.
pub fn side_by_side(
    (hands, threads): (&mut [Hand], &[Thread]),
    at_once: usize,
    who: &str,
    each: impl Fn(&mut Hand, &Thread) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    for (hands, threads) in hands.chunks_mut(at_once).zip(threads.chunks(at_once)) {
        for (slot, (hand, thread)) in hands.iter_mut().zip(threads).enumerate() {
            hand.confine(slot, at_once);
            each(hand, thread)?;
        }
        for hand in hands {
            hand.rest().map_err(RestoreError::of(who))?;
        }
    }
    Ok(())
}

// include/uapi/linux/prctl.h
const PR_SET_NAME: u64 = 15;
const PR_SET_TIMERSLACK: u64 = 29;

/// Gives a thread what it had beside registers and signals. `kept`: it gives up its capabilities but for those, too, since
/// nothing comes that needs any.
pub fn equip(
    hand: &mut Hand,
    thread: &Thread,
    kept: Option<u64>,
    who: &str,
) -> Result<(), RestoreError> {
    let mut table = hand.table();
    equipment(&mut table, thread);
    if let Some(kept) = kept {
        give_up(&mut table, thread, kept);
    }
    hand.post(table).map_err(RestoreError::of(format!("{who}: thread {}", thread.tid)))
}

/// The calls for that.
pub fn equipment(table: &mut Table, thread: &Thread) {
    let name = table.string(&thread.name);
    table.call(libc::SYS_prctl, [PR_SET_NAME, name.address]);
    let [address, flags, size] = thread.alternate_stack;
    // (It is not on it now: the agent has no stack.)
    const ON_STACK: u64 = libc::SS_ONSTACK as u64;
    let stack: Vec<u8> =
        [address, flags & !ON_STACK, size].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let stack = table.data(&stack);
    table.call(libc::SYS_sigaltstack, [stack.address, 0]);
    if thread.clear_tid != 0 {
        table.call(libc::SYS_set_tid_address, [thread.clear_tid]);
    }
    let [list, length] = thread.robust_list;
    if list != 0 {
        table.call(libc::SYS_set_robust_list, [list, length]);
    }
    if let Some((address, size, signature, _)) = thread.rseq {
        table.call(libc::SYS_rseq, [address, u64::from(size), 0, u64::from(signature)]);
    }
    table.call(libc::SYS_prctl, [PR_SET_TIMERSLACK, thread.timer_slack]);
    schedule(table, thread);
}

fn schedule(table: &mut Table, thread: &Thread) {
    let (policy, flags, nice, priority) = thread.scheduling;
    let mut attributes = Vec::with_capacity(56);
    attributes.extend(48u32.to_ne_bytes());
    attributes.extend(policy.to_ne_bytes());
    attributes.extend(flags.to_ne_bytes());
    attributes.extend(nice.to_ne_bytes());
    attributes.extend(priority.to_ne_bytes());
    attributes.extend([0; 24]);
    let attributes = table.data(&attributes);
    // What the guest had reached it may not reach again if the restoring user has less: speed only.
    table.attempt(libc::SYS_sched_setattr, [0, attributes.address, 0]);
    if !thread.affinity.is_empty() {
        let cpus = table.data(&thread.affinity);
        // None of them may be there.
        let length = thread.affinity.len() as u64;
        table.attempt(libc::SYS_sched_setaffinity, [0, length, cpus.address]);
    }
}

/// Puts signals in the queue of the thread, or with `process` of its process. From the thread itself:
/// only then may they say of themselves what they like (do_rt_tgsigqueueinfo in kernel/signal.c). Faults of a
/// thread are left out ([`set`]), and SIGTRAP, which would be taken for a hand's ([`traps`]).
pub fn queue(
    hand: &mut Hand,
    (pid, tid): (i32, i32),
    signals: &[ByteBuf],
    process: bool,
    who: &str,
) -> Result<(), RestoreError> {
    let is_queued = |it: &&ByteBuf| number_of(it) != libc::SIGTRAP && (process || !is_fault(it));
    let signals: Vec<&ByteBuf> = signals.iter().filter(is_queued).collect();
    for some in signals.chunks(64) {
        let mut table = hand.table();
        for signal in some {
            let number = number_of(signal);
            let information = table.data(signal);
            let (pid, number) = (pid as u64, number as u64);
            if process {
                table.call(libc::SYS_rt_sigqueueinfo, [pid, number, information.address]);
            } else {
                let arguments = [pid, tid as u64, number, information.address];
                table.call(libc::SYS_rt_tgsigqueueinfo, arguments);
            }
        }
        hand.run(&table).map_err(RestoreError::of(format!("{who}: its pending signals")))?;
    }
    Ok(())
}

/// What a thread, and with `process` its process, gets once no hand traps any more.
pub fn traps(process: Option<&Process>, thread: &Thread) -> Traps {
    let waits = |signals: &[ByteBuf], faults: bool| {
        let all = signals.iter().filter(|it| number_of(it) == libc::SIGTRAP);
        let all = all.filter(|it| faults || !is_fault(it));
        all.filter_map(|it| it.first_chunk().map(signal_of)).collect()
    };
    let action = process.and_then(|it| it.actions.get(libc::SIGTRAP as usize - 1)).copied();
    Traps {
        action: action.filter(|it| it[0] != libc::SIG_DFL as u64),
        of_process: process.map_or_else(Vec::new, |it| waits(&it.pending, true)),
        of_thread: waits(&thread.pending, false),
    }
}

/// Whether it is a signal that the thread's own instruction has led to. Blocked or not, such a one in its queue
/// comes before the trap at the end of a hand's calls (dequeue_synchronous_signal in kernel/signal.c).
fn is_fault(signal: &ByteBuf) -> bool {
    let code = signal.get(8..12).and_then(|it| it.try_into().ok()).map_or(0, i32::from_ne_bytes);
    const FAULTS: [i32; 6] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGSYS];
    code > libc::SI_USER && FAULTS.contains(&number_of(signal))
}

fn number_of(signal: &ByteBuf) -> i32 {
    signal.first_chunk::<4>().map_or(0, |it| i32::from_ne_bytes(*it))
}

/// Blocks all signals: those that are put in its queue wait there until it is let go.
pub fn block(hand: &mut Hand, who: &str) -> Result<(), RestoreError> {
    let stopped = hand.stopped().map_err(RestoreError::of(who))?;
    stopped
        .set_signal_mask(u64::MAX)
        .map_err(|errno| RestoreError::failed(format!("{who}: its signal mask"), errno.desc()))
}

/// What a thread is told last: what it takes capabilities for, to give up all of those for good but for what is `kept`
/// (a set of bits, in which the bounding set is already), and by which signal it hears of the end of its parent. (That
/// comes behind: the kernel forgets it whenever capabilities change, commit_creds in kernel/cred.c.)
pub fn give_up(table: &mut Table, thread: &Thread, kept: u64) {
    if thread.securebits != 0 {
        table.attempt(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, thread.securebits.into()]);
    }
    // (Without a class it has none of its own.)
    if thread.io_priority >> 13 != 0 {
        const IOPRIO_WHO_PROCESS: u64 = 1;
        table.attempt(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, 0, thread.io_priority.into()]);
    }
    const VERSION_3: u64 = 0x2008_0522;
    let header = table.data(&VERSION_3.to_ne_bytes());
    // Effective, permitted, inheritable: lower halves, then the others (capget(2)).
    let sets = [kept as u32, (kept >> 32) as u32].map(|half| [half, half, 0]);
    let sets: Vec<u8> = sets.as_flattened().iter().flat_map(|it| it.to_ne_bytes()).collect();
    let sets = table.data(&sets);
    table.call(libc::SYS_capset, [header.address, sets.address]);
    if thread.parent_death_signal != 0 {
        let signal = thread.parent_death_signal as u64;
        table.call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, signal]);
    }
}

/// Takes away what waits for the thread since it was made (SIGCHLD of what was put together).
pub fn drain(hand: &mut Hand, who: &str) -> Result<(), RestoreError> {
    let stopped = hand.stopped().map_err(RestoreError::of(who))?;
    let waiting = [false, true].map(|shared| stopped.pending_signals(shared));
    if waiting.iter().all(|it| it.as_ref().is_ok_and(Vec::is_empty)) {
        return Ok(());
    }
    loop {
        let mut table = hand.table();
        let all = table.data(&u64::MAX.to_ne_bytes());
        let now = table.data(&[0; 16]);
        let arguments = [all.address, 0, now.address, 8];
        let place = table.attempt(libc::SYS_rt_sigtimedwait, arguments);
        let done = hand.run(&table).map_err(RestoreError::of(who))?;
        if done.result(place).is_err() {
            return Ok(());
        }
    }
}

/// Puts registers and the signal mask in place: the thread goes on where it was when it is let go, with the fault
/// that it was about to get.
pub fn set(
    mut stopped: Stopped,
    thread: &Thread,
    wait: Option<Begun>,
    who: &str,
) -> Result<Stopped, RestoreError> {
    let failed = |errno: Errno| {
        RestoreError::failed(format!("{who}: the registers of thread {}", thread.tid), errno.desc())
    };
    let mut words: [u64; REGISTERS] =
        thread.registers.as_slice().try_into().map_err(|_| {
            RestoreError::refused(format!("the image is damaged: {who}: registers"))
        })?;
    if let Some(Begun::Over(result)) = wait {
        words[place::RAX] = result as u64;
        words[place::ORIG_RAX] = u64::MAX;
    }
    stopped.set_extended_state(&thread.extended).map_err(failed)?;
    stopped.set_registers(&registers_of(words)).map_err(failed)?;
    stopped.set_signal_mask(thread.mask).map_err(failed)?;
    let mut faults = thread.pending.iter().filter(|it| is_fault(it));
    match (faults.next(), faults.next()) {
        (None, _) => Ok(stopped.because(Stop::Asked)),
        (Some(fault), None) => {
            // (What the kernel keeps of one is exactly so long.)
            let bytes = fault.first_chunk().ok_or_else(|| failed(Errno::EINVAL))?;
            stopped.set_signal_information(&signal_of(bytes)).map_err(failed)?;
            Ok(stopped.because(Stop::Signal(number_of(fault))))
        }
        _ => Err(RestoreError::refused(format!(
            "the image is damaged: {who}: thread {} has two faults at once",
            thread.tid
        ))),
    }
}
