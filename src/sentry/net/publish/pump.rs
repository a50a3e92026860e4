//! Carrying a connection's bytes from one network to the other, both ways, by splice(2): pages go from socket to socket
//! through a pipe, and nobody reads them, but for what splice(2) stops at (`fill`).
//!
//! A pipe is lent only while something is in it, so connections that say nothing hold none. What comes faster than it is
//! taken waits in the sockets, whose sender then waits too, as on any way.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use nix::unistd::{pipe2, write};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;

use super::super::meter::Way;
use super::{Course, Shared};
use crate::sys::socket;

/// Pipes that are kept for the next who needs one, and that may be large: all pipes of a user share what they may
/// take (pipe-user-pages-soft in pipe(7)).
const KEPT: usize = 32;
/// Bytes of a large one.
const LARGE: i32 = 256 << 10;
/// As much as is asked for at once; a pipe takes less.
const ROOM: usize = 1 << 20;

/// Pipes that nobody uses, all of them empty.
#[derive(Default)]
pub(super) struct Pipes {
    idle: RefCell<Vec<Pipe>>,
    /// Each that there is has one of these.
    all: Rc<()>,
}

struct Pipe {
    _one: Rc<()>,
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipes {
    fn take(&self) -> Result<Pipe, Errno> {
        if let Some(pipe) = self.idle.borrow_mut().pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let pipe = Pipe { read, write, _one: Rc::clone(&self.all) };
        if Rc::strong_count(&self.all) <= KEPT {
            // (Where it may not be, it is as large as others.)
            let _ = fcntl(&pipe.write, FcntlArg::F_SETPIPE_SZ(LARGE));
        }
        Ok(pipe)
    }

    /// Takes an empty one back.
    fn give(&self, pipe: Pipe) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < KEPT {
            idle.push(pipe);
        }
    }
}

/// Which side of a way has failed.
enum Broken {
    Source,
    Target,
}

/// How a connection came to its end.
#[derive(PartialEq, Eq)]
enum End {
    /// Both sides have said all.
    Whole,
    /// One of them broke it off.
    Broken,
}

/// Carries until both sides have ended, and ends the one as the other was.
pub(in super::super) async fn carry(outer: TcpStream, inner: TcpStream, shared: &Shared) {
    let guest_is_silent = Notify::new();
    let up = way(Way::In, &outer, &inner, shared);
    let down = async {
        let done = way(Way::Out, &inner, &outer, shared).await;
        // Should the guest be gone altogether, and not just have ended its half, the kernel inside forgets the connection
        // after a while (tcp_fin_timeout in tcp(7)); then only a question shows it.
        let _ = keep_asking(&inner);
        guest_is_silent.notify_one();
        done
    };
    let both = async {
        match tokio::try_join!(heed(up), heed(down)) {
            Ok((true, true)) => End::Whole,
            _ => End::Broken,
        }
    };
    let lost = async {
        guest_is_silent.notified().await;
        let mut course = shared.course.clone();
        // Nobody inside hears any more, and all that was said is passed on: the kernel still brings it to the other side
        // behind a close, where a reset would throw it away, and itself resets who goes on to speak.
        tokio::select! {
            _ = inner.ready(Interest::ERROR) => End::Whole,
            _ = course.wait_for(|course| *course == Course::Ending) => End::Whole,
        }
    };
    let mut course = shared.course.clone();
    let broken_off = async {
        let _ = course.wait_for(|course| *course == Course::BrokenOff).await;
        End::Broken
    };
    let end = tokio::select! {
        biased;
        end = broken_off => end,
        end = both => end,
        end = lost => end,
    };
    if end == End::Broken {
        reset(outer);
        reset(inner);
    }
}

/// Whether a way was whole; an error where the other way cannot go on either. (What a side has said before it stopped to
/// listen is still to be passed on.)
async fn heed(way: impl Future<Output = Result<(), Broken>>) -> Result<bool, ()> {
    match way.await {
        Ok(()) => Ok(true),
        Err(Broken::Target) => Ok(false),
        Err(Broken::Source) => Err(()),
    }
}

/// One way: until the source has ended, of which the target is told; or until no more may be carried.
async fn way(
    way: Way,
    source: &TcpStream,
    target: &TcpStream,
    shared: &Shared,
) -> Result<(), Broken> {
    loop {
        source.readable().await.map_err(|_| Broken::Source)?;
        let pipe = shared.pipes.take().map_err(|_| Broken::Source)?;
        let ended = loop {
            match source_into(&pipe, way, source, shared).await {
                Ok(0) => break true,
                Ok(count) => empty(&pipe, target, count, shared).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => return Err(Broken::Source),
            }
            // However fast this one is, the others have their turn.
            consume_budget().await;
        };
        shared.pipes.give(pipe);
        if ended {
            let _ = shutdown(target.as_raw_fd(), Shutdown::Write);
            return Ok(());
        }
    }
}

/// Takes what the source has, as far as it may be carried now, into an empty pipe; 0: it has ended.
async fn source_into(
    pipe: &Pipe,
    way: Way,
    source: &TcpStream,
    shared: &Shared,
) -> io::Result<usize> {
    let Some(turn) = shared.turn(way).await else {
        return source.try_io(Interest::READABLE, || fill(source, pipe, ROOM));
    };
    let most = turn.most().min(ROOM);
    if most == 0 {
        // A connection that has said all may still end as it would.
        let mut byte = [0];
        let peek = || Ok(recv(source.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK)?);
        return match source.try_io(Interest::READABLE, peek) {
            Ok(1..) => Err(Errno::EDQUOT.into()),
            other => other,
        };
    }
    let filled = source.try_io(Interest::READABLE, || fill(source, pipe, most));
    turn.pay(filled.as_ref().map_or(0, |count| *count));
    filled
}

/// Takes what the source has, `most` bytes of it, into an empty pipe; 0: it has ended.
fn fill(source: &TcpStream, pipe: &Pipe, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    match splice(source.as_fd(), None, &pipe.write, None, most, flags) {
        // In front of urgent data it stops for good, as if there were none, or no more (tcp_read_sock and tcp_splice_read
        // in net/ipv4/tcp.c); a reader gets past that.
        Ok(0) | Err(Errno::EAGAIN) => {
            let mut bytes = [0; 4096];
            let room = most.min(bytes.len());
            let count = recv(source.as_raw_fd(), &mut bytes[..room], MsgFlags::MSG_DONTWAIT)?;
            // (So much always goes into an empty pipe, at once: pipe(7).)
            Ok(if count == 0 { 0 } else { write(&pipe.write, &bytes[..count])? })
        }
        done => Ok(done?),
    }
}

/// Brings what is in the pipe, `count` bytes, to the target.
async fn empty(
    pipe: &Pipe,
    target: &TcpStream,
    count: usize,
    shared: &Shared,
) -> Result<(), Broken> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    let mut left = count;
    while left > 0 {
        let send = || Ok(splice(&pipe.read, None, target.as_fd(), None, left, flags)?);
        match target.try_io(Interest::WRITABLE, send) {
            Ok(count @ 1..) => {
                left -= count.min(left);
                shared.moved.set(shared.moved.get().wrapping_add(count as u64));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                target.writable().await.map_err(|_| Broken::Target)?;
            }
            Ok(0) | Err(_) => return Err(Broken::Target),
        }
    }
    Ok(())
}

/// Has the kernel ask a silent peer from time to time whether it is there (SO_KEEPALIVE in socket(7)).
fn keep_asking(socket: &TcpStream) -> Result<(), Errno> {
    const SECONDS: i32 = 60;
    let set = |level, name, value: i32| {
        socket::set_option(socket.as_fd(), level, name, &value.to_ne_bytes())
    };
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, SECONDS)?;
    set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, SECONDS)?;
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// Prepares a socket to be one end of a way: nothing is held back that was sent, and urgent data, which has no road of
/// its own here, is read in its place.
pub(in super::super) fn prepare(stream: &TcpStream) -> Result<(), Errno> {
    let on = 1i32.to_ne_bytes();
    socket::set_option(stream.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &on)?;
    socket::set_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, &on)
}

/// Breaks a connection off, as the other side did: its peer finds it reset (SO_LINGER in socket(7)).
pub(super) fn reset(stream: TcpStream) {
    let at_once = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    let _ = socket::set_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &at_once);
}
