//! ptrace(2) as far as clocks need it: one thread, stopped where it was asked to, and let go.
//!
//! A tracee belongs to the *thread* that traces it: every function here is to be called on that one.
//! Waiting is not so exclusive: without __WNOTHREAD, any thread of the process that waits for the
//! tracee's number, or for any child, takes its stops away (do_wait in kernel/exit.c), and the thread
//! that traces would wait for ever.

use libc::{c_int, c_long, c_uint, c_void, pid_t};
use nix::errno::Errno;

/// The registers of a stopped thread.
pub type Registers = libc::user_regs_struct;

/// What a traced thread has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It stopped as it was asked to (PTRACE_EVENT_STOP), or because its whole process stops.
    Event,
    /// It has executed a program (PTRACE_EVENT_EXEC), or a traced child did without options.
    Exec,
    /// It enters or leaves a system call.
    Call,
    /// It is about to get this signal.
    Signal(c_int),
    /// It has ended.
    Gone,
}

fn ptrace(request: c_uint, tid: pid_t, address: u64, data: u64) -> Result<c_long, Errno> {
    // SAFETY: requests with addresses of this process's memory have wrappers of their own below.
    Errno::result(unsafe {
        libc::ptrace(request, tid, address as *mut c_void, data as *mut c_void)
    })
}

/// The caller's parent traces it from here on. Child side.
pub fn trace_me() -> Result<(), Errno> {
    ptrace(libc::PTRACE_TRACEME, 0, 0, 0).map(drop)
}

/// Traces a thread without stopping it; it tells of execs and marks its stops at calls.
pub fn seize(tid: pid_t) -> Result<(), Errno> {
    let options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD;
    ptrace(libc::PTRACE_SEIZE, tid, 0, options as u64).map(drop)
}

/// Asks a traced thread to stop when it next leaves the kernel.
pub fn interrupt(tid: pid_t) -> Result<(), Errno> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go on, with a signal unless it is 0. Child side.
pub fn go_on(tid: pid_t, signal: c_int) -> Result<(), Errno> {
    ptrace(libc::PTRACE_CONT, tid, 0, signal as u64).map(drop)
}

/// The same, until it enters or leaves a system call.
pub fn go_on_to_call(tid: pid_t) -> Result<(), Errno> {
    ptrace(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go for good. Child side.
pub fn detach(tid: pid_t, signal: c_int) -> Result<(), Errno> {
    ptrace(libc::PTRACE_DETACH, tid, 0, signal as u64).map(drop)
}

/// The registers of a stopped thread. Child side.
pub fn registers(tid: pid_t) -> Result<Registers, Errno> {
    // SAFETY: all-zero registers are valid.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut registers as u64)?;
    Ok(registers)
}

/// Changes the registers of a stopped thread.
pub fn set_registers(tid: pid_t, registers: &Registers) -> Result<(), Errno> {
    ptrace(libc::PTRACE_SETREGS, tid, 0, &raw const *registers as u64).map(drop)
}

/// A word of the memory of a stopped thread. Child side.
pub fn peek(tid: pid_t, address: u64) -> Result<u64, Errno> {
    let mut word = 0u64;
    // The raw call writes the word where `data` points (ptrace(2), on the C library's difference).
    // SAFETY: the kernel writes one word.
    let done = unsafe {
        libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, tid, address, &raw mut word)
    };
    Errno::result(done).map(|_| word)
}

/// Changes a word of the memory of a stopped thread, also where it is read-only: the process gets a
/// copy of its own of a page that it shares (FOLL_FORCE in mm/gup.c). Child side.
pub fn poke(tid: pid_t, address: u64, word: u64) -> Result<(), Errno> {
    ptrace(libc::PTRACE_POKEDATA, tid, address, word).map(drop)
}

/// Waits for the next stop of the only thread that the calling thread traces: (its number now, what
/// it has come to). An exec gives a thread the number of its process.
pub fn wait_any() -> Result<(pid_t, Stop), Errno> {
    wait(-1, libc::__WALL | libc::__WNOTHREAD)
}

/// The same; `None`: the calling thread was nudged ([`super::nudge`]).
pub fn wait_any_or_nudge() -> Result<Option<(pid_t, Stop)>, Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    match Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) })
    {
        Err(Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno),
        Ok(pid) => Ok(Some((pid, stop(status)))),
    }
}

/// Whether a thread that the calling one traces has ended; it is still to be waited for.
pub fn any_has_ended() -> bool {
    // SAFETY: an all-zero siginfo is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: the kernel writes one siginfo.
    let done = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, how) };
    // SAFETY: the kernel has filled in the fields of SIGCHLD, or left zeros (waitid(2)).
    done == 0 && unsafe { info.si_pid() } != 0
}

/// Waits for the next stop of a traced child. Child side.
pub fn wait_child(pid: pid_t) -> Result<Stop, Errno> {
    wait(pid, libc::__WALL).map(|(_, stop)| stop)
}

fn wait(pid: pid_t, flags: c_int) -> Result<(pid_t, Stop), Errno> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int.
        match Errno::result(unsafe { libc::waitpid(pid, &mut status, flags) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(pid) => return Ok((pid, stop(status))),
        }
    }
}

fn stop(status: c_int) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Gone;
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        (libc::PTRACE_EVENT_EXEC, _) => Stop::Exec,
        (0, signal) if signal == libc::SIGTRAP | 0x80 => Stop::Call,
        (0, signal) => Stop::Signal(signal),
        _ => Stop::Event,
    }
}

/// The value of an entry of the auxiliary vector, on the stack of a program that has just been
/// executed and has not run (argc, argv, NULL, environment, NULL, pairs; the x86-64 ABI, section
/// 3.4.1). Child side.
pub fn auxiliary(tid: pid_t, entry: u64) -> Result<Option<u64>, Errno> {
    /// Twice what execve(2) takes.
    const MOST_WORDS: u64 = 1 << 22;
    let stack = registers(tid)?.rsp;
    let mut at = 1 + peek(tid, stack)?.min(MOST_WORDS) + 1;
    let word = |index: u64| peek(tid, stack.wrapping_add(index * 8));
    while at < MOST_WORDS && word(at)? != 0 {
        at += 1;
    }
    at += 1;
    while at < MOST_WORDS {
        match word(at)? {
            0 => return Ok(None),
            key if key == entry => return word(at + 1).map(Some),
            _ => at += 2,
        }
    }
    Ok(None)
}
