//! Waits that go on with what was left of them.
//!
//! A thread that was stopped in a wait for a span of time goes on by restart_syscall(2), for which the
//! kernel keeps in the thread what it waits for and until when. So that a restored thread has that, it
//! begins the wait anew, with the span that was left and without an instruction of its program, and is
//! stopped in it. From there on it is, for the kernel, one whose wait was interrupted: it goes on once the
//! thread has its own registers and is let go, a handler ends it with EINTR, and none of it shows.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::save::hand::{Hand, HandError};
use crate::save::state::Thread;
use crate::sentry::{Features, InterruptedWait, Kernel};
use crate::sys::ptrace::{Stop, place};

/// ERESTART_RESTARTBLOCK (include/linux/errno.h).
const RESTART_BLOCK: i64 = -516;

/// So often a thread is let run until it waits, for twice as long each time.
const MOST_ATTEMPTS: u32 = 9;

/// What has become of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It goes on when the thread is let go.
    Waits,
    /// It is over, with this result.
    Over(i64),
}

/// Who saves the thread again is to find what is left of its wait, where its timeout does not tell.
pub fn note(kernel: &Kernel, tid: i32, thread: &Thread, begun: Option<Begun>) {
    let (Some(Begun::Waits), Some(left)) = (begun, thread.remaining) else { return };
    if !kernel.features().contains(Features::VIRTUAL_RATE) {
        return;
    }
    let word = |index: usize| thread.registers.get(index).copied().unwrap_or(0);
    let arguments =
        [place::RDI, place::RSI, place::RDX, place::R10, place::R8, place::R9].map(word);
    let end = Instant::now().checked_add(Duration::from_nanos(left));
    let (number, rip) = (word(place::ORIG_RAX), word(place::RIP));
    kernel.note_wait(tid, InterruptedWait { number, arguments, rip, end });
}

/// Begins the wait that the thread was stopped in. `None`: there is none with something left of it.
/// The thread blocks all signals.
pub fn begin(hand: &mut Hand, thread: &Thread) -> Result<Option<Begun>, HandError> {
    let Some(left) = thread.remaining else { return Ok(None) };
    let word = |index: usize| thread.registers.get(index).copied().unwrap_or(0);
    if word(place::RAX) as i64 != RESTART_BLOCK {
        return Ok(None);
    }
    let [rdi, rsi, rdx, r10] = [place::RDI, place::RSI, place::RDX, place::R10].map(word);
    let mut table = hand.table();
    let bytes = [left / 1_000_000_000, left % 1_000_000_000].map(u64::to_ne_bytes).concat();
    let span = table.data(&bytes).address;
    let number = word(place::ORIG_RAX) as libc::c_long;
    let call = match number {
        libc::SYS_nanosleep => table.attempt(number, [span, rsi]),
        libc::SYS_clock_nanosleep => table.attempt(number, [rdi, rsi, span, r10]),
        libc::SYS_poll => {
            let milliseconds = left.div_ceil(1_000_000).min(i32::MAX as u64);
            table.attempt(number, [rdi, rsi, milliseconds])
        }
        libc::SYS_futex => table.attempt(number, [rdi, rsi, rdx, span]),
        _ => return Ok(None),
    };
    hand.begin(&table)?;
    for attempt in 0..MOST_ATTEMPTS {
        // Where the sandbox is asked about the call, its answer takes a while.
        let longer = if attempt == 0 { 0 } else { 1 << attempt };
        match hand.go_on_to_sleep(Duration::from_millis(longer))? {
            Stop::Signal(libc::SIGTRAP) => {
                let result = hand.done(&table)?.result(call);
                let result = result.map_or_else(|errno| -i64::from(errno as i32), |it| it as i64);
                return Ok(Some(Begun::Over(result)));
            }
            Stop::Signal(signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGSYS)) => {
                return Err(HandError::Astray(signal));
            }
            Stop::Asked => {
                let registers = hand
                    .stopped()?
                    .registers()
                    .map_err(|errno| HandError::Own("read its registers", errno))?;
                // Else it had not come to its wait, or the sandbox was asked about the call.
                if registers.rax as i64 == RESTART_BLOCK {
                    return Ok(Some(Begun::Waits));
                }
            }
            _ => {}
        }
    }
    Err(HandError::Own("begin its wait anew", Errno::EAGAIN))
}
