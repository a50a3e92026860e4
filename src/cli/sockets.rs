//! `sandbox sockets`: where the sockets of a sandbox lead, who holds them, what they have carried.

use std::io::Write;

use clap::Args;

use super::table::{bytes, columns, plain};
use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::sentry::{Holder, SocketInfo, Sockets};

/// The words of `sandbox sockets`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// Those of TCP (of several kinds that are asked for, each)
    #[arg(short, long)]
    tcp: bool,
    /// Those of UDP
    #[arg(short, long)]
    udp: bool,
    /// Unix sockets
    #[arg(short = 'x', long)]
    unix: bool,
    /// Only those that listen
    #[arg(short, long)]
    listening: bool,
    /// For programs to read
    #[arg(long)]
    json: bool,
}

/// Prints them. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let sockets = match ask(&command.id) {
        Ok(sockets) => sockets,
        Err(error) => return fail(error),
    };
    let mut stderr = std::io::stderr();
    for untold in &sockets.untold {
        let _ = writeln!(stderr, "sandbox: cannot list {untold}");
    }
    if sockets.more > 0 {
        let _ = writeln!(stderr, "sandbox: {} more are not listed", sockets.more);
    }
    let wanted: Vec<SocketInfo> =
        sockets.sockets.into_iter().filter(|it| command.wants(it)).collect();
    let text = match command.json {
        true => serde_json::to_string(&wanted).map_or_else(|it| it.to_string(), |it| it + "\n"),
        false => table(&wanted),
    };
    print(text).err().unwrap_or(0)
}

fn ask(id: &str) -> Result<Sockets, ClientError> {
    match Sandbox::find(id)?.ask(&Request::Sockets)? {
        Reply::Sockets(sockets) => Ok(sockets),
        other => Err(ClientError::unexpected(id, &other)),
    }
}

impl Command {
    fn wants(&self, it: &SocketInfo) -> bool {
        let any = !(self.tcp || self.udp || self.unix);
        let kind = match &*it.kind {
            "tcp" => self.tcp,
            "udp" => self.udp,
            kind => self.unix && kind.starts_with("unix"),
        };
        (any || kind) && (!self.listening || it.state == "LISTEN")
    }
}

fn table(sockets: &[SocketInfo]) -> String {
    let head =
        ["KIND", "STATE", "RECV-Q", "SEND-Q", "NETWORK", "OUT", "IN", "LOCAL", "PEER", "PROCESS"];
    let rows: Vec<[String; 10]> = sockets.iter().map(cells).collect();
    columns(head, &rows)
}

fn cells(it: &SocketInfo) -> [String; 10] {
    let amount = |count: Option<u64>| count.map_or("-".to_owned(), bytes);
    let end = |end: &Option<String>| end.as_deref().map_or("-".to_owned(), plain);
    let peer = match &it.peer_name {
        Some(name) => format!("{} ({})", end(&it.peer), plain(name)),
        None => end(&it.peer),
    };
    [
        it.kind.clone(),
        it.state.clone(),
        it.recv_queue.to_string(),
        it.send_queue.to_string(),
        it.network.clone(),
        amount(it.bytes_out),
        amount(it.bytes_in),
        end(&it.local),
        peer,
        holders(it),
    ]
}

/// Who holds it, as the guest numbers them.
fn holders(it: &SocketInfo) -> String {
    if it.own {
        return "(sandbox)".to_owned();
    }
    let word = |it: &Holder| format!("{}/{} fd {}", it.guest_pid, plain(&it.comm), it.fd);
    let mut words: Vec<String> = it.holders.iter().map(word).collect();
    match it.held.saturating_sub(it.holders.len() as u64) {
        0 if words.is_empty() => return "-".to_owned(),
        0 => {}
        more => words.push(format!("and {more} more")),
    }
    words.join(", ")
}
