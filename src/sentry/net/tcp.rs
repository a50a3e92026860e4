//! TCP connections, made by the sentry.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;

use super::guest_socket::GuestSocket;
use super::metered::{self, Metered};
use super::rule::Transport;
use super::unhurried::Unhurried;
use super::{Asked, Network, Said, Verdict, address, options};
use crate::notify::Answer;
use crate::sentry::block::Interrupted;
use crate::sentry::call::TaskCall;
use crate::sys::{descriptors, errno_of, files, ready, socket};

/// Serves connect(2) of a stream socket of the internet. `wanted`: the address as the guest gave it, copied once.
pub async fn connect(call: &TaskCall, net: &Network, own: GuestSocket, wanted: &[u8]) -> Answer {
    let Some(target) = address::parse(wanted) else { return other(call, net, own, wanted) };
    let (verdict, rule) = net.judge(target, Transport::Tcp);
    match verdict {
        Verdict::Outside => outside(call, net, own, target, (rule, None)).await,
        Verdict::Inside => inside(call, net, own, target).await,
        // (What was allowed once is on its way to there, whatever becomes of it.)
        // (And what is carried goes nowhere by being asked once more.)
        Verdict::Refused(_)
            if own.is_taken()
                && (net.goes_to(&own, target) || net.is_limited() && !net.is_outside(&own)) =>
        {
            on_its_way(call, net, own, target).await
        }
        Verdict::Refused(_) if own.is_taken() => Answer::Fail(Errno::EISCONN),
        Verdict::Refused(why) => {
            let why = match net.ask(call, (target, Transport::Tcp), why, true).await {
                Ok(Ok(granted)) => {
                    let answer = Some(granted.choice);
                    let answer = outside(call, net, own, target, (None, answer)).await;
                    granted.settle();
                    return answer;
                }
                Ok(Err(why)) => why,
                Err(interrupted) => return interrupted.into(),
            };
            net.refuse(&Asked::by(call), target, Transport::Tcp, why, rule);
            Answer::Fail(Errno::EACCES)
        }
    }
}

/// What is no address of the internet: AF_UNSPEC ends a connection, the rest is the kernel's to refuse.
fn other(call: &TaskCall, net: &Network, own: GuestSocket, wanted: &[u8]) -> Answer {
    let replaced = match own_network(call, net, own) {
        Ok(socket) => socket,
        Err(errno) => return Answer::Fail(errno),
    };
    let done = socket::connect(replaced.as_fd(), wanted);
    done.map(|()| 0).into()
}

/// A connection in the guests' own network.
async fn inside(call: &TaskCall, net: &Network, own: GuestSocket, target: SocketAddr) -> Answer {
    if net.is_outside(&own) && own.is_taken() {
        return Answer::Fail(Errno::EISCONN);
    }
    let waits = waits(own.fd.as_fd());
    let fd = match own_network(call, net, own) {
        Ok(fd) => fd,
        Err(errno) => return Answer::Fail(errno),
    };
    answer(dial(call, fd.as_fd(), target, waits).await)
}

/// The guest's socket if it is one of the guests' own network, else a new one, in its place.
fn own_network(call: &TaskCall, net: &Network, own: GuestSocket) -> Result<Unhurried, Errno> {
    if !net.is_outside(&own) {
        return Ok(own.fd);
    }
    put_inside(call, net, &own)
}

/// Puts a new socket of TCP, of the guests' own network, in the place of the guest's.
fn put_inside(call: &TaskCall, net: &Network, own: &GuestSocket) -> Result<Unhurried, Errno> {
    let fresh = Unhurried::from(net.inside.socket(own.family, libc::SOCK_STREAM, 0)?);
    options::copy(own.fd.as_fd(), fresh.as_fd());
    take_port(own, fresh.as_fd());
    take_status(own, fresh.as_fd())?;
    net.replace(call.trapped(), own, fresh.as_fd())?;
    Ok(fresh)
}

/// A socket that is on its way, or has come, to where it was allowed to go (which is what is recorded of it, whatever is named
/// now); or the kernel says what is wrong with it. What another thread makes of it meanwhile is connected in its own network,
/// or to what is recorded.
async fn on_its_way(
    call: &TaskCall,
    net: &Network,
    own: GuestSocket,
    target: SocketAddr,
) -> Answer {
    let recorded = if net.is_outside(&own) { net.recorded(own.fd.as_fd()) } else { None };
    let waits = waits(own.fd.as_fd());
    answer(dial(call, own.fd.as_fd(), recorded.unwrap_or(target), waits).await)
}

/// A connection in the host's network.
async fn outside(
    call: &TaskCall,
    net: &Network,
    own: GuestSocket,
    target: SocketAddr,
    said: Said,
) -> Answer {
    if own.is_taken() {
        return on_its_way(call, net, own, target).await;
    }
    if let Some(metered) = &net.metered {
        return carried(call, net, metered, own, target, said).await;
    }
    let (waits, is_outside) = (waits(own.fd.as_fd()), net.is_outside(&own));
    if is_outside && let Some(told) = failure(&own) {
        return told;
    }
    // (One that has failed does not go elsewhere itself: it stands for what is recorded of it.)
    let fresh = match socket::socket(own.family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) {
        Ok(fresh) => Unhurried::from(fresh),
        Err(errno) => return Answer::Fail(errno),
    };
    net.begin(call.received().tid, target, said, fresh.as_fd());
    take_over(&own, fresh.as_fd());
    let first = socket::connect(fresh.as_fd(), &address::bytes(target));
    let outcome = wait(call, fresh.as_fd(), target, first, waits).await;
    let is_on_its_way = matches!(outcome, Ok(Ok(()) | Err(Errno::EINPROGRESS)) | Err(_));
    if is_on_its_way {
        let placed = take_status(&own, fresh.as_fd())
            .and_then(|()| net.replace(call.trapped(), &own, fresh.as_fd()));
        if let Err(errno) = placed {
            return Answer::Fail(errno);
        }
        net.admitted(&call.kernel, call.received().tid, target, Transport::Tcp);
    }
    answer(outcome)
}

/// A connection in the host's network that the sentry carries, since what it carries is limited.
async fn carried(
    call: &TaskCall,
    net: &Network,
    metered: &Metered,
    own: GuestSocket,
    target: SocketAddr,
    said: Said,
) -> Answer {
    if metered.meter().is_used_up() {
        net.refuse_more(metered, call.received().tid, target, Transport::Tcp, said.0);
        return Answer::Fail(Errno::EACCES);
    }
    let waits = waits(own.fd.as_fd());
    let begun = own_plain(call, net, own).and_then(|own| {
        if let Some(told) = failure(&own) {
            return Ok(Err(told));
        }
        let bytes = address::bytes(target);
        let tid = call.received().tid;
        let begun = begin_carried((net, metered), tid, &own, (target, &bytes), said)?;
        Ok(Ok((begun, own)))
    });
    match begun {
        Ok(Ok((Err(Errno::EINPROGRESS), own))) => {
            net.admitted(&call.kernel, call.received().tid, target, Transport::Tcp);
            if waits.is_none() {
                return Answer::Fail(Errno::EINPROGRESS);
            }
            answer(dial(call, own.fd.as_fd(), target, waits).await)
        }
        Ok(Ok((other, _))) => other.map(|()| 0).into(),
        Ok(Err(told)) => told,
        Err(errno) => Answer::Fail(errno),
    }
}

/// Begins a connection to `target`, which `bytes` are for sockets of this family, that the sentry carries from a guest's
/// socket of TCP. Gives what connect(2) says to the guest; an error: nothing was begun.
pub(super) fn begin_carried(
    (net, metered): (&Network, &Metered),
    tid: i32,
    own: &GuestSocket,
    (target, bytes): (SocketAddr, &[u8]),
    said: Said,
) -> Result<Result<(), Errno>, Errno> {
    let place = metered.place()?;
    let outer = socket::socket(own.family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    net.begin(tid, target, said, outer.as_fd());
    metered::prepare(own, outer.as_fd())?;
    under_way(socket::connect(outer.as_fd(), bytes))?;
    let begin = || try_to(own.fd.as_fd(), bytes);
    Ok(metered.begin(own.fd.as_fd(), outer, target, place, begin))
}

/// A connection that was begun without waiting is no failure.
pub(super) fn under_way(begun: Result<(), Errno>) -> Result<(), Errno> {
    match begun {
        Err(Errno::EINPROGRESS) => Ok(()),
        done => done,
    }
}

/// The guest's socket if it is one of TCP alone; else, in its place, a new one that is. (MPTCP would ask for more than one way.)
fn own_plain(call: &TaskCall, net: &Network, own: GuestSocket) -> Result<GuestSocket, Errno> {
    if own.protocol == libc::IPPROTO_TCP {
        return Ok(own);
    }
    let fd = put_inside(call, net, &own)?;
    let inode = files::identity(fd.as_fd())?.1;
    Ok(GuestSocket { fd, protocol: libc::IPPROTO_TCP, inode, ..own })
}

/// What connect(2) says of a socket without a connection before it begins another one. An address that is too short is
/// looked at only where one can be begun (__inet_stream_connect in net/ipv4/af_inet.c, tcp_v4_connect, tcp_v6_connect).
fn failure(own: &GuestSocket) -> Option<Answer> {
    match socket::connect(own.fd.as_fd(), &(own.family as u16).to_ne_bytes()) {
        Err(Errno::EINVAL) => {}
        told => return Some(told.map(|()| 0).into()),
    }
    // (Or a security module has looked first: selinux_socket_connect_helper. What a shutdown leaves is told to nobody:
    // tcp_disconnect in net/ipv4/tcp.c.)
    let error = socket::option(own.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 4).ok()?;
    let error = Errno::from_raw(i32::from_ne_bytes(error.try_into().ok()?));
    let is_none = [Errno::UnknownErrno, Errno::ECONNRESET].contains(&error);
    (!is_none).then_some(Answer::Fail(error))
}

/// How a connection was begun, if the guest has not been interrupted before.
type Dialled = Result<Result<(), Errno>, Interrupted>;

fn answer(dialled: Dialled) -> Answer {
    match dialled {
        Ok(done) => done.map(|()| 0).into(),
        Err(interrupted) => interrupted.into(),
    }
}

/// Gives a new socket of the host's network what the guest has told its own, but for [`take_status`].
pub(super) fn take_over(own: &GuestSocket, fresh: BorrowedFd<'_>) {
    options::copy_outside(own.fd.as_fd(), fresh, own.family);
    take_port(own, fresh);
}

/// Has a new socket come from the port that the guest has bound its own to.
fn take_port(own: &GuestSocket, fresh: BorrowedFd<'_>) {
    // A port below these would say something of who connects (rcmd(3)).
    const LOWEST: u16 = 1024;
    let port = own.port();
    if port >= LOWEST {
        // (Where the host has it in use, the connection comes from another one.)
        let _ = socket::bind(fresh, &address::bytes(address::any(own.family, port)));
    }
}

/// Has a new socket wait, or not, as the guest's own does.
fn take_status(own: &GuestSocket, fresh: BorrowedFd<'_>) -> Result<(), Errno> {
    let status = descriptors::status(own.fd.as_fd())?;
    descriptors::set_status(fresh, status & (libc::O_NONBLOCK | libc::O_APPEND))
}

/// How long a guest is ready to wait for its socket: `None`: not at all.
fn waits(fd: BorrowedFd<'_>) -> Option<Duration> {
    let status = descriptors::status(fd).unwrap_or(0);
    if status & libc::O_NONBLOCK != 0 {
        return None;
    }
    // struct timeval (socket(7)); zero: for ever.
    let time = socket::option(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, 16).unwrap_or_default();
    let half = |at: usize| {
        time.get(at..at + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_ne_bytes)
    };
    match Duration::from_secs(half(0)) + Duration::from_micros(half(8)) {
        Duration::ZERO => Some(Duration::MAX),
        time => Some(time),
    }
}

/// Connects, and waits as long as the guest does.
async fn dial(
    call: &TaskCall,
    fd: BorrowedFd<'_>,
    target: SocketAddr,
    waits: Option<Duration>,
) -> Dialled {
    let first = try_to(fd, &address::bytes(target));
    wait(call, fd, target, first, waits).await
}

/// Waits for a connection that was begun, as long as the guest does. Asked once more, the kernel tells how it went
/// (__inet_stream_connect in net/ipv4/af_inet.c), which is also what a call that is made again after a signal finds.
async fn wait(
    call: &TaskCall,
    fd: BorrowedFd<'_>,
    target: SocketAddr,
    first: Result<(), Errno>,
    waits: Option<Duration>,
) -> Dialled {
    let is_begun = |done| matches!(done, Err(Errno::EINPROGRESS | Errno::EALREADY));
    let Some(longest) = waits.filter(|_| is_begun(first)) else { return Ok(first) };
    // What is on this machine has answered already, and the kernel looks at it as the first call ends (release_sock in
    // net/core/sock.c).
    let bytes = address::bytes(target);
    let second = try_to(fd, &bytes);
    if !is_begun(second) {
        return Ok(second);
    }
    let connected = async {
        let copy = fd.try_clone_to_owned().map_err(|error| errno_of(&error))?;
        let ready = ready::watch_writable(copy).map_err(|error| errno_of(&error))?;
        loop {
            let mut guard = ready.writable().await.map_err(|error| errno_of(&error))?;
            match try_to(fd, &bytes) {
                done if is_begun(done) => guard.clear_ready(),
                done => return done,
            }
        }
    };
    if longest == Duration::MAX {
        return call.block(connected).await;
    }
    // (A wait that is over says what a socket that does not wait says: inet_wait_for_connect.)
    let bounded = tokio::time::timeout(longest, connected);
    call.block(async { bounded.await.unwrap_or(Err(Errno::EINPROGRESS)) }).await
}

/// connect(2) that does not wait. The guest's socket is told so for a moment: one that has no connection yet has nothing
/// that anybody could wait for otherwise.
fn try_to(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let status = descriptors::status(fd)?;
    let waits = status & libc::O_NONBLOCK == 0;
    if waits {
        descriptors::set_status(fd, status | libc::O_NONBLOCK)?;
    }
    let done = socket::connect(fd, bytes);
    if waits {
        descriptors::set_status(fd, status)?;
    }
    done
}
