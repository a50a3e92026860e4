//! The order of a save: stop, capture, write, and only then end.
//!
//! Refusals come first, while nothing has been changed. The guests are stopped once. Where they are to
//! end, they stay so until the image is safe, since what they did afterwards would be done twice; whatever
//! goes wrong before that lets them go on.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;

use crate::overlay::Saver;
use crate::save::capture::collector::{Collector, Content};
use crate::save::capture::filters::Filters;
use crate::save::capture::snapshot::{self, Live};
use crate::save::capture::sockets::Around;
use crate::save::capture::waits::Asleep;
use crate::save::capture::{self, Earlier, Found, Streams};
use crate::save::content;
use crate::save::error::SaveError;
use crate::save::image::{Features, ImageError, Writer};
use crate::save::out::Out;
use crate::save::patience::patiently;
use crate::save::ptys::OwnTerminal;
use crate::save::state::{FileKind, OpenFile, Overlay, Run, Sandbox};
use crate::save::strict;
use crate::sentry::net::Meter;
use crate::sentry::{
    self, Kernel, KernelError, Level, SavedListing, SavedRepeat, Unsettled, filter_count,
};

/// How to save.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The guests go on afterwards; else they are ended once the image is safe.
    pub leave_running: bool,
    /// What would be lost of connections in the host's network is a reason to refuse.
    pub strict: bool,
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

/// Tells how far it is; gives whether anybody still wants the image.
pub type Tell = Arc<dyn Fn(Progress) -> bool + Send + Sync>;

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

/// The master of a program's terminal, and which of its standard streams that took the place of.
pub type ItsTerminal = (Arc<OwnedFd>, [bool; 3]);

/// What the run is, for who comes from an image.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The run specification in its saved form.
    pub spec: ByteBuf,
    /// The id of the sandbox.
    pub id: String,
    /// Where file systems in memory are mounted that are the sandbox's own.
    pub trees: Vec<std::path::PathBuf>,
    /// Its overlay, if it has one.
    pub overlay: Option<Arc<Saver>>,
    /// The terminal of the run's program, the first of the sandbox's, if it has one: the master, and
    /// which of the standard streams it took the place of.
    pub terminal: Option<ItsTerminal>,
}

impl Facts {
    /// The caller's standard streams, which are the supervisor's own, and the terminal in place of some in
    /// the guests' view, which lies there.
    pub fn streams(&self, view: &str) -> Result<Streams, SaveError> {
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
            let terminal = std::fs::metadata(format!("{view}/dev/pts/0"));
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
    progress: &Tell,
    commit: &mut dyn FnMut(&Saved) -> Result<(), SaveError>,
) -> Result<Saved, SaveError> {
    let features = Features::of_this_machine()?;
    refuse_early(kernel)?;
    if options.strict {
        strict::refuse_early(kernel)?;
    }
    if let Some(lazy) = kernel.lazy() {
        lazy.settle(kernel, &Unsettled::Everything).map_err(SaveError::refused)?;
    }
    let rest = |time| rest(kernel, progress, time);
    if options.leave_running {
        let (sandbox, mut found, pause) =
            patiently(|| captured_live(kernel, facts, options), rest)?;
        let written = write(&sandbox, &found, &features, out, options, progress);
        let ending = snapshot::begin_to_end(&mut found);
        // The copies end with the rest of it: whatever could not be read then, that is why.
        let written = written.map_err(|error| match has_ended(kernel) {
            true => SaveError::refused("its program has ended while it was saved"),
            false => error,
        });
        let saved = written.map(|(saved, _)| Saved { pause, ..saved });
        let saved = saved.and_then(|saved| commit(&saved).map(|()| saved));
        ending.wait(kernel);
        return saved;
    }
    let standing = patiently(|| captured_standing(kernel, facts, options), rest)?;
    let Standing { sandbox, found, begun, still: _still } = standing;
    let saved = (|| {
        let (mut saved, mark) = write(&sandbox, &found, &features, out, options, progress)?;
        saved.pause = begun.elapsed();
        commit(&saved)?;
        note_overlay(kernel, facts, mark.as_deref());
        Ok(saved)
    })();
    match saved {
        Ok(_) => {
            // (The end of the programs is not that of what they had to say.)
            kernel.break_connections_off();
            kernel.kill(libc::SIGKILL).inspect_err(|_| note_overlay(kernel, facts, None))?;
        }
        Err(_) => kernel.unpause()?,
    }
    saved
}

/// The image is safe, and what the run's overlay holds is in it from here on; none: no longer.
fn note_overlay(kernel: &Kernel, facts: &Facts, mark: Option<&[u8]>) {
    let Some(saver) = &facts.overlay else { return };
    if let Err(error) = saver.mark(mark) {
        // Whoever restores it is told that there is another one.
        kernel.log().write(Level::Warning, &error.to_string());
    }
}

/// Lets the guests do for a moment what a save waits for, as long as anybody wants the image.
fn rest(kernel: &Kernel, progress: &Tell, time: Duration) -> Result<(), SaveError> {
    /// Who does not want it any more does not wait longer than this.
    const SLICE: Duration = Duration::from_millis(128);
    let end = Instant::now() + time;
    loop {
        if kernel.is_paused() {
            return Err(SaveError::refused("which does not change while it is paused"));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
        if !progress(Progress::default()) {
            return Err(SaveError::refused("nobody wants the image any more"));
        }
    }
}

/// Whether the run's program is no more, also if nobody was told yet.
fn has_ended(kernel: &Kernel) -> bool {
    kernel.program().is_none_or(|pid| {
        capture::stat::read(pid).is_none_or(|it| matches!(it.state(), b'Z' | b'X'))
    })
}

/// Refuses what can be told before anything is stopped.
fn refuse_early(kernel: &Kernel) -> Result<(), SaveError> {
    use sentry::Features;
    let reasons = [
        (
            Features::NO_NAMESPACES,
            "it runs with --walls landlock in the host's namespaces, where its process numbers may be taken when it \
             is restored; run it without",
        ),
        (
            Features::SUB_IDS,
            "its ids are subordinate ones (--root=sub-ids), which an image does not carry; run it without",
        ),
        (
            Features::FILE_LOG,
            "it is run with --record-files, or by sandbox learn, whose list of files an image does not carry; \
             run it without",
        ),
    ];
    let features = kernel.features();
    if let Some((_, why)) = reasons.into_iter().find(|(feature, _)| features.contains(*feature)) {
        return Err(SaveError::refused(why));
    }
    Ok(())
}

/// Stops the guests. Gives what can only be told just before, and the moment from which on they stand still
/// for the save.
fn stop(kernel: &Kernel) -> Result<(Earlier, Instant), KernelError> {
    let cpu_us = kernel.cpu_time().as_micros() as u64;
    let (mut asleep, begun) = kernel.pause_outside_vfork(|| {
        // (Who has just come has not slept long.)
        let asleep = Asleep::look(kernel.guests_there()?.into_iter());
        Ok((asleep, Instant::now()))
    })?;
    asleep.confirm();
    asleep.know(kernel.interrupted_waits(), kernel.time().keeper().rate());
    // Before that, others than guests were looked at.
    let begun = kernel.stopped_since().map_or(begun, |since| since.max(begun));
    Ok((Earlier { asleep, carried: Arc::clone(kernel.carried()), cpu_us }, begun))
}

/// Guests that stand still, and what has been captured of them.
struct Standing<'k> {
    sandbox: Sandbox,
    found: Found,
    /// Since when.
    begun: Instant,
    /// What is counted of their traffic stands still, too, so that the image has all of it.
    still: Option<Still<'k>>,
}

/// Nothing is carried while it is there.
type Still<'k> = tokio::sync::RwLockWriteGuard<'k, ()>;

/// Captures guests that stand still from then on. An error: they go on.
fn captured_standing<'k>(
    kernel: &'k Arc<Kernel>,
    facts: &Facts,
    options: Options,
) -> Result<Standing<'k>, SaveError> {
    let (earlier, begun) = stop(kernel)?;
    let still = kernel.meter().map(Meter::stand_still);
    let captured = captured(kernel, facts, options, earlier, None);
    if captured.is_err() {
        kernel.unpause()?;
    }
    captured.map(|(sandbox, found)| Standing { sandbox, found, begun, still })
}

/// Captures guests that go on again at once: what is to be read later is read from copies of them. Gives
/// how long they stood still.
fn captured_live(
    kernel: &Arc<Kernel>,
    facts: &Facts,
    options: Options,
) -> Result<(Sandbox, Found, Duration), SaveError> {
    // The second time nothing is taken for granted.
    for is_prepared in [true, false] {
        let live = Live::new(kernel, is_prepared)?;
        let (earlier, begun) = stop(kernel)?;
        let still = kernel.meter().map(Meter::stand_still);
        let captured = captured(kernel, facts, options, earlier, Some(live)).and_then(
            |(sandbox, mut found)| {
                content::keep(&mut found.collector.contents)?;
                Ok((sandbox, found))
            },
        );
        drop(still);
        kernel.unpause()?;
        let pause = begun.elapsed();
        let (mut sandbox, mut found) = captured?;
        match snapshot::settle(&mut found, &mut sandbox.spaces, is_prepared) {
            Ok(true) => return Ok((sandbox, found, pause)),
            Ok(false) => snapshot::end(kernel, &mut found),
            Err(_) if has_ended(kernel) => {
                snapshot::end(kernel, &mut found);
                return Err(SaveError::refused("its program has ended while it was saved"));
            }
            Err(error) => {
                snapshot::end(kernel, &mut found);
                return Err(error);
            }
        }
    }
    Err(SaveError::refused("mappings of its processes cannot be read; try again"))
}

/// What is known of the stopped guests.
fn captured(
    kernel: &Arc<Kernel>,
    facts: &Facts,
    options: Options,
    earlier: Earlier,
    live: Option<Live>,
) -> Result<(Sandbox, Found), SaveError> {
    let guests = kernel.census_of_stopped()?;
    let program = kernel.program().ok_or(SaveError::refused("its program has ended"))?;
    let program = guests
        .iter()
        .find(|guest| guest.pid == program)
        .map(|guest| guest.guest_pid)
        .ok_or(SaveError::refused("its program has ended"))?;
    let cpu_us = earlier.cpu_us;
    let gate = Arc::clone(kernel.gate().ok_or(SaveError::refused("nothing runs in it"))?);
    let still = kernel.still_devices();
    let devices = kernel.saved_devices(&still);
    let groups: Vec<(i32, i32)> = guests.iter().map(|it| (it.pid, it.guest_pid)).collect();
    let (own, later) = (facts.clone(), kernel.later_programs());
    let network = kernel.network().cloned();
    let takes_part = network.is_some() || !kernel.published().is_empty();
    let around = Around { strict: options.strict, network, takes_part };
    let log = Arc::clone(kernel);
    let view = kernel.whole_view().map_err(|it| SaveError::failed("its file view", it))?;
    let changed_files = kernel.asking().map(|it| it.changed_files()).unwrap_or_default();
    let work = move |tracees: &mut _| {
        let before = filter_count(log.init_pid()).unwrap_or(0);
        let filters = Filters { log: log.filters(), before, gate: &gate };
        let mut found = Found::new(earlier, around);
        found.collector.known.devices = devices;
        found.collector.known.view = view.map(Arc::new);
        found.collector.known.changed_files = changed_files;
        found.later = later;
        let done = capture::sandbox(tracees, filters, &guests, &own, live.as_ref(), &mut found);
        if done.is_err() {
            // Another attempt is not to meet them.
            snapshot::end_here(&mut found);
        }
        done.map(|()| found)
    };
    let found = kernel.tracer().run(work).map_err(KernelError::Tracer)?;
    drop(still);
    let mut found = found?;
    let repeat = repeat(kernel, &groups, &found.collector);
    let root = capture::believed::capture(kernel, &groups, &found)?;
    let collector = &mut found.collector;
    let own_clocks = kernel.time().saved(found.clocks.realtime);
    let own_clocks = own_clocks.map_err(|_| {
        SaveError::refused("the host's vDSO, through which programs read clocks, is not known")
    })?;
    let sandbox = Sandbox {
        run: Run {
            spec: facts.spec.clone(),
            id: facts.id.clone(),
            log: kernel.log().since(0).0,
            program,
            // The guest's uptime begins with its sandbox.
            ran_us: found.clocks.boottime.max(0) as u64 / 1000,
            saved_us: found.clocks.realtime / 1000,
            cpu_us,
        },
        clocks: found.clocks,
        own_clocks,
        repeat,
        root,
        network: kernel.network().map(|network| network.saved()),
        carried: kernel.meter().and_then(Meter::used),
        spaces: std::mem::take(&mut found.spaces),
        processes: std::mem::take(&mut found.processes),
        keepers: std::mem::take(&mut found.keepers),
        sharing: std::mem::take(&mut found.sharing),
        files: std::mem::take(&mut collector.files),
        tables: std::mem::take(&mut found.tables),
        shared: std::mem::take(&mut collector.shared),
        trees: std::mem::take(&mut found.trees),
        overlay: found.overlay.take(),
        ipc: std::mem::take(&mut found.ipc),
        pipes: std::mem::take(&mut collector.pipes),
        terminals: std::mem::take(&mut collector.terminals),
        terminal: own_terminal(facts, &groups)?,
    };
    Ok((sandbox, found))
}

/// What a run with `--deterministic` goes on with. `groups`: as below.
fn repeat(kernel: &Kernel, groups: &[(i32, i32)], collector: &Collector) -> Option<SavedRepeat> {
    let randomness = kernel.saved_randomness(&groups.iter().copied().collect())?;
    let listing = |(index, file): (usize, &OpenFile)| {
        let (FileKind::Path { identity, .. } | FileKind::Deleted { identity, .. }) = &file.kind
        else {
            return None;
        };
        let found = kernel.saved_listing(identity.inode, file.position)?;
        Some(SavedListing { file: index as u32, ..found })
    };
    let listings = collector.files.iter().enumerate().filter_map(listing).collect();
    Some(SavedRepeat { randomness, devices: collector.known.open_devices(), listings })
}

/// The terminal of the run's program. `groups`: numbers of processes on the host and for the guest.
fn own_terminal(facts: &Facts, groups: &[(i32, i32)]) -> Result<Option<OwnTerminal>, SaveError> {
    let Some((master, streams)) = &facts.terminal else { return Ok(None) };
    let leader = nix::unistd::tcgetpgrp(master.as_fd()).map_or(0, nix::unistd::Pid::as_raw);
    let foreground = groups.iter().find(|(pid, _)| *pid == leader).map_or(0, |(_, guest)| *guest);
    capture::ptys::capture_own(master.as_fd(), *streams, foreground).map(Some)
}

/// Writes the image. Gives what it is known by to an overlay that it has all of, too.
fn write(
    sandbox: &Sandbox,
    found: &Found,
    features: &Features,
    out: File,
    options: Options,
    progress: &Tell,
) -> Result<(Saved, Option<Vec<u8>>), SaveError> {
    let mut state = Vec::new();
    ciborium::into_writer(sandbox, &mut state)
        .map_err(|error| SaveError::failed("the state cannot be written", error))?;
    let contents = &found.collector.contents;
    let total = contents.iter().map(Content::bytes).sum::<u64>() + state.len() as u64;
    let out = Out::new(out, total, Arc::clone(progress));
    let place = out.place();
    let mut writer = Writer::begin_in(out, place, features, &state, options.compression)?;
    // An overlay is to know what it was saved with, if it stays behind.
    let layers = sandbox.overlay.as_ref().filter(|_| !options.leave_running);
    let sum =
        content::write(contents, &layers.map(Overlay::objects).unwrap_or_default(), &mut writer)?;
    let (mut out, summary) = writer.finish()?;
    out.flush().map_err(|error| SaveError::failed("the image cannot be written", error))?;
    match out.file().sync_all() {
        Ok(()) => {}
        // A pipe has no disk.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) => {}
        Err(error) => {
            return Err(SaveError::failed("the image cannot be written to the disk", error));
        }
    }
    let threads = sandbox.processes.iter().map(|process| process.threads.len() as u64).sum();
    let processes = sandbox.processes.len() as u64;
    let mark = layers.map(|overlay| [&overlay.mark(&state)[..], &sum].concat());
    Ok((Saved { bytes: summary.bytes, processes, threads, pause: Duration::ZERO }, mark))
}
