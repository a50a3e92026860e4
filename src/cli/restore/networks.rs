//! What the words of `sandbox restore` say of the network in place of the image.

use std::fs::File;
use std::path::Path;

use super::super::record::append;
use super::Command;
use crate::config::{Host, Network, RunSpec, absolute, chosen_ports, quoted};
use crate::sentry::net::publish::{Doors, parse};

/// Takes the ports of the host that lead inside.
///
/// # Errors
/// The host cannot give one of them, or the words ask for what no run has.
pub(super) fn open(command: &Command, spec: &mut RunSpec, host: &Host) -> Result<Doors, String> {
    redirect(command, spec, host)?;
    Doors::open(&spec.publish).map_err(|error| error.to_string())
}

/// Opens the record of what is decided. An image may name any file of the user's for it; so that was told before.
///
/// # Errors
/// It cannot be, or the image names a place that no run sees.
pub(super) fn open_log(
    command: &Command,
    spec: &RunSpec,
    host: &Host,
) -> Result<Option<File>, String> {
    let Some(path) = &spec.net_log else { return Ok(None) };
    if command.net_log.is_none() && is_hidden(path, spec, host) {
        let path = quoted(path);
        return Err(format!(
            "its --net-log {path} lies where no run of yours sees anything; --net-log FILE names another"
        ));
    }
    append(path).map(Some)
}

/// Whether a path leads to where the run does not see what is there.
fn is_hidden(path: &Path, spec: &RunSpec, host: &Host) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // (The file itself may still have to be made.)
    let file = path.parent().zip(path.file_name()).map(|(parent, name)| real(parent).join(name));
    let file = real(&file.unwrap_or_else(|| path.to_owned()));
    let hidden = spec.mounts.iter().filter(|mount| mount.kind.hides()).map(|mount| &mount.target);
    host.private.iter().chain(&host.stores).chain(hidden).any(|place| file.starts_with(real(place)))
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
