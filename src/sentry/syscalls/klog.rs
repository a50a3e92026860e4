//! The guest's own kernel log: syslog(2), and open(2) of /dev/kmsg where opens are trapped.
//!
//! Anybody inside may read and clear it: it is the sandbox's log, not the host's.

use nix::errno::Errno;

use super::args::{Int, OpenFlags, Operation, OutBuf};
use crate::notify::{Answer, Descriptor, GuestMemory, hand_over};
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::log;
use crate::sys::seccomp::Place;

/// SYSLOG_ACTION_* (include/linux/syslog.h).
mod action {
    pub(super) const CLOSE: i32 = 0;
    pub(super) const OPEN: i32 = 1;
    pub(super) const READ_ALL: i32 = 3;
    pub(super) const READ_CLEAR: i32 = 4;
    pub(super) const CLEAR: i32 = 5;
    pub(super) const CONSOLE_OFF: i32 = 6;
    pub(super) const CONSOLE_ON: i32 = 7;
    pub(super) const CONSOLE_LEVEL: i32 = 8;
    pub(super) const SIZE_UNREAD: i32 = 9;
    pub(super) const SIZE_BUFFER: i32 = 10;
}

/// SYSLOG_ACTION_READ, the only one that waits. A row's exception names it.
pub const READ: i32 = 2;

/// Serves every action but READ.
pub fn syslog(call: &Call<'_>, action: Operation, buffer: OutBuf, length: Int) -> Answer {
    let log = call.kernel.log();
    match action.0 {
        action::CLOSE | action::OPEN | action::CONSOLE_OFF | action::CONSOLE_ON => {
            Answer::Return(0)
        }
        action::CONSOLE_LEVEL if (1..=8).contains(&length.0) => Answer::Return(0),
        action::SIZE_BUFFER => Answer::Return(log::CAPACITY as i64),
        action::SIZE_UNREAD => Answer::Return(log.unread() as i64),
        action::CLEAR => {
            log.clear();
            Answer::Return(0)
        }
        action::READ_ALL | action::READ_CLEAR => match room(buffer, length) {
            Ok(room) => {
                let given = give(call.memory(), buffer, log.tail(room).as_bytes());
                if action.0 == action::READ_CLEAR && given.is_ok() {
                    log.clear();
                }
                given.into()
            }
            Err(errno) => Answer::Fail(errno),
        },
        _ => Answer::Fail(Errno::EINVAL),
    }
}

/// Serves READ: waits for text and gives each byte once.
pub async fn read(call: TaskCall, _action: Operation, buffer: OutBuf, length: Int) -> Answer {
    let room = match room(buffer, length) {
        Ok(0) => return Answer::Return(0),
        Ok(room) => room,
        Err(errno) => return Answer::Fail(errno),
    };
    let log = call.kernel.log();
    loop {
        if let Err(interrupted) = call.block(log.readable()).await {
            return interrupted.into();
        }
        let (text, span) = log.next(room);
        // Text that could not be given is still there for the next reader, and where another one
        // was faster with it, this one waits for more.
        match give(call.memory(), buffer, &text) {
            Ok(count) if log.given(span) && count > 0 => return Answer::Return(count),
            Ok(_) => {}
            Err(errno) => return Answer::Fail(errno),
        }
    }
}

/// Serves open(2) of /dev/kmsg for reading. (Writing is not served: the path stays absent for that.)
pub fn open(call: &Call<'_>, flags: OpenFlags) -> Answer {
    hand_over();
    let has = |flag: i32| flags.0 as i32 & flag != 0;
    match call.kernel.open_log(has(libc::O_NONBLOCK)) {
        Ok(fd) => Answer::Descriptor(Descriptor {
            fd,
            place: Place::Lowest,
            cloexec: has(libc::O_CLOEXEC),
            sole: false,
        }),
        Err(errno) => Answer::Fail(errno),
    }
}

/// do_syslog (kernel/printk/printk.c): a null buffer or a negative length is EINVAL.
fn room(buffer: OutBuf, length: Int) -> Result<usize, Errno> {
    if buffer.0 == 0 {
        return Err(Errno::EINVAL);
    }
    usize::try_from(length.0).map_err(|_| Errno::EINVAL)
}

fn give(memory: GuestMemory<'_>, buffer: OutBuf, text: &[u8]) -> Result<i64, Errno> {
    memory.write(buffer.0, text)?;
    Ok(text.len() as i64)
}
