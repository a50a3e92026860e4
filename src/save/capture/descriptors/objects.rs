//! Objects that have a descriptor and no file: counters, timers, signals, processes, namespaces.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Capture, Found};
use crate::save::capture::known::Waiting;
use crate::save::error::SaveError;
use crate::save::state::FileKind;
use crate::sys::{descriptors, generated};

const NOT_UNDERSTOOD: &str = "it is not understood";

/// What users call an object, by the kernel's name of it.
pub(super) fn name(kernel: &str) -> &str {
    match kernel {
        "perf_event" => "perf event",
        "bpf-map" | "bpf-prog" | "bpf_link" => "BPF object",
        "fscontext" => "file system context (fsopen)",
        "landlock-ruleset" => "Landlock ruleset",
        "seccomp notify" => "seccomp listener",
        "" => "object without a name",
        name => name,
    }
}

impl Capture<'_, '_> {
    pub(super) fn event(&self, found: &Found) -> Result<FileKind, SaveError> {
        let not_understood = || self.holder.failed(found.fd, "read the state", NOT_UNDERSTOOD);
        let (value, semaphore) = found.info.event().ok_or_else(not_understood)?;
        let semaphore = match semaphore {
            Some(semaphore) => semaphore,
            None => {
                let failed = self.holder.failed_with(found.fd, "read the state");
                is_semaphore(&self.holder.copy(found.fd)?, value).map_err(failed)?
            }
        };
        Ok(FileKind::Event(value, semaphore))
    }

    pub(super) fn signals(&self, found: &Found) -> Result<FileKind, SaveError> {
        let mask = found.info.signals();
        mask.map(FileKind::Signals)
            .ok_or_else(|| self.holder.failed(found.fd, "read the state", NOT_UNDERSTOOD))
    }

    pub(super) fn timer(&self, found: &Found) -> Result<FileKind, SaveError> {
        let not_understood = || self.holder.failed(found.fd, "read the state", NOT_UNDERSTOOD);
        let copy = self.holder.copy(found.fd)?;
        // A repeating timer that has expired stands still until somebody asks for it, and only then
        // counts what it has missed. Asking changes nothing that a guest could see.
        descriptors::settle_timer(copy.as_fd())
            .map_err(self.holder.failed_with(found.fd, "read the state"))?;
        let timer = self.holder.information(found.fd)?.timer().ok_or_else(not_understood)?;
        Ok(FileKind::Timer {
            clock: timer.clock,
            ticks: timer.ticks,
            flags: timer.flags,
            interval: timer.interval,
            remaining: self.collector.left_then(timer.remaining),
        })
    }

    /// A pidfd.
    pub(super) fn process(&self, found: &Found) -> Result<FileKind, SaveError> {
        // PIDFD_THREAD
        let thread = found.info.flags & libc::O_EXCL as u32 != 0;
        let not_understood = || self.holder.failed(found.fd, "read the state", NOT_UNDERSTOOD);
        let (pid, nested) = found.info.process().ok_or_else(not_understood)?;
        if pid == -1 {
            return Ok(FileKind::Pid(0, thread));
        }
        let depth = self.depth();
        match nested.get(depth.saturating_sub(1)) {
            Some(number) if pid > 0 && depth > 0 => Ok(FileKind::Pid(*number, thread)),
            _ => Err(self.holder.refused(found.fd, "a pidfd of a process outside the sandbox")),
        }
    }

    /// How many pid namespaces the guest is in, as its own status tells (NSpid in
    /// proc_pid_status(5)).
    fn depth(&self) -> usize {
        let path = format!("/proc/{}/status", self.subject.hand.tid());
        let status = generated::text(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        line.map_or(0, |line| line.split_whitespace().count())
    }

    /// A descriptor of a namespace: one of those that the guest is in.
    pub(super) fn namespace(
        &self,
        found: &Found,
        name: &str,
        link: &str,
    ) -> Result<FileKind, SaveError> {
        let own = format!("/proc/{}/ns/{name}", self.subject.hand.tid());
        // (The name becomes part of a path: only what the kernel itself calls one.)
        let known = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"].contains(&name);
        match std::fs::read_link(own) {
            Ok(own) if known && own.as_os_str() == link => Ok(FileKind::Namespace(name.to_owned())),
            _ if known => {
                Err(self.holder.refused(found.fd, &format!("another namespace ({link})")))
            }
            _ => Err(self.holder.refused(found.fd, link)),
        }
    }

    pub(super) fn inotify(&self, found: &Found) -> Result<FileKind, SaveError> {
        let copy = self.holder.copy(found.fd)?;
        let waiting = descriptors::readable(copy.as_fd())
            .map_err(self.holder.failed_with(found.fd, "read the state"))?;
        if waiting > 0 {
            // They can only be read, which takes them away, and nothing puts them back.
            return Err(SaveError::passing(format!(
                "{} has not yet read what its inotify descriptor {} tells it, which cannot be saved; \
                 try again in a moment",
                self.holder.name, found.fd
            )));
        }
        // What it watches is found out at the end.
        Ok(FileKind::Inotify(Vec::new(), Default::default()))
    }

    /// Keeps what has to be known of a new description at the end.
    pub(super) fn expect(&mut self, found: &Found, file: u32) -> Result<(), SaveError> {
        let not_understood = || self.holder.failed(found.fd, "read the state", NOT_UNDERSTOOD);
        let (place, holder) = (self.place(found), self.holder.name.clone());
        let root = Arc::clone(&self.holder.root);
        match self.collector.files[file as usize].kind {
            FileKind::Epoll(_) => {
                let items = found.info.watched().ok_or_else(not_understood)?;
                self.collector.known.epolls.push(Waiting { file, place, holder, root, items });
            }
            FileKind::Inotify(..) => {
                let items = found.info.watches().ok_or_else(not_understood)?;
                self.collector.known.watchers.push(Waiting { file, place, holder, root, items });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Before Linux 6.5 only reading tells: a semaphore gives 1, whatever its value. What was taken is put
/// back.
fn is_semaphore(copy: &std::os::fd::OwnedFd, value: u64) -> Result<bool, Errno> {
    // A value that tells both apart, unless there is one.
    let added = if value < 2 { 2 } else { 0 };
    if added > 0 {
        nix::unistd::write(copy, &u64::to_ne_bytes(added))?;
    }
    let mut poll_fd = [PollFd::new(copy.as_fd(), PollFlags::POLLIN)];
    if poll(&mut poll_fd, PollTimeout::ZERO)? == 0 {
        return Err(Errno::EAGAIN);
    }
    let mut taken = [0; 8];
    nix::unistd::read(copy, &mut taken)?;
    let semaphore = u64::from_ne_bytes(taken) == 1;
    let mut left = if semaphore { value + added - 1 } else { 0 };
    while left > value {
        nix::unistd::read(copy, &mut taken)?;
        left -= 1;
    }
    if value > left {
        nix::unistd::write(copy, &u64::to_ne_bytes(value - left))?;
    }
    Ok(semaphore)
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    #[test]
    fn a_semaphore_is_told_by_reading_and_keeps_its_value() {
        for (flags, semaphore) in [(EfdFlags::empty(), false), (EfdFlags::EFD_SEMAPHORE, true)] {
            for value in [0, 1, 2, 7] {
                let event = EventFd::from_value_and_flags(value, flags | EfdFlags::EFD_NONBLOCK);
                let event = std::os::fd::OwnedFd::from(event.unwrap());
                assert_eq!(is_semaphore(&event, u64::from(value)), Ok(semaphore));
                let mut sum = 0;
                let mut taken = [0; 8];
                while nix::unistd::read(&event, &mut taken).is_ok() {
                    sum += u64::from_ne_bytes(taken);
                }
                assert_eq!(sum, u64::from(value));
            }
        }
    }
}
