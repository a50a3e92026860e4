//! Calls that a stop would end with EINTR, although nothing has come for the program.
//!
//! Most calls that a stop interrupts go on by themselves afterwards. Some do not (signal(7),
//! "Interruption of system calls and library functions by stop signals"): they return EINTR, which
//! programs that have no signal handlers do not expect. Those are made again instead, as the kernel
//! would with ERESTARTNOINTR: all of them are such that nothing has happened when they return EINTR.
//! A call with a relative timeout starts with the whole of it again.

use super::task::Status;
use crate::sys::ptrace::{Stop, Stopped};

/// The calls: waits that are never restarted, and sockets with SO_RCVTIMEO or SO_SNDTIMEO
/// (sock_intr_errno in include/net/sock.h).
#[cfg(target_arch = "x86_64")]
const CALLS: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
];

/// Signals whose default is to be ignored (signal(7)).
const IGNORED_BY_DEFAULT: u64 =
    bit(libc::SIGCHLD) | bit(libc::SIGCONT) | bit(libc::SIGURG) | bit(libc::SIGWINCH);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Makes the call in which a held thread has stopped be made again, where it would fail with EINTR
/// because of the stop alone.
#[cfg(target_arch = "x86_64")]
pub(super) fn prepare(stopped: &mut Stopped) {
    let signal = match stopped.why() {
        Stop::Asked => 0,
        Stop::Signal(signal) if (1..=64).contains(&signal) => bit(signal),
        _ => return,
    };
    let Ok(mut registers) = stopped.registers() else { return };
    if make_again(stopped.tid(), &mut registers, signal) {
        // It has been killed, if this fails.
        let _ = stopped.set_registers(&registers);
    }
}

/// The same for the registers of a stopped thread that is about to get `signal` (a bit): they are
/// changed if the call is to be made again.
#[cfg(target_arch = "x86_64")]
pub(super) fn make_again(tid: i32, registers: &mut libc::user_regs_struct, signal: u64) -> bool {
    if registers.rax as i64 != -i64::from(libc::EINTR)
        || !CALLS.contains(&(registers.orig_rax as i64))
    {
        return false;
    }
    // Read while it is stopped: the kernel changes nothing of it but what is pending.
    let Ok(status) = Status::read(tid) else { return false };
    let coming = signal | (status.pending | status.shared_pending) & !status.blocked;
    let is_idle = coming & !ignored(&status) == 0;
    if is_idle {
        // The length of the `syscall` instruction.
        registers.rip -= 2;
        registers.rax = registers.orig_rax;
    }
    is_idle
}

/// Elsewhere the number of the call has to be restored from a register that tracers cannot read.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn prepare(_: &mut Stopped) {}

/// The signals that do nothing to the process. Natively they would not even interrupt a call, but for
/// a traced thread they do (sig_ignored in kernel/signal.c).
fn ignored(status: &Status) -> u64 {
    status.ignored | IGNORED_BY_DEFAULT & !status.caught
}
