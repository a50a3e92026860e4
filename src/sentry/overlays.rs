//! Which files lie in overlays that were made for this run.
//!
//! An overlay of the host's own (the root of a container is one) is none of these: its device is known to the
//! host's mounts. Looked at from outside, by descriptor alone; what a guest puts in its place meanwhile is its own
//! loss.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use crate::sys::generated;

/// The mounts of overlays.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    /// Their numbers, which do not change: nobody can mount anything inside.
    mounts: OnceLock<HashSet<u64>>,
}

impl Overlays {
    /// Whether a descriptor of a guest thread stands for an open file in one.
    pub(super) fn has(&self, tid: i32, fd: i32) -> bool {
        let Ok(text) = generated::text(format!("/proc/{tid}/fdinfo/{fd}")) else { return false };
        // What is opened with O_PATH cannot be written to the disk.
        let flags = field(&text, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
        flags.is_some_and(|flags| flags & libc::O_PATH == 0) && self.is_one(tid, &text)
    }

    /// Whether what a descriptor of the sentry's own stands for lies in one, as a guest sees it.
    pub(super) fn holds(&self, tid: i32, file: BorrowedFd<'_>) -> bool {
        let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
        let Ok(text) = generated::text(path) else { return false };
        self.is_one(tid, &text)
    }

    /// Finds out which there are, as long as a guest thread sees all of them.
    pub(super) fn learn(&self, tid: i32) {
        let _ = self.mounts(tid);
    }

    /// Whether the mount that a descriptor's fdinfo names is one.
    fn is_one(&self, tid: i32, info: &str) -> bool {
        let mount = field(info, "mnt_id:").and_then(|mount| mount.parse().ok());
        mount.is_some_and(|mount| self.mounts(tid).is_some_and(|all| all.contains(&mount)))
    }

    fn mounts(&self, tid: i32) -> Option<&HashSet<u64>> {
        if let Some(mounts) = self.mounts.get() {
            return Some(mounts);
        }
        let guests = generated::text(format!("/proc/{tid}/mountinfo")).ok()?;
        let host = generated::text("/proc/self/mountinfo").ok()?;
        Some(self.mounts.get_or_init(|| made_here(&guests, &host)))
    }
}

/// What a descriptor's fdinfo says (proc_pid_fdinfo(5)).
fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The overlays among the mounts of the guests whose devices the host does not know (proc_pid_mountinfo(5)).
fn made_here(guests: &str, host: &str) -> HashSet<u64> {
    let overlays = |text: &str| -> Vec<(u64, String)> {
        let of_line = |line: &str| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut words = mount.split(' ');
            let (number, device) = (words.next()?.parse().ok()?, words.nth(1)?);
            kind.starts_with("overlay ").then(|| (number, device.to_owned()))
        };
        text.lines().filter_map(of_line).collect()
    };
    let known: HashSet<String> = overlays(host).into_iter().map(|(_, device)| device).collect();
    overlays(guests)
        .into_iter()
        .filter(|(_, device)| !known.contains(device))
        .map(|(number, _)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_of_the_host_are_none_of_the_run() {
        let host = "\
22 1 0:25 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c
23 22 0:26 / /proc rw - proc proc rw
";
        let guests = "\
120 119 0:25 / / ro - overlay overlay ro,lowerdir=/a,upperdir=/b,workdir=/c
121 120 0:71 / /home/me rw - overlay overlay rw,lowerdir=/home/me,userxattr
122 120 0:72 / /tmp rw - tmpfs overlay rw
123 120 0:71 /x /srv rw shared:3 master:4 - overlay sandbox rw
no line of it
";
        assert_eq!(made_here(guests, host), HashSet::from([121, 123]));
        assert_eq!(made_here(guests, ""), HashSet::from([120, 121, 123]));
    }

    #[test]
    fn what_is_no_file_lies_in_none() {
        let overlays = Overlays::default();
        let own = std::process::id() as i32;
        assert!(!overlays.has(own, 0) && !overlays.has(own, 12345));
    }
}
