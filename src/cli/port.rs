//! `sandbox port`: which ports of the host lead to a sandbox.

use std::fmt::Write;

use clap::Args;

use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::sentry::net::Transport;
use crate::sentry::net::publish::Published;

/// The words of `sandbox port`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// Only what leads to this port inside, of TCP if nothing else is said
    #[arg(value_name = "PORT[/tcp|/udp]", value_parser = asked)]
    port: Option<(u16, Transport)>,
    /// For programs to read
    #[arg(long)]
    json: bool,
}

fn asked(text: &str) -> Result<(u16, Transport), String> {
    let (port, transport) = match text.rsplit_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Transport::Tcp),
        Some((port, "udp")) => (port, Transport::Udp),
        Some(_) => return Err("write PORT, PORT/tcp or PORT/udp".to_owned()),
    };
    let port = port.parse().map_err(|_| "it is no port (1 to 65535)".to_owned())?;
    Ok((port, transport))
}

/// Prints them. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let ports = Sandbox::find(&command.id).and_then(|sandbox| ask(&sandbox));
    let mut ports = match ports {
        Ok(ports) => ports,
        Err(error) => return fail(error),
    };
    if let Some(asked) = command.port {
        ports.retain(|it| (it.guest, it.transport) == asked);
        if ports.is_empty() {
            let (port, transport) = asked;
            return fail(format_args!(
                "nothing leads to port {port}/{transport} of {}; sandbox port {} lists what does",
                command.id, command.id
            ));
        }
    }
    ports.sort_by_key(|it| (it.guest, it.transport));
    let text = match command.json {
        true => format!("{}\n", json(&ports)),
        false => text(&ports, command.port.is_some()),
    };
    print(text).err().unwrap_or(0)
}

fn ask(sandbox: &Sandbox) -> Result<Vec<Published>, ClientError> {
    match sandbox.ask(&Request::Ports)? {
        Reply::Ports(ports) => Ok(ports),
        other => Err(ClientError::unexpected(&sandbox.listed.id, &other)),
    }
}

fn text(ports: &[Published], is_known: bool) -> String {
    let mut text = String::new();
    for Published { guest, transport, host } in ports {
        let _ = match is_known {
            true => writeln!(text, "{host}"),
            false => writeln!(text, "{guest}/{transport} -> {host}"),
        };
    }
    text
}

fn json(ports: &[Published]) -> serde_json::Value {
    let port = |it: &Published| {
        serde_json::json!({
            "guest_port": it.guest,
            "transport": it.transport.to_string(),
            "host_address": it.host.ip().to_string(),
            "host_port": it.host.port(),
        })
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_asked_for_as_they_are_printed() {
        assert_eq!(asked("80"), Ok((80, Transport::Tcp)));
        assert_eq!(asked("80/tcp"), Ok((80, Transport::Tcp)));
        assert_eq!(asked("80/udp"), Ok((80, Transport::Udp)));
        assert!(["80/sctp", "x", "70000", "/tcp", ""].into_iter().all(|it| asked(it).is_err()));
        let host = "[::1]:8080".parse().unwrap();
        let ports = [Published { guest: 80, transport: Transport::Udp, host }];
        assert_eq!(text(&ports, false), "80/udp -> [::1]:8080\n");
        assert_eq!(text(&ports, true), "[::1]:8080\n");
        assert_eq!(json(&ports)[0]["host_port"], 8080);
    }
}
