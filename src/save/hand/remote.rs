//! Single calls by a `syscall` instruction of the guest's own.
//!
//! Owns making one while no agent lies in the guest, and so that the kernel forces no signal on it: the thread
//! stops at the entry and at the exit of the call (PTRACE_SYSCALL). A single step would end in a forced SIGTRAP,
//! which takes away the process's action of it where it is blocked or ignored (force_sig_info_to_task in
//! kernel/signal.c).

use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::{HandError, is_fault, memory, own, read};
use crate::sys::process;
use crate::sys::ptrace::{Stop, Stopped};

/// So often a thread may stop for something else on its way.
const ATTEMPTS: usize = 64;

/// What a call of another process gave.
type Called = (Stopped, Result<u64, Errno>);

/// One call by the guest's own `syscall` instruction at `instruction`. The thread blocks all signals. It has stopped
/// at the exit of the call then: before it can go on where it was, it has to come [`to_a_signal`].
pub fn remote_call(
    mut stopped: Stopped,
    instruction: u64,
    number: libc::c_long,
    arguments: [u64; 6],
) -> Result<Called, HandError> {
    /// The errors by which the kernel says that a call is to be made again (include/linux/errno.h).
    const AGAIN: std::ops::RangeInclusive<i64> = -516..=-512;
    for _ in 0..ATTEMPTS {
        let mut registers = stopped.registers().map_err(own("read its registers"))?;
        registers.rip = instruction;
        registers.rax = number as u64;
        registers.orig_rax = u64::MAX;
        registers.eflags &= !0x100;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            arguments;
        stopped.set_registers(&registers).map_err(own("change its registers"))?;
        // Its entry, and its exit.
        stopped = to_a_call(to_a_call(stopped)?)?;
        let result = stopped.registers().map_err(own("read its registers"))?.rax;
        match result as i64 {
            // (Something that cannot be blocked has come while the sandbox was asked about it.)
            error if AGAIN.contains(&error) => {}
            error @ -4095..=-1 => return Ok((stopped, Err(Errno::from_raw(-error as i32)))),
            _ => return Ok((stopped, Ok(result))),
        }
    }
    Err(HandError::Own("have it make a call", Errno::EINTR))
}

/// Lets it go on to the entry or the exit of a call.
fn to_a_call(mut stopped: Stopped) -> Result<Stopped, HandError> {
    for _ in 0..ATTEMPTS {
        stopped = stopped.run_to_call().map_err(own("let it go on"))?;
        match stopped.why() {
            Stop::Call => return Ok(stopped),
            Stop::Signal(signal) if is_fault(signal) => return Err(HandError::Astray(signal)),
            // It was asked to stop more than once, or gets SIGSTOP, which has no hold on it.
            _ => {}
        }
    }
    Err(HandError::Own("have it make a call", Errno::EINTR))
}

/// Brings a thread that has stopped at a call to where it stops for a signal, without an instruction of its program:
/// from there the kernel makes an interrupted call of its registers again, and it can be given a signal with what is
/// known of that (get_signal in kernel/signal.c, arch_do_signal_or_restart in arch/x86/kernel/signal.c). It blocks all
/// signals then.
pub fn to_a_signal(mut stopped: Stopped) -> Result<Stopped, HandError> {
    /// Sent, and taken back: harmless, and a tracer is told even of what is ignored (sig_ignored).
    const SIGNALS: [i32; 4] = [libc::SIGURG, libc::SIGWINCH, libc::SIGIO, libc::SIGPIPE];
    let waiting = stopped.pending_signals(false).map_err(own("read its signals"))?;
    // One that waits would come in its place.
    let waits = |signal: &i32| waiting.iter().any(|it| it.si_signo == *signal);
    let signal = SIGNALS.into_iter().find(|it| !waits(it)).unwrap_or(SIGNALS[0]);
    stopped.set_signal_mask(!bit(signal)).map_err(own("block its signals"))?;
    process::signal_thread(stopped.tid(), signal).map_err(own("stop it"))?;
    stopped = to_its_signal(stopped, signal)?;
    stopped.set_signal_mask(u64::MAX).map_err(own("block its signals"))?;
    Ok(stopped)
}

/// This signal waits for the thread, and only it is not blocked: to the stop for it, without an instruction of its
/// program.
pub(super) fn to_its_signal(mut stopped: Stopped, signal: i32) -> Result<Stopped, HandError> {
    for _ in 0..ATTEMPTS {
        stopped = stopped.run().map_err(own("let it go on"))?;
        match stopped.why() {
            Stop::Signal(it) if it == signal => return Ok(stopped),
            Stop::Signal(it) if is_fault(it) => return Err(HandError::Astray(it)),
            _ => {}
        }
    }
    Err(HandError::Own("stop it", Errno::EINTR))
}

/// A signal in a set of them.
pub(super) fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Where a `syscall` instruction is in the guest's memory: its vDSO has some, for what it cannot answer
/// itself; else in what is executable of it.
pub fn find_instruction(tid: i32, executable: &[(u64, u64, bool)]) -> Option<u64> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const MOST: u64 = 4 << 20;
    let mut ranges: Vec<_> = executable.to_vec();
    // The vDSO first.
    ranges.sort_by_key(|(_, _, is_vdso)| !is_vdso);
    for (start, end, _) in ranges {
        let mut bytes = vec![0; (end - start).min(MOST) as usize];
        let readable = read(tid, start, &mut bytes).is_ok()
            || memory(tid, false).is_ok_and(|it| it.read_exact_at(&mut bytes, start).is_ok());
        if readable && let Some(at) = bytes.windows(2).position(|pair| pair == SYSCALL) {
            return Some(start + at as u64);
        }
    }
    None
}
