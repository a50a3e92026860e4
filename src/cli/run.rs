//! `sandbox run`: from the words to a running program and its exit status.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::args::RunCommand;
use super::record::Destination;
use super::{OWN_ERROR, exec, explain, fail, print, profile};
use crate::config::profile::gather;
use crate::config::{self, Host, Options, Rule, RuleKind, RunSpec, Voice, quoted};
use crate::control::client::Sandbox;
use crate::control::detach::{self, Outcome, Side};
use crate::control::state::base_path;
use crate::control::{Claim, Control, Verdict};
use crate::overlay::{self, Held, OverlayError, Store, hidden_places, is_above_places};
use crate::runtime::{self, Beside, Finished};
use crate::sentry::file_log::Report;
use crate::sentry::{Content, Features};

/// An exit status and why, in a sentence.
pub(super) type Failure = (i32, String);

/// Runs the program, in the background where that is asked for. Returns the exit status.
pub(super) fn run(command: RunCommand) -> i32 {
    if let Some(id) = command.host_of_container()
        && let Ok(sandbox) = Sandbox::find(id)
        && sandbox.listed.ended.is_none()
    {
        return further_container(&sandbox, command);
    }
    let (request, argv) = command.into_request();
    let mut host = Host::current();
    // What a project's file may show is judged by what is hidden.
    hide_stores(&mut host);
    let gathered = match gather(request, &mut host, base_path) {
        Ok(gathered) => gathered,
        Err(error) => return fail(error),
    };
    let voice = gathered.options.voice;
    if let Some(sentence) = profile::left_out(&gathered).filter(|_| voice != Voice::Quiet) {
        let _ = writeln!(std::io::stderr(), "sandbox: {sentence}");
    }
    let sources = profile::sources(&gathered).map_or_else(String::new, explain::profiles);
    let options = Options { argv, ..gathered.options };
    if options.dry_run {
        return dry_run(&options, &mut host, &sources);
    }
    if voice == Voice::Verbose {
        let _ = write!(std::io::stderr(), "{sources}");
    }
    if !options.detach {
        return foreground(options, host);
    }
    match detach::split() {
        Ok(Side::Starter(Outcome::Started(id))) => print(format_args!("{id}\n")).err().unwrap_or(0),
        Ok(Side::Starter(Outcome::Refused(status, sentence))) => {
            fail(sentence);
            status
        }
        Ok(Side::Stayer(verdict)) => background(&options, verdict),
        Err(error) => fail(format_args!("cannot go to the background: {error}")),
    }
}

/// Opens another container in a running sandbox.
fn further_container(sandbox: &Sandbox, command: RunCommand) -> i32 {
    match command.into_container(&sandbox.listed.id) {
        Ok(wish) if wish.argv.is_empty() => {
            fail("no program to run: write sandbox run --id ID --container NAME -- PROG ARGS...")
        }
        Ok(wish) => exec::start(sandbox, wish),
        Err(sentence) => fail(sentence),
    }
}

/// Prints what was decided.
fn dry_run(options: &Options, host: &mut Host, sources: &str) -> i32 {
    if let Err(error) = store(&Options { rules: Vec::new(), ..options.clone() }, host) {
        return fail(error);
    }
    match config::resolve(options, host) {
        Ok(spec) => {
            print(format_args!("{sources}{}", explain::decisions(&spec))).err().unwrap_or(0)
        }
        Err(error) => fail(error),
    }
}

fn foreground(options: Options, mut host: Host) -> i32 {
    let destination = match destination(&options) {
        Ok(destination) => destination,
        Err(sentence) => return fail(sentence),
    };
    let mut control = match control(&options) {
        Ok(control) => control,
        Err(sentence) => return fail(sentence),
    };
    let mut ending = Ending { destination: destination.as_ref(), ..Ending::default() };
    let done = attempt(&options, &mut host, &mut ending, control.as_mut());
    end_in_foreground(control, done)
}

/// What a run in the foreground is found by, if it is to be found.
pub(super) fn control(options: &Options) -> Result<Option<Control>, String> {
    let id = options.id.as_deref();
    let claim = match Claim::take(id, words(options), false) {
        Ok(claim) => Some(claim),
        Err(error) if id.is_some() => return Err(error.to_string()),
        Err(error) => {
            // Such a run is what one was before there were control sockets.
            if options.voice == Voice::Verbose {
                let _ = writeln!(std::io::stderr(), "sandbox: no verb will find this run: {error}");
            }
            None
        }
    };
    Ok(claim.map(|claim| Control::new(claim, None)))
}

/// What becomes of a run's list of files, and of its overlay, at its end.
#[derive(Default)]
pub(super) struct Ending<'e> {
    /// Where the list is written to.
    pub(super) destination: Option<&'e Destination>,
    /// The list is wanted here, and the overlay is not, unless it was there before.
    pub(super) learns: bool,
    /// The overlay is wanted all the same.
    pub(super) keeps: bool,
    /// The list.
    pub(super) report: Option<Report>,
    /// Something was changed, and is gone.
    pub(super) dropped: bool,
}

impl Ending<'_> {
    /// The guests have ended. Gives what is to be said.
    fn come(&mut self, held: Option<Held>, report: Option<&Report>) -> Result<Vec<String>, String> {
        let kept = match held {
            Some(held) if self.learns && !self.keeps && held.is_new() => {
                self.dropped = held.discard();
                None
            }
            held => held.and_then(Held::finish),
        };
        if let Some((destination, report)) = self.destination.zip(report) {
            destination.write(report)?;
        }
        if self.learns {
            self.report = report.cloned();
        }
        Ok(kept.into_iter().collect())
    }
}

/// Says how a run in the foreground ended, and gives or takes its status.
pub(super) fn end_in_foreground(
    control: Option<Control>,
    done: Result<(RunSpec, Finished), Failure>,
) -> i32 {
    match done {
        Ok((spec, finished)) => {
            drop(control);
            explain_refusals(&spec, &finished.notes);
            if finished.interrupted {
                runtime::interrupt_job();
            }
            // Nothing is left to be undone.
            std::process::exit(finished.status)
        }
        Err((status, sentence)) => {
            fail(sentence);
            status
        }
    }
}

/// The process of a detached run that stays.
fn background(options: &Options, verdict: Verdict) -> i32 {
    // Before anything is opened.
    verdict.close_inherited(&options.descriptors);
    let destination = match destination(options) {
        Ok(destination) => destination,
        Err(sentence) => {
            verdict.refused(OWN_ERROR, &sentence);
            return OWN_ERROR;
        }
    };
    let mut host = Host::current();
    hide_stores(&mut host);
    let claim = Claim::take(options.id.as_deref(), words(options), true);
    let claim = claim.and_then(|claim| Ok((claim.make_output()?, claim)));
    let (output, claim) = match claim {
        Ok(claimed) => claimed,
        Err(error) => {
            verdict.refused(OWN_ERROR, &error.to_string());
            return OWN_ERROR;
        }
    };
    let mut control = Control::new(claim, Some(verdict));
    let mut ending = Ending { destination: destination.as_ref(), ..Ending::default() };
    let done = detach::print_to(&output)
        .map_err(|error| (OWN_ERROR, format!("cannot redirect the output: {error}")))
        .and_then(|()| attempt(options, &mut host, &mut ending, Some(&mut control)));
    end_in_background(control, done)
}

/// Says how a detached run ended: to its starter, if that still waits for the start.
pub(super) fn end_in_background(
    control: Control,
    done: Result<(RunSpec, Finished), Failure>,
) -> i32 {
    match done {
        Ok((spec, finished)) => {
            explain_refusals(&spec, &finished.notes);
            finished.status
        }
        Err((status, sentence)) => {
            match control.into_verdict() {
                Some(verdict) => verdict.refused(status, &sentence),
                None => {
                    fail(sentence);
                }
            }
            status
        }
    }
}

/// Resolves the options, says what was decided where that was asked for, and runs the program.
pub(super) fn attempt(
    options: &Options,
    host: &mut Host,
    ending: &mut Ending<'_>,
    control: Option<&mut Control>,
) -> Result<(RunSpec, Finished), Failure> {
    let own = |error: &dyn std::fmt::Display| (OWN_ERROR, error.to_string());
    host.private.extend(control.iter().map(|control| control.base().to_owned()));
    make_places(options, host).map_err(|sentence| (OWN_ERROR, sentence))?;
    let store = store(options, host).map_err(|error| own(&error))?;
    let mut spec = config::resolve(options, host).map_err(|error| own(&error))?;
    if spec.voice == Voice::Verbose {
        let _ = write!(std::io::stderr(), "{}", explain::decisions(&spec));
    }
    let net_log = spec.net_log.as_deref().map(super::record::append).transpose();
    let net_log = net_log.map_err(|sentence| (OWN_ERROR, sentence))?;
    let scribe = spec.asks.save.clone().map(super::ask::scribe).transpose();
    let scribe = scribe.map_err(|sentence| (OWN_ERROR, sentence))?;
    let named = options.id.is_some();
    let mut held = held(&spec, store, named, control.as_deref()).map_err(|error| own(&error))?;
    let content = held.as_ref().and_then(Held::twins).map(|(twins, cause)| {
        if spec.voice == Voice::Verbose {
            let _ = writeln!(
                std::io::stderr(),
                "sandbox: overlays are kept without overlayfs: {cause}"
            );
        }
        spec.features.insert(Features::TWINS);
        Arc::clone(twins) as Arc<dyn Content>
    });
    let layers = held.as_ref().map_or_else(Vec::new, |held| held.layers().to_vec());
    let saver = held.as_ref().map(Held::saver).transpose().map_err(|error| own(&error))?;
    let at_end = |report: Option<&Report>| ending.come(held.take(), report);
    let beside = Beside {
        layers: &layers,
        content,
        saver: saver.map(Arc::new),
        net_log,
        scribe,
        doors: None,
        at_end: Some(Box::new(at_end)),
    };
    let done = runtime::run(&spec, beside, control);
    let refused = done.as_ref().is_err_and(runtime::Error::is_overlay_refused);
    let once_more = refused && held.as_ref().is_some_and(Held::doubt);
    // What has never run has changed nothing.
    held.and_then(Held::finish);
    match done {
        // Whoever wanted the list of files must not take the run for a success without.
        Ok(Finished { undone: Some(sentence), .. }) => Err((OWN_ERROR, sentence)),
        Ok(finished) => Ok((spec, finished)),
        Err(error) if once_more => Err((
            error.status(),
            format!("{error}; run it once more, and it does without overlayfs"),
        )),
        Err(error) => Err((error.status(), error.to_string())),
    }
}

/// Where the list of files goes, if one is wanted.
fn destination(options: &Options) -> Result<Option<Destination>, String> {
    let find = |path| Destination::find("--record-files", path);
    options.record_files.clone().map(find).transpose()
}

/// Makes the directories that rules name with a slash at their end.
fn make_places(options: &Options, host: &mut Host) -> Result<(), String> {
    let places = config::places_to_make(options, host);
    for place in &places {
        match std::fs::create_dir(place) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(format!(
                    "cannot make {}, which --rw names with a slash at its end: {error}; make it \
                     yourself, or correct the path",
                    quoted(place)
                ));
            }
            _ => {}
        }
    }
    if !places.is_empty() {
        host.look_anew();
    }
    Ok(())
}

/// Where the overlays of this run are to be kept, if it has any. No guest sees that place, nor one that had to be
/// made for no guest to make it; the others are hidden before ([`hide_stores`]).
pub(super) fn store(options: &Options, host: &mut Host) -> Result<Option<Store>, OverlayError> {
    let wanted = options.rules.iter().any(|rule| rule.kind == RuleKind::Overlay);
    let store = match (wanted, &options.overlay_dir) {
        (false, None) => None,
        (wanted, place) => Store::open(place.as_deref(), wanted)?,
    };
    if may_make_places(options, host) {
        hide(hidden_places(true), host);
    }
    hide(store.iter().map(|store| store.path().to_owned()), host);
    Ok(store)
}

/// Hides every place where overlays are kept.
pub(super) fn hide_stores(host: &mut Host) {
    hide(hidden_places(false), host);
}

/// Hides these places.
pub(super) fn hide(places: impl IntoIterator<Item = PathBuf>, host: &mut Host) {
    for place in places {
        if !host.stores.contains(&place) {
            host.stores.push(place);
        }
    }
}

/// The run may be able to make the usual place where it is missing, and so it is made before.
fn may_make_places(options: &Options, host: &Host) -> bool {
    let writes = |rule: &Rule| matches!(rule.kind, RuleKind::Writable | RuleKind::Overlay);
    let at = options.workdir.as_ref().or(host.cwd.as_ref().ok());
    let within = || at.and_then(|at| at.canonicalize().ok()).is_some_and(|at| is_above_places(&at));
    options.rules.iter().any(writes) || (!options.dry_run && !options.argv.is_empty() && within())
}

/// The overlay of the run.
fn held(
    spec: &RunSpec,
    store: Option<Store>,
    named: bool,
    control: Option<&Control>,
) -> Result<Option<Held>, OverlayError> {
    let Some(store) = store else { return Ok(None) };
    let id = match control {
        Some(control) if named => control.id().to_owned(),
        // One that happens to be known is somebody else's overlay.
        Some(control) => store.free_id(control.id())?,
        None => store.free_id(&format!("run-{}", std::process::id()))?,
    };
    overlay::prepare(spec, Some(store), &id)
}

/// The program and its arguments, for `ps`.
fn words(options: &Options) -> Vec<String> {
    options.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Says once what the program ran into.
fn explain_refusals(spec: &RunSpec, notes: &[String]) {
    if spec.voice == Voice::Quiet {
        return;
    }
    let mut stderr = std::io::stderr().lock();
    for note in notes {
        let _ = writeln!(stderr, "sandbox: {note}");
    }
}
