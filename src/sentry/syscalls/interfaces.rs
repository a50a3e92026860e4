//! ioctl(2) that tells of network interfaces (netdevice(7)), where guests may hold sockets of the host's network.
//!
//! Such a request is about the network that its socket belongs to. It is answered of the guests' own, whichever socket it is
//! made on: by a socket of the sentry's there, so that it does not matter what comes under the number meanwhile.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::args::{Addr, Fd, IoctlRequest};
use crate::notify::Answer;
use crate::sentry::call::Call;
use crate::sentry::net::{GuestSocket, Network};
use crate::sys::interface;

/// Requests of this type up to here are about the socket itself (include/uapi/asm-generic/sockios.h), as is SIOCOUTQNSD, and
/// as are those that carry the size of what they point to (include/uapi/linux/sockios.h).
const LAST_OF_SOCKETS: u32 = 0x890a;
const SIOCOUTQNSD: u32 = 0x894b;
const PLAIN: std::ops::RangeInclusive<u32> = LAST_OF_SOCKETS + 1..=0x89ff;

/// Serves requests of the type 0x89.
pub fn ioctl(call: &Call<'_>, fd: Fd, request: IoctlRequest, arg: Addr) -> Answer {
    let Some(network) = call.kernel.network() else { return Answer::Continue };
    if !PLAIN.contains(&request.0) || request.0 == SIOCOUTQNSD {
        return Answer::Continue;
    }
    let own = match GuestSocket::of(call.trapped(), fd.0) {
        Ok(own) => own,
        Err(Errno::ENOTSOCK) => return Answer::Fail(Errno::ENOTTY),
        Err(errno) => return Answer::Fail(errno),
    };
    let done = match request.0 {
        interface::SIOCGIFCONF => list(call, network, &own, arg.0),
        request if interface::is_question(request) => ask(call, network, &own, request, arg.0),
        // What changes something takes rights that no guest has, and what else tells something is no guest's to know.
        _ => Err(Errno::EPERM),
    };
    done.map(|()| 0).into()
}

/// A socket that can be asked instead of this one.
fn there(network: &Network, own: &GuestSocket) -> Result<std::os::fd::OwnedFd, Errno> {
    // (Which addresses are told is a matter of the family.)
    let known = [libc::AF_INET, libc::AF_INET6].contains(&own.family);
    network.socket_inside(if known { own.family } else { libc::AF_UNIX }, libc::SOCK_DGRAM)
}

fn ask(
    call: &Call<'_>,
    network: &Network,
    own: &GuestSocket,
    request: u32,
    at: u64,
) -> Result<(), Errno> {
    let mut about = [0; interface::ABOUT];
    call.memory().read(at, &mut about)?;
    interface::ask(there(network, own)?.as_fd(), request, &mut about)?;
    call.memory().write(at, &about)
}

/// struct ifconf: the length of a place, and where it is; without one, the length alone is asked for (dev_ifconf in
/// net/core/dev_ioctl.c).
fn list(call: &Call<'_>, network: &Network, own: &GuestSocket, at: u64) -> Result<(), Errno> {
    /// More than a guest's network has addresses for.
    const MOST: usize = 64 << 10;
    let mut wanted = [0; 16];
    call.memory().read(at, &mut wanted)?;
    let (length, place) = wanted.split_at(8);
    let length = i32::from_ne_bytes([length[0], length[1], length[2], length[3]]);
    let place = place.try_into().map_or(0, u64::from_ne_bytes);
    let room = if place == 0 { MOST } else { usize::try_from(length).unwrap_or(0).min(MOST) };
    let found = interface::list(there(network, own)?.as_fd(), room)?;
    if place != 0 {
        call.memory().write(place, &found)?;
    }
    call.memory().write(at, &(found.len() as i32).to_ne_bytes())
}
