//! Netlink sockets, see netlink(7).

use std::os::fd::BorrowedFd;

use libc::{NETLINK_LIST_MEMBERSHIPS, SOL_NETLINK};

use super::Whose;
use crate::save::error::SaveError;
use crate::save::sockets::Netlink;
use crate::sys::socket;

/// One of which nothing is known.
pub(super) fn none() -> Netlink {
    Netlink { port: 0, remote: (0, 0), groups: Vec::new() }
}

/// A socket. An answer that has not been read is the kernel's own: nobody else can send it again.
pub(super) fn capture(who: &Whose, fd: BorrowedFd<'_>) -> Result<Netlink, SaveError> {
    let failed = who.failed("ask the netlink socket");
    if socket::events(fd).map_err(&failed)? & libc::POLLIN != 0 {
        return Err(who.refuse_for_now(
            "a netlink socket with messages that were not read, which cannot be saved; read them first",
        ));
    }
    let (port, _) = address(&socket::name(fd).map_err(&failed)?);
    let remote = socket::peer_name(fd).map_or((0, 0), |name| address(&name));
    let bits = socket::option(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 1024).map_err(&failed)?;
    let joined = |group: &u32| bits[*group as usize / 8] & 1 << (group % 8) != 0;
    // Groups are counted from 1.
    let groups = (0..bits.len() as u32 * 8).filter(joined).map(|group| group + 1).collect();
    Ok(Netlink { port, remote, groups })
}

/// struct sockaddr_nl: port and groups.
fn address(name: &[u8]) -> (u32, u32) {
    let word = |at: usize| name.get(at..at + 4).and_then(|it| it.try_into().ok());
    (word(4).map_or(0, u32::from_ne_bytes), word(8).map_or(0, u32::from_ne_bytes))
}
