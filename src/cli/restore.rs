//! `sandbox restore`: from an image to running programs and the status of the run's own.
//!
//! Owns the words, the opening of the image and of redirected streams, and what is said of what the
//! image's run was allowed. An image decides nothing that this user could not ask for: see
//! [`crate::config::SavedSpec`].

mod networks;
mod overlays;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use overlays::Overlays;

use super::progress::Bar;
use super::run::{Failure, end_in_background, end_in_foreground, hide};
use super::{OWN_ERROR, explain, fail, print};
use crate::config::{Host, RunSpec, Voice, grants, quoted};
use crate::control::detach::{self, Outcome, Side};
use crate::control::{Claim, Control};
use crate::overlay::hidden_places;
use crate::runtime::{self, AtEnd, Beside, Fill, Finished, Restored};
use crate::save::error::RestoreError;
use crate::save::image::{Index, Reader};
use crate::save::opened::{self, Image};
use crate::save::restore::descriptors::FilesPolicy;
use crate::save::restore::lazy::Lazy;
use crate::save::restore::{self, Wanted, direct, fill};
use crate::save::spec;
use crate::save::state::Sandbox;
use crate::sentry::Features;
use crate::sentry::file_log::Report;
use crate::sys::files;
use crate::timekeeping::Passed;

/// The words of `sandbox restore`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The image; - is the standard input
    #[arg(value_name = "IMAGE|-")]
    image: PathBuf,
    /// Name the sandbox, instead of as it was named when it was saved
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Go on in the background: print the ID once the programs run, and return
    #[arg(long)]
    detach: bool,
    /// Read FILE where the standard input was
    #[arg(long, value_name = "FILE", help_heading = STREAMS)]
    stdin: Option<PathBuf>,
    /// Write to FILE, emptied first, where the standard output was
    #[arg(long, value_name = "FILE", help_heading = STREAMS)]
    stdout: Option<PathBuf>,
    /// Write to FILE, emptied first, where the standard error was
    #[arg(long, value_name = "FILE", help_heading = STREAMS)]
    stderr: Option<PathBuf>,
    /// What to do about files of the host that have changed since
    #[arg(long, value_enum, default_value_t = Files::Strict)]
    files: Files,
    /// Where the programs' monotonic clock goes on
    #[arg(long, value_enum, default_value_t = Clock::Continue)]
    clock: Clock,
    /// Keep its overlays in PATH, instead of the usual place
    #[arg(long, value_name = "PATH")]
    overlay_dir: Option<PathBuf>,
    /// Lead these ports of the host inside, instead of those that its run was given
    #[arg(long, value_name = "[[ADDRESS:]PORT:]PORT")]
    publish: Vec<String>,
    /// Record in FILE what its network decides, instead of where its run did
    #[arg(long, value_name = "FILE")]
    net_log: Option<PathBuf>,
    /// Map memory from the image instead of reading it all first; the image must lie in a file, not
    /// compressed
    #[arg(long)]
    lazy: bool,
    /// Say on stderr what was decided and why
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

const STREAMS: &str = "Standard streams (without these: those of this command)";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Files {
    /// Refuse
    Strict,
    /// Use them as they are now
    ChangedOk,
}

impl Files {
    fn policy(self) -> FilesPolicy {
        match self {
            Files::Strict => FilesPolicy::Strict,
            Files::ChangedOk => FilesPolicy::ChangedOk,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Clock {
    /// Where it was saved
    Continue,
    /// Later by the time that has passed since
    Elapsed,
}

impl Clock {
    /// What becomes of the time in between.
    fn passed(self) -> Passed {
        match self {
            Clock::Continue => Passed::Nothing,
            Clock::Elapsed => Passed::All,
        }
    }
}

/// Where an image comes from.
struct Source {
    file: File,
    bar: Bar,
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.bar.add(count as u64);
        Ok(count)
    }
}

/// Brings the programs up again and follows the run's own to its end. Returns the exit status.
pub(super) fn run(command: Command) -> i32 {
    match open(&command) {
        Ok(image) if command.detach => match detach::split() {
            Ok(Side::Starter(Outcome::Started(id))) => {
                print(format_args!("{id}\n")).err().unwrap_or(0)
            }
            Ok(Side::Starter(Outcome::Refused(status, sentence))) => {
                fail(sentence);
                status
            }
            Ok(Side::Stayer(verdict)) => background(&command, image, verdict),
            Err(error) => fail(format_args!("cannot go to the background: {error}")),
        },
        Ok(image) => foreground(&command, image),
        Err(sentence) => fail(sentence),
    }
}

/// Opens the image and reads it up to its content. An image on the standard input leaves the programs
/// without one.
fn open(command: &Command) -> Result<Opened, String> {
    let (file, size) = image_file(&command.image)?;
    // (A file that has been read from, on the standard input, is another one from there on; a pipe has no place.)
    let is_whole = (&file).stream_position().is_ok_and(|at| at == 0);
    let descriptor = file.as_raw_fd();
    let source = Source { file, bar: Bar::new("restoring", size) };
    let bar = source.bar.clone();
    match opened::check(source) {
        Ok(image) => Ok(Opened { image, bar, descriptor, is_whole }),
        Err(error) => {
            bar.clear();
            Err(format!("cannot restore {}: {error}", named(&command.image)))
        }
    }
}

struct Opened {
    image: Image<Source>,
    bar: Bar,
    /// Where its content is read from.
    descriptor: i32,
    /// That begins with the image.
    is_whole: bool,
}

/// The image's file and size; 0: not known.
pub(super) fn image_file(path: &Path) -> Result<(File, u64), String> {
    let name = named(path);
    let failed = |cause: String| format!("cannot open {name}: {cause}");
    let why = |error: io::Error| failed(cause(&error));
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(failed("it is a terminal; give its name, or pipe it in".to_owned()));
        }
        // Above the standard streams, which are the programs'.
        let file = files::duplicate(0).map_err(|errno| failed(errno.desc().to_owned()))?;
        let null = File::open("/dev/null").map_err(why)?;
        files::place(null.as_raw_fd(), 0).map_err(|errno| failed(errno.desc().to_owned()))?;
        return Ok((File::from(file), 0));
    }
    let file = File::open(path).map_err(why)?;
    let metadata = file.metadata().map_err(why)?;
    if metadata.is_dir() {
        return Err(failed("it is a directory; name the file".to_owned()));
    }
    let size = if metadata.is_file() { metadata.len() } else { 0 };
    Ok((file, size))
}

/// An error of the kernel in its own words alone.
fn cause(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |errno| Errno::from_raw(errno).desc().to_owned())
}

/// The image in a sentence.
pub(super) fn named(path: &Path) -> String {
    match path == Path::new("-") {
        true => "the image on the standard input".to_owned(),
        false => quoted(path),
    }
}

fn foreground(command: &Command, opened: Opened) -> i32 {
    let claim = match claim(command, &opened.image) {
        Ok(claim) => claim,
        Err(sentence) => {
            opened.bar.clear();
            return fail(sentence);
        }
    };
    let mut control = Control::new(claim, None);
    let bar = opened.bar.clone();
    let done = attempt(command, opened, &mut control);
    bar.clear();
    end_in_foreground(Some(control), done)
}

/// The process of a detached run that stays.
fn background(command: &Command, opened: Opened, verdict: crate::control::Verdict) -> i32 {
    verdict.close_inherited(&[opened.descriptor]);
    let claimed = claim(command, &opened.image).and_then(|claim| {
        let output = claim.make_output().map_err(|error| error.to_string())?;
        Ok((output, claim))
    });
    let (output, claim) = match claimed {
        Ok(claimed) => claimed,
        Err(sentence) => {
            verdict.refused(OWN_ERROR, &sentence);
            return OWN_ERROR;
        }
    };
    let mut control = Control::new(claim, Some(verdict));
    let bar = opened.bar.clone();
    let done = detach::print_to(&output)
        .map_err(|error| (OWN_ERROR, format!("cannot redirect the output: {error}")))
        .and_then(|()| attempt(command, opened, &mut control));
    bar.clear();
    end_in_background(control, done)
}

/// Takes the id that the user or the image names.
fn claim(command: &Command, image: &Image<Source>) -> Result<Claim, String> {
    let run = &image.sandbox.run;
    let id = command.id.as_deref().unwrap_or(&run.id);
    let saved = spec::read(&run.spec).map_err(|error| refused(command, &error))?;
    let words = saved.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned());
    Claim::take(Some(id), words.collect(), command.detach).map_err(|error| error.to_string())
}

fn refused(command: &Command, why: impl std::fmt::Display) -> String {
    format!("cannot restore {}: {why}", named(&command.image))
}

/// Grants the run anew, says what that is, and goes on.
fn attempt(
    command: &Command,
    opened: Opened,
    control: &mut Control,
) -> Result<(RunSpec, Finished), Failure> {
    let own = |sentence: String| (OWN_ERROR, sentence);
    let file = regular_file(&opened);
    let plain = file.as_ref().filter(|_| !opened.image.compressed);
    if command.lazy && plain.is_none() {
        return Err(own(refused(
            command,
            "--lazy needs an image that lies in a file and is not compressed; leave it away",
        )));
    }
    let Opened { image, bar, .. } = opened;
    let Image { mut sandbox, mark, mut reader, .. } = image;
    let mut host = Host::current();
    host.private.push(control.base().to_owned());
    // It may write wherever its run could.
    hide(hidden_places(true), &mut host);
    let store = overlays::store(&sandbox, command.overlay_dir.as_deref());
    let store = store.map_err(|error| own(refused(command, error)))?;
    hide(store.iter().map(|store| store.path().to_owned()), &mut host);
    let mut spec = spec::restore(&sandbox.run.spec, &host).map_err(|e| own(refused(command, e)))?;
    match (command.quiet, command.verbose) {
        (true, _) => spec.voice = Voice::Quiet,
        (_, true) => spec.voice = Voice::Verbose,
        _ => {}
    }
    let doors = networks::open(command, &mut spec, &host)
        .map_err(|sentence| own(refused(command, sentence)))?;
    tell(command, &spec, &host);
    let net_log = networks::open_log(command, &spec, &host)
        .map_err(|sentence| own(refused(command, sentence)))?;
    advance(command, &mut sandbox);
    // (One process that is packed has nobody to have anything in common with.)
    let is_listed = plain.is_some() || sandbox.processes.len() > 1;
    let listed = file.filter(|_| is_listed);
    let index = listed.as_ref().map(Index::open).transpose();
    let index = index.map_err(|error| own(refused(command, error)))?.map(Arc::new);
    let listed = listed.zip(index.clone());
    let plain = listed.as_ref().filter(|(_, index)| !index.is_compressed());
    let content = (plain.map(|(file, index)| (file, &**index)), &mut reader);
    let mut overlays = Overlays::make((&sandbox, &mark, &spec), store, control.id(), content)
        .map_err(|error| own(refused(command, error)))?;
    let streams = Streams::redirect(command).map_err(own)?;
    let options = restore::Options {
        files: command.files.policy(),
        trees: spec.own_trees(),
        layers: overlays.filled.take(),
        ..restore::Options::default()
    };
    let lazy = match listed.as_ref().filter(|_| command.lazy) {
        Some((file, index)) => {
            spec.features.insert(Features::LAZY);
            let lazy = file
                .try_clone()
                .map_err(|error| RestoreError::failed("the image", error))
                .and_then(|file| Lazy::new(file, Arc::clone(index), &sandbox));
            Some(Arc::new(lazy.map_err(|error| own(refused(command, error)))?))
        }
        None => None,
    };
    let (mapped, quiet) = (lazy.clone(), command.quiet);
    let restored = Restored {
        sandbox,
        lazy,
        tell: Box::new(move |why| {
            if !quiet {
                let _ = writeln!(io::stderr(), "sandbox: {why}");
            }
        }),
        index,
        fill: filler(listed, reader, mapped, bar),
        options,
        passed: command.clock.passed(),
    };
    let (layers, saver) = (std::mem::take(&mut overlays.layers), overlays.saver.take());
    let at_end = |_: Option<&Report>| Ok(overlays.end().into_iter().collect());
    let at_end = Some(Box::new(at_end) as AtEnd<'_>);
    let (layers, doors) = (&layers, Some(doors));
    let beside = Beside { layers, saver, net_log, doors, at_end, ..Beside::default() };
    let done = runtime::restore(&spec, restored, beside, Some(control));
    // What has never run leaves the store as it was.
    overlays.end();
    drop(streams);
    match done {
        Ok(finished) => Ok((spec, finished)),
        Err(error) => {
            let status = error.status();
            Err((status, refused(command, error)))
        }
    }
}

/// Brings content into its places: from the image's file by the list of it, or as it comes.
fn filler(
    listed: Option<(File, Arc<Index>)>,
    reader: Reader<Source>,
    mapped: Option<Arc<Lazy>>,
    bar: Bar,
) -> Fill {
    let mut reader = Some(reader);
    Box::new(move |sinks, wanted| {
        let done = |bytes| bar.add(bytes);
        let filled = match (&listed, wanted) {
            (Some((file, index)), Wanted::Ahead(pages)) => {
                return direct::fill_ahead(file, (&**index, pages), sinks, &done);
            }
            (Some((file, index)), Wanted::Rest(there)) if !index.is_compressed() => {
                direct::fill(file, index, (sinks, there), &done)
            }
            (_, Wanted::Rest(there)) => {
                let read = |reader| fill::stream(reader, sinks, there);
                reader.take().map_or(Ok(()), read)
            }
            (_, Wanted::NotMapped) => {
                mapped.as_ref().map_or(Ok(()), |lazy| direct::fill_rest(lazy, sinks, &done))
            }
            // (Nobody asks for pages of what has no list.)
            (None, Wanted::Ahead(_)) => Ok(()),
        };
        // Before the first word of a program.
        bar.clear();
        filled
    })
}

/// Lets the clocks of the programs have gone on, where that is wished for.
fn advance(command: &Command, sandbox: &mut Sandbox) {
    if command.clock == Clock::Elapsed {
        let passed = elapsed(sandbox.clocks.realtime).max(0);
        let clocks = &mut sandbox.clocks;
        clocks.monotonic = clocks.monotonic.saturating_add(passed);
        clocks.boottime = clocks.boottime.saturating_add(passed);
    }
}

/// Says what was decided, and what the programs may do.
fn tell(command: &Command, spec: &RunSpec, host: &Host) {
    if command.verbose {
        let _ = write!(io::stderr(), "{}", explain::decisions(spec));
    }
    let granted = grants(spec, host.cwd.as_deref().ok());
    // Not the image's own word for how much is said: what it may do is this user's business.
    if !granted.is_empty() && !command.quiet {
        let _ = writeln!(
            io::stderr(),
            "sandbox: what was saved may do what its run was given: {}",
            granted.join(", ")
        );
    }
}

/// The image's file, if any part of it can be read at any time.
fn regular_file(opened: &Opened) -> Option<File> {
    let file = File::from(files::duplicate(opened.descriptor).ok().filter(|_| opened.is_whole)?);
    file.metadata().ok().filter(|it| it.is_file()).map(|_| file)
}

/// Nanoseconds since a moment of the host's clock.
fn elapsed(since: i64) -> i64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME);
    let now = now.map_or(since, |now| {
        now.tv_sec().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec())
    });
    now.saturating_sub(since)
}

/// The standard streams while they are the programs': afterwards they are this command's again, which
/// may have something to say.
struct Streams(Vec<(i32, OwnedFd)>);

impl Streams {
    fn redirect(command: &Command) -> Result<Streams, String> {
        let mut kept = Streams(Vec::new());
        let wishes = [&command.stdin, &command.stdout, &command.stderr];
        for (fd, path) in (0..).zip(wishes) {
            let Some(path) = path else { continue };
            let failed = |cause: String| {
                let flag = ["--stdin", "--stdout", "--stderr"][fd as usize];
                format!("cannot use {flag} {}: {cause}", quoted(path))
            };
            let file = match fd {
                0 => File::open(path),
                _ => File::options().write(true).create(true).truncate(true).open(path),
            };
            let file = file.map_err(|error| failed(cause(&error)))?;
            if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
                return Err(failed("it is a directory".to_owned()));
            }
            // A closed one has nothing to be kept.
            if let Ok(before) = files::duplicate(fd) {
                kept.0.push((fd, before));
            }
            files::place(file.as_fd().as_raw_fd(), fd)
                .map_err(|errno| failed(errno.desc().to_owned()))?;
        }
        Ok(kept)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for (fd, before) in &self.0 {
            let _ = files::place(before.as_raw_fd(), *fd);
        }
    }
}
