//! The network of allowed hosts goes on around the sockets of an image: what they need before they are made, and what only
//! comes up afterwards, since it has addresses from which datagrams wait in them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::save::error::RestoreError;
use crate::save::sockets::{Detail, Socket, TcpState};
use crate::save::state::{FileKind, Sandbox};
use crate::sentry::Kernel;
use crate::sentry::net::{Network, parse_address};

/// Addresses that sockets may bring along at most; more than a program of any use has.
const MOST_ADDRESSES: usize = 4096;

/// Prepares the guests' network for the sockets of an image: names are known again, as far as the host's resolvers confirm
/// what they stand for, and addresses are there.
///
/// # Errors
/// The image does not agree with itself.
pub async fn prepare(
    sandbox: &Sandbox,
    kernel: &Arc<Kernel>,
    network: &Arc<Network>,
) -> Result<(), RestoreError> {
    let saved = sandbox.network.as_ref().ok_or_else(damaged)?;
    let sockets = sandbox.files.iter().filter_map(|file| match &file.kind {
        FileKind::Socket(socket) => Some(&**socket),
        _ => None,
    });
    let relays = saved.relays.iter().map(|relay| relay.ip().to_canonical());
    let mut wanted: HashSet<IpAddr> = HashSet::new();
    for address in relays.chain(sockets.flat_map(addresses)) {
        if wanted.len() == MOST_ADDRESSES {
            break;
        }
        wanted.insert(address);
    }
    network.lend_again(wanted.into_iter());
    network.confirm(kernel, saved).await;
    Ok(())
}

/// Lookups are answered and datagrams carried from here on.
pub(super) fn go_on(sandbox: &Sandbox, kernel: &Arc<Kernel>) -> Result<(), RestoreError> {
    let Some(network) = kernel.network() else { return Ok(()) };
    let saved = sandbox.network.as_ref().ok_or_else(damaged)?;
    network.go_on(kernel, saved).map_err(|errno| {
        RestoreError::failed("the sandbox cannot answer its programs' lookups", errno.desc())
    })
}

fn damaged() -> RestoreError {
    RestoreError::refused("the image is damaged: what its network goes on with")
}

/// The addresses that a socket has, is connected to, or has datagrams from.
fn addresses(socket: &Socket) -> Vec<IpAddr> {
    let (own, from) = match &socket.detail {
        Detail::Udp(udp) => {
            let from: Vec<_> = udp.queue.iter().filter_map(|it| it.from.as_ref()).collect();
            (vec![udp.local.as_ref(), udp.remote.as_ref()], from)
        }
        // What goes outside is not made again as it was.
        Detail::Tcp(tcp) if !tcp.outside && !matches!(tcp.state, TcpState::Ended(..)) => {
            (vec![tcp.local.as_ref(), tcp.remote.as_ref()], Vec::new())
        }
        _ => return Vec::new(),
    };
    let all = own.into_iter().flatten().chain(from);
    all.filter_map(|it| Some(parse_address(it)?.ip().to_canonical())).collect()
}
