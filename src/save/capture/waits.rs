//! What is left of the waits that a save interrupts.
//!
//! A wait for a span of time that a stop interrupts is gone on with by restart_syscall(2): the kernel
//! keeps when it ends where nobody can read it, and a restored thread has nothing of that. So the span
//! that is left is found here, and the wait begun anew with it (`restore::waits`). It is what the kernel
//! wrote for the caller, if the caller wanted that (nanosleep(2)); else the timeout less the time since
//! the thread went to sleep, which /proc tells as long as it sleeps ([`Asleep`]); else the whole
//! timeout, where the kernel was built without CONFIG_SCHED_DEBUG, say. All other interrupted calls are
//! made again as they were, by the kernel itself.
//!
//! Where a run has clocks of its own, the kernel may wait for something else than the caller asked for: then the
//! sentry knows until when ([`InterruptedWait`]).

use std::collections::HashMap;
use std::fs::read_to_string;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::save::hand;
use crate::save::state::Thread;
use crate::sentry::InterruptedWait;
use crate::sys::generated;
use crate::sys::ptrace::place;
use crate::timekeeping::Rate;

/// ERESTARTNOHAND (include/linux/errno.h): made again, unless a handler runs.
const NO_HANDLER: i64 = -514;
/// ERESTART_RESTARTBLOCK: gone on with by restart_syscall(2), unless a handler runs.
const RESTART_BLOCK: i64 = -516;

/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME (futex(2)).
const FUTEX_FLAGS: u64 = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;

/// Threads that slept just before the guests were stopped, by their number for the host.
#[derive(Debug, Clone, Default)]
pub struct Asleep {
    all: HashMap<i32, Sleep>,
    /// Those whose timeout the sentry has changed.
    changed: HashMap<i32, InterruptedWait>,
    /// How fast the guest's time passes.
    rate: Option<Rate>,
}

/// One that sleeps.
#[derive(Debug, Clone, Copy)]
struct Sleep {
    /// How long it had slept, nanoseconds.
    slept: u64,
    /// How often it had gone to sleep.
    times: u64,
    /// What it slept in.
    place: Place,
}

/// What a thread sleeps in, as far as its call does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nanosleep,
    Futex,
    Poll,
    Unknown,
}

impl Place {
    /// By the function of the kernel that it sleeps in (proc_pid_wchan(5)), whose names vary:
    /// futex_wait_queue, do_sys_poll and their like. A nanosleep(2) that is gone on with has none of its
    /// own (hrtimer_nanosleep_restart ends with a jump); there is no other call that is gone on with.
    fn of(tid: i32) -> Place {
        let name = read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default();
        match name {
            name if name.contains("futex") => Place::Futex,
            name if name.contains("poll") => Place::Poll,
            // Not told.
            name if name.is_empty() || name == "0" => Place::Unknown,
            _ => Place::Nanosleep,
        }
    }
}

impl Asleep {
    /// Looks at the threads of these processes. To be called just before they are stopped: a thread that
    /// is stopped has been woken for that.
    pub fn look(pids: impl Iterator<Item = i32>) -> Asleep {
        let mut by_cpu: HashMap<usize, Vec<(i32, Scheduled, Place)>> = HashMap::new();
        for tid in pids.flat_map(|pid| super::threads_of(pid).unwrap_or_default()) {
            if waits_for_a_span(tid)
                && let Some(scheduled) = Scheduled::read(&tid.to_string())
            {
                by_cpu.entry(scheduled.cpu).or_default().push((tid, scheduled, Place::of(tid)));
            }
        }
        if by_cpu.is_empty() {
            return Asleep::default();
        }
        // A thread of its own, because it goes from processor to processor.
        let look = std::thread::Builder::new().name("asleep".into()).spawn(move || {
            let mut all = HashMap::new();
            for (cpu, sleepers) in by_cpu {
                let Some(now) = time_of(cpu) else { continue };
                all.extend(sleepers.into_iter().map(|(tid, it, place)| {
                    let slept = now.saturating_sub(it.since);
                    (tid, Sleep { slept, times: it.times, place })
                }));
            }
            Asleep { all, ..Asleep::default() }
        });
        look.ok().and_then(|it| it.join().ok()).unwrap_or_default()
    }

    /// What the sentry knows of waits: those that it has changed, and how fast time passes.
    pub fn know(&mut self, changed: HashMap<i32, InterruptedWait>, rate: Rate) {
        (self.changed, self.rate) = (changed, Some(rate));
    }

    fn has_rate(&self) -> bool {
        self.rate.is_some_and(|rate| rate != Rate::ONE)
    }

    /// Nanoseconds of the host that a span of the guest takes.
    fn host_span(&self, span: u64) -> u64 {
        let Some(rate) = self.rate.filter(|_| self.has_rate()) else { return span };
        rate.to_host(i64::try_from(span).unwrap_or(i64::MAX)).max(0) as u64
    }

    /// Forgets those that have gone to another sleep since. To be called when all have stopped and
    /// before anything is done with them: a stop is a sleep itself.
    pub fn confirm(&mut self) {
        self.all.retain(|tid, sleep| {
            scheduled(&tid.to_string()).is_some_and(|(_, times)| times == sleep.times + 1)
        });
    }
}

/// Whether the thread is in one of the calls in question (proc_pid_syscall(5)).
fn waits_for_a_span(tid: i32) -> bool {
    let text = read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let number = text.split(' ').next().and_then(|word| word.parse::<libc::c_long>().ok());
    matches!(number, Some(number) if number == libc::SYS_restart_syscall || CALLS.contains(&number))
}

/// The calls in question.
const CALLS: [libc::c_long; 4] =
    [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_futex, libc::SYS_poll];

/// What /proc/PID/sched tells of a thread.
#[derive(Debug, Clone, Copy)]
struct Scheduled {
    /// When it last ran, by the clock of its processor, nanoseconds.
    since: u64,
    times: u64,
    cpu: usize,
}

impl Scheduled {
    fn read(task: &str) -> Option<Scheduled> {
        let (since, times) = scheduled(task)?;
        let stat = generated::text(format!("/proc/{task}/stat")).ok()?;
        // Field 39, `processor`.
        let cpu = stat.rsplit(") ").next()?.split(' ').nth(36)?.parse().ok()?;
        Some(Scheduled { since, times, cpu })
    }
}

fn scheduled(task: &str) -> Option<(u64, u64)> {
    parse(&generated::text(format!("/proc/{task}/sched")).ok()?)
}

/// `se.exec_start` and `nr_voluntary_switches` (proc_sched_show_task in kernel/sched/debug.c).
fn parse(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().map(str::trim) == Some(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    // Milliseconds, and six digits more.
    let (milliseconds, rest) = field("se.exec_start")?.split_once('.')?;
    let since = milliseconds.parse::<u64>().ok()? * 1_000_000 + rest.parse::<u64>().ok()?;
    Some((since, field("nr_voluntary_switches")?.parse().ok()?))
}

/// What the clock of a processor says that scheduling goes by. It leaves out what the processor does for
/// interrupts (rq_clock_task in kernel/sched/sched.h): processors differ.
fn time_of(cpu: usize) -> Option<u64> {
    let mut only = CpuSet::new();
    only.set(cpu).ok()?;
    // Nothing is known of a processor of the guest's that is none of the supervisor's.
    sched_setaffinity(Pid::from_raw(0), &only).ok()?;
    // It is written down when the thread is looked at for who runs next.
    std::thread::yield_now();
    Scheduled::read("thread-self").map(|it| it.since)
}

/// Makes the registers of a captured thread those of a call that can be made again, and finds out what is
/// left of its timeout. `host`: the thread as the host numbers it.
pub fn settle(asleep: &Asleep, host: i32, thread: &mut Thread) {
    let word = |index: usize| thread.registers.get(index).copied().unwrap_or(0);
    if word(place::RAX) as i64 != RESTART_BLOCK {
        return;
    }
    let arguments = [place::RDI, place::RSI, place::RDX, place::R10].map(word);
    if let Some(wait) = asleep.changed.get(&host).filter(|wait| is_of(wait, &word)) {
        let left =
            wait.end.map(|end| end.saturating_duration_since(Instant::now()).as_nanos() as u64);
        return go_on(thread, wait.number, left);
    }
    let number = match word(place::ORIG_RAX) as i64 {
        libc::SYS_restart_syscall => {
            let sleeps_in = asleep.all.get(&host).map_or(Place::Unknown, |sleep| sleep.place);
            first_number(host, sleeps_in, arguments[0], word(place::RIP))
        }
        number => Some(number),
    };
    let Some(number) = number.filter(|number| CALLS.contains(number)) else { return };
    let span = span_of(host, number, arguments, asleep.has_rate());
    let left = match span {
        Span::Left(left) => Some(left),
        Span::Whole(whole) => {
            let slept = asleep.all.get(&host).map_or(0, |sleep| sleep.slept);
            Some(asleep.host_span(whole).saturating_sub(slept))
        }
        Span::None => None,
    };
    go_on(thread, number as u64, left);
}

/// Whether a thread with these registers is still in that wait.
fn is_of(wait: &InterruptedWait, word: &impl Fn(usize) -> u64) -> bool {
    let arguments =
        [place::RDI, place::RSI, place::RDX, place::R10, place::R8, place::R9].map(word);
    let number = word(place::ORIG_RAX);
    wait.arguments == arguments
        && wait.rip == word(place::RIP)
        && (number == wait.number || number as i64 == libc::SYS_restart_syscall)
}

/// Makes the registers those of a call that waits for what is left; `None`: as it was made.
fn go_on(thread: &mut Thread, number: u64, left: Option<u64>) {
    let mut set = |index: usize, value: u64| {
        if let Some(word) = thread.registers.get_mut(index) {
            *word = value;
        }
    };
    set(place::ORIG_RAX, number);
    if left.is_none() {
        // Without an end, or with one that is a moment: nothing of it is lost if it is made again.
        set(place::RAX, NO_HANDLER as u64);
    }
    thread.remaining = left.map(|left| left.max(1));
}

/// Which call it was that has been interrupted before, and is restart_syscall(2) by now, with the
/// arguments of the first. Else the instruction before its `syscall` may tell.
fn first_number(host: i32, place: Place, first: u64, rip: u64) -> Option<libc::c_long> {
    match place {
        Place::Futex => return Some(libc::SYS_futex),
        Place::Poll => return Some(libc::SYS_poll),
        // A clock, or the address of a time: where nobody may have mapped anything (vm.mmap_min_addr).
        Place::Nanosleep if first < 4096 => return Some(libc::SYS_clock_nanosleep),
        Place::Nanosleep => return Some(libc::SYS_nanosleep),
        Place::Unknown => {}
    }
    /// mov eax, imm32; syscall.
    const LENGTH: u64 = 7;
    let mut code = [0; LENGTH as usize];
    hand::read(host, rip.wrapping_sub(LENGTH), &mut code).ok()?;
    let [0xb8, low, second, third, high, 0x0f, 0x05] = code else { return None };
    Some(i64::from(u32::from_le_bytes([low, second, third, high])))
}

/// What is known of a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// There is none, or it is a moment.
    None,
    /// All of it.
    Whole(u64),
    /// What is left, as the kernel told it the caller.
    Left(u64),
}

/// `has_rate`: what the kernel wrote may be in the guest's time, or in the host's.
fn span_of(
    host: i32,
    number: libc::c_long,
    [first, second, third, fourth]: [u64; 4],
    has_rate: bool,
) -> Span {
    let whole = |at| time_at(host, at).map_or(Span::None, Span::Whole);
    // (It may have written nothing: to memory that cannot be written to.)
    let left = |to: u64, from: u64| match to {
        _ if has_rate => whole(from),
        0 => whole(from),
        to => time_at(host, to).map_or(whole(from), Span::Left),
    };
    match number {
        libc::SYS_nanosleep => left(second, first),
        libc::SYS_clock_nanosleep => left(fourth, third),
        libc::SYS_poll => match third as i32 {
            timeout @ 0.. => Span::Whole(timeout as u64 * 1_000_000),
            _ => Span::None,
        },
        libc::SYS_futex if second & !FUTEX_FLAGS == libc::FUTEX_WAIT as u64 && fourth != 0 => {
            whole(fourth)
        }
        _ => Span::None,
    }
}

/// A struct timespec, nanoseconds.
fn time_at(host: i32, at: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    hand::read(host, at, &mut bytes).ok()?;
    let [seconds, rest] = [0, 8].map(|at| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    });
    (rest < 1_000_000_000).then(|| seconds.saturating_mul(1_000_000_000).saturating_add(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sched_tells_is_read() {
        let text = "cat (7, #threads: 1)\n---\nse.exec_start      :      15949696.210281\n\
                    nr_switches   :  9\nnr_voluntary_switches  :   5\n";
        assert_eq!(parse(text), Some((15_949_696_210_281, 5)));
        assert_eq!(parse("nothing"), None);
    }

    #[test]
    fn a_thread_that_sleeps_is_known_with_how_long_it_has() {
        let mut sleep = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = sleep.id() as i32;
        while !waits_for_a_span(pid) {
            std::thread::yield_now();
        }
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(300) {
            std::thread::yield_now();
        }
        let asleep = Asleep::look(std::iter::once(pid));
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        if std::path::Path::new("/proc/self/sched").exists() {
            let slept = asleep.all[&pid].slept;
            assert!((250_000_000..3_000_000_000).contains(&slept), "{slept}");
        } else {
            eprintln!("skipped: no /proc/PID/sched");
        }
    }
}
