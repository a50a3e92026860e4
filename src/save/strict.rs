//! What `--strict` refuses before anything is stopped: connections that would be lost.
//!
//! A capture looks again, at all that the guests hold when they stand still. This is so that whoever asks in vain does not
//! hold the programs up for it.

use std::collections::HashSet;
use std::ffi::OsStr;

use crate::config::quoted;
use crate::save::error::SaveError;
use crate::sentry::net::RESOLVERS;
use crate::sentry::{Kernel, SocketInfo};

/// States of a connection that is there, as ss(8) calls them.
const CONNECTED: [&str; 6] =
    ["ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "LAST-ACK", "CLOSING"];

/// Refuses the first connection that an image would not carry.
pub(super) fn refuse_early(kernel: &Kernel) -> Result<(), SaveError> {
    // (What cannot be listed is met by the capture.)
    let Ok(listed) = kernel.sockets() else { return Ok(()) };
    let connections = || {
        let all = listed.sockets.iter();
        all.filter(|it| it.kind == "tcp" && CONNECTED.contains(&&*it.state))
    };
    let sides = |it: &SocketInfo| Some((it.local.clone()?, it.peer.clone()?));
    let of_sandbox: HashSet<(String, String)> =
        connections().filter(|it| it.own).filter_map(sides).collect();
    for it in connections().filter(|it| !it.own) {
        let Some(holder) = it.holders.first() else { continue };
        let Some((local, peer)) = sides(it) else { continue };
        let what = match &*it.network {
            "outside" => {
                let name = it.peer_name.as_ref().map(|name| format!(" ({name})"));
                format!("in the host's network to {peer}{}", name.unwrap_or_default())
            }
            _ if RESOLVERS.iter().any(|it| it.to_string() == peer) => continue,
            _ if of_sandbox.contains(&(peer, local)) => {
                "that has come through a published port".to_owned()
            }
            _ => continue,
        };
        return Err(SaveError::refused(format!(
            "process {} ({}) holds as descriptor {} a TCP connection {what}, which cannot be saved; close it first, or \
             save without --strict",
            holder.guest_pid,
            quoted(OsStr::new(&holder.comm)),
            holder.fd
        )));
    }
    Ok(())
}
