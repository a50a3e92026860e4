//! Calls that name an address, where some may be reached (`--net allow`), and what only a socket of the guests' own
//! network may do.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::args::{Fd, In, InBuf, InOut, Int, Len, MMsgHdr, MsgFlags, MsgHdr, SockAddr, UInt};
use super::reach;
use crate::notify::Answer;
use crate::sentry::Features;
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::net::{self, GuestSocket, Network, Transport, Verdict};
use crate::sys::socket;

/// Serves connect(2).
pub async fn connect(call: TaskCall, fd: Fd, addr: In<SockAddr>, len: Int) -> Answer {
    if call.kernel.features().contains(Features::LEARN) {
        reach::note(&call.kernel, &call.memory(), addr.address, len.0.into());
    }
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    let network = std::sync::Arc::clone(network);
    let wanted = match read_address(&call, addr.address, len.0) {
        Ok(wanted) => wanted,
        Err(errno) => return Answer::Fail(errno),
    };
    let own = match GuestSocket::of(call.trapped(), fd.0) {
        Ok(own) => own,
        Err(errno) => return Answer::Fail(errno),
    };
    if own.is_inet(libc::SOCK_STREAM) {
        return net::connect(&call, &network, own, &wanted).await;
    }
    drop(own);
    if let Some(target) = net::parse_address(&wanted) {
        open_relay(&call, &network, target);
    }
    // No socket of any other kind belongs to the host's network, and one that another thread puts there meanwhile
    // cannot be connected by a guest (the module's words).
    Answer::Continue
}

/// The address of a call, copied once (move_addr_to_kernel in net/socket.c).
fn read_address(call: &TaskCall, at: u64, length: i32) -> Result<Vec<u8>, Errno> {
    let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
    if length > net::LONGEST {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; length];
    call.memory().read(at, &mut bytes)?;
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
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    if connects(flags) {
        return Answer::Fail(Errno::EOPNOTSUPP);
    }
    if let Ok(wanted) = read_address(&call, addr.address, len.0)
        && let Some(target) = net::parse_address(&wanted)
    {
        open_relay(&call, network, target);
    }
    Answer::Continue
}

/// Serves sendmsg(2).
pub async fn sendmsg(call: TaskCall, _fd: Fd, message: In<MsgHdr>, flags: MsgFlags) -> Answer {
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    if connects(flags) {
        return Answer::Fail(Errno::EOPNOTSUPP);
    }
    if let Some(target) = reach::of_message(&call.memory(), message.address) {
        open_relay(&call, network, target);
    }
    Answer::Continue
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
    if call.kernel.network().is_some() && connects(flags) {
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
        if let Some(network) = call.kernel.network() {
            open_relay(&call, network, target);
        }
    }
    Answer::Continue
}

/// Whether a call that sends is one that connects, too, past connect(2) (MSG_FASTOPEN in send(2)): it is answered as by
/// a kernel on which that is switched off (tcp_sendmsg_fastopen in net/ipv4/tcp.c), and programs do it in two steps.
fn connects(flags: MsgFlags) -> bool {
    flags.0 as i32 & libc::MSG_FASTOPEN != 0
}

/// Sees to it that datagrams to `target` are carried, if they may be; else the guests' own network knows no way there.
fn open_relay(call: &TaskCall, network: &Network, target: SocketAddr) {
    match network.judge(target, Transport::Udp) {
        Verdict::Outside => {
            // Where the host has no way there, the guest's network has none.
            let _ = network.relay(&call.kernel, call.received().tid, target);
        }
        Verdict::Inside => {}
        Verdict::Refused(why) => {
            network.refuse(&call.kernel, call.received().tid, target, Transport::Udp, why);
        }
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
