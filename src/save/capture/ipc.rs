//! System V IPC and POSIX message queues.
//!
//! Objects of System V are read by calls of one guest, which change nothing of them: messages are copied
//! (MSG_COPY), statuses asked for by index. Only shared memory that nobody has attached is attached for a
//! moment, which its times tell. POSIX queues can only be read by taking their messages out: they
//! are put back at once, in the order in which they came.
//!
//! Not carried: times, the last process that used something, who made it (cuid, cgid). Adjustments of semaphores
//! and notifications have files of their own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde_bytes::ByteBuf;

use crate::save::capture::collector::{Collector, Content, Subject};
use crate::save::capture::trees::Ids;
use crate::save::error::SaveError;
use crate::save::hand;
use crate::save::ipc::{Ipc, Messages, Permissions, Queue, Segment, Semaphores};
use crate::save::state::{FileKind, SharedKind, SharedMemory};
use crate::sys::{beneath, memfd, message_queue};

// include/uapi/linux/{shm,sem,msg}.h; those that end in ANY since Linux 4.17.
const SHM_INFO: u64 = 14;
const SHM_STAT_ANY: u64 = 15;
const SEM_INFO: u64 = 19;
const SEM_STAT_ANY: u64 = 20;
const GETALL: u64 = 13;
const MSG_INFO: u64 = 12;
const MSG_STAT_ANY: u64 = 13;
const MSG_COPY: u64 = 0o40000;
/// Bytes of the largest of the structures that the kernel fills in.
const STATUS: usize = 128;
/// The most of a message (MSGMAX, the bound of every new IPC namespace, in ipc/msg.c).
const MESSAGE: usize = 8192;
const PAGE: u64 = 4096;

/// How to ask for objects of one kind: the call; the commands for all and for one by its place; where
/// the number of them is in the answer to the first; the name of the kind.
struct Kind {
    call: libc::c_long,
    information: u64,
    status: u64,
    count: usize,
    name: &'static str,
}

const MEMORY: Kind = Kind {
    call: libc::SYS_shmctl,
    information: SHM_INFO,
    status: SHM_STAT_ANY,
    count: 0,
    name: "shared memory",
};
const SEMAPHORES: Kind = Kind {
    call: libc::SYS_semctl,
    information: SEM_INFO,
    status: SEM_STAT_ANY,
    count: 7,
    name: "semaphores",
};
const MESSAGES: Kind = Kind {
    call: libc::SYS_msgctl,
    information: MSG_INFO,
    status: MSG_STAT_ANY,
    count: 0,
    name: "message queues",
};

impl Kind {
    /// The call with its arguments in their places: semctl(2) has one more.
    fn arguments(&self, id: u64, command: u64, at: u64) -> [u64; 4] {
        match self.call {
            libc::SYS_semctl => [id, 0, command, at],
            _ => [id, command, at, 0],
        }
    }
}

/// An object as the kernel tells of it: struct shmid64_ds and its like begin with struct ipc64_perm of
/// 48 bytes, words of 64 bits follow (include/uapi/asm-generic/ipcbuf.h, shmbuf.h, msgbuf.h;
/// arch/x86/include/uapi/asm/sembuf.h).
struct Status {
    permissions: Permissions,
    words: Vec<u64>,
}

impl Status {
    fn of(id: i32, bytes: &[u8]) -> Status {
        let half = |at: usize| {
            let bytes = bytes.get(at * 4..at * 4 + 4).and_then(|it| it.try_into().ok());
            u32::from_ne_bytes(bytes.unwrap_or_default())
        };
        let word = |word: &[u8]| u64::from_ne_bytes(word.try_into().unwrap_or_default());
        let permissions =
            Permissions { id, key: half(0) as i32, uid: half(1), gid: half(2), mode: half(5) };
        let words = bytes.get(48..).unwrap_or_default().chunks_exact(8).map(word).collect();
        Status { permissions, words }
    }

    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }
}

/// All of the namespace that `subject` is in, but for the POSIX queues of which somebody is notified
/// ([`super::notices`]), and what processes have undone of semaphores ([`super::adjustments`]). Comes after their mappings, which say where shared memory is.
pub fn capture(
    subject: &mut Subject<'_>,
    collector: &mut Collector,
) -> Result<(Ipc, Vec<Noticed>), SaveError> {
    let [memory, semaphores, messages] = find(subject)?;
    let mut ipc = Ipc::default();
    for status in memory {
        ipc.memory.push(segment(subject, &status, collector)?);
    }
    for status in semaphores {
        ipc.semaphores.push(values(subject, &status)?);
    }
    for status in messages {
        ipc.messages.push(copies(subject, &status)?);
    }
    let noticed = queues((subject.pid, &collector.known.view_of(subject.pid)), &mut ipc.queues)?;
    Ok((ipc, noticed))
}

/// Whether there is anything of System V. Mostly there is nothing; then [`capture_queues`] is all.
pub fn is_any(subject: &mut Subject<'_>) -> Result<bool, SaveError> {
    Ok(find(subject)?.iter().any(|all| !all.is_empty()))
}

/// The POSIX queues alone, which nobody has to be asked about.
/// `guest`: the number of one, and where the guests' file view is.
pub fn capture_queues(guest: (i32, &str)) -> Result<(Ipc, Vec<Noticed>), SaveError> {
    let mut ipc = Ipc::default();
    let noticed = queues(guest, &mut ipc.queues)?;
    Ok((ipc, noticed))
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(hand::HandError) -> SaveError {
    move |error| SaveError::failed(format!("cannot read {what}"), error)
}

/// Everything of System V, mostly nothing.
fn find(subject: &mut Subject<'_>) -> Result<[Vec<Status>; 3], SaveError> {
    let mut table = subject.hand.table();
    let kinds = [MEMORY, SEMAPHORES, MESSAGES];
    let asked = kinds.map(|kind| {
        let room = table.room(STATUS);
        let place = table.attempt(kind.call, kind.arguments(0, kind.information, room.address));
        (kind, place, room)
    });
    let done = subject.hand.run(&table).map_err(failed("the System V IPC"))?;
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    for ((kind, place, room), found) in asked.into_iter().zip(&mut found) {
        match done.result(place) {
            // ENOSYS: this kernel has none of it.
            Err(Errno::ENOSYS) => {}
            Err(errno) => return Err(SaveError::failed(kind.name, errno.desc())),
            Ok(_) if done.half(room, kind.count) == 0 => {}
            Ok(highest) => *found = statuses(subject, &kind, highest)?,
        }
    }
    Ok(found)
}

fn statuses(subject: &mut Subject<'_>, kind: &Kind, last: u64) -> Result<Vec<Status>, SaveError> {
    let mut found = Vec::new();
    let mut next = 0;
    while next <= last {
        let mut table = subject.hand.table();
        let mut asked = Vec::new();
        while next <= last && table.has_room(1, STATUS) {
            let room = table.room(STATUS);
            let arguments = kind.arguments(next, kind.status, room.address);
            asked.push((table.attempt(kind.call, arguments), room));
            next += 1;
        }
        let done = subject.hand.run(&table).map_err(failed(kind.name))?;
        for (place, room) in asked {
            match done.result(place) {
                Ok(id) => found.push(Status::of(id as i32, done.bytes(room))),
                // Nothing has this place.
                Err(Errno::EINVAL | Errno::EIDRM) => {}
                Err(errno) => return Err(SaveError::failed(kind.name, errno.desc())),
            }
        }
    }
    Ok(found)
}

fn segment(
    subject: &mut Subject<'_>,
    status: &Status,
    collector: &mut Collector,
) -> Result<Segment, SaveError> {
    let (id, size) = (status.permissions.id, status.word(0));
    let (shared, is_new) = shared_by_shmid(collector, id, size);
    if is_new {
        let object = collector.shared[shared as usize].object;
        let file = detached(subject, id, size)?;
        collector.contents.push(Content::File { object, file, size });
    }
    Ok(Segment { permissions: status.permissions, size, shared })
}

/// The entry of [`Collector::shared`] for a segment, and whether it has just been made.
pub fn shared_by_shmid(collector: &mut Collector, id: i32, size: u64) -> (u32, bool) {
    let size = size.next_multiple_of(PAGE);
    let kind = SharedKind::SystemV { id };
    if let Some(index) = collector.shared.iter().position(|shared| shared.kind == kind) {
        collector.shared[index].size = size;
        return (index as u32, false);
    }
    let object = collector.object();
    collector.shared.push(SharedMemory { object, size, kind });
    (collector.shared.len() as u32 - 1, true)
}

/// A copy of memory that no process has attached.
fn detached(subject: &mut Subject<'_>, id: i32, size: u64) -> Result<File, SaveError> {
    let what = || format!("the shared memory {id}");
    let own = |error: std::io::Error| SaveError::failed(format!("cannot copy {}", what()), error);
    let attach = [id as u64, 0, libc::SHM_RDONLY as u64];
    let address = subject.hand.call(libc::SYS_shmat, attach).map_err(|error| {
        refused_by_mode(error.errno(), what()).unwrap_or_else(|| failed(what())(error))
    })?;
    let mut copy = memfd::anonymous_file(c"copy").map_err(|errno| own(errno.into()))?;
    let copied = copy.set_len(size).and_then(|()| {
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let length = (size - at).min(piece.len() as u64) as usize;
            hand::read(subject.pid, address + at, &mut piece[..length])?;
            copy.write_all(&piece[..length])?;
            at += length as u64;
        }
        Ok(())
    });
    subject.hand.call(libc::SYS_shmdt, [address]).map_err(failed(what()))?;
    copied.map(|()| copy).map_err(own)
}

fn refused_by_mode(errno: Option<Errno>, what: String) -> Option<SaveError> {
    (errno == Some(Errno::EACCES)).then(|| {
        SaveError::refused(format!(
            "{what} may not be read by the program that made it, so it cannot be saved; give it \
             permission to read (IPC_SET)"
        ))
    })
}

fn values(subject: &mut Subject<'_>, status: &Status) -> Result<Semaphores, SaveError> {
    let id = status.permissions.id;
    let count = status.word(4) as usize;
    let mut table = subject.hand.table();
    let what = || format!("the semaphores {id}");
    if !table.has_room(1, count * 2) {
        return Err(SaveError::refused(format!("{} are too many ({count}) to be saved", what())));
    }
    let room = table.room(count * 2);
    let place = table.attempt(libc::SYS_semctl, [id as u64, 0, GETALL, room.address]);
    let done = subject.hand.run(&table).map_err(failed(what()))?;
    done.result(place).map_err(|errno| {
        refused_by_mode(Some(errno), what())
            .unwrap_or_else(|| SaveError::failed(what(), errno.desc()))
    })?;
    let value = |it: &[u8]| u16::from_ne_bytes([it[0], it[1]]);
    let values = done.bytes(room).chunks_exact(2).map(value).collect();
    Ok(Semaphores { permissions: status.permissions, values, adjustments: Vec::new() })
}

fn copies(subject: &mut Subject<'_>, status: &Status) -> Result<Messages, SaveError> {
    let id = status.permissions.id;
    let what = || format!("the message queue {id}");
    let (waiting, capacity) = (status.word(4), status.word(5));
    let mut messages = Vec::new();
    let length = (status.word(3) as usize).min(MESSAGE);
    let flags = MSG_COPY | libc::IPC_NOWAIT as u64;
    while (messages.len() as u64) < waiting {
        let mut table = subject.hand.table();
        let mut asked = Vec::new();
        let first = messages.len() as u64;
        while first + (asked.len() as u64) < waiting && table.has_room(1, length + 8) {
            let room = table.room(length + 8);
            let number = first + asked.len() as u64;
            let arguments = [id as u64, room.address, length as u64, number, flags];
            asked.push((table.attempt(libc::SYS_msgrcv, arguments), room));
        }
        let done = subject.hand.run(&table).map_err(failed(what()))?;
        for (place, room) in asked {
            let text = done.result(place).map_err(|errno| match errno {
                Errno::ENOSYS => SaveError::refused(format!(
                    "{} has messages, which this kernel does not let be copied \
                     (CONFIG_CHECKPOINT_RESTORE); receive them first",
                    what()
                )),
                errno => refused_by_mode(Some(errno), what())
                    .unwrap_or_else(|| SaveError::failed(what(), errno.desc())),
            })?;
            let bytes = done.bytes(room);
            let text = &bytes[8..8 + (text as usize).min(length)];
            messages.push((done.word(room, 0) as i64, ByteBuf::from(text)));
        }
    }
    Ok(Messages { permissions: status.permissions, capacity, messages })
}

/// POSIX message queues that have names; `view`: where the guests' file view is. Gives those that are not complete yet.
fn queues((pid, view): (i32, &str), queues: &mut Vec<Queue>) -> Result<Vec<Noticed>, SaveError> {
    const MQUEUE_MAGIC: i64 = 0x1980_0202;
    let path = format!("{view}/dev/mqueue");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // None is mounted where the host's kernel has no such thing.
    let mut noticed = Vec::new();
    let Ok(directory) = open(path.as_str(), flags, Mode::empty()) else { return Ok(noticed) };
    let own = |errno: Errno| SaveError::failed("the POSIX message queues", errno.desc());
    let system = nix::sys::statfs::fstatfs(&directory).map_err(own)?;
    if system.filesystem_type().0 != MQUEUE_MAGIC {
        return Ok(noticed);
    }
    let ids = Ids::of(pid)?;
    let mut listing = Dir::from_fd(directory).map_err(own)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.map_err(own)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    for name in names {
        let show = format!("the message queue /{}", name.to_string_lossy());
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let opened = beneath::open(listing.as_fd(), &name, flags).map_err(|errno| {
            refused_by_mode(Some(errno), show.clone())
                .unwrap_or_else(|| SaveError::failed(&show, errno.desc()))
        })?;
        let (queue, notice) = queue(opened, name.to_bytes(), show, &ids)?;
        noticed.extend(notice.map(|notice| Noticed { queue: queues.len(), ..notice }));
        queues.push(queue);
    }
    Ok(noticed)
}

/// A queue of which somebody is notified (mq_notify(3)).
#[derive(Debug)]
pub struct Noticed {
    /// Index in [`Ipc::queues`].
    pub queue: usize,
    /// The queue, with all of its messages.
    pub file: File,
    /// As an error names it.
    pub show: String,
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD.
    pub notify: i32,
    /// The signal.
    pub signal: i32,
    /// Who is, as the host numbers it.
    pub pid: i32,
}

fn queue(
    opened: OwnedFd,
    name: &[u8],
    show: String,
    ids: &Ids,
) -> Result<(Queue, Option<Noticed>), SaveError> {
    let mut file = File::from(opened);
    let failed = |error: std::io::Error| SaveError::failed(&show, error);
    let mut status = String::new();
    file.read_to_string(&mut status).map_err(failed)?;
    let it = file.metadata().map_err(failed)?;
    let [most, size, _] =
        message_queue::attributes(file.as_fd()).map_err(|it| failed(it.into()))?;
    let mut queue = Queue {
        name: ByteBuf::from(name),
        uid: ids.user(it.uid()),
        gid: ids.group(it.gid()),
        mode: it.mode() & 0o7777,
        limits: [most, size],
        messages: Vec::new(),
        notice: None,
    };
    // mqueue_read_file in ipc/mqueue.c: the process by the number that the reader knows it by.
    let field = |name: &str| {
        let value = status.split(name).nth(1)?.split_whitespace().next()?;
        value.parse::<i32>().ok()
    };
    let [notify, signal, pid] =
        ["NOTIFY:", "SIGNO:", "NOTIFY_PID:"].map(|it| field(it).unwrap_or(0));
    if pid != 0 {
        return Ok((queue, Some(Noticed { queue: 0, file, show, notify, signal, pid })));
    }
    let taken = drain(&file, &mut queue.messages);
    fill(&file, &queue.messages).and(taken).map_err(|errno| failed(errno.into()))?;
    Ok((queue, None))
}

/// Takes all messages out, in their order.
pub(super) fn drain(file: &File, messages: &mut Vec<(u32, ByteBuf)>) -> Result<(), Errno> {
    let [_, size, waiting] = message_queue::attributes(file.as_fd())?;
    let mut room = vec![0; size.unsigned_abs() as usize];
    for _ in 0..waiting {
        let (length, priority) = message_queue::receive(file.as_fd(), &mut room)?;
        messages.push((priority, ByteBuf::from(&room[..length])));
    }
    Ok(())
}

/// Puts them back.
pub(super) fn fill(file: &File, messages: &[(u32, ByteBuf)]) -> Result<(), Errno> {
    messages
        .iter()
        .try_for_each(|(priority, text)| message_queue::send(file.as_fd(), text, *priority))
}

/// A descriptor of a POSIX message queue that `who` holds, by its link in /proc/PID/fd.
pub fn queue_descriptor(link: &[u8], who: &str, fd: i32) -> Result<FileKind, SaveError> {
    if link.ends_with(b" (deleted)") {
        return Err(SaveError::refused(format!(
            "{who} holds a message queue without a name (descriptor {fd}), which cannot be saved; \
             close it first"
        )));
    }
    let name = link.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    Ok(FileKind::MessageQueue(ByteBuf::from(name)))
}
