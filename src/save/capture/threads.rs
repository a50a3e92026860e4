//! A stopped thread.

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use crate::save::error::SaveError;
use crate::save::hand::Borrowed;
use crate::save::state::Thread;
use crate::sys::agent::{Data, Done};
use crate::sys::generated;
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
    alternate_stack: Data,
    clear_tid: Data,
    robust: [Data; 2],
    death: Data,
    scheduling: Data,
    affinity: Data,
    used: Data,
}

/// Captures the thread whose hand is borrowed.
pub fn capture(who: &str, borrowed: &mut Borrowed) -> Result<Thread, SaveError> {
    let host = borrowed.hand.tid();
    let identity = Identity::read(host)
        .ok_or_else(|| SaveError::failed(who, "one of its threads has ended meanwhile"))?;
    let tid = identity.tid;
    let failed = |what: &'static str| {
        move |errno: Errno| {
            SaveError::failed(format!("{who}: {what} of thread {tid}"), errno.desc())
        }
    };
    let registers = words(&borrowed.registers());
    let mask = borrowed.mask();
    let first = borrowed.signal();
    let stopped = borrowed.hand.stopped().map_err(SaveError::of(who))?;
    let extended = stopped.extended_state().map_err(failed("the vector registers"))?;
    let mut pending = Vec::new();
    // It was about to get this one.
    pending.extend(first.iter().map(signal_bytes));
    pending.extend(pending_of(stopped, false).map_err(failed("the pending signals"))?);
    let rseq = match stopped.restartable_sequence() {
        Ok((0, ..)) | Err(_) => None,
        Ok(registered) => Some(registered),
    };

    let mut table = borrowed.hand.table();
    let told = Told {
        alternate_stack: table.room(24),
        clear_tid: table.room(8),
        robust: [table.room(8), table.room(8)],
        death: table.room(4),
        scheduling: table.room(SCHED_ATTR),
        affinity: table.room(CPUS),
        used: table.room(USAGE),
    };
    table.call(libc::SYS_sigaltstack, [0, told.alternate_stack.address]);
    table.attempt(libc::SYS_prctl, [PR_GET_TID_ADDRESS, told.clear_tid.address]);
    let [head, length] = told.robust;
    table.attempt(libc::SYS_get_robust_list, [0, head.address, length.address]);
    table.call(libc::SYS_prctl, [libc::PR_GET_PDEATHSIG as u64, told.death.address]);
    let slack = table.call(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK as u64]);
    table.call(libc::SYS_sched_getattr, [0, told.scheduling.address, SCHED_ATTR as u64, 0]);
    let cpus = table.call(libc::SYS_sched_getaffinity, [0, CPUS as u64, told.affinity.address]);
    const IOPRIO_WHO_PROCESS: u64 = 1;
    let io = table.attempt(libc::SYS_ioprio_get, [IOPRIO_WHO_PROCESS, 0]);
    let secure = table.attempt(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64]);
    table.call(libc::SYS_getrusage, [libc::RUSAGE_THREAD as u64, told.used.address]);
    let done = borrowed.hand.run(&table).map_err(SaveError::of(who))?;

    let cpus = done.result(cpus).map_or(0, |length| length as usize);
    let word = |index| u64::from(done.half(told.scheduling, index));
    let stack = |index| done.word(told.alternate_stack, index);
    Ok(Thread {
        tid,
        registers,
        extended: ByteBuf::from(extended),
        mask,
        pending,
        alternate_stack: [stack(0), stack(1) & 0xffff_ffff, stack(2)],
        clear_tid: done.word(told.clear_tid, 0),
        robust_list: told.robust.map(|it| done.word(it, 0)),
        rseq,
        name: ByteBuf::from(identity.name),
        parent_death_signal: done.half(told.death, 0) as i32,
        timer_slack: done.result(slack).unwrap_or(0),
        scheduling: (word(1) as u32, done.word(told.scheduling, 1), word(4) as i32, word(5) as u32),
        affinity: ByteBuf::from(&done.bytes(told.affinity)[..cpus]),
        io_priority: done.result(io).unwrap_or(0) as u32,
        remaining: None,
        users: identity.users,
        groups: identity.groups,
        securebits: done.result(secure).unwrap_or(0) as u32,
        cpu_us: used(&done, told.used),
    })
}

/// User and system time in a `struct rusage`, microseconds.
pub fn used(done: &Done, usage: Data) -> [u64; 2] {
    [0, 2].map(|at| done.word(usage, at) * 1_000_000 + done.word(usage, at + 1))
}

/// Signals that wait for the thread, or with `shared` for its process.
pub fn pending_of(stopped: &Stopped, shared: bool) -> Result<Vec<ByteBuf>, Errno> {
    Ok(stopped.pending_signals(shared)?.iter().map(signal_bytes).collect())
}

fn signal_bytes(information: &libc::siginfo_t) -> ByteBuf {
    ByteBuf::from(crate::sys::ptrace::signal_bytes(information))
}

/// The registers, in the order of struct user_regs_struct.
pub fn words(registers: &libc::user_regs_struct) -> Vec<u64> {
    crate::sys::ptrace::register_words(registers).to_vec()
}

/// What /proc/PID/status says beside.
struct Identity {
    /// Its number for the guest.
    tid: i32,
    name: Vec<u8>,
    users: [[u32; 4]; 2],
    groups: Vec<u32>,
}

impl Identity {
    fn read(host: i32) -> Option<Identity> {
        let mut name = generated::contents(format!("/proc/{host}/comm")).ok()?;
        name.pop();
        let text = generated::text(format!("/proc/{host}/status")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().filter_map(|it| it.parse().ok()).collect::<Vec<u32>>())
        };
        let tid = *field("NSpid:")?.last()?;
        let four = |name| field(name)?.try_into().ok();
        Some(Identity {
            tid: tid as i32,
            name,
            users: [four("Uid:")?, four("Gid:")?],
            groups: field("Groups:").unwrap_or_default(),
        })
    }
}
