//! Descriptor tables and the open file descriptions that they stand for.
//!
//! Everything is read from outside: from /proc, by kcmp(2), and through copies of descriptors
//! (pidfd_getfd(2)), which share their description with the guest and so are only asked and never read.
//! No call is made in the guest that a filter of its own could take amiss (but for who gets signals of
//! a description, where somebody does). Sockets, terminals and message queues are other modules'.

mod elsewhere;
mod memory;
mod objects;
mod paths;
mod pipes;
mod streams;
mod targets;
mod watches;

use std::fs::Metadata;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

pub use streams::Streams;

use super::collector::{Collector, Subject};
use super::known::Known;
use crate::save::error::SaveError;
use crate::save::state::{Descriptor, FileKind, Identity, Lock, OpenFile, Table};
use crate::sys::fdinfo::{FdInfo, Held, Locked};
use crate::sys::generated;
use crate::sys::{descriptors, process};

/// Whose descriptors are looked at.
#[derive(Debug)]
struct Holder {
    /// A thread that has the table.
    tid: i32,
    pidfd: OwnedFd,
    /// The root of the guest's file view.
    root: Arc<OwnedFd>,
    /// For complaints: "process 12 (python3)".
    name: String,
}

/// A descriptor that is looked at.
#[derive(Debug)]
struct Found {
    fd: RawFd,
    info: FdInfo,
    /// Its link: a path of the guest's view, or what the kernel calls the object.
    link: Vec<u8>,
    stat: Metadata,
}

impl Found {
    fn inode(&self) -> (u64, u64) {
        (self.stat.dev(), self.stat.ino())
    }

    fn is_path_only(&self) -> bool {
        self.info.flags & libc::O_PATH as u32 != 0
    }

    /// (It can be read, it can be written.)
    fn access(&self) -> [bool; 2] {
        match self.info.flags as i32 & libc::O_ACCMODE {
            _ if self.is_path_only() => [false; 2],
            libc::O_RDONLY => [true, false],
            libc::O_WRONLY => [false, true],
            _ => [true, true],
        }
    }

    fn identity(&self) -> Identity {
        identity(&self.stat)
    }
}

/// What a file is recognised by later.
pub fn identity(stat: &Metadata) -> Identity {
    Identity {
        inode: (stat.dev(), stat.ino()),
        size: stat.size(),
        modified: stat.mtime().saturating_mul(1_000_000_000).saturating_add(stat.mtime_nsec()),
        mode: stat.mode(),
    }
}

/// What is at hand while a table is gone through.
struct Capture<'c, 's> {
    subject: &'c mut Subject<'s>,
    streams: &'c Streams,
    collector: &'c mut Collector,
    holder: &'c Holder,
}

/// The descriptor table of a process. Of several that share it, one stands for all.
pub fn capture_table(
    subject: &mut Subject<'_>,
    streams: &Streams,
    collector: &mut Collector,
) -> Result<Table, SaveError> {
    let holder = Holder::of(subject, &collector.known)?;
    let mut capture = Capture { subject, streams, collector, holder: &holder };
    let mut table = Table::default();
    for fd in holder.numbers()? {
        let found = holder.look_at(fd)?;
        let file = capture.description(&found)?;
        let close_on_exec = found.info.flags & libc::O_CLOEXEC as u32 != 0;
        table.descriptors.push(Descriptor { fd, file, close_on_exec });
    }
    capture_passed(subject, streams, collector)?;
    Ok(table)
}

/// Descriptors in queues of sockets, which may be sockets with descriptors in their queues.
fn capture_passed(
    subject: &mut Subject<'_>,
    streams: &Streams,
    collector: &mut Collector,
) -> Result<(), SaveError> {
    while let Some(next) = collector.passed.iter().position(|it| it.file.is_none()) {
        let fd = collector.passed[next].fd.try_clone();
        let fd = fd.map_err(|error| SaveError::failed("cannot copy a descriptor", error))?;
        let file = capture_held(subject, fd, streams, collector)?;
        collector.passed[next].file = Some(file);
    }
    Ok(())
}

/// A description that travels in a message which `subject` has not received yet: the sentry's own copy
/// of it, which is kept. Gives its index in [`Collector::files`].
pub fn capture_held(
    subject: &mut Subject<'_>,
    held: OwnedFd,
    streams: &Streams,
    collector: &mut Collector,
) -> Result<u32, SaveError> {
    let holder = Holder::sentry(subject, &collector.known)?;
    let found = holder.look_at(held.as_raw_fd())?;
    let file = Capture { subject, streams, collector, holder: &holder }.description(&found)?;
    collector.known.held.push(held);
    Ok(file)
}

/// What can only be said once all tables are known: what epoll and inotify descriptions watch, and that
/// no pipe leads out of the sandbox.
pub fn finish(collector: &mut Collector) -> Result<(), SaveError> {
    pipes::check_ends(collector)?;
    targets::finish(collector)?;
    watches::finish(collector)?;
    super::sockets::settle(collector)
}

impl Holder {
    fn of(subject: &Subject<'_>, known: &Known) -> Result<Holder, SaveError> {
        let tid = subject.hand.tid();
        // (A leader that has ended has no table any more, its threads have.)
        let pidfd = process::pidfd_open(tid, tid != subject.pid);
        Holder::new((subject, known), tid, pidfd)
    }

    /// The sentry itself, as far as its descriptors came from `subject`.
    fn sentry(subject: &Subject<'_>, known: &Known) -> Result<Holder, SaveError> {
        let pid = std::process::id() as i32;
        let mut holder = Holder::new((subject, known), pid, process::pidfd_open(pid, false))?;
        holder.name = format!("a message to {}", holder.name);
        Ok(holder)
    }

    fn new(
        (subject, known): (&Subject<'_>, &Known),
        tid: i32,
        pidfd: Result<OwnedFd, Errno>,
    ) -> Result<Holder, SaveError> {
        let name = subject.name();
        let pidfd = pidfd
            .map_err(|errno| SaveError::failed(format!("cannot hold {name}"), errno.desc()))?;
        let path = known.view_of(subject.hand.tid());
        let root = open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let root = root.map_err(|errno| {
            SaveError::failed(format!("cannot open the root of {name}"), errno.desc())
        })?;
        Ok(Holder { tid, pidfd, root: Arc::new(root), name: name.to_owned() })
    }

    fn path(&self, what: &str, fd: RawFd) -> String {
        format!("/proc/{}/{what}/{fd}", self.tid)
    }

    /// What is wrong with a descriptor.
    fn failed(&self, fd: RawFd, what: &str, why: impl std::fmt::Display) -> SaveError {
        SaveError::failed(format!("cannot {what} of descriptor {fd} of {}", self.name), why)
    }

    fn failed_with(&self, fd: RawFd, what: &'static str) -> impl Fn(Errno) -> SaveError {
        let who = format!("cannot {what} of descriptor {fd} of {}", self.name);
        move |errno| SaveError::failed(&who, errno.desc())
    }

    /// `what` is held under `fd` and cannot be saved; close it first.
    fn refused(&self, fd: RawFd, what: &str) -> SaveError {
        SaveError::refused(format!(
            "{} holds {what} (descriptor {fd}), which cannot be saved; close it first",
            self.name
        ))
    }

    /// The numbers that are in use.
    fn numbers(&self) -> Result<Vec<RawFd>, SaveError> {
        let path = format!("/proc/{}/fd", self.tid);
        let what = || format!("cannot list the descriptors of {}", self.name);
        let entries = std::fs::read_dir(path).map_err(|error| SaveError::failed(what(), error))?;
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| SaveError::failed(what(), error))?.file_name();
            all.extend(name.to_str().and_then(|it| it.parse::<RawFd>().ok()));
        }
        all.sort_unstable();
        Ok(all)
    }

    fn information(&self, fd: RawFd) -> Result<FdInfo, SaveError> {
        let text = generated::text(self.path("fdinfo", fd))
            .map_err(|error| self.failed(fd, "read the state", error))?;
        FdInfo::parse(text).ok_or_else(|| self.failed(fd, "read the state", "it is not understood"))
    }

    fn look_at(&self, fd: RawFd) -> Result<Found, SaveError> {
        let path = self.path("fd", fd);
        let link = std::fs::read_link(&path)
            .map_err(|error| self.failed(fd, "read the name", error))?
            .into_os_string()
            .into_vec();
        // (The link leads to the inode itself, whatever its name leads to: proc_pid_get_link.)
        let stat = std::fs::metadata(path)
            .map_err(|error| self.failed(fd, "read the attributes", error))?;
        Ok(Found { fd, info: self.information(fd)?, link, stat })
    }

    /// A copy of a descriptor.
    fn copy(&self, fd: RawFd) -> Result<OwnedFd, SaveError> {
        descriptors::copy(self.pidfd.as_fd(), fd).map_err(self.failed_with(fd, "get a copy"))
    }

    /// What it stands for, opened once more.
    fn reopen(&self, fd: RawFd, flags: OFlag) -> Result<OwnedFd, SaveError> {
        open(self.path("fd", fd).as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(self.failed_with(fd, "read the content"))
    }
}

impl Capture<'_, '_> {
    fn place(&self, found: &Found) -> descriptors::Place {
        (self.holder.tid, found.fd)
    }

    /// The index of the description that a descriptor stands for.
    fn description(&mut self, found: &Found) -> Result<u32, SaveError> {
        let compared = self.holder.failed_with(found.fd, "compare the description");
        let place = self.place(found);
        let known = self.collector.known.find(found.inode(), place).map_err(compared)?;
        let stream = self.streams.stands_for(self.holder, found)?;
        let file = match (known, stream) {
            // One description may stand for several streams, and each is given back by itself.
            (_, Some((stream, false))) => self.stream(found, stream)?,
            (Ok(file), _) => file,
            (Err(_), stream) => {
                let kind = match stream {
                    Some((stream, reopened)) => self.streams.kind(stream, reopened),
                    None => match self.streams.given_later(found) {
                        // (Devices are those of the guest's own /dev. Of a pipe it is not known yet whether
                        // anybody has its other end.)
                        Some(stream) if is_theirs(found) => FileKind::LaterStream(stream),
                        given => self.kind(found, given)?,
                    },
                };
                self.flush(found, &kind)?;
                self.add(found, kind)?
            }
        };
        if let (Err(at), true) = (known, self.collector.files.len() > file as usize) {
            self.collector.known.insert(found.inode(), at, place, file);
        }
        self.note_process_locks(found, file)?;
        Ok(file)
    }

    /// What is written to it is on the disk from here on, if it is a file that the image only names.
    fn flush(&mut self, found: &Found, kind: &FileKind) -> Result<(), SaveError> {
        let is_named = matches!(kind, FileKind::Path { .. }) || kind.is_stream();
        let is_written = is_named && found.stat.is_file() && found.access()[1];
        if !is_written || !self.collector.synced.is_new(found.inode()) {
            return Ok(());
        }
        let file = self.holder.copy(found.fd)?;
        let shown = String::from_utf8_lossy(&found.link);
        super::flush::sync(file.as_fd(), &self.holder.name, &shown)
    }

    fn stream(&mut self, found: &Found, stream: u32) -> Result<u32, SaveError> {
        if let Some(file) = self.collector.known.streams.get(&stream) {
            return Ok(*file);
        }
        let file = self.add(found, self.streams.kind(stream, false))?;
        self.collector.known.streams.insert(stream, file);
        Ok(file)
    }

    /// A new entry.
    fn add(&mut self, found: &Found, kind: FileKind) -> Result<u32, SaveError> {
        let mut locks = Vec::new();
        for held in found.info.locks() {
            match held {
                Held::Description(on) => locks.push(lock(on, 0)),
                Held::Process(_) => {}
                Held::Other(what) => {
                    return Err(self.holder.refused(found.fd, &format!("a {what} on a file")));
                }
            }
        }
        let owner = if found.is_path_only() { None } else { self.owner(found)? };
        let flags = found.info.flags & !(libc::O_CLOEXEC as u32);
        let position = found.info.position;
        let index = self.collector.files.len() as u32;
        self.collector.files.push(OpenFile { flags, position, owner, locks, kind });
        self.expect(found, index)?;
        Ok(index)
    }

    /// POSIX locks belong to the owner of a table, and are shown for the description through which it
    /// took them (show_fd_locks in fs/locks.c).
    fn note_process_locks(&mut self, found: &Found, file: u32) -> Result<(), SaveError> {
        for held in found.info.locks() {
            let Held::Process(on) = held else { continue };
            let lock = lock(on, self.subject.guest_pid);
            let locks = &mut self.collector.files[file as usize].locks;
            if !locks.contains(&lock) {
                locks.push(lock);
            }
        }
        Ok(())
    }

    /// Who gets signals of it, as the guest numbers processes.
    fn owner(&mut self, found: &Found) -> Result<Option<(i32, i32, i32)>, SaveError> {
        let failed = self.holder.failed_with(found.fd, "read the owner");
        let copy = self.holder.copy(found.fd)?;
        let (kind, id, signal) = descriptors::owner(copy.as_fd()).map_err(&failed)?;
        if id == 0 {
            return Ok((signal != 0).then_some((kind, 0, signal)));
        }
        if self.holder.tid != self.subject.hand.tid() {
            return Err(self.holder.refused(found.fd, "a description with an owner (F_SETOWN)"));
        }
        // The guest is asked, which numbers processes as the image does.
        const F_GETOWN_EX: u64 = 16;
        let fd = found.fd as u64;
        let asked =
            self.subject.hand.call_with(libc::SYS_fcntl, &[0; 8], |at| [fd, F_GETOWN_EX, at]);
        let (_, bytes) = asked.map_err(SaveError::of(&self.holder.name))?;
        let id = <[u8; 4]>::try_from(&bytes[4..8]).map_or(0, i32::from_ne_bytes);
        Ok(Some((kind, id, signal)))
    }

    /// What it is open on. `given`: and which stream of a later program it is.
    fn kind(&mut self, found: &Found, given: Option<u32>) -> Result<FileKind, SaveError> {
        let link = String::from_utf8_lossy(&found.link).into_owned();
        if link.starts_with('/') {
            return self.on_file_system(found);
        }
        let (kind, rest) = link.split_once(':').unwrap_or((&link, ""));
        match (kind, rest) {
            ("pipe", _) => self.pipe(found, false, given).map(FileKind::Pipe),
            ("socket", _) => self.socket(found),
            ("pidfd", _) | ("anon_inode", "[pidfd]") => self.process(found),
            ("anon_inode", _) if found.is_path_only() => {
                Err(self.holder.refused(found.fd, &format!("an O_PATH descriptor of {link}")))
            }
            ("anon_inode", "[eventfd]") => self.event(found),
            ("anon_inode", "[signalfd]") => self.signals(found),
            ("anon_inode", "[timerfd]") => self.timer(found),
            // What they watch is found out at the end.
            ("anon_inode", "[eventpoll]") => Ok(FileKind::Epoll(Vec::new())),
            ("anon_inode", "inotify") => self.inotify(found),
            ("anon_inode", name) => {
                let name = name.trim_matches(['[', ']']);
                Err(self.holder.refused(found.fd, &article(objects::name(name))))
            }
            (name, _) => self.namespace(found, name, &link),
        }
    }
}

/// What cannot be but somebody else's, if it was opened through a mount of the host.
fn is_theirs(found: &Found) -> bool {
    let kind = found.stat.file_type();
    kind.is_file() || kind.is_socket() || kind.is_fifo() && found.link.starts_with(b"/")
}

/// A lock of the task `pid`, or of the description (0).
fn lock(Locked { whole, write, start, length }: Locked, pid: i32) -> Lock {
    Lock { pid, whole, write, start, length }
}

/// "an eventfd", "a pidfd".
fn article(name: &str) -> String {
    let vowel = name.starts_with(['a', 'e', 'i', 'o']);
    format!("{} {name}", if vowel { "an" } else { "a" })
}

#[cfg(test)]
pub(crate) mod tests;
