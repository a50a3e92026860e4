//! /proc/PID/status of a thread (proc_pid_status(5)): read once, for all who want to know of it.

use crate::sys::generated;

/// What is said there, as far as a save needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The state, one letter.
    pub state: u8,
    /// The number of its process, as that knows it.
    pub process: i32,
    /// Its own, likewise.
    pub thread: i32,
    /// Users and groups: real, effective, saved, of the file system.
    pub users: [[u32; 4]; 2],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Signals that wait for it, one bit each.
    pub pending: u64,
    /// Signals that wait for its process.
    pub shared_pending: u64,
    /// Signals that its process ignores or handles.
    pub acts: u64,
    /// Bytes of memory of its process's own, about; none where the kernel does not tell.
    pub memory: Option<u64>,
    /// umask(2); none of one that has ended.
    pub umask: Option<u32>,
    /// How many seccomp filters it has, those of the sandbox included.
    pub filters: usize,
}

impl Status {
    /// Of one that has ended nothing is told.
    pub fn read(tid: i32) -> Option<Status> {
        Status::parse(&generated::single(format!("/proc/{tid}/status")).ok()?)
    }

    /// Whether it lives.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }

    pub(in crate::save) fn parse(text: &[u8]) -> Option<Status> {
        /// The fields without which there is no telling.
        const NEEDED: u32 = 7;
        let mut status = Status::default();
        let mut found = 0;
        for line in text.split(|byte| *byte == b'\n') {
            // (The name comes first and is the guest's to choose, but the kernel escapes newlines in it.)
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let text = || std::str::from_utf8(value).ok();
            let last = || text()?.split_ascii_whitespace().next_back()?.parse::<i32>().ok();
            let set = || u64::from_str_radix(text()?, 16).ok();
            let numbers = || {
                let all = text().unwrap_or_default().split_ascii_whitespace();
                all.filter_map(|it| it.parse::<u32>().ok())
            };
            let four = || {
                let all: Vec<u32> = numbers().collect();
                <[u32; 4]>::try_from(all).ok()
            };
            match name {
                b"State" => status.state = *value.first()?,
                b"NStgid" => status.process = last()?,
                b"NSpid" => status.thread = last()?,
                b"Uid" => status.users[0] = four()?,
                b"Gid" => status.users[1] = four()?,
                b"SigPnd" => status.pending = set()?,
                b"ShdPnd" => status.shared_pending = set()?,
                b"SigIgn" | b"SigCgt" => {
                    status.acts |= set()?;
                    continue;
                }
                b"Groups" => {
                    status.groups = numbers().collect();
                    continue;
                }
                // "12 kB"; what is swapped out counts as well.
                b"RssAnon" | b"VmSwap" => {
                    let kilobytes = u64::from(numbers().next()?);
                    let before = status.memory.unwrap_or(0);
                    status.memory = Some(before.saturating_add(kilobytes * 1024));
                    continue;
                }
                b"Umask" => {
                    status.umask = u32::from_str_radix(text()?, 8).ok();
                    continue;
                }
                b"Seccomp_filters" => {
                    status.filters = text()?.parse().ok()?;
                    continue;
                }
                _ => continue,
            }
            found += 1;
        }
        (found == NEEDED).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_by_field_whatever_the_name_is() {
        let text = b"Name:\tUid: 5\\nGid:\\t6\nUmask:\t0022\nRssAnon:\t8 kB\nVmSwap:\t4 kB\nState:\tt (tracing stop)\nNStgid:\t900\t7\nNSpid:\t901\t8\n\
            Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nSigPnd:\t0000000000000010\n\
            ShdPnd:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000000004\n\
            Seccomp_filters:\t3\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.state, status.process, status.thread), (b't', 7, 8));
        assert_eq!(status.users, [[1, 2, 3, 4], [5, 6, 7, 8]]);
        assert_eq!((status.groups.as_slice(), status.filters), (&[9, 10][..], 3));
        assert_eq!((status.memory, status.umask), (Some(12 << 10), Some(0o22)));
        assert_eq!((status.pending, status.shared_pending, status.acts), (16, 1, 6));
        assert_eq!(Status::parse(b"Name:\tit\nState:\tR\n"), None);
        let own = Status::read(std::process::id() as i32).unwrap();
        assert!(own.is_alive() && own.process > 0);
    }
}
