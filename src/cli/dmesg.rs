//! `sandbox dmesg`: the kernel log of a sandbox, seen from outside.

use clap::Args;

use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};

/// The words of `sandbox dmesg`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// Go on until the sandbox ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints it. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    show(command).unwrap_or_else(fail)
}

fn show(command: &Command) -> Result<i32, ClientError> {
    let request = Request::Log { follow: command.follow };
    let mut call = Sandbox::find(&command.id)?.call(&request, &[])?;
    loop {
        match call.reply()? {
            Reply::Log(text) => {
                let lines: String =
                    text.lines().map(|line| without_level(line).to_owned() + "\n").collect();
                if let Err(status) = print(lines) {
                    return Ok(status);
                }
            }
            Reply::Done => return Ok(0),
            other => return Err(ClientError::unexpected(&command.id, &other)),
        }
    }
}

/// A line without its `<6>`, as dmesg(1) shows it.
fn without_level(line: &str) -> &str {
    let rest = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    rest.map_or(line, |(_, text)| text)
}
