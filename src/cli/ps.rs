//! `sandbox ps`: the sandboxes of the user, or the processes of one.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::table::{columns, cpu, plain, span};
use super::{fail, print};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request, Standing};
use crate::control::state::{self, Listed};
use crate::sentry::ProcessInfo;

/// The words of `sandbox ps`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The sandbox whose processes to list
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// For programs to read
    #[arg(long)]
    json: bool,
}

/// A line of the list of sandboxes; docs/control.md names its fields.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    /// `running`, `paused`, `stopped`, `exited` or `unresponsive`.
    state: &'static str,
    /// Exit status, of one that has ended.
    status: Option<i32>,
    /// Its supervisor.
    pid: i32,
    processes: Option<u64>,
    tasks: Option<u64>,
    /// Microseconds since 1970.
    started: u64,
    age_us: u64,
    detached: bool,
    command: Vec<String>,
}

/// Lists. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let text = match &command.id {
        Some(id) => processes(id, command.json),
        None => sandboxes(command.json),
    };
    text.map_or_else(fail, |text| print(text).err().unwrap_or(0))
}

fn sandboxes(json: bool) -> Result<String, ClientError> {
    let rows: Vec<Row> = state::list()?.into_iter().map(row).collect();
    if json {
        return Ok(as_json(&rows));
    }
    let rows: Vec<[String; 6]> = rows.iter().map(cells).collect();
    Ok(columns(["ID", "STATE", "PID", "TASKS", "AGE", "PROGRAM"], &rows))
}

fn cells(row: &Row) -> [String; 6] {
    let state = match row.status {
        Some(status) => format!("exited({status})"),
        None => row.state.to_owned(),
    };
    let pid = if row.status.is_some() { "-".to_owned() } else { row.pid.to_string() };
    let tasks = row.tasks.map_or("-".to_owned(), |tasks| tasks.to_string());
    [row.id.clone(), state, pid, tasks, span(row.age_us), plain(&row.command.join(" "))]
}

/// How one sandbox is. One that does not answer is listed all the same.
fn row(listed: Listed) -> Row {
    let info = listed.info.clone();
    let ended = listed.ended;
    let id = listed.id.clone();
    let standing = match ended {
        Some(_) => None,
        None => Some(Sandbox { listed }.ask_within(&Request::Standing, Duration::from_secs(3))),
    };
    let (state, standing): (_, Option<Standing>) = match standing {
        None => ("exited", None),
        Some(Ok(Reply::Standing(it))) if it.paused => ("paused", Some(it)),
        Some(Ok(Reply::Standing(it))) => ("running", Some(it)),
        Some(Err(ClientError::Stopped(..))) => ("stopped", None),
        Some(_) => ("unresponsive", None),
    };
    Row {
        id,
        state,
        status: ended.map(|ended| ended.status),
        pid: info.pid,
        processes: standing.as_ref().map(|it| it.processes),
        tasks: standing.as_ref().map(|it| it.tasks),
        started: info.started,
        age_us: state::now().saturating_sub(info.started),
        detached: info.detached,
        command: info.command,
    }
}

fn processes(id: &str, json: bool) -> Result<String, ClientError> {
    let processes = match Sandbox::find(id)?.ask(&Request::Processes)? {
        Reply::Processes(processes) => processes,
        other => return Err(ClientError::unexpected(id, &other)),
    };
    if json {
        return Ok(as_json(&processes));
    }
    Ok(table(&processes))
}

/// The container is named where there is more than one.
fn table(processes: &[ProcessInfo]) -> String {
    let head = ["PID", "PPID", "HOST", "STATE", "THREADS", "CPU", "COMMAND"];
    let rows = processes.iter().map(cells_of_process);
    if processes.iter().all(|it| it.container == processes[0].container) {
        return columns(head, &rows.collect::<Vec<_>>());
    }
    let rows = rows.zip(processes).map(|(cells, it)| with_container(cells, plain(&it.container)));
    let head = with_container(head, "CONTAINER");
    columns(head, &rows.collect::<Vec<_>>())
}

/// The container stands before the command, which is as long as it is.
fn with_container<T>(cells: [T; 7], container: T) -> [T; 8] {
    let [pid, parent, host, state, threads, cpu, command] = cells;
    [pid, parent, host, state, threads, cpu, container, command]
}

fn cells_of_process(it: &ProcessInfo) -> [String; 7] {
    [
        it.guest_pid.to_string(),
        it.guest_parent.to_string(),
        it.pid.to_string(),
        it.state.to_string(),
        it.threads.to_string(),
        cpu(it.cpu_us),
        plain(&it.command),
    ]
}

/// One line.
fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).map_or_else(|error| error.to_string(), |text| text + "\n")
}
