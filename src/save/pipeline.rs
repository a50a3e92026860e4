//! The order of a save: stop, capture, write, and only then end.
//!
//! Refusals come first, while nothing has been changed. The guests are stopped once. Where they are to
//! end, they stay so until the image is safe, since what they did afterwards would be done twice; whatever
//! goes wrong before that lets them go on.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;

use crate::save::capture::collector::Content;
use crate::save::capture::filters::Filters;
use crate::save::capture::{self, Found, Streams};
use crate::save::error::SaveError;
use crate::save::hand;
use crate::save::image::{Features, ImageError, Writer};
use crate::save::ptys::OwnTerminal;
use crate::save::state::{Run, Sandbox};
use crate::sentry::{Kernel, KernelError, filter_count};

const PAGE: u64 = 4096;

/// How to save.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The guests go on afterwards; else they are ended once the image is safe.
    pub leave_running: bool,
    /// Level of zstd; none: pages are stored as they are.
    pub compression: Option<i32>,
}

/// How far a save or a restore is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, as far as is known.
    pub total: u64,
}

/// What was saved.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// Bytes of the image.
    pub bytes: u64,
    /// Processes and threads in it.
    pub processes: u64,
    /// See above.
    pub threads: u64,
    /// How long the guests stood still.
    pub pause: Duration,
}

/// What the run is, for who comes from an image.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The run specification in its saved form.
    pub spec: ByteBuf,
    /// The id of the sandbox.
    pub id: String,
    /// Where file systems in memory are mounted that are the sandbox's own.
    pub trees: Vec<std::path::PathBuf>,
    /// The terminal of the run's program, the first of the sandbox's, if it has one: the master, and
    /// which of the standard streams it took the place of.
    pub terminal: Option<(Arc<OwnedFd>, [bool; 3])>,
}

impl Facts {
    /// The caller's standard streams, which are the supervisor's own, and the terminal in place of some in
    /// the view of guest `pid`, as the host numbers it.
    pub fn streams(&self, pid: i32) -> Result<Streams, SaveError> {
        use std::os::unix::fs::MetadataExt;
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let all = [(0, stdin.as_fd()), (1, stdout.as_fd()), (2, stderr.as_fd())];
        let open: Vec<_> = all
            .into_iter()
            .filter(|(fd, _)| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok())
            .collect();
        let mut streams = Streams::new(&open)
            .map_err(|error| SaveError::failed("the standard streams cannot be read", error))?;
        if self.terminal.is_some() {
            let terminal = std::fs::metadata(format!("/proc/{pid}/root/dev/pts/0"));
            streams.terminal = terminal.ok().map(|found| (found.dev(), found.ino()));
        }
        Ok(streams)
    }
}

impl From<KernelError> for SaveError {
    fn from(error: KernelError) -> Self {
        SaveError::Failed(error.to_string())
    }
}

impl From<ImageError> for SaveError {
    fn from(error: ImageError) -> Self {
        SaveError::Failed(error.to_string())
    }
}

/// Saves the sandbox into `out`. `commit` is called once all of it is there and on the disk, if `out` is on
/// one: if it says no, the guests go on. Blocks.
pub fn save(
    kernel: &Arc<Kernel>,
    facts: &Facts,
    out: File,
    options: Options,
    progress: &(dyn Fn(Progress) + Sync),
    commit: &mut dyn FnMut(&Saved) -> Result<(), SaveError>,
) -> Result<Saved, SaveError> {
    let features = Features::of_this_machine()?;
    kernel.pause()?;
    let stopped = Instant::now();
    let saved = (|| {
        let (sandbox, found) = captured(kernel, facts)?;
        let mut saved = write(&sandbox, &found, &features, out, options, progress)?;
        saved.pause = stopped.elapsed();
        commit(&saved)?;
        Ok(saved)
    })();
    match (&saved, options.leave_running) {
        (Ok(_), false) => kernel.kill(libc::SIGKILL)?,
        _ => kernel.unpause()?,
    }
    saved
}

/// What is known of the stopped guests.
fn captured(kernel: &Arc<Kernel>, facts: &Facts) -> Result<(Sandbox, Found), SaveError> {
    let guests = kernel.census()?;
    let program = kernel.program().ok_or(SaveError::refused("its program has ended"))?;
    let program = guests
        .iter()
        .find(|guest| guest.pid == program)
        .map(|guest| guest.guest_pid)
        .ok_or(SaveError::refused("its program has ended"))?;
    let gate = Arc::clone(kernel.gate().ok_or(SaveError::refused("nothing runs in it"))?);
    let groups: Vec<(i32, i32)> = guests.iter().map(|it| (it.pid, it.guest_pid)).collect();
    let own = facts.clone();
    let log = Arc::clone(kernel);
    let work = move |tracees: &mut _| {
        let before = filter_count(log.init_pid()).unwrap_or(0);
        let filters = Filters { log: log.filters(), before, gate: &gate };
        capture::sandbox(tracees, filters, &guests, &own)
    };
    let mut found = kernel.tracer().run(work).map_err(KernelError::Tracer)??;
    let collector = &mut found.collector;
    let sandbox = Sandbox {
        run: Run {
            spec: facts.spec.clone(),
            id: facts.id.clone(),
            log: kernel.log().since(0).0,
            program,
            last_pid: 0,
            ran_us: 0,
            saved_us: 0,
        },
        clocks: found.clocks,
        spaces: std::mem::take(&mut found.spaces),
        processes: std::mem::take(&mut found.processes),
        files: std::mem::take(&mut collector.files),
        tables: std::mem::take(&mut found.tables),
        shared: std::mem::take(&mut collector.shared),
        trees: std::mem::take(&mut found.trees),
        ipc: std::mem::take(&mut found.ipc),
        pipes: std::mem::take(&mut collector.pipes),
        terminals: std::mem::take(&mut collector.terminals),
        terminal: own_terminal(facts, &groups)?,
    };
    Ok((sandbox, found))
}

/// The terminal of the run's program. `groups`: numbers of processes on the host and for the guest.
fn own_terminal(facts: &Facts, groups: &[(i32, i32)]) -> Result<Option<OwnTerminal>, SaveError> {
    let Some((master, streams)) = &facts.terminal else { return Ok(None) };
    let leader = nix::unistd::tcgetpgrp(master.as_fd()).map_or(0, nix::unistd::Pid::as_raw);
    let foreground = groups.iter().find(|(pid, _)| *pid == leader).map_or(0, |(_, guest)| *guest);
    capture::ptys::capture_own(master.as_fd(), *streams, foreground).map(Some)
}

fn write(
    sandbox: &Sandbox,
    found: &Found,
    features: &Features,
    out: File,
    options: Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Saved, SaveError> {
    let mut state = Vec::new();
    ciborium::into_writer(sandbox, &mut state)
        .map_err(|error| SaveError::failed("the state cannot be written", error))?;
    let disk = out.try_clone().map_err(|error| SaveError::failed("the image", error))?;
    let mut writer = Writer::begin_in_background(out, features, &state, options.compression)?;
    let contents = &found.collector.contents;
    let mut now = Progress { done: 0, total: contents.iter().map(Content::bytes).sum() };
    for content in contents {
        content.write(&mut writer)?;
        now.done += content.bytes();
        progress(now);
    }
    let (mut out, summary) = writer.finish()?;
    out.flush().map_err(|error| SaveError::failed("the image cannot be written", error))?;
    match disk.sync_all() {
        Ok(()) => {}
        // A pipe has no disk.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) => {}
        Err(error) => {
            return Err(SaveError::failed("the image cannot be written to the disk", error));
        }
    }
    let threads = sandbox.processes.iter().map(|process| process.threads.len() as u64).sum();
    let processes = sandbox.processes.len() as u64;
    Ok(Saved { bytes: summary.bytes, processes, threads, pause: Duration::ZERO })
}

impl Content {
    /// How much it is.
    pub fn bytes(&self) -> u64 {
        match self {
            Content::Pages { ranges, .. } => ranges.iter().map(|(start, end)| end - start).sum(),
            Content::Mapping { start, end, .. } => end - start,
            Content::File { size, .. } | Content::Below { size, .. } => *size,
        }
    }

    fn write<W: Write>(&self, writer: &mut Writer<W>) -> Result<(), SaveError> {
        let unreadable = |errno: nix::errno::Errno| ImageError::Unwritable {
            what: format!("the memory of a guest cannot be read: {}", errno.desc()),
        };
        match self {
            Content::Pages { object, pid, ranges } => {
                for (start, end) in ranges {
                    let pages = (end - start) / PAGE;
                    writer.pages_with(*object, *start, pages, |address, to| {
                        read(*pid, address, to).map_err(unreadable)
                    })?;
                }
            }
            Content::Mapping { object, pid, start, end, offset } => {
                let pages = (end - start) / PAGE;
                writer.pages_with(*object, *offset, pages, |at, to| {
                    read(*pid, start + (at - offset), to).map_err(unreadable)
                })?;
            }
            Content::File { object, file, size } => stream(writer, *object, file, *size)?,
            Content::Below { object, directory, path, size } => {
                let show = path.to_string_lossy();
                let file = Content::open_below(directory, path).map_err(|errno| {
                    SaveError::failed(format!("{show} cannot be read"), errno.desc())
                })?;
                stream(writer, *object, &file, *size)?;
            }
        }
        Ok(())
    }
}

/// Memory of a guest, also where it has no right to read it itself.
fn read(pid: i32, address: u64, to: &mut [u8]) -> Result<(), nix::errno::Errno> {
    use std::os::unix::fs::FileExt;
    match hand::read(pid, address, to) {
        Err(nix::errno::Errno::EFAULT) => {
            hand::memory(pid, false)?.read_exact_at(to, address).map_err(|error| {
                nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
            })
        }
        done => done,
    }
}

/// The content of a file. Holes stay holes: they are not in the image.
fn stream<W: Write>(
    writer: &mut Writer<W>,
    object: u32,
    file: &File,
    size: u64,
) -> Result<(), SaveError> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    // A page of zeros may be a hole.
    const BLOCK: usize = 4096;
    let mut at = 0;
    while at < size {
        let most = (size - at).min(buffer.len() as u64) as usize;
        let count = file
            .read_at(&mut buffer[..most], at)
            .map_err(|error| SaveError::failed("a file of the sandbox cannot be read", error))?;
        if count == 0 {
            break;
        }
        let mut begin = None;
        for (index, block) in buffer[..count].chunks(BLOCK).enumerate() {
            let position = index * BLOCK;
            match (block.iter().any(|byte| *byte != 0), begin) {
                (true, None) => begin = Some(position),
                (false, Some(from)) => {
                    writer.bytes(object, at + from as u64, &buffer[from..position])?;
                    begin = None;
                }
                _ => {}
            }
        }
        if let Some(from) = begin {
            writer.bytes(object, at + from as u64, &buffer[from..count])?;
        }
        at += count as u64;
    }
    Ok(())
}
