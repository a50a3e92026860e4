//! `sandbox inspect`: what is in an image, or in a running sandbox.
//!
//! An image is read from front to back, so that a pipe will do, and all its checksums are compared.
//! Nothing of it is executed or made.

mod words;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::restore::{image_file, named};
use super::{fail, print, stats};
use crate::config::{SavedSpec, quoted};
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::control::{ClientError, state};
use crate::save::error::RestoreError;
use crate::save::image::{Frame, Summary, VERSION};
use crate::save::opened::{self, Image};
use crate::save::spec;
use crate::save::state::{FileKind, Process, Sandbox as Saved, TreeKind};
use crate::sentry::{ProcessInfo, Stats};

const PAGE: u64 = 4096;

/// The words of `sandbox inspect`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// An image, or a sandbox
    #[arg(value_name = "IMAGE|ID")]
    what: PathBuf,
    /// For programs to read
    #[arg(long)]
    json: bool,
}

/// Prints it. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let what = &command.what;
    let is_image = what == Path::new("-") || what.as_os_str().as_encoded_bytes().contains(&b'/');
    let text = if is_image || what.exists() {
        image(what).map(|report| match command.json {
            true => as_json(&report),
            false => words::image(&report),
        })
    } else {
        running(&what.to_string_lossy()).map(|report| match command.json {
            true => as_json(&report),
            false => words::running(&report),
        })
    };
    text.map_or_else(fail, |text| print(text).err().unwrap_or(0))
}

/// An image; docs/control.md names its fields.
#[derive(Debug, Serialize)]
struct ImageReport {
    kind: &'static str,
    format: u32,
    compressed: bool,
    /// Bytes of the whole image and of its state.
    bytes: u64,
    state_bytes: u64,
    host: HostFacts,
    id: String,
    command: Vec<String>,
    workdir: String,
    /// Inside.
    user: u32,
    group: u32,
    /// It takes itself for root (`--root`).
    root: bool,
    /// What it was allowed beyond a default run.
    network: &'static str,
    /// As `--allow-net` and `--publish` are written.
    allowed: Vec<String>,
    published: Vec<String>,
    shows: Vec<Shown>,
    overlays: Vec<OverlayRow>,
    /// Microseconds.
    ran_us: u64,
    saved: i64,
    /// What a clock of the sandbox's own showed then, if it has one.
    clock: Option<i64>,
    /// It is to do the same whenever it is done.
    deterministic: bool,
    processes: Vec<ProcessRow>,
    sockets: Vec<SocketRow>,
    pages: Pages,
}

#[derive(Debug, Serialize)]
struct HostFacts {
    kernel: String,
    page_size: u32,
    vdso: String,
    /// As /proc/cpuinfo names them.
    cpu: Vec<String>,
}

/// A path of the host that a flag or the working directory shows.
#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    at: String,
    writable: bool,
}

/// A directory whose changes the image carries.
#[derive(Debug, Serialize)]
struct OverlayRow {
    path: String,
    /// Entries of its layers: what was changed, what was removed, and the directories above.
    entries: u64,
    /// Bytes of the files among them.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct ProcessRow {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// `running`, `stopped` or `zombie`.
    state: &'static str,
    exe: String,
    container: String,
    threads: Vec<ThreadRow>,
    /// Bytes of its mappings, and of its own pages in the image (shared by processes that share memory).
    mapped: u64,
    stored: u64,
    descriptors: Vec<DescriptorRow>,
}

#[derive(Debug, Serialize)]
struct ThreadRow {
    tid: i32,
    name: String,
}

#[derive(Debug, Serialize)]
struct DescriptorRow {
    fd: i32,
    /// Equal for descriptors that share one open file description.
    file: u32,
    kind: &'static str,
    what: String,
}

#[derive(Debug, Serialize)]
struct SocketRow {
    file: u32,
    family: i32,
}

/// See [`Summary`].
#[derive(Debug, Serialize)]
struct Pages {
    stored: u64,
    zero: u64,
    same: u64,
    stream_bytes: u64,
}

fn image(path: &Path) -> Result<ImageReport, String> {
    let (file, _) = image_file(path)?;
    let failed = |error: RestoreError| format!("cannot inspect {}: {error}", named(path));
    let from = std::io::BufReader::with_capacity(1 << 20, file);
    let Image { features, compressed, state_bytes, sandbox, reader, .. } =
        opened::look(from).map_err(failed)?;
    let saved = spec::read(&sandbox.run.spec).map_err(failed)?;
    let (stored, summary) = content(reader).map_err(failed)?;
    Ok(ImageReport {
        kind: "image",
        format: VERSION,
        compressed,
        bytes: summary.bytes,
        state_bytes,
        host: HostFacts {
            kernel: features.kernel,
            page_size: features.page_size,
            vdso: format!("{:016x}", features.vdso.checksum),
            cpu: features.flags.into_iter().collect(),
        },
        id: sandbox.run.id.clone(),
        command: saved.argv.iter().map(|word| lossy(word)).collect(),
        workdir: lossy(&saved.workdir),
        user: saved.identity.uid,
        root: saved.root,
        group: saved.identity.gid,
        network: match (saved.host_network, &saved.reach) {
            (true, _) => "host",
            (false, Some(_)) => "allow",
            (false, None) => "none",
        },
        allowed: saved.reach.as_ref().map(|it| it.allow.clone()).unwrap_or_default(),
        published: saved.publish.clone(),
        shows: shows(&saved),
        overlays: overlays(&saved, &sandbox),
        ran_us: sandbox.run.ran_us,
        saved: sandbox.run.saved_us,
        clock: sandbox.own_clocks.as_ref().map(|clocks| clocks.realtime / 1000),
        deterministic: sandbox.repeat.is_some(),
        processes: sandbox.processes.iter().map(|it| process(&sandbox, it, &stored)).collect(),
        sockets: sockets(&sandbox),
        pages: Pages {
            stored: summary.data_pages,
            zero: summary.zero_pages,
            same: summary.same_pages,
            stream_bytes: summary.stream_bytes,
        },
    })
}

/// Reads all content; the bytes of each object that are in the image.
fn content<R: std::io::Read>(
    mut reader: crate::save::image::Reader<R>,
) -> Result<(BTreeMap<u32, u64>, Summary), RestoreError> {
    let mut stored: BTreeMap<u32, u64> = BTreeMap::new();
    while let Some(frame) = reader.next_frame()? {
        let (object, bytes) = match frame {
            Frame::Data { object, pages, .. } => (object, pages.len() as u64),
            Frame::Bytes { object, bytes, .. } => (object, bytes.len() as u64),
            // Zeros and repetitions are present, and take no room.
            Frame::Zero { object, count, .. } | Frame::Same { object, count, .. } => {
                (object, count.saturating_mul(PAGE))
            }
        };
        let sum = stored.entry(object).or_default();
        *sum = sum.saturating_add(bytes);
    }
    let summary = reader.summary().unwrap_or_default();
    reader.expect_end()?;
    Ok((stored, summary))
}

fn shows(saved: &SavedSpec) -> Vec<Shown> {
    saved
        .shown()
        .map(|(source, target, writable)| Shown {
            path: lossy(source),
            at: lossy(target),
            writable,
        })
        .collect()
}

/// The directories of `--overlay`, each with the layers in it.
fn overlays(saved: &SavedSpec, sandbox: &Saved) -> Vec<OverlayRow> {
    let all: Vec<&[u8]> = saved.overlays().collect();
    let path = |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).to_owned();
    let mut rows: Vec<OverlayRow> =
        all.iter().map(|it| OverlayRow { path: lossy(it), entries: 0, bytes: 0 }).collect();
    for layer in sandbox.overlay.iter().flat_map(|overlay| &overlay.layers) {
        let target = path(&layer.tree.target);
        let within = |at: &usize| target.starts_with(path(all[*at]));
        let Some(nearest) = (0..all.len()).filter(within).max_by_key(|at| all[*at].len()) else {
            continue;
        };
        let row = &mut rows[nearest];
        // The directory itself is in it in any case.
        let entries = layer.tree.entries.iter().skip(1);
        for entry in entries {
            row.entries += 1;
            row.bytes = row.bytes.saturating_add(match entry.kind {
                TreeKind::File { size, .. } | TreeKind::Small { size, .. } => size,
                _ => 0,
            });
        }
    }
    rows
}

fn process(sandbox: &Saved, it: &Process, stored: &BTreeMap<u32, u64>) -> ProcessRow {
    let space = it.space.and_then(|space| sandbox.spaces.get(space as usize));
    let table = it.table.and_then(|table| sandbox.tables.get(table as usize));
    let mapped = space.map_or(0, |space| {
        let sizes = space.mappings.iter().map(|it| it.end.saturating_sub(it.start));
        sizes.fold(0, u64::saturating_add)
    });
    let descriptors = table.into_iter().flat_map(|table| &table.descriptors).map(|descriptor| {
        let file = sandbox.files.get(descriptor.file as usize);
        let (kind, what) = file.map_or(("unknown", String::new()), |file| described(&file.kind));
        DescriptorRow { fd: descriptor.fd, file: descriptor.file, kind, what }
    });
    ProcessRow {
        pid: it.pid,
        parent: it.parent,
        group: it.group,
        session: it.session,
        state: match (it.zombie, it.stopped) {
            (Some(_), _) => "zombie",
            (_, Some(_)) => "stopped",
            _ => "running",
        },
        exe: space.map_or(String::new(), |space| lossy(&space.exe)),
        container: it.container.clone(),
        threads: it
            .threads
            .iter()
            .map(|thread| ThreadRow { tid: thread.tid, name: lossy(&thread.name) })
            .collect(),
        mapped,
        stored: space.and_then(|space| stored.get(&space.object)).copied().unwrap_or(0),
        descriptors: descriptors.collect(),
    }
}

/// A kind for programs, and the rest for people.
fn described(kind: &FileKind) -> (&'static str, String) {
    match kind {
        FileKind::Path { path, .. } => ("path", lossy(path)),
        FileKind::Deleted { path, .. } => ("deleted", lossy(path)),
        FileKind::Stream { stream, file, .. } => match file {
            Some((path, _)) => ("stream", format!("{stream} of the caller: {}", lossy(path))),
            None => ("stream", format!("{stream} of the caller")),
        },
        FileKind::LaterStream(stream) => {
            ("stream", format!("{stream} of a later program's caller"))
        }
        FileKind::OwnTerminal => ("terminal", "of the run".to_owned()),
        FileKind::Memory(index) => ("memfd", index.to_string()),
        FileKind::Pipe(index) => ("pipe", index.to_string()),
        FileKind::Event(value, _) => ("eventfd", value.to_string()),
        FileKind::Signals(mask) => ("signalfd", format!("{mask:016x}")),
        FileKind::Timer { .. } => ("timerfd", String::new()),
        FileKind::Epoll(watched) => ("epoll", format!("{} watched", watched.len())),
        FileKind::Inotify(watches, _) => ("inotify", format!("{} watches", watches.len())),
        FileKind::Pid(pid, _) => ("pidfd", pid.to_string()),
        FileKind::Socket(socket) => ("socket", format!("family {}", socket.family)),
        FileKind::PtyMaster(index) => ("pty-master", index.to_string()),
        FileKind::PtySlave(index) => ("pty-slave", index.to_string()),
        FileKind::ControllingTerminal => ("tty", String::new()),
        FileKind::MessageQueue(name) => ("mqueue", lossy(name)),
        FileKind::Namespace(link) => ("namespace", link.clone()),
    }
}

fn sockets(sandbox: &Saved) -> Vec<SocketRow> {
    let files = (0..).zip(&sandbox.files);
    let sockets = files.filter_map(|(file, it)| match &it.kind {
        FileKind::Socket(socket) => Some(SocketRow { file, family: socket.family }),
        _ => None,
    });
    sockets.collect()
}

/// A running sandbox; docs/control.md names its fields.
#[derive(Debug, Serialize)]
struct RunningReport {
    kind: &'static str,
    id: String,
    command: Vec<String>,
    /// Microseconds since 1970.
    started: u64,
    detached: bool,
    processes: Vec<ProcessInfo>,
    stats: Stats,
}

fn running(word: &str) -> Result<RunningReport, String> {
    let sandbox = Sandbox::find(word).map_err(|error| match error {
        ClientError::State(state::StateError::NotFound(_)) => format!(
            "there is neither a file nor a sandbox named {}; sandbox ps lists those that run",
            quoted(word)
        ),
        error => error.to_string(),
    })?;
    let asked = || -> Result<_, ClientError> {
        match sandbox.ask(&Request::Processes)? {
            Reply::Processes(processes) => Ok((processes, stats::ask(&sandbox)?)),
            other => Err(ClientError::unexpected(word, &other)),
        }
    };
    let (processes, stats) = asked().map_err(|error| error.to_string())?;
    let info = sandbox.listed.info;
    Ok(RunningReport {
        kind: "sandbox",
        id: sandbox.listed.id,
        command: info.command,
        started: info.started,
        detached: info.detached,
        processes,
        stats,
    })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line.
fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).map_or_else(|error| error.to_string(), |text| text + "\n")
}
