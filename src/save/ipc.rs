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
