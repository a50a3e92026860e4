//! Open file descriptions, made again, each once, and the tables of processes that hold them.
//!
//! The maker makes them by calls that the guest could have made itself: it has put its capabilities
//! away meanwhile but for those of the guest's, so that an image opens nothing that the guest's user may not. What they have in
//! common (offset, flags, locks) the sentry sets through its own copy. Sockets, terminals and message
//! queues are other modules'.

mod elsewhere;
mod identity;
mod objects;
mod paths;
mod pipes;
mod streams;
mod table;
mod watching;

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

pub use identity::{FilesPolicy, check as check_identity};
pub use paths::shared_memory;
pub use streams::RestoreStreams;
pub use table::{close_courier, hard_limit, install_table, take_locks};

use super::maker::Maker;
use crate::save::error::RestoreError;
use crate::save::state::{FileKind, OpenFile};
use crate::sys::descriptors;

/// Flags that open(2) takes for an existing file; the others only say how it comes about.
const NOT_AGAIN: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY;

/// Flags of F_SETFL (setfl in fs/fcntl.c), but for O_ASYNC.
const STATUS: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

/// Makes the descriptions that need no process to exist: all but those that [`make_late_files`] makes.
///
/// The trees of the guest's own file systems are there (their content need not be).
pub fn make_files(
    maker: &mut Maker<'_>,
    streams: &RestoreStreams,
    policy: FilesPolicy,
) -> Result<(), RestoreError> {
    let sandbox = maker.sandbox;
    maker.files.resize_with(sandbox.files.len(), || None);
    let privileges = maker.put_capabilities_away()?;
    let mut unnamed = paths::Unnamed::default();
    let mut pipes = pipes::make(maker)?;
    elsewhere::make_first(maker)?;
    for (index, file) in sandbox.files.iter().enumerate() {
        if maker.files[index].is_some() || is_late(file) {
            continue;
        }
        let made = match &file.kind {
            FileKind::Path { path, identity, fifo } => {
                if let Some(pipe) = fifo {
                    pipes.fifo(maker, *pipe, path)?;
                }
                let made = maker.open_path(path, file)?;
                identity::check_open(sandbox, &made, path, identity, file.flags, policy)?;
                made
            }
            FileKind::Deleted { .. } => unnamed.make(maker, file)?,
            FileKind::Stream { stream, reopened, .. } => {
                streams.make(maker, *stream, *reopened, file)?
            }
            FileKind::LaterStream(stream) => streams.of_later(maker, *stream, file)?,
            FileKind::OwnTerminal => streams.own_terminal(file)?,
            FileKind::Memory(index) => maker.memory(*index, file)?,
            FileKind::Pipe(pipe) => pipes.end(maker, *pipe, file)?,
            FileKind::Event(value, semaphore) => maker.event(*value, *semaphore, file)?,
            FileKind::Signals(mask) => maker.signals(*mask, file)?,
            FileKind::Timer { .. } => maker.timer(file)?,
            FileKind::Inotify(..) => maker.inotify(file)?,
            kind => elsewhere::make(maker, index, kind)?,
        };
        common(&made, file)?;
        maker.files[index] = Some(made);
    }
    unnamed.finish(maker)?;
    // (Other ends that no guest holds are closed: the others see that.)
    maker.devices = pipes.devices(sandbox)?;
    maker.take_capabilities_back(privileges)
}

/// Makes the rest, once all processes and threads exist: descriptors of processes, files of theirs in
/// /proc, and epoll descriptions, which watch others. Then says who gets signals of which.
pub fn make_late_files(maker: &mut Maker<'_>, policy: FilesPolicy) -> Result<(), RestoreError> {
    let sandbox = maker.sandbox;
    let privileges = maker.put_capabilities_away()?;
    for (index, file) in sandbox.files.iter().enumerate().filter(|(_, file)| is_late(file)) {
        if maker.files.get(index).is_some_and(Option::is_some) {
            continue;
        }
        let made = match &file.kind {
            FileKind::Path { path, identity, .. } => {
                let made = maker.open_path(path, file)?;
                identity::check_open(sandbox, &made, path, identity, file.flags, policy)?;
                made
            }
            FileKind::Pid(pid, thread) => maker.pidfd(*pid, *thread, file)?,
            FileKind::Namespace(name) => maker.namespace(name, file)?,
            FileKind::Epoll(_) => maker.epoll()?,
            _ => continue,
        };
        common(&made, file)?;
        maker.files[index] = Some(made);
    }
    maker.watch_epolls()?;
    maker.watch_files();
    for (index, file) in sandbox.files.iter().enumerate() {
        if file.owner.is_some() || file.flags as i32 & libc::O_ASYNC != 0 {
            maker.set_owner(index, file)?;
        }
    }
    maker.take_capabilities_back(privileges)
}

/// Whether a description needs processes to exist, or all other descriptions.
fn is_late(file: &OpenFile) -> bool {
    match &file.kind {
        FileKind::Pid(..) | FileKind::Epoll(_) | FileKind::Namespace(_) => true,
        // (Such a file system may be shown at other places, too.)
        FileKind::Path { path, .. } => {
            path.windows(7).any(|it| it.starts_with(b"/proc/") && it[6].is_ascii_digit())
        }
        _ => false,
    }
}

/// What all kinds have in common.
fn common(made: &OwnedFd, file: &OpenFile) -> Result<(), RestoreError> {
    let flags = file.flags as i32;
    if flags & libc::O_PATH != 0 || file.kind.is_stream() {
        return Ok(());
    }
    if file.position > 0
        && matches!(
            file.kind,
            FileKind::Path { .. } | FileKind::Deleted { .. } | FileKind::Memory(_)
        )
    {
        lseek64(made.as_fd(), file.position as i64, Whence::SeekSet).map_err(|errno| {
            RestoreError::failed(
                format!("cannot set the offset of {}", describe(file)),
                errno.desc(),
            )
        })?;
    }
    let has =
        descriptors::status(made.as_fd()).map_err(|errno| failed("read the flags", file)(errno))?;
    if has & STATUS != flags & STATUS {
        descriptors::set_status(made.as_fd(), flags & STATUS)
            .map_err(failed("set the flags", file))?;
    }
    for lock in file.locks.iter().filter(|it| it.pid == 0) {
        descriptors::lock(made.as_fd(), lock.whole, lock.write, (lock.start, lock.length))
            .map_err(failed("lock", file))?;
    }
    Ok(())
}

fn failed(what: &str, file: &OpenFile) -> impl Fn(nix::errno::Errno) -> RestoreError {
    let what = format!("cannot {what} of {}", describe(file));
    move |errno| RestoreError::failed(&what, errno.desc())
}

/// A description, for complaints.
fn describe(file: &OpenFile) -> String {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    match &file.kind {
        FileKind::Path { path, .. } => shown(path),
        FileKind::Deleted { path, .. } => format!("{} (deleted)", shown(path)),
        FileKind::Stream { stream, .. } => format!("standard stream {stream}"),
        FileKind::LaterStream(stream) => format!("standard stream {stream} of a later program"),
        FileKind::OwnTerminal => "the terminal".to_owned(),
        FileKind::ControllingTerminal => "/dev/tty".to_owned(),
        FileKind::Memory(_) => "a memfd".to_owned(),
        FileKind::Pipe(_) => "a pipe".to_owned(),
        FileKind::Event(..) => "an eventfd".to_owned(),
        FileKind::Signals(_) => "a signalfd".to_owned(),
        FileKind::Timer { .. } => "a timerfd".to_owned(),
        FileKind::Epoll(_) => "an epoll descriptor".to_owned(),
        FileKind::Inotify(..) => "an inotify descriptor".to_owned(),
        FileKind::Pid(pid, _) => format!("a pidfd of process {pid}"),
        FileKind::Socket(_) => "a socket".to_owned(),
        FileKind::PtyMaster(_) | FileKind::PtySlave(_) => "a pseudo-terminal".to_owned(),
        FileKind::MessageQueue(name) => format!("the message queue {}", shown(name)),
        FileKind::Namespace(name) => format!("a {name} namespace"),
    }
}

/// Capabilities that the maker has put away: those it may take back.
#[must_use]
struct Privileges([u32; 2]);

/// struct __user_cap_header_struct of version 3, for the caller.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

impl Maker<'_> {
    /// Has work done with all the capabilities that the maker has in the sandbox's namespaces, also while they are put
    /// away. It must not touch what an image names in the guest's view.
    pub(super) fn with_capabilities<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, RestoreError> {
        self.with_effective(|permitted| permitted, work)
    }

    /// Has work done with those that guests have.
    pub(super) fn without_capabilities<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, RestoreError> {
        let kept = self.sandbox.capabilities();
        self.with_effective(|permitted| kept_of(kept, permitted), work)
    }

    fn with_effective<T>(
        &mut self,
        chosen: impl FnOnce([u32; 2]) -> [u32; 2],
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, RestoreError> {
        let [effective, permitted, inheritable] = self.capabilities()?;
        self.set_capabilities(chosen(permitted), permitted, inheritable)?;
        let done = work(self);
        self.set_capabilities(effective, permitted, inheritable)?;
        Ok(done)
    }

    fn put_capabilities_away(&mut self) -> Result<Privileges, RestoreError> {
        let [_, permitted, inheritable] = self.capabilities()?;
        let effective = kept_of(self.sandbox.capabilities(), permitted);
        self.set_capabilities(effective, permitted, inheritable)?;
        Ok(Privileges(permitted))
    }

    /// The maker's: effective, permitted, inheritable.
    fn capabilities(&mut self) -> Result<[[u32; 2]; 3], RestoreError> {
        let mut table = self.hand.table();
        let head = table.data(&halves(&CAPABILITIES));
        let sets = table.room(24);
        table.call(libc::SYS_capget, [head.address, sets.address]);
        let done = self.hand.run(&table).map_err(RestoreError::of("the maker"))?;
        Ok([0, 1, 2].map(|set| [done.half(sets, set), done.half(sets, set + 3)]))
    }

    fn take_capabilities_back(&mut self, privileges: Privileges) -> Result<(), RestoreError> {
        self.set_capabilities(privileges.0, privileges.0, [0; 2])
    }

    fn set_capabilities(
        &mut self,
        effective: [u32; 2],
        permitted: [u32; 2],
        inheritable: [u32; 2],
    ) -> Result<(), RestoreError> {
        let mut table = self.hand.table();
        let head = table.data(&halves(&CAPABILITIES));
        let both = [0, 1].map(|at| [effective[at], permitted[at], inheritable[at]]);
        let sets = table.data(&halves(both.as_flattened()));
        table.call(libc::SYS_capset, [head.address, sets.address]);
        self.hand.run(&table).map_err(RestoreError::of("the maker")).map(drop)
    }

    /// Opens a file of the guest's view by name, as a description says.
    fn open_path(&mut self, path: &[u8], file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        let flags = file.flags as i32 & !NOT_AGAIN | libc::O_NOCTTY | libc::O_CLOEXEC;
        // An end of a FIFO waits for the other one. (Put right with the rest of the flags.)
        let waits = matches!(file.kind, FileKind::Path { fifo: Some(_), .. });
        let flags = if waits { flags | libc::O_NONBLOCK } else { flags };
        self.open(path, flags, 0).map_err(|error| match error.errno() {
            Some(Errno::ENOENT | Errno::ENOTDIR) => RestoreError::refused(format!(
                "{}, which a process had open, is not there any more; put it back",
                describe(file)
            )),
            _ => RestoreError::of(format_args!("cannot open {}", describe(file)))(error),
        })
    }

    /// Opens what a descriptor stands for once more.
    fn reopen(&mut self, fd: impl AsFd, file: &OpenFile) -> Result<OwnedFd, RestoreError> {
        let mut flags = file.flags as i32 & !NOT_AGAIN & !libc::O_NOFOLLOW;
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            flags &= !libc::O_TMPFILE;
        }
        let flags = flags | libc::O_NOCTTY | libc::O_CLOEXEC;
        let number = self.give(fd).map_err(RestoreError::of("the maker"))?;
        let made = self.open(format!("/proc/self/fd/{number}").as_bytes(), flags, 0);
        self.close(number)?;
        made.map_err(RestoreError::of(format_args!("cannot open {}", describe(file))))
    }

    /// Makes a call that gives a descriptor, and moves that to the sentry.
    fn make<const N: usize>(
        &mut self,
        file: &OpenFile,
        number: libc::c_long,
        arguments: [u64; N],
    ) -> Result<OwnedFd, RestoreError> {
        let what = format!("cannot make {}", describe(file));
        let fd = self.hand.call(number, arguments).map_err(RestoreError::of(&what))?;
        self.take_and_close(fd as i32).map_err(RestoreError::of(&what))
    }

    fn close(&mut self, fd: i32) -> Result<(), RestoreError> {
        self.hand
            .call(libc::SYS_close, [fd as u64])
            .map_err(RestoreError::of("the maker"))
            .map(drop)
    }

    /// A description that must have been made.
    fn made(&self, index: u32) -> Result<&OwnedFd, RestoreError> {
        self.files.get(index as usize).and_then(Option::as_ref).ok_or_else(|| {
            RestoreError::refused(format!(
                "the image names an open file ({index}) that it does not have"
            ))
        })
    }
}

/// Of these, what programs keep.
fn kept_of(kept: u64, permitted: [u32; 2]) -> [u32; 2] {
    [kept as u32 & permitted[0], (kept >> 32) as u32 & permitted[1]]
}

fn halves(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|it| it.to_ne_bytes()).collect()
}
