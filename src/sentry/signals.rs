//! Signals from the outside to what runs inside: to one process, a container, or all.
//!
//! Owns the choice of who gets a signal. Init and the keepers never do: they are no guests. The run's
//! own program is signalled by [`Kernel::signal`].

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::census::Member;
use super::kernel::Kernel;
use super::kernel_error::KernelError;
use super::stat::Stat;
use crate::sys::process;

impl Kernel {
    /// Sends a signal to every guest process, once to each.
    pub fn signal_all(&self, signal: i32) -> Result<(), KernelError> {
        self.signal_where(signal, |_| true)
    }

    /// Sends a signal to every process of a container, once to each.
    pub fn signal_container(&self, name: &str, signal: i32) -> Result<(), KernelError> {
        self.signal_where(signal, |member| member.container == name)
    }

    /// Sends a signal to the process that the guest numbers `guest_pid`.
    pub fn signal_task(&self, guest_pid: i32, signal: i32) -> Result<(), KernelError> {
        let all = self.census()?;
        let process = all.iter().find(|process| process.guest_pid == guest_pid);
        let process = process.ok_or(KernelError::NoSuchTask(guest_pid))?;
        // Opened first, looked up again afterwards: the number was the same process's all the while.
        let pidfd = process::pidfd_open(process.pid, false)
            .map_err(|_| KernelError::NoSuchTask(guest_pid))?;
        let again = self.census()?;
        if !again.iter().any(|it| (it.pid, it.guest_pid) == (process.pid, guest_pid)) {
            return Err(KernelError::NoSuchTask(guest_pid));
        }
        match process::pidfd_send_signal(pidfd.as_fd(), signal) {
            Err(Errno::ESRCH) => Err(KernelError::NoSuchTask(guest_pid)),
            done => done.map_err(KernelError::Signal),
        }
    }

    /// All are stopped meanwhile: otherwise one that is made just now would be missed, or one would
    /// get the signal and be forked with it in its handler. (Where that fails, readings follow each
    /// other until one shows nobody new.)
    fn signal_where(
        &self,
        signal: i32,
        wanted: impl Fn(&Member) -> bool,
    ) -> Result<(), KernelError> {
        let mut told = HashSet::new();
        let mut tell_new = || -> Result<usize, KernelError> {
            let members = self.members()?;
            let mut count = 0;
            for member in members.iter().filter(|member| wanted(member)) {
                if told.insert((member.pid, member.start)) {
                    count += usize::from(member.signal(signal)?);
                }
            }
            Ok(count)
        };
        let count = match self.while_stopped(&mut tell_new) {
            Ok(count) => count,
            Err(KernelError::Signal(errno)) => return Err(KernelError::Signal(errno)),
            Err(_) => {
                let mut all = 0;
                for _ in 0..MOST_READINGS {
                    match tell_new()? {
                        0 => break,
                        count => all += count,
                    }
                }
                all
            }
        };
        if count == 0 { Err(KernelError::NoTasks) } else { Ok(()) }
    }
}

/// So many readings at most, where guests cannot be stopped.
const MOST_READINGS: usize = 100;

impl Member {
    /// Sends a signal; gives whether the process was still there.
    fn signal(&self, signal: i32) -> Result<bool, KernelError> {
        let Some(pidfd) = self.open() else { return Ok(false) };
        match process::pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(KernelError::Signal(errno)),
        }
    }

    /// A descriptor of the process; `None`: it has ended.
    fn open(&self) -> Option<OwnedFd> {
        let pidfd = process::pidfd_open(self.pid, false).ok()?;
        Stat::read(self.pid).filter(|stat| stat.start == self.start).map(|_| pidfd)
    }
}
