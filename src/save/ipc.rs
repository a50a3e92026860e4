//! System V and POSIX IPC, as an image knows it.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// All of an IPC namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    /// Shared memory of System V.
    pub memory: Vec<Segment>,
    /// Its semaphores.
    pub semaphores: Vec<Semaphores>,
    /// Its message queues.
    pub messages: Vec<Messages>,
    /// POSIX message queues.
    pub queues: Vec<Queue>,
}

impl Ipc {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Ipc::default()
    }
}

/// What all of System V have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// Its number.
    pub id: i32,
    /// Its key; 0: IPC_PRIVATE.
    pub key: i32,
    /// Owner and group, as the guest numbers them.
    pub uid: u32,
    /// See above.
    pub gid: u32,
    /// Permission bits, and SHM_DEST and SHM_LOCKED.
    pub mode: u32,
}

/// shmget(2)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Who may do what.
    pub permissions: Permissions,
    /// Bytes, as asked for.
    pub size: u64,
    /// Index in [`crate::save::state::Sandbox::shared`].
    pub shared: u32,
}

/// semget(2)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphores {
    /// Who may do what.
    pub permissions: Permissions,
    /// GETALL.
    pub values: Vec<u16>,
    /// What ends of processes do to them (SEM_UNDO of semop(2)): the process, as the guest numbers it, the
    /// number in the set, and what is added.
    #[serde(default)]
    pub adjustments: Vec<(i32, u16, i32)>,
}

/// Operations on a semaphore of this value, all of them at once, after which it has that value again and the
/// caller's adjustment is another by `change`: struct sembuf each. Every sum on the way is between 0 and SEMVMX.
pub fn adjusting(number: u16, value: u16, change: i32) -> Vec<u8> {
    let (up, down) = (i32::from(SEMVMX.saturating_sub(value)), i32::from(value.min(SEMVMX)));
    let mut operations = Vec::new();
    let mut left = change;
    while left != 0 {
        let step = left.clamp(-up.max(down), up.max(down));
        left -= step;
        // What is added to the semaphore is taken from the adjustment (perform_atomic_semop in ipc/sem.c).
        let [adjusts, other] = [(-step, SEM_UNDO), (step, 0)];
        let first_up = if adjusts.0 > 0 { [adjusts, other] } else { [other, adjusts] };
        let [one, two] = first_up;
        let order = if up >= down { [one, two] } else { [two, one] };
        order.iter().for_each(|(by, flags)| operations.extend(operation(number, *by, *flags)));
    }
    operations
}

/// include/uapi/linux/sem.h
pub const SEMVMX: u16 = 32767;
const SEM_UNDO: i16 = 0x1000;

/// A struct sembuf that does not wait.
pub fn operation(number: u16, by: i32, flags: i16) -> [u8; 6] {
    let (number, by) = (number.to_ne_bytes(), (by as i16).to_ne_bytes());
    let flags = (flags | libc::IPC_NOWAIT as i16).to_ne_bytes();
    [number[0], number[1], by[0], by[1], flags[0], flags[1]]
}

/// msgget(2)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// Who may do what.
    pub permissions: Permissions,
    /// msg_qbytes.
    pub capacity: u64,
    /// What waits, the oldest first: type and text.
    pub messages: Vec<(i64, ByteBuf)>,
}

/// mq_overview(7)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Without a slash in front.
    pub name: ByteBuf,
    /// Owner, group and mode.
    pub uid: u32,
    /// See above.
    pub gid: u32,
    /// See above.
    pub mode: u32,
    /// mq_maxmsg, mq_msgsize.
    pub limits: [i64; 2],
    /// What waits, in the order in which it would be received: priority and text.
    pub messages: Vec<(u32, ByteBuf)>,
    /// Who is told when it gets a message and has none.
    #[serde(default)]
    pub notice: Option<Notice>,
}

/// mq_notify(3)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The process, as the guest numbers it.
    pub pid: i32,
    /// SIGEV_SIGNAL or SIGEV_NONE.
    pub notify: i32,
    /// Signal.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
}

impl Notice {
    /// A struct sigevent.
    pub fn event(&self) -> Vec<u8> {
        let mut bytes = self.value.to_ne_bytes().to_vec();
        bytes.extend(self.signal.to_ne_bytes());
        bytes.extend(self.notify.to_ne_bytes());
        bytes.resize(64, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjusting_leaves_the_value_and_stays_within_bounds() {
        for value in [0u16, 1, 5, 16383, 16384, 32766, 32767] {
            for change in [0, 1, -1, 7, 32767, -32768, 32768, 65536, -65535] {
                let (mut at, mut adjustment) = (i32::from(value), 0);
                for bytes in adjusting(3, value, change).chunks(6) {
                    let half = |from: usize| i16::from_ne_bytes([bytes[from], bytes[from + 1]]);
                    assert_eq!(half(0), 3);
                    at += i32::from(half(2));
                    assert!((0..=32767).contains(&at), "{value} {change}: {at}");
                    if half(4) & SEM_UNDO != 0 {
                        adjustment -= i32::from(half(2));
                    }
                }
                assert_eq!((at, adjustment), (i32::from(value), change));
            }
        }
    }
}
