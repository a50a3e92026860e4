//! ptrace(2), as far as stopping threads and looking at them goes.
//!
//! A traced thread is [`Running`] or [`Stopped`], and only a stopped one can be read, changed or let
//! go. The kernel ties a tracee to the thread that has seized it, so neither type leaves its thread.
//! Every call may answer ESRCH: a tracee can be killed at any moment, stopped or not.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_uint, c_void, pid_t};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;

/// What the tracer is told of beside stops and ends: new threads and processes, which are traced from
/// their first instruction on, and execs. Stops at calls are told from those for SIGTRAP.
const OPTIONS: c_int = libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACESYSGOOD;

/// include/uapi/linux/elf.h
const NT_X86_XSTATE: usize = 0x202;
/// include/uapi/linux/ptrace.h, since Linux 5.13.
const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;

/// Makes the types stay on the thread that made them.
type OfThisThread = PhantomData<*const ()>;

/// A thread that the calling one traces and that was not seen to have stopped.
#[derive(Debug)]
pub struct Running {
    tid: pid_t,
    of: OfThisThread,
}

/// A thread that the calling one traces and that has stopped.
#[derive(Debug)]
pub struct Stopped {
    tid: pid_t,
    why: Stop,
    of: OfThisThread,
}

/// Why a thread has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is about to get this signal; it does if it is let go with it.
    Signal(c_int),
    /// Its process is stopped by this signal (or was when it was asked to stop).
    Group(c_int),
    /// It was asked to stop, or it is new.
    Asked,
    /// It has made this thread or process, which is traced too; 0: it has died meanwhile.
    Made(pid_t),
    /// It has executed another program. `former` was its number before: a thread that executes gets
    /// the number of its process.
    Executed {
        /// The number.
        former: pid_t,
    },
    /// It is at the entry or the exit of a call ([`Stopped::run_to_call`]).
    Call,
    /// Something else.
    Other(c_int),
}

/// What [`wait`] has to tell.
#[derive(Debug)]
pub enum Change {
    /// A tracee has stopped.
    Stopped(Stopped),
    /// A tracee has ended and was reaped, as far as its tracer goes.
    Ended(pid_t),
}

fn request(request: c_uint, tid: pid_t, address: usize, data: usize) -> Result<c_long, Errno> {
    // SAFETY: the callers below pass numbers, or pointers to what the request reads or writes.
    let done = unsafe { libc::ptrace(request, tid, address as *mut c_void, data as *mut c_void) };
    Errno::result(done)
}

/// Begins to trace `tid`, which runs on. EPERM: it is traced already, has ended, or may not be.
pub fn seize(tid: pid_t) -> Result<Running, Errno> {
    request(libc::PTRACE_SEIZE, tid, 0, OPTIONS as usize)?;
    Ok(Running { tid, of: PhantomData })
}

/// The next change of a tracee of the calling thread, if there is one now. Children of other threads
/// of this process are left alone.
pub fn wait() -> Result<Option<Change>, Errno> {
    change_of(-1)
}

/// The next change of `tid`, or with -1 of any.
fn change_of(tid: pid_t) -> Result<Option<Change>, Errno> {
    let mut status = 0;
    let flags = libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: the kernel writes one int.
        match Errno::result(unsafe { libc::waitpid(tid, &mut status, flags) }) {
            Ok(0) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(tid) if libc::WIFSTOPPED(status) => {
                let stopped = Stopped { tid, why: Stop::of(tid, status), of: PhantomData };
                return Ok(Some(Change::Stopped(stopped)));
            }
            Ok(tid) => return Ok(Some(Change::Ended(tid))),
        }
    }
}

/// So long is a stop awaited without sleeping, or what another thread does: most comes sooner than a processor wakes from
/// its sleep.
pub const AWAKE: Duration = Duration::from_micros(50);

/// After so long it is looked again, whether or not a signal has told to.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether the tracee can run while its tracer does not sleep.
pub fn has_second_processor() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

/// Waits until `tid`, which the calling thread traces, stops. ESRCH: it has ended.
pub fn wait_for(tid: pid_t) -> Result<Stopped, Errno> {
    wait_in(tid, if has_second_processor() { libc::WNOHANG } else { 0 })
}

/// The same of one of several that run: those who are to run on this processor do, while this thread sleeps.
pub fn wait_for_one_of_several(tid: pid_t) -> Result<Stopped, Errno> {
    wait_in(tid, 0)
}

fn wait_in(tid: pid_t, way: c_int) -> Result<Stopped, Errno> {
    let mut status = 0;
    let begun = Instant::now();
    let mut flags = libc::__WALL | way;
    loop {
        if flags & libc::WNOHANG != 0 && begun.elapsed() > AWAKE {
            flags = libc::__WALL;
        }
        // SAFETY: the kernel writes one int.
        match Errno::result(unsafe { libc::waitpid(tid, &mut status, flags) }) {
            Ok(0) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) if libc::WIFSTOPPED(status) => {
                return Ok(Stopped { tid, why: Stop::of(tid, status), of: PhantomData });
            }
            Ok(_) => return Err(Errno::ESRCH),
        }
    }
}

/// The same of one that runs; when the time has come it is asked to stop, and stops for that if for nothing else.
/// SIGCHLD is blocked in all threads: it tells when to look. (Where one has not, as in tests, that thread may take it
/// away between the look and the wait; so there is another look soon.)
pub fn wait_until(running: &Running, time: Instant) -> Result<Stopped, Errno> {
    let tid = running.tid;
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int.
        let done = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
        match Errno::result(done) {
            Ok(0) => {}
            Ok(_) if libc::WIFSTOPPED(status) => {
                return Ok(Stopped { tid, why: Stop::of(tid, status), of: PhantomData });
            }
            Ok(_) => return Err(Errno::ESRCH),
            Err(errno) => return Err(errno),
        }
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            running.interrupt()?;
            return wait_for(tid);
        }
        let left = TimeSpec::from_duration(left.min(AGAIN));
        // SAFETY: an all-zero set is valid, and sigaddset changes it only.
        let signals = unsafe {
            let mut signals: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut signals, libc::SIGCHLD);
            signals
        };
        // SAFETY: the kernel reads a set and a time. (What is taken is known to have come: whoever waits for such a
        // signal looks at all tracees before.)
        unsafe { libc::sigtimedwait(&signals, std::ptr::null_mut(), left.as_ref()) };
    }
}

/// Kills a tracee and waits for its end.
pub fn end(stopped: Stopped) -> Result<(), Errno> {
    // SAFETY: no pointers; the number is its own until it is waited for.
    Errno::result(unsafe { libc::kill(stopped.tid, libc::SIGKILL) })?;
    loop {
        match wait_for(stopped.tid) {
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => return Err(errno),
            Ok(_) => {}
        }
    }
}

/// Waits for the end of the process behind a pidfd, which the calling thread traces (waitid(2), P_PIDFD
/// since Linux 5.4). ECHILD: it does not, or has waited already.
pub fn wait_for_end(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = libc::WEXITED | libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: the kernel writes nothing where no result is asked for.
        let done = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                pidfd.as_raw_fd() as libc::id_t,
                std::ptr::null_mut(),
                flags,
            )
        };
        match Errno::result(done) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// The number that comes with an event (PTRACE_GETEVENTMSG).
fn event_message(tid: pid_t) -> Result<pid_t, Errno> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message as pid_t)
}

impl Stop {
    /// ptrace(2), "Stopped states".
    fn of(tid: pid_t, status: c_int) -> Stop {
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Stop::Call,
            0 => Stop::Signal(signal),
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Asked,
            libc::PTRACE_EVENT_STOP => Stop::Group(signal),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                Stop::Made(event_message(tid).unwrap_or(0))
            }
            libc::PTRACE_EVENT_EXEC => Stop::Executed { former: event_message(tid).unwrap_or(tid) },
            event => Stop::Other(event),
        }
    }
}

impl Running {
    /// A thread that was made by a tracee of the calling thread ([`Stop::Made`]).
    pub fn made(tid: pid_t) -> Running {
        Running { tid, of: PhantomData }
    }

    /// The thread's number.
    pub fn tid(&self) -> pid_t {
        self.tid
    }

    /// Its next change, if there is one now.
    pub fn change(&self) -> Result<Option<Change>, Errno> {
        change_of(self.tid)
    }

    /// Asks the thread to stop. It does before it runs another instruction of its program, once
    /// nothing in the kernel holds it up.
    pub fn interrupt(&self) -> Result<(), Errno> {
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map(drop)
    }
}

impl Stopped {
    /// A tracee of the calling thread that was left when it had stopped. Whatever is asked of another one is ESRCH.
    pub fn still(tid: pid_t) -> Stopped {
        Stopped { tid, why: Stop::Asked, of: PhantomData }
    }

    /// From now on it is killed if the calling thread ends.
    pub fn end_with_tracer(&mut self) -> Result<(), Errno> {
        let options = OPTIONS | libc::PTRACE_O_EXITKILL;
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, options as usize).map(drop)
    }

    /// Whether its tracer is told of the threads and processes that it makes, and traces them for that.
    pub fn tell_of_clones(&mut self, told: bool) -> Result<(), Errno> {
        const CLONES: c_int =
            libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
        let options = if told { OPTIONS } else { OPTIONS & !CLONES };
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, options as usize).map(drop)
    }

    /// The thread's number.
    pub fn tid(&self) -> pid_t {
        self.tid
    }

    /// Why it has stopped.
    pub fn why(&self) -> Stop {
        self.why
    }

    /// The signal that it was about to get.
    fn signal(&self) -> usize {
        match self.why {
            Stop::Signal(signal) => signal as usize,
            _ => 0,
        }
    }

    /// Traces it no longer. It goes on, with the signal that it was about to get; a thread whose
    /// process is stopped by a signal stays stopped (__ptrace_unlink in kernel/ptrace.c).
    pub fn detach(self) -> Result<(), Errno> {
        request(libc::PTRACE_DETACH, self.tid, 0, self.signal()).map(drop)
    }

    /// It goes on, with the signal that it was about to get, and stays traced. One whose process is
    /// stopped by a signal waits for the end of that (PTRACE_LISTEN).
    pub fn go_on(self) -> Result<Running, Errno> {
        match self.why {
            Stop::Group(_) => request(libc::PTRACE_LISTEN, self.tid, 0, 0)?,
            _ => request(libc::PTRACE_CONT, self.tid, 0, self.signal())?,
        };
        Ok(Running { tid: self.tid, of: PhantomData })
    }

    /// It goes on with the call in which it has stopped (`Stop::Made`, `Stop::Executed`), which must not be
    /// vfork(2), and is waited for until it stops when it leaves that, before an instruction of its program.
    /// Until then its registers are not its own: the kernel still puts the result of the call into them.
    pub fn finish_call(self) -> Result<Stopped, Errno> {
        // Asked before it goes: any stop forgets what was asked earlier (ptrace_stop in kernel/signal.c).
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0)?;
        self.go_and_wait(libc::PTRACE_CONT, 0)
    }

    /// Its general registers.
    pub fn registers(&self) -> Result<libc::user_regs_struct, Errno> {
        // SAFETY: an all-zero user_regs_struct is valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let mut vector = libc::iovec {
            iov_base: (&raw mut registers).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        let vector = &raw mut vector as usize;
        request(libc::PTRACE_GETREGSET, self.tid, libc::NT_PRSTATUS as usize, vector)?;
        Ok(registers)
    }

    /// Changes its general registers.
    pub fn set_registers(&mut self, registers: &libc::user_regs_struct) -> Result<(), Errno> {
        let mut vector = libc::iovec {
            iov_base: (&raw const *registers).cast_mut().cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        let vector = &raw mut vector as usize;
        request(libc::PTRACE_SETREGSET, self.tid, libc::NT_PRSTATUS as usize, vector).map(drop)
    }

    /// The state of its FPU and vector registers (NT_X86_XSTATE), as XSAVE lays it out.
    pub fn extended_state(&self) -> Result<Vec<u8>, Errno> {
        /// Room for AMX and what may come.
        const MOST: usize = 64 << 10;
        /// How much it was last: it is as much for all threads (regset_get_alloc in kernel/regset.c).
        static LENGTH: AtomicUsize = AtomicUsize::new(MOST - 1);
        loop {
            // Where all of the room is filled there may be more.
            let room = (LENGTH.load(Ordering::Relaxed) + 1).next_multiple_of(64);
            let mut bytes = vec![0u8; room];
            let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
            let at = &raw mut vector as usize;
            request(libc::PTRACE_GETREGSET, self.tid, NT_X86_XSTATE, at)?;
            let length = vector.iov_len;
            if length < room || room >= MOST {
                LENGTH.store(length, Ordering::Relaxed);
                bytes.truncate(length);
                bytes.shrink_to_fit();
                return Ok(bytes);
            }
            LENGTH.store(MOST - 1, Ordering::Relaxed);
        }
    }

    /// Changes that state. EINVAL: it is not one of this processor's.
    pub fn set_extended_state(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let mut vector =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let at = &raw mut vector as usize;
        request(libc::PTRACE_SETREGSET, self.tid, NT_X86_XSTATE, at).map(drop)
    }

    /// The signals that it blocks, one bit each.
    pub fn signal_mask(&self) -> Result<u64, Errno> {
        let mut mask = 0u64;
        request(libc::PTRACE_GETSIGMASK, self.tid, size_of::<u64>(), &raw mut mask as usize)?;
        Ok(mask)
    }

    /// Changes the signals that it blocks.
    pub fn set_signal_mask(&mut self, mask: u64) -> Result<(), Errno> {
        let at = &raw const mask as usize;
        request(libc::PTRACE_SETSIGMASK, self.tid, size_of::<u64>(), at).map(drop)
    }

    /// What is known of the signals that wait for it, or with `shared` for its process; as many as the
    /// kernel keeps.
    pub fn pending_signals(&self, shared: bool) -> Result<Vec<libc::siginfo_t>, Errno> {
        const AT_ONCE: usize = 32;
        let mut all = Vec::new();
        loop {
            // SAFETY: an all-zero siginfo_t is valid.
            let mut some: [libc::siginfo_t; AT_ONCE] = unsafe { std::mem::zeroed() };
            let arguments = libc::ptrace_peeksiginfo_args {
                off: all.len() as u64,
                flags: u32::from(shared),
                nr: AT_ONCE as i32,
            };
            let at = &raw const arguments as usize;
            let data = &raw mut some as usize;
            let count = request(libc::PTRACE_PEEKSIGINFO, self.tid, at, data)? as usize;
            all.extend_from_slice(&some[..count.min(AT_ONCE)]);
            if count < AT_ONCE {
                return Ok(all);
            }
        }
    }

    /// What is registered for rseq(2): (address, size, signature, flags). ENOSYS before Linux 5.13.
    pub fn restartable_sequence(&self) -> Result<(u64, u32, u32, u32), Errno> {
        #[repr(C)]
        struct Configuration {
            pointer: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut found = Configuration { pointer: 0, size: 0, signature: 0, flags: 0, pad: 0 };
        let (size, at) = (size_of::<Configuration>(), &raw mut found as usize);
        request(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, size, at)?;
        Ok((found.pointer, found.size, found.signature, found.flags))
    }

    /// Gives it what is known of the signal that it is about to get. EINVAL: it has not stopped for one.
    pub fn set_signal_information(&mut self, information: &libc::siginfo_t) -> Result<(), Errno> {
        let at = &raw const *information as usize;
        request(libc::PTRACE_SETSIGINFO, self.tid, 0, at).map(drop)
    }

    /// Makes it stop for that reason: what it was about to get when it last ran is not lost.
    pub fn because(mut self, why: Stop) -> Stopped {
        self.why = why;
        self
    }

    /// It goes on to the entry of its next call, or from there to its exit, unless it stops for something else
    /// before; see [`Stopped::run`]. No signal is forced on it for that (ptrace_report_syscall in include/linux/ptrace.h).
    pub fn run_to_call(self) -> Result<Stopped, Errno> {
        self.go_and_wait(libc::PTRACE_SYSCALL, 0)
    }

    /// One instruction, likewise; that ends in a stop by SIGTRAP, unless the instruction has led to another one.
    pub fn step(self) -> Result<Stopped, Errno> {
        self.go_and_wait(libc::PTRACE_SINGLESTEP, 0)
    }

    /// It goes on without the signal that it was about to get, and is waited for until it stops again.
    /// ESRCH: it was killed.
    ///
    /// Nothing else must wait for tracees of the calling thread meanwhile. What a stop by a signal
    /// means is the caller's to say.
    pub fn run(self) -> Result<Stopped, Errno> {
        self.go_and_wait(libc::PTRACE_CONT, 0)
    }

    /// The same, and it gets this signal. It must have stopped for one, of whatever kind.
    pub fn run_with(self, signal: c_int) -> Result<Stopped, Errno> {
        self.go_and_wait(libc::PTRACE_CONT, signal)
    }

    fn go_and_wait(self, how: c_uint, signal: c_int) -> Result<Stopped, Errno> {
        request(how, self.tid, 0, signal as usize)?;
        wait_for(self.tid)
    }

    /// What is known of the signal that it was about to get. EINVAL: it has not stopped for one.
    pub fn signal_information(&self) -> Result<libc::siginfo_t, Errno> {
        // SAFETY: an all-zero siginfo_t is valid.
        let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETSIGINFO, self.tid, 0, &raw mut information as usize)?;
        Ok(information)
    }
}

/// The bytes of what is known of a signal.
pub fn signal_bytes(information: &libc::siginfo_t) -> [u8; 128] {
    const { assert!(size_of::<libc::siginfo_t>() == 128) };
    // SAFETY: the sizes are the same; the kernel has filled it in as a whole, or it was zeroed.
    unsafe { std::mem::transmute_copy(information) }
}

/// A signal of which these bytes are known.
pub fn signal_of(bytes: &[u8; 128]) -> libc::siginfo_t {
    // SAFETY: the sizes are the same, and every pattern of bits is a valid siginfo_t: its fields are numbers, and
    // addresses that nothing here follows.
    unsafe { std::mem::transmute_copy(bytes) }
}

/// How many words general registers have.
pub const REGISTERS: usize = size_of::<libc::user_regs_struct>() / 8;

/// Where registers are among the words.
pub mod place {
    /// The third argument.
    pub const RDX: usize = libc::RDX as usize;
    /// The second.
    pub const RSI: usize = libc::RSI as usize;
    /// The first.
    pub const RDI: usize = libc::RDI as usize;
    /// The fourth.
    pub const R10: usize = libc::R10 as usize;
    /// The fifth.
    pub const R8: usize = libc::R8 as usize;
    /// The sixth.
    pub const R9: usize = libc::R9 as usize;
    /// The result of a call.
    pub const RAX: usize = libc::RAX as usize;
    /// Its number.
    pub const ORIG_RAX: usize = libc::ORIG_RAX as usize;
    /// Behind its instruction.
    pub const RIP: usize = libc::RIP as usize;
}

/// The registers as words, in the order of the struct.
pub fn register_words(registers: &libc::user_regs_struct) -> [u64; REGISTERS] {
    // SAFETY: the struct consists of so many words.
    unsafe { std::mem::transmute_copy(registers) }
}

/// The registers that these words are.
pub fn registers_of(words: [u64; REGISTERS]) -> libc::user_regs_struct {
    // SAFETY: the struct consists of so many words, and any is valid.
    unsafe { std::mem::transmute(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(event: c_int, signal: c_int) -> c_int {
        event << 16 | signal << 8 | 0x7f
    }

    #[test]
    fn stops_are_told_apart() {
        let of = |event, signal| Stop::of(0, status(event, signal));
        assert_eq!(of(0, libc::SIGTRAP), Stop::Signal(libc::SIGTRAP));
        assert_eq!(of(0, libc::SIGTRAP | 0x80), Stop::Call);
        assert_eq!(of(libc::PTRACE_EVENT_STOP, libc::SIGTRAP), Stop::Asked);
        assert_eq!(of(libc::PTRACE_EVENT_STOP, libc::SIGTSTP), Stop::Group(libc::SIGTSTP));
        assert_eq!(of(libc::PTRACE_EVENT_VFORK, libc::SIGTRAP), Stop::Made(0));
    }

    #[test]
    fn a_thread_is_seized_stopped_read_and_let_go() {
        use std::io::{Read, Write};
        use std::process::{Command, Stdio};
        let mut cat = Command::new("cat");
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as pid_t;
        // Once it answers, its own start is over.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        seize(pid).unwrap().interrupt().unwrap();
        let stopped = loop {
            match wait().unwrap() {
                // (Its exec may just be coming to its end.)
                Some(Change::Stopped(stopped)) if stopped.why() != Stop::Asked => {
                    stopped.go_on().unwrap().interrupt().unwrap();
                }
                Some(Change::Stopped(stopped)) => break stopped,
                _ => std::thread::yield_now(),
            }
        };
        assert_eq!(stopped.tid(), pid);
        assert!(stopped.registers().is_ok());
        // A second tracer is refused.
        assert_eq!(seize(pid).unwrap_err(), Errno::EPERM);
        stopped.detach().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seize(pid).unwrap_err(), Errno::ESRCH);
    }
}
