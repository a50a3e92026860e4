//! `sandbox events`: what has happened in a sandbox, and what happens.

use clap::Args;

use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::sentry::Record;

/// The words of `sandbox events`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// For programs to read: one object a line
    #[arg(long)]
    json: bool,
    /// Go on until the sandbox ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints them. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    show(command).unwrap_or_else(fail)
}

fn show(command: &Command) -> Result<i32, ClientError> {
    let request = Request::Events { follow: command.follow };
    let mut call = Sandbox::find(&command.id)?.call(&request, &[])?;
    loop {
        match call.reply()? {
            Reply::Event(record) => {
                if let Err(status) = print(line(&record, command.json)) {
                    return Ok(status);
                }
            }
            Reply::Done => return Ok(0),
            other => return Err(ClientError::unexpected(&command.id, &other)),
        }
    }
}

fn line(record: &Record, json: bool) -> String {
    match serde_json::to_string(record) {
        Ok(text) if json => text + "\n",
        _ => format!("{} {}\n", moment(record.time), record.event),
    }
}

/// A time of day as RFC 3339 writes it, in UTC, to the millisecond.
fn moment(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let milliseconds = microseconds / 1000 % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

/// The Gregorian date so many days after 1970-01-01: years are counted from March, so that a leap day
/// is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn moments_are_those_of_date() {
        assert_eq!(moment(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(moment(951_782_400_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(moment(1_795_564_704_679_596), "2026-11-24T23:58:24.679Z");
        assert_eq!(moment(4_107_542_399_999_999), "2100-02-28T23:59:59.999Z");
    }
}
