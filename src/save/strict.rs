//! What `--strict` refuses before anything is stopped: connections that would be lost.
//!
//! A capture looks again, at all that the guests hold when they stand still. This is so that whoever asks in vain does not
//! hold the programs up for it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};

use crate::config::quoted;
use crate::save::error::SaveError;
use crate::sentry::net::RESOLVERS;
use crate::sentry::{Kernel, SocketInfo, Sockets};

/// States of a connection that is there, as ss(8) calls them.
const CONNECTED: [&str; 6] =
    ["ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "LAST-ACK", "CLOSING"];

/// Refuses the first connection that an image would not carry.
pub(super) fn refuse_early(kernel: &Kernel) -> Result<(), SaveError> {
    // (What cannot be listed is met by the capture.)
    let Ok(listed) = kernel.sockets() else { return Ok(()) };
    let sides = Sides::of(kernel, &listed);
    for it in &listed.sockets {
        let Some(holder) = it.holders.first() else { continue };
        let Some(what) = sides.lost(it) else { continue };
        return Err(SaveError::refused(format!(
            "process {} ({}) holds as descriptor {} {what}, which cannot be saved; close it first, or save without \
             --strict",
            holder.guest_pid,
            quoted(OsStr::new(&holder.comm)),
            holder.fd
        )));
    }
    Ok(())
}

/// The other sides of connections, as far as something is known of them.
struct Sides {
    /// Of TCP: those that the sandbox has, each as the connection that it is.
    of_sandbox: HashSet<(SocketAddr, SocketAddr)>,
    /// Those of guests that it leads out.
    carried: HashSet<(SocketAddr, SocketAddr)>,
    /// Unix sockets of the guests' network, as their peers name them.
    unix: HashSet<String>,
}

impl Sides {
    fn of(kernel: &Kernel, listed: &Sockets) -> Sides {
        let all = listed.sockets.iter();
        let of_sandbox = all.clone().filter(|it| it.own && is_connection(it)).filter_map(ends);
        let unix = all.filter(|it| it.kind.starts_with("unix-") && it.network == "inside");
        Sides {
            of_sandbox: of_sandbox.collect(),
            carried: kernel.network().into_iter().flat_map(|it| it.carried()).collect(),
            unix: unix.map(|it| format!("#{}", it.inode)).collect(),
        }
    }

    /// What is connected to a side that an image cannot have, in words.
    fn lost(&self, it: &SocketInfo) -> Option<String> {
        if it.own || !is_connection(it) {
            return None;
        }
        match &*it.kind {
            "tcp" => self.lost_tcp(it),
            // (One that has a name is told by that.)
            "unix-stream" | "unix-seqpacket" if it.network == "inside" => {
                let is_away = it
                    .peer
                    .as_ref()
                    .is_some_and(|it| it.starts_with('#') && !self.unix.contains(it));
                is_away.then(|| {
                    "a unix socket that is connected to a process outside the sandbox".into()
                })
            }
            _ => None,
        }
    }

    fn lost_tcp(&self, it: &SocketInfo) -> Option<String> {
        let (local, peer) = ends(it)?;
        if it.network == "outside" || self.carried.contains(&(local, peer)) {
            let name = it.peer_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            return Some(format!("a TCP connection in the host's network to {peer}{name}"));
        }
        let is_published = self.of_sandbox.contains(&(peer, local)) && !RESOLVERS.contains(&peer);
        is_published.then(|| "a TCP connection that has come through a published port".into())
    }
}

fn is_connection(it: &SocketInfo) -> bool {
    CONNECTED.contains(&&*it.state)
}

/// Both addresses of a connection of TCP, those of IPv4 as such.
fn ends(it: &SocketInfo) -> Option<(SocketAddr, SocketAddr)> {
    let address = |text: &Option<String>| {
        let address: SocketAddr = text.as_ref()?.parse().ok()?;
        let ip: IpAddr = address.ip().to_canonical();
        Some(SocketAddr::new(ip, address.port()))
    };
    Some((address(&it.local)?, address(&it.peer)?))
}
