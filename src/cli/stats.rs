//! `sandbox stats`: what a sandbox has used.

use std::fmt::Write;

use clap::Args;

use super::table::{bytes, cpu, plain, span};
use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::sentry::{HostTraffic, LimitState, Stats};

/// The words of `sandbox stats`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// For programs to read
    #[arg(long)]
    json: bool,
}

/// Prints it. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let stats = Sandbox::find(&command.id).and_then(|sandbox| ask(&sandbox));
    let text = stats.map(|stats| match serde_json::to_string(&stats) {
        Ok(text) if command.json => text + "\n",
        _ => text(&stats),
    });
    text.map_or_else(fail, |text| print(text).err().unwrap_or(0))
}

/// What a sandbox has used.
pub(super) fn ask(sandbox: &Sandbox) -> Result<Stats, ClientError> {
    match sandbox.ask(&Request::Stats)? {
        Reply::Stats(stats) => Ok(stats),
        other => Err(ClientError::unexpected(&sandbox.listed.id, &other)),
    }
}

fn text(stats: &Stats) -> String {
    let mut text = String::new();
    let paused = if stats.paused { " (paused)" } else { "" };
    let lines = [
        ("uptime", format!("{}{paused}", span(stats.uptime_us))),
        ("cpu", cpu(stats.cpu_us)),
        ("processes", stats.processes.to_string()),
        ("tasks", format!("{} ({} running)", stats.tasks, stats.running)),
        ("memory", format!("{} (at most {})", bytes(stats.memory), bytes(stats.peak_memory))),
        ("traps", stats.traps.to_string()),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<10}{value}");
    }
    for limit in &stats.limits {
        let _ = writeln!(text, "limit     {}", limit_words(limit));
    }
    for host in &stats.hosts {
        let _ = writeln!(text, "host      {}", host_words(host));
    }
    text
}

/// What went to a host.
fn host_words(host: &HostTraffic) -> String {
    let port = host.port.map_or_else(String::new, |port| format!(":{port}"));
    let mut text = format!("{}{port}/{}", plain(&host.host), host.transport);
    let _ = write!(text, " {} allowed, {} refused", host.allowed, host.refused);
    if host.transport != "dns" {
        let (out, back) = (bytes(host.bytes_out), bytes(host.bytes_in));
        let _ = write!(text, ", {} open, {out} out, {back} in", host.open);
    }
    if host.unmeasured > 0 {
        let _ = write!(text, " ({} not measured to the end)", host.unmeasured);
    }
    text
}

/// A limit, in the unit of its name.
fn limit_words(limit: &LimitState) -> String {
    let amount = |value: u64| match &*limit.name {
        "memory" | "file-size" => bytes(value),
        "cpu-time" | "timeout" => cpu(value),
        _ => value.to_string(),
    };
    let used = limit.used.map_or_else(String::new, |used| format!("{} of ", amount(used)));
    format!("{} {used}{} (by {})", limit.name, amount(limit.limit), limit.by)
}
