//! What the words of `sandbox restore` say of the network in place of the image.

use std::fs::File;

use super::super::record::append;
use super::Command;
use crate::config::{Host, Network, RunSpec, absolute, chosen_ports, quoted};
use crate::sentry::net::publish::{Doors, parse};

/// Takes the ports of the host that lead inside, and opens the record of what is decided.
///
/// # Errors
/// The host cannot give one of them, or the words ask for what no run has.
pub(super) fn open(
    command: &Command,
    spec: &mut RunSpec,
    host: &Host,
) -> Result<(Doors, Option<File>), String> {
    redirect(command, spec, host)?;
    let doors = Doors::open(&spec.publish).map_err(|error| error.to_string())?;
    Ok((doors, spec.net_log.as_deref().map(append).transpose()?))
}

/// Other ports of the host lead inside, or what is decided is recorded elsewhere.
fn redirect(command: &Command, spec: &mut RunSpec, host: &Host) -> Result<(), String> {
    if !command.publish.is_empty() {
        let mut wishes = Vec::new();
        for text in &command.publish {
            wishes.extend(parse(text).map_err(|why| format!("--publish {} {why}", quoted(text)))?);
        }
        let chosen = chosen_ports(&wishes, spec.walls, spec.network);
        spec.publish = chosen.map_err(|error| error.to_string())?;
    }
    if let Some(path) = &command.net_log {
        if spec.network != Network::Allow {
            let path = quoted(path);
            return Err(format!("--net-log {path} is about runs with --allow-net; leave it out"));
        }
        spec.net_log = Some(absolute(host, path).map_err(|error| error.to_string())?);
    }
    Ok(())
}
