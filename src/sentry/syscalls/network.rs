//! Calls that name an address, where some may be reached (`--net allow`), and what only a socket of the guests' own
//! network may do.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::args::{Fd, In, InBuf, InOut, Int, Len, MMsgHdr, MsgFlags, MsgHdr, SockAddr, UInt};
use super::reach;
use crate::notify::{Answer, GuestMemory};
use crate::sentry::Features;
use crate::sentry::block::Interrupted;
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::net::{self, GuestSocket};
use crate::sys::socket;

/// Serves connect(2).
pub async fn connect(call: TaskCall, fd: Fd, addr: In<SockAddr>, len: Int) -> Answer {
    if call.kernel.features().contains(Features::LEARN) {
        reach::note(&call.kernel, &call.memory(), addr.address, len.0.into());
    }
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    let network = std::sync::Arc::clone(network);
    let wanted = match read_address(&call.memory(), addr.address, len.0) {
        Ok(wanted) => wanted,
        Err(errno) => return Answer::Fail(errno),
    };
    let own = match GuestSocket::of(call.trapped(), fd.0) {
        Ok(own) => own,
        Err(errno) => return Answer::Fail(errno),
    };
    if own.is_tcp() {
        return net::connect(&call, &network, own, &wanted).await;
    }
    // Nothing else is ever given to a guest; and what carries streams by another protocol knows no rules.
    if network.is_outside(&own) || own.is_other_stream() {
        return Answer::Fail(Errno::EACCES);
    }
    drop(own);
    if let Some(target) = net::parse_address(&wanted)
        && let Err(interrupted) = network.carry(&call, target, true).await
    {
        return interrupted.into();
    }
    // No socket of any other kind belongs to the host's network, and one that another thread puts there meanwhile
    // cannot be connected by a guest (the module's words).
    Answer::Continue
}

/// The address of a call, copied once (move_addr_to_kernel in net/socket.c).
fn read_address(memory: &GuestMemory<'_>, at: u64, length: i32) -> Result<Vec<u8>, Errno> {
    let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
    if length > net::LONGEST {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; length];
    memory.read(at, &mut bytes)?;
    Ok(bytes)
}

/// Serves sendto(2) with an address.
pub async fn sendto(
    call: TaskCall,
    _fd: Fd,
    _buf: InBuf,
    _len: Len,
    flags: MsgFlags,
    addr: In<SockAddr>,
    len: Int,
) -> Answer {
    if call.kernel.features().contains(Features::LEARN) {
        reach::note(&call.kernel, &call.memory(), addr.address, len.0.into());
    }
    if connects_past(&call, flags) {
        return Answer::Fail(Errno::EOPNOTSUPP);
    }
    let wanted = read_address(&call.memory(), addr.address, len.0).ok();
    let target = wanted.and_then(|wanted| net::parse_address(&wanted));
    send_to(&call, target).await.map_or_else(Answer::from, |()| Answer::Continue)
}

/// Has what is sent to an address carried, if it may be.
async fn send_to(call: &TaskCall, target: Option<SocketAddr>) -> Result<(), Interrupted> {
    match call.kernel.network().zip(target) {
        Some((network, target)) => network.carry(call, target, false).await,
        None => Ok(()),
    }
}

/// Serves sendmsg(2).
pub async fn sendmsg(call: TaskCall, _fd: Fd, message: In<MsgHdr>, flags: MsgFlags) -> Answer {
    if connects_past(&call, flags) {
        return Answer::Fail(Errno::EOPNOTSUPP);
    }
    let target = reach::of_message(&call.memory(), message.address);
    send_to(&call, target).await.map_or_else(Answer::from, |()| Answer::Continue)
}

/// Serves sendmmsg(2).
pub async fn sendmmsg(
    call: TaskCall,
    _fd: Fd,
    messages: InOut<MMsgHdr>,
    count: UInt,
    flags: MsgFlags,
) -> Answer {
    /// As many as the kernel takes at once (UIO_MAXIOV in net/socket.c, __sys_sendmmsg).
    const MOST: u32 = 1024;
    const SIZE: u64 = size_of::<libc::mmsghdr>() as u64;
    if connects_past(&call, flags) {
        return Answer::Fail(Errno::EOPNOTSUPP);
    }
    let mut last = None;
    for number in 0..u64::from(count.0.min(MOST)) {
        let at = messages.address.wrapping_add(number * SIZE);
        let target = reach::of_message(&call.memory(), at);
        let Some(target) = target.filter(|_| target != last) else { continue };
        last = Some(target);
        if call.kernel.features().contains(Features::LEARN) {
            call.kernel.note_address(target);
        }
        if let Err(interrupted) = send_to(&call, Some(target)).await {
            return interrupted.into();
        }
    }
    Answer::Continue
}

/// Whether a call that sends is one that connects, too, past connect(2) (MSG_FASTOPEN in send(2)): it is answered as by
/// a kernel on which that is switched off (tcp_sendmsg_fastopen in net/ipv4/tcp.c), and programs do it in two steps.
fn connects_past(call: &TaskCall, flags: MsgFlags) -> bool {
    call.kernel.network().is_some() && flags.0 as i32 & libc::MSG_FASTOPEN != 0
}

/// TCP_ULP (include/uapi/linux/tcp.h): with SMC it makes another socket of one (smc_ulp_init in net/smc/af_smc.c). Programs
/// that ask for TLS in the kernel go on without.
pub const TCP_ULP: i32 = 31;
/// IP_OPTIONS: routes of the sender's choice.
pub const WAYS_V4: &[u64] = &[libc::IP_OPTIONS as u64];
/// IPV6_RTHDR and IPV6_2292PKTOPTIONS (include/uapi/linux/in6.h), likewise.
pub const WAYS_V6: &[u64] = &[57, 6];
/// Interfaces and networks past the host's routes: SO_BINDTODEVICE, SO_BINDTOIFINDEX, SO_DONTROUTE.
pub const WAYS: &[u64] = &[libc::SO_BINDTODEVICE as u64, 62, libc::SO_DONTROUTE as u64];
/// Since Linux 6.5 (include/uapi/asm-generic/socket.h).
pub const SO_PEERPIDFD: i32 = 77;

/// Serves bind(2): of TCP on the very socket that is not one of the host's network, since that would hold a port there.
pub fn bind(call: &Call<'_>, fd: Fd, addr: In<SockAddr>, len: Int) -> Answer {
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    let bound = GuestSocket::of(call.trapped(), fd.0).and_then(|own| {
        if !own.is_tcp() {
            return Ok(false);
        }
        if network.is_outside(&own) {
            return Err(Errno::EINVAL);
        }
        let wanted = read_address(&call.memory(), addr.address, len.0)?;
        // The sentry might, the guest may not (ip_unprivileged_port_start in ip(7)).
        let port = net::parse_address(&wanted).map_or(0, |address| address.port());
        if (1..network.lowest_port()).contains(&port)
            && !call.kernel.features().contains(Features::ROOT)
        {
            return Err(Errno::EACCES);
        }
        socket::bind(own.fd.as_fd(), &wanted).map(|()| true)
    });
    match bound {
        // (A socket of TCP that comes there meanwhile is refused by Landlock.)
        Ok(false) => Answer::Continue,
        done => done.map(|_| 0).into(),
    }
}

/// Serves listen(2): on the very socket that is not one of the host's network.
pub fn listen(call: &Call<'_>, fd: Fd, backlog: Int) -> Answer {
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    let listened = GuestSocket::of(call.trapped(), fd.0).and_then(|own| {
        if network.is_outside(&own) {
            return Err(Errno::EINVAL);
        }
        // (The kernel takes what is negative for as much as there may be: __sys_listen_socket.)
        socket::listen(own.fd.as_fd(), backlog.0.cast_unsigned())
    });
    listened.map(|()| 0).into()
}
