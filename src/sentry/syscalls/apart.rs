//! What namespaces keep apart elsewhere, in a run that lives in the host's (`--walls landlock`).
//!
//! A call that names a process of the host by number is let through where the number is the caller's own: that one
//! is alive, so nobody else can get it. A call that names a socket in memory is made by the sentry, on the guest's own
//! socket. An ioctl is let through by its request, which is in a register.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};

use super::args::{Addr, InOut, Out};
use super::args::{
    AtFlags, CpuMask, DirFd, Fd, Flags, In, Int, IoctlRequest, IpcId, Operation, Path, Pid,
    Resource, Rlimit, SchedAttr, SchedParam, SchedPolicy, SemBuf, SockAddr, Timespec, UInt,
};
use super::{kept, network, timeouts};
use crate::notify::{Answer, Descriptor, hand_over};
use crate::sentry::Features;
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::paths::Start;
use crate::sentry::task::{Status, copy_descriptor};
use crate::sys::files::descriptor_path;
use crate::sys::seccomp::Place;
use crate::sys::{ready, socket, terminal};

/// include/uapi/linux/ioprio.h
const IOPRIO_WHO_PROCESS: c_int = 1;
const IOPRIO_WHO_PGRP: c_int = 2;
const IOPRIO_WHO_USER: c_int = 3;

/// Serves semtimedop(2).
pub fn semtimedop(
    call: &Call<'_>,
    semid: IpcId,
    sops: In<SemBuf>,
    nsops: UInt,
    timeout: In<Timespec>,
) -> Answer {
    match kept::are_ours(call) {
        // As semop(2), by its row.
        true => Answer::Fail(Errno::ENOSYS),
        false => timeouts::semtimedop(call, semid, sops, nsops, timeout),
    }
}

/// Whether `pid` is the caller's own.
fn own(call: &Call<'_>, pid: i32) -> Answer {
    let tid = call.received().tid;
    let is_own = pid == 0 || pid == tid || Status::read(tid).is_ok_and(|it| it.tgid == pid);
    if is_own && call.trapped().is_valid() {
        return Answer::Continue;
    }
    Answer::Fail(Errno::EPERM)
}

/// Serves sched_setparam(2).
pub fn sched_setparam(call: &Call<'_>, pid: Pid, _param: In<SchedParam>) -> Answer {
    own(call, pid.0)
}

/// Serves sched_setscheduler(2).
pub fn sched_setscheduler(
    call: &Call<'_>,
    pid: Pid,
    _policy: SchedPolicy,
    _param: In<SchedParam>,
) -> Answer {
    own(call, pid.0)
}

/// Serves sched_setattr(2).
pub fn sched_setattr(call: &Call<'_>, pid: Pid, _attr: InOut<SchedAttr>, _flags: Flags) -> Answer {
    own(call, pid.0)
}

/// Serves sched_setaffinity(2).
pub fn sched_setaffinity(call: &Call<'_>, pid: Pid, _size: UInt, _mask: In<CpuMask>) -> Answer {
    own(call, pid.0)
}

/// Serves prlimit(2).
pub fn prlimit64(
    call: &Call<'_>,
    pid: Pid,
    _resource: Resource,
    _new: In<Rlimit>,
    _old: Out<Rlimit>,
) -> Answer {
    own(call, pid.0)
}

/// Serves setpriority(2). All processes of the user are the host's too.
pub fn set_priority(call: &Call<'_>, which: Operation, who: Int, _priority: Int) -> Answer {
    match which.0 as u32 {
        libc::PRIO_PROCESS => own(call, who.0),
        // The caller's own group lies in a session of the sandbox's.
        libc::PRIO_PGRP if who.0 == 0 => Answer::Continue,
        libc::PRIO_PGRP | libc::PRIO_USER => Answer::Fail(Errno::EPERM),
        _ => Answer::Fail(Errno::EINVAL),
    }
}

/// Serves ioprio_set(2).
pub fn set_io_priority(call: &Call<'_>, which: Operation, who: Int, _priority: Int) -> Answer {
    match which.0 {
        IOPRIO_WHO_PROCESS => own(call, who.0),
        IOPRIO_WHO_PGRP if who.0 == 0 => Answer::Continue,
        IOPRIO_WHO_PGRP | IOPRIO_WHO_USER => Answer::Fail(Errno::EPERM),
        _ => Answer::Fail(Errno::EINVAL),
    }
}

/// Requests that file systems know for descriptors that are open for reading, and that change nothing, or change
/// only what the descriptor itself was opened to write.
const HARMLESS: &[u32] = &[
    0x4004_9409, // FICLONE
    0x4020_940d, // FICLONERANGE
    0x8008_6601, // FS_IOC_GETFLAGS
    0xc020_660b, // FS_IOC_FIEMAP
    0x8008_7601, // FS_IOC_GETVERSION
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x8100_9431, // FS_IOC_GETFSLABEL
];

/// Serves requests of the types that file systems use: Landlock looks at those of devices alone, and some make,
/// remove or change files by a descriptor that is open for reading (BTRFS_IOC_SNAP_DESTROY, FS_IOC_SETFLAGS).
pub fn ioctl(_call: &Call<'_>, _fd: Fd, request: IoctlRequest, _arg: Addr) -> Answer {
    match HARMLESS.contains(&request.0) {
        true => Answer::Continue,
        // What file systems answer that do not know it.
        false => Answer::Fail(Errno::ENOTTY),
    }
}

/// Serves ioctl(2) with TIOCGPTPEER: the other end of a pty that the guest has made. Landlock has no rule for it,
/// since it came to be later.
pub fn open_peer(call: &Call<'_>, fd: Fd, _request: IoctlRequest, flags: Addr) -> Answer {
    let master = match copy(call.received().tid, fd.0) {
        Ok(master) => master,
        Err(errno) => return Answer::Fail(errno),
    };
    if !call.trapped().is_valid() {
        return Answer::Fail(Errno::ESRCH);
    }
    match terminal::open_slave(master.as_fd()) {
        Ok(fd) => {
            let cloexec = flags.0 as i32 & libc::O_CLOEXEC != 0;
            Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: false })
        }
        Err(errno) => Answer::Fail(errno),
    }
}

/// Serves inotify_add_watch(2): not for what is hidden, whose names would show.
pub fn inotify_add_watch(call: &Call<'_>, fd: Fd, path: Path, mask: Flags) -> Answer {
    hand_over();
    let follows = mask.0 & libc::IN_DONT_FOLLOW == 0;
    let flags = if follows { 0 } else { libc::AT_SYMLINK_NOFOLLOW as u32 };
    let done = kept::as_guest(|| {
        let file = kept::find(call, DirFd(libc::AT_FDCWD), path, AtFlags(flags))?;
        let inotify = copy(call.received().tid, fd.0)?;
        if !call.trapped().is_valid() {
            return Err(Errno::ESRCH);
        }
        if !call.kernel.grounds().is_some_and(|grounds| grounds.may_see(&file)) {
            return Err(Errno::EACCES);
        }
        let mask = mask.0 & !libc::IN_DONT_FOLLOW;
        crate::sys::attributes::watch(inotify.as_fd(), file.as_fd(), mask)
    });
    done.map(i64::from).into()
}

/// Serves connect(2).
pub async fn connect(call: TaskCall, sockfd: Fd, addr: In<SockAddr>, addrlen: Int) -> Answer {
    if !call.kernel.features().contains(Features::NO_NAMESPACES) {
        return network::connect(call, sockfd, addr, addrlen).await;
    }
    let prepared = {
        let call = call.as_call();
        kept::as_guest(|| prepare(&call, sockfd, addr, addrlen))
    };
    match prepared {
        Ok(Prepared { socket, address, _file }) => connect_to(&call, socket, &address).await,
        Err(errno) => Answer::Fail(errno),
    }
}

/// A connection to be made.
struct Prepared {
    socket: OwnedFd,
    address: Vec<u8>,
    /// What a path in `address` leads to.
    _file: Option<OwnedFd>,
}

/// struct sockaddr_storage.
const LONGEST_ADDRESS: usize = 128;

fn prepare(
    call: &Call<'_>,
    sockfd: Fd,
    addr: In<SockAddr>,
    addrlen: Int,
) -> Result<Prepared, Errno> {
    hand_over();
    let length = usize::try_from(addrlen.0).map_err(|_| Errno::EINVAL)?;
    if length > LONGEST_ADDRESS {
        return Err(Errno::EINVAL);
    }
    let mut address = vec![0; length];
    call.memory().read(addr.address, &mut address)?;
    let socket = copy(call.received().tid, sockfd.0)?;
    let family =
        address.first_chunk::<2>().map_or(libc::AF_UNSPEC as u16, |it| u16::from_ne_bytes(*it));
    let file = match family == libc::AF_UNIX as u16 {
        true => Some(socket_file(call, &address[2..])?),
        false => None,
    };
    if let Some(file) = &file {
        address.truncate(2);
        address.extend_from_slice(descriptor_path(file.as_fd()).to_bytes_with_nul());
    }
    match call.trapped().is_valid() {
        true => Ok(Prepared { socket, address, _file: file }),
        false => Err(Errno::ESRCH),
    }
}

/// The socket that a name leads to: one that is bound where guests may write.
fn socket_file(call: &Call<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let path = match name {
        [] => return Err(Errno::EINVAL),
        // No namespace keeps the host's abstract ones out of reach, and the sentry is not kept from them by Landlock.
        [0, ..] => return Err(Errno::ECONNREFUSED),
        name => name.split(|byte| *byte == 0).next().unwrap_or_default(),
    };
    let file = kept::found(call, Start::Directory, path, true)?;
    let format = SFlag::from_bits_truncate(fstat(file.as_fd())?.st_mode) & SFlag::S_IFMT;
    if format != SFlag::S_IFSOCK {
        return Err(Errno::ECONNREFUSED);
    }
    match call.kernel.grounds().is_some_and(|grounds| grounds.may_change(&file)) {
        true => Ok(file),
        false => {
            call.kernel.refuse(
                call.received().tid,
                "a connection to a socket of the host",
                "without namespaces only sockets in writable places are reached",
                "--rw DIR opens the socket's directory",
            );
            Err(Errno::EACCES)
        }
    }
}

/// The first look whether a full queue has room: nothing tells that it has.
const FIRST_NAP: Duration = Duration::from_micros(500);
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// Makes the connection, and waits for it where the guest's socket waits.
async fn connect_to(call: &TaskCall, socket: OwnedFd, address: &[u8]) -> Answer {
    let flags = match fcntl(&socket, FcntlArg::F_GETFL) {
        Ok(flags) => OFlag::from_bits_retain(flags),
        Err(errno) => return Answer::Fail(errno),
    };
    if flags.contains(OFlag::O_NONBLOCK) {
        return connect_now(&socket, address).map(|()| 0).into();
    }
    let mut nap = FIRST_NAP;
    loop {
        // The flag is the guest's as well, for as long as this call lasts: nobody uses a socket that is not connected.
        let _ = fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK));
        let done = connect_now(&socket, address);
        let _ = fcntl(&socket, FcntlArg::F_SETFL(flags));
        match done {
            Err(Errno::EINPROGRESS | Errno::EALREADY) => return finish(call, socket).await,
            // The queue of a unix socket is full (unix_stream_connect in net/unix/af_unix.c).
            Err(Errno::EAGAIN) => {
                if let Err(interrupted) = call.block(tokio::time::sleep(nap)).await {
                    return interrupted.into();
                }
                nap = (nap * 2).min(LONGEST_NAP);
            }
            done => return done.map(|()| 0).into(),
        }
    }
}

fn connect_now(socket: &OwnedFd, address: &[u8]) -> Result<(), Errno> {
    kept::as_guest(|| socket::connect(socket.as_fd(), address))
}

/// Waits until a connection in progress is made or has failed (connect(2), EINPROGRESS).
async fn finish(call: &TaskCall, socket: OwnedFd) -> Answer {
    let waiting = match ready::watch_writable(socket) {
        Ok(waiting) => waiting,
        Err(_) => return Answer::Fail(Errno::ENOMEM),
    };
    match call.block(waiting.writable()).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => return Answer::Fail(Errno::EIO),
        Err(interrupted) => return interrupted.into(),
    }
    let error = socket::option(waiting.get_ref().as_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 4);
    match error.map(|bytes| bytes.first_chunk::<4>().map_or(0, |it| i32::from_ne_bytes(*it))) {
        Ok(0) => Answer::Return(0),
        Ok(errno) => Answer::Fail(Errno::from_raw(errno)),
        Err(errno) => Answer::Fail(errno),
    }
}

/// A copy of a guest's descriptor. Where a filter around the sandbox refuses that, so does this: EACCES.
fn copy(tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    match copy_descriptor(tid, fd) {
        Err(Errno::EPERM | Errno::ENOSYS) => Err(Errno::EACCES),
        done => done,
    }
}
