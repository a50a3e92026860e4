//! A stopped thread.

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use crate::save::error::SaveError;
use crate::save::hand::Borrowed;
use crate::save::state::Thread;
use crate::sys::agent::{Data, Done, Place, Table};
use crate::sys::ptrace::Stopped;

/// struct sched_attr, as far as it is known everywhere (sched_setattr(2)).
const SCHED_ATTR: usize = 56;
/// struct rusage (getrusage(2)).
pub const USAGE: usize = 144;
/// Bytes of a processor set: 8192 processors.
const CPUS: usize = 1024;

// include/uapi/linux/prctl.h
const PR_GET_TID_ADDRESS: u64 = 40;

/// What the hand tells: read by calls of the thread itself.
struct Told {
    name: Data,
    alternate_stack: Data,
    clear_tid: Data,
    robust: [Data; 2],
    death: Data,
    slack: Place,
    scheduling: Data,
    cpus: Place,
    affinity: Data,
    io: Place,
    secure: Place,
    used: Data,
}

/// A thread that has been asked, and what it need not be asked for.
pub struct Asked {
    told: Told,
    rest: Thread,
}

/// Asks the thread whose hand is borrowed, and does not wait for what it says.
pub fn ask(who: &str, borrowed: &mut Borrowed) -> Result<Asked, SaveError> {
    let status = borrowed.status();
    let (tid, users, groups) = (status.thread, status.users, status.groups.clone());
    let mut table = borrowed.hand.table();
    let told = questions(&mut table);
    let failed = |what: &'static str| {
        move |errno: Errno| {
            SaveError::failed(format!("{who}: {what} of thread {tid}"), errno.desc())
        }
    };
    let registers = words(&borrowed.registers());
    let mask = borrowed.mask();
    let (first, taken) = (borrowed.signal(), super::signals(&borrowed.traps().of_thread));
    let stopped = borrowed.hand.stopped().map_err(SaveError::of(who))?;
    let extended = stopped.extended_state().map_err(failed("the vector registers"))?;
    // It was about to get the first; others the hand has taken away.
    let mut pending = super::signals(first.as_slice());
    pending.extend(taken);
    pending.extend(pending_of(stopped, false).map_err(failed("the pending signals"))?);
    let rseq = match stopped.restartable_sequence() {
        Ok((0, ..)) | Err(_) => None,
        Ok(registered) => Some(registered),
    };
    borrowed.hand.post(table).map_err(SaveError::of(who))?;
    let rest = Thread {
        tid,
        registers,
        extended: ByteBuf::from(extended),
        mask,
        pending,
        rseq,
        users,
        groups,
        ..Thread::default()
    };
    Ok(Asked { told, rest })
}

fn questions(table: &mut Table) -> Told {
    let [name, alternate_stack, clear_tid] = [16, 24, 8].map(|size| table.room(size));
    let robust = [table.room(8), table.room(8)];
    let [death, scheduling, affinity, used] =
        [4, SCHED_ATTR, CPUS, USAGE].map(|size| table.room(size));
    table.call(libc::SYS_prctl, [libc::PR_GET_NAME as u64, name.address]);
    table.call(libc::SYS_sigaltstack, [0, alternate_stack.address]);
    table.attempt(libc::SYS_prctl, [PR_GET_TID_ADDRESS, clear_tid.address]);
    let [head, length] = robust;
    table.attempt(libc::SYS_get_robust_list, [0, head.address, length.address]);
    table.call(libc::SYS_prctl, [libc::PR_GET_PDEATHSIG as u64, death.address]);
    let slack = table.call(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK as u64]);
    table.call(libc::SYS_sched_getattr, [0, scheduling.address, SCHED_ATTR as u64, 0]);
    let cpus = table.call(libc::SYS_sched_getaffinity, [0, CPUS as u64, affinity.address]);
    const IOPRIO_WHO_PROCESS: u64 = 1;
    let io = table.attempt(libc::SYS_ioprio_get, [IOPRIO_WHO_PROCESS, 0]);
    let secure = table.attempt(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64]);
    table.call(libc::SYS_getrusage, [libc::RUSAGE_THREAD as u64, used.address]);
    Told {
        name,
        alternate_stack,
        clear_tid,
        robust,
        death,
        slack,
        scheduling,
        cpus,
        affinity,
        io,
        secure,
        used,
    }
}

/// Waits for what the thread says.
pub fn hear(who: &str, borrowed: &mut Borrowed, asked: Asked) -> Result<Thread, SaveError> {
    let done = borrowed.hand.collect().map_err(SaveError::of(who))?;
    let Asked { told, rest } = asked;
    let cpus = done.result(told.cpus).map_or(0, |length| length as usize);
    let word = |index| u64::from(done.half(told.scheduling, index));
    let stack = |index| done.word(told.alternate_stack, index);
    let name = done.bytes(told.name).split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Thread {
        name: ByteBuf::from(name),
        alternate_stack: [stack(0), stack(1) & 0xffff_ffff, stack(2)],
        clear_tid: done.word(told.clear_tid, 0),
        robust_list: told.robust.map(|it| done.word(it, 0)),
        parent_death_signal: done.half(told.death, 0) as i32,
        timer_slack: done.result(told.slack).unwrap_or(0),
        scheduling: (word(1) as u32, done.word(told.scheduling, 1), word(4) as i32, word(5) as u32),
        affinity: ByteBuf::from(&done.bytes(told.affinity)[..cpus.min(CPUS)]),
        io_priority: done.result(told.io).unwrap_or(0) as u32,
        securebits: done.result(told.secure).unwrap_or(0) as u32,
        cpu_us: used(&done, told.used),
        ..rest
    })
}

/// User and system time in a `struct rusage`, microseconds.
pub fn used(done: &Done, usage: Data) -> [u64; 2] {
    [0, 2].map(|at| done.word(usage, at) * 1_000_000 + done.word(usage, at + 1))
}

/// Signals that wait for the thread, or with `shared` for its process.
pub fn pending_of(stopped: &Stopped, shared: bool) -> Result<Vec<ByteBuf>, Errno> {
    Ok(super::signals(&stopped.pending_signals(shared)?))
}

/// The registers, in the order of struct user_regs_struct.
pub fn words(registers: &libc::user_regs_struct) -> Vec<u64> {
    crate::sys::ptrace::register_words(registers).to_vec()
}
