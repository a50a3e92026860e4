//! Netlink sockets.

use std::os::fd::AsFd;

use libc::{AF_NETLINK, NETLINK_ADD_MEMBERSHIP, SOL_NETLINK};
use nix::errno::Errno;

use super::{Entry, failed, finish, make as make_one, put};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{Detail, options};
use crate::sys::socket;

/// Makes all of them. A port that is taken is given up for one that the kernel chooses.
pub(super) fn make(maker: &mut Maker<'_>, all: &[Entry<'_>]) -> Result<(), RestoreError> {
    for (index, it) in all {
        let Detail::Netlink(netlink) = &it.detail else { continue };
        let fd = make_one(maker, it)?;
        if netlink.port != 0 {
            let bound = match socket::bind(fd.as_fd(), &address(netlink.port, 0)) {
                Err(Errno::EADDRINUSE) => socket::bind(fd.as_fd(), &address(0, 0)),
                bound => bound,
            };
            bound.map_err(failed(it, "bind"))?;
        }
        if netlink.remote != (0, 0) {
            let (port, groups) = netlink.remote;
            socket::connect(fd.as_fd(), &address(port, groups)).map_err(failed(it, "connect"))?;
        }
        for group in &netlink.groups {
            options::put(fd.as_fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, *group as i32)
                .map_err(failed(it, "join the groups of"))?;
        }
        finish(fd.as_fd(), it)?;
        put(maker, *index, fd);
    }
    Ok(())
}

/// struct sockaddr_nl.
fn address(port: u32, groups: u32) -> Vec<u8> {
    let mut bytes = (AF_NETLINK as u16).to_ne_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(port.to_ne_bytes());
    bytes.extend(groups.to_ne_bytes());
    bytes
}
