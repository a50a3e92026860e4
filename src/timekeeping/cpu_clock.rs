//! CPU time of all processes of a sandbox together, ended ones included.
//!
//! Guests run natively, so the host's own accounting is exact to the nanosecond where a kernel in user
//! space would have to sample: the clock reads it. Two sources: a control group that counts the whole
//! sandbox, where the host gave one; else the CPU clock of each process and the bookkeeping of
//! [`super::ledger`]. A reader always reads the host's clocks, so nothing is missed while nobody looked
//! and nothing is invented by a supervisor that came late.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::family::{Family, Relative};
use super::ledger::Ledger;
use crate::sys::cpu_clock::process_time;

/// The clock of a control group.
#[derive(Debug)]
pub struct GroupClock {
    file: File,
    /// The number behind this word, in microseconds; without one the file holds nanoseconds alone.
    word: Option<&'static str>,
}

impl GroupClock {
    /// `cpuacct.usage` of version 1.
    pub fn nanoseconds(file: &Path) -> io::Result<GroupClock> {
        Ok(GroupClock { file: File::open(file)?, word: None })
    }

    /// `cpu.stat` of version 2.
    pub fn statistics(file: &Path) -> io::Result<GroupClock> {
        Ok(GroupClock { file: File::open(file)?, word: Some("usage_usec") })
    }

    fn read(&self) -> io::Result<Duration> {
        let mut text = [0; 1024];
        let count = self.file.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..count]);
        let found = match self.word {
            None => text.trim().parse().ok().map(Duration::from_nanos),
            Some(word) => {
                let line = text.lines().find_map(|line| line.strip_prefix(word));
                line.and_then(|rest| rest.trim().parse().ok()).map(Duration::from_micros)
            }
        };
        found.ok_or(io::ErrorKind::InvalidData.into())
    }
}

/// See the module.
#[derive(Debug)]
pub struct CpuClock {
    family: Family,
    ledger: Ledger,
    /// With what it said when the program was about to start.
    group: Option<(GroupClock, Duration)>,
    processes: Vec<Relative>,
    /// What was used before, when the guests ran elsewhere.
    before: Duration,
    last: Duration,
}

impl CpuClock {
    /// The clock of all descendants of `init`, which itself does not count.
    pub fn new(init: i32) -> CpuClock {
        CpuClock {
            family: Family::new(init),
            ledger: Ledger::new(init),
            group: None,
            processes: Vec::new(),
            before: Duration::ZERO,
            last: Duration::ZERO,
        }
    }

    /// Takes the time from a control group from now on.
    pub fn use_group(&mut self, group: GroupClock) -> io::Result<()> {
        let before = group.read()?;
        self.group = Some((group, before));
        Ok(())
    }

    /// The guests have used so much already, which the host's clocks do not count.
    pub fn begin_at(&mut self, before: Duration) {
        self.before = before;
    }

    /// The time now, by the processes that are known; `None`: one of them has ended.
    pub fn glance(&mut self) -> Option<Duration> {
        let now = match &self.group {
            Some((group, before)) => group.read().ok()?.saturating_sub(*before),
            None => self.ledger.touch(|pid| process_time(pid).ok())?,
        };
        Some(self.give(now))
    }

    /// The time now; looks for processes that have come and gone. Reads /proc.
    pub fn look(&mut self) -> io::Result<Duration> {
        let (root, found) = self.family.look()?;
        // Only now, see Ledger::update.
        let timed: Vec<(Relative, Duration)> = found
            .into_iter()
            .filter_map(|relative| Some((relative, process_time(relative.pid).ok()?)))
            .collect();
        let children = root.map_or(Duration::ZERO, |root| root.children);
        let by_processes = self.ledger.update(children, &timed);
        self.processes = timed.into_iter().map(|(relative, _)| relative).collect();
        let now = match &self.group {
            Some((group, before)) => group.read()?.saturating_sub(*before),
            None => by_processes,
        };
        Ok(self.give(now))
    }

    /// The processes of the last look.
    pub fn processes(&self) -> &[Relative] {
        &self.processes
    }

    fn give(&mut self, now: Duration) -> Duration {
        self.last = self.last.max(self.before.saturating_add(now));
        self.last
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};

    use super::*;

    #[test]
    fn groups_of_both_versions_are_read() {
        let path = std::env::temp_dir().join(format!("sandbox-clock-{}", std::process::id()));
        std::fs::write(&path, "1500000001\n").unwrap();
        assert_eq!(
            GroupClock::nanoseconds(&path).unwrap().read().unwrap(),
            Duration::from_nanos(1_500_000_001)
        );
        std::fs::write(&path, "usage_usec 2500\nuser_usec 2000\n").unwrap();
        assert_eq!(
            GroupClock::statistics(&path).unwrap().read().unwrap(),
            Duration::from_micros(2500)
        );
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(GroupClock::statistics(&path).unwrap().read().is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn spinning_children_count_whether_they_live_or_have_ended() {
        // In a family of their own: children of other tests come and go.
        let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo spun; read x";
        let mut init = std::process::Command::new("sh")
            .args(["-c", "sh -c \"$1\"; echo ended; read x", "sh", spin])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = std::io::BufReader::new(init.stdout.take().unwrap()).lines();
        let mut clock = CpuClock::new(init.id() as i32);
        assert_eq!(says.next().unwrap().unwrap(), "spun");
        let living = clock.look().unwrap();
        let [Relative { pid, .. }] = *clock.processes() else { panic!("{:?}", clock.processes()) };
        let used = process_time(pid).unwrap();
        let glance = clock.glance().unwrap();
        assert!(living > Duration::ZERO && glance >= used, "{living:?} {used:?} {glance:?}");
        init.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(says.next().unwrap().unwrap(), "ended");
        assert!(clock.look().unwrap() >= glance);
        drop(init.stdin.take());
        init.wait().unwrap();
    }
}
