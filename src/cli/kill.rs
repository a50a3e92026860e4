//! `sandbox kill`: a signal to the program of a sandbox, or to other processes in it.

use std::str::FromStr;

use clap::Args;
use nix::sys::signal::Signal;

use super::fail;
use crate::control::client::Sandbox;
use crate::control::protocol::{Request, Target};
use crate::control::{ClientError, state};

/// The words of `sandbox kill`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// A name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "TERM", value_parser = signal)]
    signal: i32,
    /// To every process in it
    #[arg(long, group = "target")]
    all: bool,
    /// To this process, as it is numbered inside
    #[arg(long, value_name = "PID", group = "target", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// To every process of a container
    #[arg(long, value_name = "NAME", group = "target")]
    container: Option<String>,
}

/// Sends it. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    send(command).err().map_or(0, fail)
}

fn send(command: &Command) -> Result<(), ClientError> {
    let target = match (&command.container, command.pid) {
        (Some(name), _) => Target::Container(name.clone()),
        (_, Some(pid)) => Target::Process(pid),
        _ if command.all => Target::All,
        _ => Target::Program,
    };
    let sandbox = Sandbox::find(&command.id)?;
    if sandbox.listed.ended.is_some() {
        // Nobody wants its status any more.
        state::forget(&sandbox.listed.id, &sandbox.listed.info);
        return Ok(());
    }
    sandbox.ask(&Request::Signal { target, signal: command.signal }).map(drop)
}

/// A signal as kill(1) takes it.
fn signal(word: &str) -> Result<i32, String> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let unknown =
        || format!("no such signal: use a name such as TERM or a number from 1 to {last}");
    let found = match word.parse::<i32>() {
        Ok(number) => Some(number),
        Err(_) => {
            let name = word.to_ascii_uppercase();
            let name = name.strip_prefix("SIG").unwrap_or(&name);
            let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse().ok() };
            let realtime = |name: &str| {
                let from_first =
                    name.strip_prefix("RTMIN").and_then(|it| Some(first + offset(it)?));
                from_first.or_else(|| Some(last + offset(name.strip_prefix("RTMAX")?)?))
            };
            let known = Signal::from_str(&format!("SIG{name}")).ok().map(|it| it as i32);
            known.or_else(|| realtime(name).filter(|number| (first..=last).contains(number)))
        }
    };
    found.filter(|number| (1..=last).contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn signals_have_names_with_and_without_prefix_and_numbers() {
        for word in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(word), Ok(15));
        }
        assert_eq!(signal("RTMIN+1"), Ok(libc::SIGRTMIN() + 1));
        assert_eq!(signal("SIGRTMAX-2"), Ok(libc::SIGRTMAX() - 2));
        assert_eq!(signal("64"), Ok(64));
        for word in ["", "0", "-1", "65", "TERMINATE", "RTMIN-1", "RTMAX+1", "RTMIN+x", "SIG"] {
            assert!(signal(word).is_err(), "{word}");
        }
    }
}
