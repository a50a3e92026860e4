//! A hand inside a guest: system calls that a stopped thread makes for the sentry.
//!
//! Owns the way of a table of calls ([`crate::sys::agent`]) into a guest and back, for a thread of a
//! running guest, which must not notice ([`Borrowed`]), and for a process that is being put together
//! ([`Hand`] alone). The trap at the end of a table costs a process its action of SIGTRAP, and would be taken
//! for such a signal that waits: both are put back last ([`Traps`]). What is called is the caller's business. Everything here belongs to the thread that
//! traces (see [`crate::sys::ptrace`]).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::save::bpf;
use crate::save::capture::stat;
use crate::sys::agent::{self, Data, Done, Failed, Table};
use crate::sys::errno_of;
use crate::sys::process;
use crate::sys::ptrace::{self, Stop, Stopped};

mod borrowed;
mod remote;
mod traps;

pub use borrowed::{Area, Borrowed, Refusal, is_between_calls};
pub use remote::{find_instruction, remote_call, to_a_signal};
pub use traps::{Traps, calls_for};

/// Bytes of the agent's code: a page.
pub const CODE: usize = 4096;
/// Bytes for a table and what its calls point to.
pub const TABLE: usize = 192 << 10;
/// Threads of one process that have tables of their own side by side ([`Hand::confine`]), with room enough for
/// what threads are asked and told.
pub const SLOTS: usize = 8;
/// Bytes of the place that a hand needs in a guest.
pub const AREA: u64 = (CODE + TABLE) as u64;

/// Why a hand could not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandError {
    /// The thread has been killed.
    Killed,
    /// A call of it failed.
    Call(Failed),
    /// It could not be made to.
    Own(&'static str, Errno),
    /// It stopped for something else (a fault in the guest's memory): the signal.
    Astray(i32),
    /// A seccomp filter of the guest's own does not let this call through. It has not been made.
    Denied(u32),
}

impl std::fmt::Display for HandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HandError::Killed => f.write_str("it was killed"),
            HandError::Call(Failed { number, errno, .. }) => {
                let row = u32::try_from(*number).ok().and_then(crate::sentry::syscalls::table::row);
                match row {
                    Some(row) => write!(f, "{}: {}", row.name, errno.desc()),
                    None => write!(f, "system call {number}: {}", errno.desc()),
                }
            }
            HandError::Own(what, errno) => write!(f, "cannot {what}: {}", errno.desc()),
            HandError::Astray(signal) => write!(f, "it got signal {signal} meanwhile"),
            HandError::Denied(number) => {
                let row = crate::sentry::syscalls::table::row(*number);
                let name =
                    row.map_or_else(|| format!("system call {number}"), |it| it.name.to_string());
                write!(f, "its own seccomp filter denies {name}, which is needed for this")
            }
        }
    }
}

impl std::error::Error for HandError {}

impl HandError {
    /// What the kernel said, if it was a call that failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            HandError::Call(failed) => Some(failed.errno),
            HandError::Own(_, errno) => Some(*errno),
            HandError::Killed => Some(Errno::ESRCH),
            HandError::Astray(_) => None,
            HandError::Denied(_) => Some(Errno::EPERM),
        }
    }
}

fn own(what: &'static str) -> impl Fn(Errno) -> HandError {
    move |errno| match errno {
        Errno::ESRCH => HandError::Killed,
        errno => HandError::Own(what, errno),
    }
}

/// A stopped thread in whose memory the agent lies.
#[derive(Debug)]
pub struct Hand {
    /// Only missing while it runs, or after it was lost.
    stopped: Option<Stopped>,
    tid: i32,
    /// Where the agent's area lies: its code, then its table.
    area: u64,
    /// Filters of the guest's own, which what it calls passes.
    filters: Vec<Vec<u8>>,
    /// Where in the room for tables its own begin, and how much of it they have.
    table: usize,
    room: usize,
    /// Calls that are under way ([`Hand::post`]).
    posted: Option<Table>,
    /// SIGTRAP that was sent meanwhile: taken for no breakpoint, and to be put back ([`Traps`]).
    strays: Vec<libc::siginfo_t>,
}

impl Hand {
    /// `stopped` has the agent's code at `area` and room for a table behind it.
    pub fn new(stopped: Stopped, area: u64) -> Hand {
        let filters = Vec::new();
        let (table, room, posted, strays) = (0, TABLE, None, Vec::new());
        let tid = stopped.tid();
        Hand { tid, stopped: Some(stopped), area, filters, table, room, posted, strays }
    }

    /// The guest has these seccomp filters of its own: what they deny is not called.
    pub fn respect(&mut self, filters: Vec<Vec<u8>>) {
        self.filters = filters;
    }

    /// Those filters.
    pub fn filters(&self) -> &[Vec<u8>] {
        &self.filters
    }

    /// Whether the guest's filters let all calls of a table through.
    pub fn may_run(&self, table: &Table) -> bool {
        self.denied(table).is_none()
    }

    /// The first call of a table that a filter of the guest's denies.
    fn denied(&self, table: &Table) -> Option<u32> {
        if self.filters.is_empty() {
            return None;
        }
        let denied = |(number, arguments)| {
            let call = bpf::Call { number, instruction_pointer: self.area, arguments };
            let allowed = self.filters.iter().all(|filter| bpf::allows(filter, &call));
            (!allowed).then_some(number)
        };
        table.calls().find_map(denied)
    }

    /// The hand of a process that shares the memory of another one, whose table stays as it is as long
    /// as it has no data.
    pub fn beside(stopped: Stopped, area: u64) -> Hand {
        Hand { table: TABLE / 2, room: TABLE / 2, ..Hand::new(stopped, area) }
    }

    /// The thread, as the host numbers it.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Where the agent lies.
    pub fn area(&self) -> u64 {
        self.area
    }

    /// From now on its tables have one of so many parts of the room, so that those of other threads of the
    /// process can be there at the same time.
    pub fn confine(&mut self, slot: usize, slots: usize) {
        self.room = TABLE / slots.max(1);
        self.table = slot * self.room;
    }

    /// A table for this hand.
    pub fn table(&self) -> Table {
        Table::new(self.area + (CODE + self.table) as u64, self.room)
    }

    /// The thread itself, for as long as it does nothing.
    pub fn stopped(&mut self) -> Result<&mut Stopped, HandError> {
        self.rest()?;
        self.stopped.as_mut().ok_or(HandError::Killed)
    }

    /// SIGTRAP that was sent to it while it made calls.
    pub fn strays(&mut self) -> Vec<libc::siginfo_t> {
        let _ = self.rest();
        std::mem::take(&mut self.strays)
    }

    /// Why a thread has stopped that has gone on; what was sent is no breakpoint.
    fn arrive(&mut self, stopped: Stopped) -> Result<Stop, HandError> {
        let mut why = stopped.why();
        if why == Stop::Signal(libc::SIGTRAP) {
            let information = stopped.signal_information().map_err(own("read its signal"))?;
            if information.si_code <= libc::SI_USER {
                self.strays.push(information);
                // Where it comes with a breakpoint, there is only one signal (legacy_queue in kernel/signal.c).
                let at = stopped.registers().map_err(own("read its registers"))?.rip;
                if at != self.area + agent::behind_breakpoint() {
                    why = Stop::Other(0);
                }
            }
        }
        self.stopped = Some(stopped);
        Ok(why)
    }

    /// Gives the thread back. What was posted and has failed is no matter any more: [`Hand::rest`] tells of it.
    pub fn release(mut self) -> Result<Stopped, HandError> {
        let _ = self.rest();
        self.stopped.ok_or(HandError::Killed)
    }

    /// Has the calls of a table made.
    pub fn run(&mut self, table: &Table) -> Result<Done, HandError> {
        self.begin(table)?;
        let why = self.go_on()?;
        self.follow(table, why)
    }

    /// The same, but only until then (ETIME), and while it stops for not too much else (EINTR): others may be able to
    /// keep it from coming to the end.
    pub fn run_until(&mut self, table: &Table, until: Instant) -> Result<Done, HandError> {
        /// Each may be a signal that is kept ([`Hand::strays`]).
        const STOPS: usize = 1000;
        self.begin(table)?;
        for _ in 0..STOPS {
            let stopped = self.stopped.take().ok_or(HandError::Killed)?;
            let running = stopped.because(Stop::Asked).go_on().map_err(own("let it go on"))?;
            let stopped = ptrace::wait_until(&running, until).map_err(own("wait for it"))?;
            match self.arrive(stopped)? {
                Stop::Signal(libc::SIGTRAP) => return self.done(table),
                Stop::Signal(signal) if is_fault(signal) => return Err(HandError::Astray(signal)),
                _ if Instant::now() >= until => {
                    return Err(HandError::Own("wait for it any longer", Errno::ETIME));
                }
                _ => {}
            }
        }
        Err(HandError::Own("have it come to the end", Errno::EINTR))
    }

    /// Has the calls of a table made while hands of other processes make theirs. Whatever is asked of this one
    /// next waits for them, and fails as they did.
    pub fn post(&mut self, table: Table) -> Result<(), HandError> {
        if table.is_empty() {
            return Ok(());
        }
        self.begin(&table)?;
        let stopped = self.stopped.take().ok_or(HandError::Killed)?;
        stopped.because(Stop::Asked).go_on().map_err(own("let it go on"))?;
        self.posted = Some(table);
        Ok(())
    }

    /// Waits for what was posted, if anything was.
    pub fn rest(&mut self) -> Result<(), HandError> {
        if self.posted.is_none() {
            return Ok(());
        }
        // (Others are under way, too.)
        self.collect_by(ptrace::wait_for_one_of_several).map(drop)
    }

    /// Whether anything was posted that nobody has waited for.
    pub fn is_posted(&self) -> bool {
        self.posted.is_some()
    }

    /// Waits for what was posted, and gives what has become of it.
    pub fn collect(&mut self) -> Result<Done, HandError> {
        self.collect_by(ptrace::wait_for)
    }

    fn collect_by(&mut self, wait: fn(i32) -> Result<Stopped, Errno>) -> Result<Done, HandError> {
        let nothing = || HandError::Own("tell of calls that nobody has asked for", Errno::EINVAL);
        let table = self.posted.take().ok_or_else(nothing)?;
        let stopped = wait(self.tid).map_err(own("wait for it"))?;
        let why = self.arrive(stopped)?;
        self.follow(&table, why)
    }

    /// Follows it from a stop to the end of a table.
    fn follow(&mut self, table: &Table, mut why: Stop) -> Result<Done, HandError> {
        loop {
            match why {
                Stop::Signal(libc::SIGTRAP) => return self.done(table),
                // What it makes is somebody's who asked for it by name (`run_making`).
                Stop::Made(_) | Stop::Executed { .. } | Stop::Asked | Stop::Group(_) => {}
                Stop::Signal(signal) if is_fault(signal) => return Err(HandError::Astray(signal)),
                // All others are blocked, but for SIGSTOP: it has no hold on a thread that goes on.
                Stop::Signal(_) | Stop::Call | Stop::Other(_) => {}
            }
            why = self.go_on()?;
        }
    }

    /// Puts a table in place and makes the thread ready to run down it.
    pub fn begin(&mut self, table: &Table) -> Result<(), HandError> {
        self.rest()?;
        if !table.fits() {
            // What lies behind would be taken for calls.
            return Err(HandError::Own("tell it so much at once", Errno::E2BIG));
        }
        if let Some(number) = self.denied(table) {
            return Err(HandError::Denied(number));
        }
        let code = self.area;
        let stopped = self.stopped.as_mut().ok_or(HandError::Killed)?;
        // (Who is written to by its number is one that this thread traces: the kernel has just said so.)
        let mut registers = stopped.registers().map_err(own("read its registers"))?;
        write_two(self.tid, &table.encode()).map_err(own("write to its memory"))?;
        registers.rip = code;
        registers.r15 = table.address();
        // No call is under way that the kernel would make again.
        registers.orig_rax = u64::MAX;
        registers.eflags &= !0x100;
        stopped.set_registers(&registers).map_err(own("change its registers"))
    }

    /// Lets the thread run to its next stop.
    pub fn go_on(&mut self) -> Result<Stop, HandError> {
        let stopped = self.stopped.take().ok_or(HandError::Killed)?;
        let stopped = stopped.run().map_err(own("let it go on"))?;
        self.arrive(stopped)
    }

    /// Lets the thread run one instruction.
    fn step(&mut self) -> Result<Stop, HandError> {
        let stopped = self.stopped.take().ok_or(HandError::Killed)?;
        let stopped = stopped.step().map_err(own("let it go on"))?;
        self.arrive(stopped)
    }

    /// Lets the thread run until it sleeps in a call and so long after that; there it is stopped, unless it
    /// stops by itself.
    pub fn go_on_to_sleep(&mut self, longer: Duration) -> Result<Stop, HandError> {
        /// It only has to come to a call.
        const LONGEST: Duration = Duration::from_secs(1);
        let stopped = self.stopped.take().ok_or(HandError::Killed)?;
        let running = stopped.because(Stop::Asked).go_on().map_err(own("let it go on"))?;
        let begun = Instant::now();
        // Nothing tells that a thread has gone to sleep.
        let state = loop {
            let state = stat::read(self.tid).map_or(b'X', |it| it.state());
            if state != b'R' || begun.elapsed() > LONGEST {
                break state;
            }
            std::thread::yield_now();
        };
        if state != b't' {
            // (What it does then, nothing tells either.)
            if !longer.is_zero() {
                std::thread::sleep(longer);
            }
            running.interrupt().map_err(own("stop it"))?;
        }
        let stopped = ptrace::wait_for(self.tid).map_err(own("wait for it"))?;
        self.arrive(stopped)
    }

    /// What has become of the table's calls.
    pub fn done(&mut self, table: &Table) -> Result<Done, HandError> {
        let [(first, length), (second, behind)] = table.extents();
        let (mut calls, mut data) = (vec![0; length], vec![0; behind]);
        read_two(self.tid, [(first, &mut calls), (second, &mut data)])
            .map_err(own("read its memory"))?;
        table.decode(calls, data).map_err(HandError::Call)
    }

    /// One call.
    pub fn call<const N: usize>(
        &mut self,
        number: libc::c_long,
        arguments: [u64; N],
    ) -> Result<u64, HandError> {
        let mut table = self.table();
        let place = table.call(number, arguments);
        let done = self.run(&table)?;
        done.result(place)
            .map_err(|errno| HandError::Call(Failed { number: number as u64, at: 0, errno }))
    }

    /// One call with bytes, which it reads or changes. `arguments` is given where they are.
    pub fn call_with<const N: usize>(
        &mut self,
        number: libc::c_long,
        bytes: &[u8],
        arguments: impl FnOnce(u64) -> [u64; N],
    ) -> Result<(u64, Vec<u8>), HandError> {
        let mut table = self.table();
        let data: Data = table.data(bytes);
        let place = table.call(number, arguments(data.address));
        let done = self.run(&table)?;
        let result = done
            .result(place)
            .map_err(|errno| HandError::Call(Failed { number: number as u64, at: 0, errno }))?;
        Ok((result, done.bytes(data).to_vec()))
    }

    /// One call on a path.
    pub fn call_path<const N: usize>(
        &mut self,
        number: libc::c_long,
        path: &[u8],
        arguments: impl FnOnce(u64) -> [u64; N],
    ) -> Result<u64, HandError> {
        let terminated = [path, &[0]].concat();
        self.call_with(number, &terminated, arguments).map(|(result, _)| result)
    }
}

fn is_fault(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS)
}

/// Reads all of a piece of another process's memory.
pub fn read(tid: i32, address: u64, into: &mut [u8]) -> Result<(), Errno> {
    match process::read_memory(tid, address, into) {
        Ok(count) if count == into.len() => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
        // Some containers refuse the call (see `notify::GuestMemory`).
        Err(Errno::ENOSYS | Errno::EPERM) => {
            memory(tid, false)?.read_exact_at(into, address).map_err(|error| errno_of(&error))
        }
        Err(errno) => Err(errno),
    }
}

/// Reads all of two pieces.
fn read_two(tid: i32, pieces: [(u64, &mut [u8]); 2]) -> Result<(), Errno> {
    let [first, second] = pieces;
    let wanted = first.1.len() + second.1.len();
    match process::read_two(tid, [(first.0, first.1), (second.0, second.1)]) {
        Ok(count) if count == wanted => Ok(()),
        // Where and why, the pieces one by one tell.
        _ => {
            read(tid, first.0, first.1)?;
            read(tid, second.0, second.1)
        }
    }
}

/// Writes both pieces of a table.
fn write_two(tid: i32, pieces: &[(u64, Vec<u8>)]) -> Result<(), Errno> {
    if let [first, second] = pieces
        && process::write_two(tid, [(first.0, &first.1), (second.0, &second.1)])
            == Ok(first.1.len() + second.1.len())
    {
        return Ok(());
    }
    pieces.iter().try_for_each(|(address, bytes)| write(tid, *address, bytes))
}

/// Writes a piece of another process's memory.
pub fn write(tid: i32, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    match process::write_memory(tid, address, bytes) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
        Err(Errno::ENOSYS | Errno::EPERM) => force(tid, address, bytes),
        Err(errno) => Err(errno),
    }
}

/// Writes where the process itself could not: it gets a copy of its own of a page that it shares
/// (FOLL_FORCE, mem_rw in fs/proc/base.c).
pub fn force(tid: i32, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    memory(tid, true)?.write_all_at(bytes, address).map_err(|error| errno_of(&error))
}

/// /proc/PID/mem.
pub fn memory(tid: i32, write: bool) -> Result<File, Errno> {
    let open = OpenOptions::new().read(true).write(write).open(format!("/proc/{tid}/mem"));
    open.map_err(|error| errno_of(&error))
}

/// Waits for a new tracee's first stop.
pub fn first_stop(tid: i32) -> Result<Stopped, HandError> {
    ptrace::wait_for(tid).map_err(own("wait for it"))
}
