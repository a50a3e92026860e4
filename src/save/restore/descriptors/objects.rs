//! Objects that have a descriptor and no file: counters, timers, signals, processes, namespaces.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::{Maker, describe, failed};
use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::state::{Clocks, FileKind, OpenFile};
use crate::save::timers::{SECOND, times};
use crate::sys::ptrace::{self, Stop};
use crate::sys::{descriptors, process};

/// include/uapi/linux/timerfd.h
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

/// What a clock showed at the save.
fn shown(clocks: &Clocks, clock: i32) -> i64 {
    match clock {
        libc::CLOCK_MONOTONIC => clocks.monotonic,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => clocks.boottime,
        _ => clocks.realtime,
    }
}

impl Maker<'_> {
    pub(super) fn event(
        &mut self,
        value: u64,
        semaphore: bool,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        let flags = if semaphore { libc::EFD_SEMAPHORE } else { 0 } | libc::EFD_NONBLOCK;
        let made = self.make(file, libc::SYS_eventfd2, [0, flags as u64])?;
        if value > 0 {
            nix::unistd::write(&made, &value.to_ne_bytes())
                .map_err(failed("set the value", file))?;
        }
        Ok(made)
    }

    pub(super) fn signals(&mut self, mask: u64, file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        let what = format!("cannot make {}", describe(file));
        let made = self
            .hand
            .call_with(libc::SYS_signalfd4, &mask.to_ne_bytes(), |at| [u64::MAX, at, 8, 0])
            .map_err(RestoreError::of(&what))?;
        self.take_and_close(made.0 as i32).map_err(RestoreError::of(what))
    }

    pub(super) fn timer(&mut self, file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        let FileKind::Timer { clock, ticks, flags, interval, remaining } = file.kind else {
            return Err(RestoreError::refused("not a timer"));
        };
        let what = format!("cannot make {}", describe(file));
        let absolute = flags as i32 & libc::TFD_TIMER_ABSTIME != 0;
        // One that goes off faster than anybody could ask what is left has expired.
        let left = if remaining == 0 && interval > 0 && ticks > 0 { interval } else { remaining };
        let value = match left {
            0 => 0,
            left if absolute => {
                let shown = u64::try_from(shown(&self.sandbox.clocks, clock)).unwrap_or(0);
                shown.saturating_add(left)
            }
            left => left,
        };
        let create = [clock as u64, libc::TFD_NONBLOCK as u64];
        let fd =
            self.hand.call(libc::SYS_timerfd_create, create).map_err(RestoreError::of(&what))?;
        let mut table = self.hand.table();
        let setting = table.data(&times(SECOND, interval, value));
        let count = table.data(&ticks.to_ne_bytes());
        if interval > 0 || value > 0 || flags > 0 {
            let arguments = [fd, u64::from(flags), setting.address, 0];
            table.call(libc::SYS_timerfd_settime, arguments);
        }
        // (Setting the time forgets expirations. Needs CONFIG_CHECKPOINT_RESTORE.)
        if ticks > 0 {
            table.call(libc::SYS_ioctl, [fd, TFD_IOC_SET_TICKS, count.address]);
        }
        if !table.is_empty() {
            self.hand.run(&table).map_err(RestoreError::of(&what))?;
        }
        self.take_and_close(fd as i32).map_err(RestoreError::of(what))
    }

    pub(super) fn inotify(&mut self, file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        self.make(file, libc::SYS_inotify_init1, [0])
    }

    pub(super) fn epoll(&mut self) -> Result<OwnedFd, RestoreError> {
        let what = "cannot make an epoll descriptor";
        let fd = self.hand.call(libc::SYS_epoll_create1, [0]).map_err(RestoreError::of(what))?;
        self.take_and_close(fd as i32).map_err(RestoreError::of(what))
    }

    pub(super) fn namespace(
        &mut self,
        name: &str,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        if !name.bytes().all(|it| it.is_ascii_lowercase()) {
            return Err(RestoreError::refused(format!("the image names a namespace {name:?}")));
        }
        let flags = file.flags as i32 & !super::NOT_AGAIN | libc::O_CLOEXEC;
        let path = format!("/proc/self/ns/{name}");
        let what = format!("cannot open {}", describe(file));
        self.open(path.as_bytes(), flags, 0).map_err(RestoreError::of(what))
    }

    pub(super) fn pidfd(
        &mut self,
        pid: i32,
        thread: bool,
        file: &OpenFile,
    ) -> Result<OwnedFd, RestoreError> {
        if pid == 0 {
            return self
                .dead_process(thread)
                .map_err(RestoreError::of(format_args!("cannot make {}", describe(file))));
        }
        // PIDFD_THREAD
        let flags = if thread { libc::O_EXCL } else { 0 };
        self.make(file, libc::SYS_pidfd_open, [pid as u64, flags as u64])
    }

    /// A pidfd of a process that has ended and was waited for: of a child of the maker's that never ran.
    fn dead_process(&mut self, thread: bool) -> Result<OwnedFd, HandError> {
        let own = |what: &'static str| move |errno| HandError::Own(what, errno);
        let mut table = self.hand.table();
        table.call(libc::SYS_clone, [libc::SIGCHLD as u64]);
        self.hand.begin(&table)?;
        let mut child = None;
        loop {
            match self.hand.go_on()? {
                Stop::Made(tid) => child = Some(tid),
                Stop::Signal(libc::SIGTRAP) => break,
                _ => {}
            }
        }
        self.hand.done(&table)?;
        // It is traced as the maker is and stands at its first instruction.
        let child = child.filter(|it| *it > 0).ok_or(HandError::Killed)?;
        ptrace::wait_for(child).map_err(own("hold a child of it"))?;
        let pidfd = process::pidfd_open(child, thread).map_err(own("hold a child of it"))?;
        process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)
            .map_err(own("end a child of it"))?;
        match ptrace::wait_for(child) {
            Err(Errno::ESRCH) => {}
            Err(errno) => return Err(HandError::Own("wait for a child of it", errno)),
            Ok(_) => return Err(HandError::Own("end a child of it", Errno::EBUSY)),
        }
        self.hand.call(libc::SYS_wait4, [u64::MAX, 0, libc::__WALL as u64, 0])?;
        Ok(pidfd)
    }

    /// Says who gets signals of a description.
    pub(super) fn set_owner(&mut self, index: usize, file: &OpenFile) -> Result<(), RestoreError> {
        const F_SETSIG: u64 = 10;
        const F_SETOWN_EX: u64 = 15;
        if file.kind.is_stream() {
            return Ok(());
        }
        let made = self.made(index as u32)?.try_clone();
        let made = made.map_err(|error| RestoreError::failed("cannot copy a descriptor", error))?;
        let fd = self.give(&made).map_err(RestoreError::of("the maker"))?;
        let what = format!("cannot set the owner of {}", describe(file));
        if let Some((kind, id, signal)) = file.owner {
            let mut table = self.hand.table();
            let owner = table.data(&[kind.to_ne_bytes(), id.to_ne_bytes()].concat());
            if id != 0 {
                table.call(libc::SYS_fcntl, [fd as u64, F_SETOWN_EX, owner.address]);
            }
            table.call(libc::SYS_fcntl, [fd as u64, F_SETSIG, signal as u64]);
            self.hand.run(&table).map_err(RestoreError::of(&what))?;
        }
        if file.flags as i32 & libc::O_ASYNC != 0 {
            let has = descriptors::status(made.as_fd()).map_err(failed("read the flags", file))?;
            let flags = (has | libc::O_ASYNC) as u64;
            let arguments = [fd as u64, libc::F_SETFL as u64, flags];
            self.hand.call(libc::SYS_fcntl, arguments).map_err(RestoreError::of(&what))?;
        }
        self.close(fd)
    }
}
