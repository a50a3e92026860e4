//! Makes a call again with another timeout, or shows its result in the guest's time, or with the CPU time
//! that the guest has brought along from an image.
//!
//! The kernel does the waiting, with all it knows of signals, wake-ups and what is left of a span;
//! only the timeout it is given is the host's instead of the guest's. The thread is stopped in its
//! trapped call (backed out with ERESTARTNOINTR while a stop is pending), its registers lead to a
//! timeout of ours below its stack, the call is made, and when it returns the registers are what
//! they were. Owns that ptrace(2) session; what a call's timeout means is `syscalls::timeouts`'
//! affair.
//!
//! Nothing here is a wall: a guest that changes the timeout meanwhile deceives itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::call::Call;
use super::carried::Used;
use super::remade::{InterruptedWait, Remade};
use super::rewind;
use super::sessions::Unseized;
use super::time::Time;
use crate::notify::{Answer, Received, hand_over};
use crate::sys::process;
use crate::sys::tracing::{self, Registers, Stop};
use crate::timekeeping::SECOND;
use crate::timekeeping::timeout::{Form, Timeout};

/// ERESTARTNOINTR (include/linux/errno.h): the call is made again, whatever signal there is.
const RESTART: i32 = 513;

/// ERESTART_RESTARTBLOCK: gone on with by restart_syscall(2), unless a handler runs.
const RESTART_BLOCK: i64 = -516;

/// How a call is to be made.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// The call's number; another one than what was trapped needs `result`.
    pub(super) number: u32,
    /// The argument that is changed, and what it becomes.
    pub(super) argument: Option<(usize, Argument)>,
    /// More arguments with plain values.
    pub(super) values: Vec<(usize, Argument)>,
    /// Spans of the host that the call gives back, each to become one of the guest.
    pub(super) given_back: Vec<GivenBack>,
    /// Stamps of a file to be shown in the guest's time.
    pub(super) stamps: Option<Stamps>,
    /// CPU time to be added to what is told.
    pub(super) addition: Option<Addition>,
    /// How long the call waits at most, by the host's clock, where that is a span.
    pub(super) span: Option<Duration>,
    /// The result is the seconds left, rounded as alarm(2) does, of the second timeout below the
    /// stack.
    pub(super) result_is_left: bool,
}

impl Change {
    /// The call as it is.
    pub(super) fn nothing(number: u32) -> Change {
        Change {
            number,
            argument: None,
            values: Vec::new(),
            given_back: Vec::new(),
            stamps: None,
            addition: None,
            span: None,
            result_is_left: false,
        }
    }
}

/// What an argument becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    /// A number.
    Value(u64),
    /// The address of this timeout.
    Timeout(Timeout),
    /// The address of room for a timeout behind the first.
    Room,
}

/// Where a call writes the time stamps of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamps {
    /// The structure.
    pub(super) address: u64,
    /// Where in it: seconds, and nanoseconds in the low half of the word behind them. That of the last
    /// access is the first, that of the last change of the inode the third.
    pub(super) at: &'static [u64],
}

/// `st_atim`, `st_mtim` and `st_ctim` of the kernel's `struct stat` (arch/x86/include/uapi/asm/stat.h).
pub(super) const STAT: &[u64] = &[72, 88, 104];
/// `stx_atime` to `stx_mtime` of `struct statx`.
pub(super) const STATX: &[u64] = &[0x40, 0x50, 0x60, 0x70];

/// CPU time that is missing in what a call tells.
#[derive(Debug, Clone, Copy)]
pub(super) enum Addition {
    /// In `ru_utime` and `ru_stime`, the beginning of `struct rusage`.
    Usage {
        /// The structure.
        address: u64,
        /// Missing.
        used: Used,
    },
    /// In a `struct tms`.
    Times {
        /// The structure.
        address: u64,
        /// Missing of the process's own, and of its children's.
        used: [Used; 2],
    },
}

impl Addition {
    /// Whether nothing is missing.
    pub(super) fn is_nothing(&self) -> bool {
        match self {
            Addition::Usage { used, .. } => *used == Used::default(),
            Addition::Times { used, .. } => *used == [Used::default(); 2],
        }
    }

    fn address(&self) -> u64 {
        match self {
            Addition::Usage { address, .. } | Addition::Times { address, .. } => *address,
        }
    }

    /// The four words that begin the structure, as they should be.
    fn added(&self, words: [u64; 4]) -> [u64; 4] {
        const MICROSECONDS: u64 = 1_000_000;
        /// In a clock tick of user space (USER_HZ is 100).
        const TICK: u64 = 10_000;
        match self {
            Addition::Usage { used, .. } => {
                let sum = |seconds: u64, rest: u64, more: u64| {
                    let all = seconds.saturating_mul(MICROSECONDS).saturating_add(rest);
                    let all = all.saturating_add(more);
                    [all / MICROSECONDS, all % MICROSECONDS]
                };
                let [user, system] =
                    [sum(words[0], words[1], used.user), sum(words[2], words[3], used.system)];
                [user[0], user[1], system[0], system[1]]
            }
            Addition::Times { used: [own, children], .. } => {
                let missing = [own.user, own.system, children.user, children.system];
                std::array::from_fn(|at| words[at].saturating_add(missing[at] / TICK))
            }
        }
    }
}

/// A span that the kernel writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct GivenBack {
    /// Where the guest expects it.
    pub(super) address: u64,
    pub(super) form: Form,
    /// See there.
    pub(super) when: When,
}

/// When the kernel writes such a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// The call succeeds.
    Done,
    /// The call is interrupted.
    Interrupted,
    /// In any case, and over the changed timeout instead of where the guest expects it.
    OverTimeout,
}

/// Has the kernel make the call, and shows what it says of a file's stamps in the guest's time.
pub(super) fn show_stamps(call: &Call<'_>, stamps: Stamps) -> Answer {
    remake(call, Change { stamps: Some(stamps), ..Change::nothing(call.received().number) })
}

/// Has the kernel make the call, and adds what is missing in the CPU times that it tells.
pub(super) fn show_used(call: &Call<'_>, addition: Addition) -> Answer {
    remake(call, Change { addition: Some(addition), ..Change::nothing(call.received().number) })
}

/// Has the call made as `change` says.
pub(super) fn remake(call: &Call<'_>, change: Change) -> Answer {
    let received = *call.received();
    let kernel = Arc::clone(call.kernel);
    let (what, remedy) = match change.addition {
        None => (
            "a timeout of the sandbox's clock",
            "its timeouts are the host's; run it without --time",
        ),
        Some(_) => ("the CPU time from before the restore", "what it used since is told alone"),
    };
    let refuse = |why| {
        kernel.let_through(received.tid, what, why, remedy);
        Answer::Continue
    };
    if !hand_over() {
        return refuse("the sandbox may make no more threads to wait with (ulimit -u)");
    }
    match kernel.time().sessions().seize_to_remake(call) {
        Ok(()) => {}
        Err(Unseized::Ended | Unseized::Init) => return Answer::Continue,
        // It stops before it makes the call again, and is let go by then.
        Err(Unseized::Sentry) => {
            let stops = kernel.time().sessions().await_interrupt(call);
            return if stops { Answer::Restart(RESTART) } else { Answer::Continue };
        }
        Err(Unseized::Guest) => return refuse("another program of the sandbox traces it"),
        Err(Unseized::Host) => return refuse("the host does not let it be traced"),
    }
    // The stop is asked for first: with nothing pending the code would reach the guest.
    kernel.time().sessions().interrupt(received.tid);
    Answer::Restart(RESTART).then(move || {
        let time = kernel.time();
        let session = Session { received, change: &change, time };
        if !session.run(time.remade()) {
            kernel.let_through(received.tid, what, "its memory cannot be changed", remedy);
        }
    })
}

/// One thread that is traced while it makes one call.
struct Session<'c> {
    received: Received,
    change: &'c Change,
    time: &'c Time,
}

/// Words below the stack: two timeouts of two pairs each.
const ROOM: usize = 8;

/// Below this much under the stack's end a function may have data (the x86-64 ABI, section 3.2.2).
const RED_ZONE: u64 = 128;

impl Session<'_> {
    /// Gives whether the call could be changed; if not, it is made as it is.
    fn run(&self, remade: &Remade) -> bool {
        let tid = self.received.tid;
        let stopped = tracing::wait_any();
        let signal = match stopped {
            Ok((_, Stop::Event)) => return self.change_call(remade),
            Ok((_, Stop::Signal(signal))) => signal,
            Ok((_, Stop::Gone)) | Err(_) => {
                self.time.sessions().renamed(tid, None);
                return true;
            }
            Ok(_) => 0,
        };
        self.time.sessions().let_go(tid, signal);
        true
    }

    /// The thread is stopped on its way out of the call that was backed out.
    fn change_call(&self, remade: &Remade) -> bool {
        let tid = self.received.tid;
        let (before, room) = match self.prepare() {
            Ok(Some(prepared)) => prepared,
            // It is another call, or the thread has been killed.
            Ok(None) | Err(Errno::ESRCH) => {
                self.time.sessions().let_go(tid, 0);
                return true;
            }
            Err(_) => {
                // Or it would be tried without end.
                remade.let_pass(tid, (self.received.number, self.received.args));
                self.time.sessions().let_go(tid, 0);
                return false;
            }
        };
        // (An error: it has been killed.)
        if self.enter(&before, room.at, remade).is_err() {
            remade.set(tid, None);
            self.time.sessions().let_go(tid, 0);
            return true;
        }
        // In: the entry of the call. Out: its return. A signal before it: the call is made as it
        // was when the handler has run.
        let mut entered = false;
        let end = self.change.span.and_then(|span| Instant::now().checked_add(span));
        let sessions = self.time.sessions();
        sessions.waits(tid);
        let signal = loop {
            match tracing::wait_any_or_nudge() {
                // (An error, here and below: it has been killed, as the next wait will say.)
                Ok(None) if sessions.is_to_yield() => {
                    let _ = tracing::interrupt(tid);
                }
                Ok(None) => {}
                Ok(Some((_, Stop::Call))) if !entered => {
                    entered = true;
                    let _ = tracing::go_on_to_call(tid);
                }
                Ok(Some((_, Stop::Call))) => {
                    if let Ok(Some(interrupted)) = self.leave(&before, &room, end) {
                        remade.note(tid, interrupted);
                    }
                    break 0;
                }
                Ok(Some((_, Stop::Gone))) | Err(_) => {
                    remade.set(tid, None);
                    self.time.sessions().renamed(tid, None);
                    return true;
                }
                Ok(Some((_, stop))) => {
                    room.restore(tid);
                    let _ = tracing::set_registers(tid, &before);
                    break if let Stop::Signal(signal) = stop { signal } else { 0 };
                }
            }
        };
        // Before the thread runs on: its next call may be changed by another session.
        remade.set(tid, None);
        self.time.sessions().let_go(tid, signal);
        true
    }

    /// Checks that this is the call, and lays the timeout below the stack. `None`: it is another.
    fn prepare(&self) -> Result<Option<(Registers, Room)>, Errno> {
        let tid = self.received.tid;
        let registers = tracing::registers(tid)?;
        let result = registers.rax as i64;
        let restarts = (512..=516).contains(&-result);
        if registers.orig_rax != u64::from(self.received.number)
            || arguments(&registers) != self.received.args
            || !restarts
        {
            return Ok(None);
        }
        let room = Room::take(tid, registers.rsp)?;
        for (_, argument) in self.change.argument.iter().chain(&self.change.values) {
            if let Argument::Timeout(timeout) = argument {
                for (index, word) in timeout.words().into_iter().enumerate() {
                    tracing::poke(tid, room.at + 8 * index as u64, word)?;
                }
            }
        }
        Ok(Some((registers, room)))
    }

    /// Lets the changed call begin.
    fn enter(&self, before: &Registers, room: u64, remade: &Remade) -> Result<(), Errno> {
        let tid = self.received.tid;
        let mut registers = *before;
        for (index, argument) in self.change.argument.iter().chain(&self.change.values) {
            let value = match argument {
                Argument::Value(value) => *value,
                Argument::Timeout(_) => room,
                Argument::Room => room + 32,
            };
            *argument_mut(&mut registers, *index) = value;
        }
        registers.orig_rax = u64::from(self.change.number);
        remade.set(tid, Some((self.change.number, arguments(&registers))));
        tracing::set_registers(tid, &registers)?;
        tracing::go_on_to_call(tid)
    }

    /// The call has returned: nothing of the change may be left. Gives what it was if it goes on by
    /// restart_syscall(2); `end`: until when it waits at most.
    fn leave(
        &self,
        before: &Registers,
        room: &Room,
        end: Option<Instant>,
    ) -> Result<Option<InterruptedWait>, Errno> {
        let tid = self.received.tid;
        let mut registers = tracing::registers(tid)?;
        for back in &self.change.given_back {
            let succeeded = registers.rax as i64 >= 0;
            let from = match back.when {
                When::OverTimeout => room.at,
                When::Done if succeeded => back.address,
                When::Interrupted if !succeeded => back.address,
                _ => continue,
            };
            let _ = self.give_back(from, back);
        }
        if let (Some(stamps), 0) = (&self.change.stamps, registers.rax) {
            let _ = self.show_stamps(stamps);
        }
        if let (Some(addition), true) = (&self.change.addition, registers.rax as i64 >= 0) {
            let _ = self.add(addition);
        }
        if self.change.result_is_left && registers.rax == 0 {
            let words = [tracing::peek(tid, room.at + 48)?, tracing::peek(tid, room.at + 56)?];
            let left = Timeout::of_words(Form::Timeval, &words);
            registers.rax = left.map_or(0, |left| left.to_guest(self.time.keeper()).seconds_left());
        }
        room.restore(tid);
        let arguments = arguments(before);
        for (index, argument) in arguments.into_iter().enumerate() {
            *argument_mut(&mut registers, index) = argument;
        }
        // A call that is to be made once more is so as the guest made it.
        registers.orig_rax = before.orig_rax;
        // Nor does it end by a signal that is kept only because the thread is traced.
        rewind::make_again(tid, &mut registers, 0);
        tracing::set_registers(tid, &registers)?;
        let goes_on = registers.rax as i64 == RESTART_BLOCK;
        Ok(goes_on.then_some(InterruptedWait {
            number: before.orig_rax,
            arguments,
            rip: registers.rip,
            end,
        }))
    }

    fn show_stamps(&self, stamps: &Stamps) -> Result<(), Errno> {
        let (tid, keeper) = (self.received.tid, self.time.keeper());
        let mut all = Vec::with_capacity(stamps.at.len());
        for offset in stamps.at {
            let at = stamps.address.wrapping_add(*offset);
            let (seconds, rest) = (tracing::peek(tid, at)? as i64, tracing::peek(tid, at + 8)?);
            let host =
                seconds.checked_mul(SECOND).and_then(|it| it.checked_add((rest as u32).into()));
            all.push((at, host));
        }
        let changed = all.get(2).and_then(|(_, host)| *host);
        for (index, (at, host)) in all.into_iter().enumerate() {
            let shown = host.and_then(|host| match (index, changed) {
                (0, Some(changed)) => keeper.access_time(host, changed),
                _ => keeper.file_time(host),
            });
            if let Some(guest) = shown {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&guest.div_euclid(SECOND).to_ne_bytes());
                bytes[8..].copy_from_slice(&guest.rem_euclid(SECOND).to_ne_bytes());
                process::write_memory(tid, at, &bytes)?;
            }
        }
        Ok(())
    }

    fn add(&self, addition: &Addition) -> Result<(), Errno> {
        let (tid, address) = (self.received.tid, addition.address());
        let mut words = [0; 4];
        for (index, word) in words.iter_mut().enumerate() {
            *word = tracing::peek(tid, address.wrapping_add(8 * index as u64))?;
        }
        let bytes: Vec<u8> = addition.added(words).into_iter().flat_map(u64::to_ne_bytes).collect();
        process::write_memory(tid, address, &bytes).map(drop)
    }

    fn give_back(&self, from: u64, back: &GivenBack) -> Result<(), Errno> {
        let tid = self.received.tid;
        let mut words = [0; 4];
        let words = &mut words[..back.form.words()];
        for (index, word) in words.iter_mut().enumerate() {
            *word = tracing::peek(tid, from + 8 * index as u64)?;
        }
        let Some(timeout) = Timeout::of_words(back.form, words) else { return Ok(()) };
        let bytes: Vec<u8> = timeout
            .to_guest(self.time.keeper())
            .words()
            .into_iter()
            .flat_map(u64::to_ne_bytes)
            .collect();
        // As the kernel does, this passes over memory that may not be written.
        process::write_memory(tid, back.address, &bytes).map(drop)
    }
}

/// Memory below a thread's stack, and what was there.
struct Room {
    at: u64,
    before: [u64; ROOM],
}

impl Room {
    fn take(tid: i32, stack: u64) -> Result<Room, Errno> {
        let at = stack.wrapping_sub(RED_ZONE + 8 * ROOM as u64) & !15;
        let mut before = [0; ROOM];
        for (index, word) in before.iter_mut().enumerate() {
            *word = tracing::peek(tid, at + 8 * index as u64)?;
        }
        Ok(Room { at, before })
    }

    /// What lies there may belong to somebody after all, as below the small stacks of Go.
    fn restore(&self, tid: i32) {
        for (index, word) in self.before.iter().enumerate() {
            let _ = tracing::poke(tid, self.at + 8 * index as u64, *word);
        }
    }
}

fn arguments(registers: &Registers) -> [u64; 6] {
    let Registers { rdi, rsi, rdx, r10, r8, r9, .. } = *registers;
    [rdi, rsi, rdx, r10, r8, r9]
}

fn argument_mut(registers: &mut Registers, index: usize) -> &mut u64 {
    match index {
        0 => &mut registers.rdi,
        1 => &mut registers.rsi,
        2 => &mut registers.rdx,
        3 => &mut registers.r10,
        4 => &mut registers.r8,
        _ => &mut registers.r9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_added() {
        let used = Used { user: 1_600_000, system: 2_000_000 };
        let usage = Addition::Usage { address: 0, used };
        assert_eq!(usage.added([1, 500_000, 0, 999_999]), [3, 100_000, 2, 999_999]);
        let children = Used { user: 9_999, system: 20_001 };
        let times = Addition::Times { address: 0, used: [used, children] };
        assert_eq!(times.added([1, 2, 3, 4]), [161, 202, 3, 6]);
        assert!(!usage.is_nothing() && !times.is_nothing());
        assert!(Addition::Usage { address: 0, used: Used::default() }.is_nothing());
    }
}
