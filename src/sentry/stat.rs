//! What the kernel says of a process or thread in one line (proc_pid_stat(5)).

use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::sys::generated;

/// Time of so many clock ticks of user space.
pub(super) fn ticks(count: u64) -> Duration {
    Duration::from_micros(count.saturating_mul(1_000_000 / ticks_per_second()))
}

/// How many whole ticks of user space it is, as the kernel rounds a start (nsec_to_clock_t in kernel/time/time.c).
pub(super) fn in_ticks(time: Duration) -> u64 {
    let per_second = ticks_per_second();
    let rest = u64::from(time.subsec_nanos()) * per_second / 1_000_000_000;
    time.as_secs().saturating_mul(per_second).saturating_add(rest)
}

fn ticks_per_second() -> u64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).max(1) as u64
}

/// What `/proc/PID/stat` says of a process or thread (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub(super) comm: String,
    pub(super) state: char,
    /// The number of its parent.
    pub parent: i32,
    /// The device that its terminal is, as st_rdev says it of small numbers; 0: it has none.
    pub(super) terminal: i32,
    /// Of all threads; in whole ticks.
    pub(super) cpu: Duration,
    /// How many threads it has; a zombie counts as one.
    pub(super) threads: u64,
    /// In ticks since boot.
    pub(super) start: u64,
    /// It has executed nothing since it was forked (PF_FORKNOEXEC of include/linux/sched.h).
    pub(super) is_copy: bool,
}

impl Stat {
    /// `None`: there is no such process.
    pub fn read(pid: i32) -> Option<Stat> {
        let text = generated::single(format!("/proc/{pid}/stat")).ok()?;
        Stat::parse(&text)
    }

    /// Whether it was not just about to be gone: it has no parent any more then (pid_alive in
    /// do_task_stat, fs/proc/array.c).
    pub(super) fn is_there(&self) -> bool {
        self.parent != 0 || !self.has_ended()
    }

    /// Whether it is a zombie, or about to be gone.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    fn parse(text: &[u8]) -> Option<Stat> {
        let (comm, fields) = split(text)?;
        let number = |field: usize| fields.get(field - FIRST)?.parse::<u64>().ok();
        Some(Stat {
            comm: String::from_utf8_lossy(comm).into_owned(),
            state: fields.first()?.chars().next()?,
            is_copy: number(9)? & 0x40 != 0,
            parent: fields.get(1)?.parse().ok()?,
            terminal: fields.get(4)?.parse().ok()?,
            cpu: ticks(number(14)? + number(15)?),
            threads: number(20)?,
            start: number(22)?,
        })
    }
}

/// The numbers in other fields of `/proc/PID/stat`, by the places that proc_pid_stat(5) tells. `None`: there is no such
/// process.
pub(super) fn fields<const N: usize>(pid: i32, places: [usize; N]) -> Option<[u64; N]> {
    let text = generated::single(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = split(&text)?;
    let mut found = [0; N];
    for (into, place) in found.iter_mut().zip(places) {
        *into = fields.get(place - FIRST)?.parse().ok()?;
    }
    Some(found)
}

/// What is behind the name begins with this field, the state.
const FIRST: usize = 3;

/// The name and what is behind it. The name is the guest's to choose and may hold anything; nothing behind it does.
fn split(text: &[u8]) -> Option<(&[u8], Vec<&str>)> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    Some((text.get(open + 1..close)?, rest.split_whitespace().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name_says() {
        let text =
            b"41 (a) b (\nc) R 1) S 40 41 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 12345 8 9";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.parent), ("a) b (\nc) R 1", 'S', 40));
        assert_eq!((stat.cpu, stat.threads, stat.start), (ticks(200), 1, 12345));
        assert_eq!(Stat::parse(b"41 (x) S 40"), None);
        assert_eq!(Stat::parse(b") 41 ("), None);
    }

    #[test]
    fn a_terminal_is_found_behind_any_name() {
        let text = b"7 (a) b) S 1 2 3 34817 9 0 1 2 3 4 150 50 9 9 20 0 1 0 12345 8 9";
        assert_eq!(Stat::parse(text).unwrap().terminal, 34817);
        assert_eq!(Stat::parse(b"7 (a"), None);
    }
}
