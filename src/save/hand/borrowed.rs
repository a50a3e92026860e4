//! The hand of a thread of a running guest, which must not notice.
//!
//! Owns what such a thread has to get back: its registers, its mask, the signal that it was about to get, and SIGTRAP
//! ([`Traps`]).

use std::ops::Range;

use nix::errno::Errno;

use super::remote::bit;
use super::{
    AREA, CODE, Hand, HandError, Traps, force, is_fault, own, read, remote_call, to_a_signal,
};
use crate::save::capture::status::Status;
use crate::sys::agent;
use crate::sys::ptrace::{Stop, Stopped};

/// A thread that could not be borrowed: why, and the thread itself unless it was killed.
pub type Refusal = (HandError, Option<Stopped>);

fn lost(error: HandError) -> Refusal {
    (error, None)
}

/// Where the agent lies in a guest that goes on afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// The area itself.
    address: u64,
    /// A `syscall` instruction of the guest's own.
    instruction: u64,
}

/// What a thread is given back when its hand is.
#[derive(Debug)]
struct Before {
    registers: libc::user_regs_struct,
    mask: u64,
    why: Stop,
    information: Option<libc::siginfo_t>,
}

/// The hand of a thread that is given back as it was.
#[derive(Debug)]
pub struct Borrowed {
    /// Calls are made through it.
    pub hand: Hand,
    before: Before,
    instruction: u64,
    traps: Traps,
    status: Status,
}

impl Borrowed {
    /// Puts the agent into the thread's memory. `instruction`: where a `syscall` instruction of the
    /// guest is ([`find_instruction`](super::find_instruction)).
    ///
    /// # Errors
    /// The thread comes back as it was, unless it was killed.
    pub fn begin(stopped: Stopped, instruction: u64) -> Result<(Borrowed, Area), Refusal> {
        let Some(status) = Status::read(stopped.tid()) else {
            return Err((
                HandError::Own("read what /proc tells of it", Errno::ESRCH),
                Some(stopped),
            ));
        };
        let (stopped, before, status) = prepare(stopped, status).map_err(lost)?;
        let map = |stopped, address: u64, length: u64, protection: libc::c_int, flags| {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags) as u64;
            let arguments = [address, length, protection as u64, flags, u64::MAX, 0];
            remote_call(stopped, instruction, libc::SYS_mmap, arguments).map_err(lost)
        };
        let (stopped, mapped) = map(stopped, 0, AREA, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let refuse = |stopped, what, errno| match give_back(stopped, &before) {
            Ok(stopped) => (own(what)(errno), Some(stopped)),
            Err(error) => lost(error),
        };
        let address = match mapped {
            Ok(address) => address,
            Err(errno) => return Err(refuse(stopped, MAP, errno)),
        };
        // Under PR_SET_MDWE what was writable never becomes executable: mapped anew, not protected.
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        let (stopped, mapped) = map(stopped, address, CODE as u64, executable, libc::MAP_FIXED)?;
        let written = mapped.and_then(|_| force(stopped.tid(), address, agent::code()));
        let (stopped, taken) = match written {
            Ok(()) => {
                // (Nothing has been forced on it so far.)
                let (stopped, taken) =
                    Traps::take(stopped, &status, instruction, address + CODE as u64)
                        .map_err(lost)?;
                (stopped, taken.map_err(|errno| (ASK, errno)))
            }
            Err(errno) => (stopped, Err((MAP, errno))),
        };
        match taken {
            Ok(traps) => {
                let hand = Hand::new(stopped, address);
                let borrowed = Borrowed { hand, before, instruction, traps, status };
                Ok((borrowed, Area { address, instruction }))
            }
            Err((what, errno)) => {
                let unmap = [address, AREA, 0, 0, 0, 0];
                let (stopped, _) =
                    remote_call(stopped, instruction, libc::SYS_munmap, unmap).map_err(lost)?;
                Err(refuse(stopped, what, errno))
            }
        }
    }

    /// The hand of another thread of the same process, which has the agent already. `status`: read of it since
    /// it has stopped.
    pub fn join(stopped: Stopped, area: Area, status: Status) -> Result<Borrowed, Refusal> {
        let (stopped, before, status) = prepare(stopped, status).map_err(lost)?;
        let (stopped, traps) = Traps::take_of_thread(stopped, &status).map_err(lost)?;
        let hand = Hand::new(stopped, area.address);
        Ok(Borrowed { hand, before, instruction: area.instruction, traps, status })
    }

    /// What /proc told of the thread as it was borrowed.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// SIGTRAP, as the thread gets it back.
    pub fn traps(&self) -> &Traps {
        &self.traps
    }

    /// The registers that the thread had.
    pub fn registers(&self) -> libc::user_regs_struct {
        self.before.registers
    }

    /// The signals that it blocked.
    pub fn mask(&self) -> u64 {
        self.before.mask
    }

    /// The signal that it was about to get when it was stopped.
    pub fn signal(&self) -> Option<libc::siginfo_t> {
        self.before.information
    }

    /// Why it had stopped.
    pub fn why(&self) -> Stop {
        self.before.why
    }

    /// Lets the thread come to the end of these instructions of its own, or to a system call among them, and have it
    /// stopped there, if it was asked to stop in their midst. It runs nothing else. A fault that it meets (what it was
    /// to write to is not there) is what it has stopped for, then.
    pub fn come_out_of(&mut self, code: &Range<u64>) -> Result<(), HandError> {
        // A hundred or so. (Where steps take so long that the kernel changes meanwhile what they read, they begin again,
        // as they would after a restore.)
        const STEPS: usize = 400;
        const FAULTS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];
        let faults = FAULTS.iter().fold(0, |set, signal| set | bit(*signal));
        let mut registers = self.before.registers;
        let waits = (self.status.pending | self.status.shared_pending) & faults != 0;
        if self.before.why != Stop::Asked || !is_between_calls(&registers) || waits {
            return Ok(());
        }
        let stopped = self.hand.stopped()?;
        stopped.set_registers(&registers).map_err(own("put its registers back"))?;
        // A fault that is blocked takes the process's action of it away (force_sig_info_to_task in kernel/signal.c).
        let blocked = !(faults | bit(libc::SIGTRAP));
        stopped.set_signal_mask(blocked).map_err(own("block its signals"))?;
        for _ in 0..STEPS {
            if !code.contains(&registers.rip) || is_call(self.hand.tid(), registers.rip) {
                break;
            }
            let why = self.hand.step()?;
            let stopped = self.hand.stopped()?;
            registers = stopped.registers().map_err(own("read its registers"))?;
            if let Stop::Signal(signal) = why
                && signal != libc::SIGTRAP
            {
                let information = stopped.signal_information().map_err(own("read its signal"))?;
                self.before.information = Some(information);
                self.before.why = why;
                break;
            }
        }
        self.before.registers = registers;
        self.hand.stopped()?.set_signal_mask(u64::MAX).map_err(own("block its signals"))
    }

    /// Gives the thread back as it was, but for the action of SIGTRAP. The agent stays for other threads.
    pub fn leave(mut self) -> Result<Stopped, HandError> {
        self.traps.add(self.hand.strays());
        let room = self.hand.table().address();
        let stopped = self.hand.release()?;
        let stopped = self.traps.put_back(stopped, self.instruction, room)?;
        give_back(stopped, &self.before)
    }

    /// Gives the thread back as it was, and takes the agent out of its process. The last of its process: no other
    /// hand is in it any more.
    pub fn end(mut self) -> Result<Stopped, HandError> {
        self.traps.add(self.hand.strays());
        let (area, room) = (self.hand.area(), self.hand.table().address());
        let mut stopped = self.hand.release()?;
        // (A breakpoint has left SIGTRAP not blocked.)
        stopped.set_signal_mask(u64::MAX).map_err(own("block its signals"))?;
        let stopped = self.traps.put_back(stopped, self.instruction, room)?;
        let (stopped, result) =
            remote_call(stopped, self.instruction, libc::SYS_munmap, [area, AREA, 0, 0, 0, 0])?;
        result.map_err(own("unmap memory in it"))?;
        give_back(stopped, &self.before)
    }
}

/// Whether a thread was stopped at an instruction of its own, not in a call, and does not step itself.
pub fn is_between_calls(registers: &libc::user_regs_struct) -> bool {
    const TRAP_FLAG: u64 = 0x100;
    registers.orig_rax == u64::MAX && registers.eflags & TRAP_FLAG == 0
}

/// Whether its next instruction is `syscall`.
fn is_call(tid: i32, at: u64) -> bool {
    let mut bytes = [0; 2];
    read(tid, at, &mut bytes).is_ok() && bytes == [0x0f, 0x05]
}

const MAP: &str = "map memory in it";
const ASK: &str = "ask it for its action of SIGTRAP";

fn prepare(stopped: Stopped, status: Status) -> Result<(Stopped, Before, Status), HandError> {
    let (mut stopped, status) = to_its_fault(stopped, status)?;
    let registers = stopped.registers().map_err(own("read its registers"))?;
    let mask = stopped.signal_mask().map_err(own("read its signal mask"))?;
    let why = stopped.why();
    let information = match why {
        Stop::Signal(_) => Some(stopped.signal_information().map_err(own("read its signal"))?),
        _ => None,
    };
    stopped.set_signal_mask(u64::MAX).map_err(own("block its signals"))?;
    Ok((stopped, Before { registers, mask, why, information }, status))
}

/// Where a fault waits for the thread (it was asked to stop as that came up) it goes on to its stop for that, without
/// another instruction: a fault comes first, and would come before the trap at the end of a hand's calls
/// (dequeue_synchronous_signal in kernel/signal.c).
fn to_its_fault(mut stopped: Stopped, mut status: Status) -> Result<(Stopped, Status), HandError> {
    // (It may have been asked to stop more than once.)
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        if stopped.why() != Stop::Asked || status.pending == 0 || !has_fault(&stopped)? {
            break;
        }
        stopped = stopped.run().map_err(own("let it go on"))?;
        // (Where nothing is told, anything may wait.)
        status = Status::read(stopped.tid()).unwrap_or(Status {
            pending: u64::MAX,
            shared_pending: u64::MAX,
            ..status
        });
    }
    Ok((stopped, status))
}

/// Whether a fault waits for it.
fn has_fault(stopped: &Stopped) -> Result<bool, HandError> {
    let waiting = stopped.pending_signals(false).map_err(own("read its signals"))?;
    if waiting.is_empty() {
        return Ok(false);
    }
    let blocked = stopped.signal_mask().map_err(own("read its signal mask"))?;
    Ok(waiting.iter().any(|signal| {
        let (number, code) = (signal.si_signo, signal.si_code);
        let is_one = is_fault(number) || number == libc::SIGTRAP;
        is_one && code > libc::SI_USER && blocked & 1 << (number - 1) == 0
    }))
}

fn give_back(mut stopped: Stopped, before: &Before) -> Result<Stopped, HandError> {
    if stopped.why() == Stop::Call {
        stopped = to_a_signal(stopped)?;
    }
    // Had something else come first, the hand's own trap would still wait, and end the program.
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        if !has_fault(&stopped)? {
            break;
        }
        stopped = stopped.run().map_err(own("let it go on"))?;
    }
    stopped.set_registers(&before.registers).map_err(own("put its registers back"))?;
    stopped.set_signal_mask(before.mask).map_err(own("put its signal mask back"))?;
    if let Some(information) = &before.information {
        stopped.set_signal_information(information).map_err(own("put its signal back"))?;
    }
    Ok(stopped.because(before.why))
}
