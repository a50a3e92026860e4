//! What /proc/PID/fdinfo says of a descriptor (proc_pid_fdinfo(5)).
//!
//! Only reads the text; what it means is the callers'. The kernel writes it, but guests
//! shape some of what is in it, and none of it is believed to be well-formed.

use std::fmt::Display;
use std::os::fd::RawFd;

use super::generated;

/// A descriptor's fdinfo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Offset.
    pub position: u64,
    /// F_GETFL, with O_CLOEXEC if that is set for the descriptor (seq_show in fs/proc/fd.c).
    pub flags: u32,
    text: String,
}

/// What an epoll descriptor watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// The number under which it was registered.
    pub number: u32,
    /// EPOLL*.
    pub events: u32,
    /// What epoll_wait(2) gives back.
    pub data: u64,
    /// Device and inode.
    pub inode: (u64, u64),
}

/// A watch of inotify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// Its number.
    pub number: i32,
    /// IN_*.
    pub mask: u32,
    /// Device and inode.
    pub inode: (u64, u64),
}

/// A timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerInfo {
    /// Clock.
    pub clock: i32,
    /// Expirations that were not read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2).
    pub flags: u32,
    /// Interval, nanoseconds.
    pub interval: u64,
    /// What remains, nanoseconds.
    pub remaining: u64,
}

/// What a lock is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    /// flock(2), not fcntl(2).
    pub whole: bool,
    /// Exclusive.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Number of bytes; 0: to the end.
    pub length: u64,
}

/// A lock, as a "lock:" line tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// It belongs to the description.
    Description(Locked),
    /// It belongs to the process.
    Process(Locked),
    /// A lease, or what this module does not know: its name.
    Other(String),
}

/// A device as user space numbers it, from the kernel's own number (MKDEV in include/linux/kdev_t.h).
fn device(kernel: u64) -> u64 {
    libc::makedev((kernel >> 20) as u32, (kernel & 0xf_ffff) as u32)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

impl FdInfo {
    /// That of descriptor `fd` of process `pid`, or of `self`. None: there is none, or it is not understood.
    pub fn of(pid: impl Display, fd: RawFd) -> Option<FdInfo> {
        FdInfo::parse(generated::text(format!("/proc/{pid}/fdinfo/{fd}")).ok()?)
    }

    /// Reads the text. None: it is not one.
    pub fn parse(text: String) -> Option<FdInfo> {
        let field = |name: &str| {
            text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
        };
        let position = field("pos")?.parse::<i64>().ok()? as u64;
        let flags = u32::from_str_radix(field("flags")?, 8).ok()?;
        Some(FdInfo { position, flags, text })
    }

    /// What stands behind "name:".
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    }

    /// The number of the mount that it was opened through.
    pub fn mount(&self) -> Option<u64> {
        self.field("mnt_id")?.parse().ok()
    }

    /// Value and, since Linux 6.5, whether it is a semaphore.
    pub fn event(&self) -> Option<(u64, Option<bool>)> {
        let semaphore = self.field("eventfd-semaphore").map(|it| it != "0");
        Some((hex(self.field("eventfd-count")?)?, semaphore))
    }

    /// The signals of a signalfd.
    pub fn signals(&self) -> Option<u64> {
        hex(self.field("sigmask")?)
    }

    /// The timer of a timerfd.
    pub fn timer(&self) -> Option<TimerInfo> {
        let time = |name| {
            let (seconds, nanos) =
                self.field(name)?.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
            let seconds: u64 = seconds.trim().parse().ok()?;
            seconds.checked_mul(1_000_000_000)?.checked_add(nanos.trim().parse().ok()?)
        };
        Some(TimerInfo {
            clock: self.field("clockid")?.parse().ok()?,
            ticks: self.field("ticks")?.parse().ok()?,
            flags: u32::from_str_radix(self.field("settime flags")?, 8).ok()?,
            interval: time("it_interval")?,
            remaining: time("it_value")?,
        })
    }

    /// The process of a pidfd: 0 if it is none that the reader sees, -1 if it is no more; and its
    /// numbers in nested namespaces, the reader's first.
    pub fn process(&self) -> Option<(i32, Vec<i32>)> {
        let nested = self.field("NSpid").unwrap_or_default();
        let nested = nested.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        Some((self.field("Pid")?.parse().ok()?, nested))
    }

    /// What an epoll descriptor watches, in the order in which the kernel keeps it. None: a line of it
    /// is not understood.
    pub fn watched(&self) -> Option<Vec<Watched>> {
        let lines = self.text.lines().filter(|line| line.starts_with("tfd:"));
        let one = |line: &str| {
            let [number, events, data, inode, device_] =
                named(line, ["tfd:", "events:", "data:", "ino:", "sdev:"])?;
            Some(Watched {
                number: number.parse().ok()?,
                events: u32::from_str_radix(events, 16).ok()?,
                data: hex(data)?,
                inode: (device(hex(device_)?), hex(inode)?),
            })
        };
        lines.map(one).collect()
    }

    /// The watches of an inotify descriptor, by number.
    pub fn watches(&self) -> Option<Vec<Watch>> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("inotify "));
        let one = |line: &str| {
            let [number, inode, device_, mask] = named(line, ["wd:", "ino:", "sdev:", "mask:"])?;
            Some(Watch {
                number: i32::from_str_radix(number, 16).ok()?,
                mask: u32::from_str_radix(mask, 16).ok()?,
                inode: (device(hex(device_)?), hex(inode)?),
            })
        };
        let mut all = lines.map(one).collect::<Option<Vec<Watch>>>()?;
        all.sort_by_key(|it| it.number);
        Some(all)
    }

    /// Locks that the description holds, or the owner of the table through it.
    pub fn locks(&self) -> Vec<Held> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("lock:"));
        lines.map(lock).collect()
    }
}

/// The words behind these names in a line, where a word may stand apart from its name.
fn named<'l, const N: usize>(line: &'l str, names: [&str; N]) -> Option<[&'l str; N]> {
    let mut found = [""; N];
    let mut rest = line;
    for (name, into) in names.iter().zip(&mut found) {
        rest = &rest[rest.find(name)? + name.len()..];
        *into = rest.split_whitespace().next()?;
    }
    Some(found)
}

/// "1: FLOCK  ADVISORY  WRITE 1234 fe:00:12 0 EOF" (lock_get_status in fs/locks.c).
fn lock(line: &str) -> Held {
    let understood = || {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let write = match words.nth(1)? {
            "WRITE" => true,
            "READ" => false,
            _ => return None,
        };
        let start: u64 = words.nth(2)?.parse().ok()?;
        let length = match words.next()? {
            "EOF" => 0,
            last => last.parse::<u64>().ok()?.checked_sub(start)?.checked_add(1)?,
        };
        let lock = |whole| Locked { whole, write, start, length };
        match kind {
            "FLOCK" => Some(Held::Description(lock(true))),
            "OFDLCK" => Some(Held::Description(lock(false))),
            "POSIX" => Some(Held::Process(lock(false))),
            _ => None,
        }
    };
    understood().unwrap_or_else(|| {
        Held::Other(line.split_whitespace().nth(1).unwrap_or("lock").to_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(rest: &str) -> FdInfo {
        FdInfo::parse(format!("pos:\t42\nflags:\t02100002\nmnt_id:\t17\nino:\t9\n{rest}")).unwrap()
    }

    #[test]
    fn what_is_common_to_all_is_read() {
        let info = info("");
        assert_eq!((info.position, info.flags), (42, 0o2100002));
        assert_eq!(info.field("mnt_id"), Some("17"));
        assert_eq!(FdInfo::parse(String::from("nothing")), None);
    }

    #[test]
    fn objects_without_a_file_are_read() {
        let event = info("eventfd-count:               12\neventfd-id: 8\neventfd-semaphore: 1\n");
        assert_eq!(event.event(), Some((0x12, Some(true))));
        assert_eq!(info("eventfd-count: 1\n").event(), Some((1, None)));
        assert_eq!(info("sigmask:\t0000000000000a00\n").signals(), Some(0xa00));
        let timer =
            "clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (2, 5)\nit_interval: (1, 0)\n";
        let read = TimerInfo {
            clock: 1,
            ticks: 3,
            flags: 1,
            interval: 1_000_000_000,
            remaining: 2_000_000_005,
        };
        assert_eq!(info(timer).timer(), Some(read));
        assert_eq!(info("Pid:\t77\nNSpid:\t77\t5\n").process(), Some((77, vec![77, 5])));
        assert_eq!(info("Pid:\t-1\n").process(), Some((-1, vec![])));
    }

    #[test]
    fn watches_are_read() {
        let line = "tfd:        5 events:       1d data:               ff  pos:0 ino:9a0037 sdev:fe00001\n";
        let watched = Watched {
            number: 5,
            events: 0x1d,
            data: 0xff,
            inode: (libc::makedev(0xfe, 1), 0x9a0037),
        };
        assert_eq!(info(line).watched(), Some(vec![watched]));
        assert_eq!(info("tfd: x\n").watched(), None);
        let line =
            "inotify wd:a ino:3c4a7 sdev:f mask:2 ignored_mask:0 fhandle-bytes:8 f_handle:a7\n";
        let watch = Watch { number: 10, mask: 2, inode: (libc::makedev(0, 15), 0x3c4a7) };
        assert_eq!(info(line).watches(), Some(vec![watch]));
    }

    #[test]
    fn locks_are_told_apart() {
        let lines = "lock:\t1: FLOCK  ADVISORY  WRITE 32261 fe:00:10011000 0 EOF\n\
                     lock:\t2: POSIX  ADVISORY  READ 32261 fe:00:10011000 5 14\n\
                     lock:\t3: LEASE  ACTIVE    WRITE 1 fe:00:1 0 EOF\n";
        let lock = |whole, write, start, length| Locked { whole, write, start, length };
        let expected = vec![
            Held::Description(lock(true, true, 0, 0)),
            Held::Process(lock(false, false, 5, 10)),
            Held::Other("lease".to_owned()),
        ];
        assert_eq!(info(lines).locks(), expected);
    }
}
