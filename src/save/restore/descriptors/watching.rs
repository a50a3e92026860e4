//! What epoll and inotify descriptions watch.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::Maker;
use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::restore::maker::Finish;
use crate::save::state::FileKind;

/// EPOLLWAKEUP, EPOLLONESHOT, EPOLLET, EPOLLEXCLUSIVE: what is not an event (EP_PRIVATE_BITS in
/// fs/eventpoll.c).
const NOT_EVENTS: u32 = 1 << 29 | 1 << 30 | 1 << 31 | 1 << 28;
const EPOLLONESHOT: u32 = 1 << 30;

/// include/uapi/linux/inotify.h
const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
/// Bits of a watch's mask that inotify_add_watch(2) does not take, or that only say what became of it:
/// IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED, IN_ISDIR.
const NOT_ASKED: u32 = 0x2000 | 0x4000 | 0x8000 | 0x4000_0000;

/// struct epoll_event, which is packed on x86-64.
fn event(events: u32, data: u64) -> Vec<u8> {
    [&events.to_ne_bytes()[..], &data.to_ne_bytes()].concat()
}

/// Whether it has given its one event and waits to be armed again.
fn is_disarmed(events: u32) -> bool {
    events & !NOT_EVENTS == 0
}

impl Maker<'_> {
    /// Has all epoll descriptions watch what they watched.
    pub(super) fn watch_epolls(&mut self) -> Result<(), RestoreError> {
        let sandbox = self.sandbox;
        for (index, file) in sandbox.files.iter().enumerate() {
            let FileKind::Epoll(targets) = &file.kind else { continue };
            let epoll = self.copy_of(index as u32)?;
            // Those that shall not report first: what is learned by asking is then theirs.
            let (disarmed, armed): (Vec<_>, Vec<_>) =
                targets.iter().copied().partition(|(_, _, events, _)| is_disarmed(*events));
            for (number, target, events, data) in disarmed.into_iter().chain(armed) {
                let stream = matches!(
                    sandbox.files.get(target as usize),
                    Some(it) if it.kind.is_stream()
                );
                let target = self.copy_of(target)?;
                match self.watch(&epoll, &target, number, (events, data)) {
                    // The caller gave something that cannot be watched (a file, /dev/null) for a
                    // stream that could be: nothing is ever told of it.
                    Err(error) if stream && error.errno() == Some(Errno::EPERM) => {}
                    done => done.map_err(RestoreError::of(format_args!(
                        "cannot watch descriptor {number} by epoll again"
                    )))?,
                }
            }
        }
        Ok(())
    }

    fn copy_of(&self, index: u32) -> Result<OwnedFd, RestoreError> {
        self.made(index)?
            .try_clone()
            .map_err(|error| RestoreError::failed("cannot copy a descriptor", error))
    }

    /// An entry is known by its description and its number, so that it has to be added under that.
    fn watch(
        &mut self,
        epoll: &OwnedFd,
        target: &OwnedFd,
        number: i32,
        (events, data): (u32, u64),
    ) -> Result<(), HandError> {
        let given = self.courier.send(self.hand, &[epoll.as_fd(), target.as_fd()])?;
        let [mut epoll, target] = given[..] else { return Err(HandError::Killed) };
        let number_ = number as u64;
        let mut taken = None;
        if epoll == number {
            epoll = self.hand.call(libc::SYS_dup, [epoll as u64])? as i32;
        } else if target != number {
            // Whatever has the number in the maker gets it back.
            taken = match self.hand.call(libc::SYS_dup, [number_]) {
                Ok(copy) => Some(copy),
                Err(error) if error.errno() == Some(Errno::EBADF) => None,
                Err(error) => return Err(error),
            };
        }
        let mut table = self.hand.table();
        let asked = table.data(&event(events | if is_disarmed(events) { 5 } else { 0 }, data));
        let plain = table.data(&event(events, data));
        let room = table.room(12);
        if target != number {
            table.call(libc::SYS_dup3, [target as u64, number_, 0]);
        }
        let control = |operation: i32, at| [epoll as u64, operation as u64, number_, at];
        table.call(libc::SYS_epoll_ctl, control(libc::EPOLL_CTL_ADD, asked.address));
        let mut waited = None;
        if is_disarmed(events) && events & EPOLLONESHOT != 0 {
            // Giving an event is what disarms an entry. One that has none to give is left to report
            // an error or a hang-up, which an entry cannot be kept from.
            waited = Some(table.attempt(libc::SYS_epoll_wait, [epoll as u64, room.address, 1, 0]));
        }
        let done = self.hand.run(&table)?;
        if waited.is_some_and(|it| done.result(it) != Ok(1)) {
            let change = control(libc::EPOLL_CTL_MOD, plain.address);
            self.hand.call_with(libc::SYS_epoll_ctl, &event(events, data), |at| {
                [change[0], change[1], change[2], at]
            })?;
        }
        let mut table = self.hand.table();
        match taken {
            Some(copy) => {
                table.call(libc::SYS_dup3, [copy, number_, 0]);
                table.call(libc::SYS_close, [copy]);
            }
            None => {
                table.call(libc::SYS_close, [number_]);
            }
        }
        for fd in [epoll, target].into_iter().filter(|it| *it != number) {
            table.call(libc::SYS_close, [fd as u64]);
        }
        self.hand.run(&table).map(drop)
    }

    /// Has all inotify descriptions watch what they watched, once nothing is written any more that they
    /// would tell of.
    pub(super) fn watch_files(&mut self) {
        for (index, file) in self.sandbox.files.iter().enumerate() {
            let FileKind::Inotify(watches, _) = &file.kind else { continue };
            let watches: Vec<_> = watches
                .iter()
                .map(|(number, path, mask)| (*number, path.to_vec(), *mask))
                .collect();
            let finish: Finish = Box::new(move |maker| {
                let inotify = maker.copy_of(index as u32)?;
                let fd = maker.give(&inotify).map_err(RestoreError::of("the maker"))?;
                for (number, path, mask) in &watches {
                    maker.add_watch(fd, *number, path, *mask)?;
                }
                maker.close(fd)
            });
            self.finishes.push(finish);
        }
    }

    fn add_watch(
        &mut self,
        fd: i32,
        number: i32,
        path: &[u8],
        mask: u32,
    ) -> Result<(), RestoreError> {
        let what = format!("cannot watch {} again", String::from_utf8_lossy(path));
        let mask = mask & !NOT_ASKED | libc::IN_DONT_FOLLOW;
        let mut table = self.hand.table();
        let name = table.string(path);
        table.call(libc::SYS_ioctl, [fd as u64, INOTIFY_IOC_SETNEXTWD, number as u64]);
        let arguments = [fd as u64, name.address, u64::from(mask)];
        let added = table.call(libc::SYS_inotify_add_watch, arguments);
        let done = self.hand.run(&table).map_err(RestoreError::of(&what))?;
        match done.result(added) {
            Ok(got) if got == number as u64 => Ok(()),
            Ok(_) => Err(RestoreError::failed(what, "its number is taken")),
            Err(errno) => Err(RestoreError::failed(what, errno.desc())),
        }
    }
}
