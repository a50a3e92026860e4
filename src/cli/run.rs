//! `sandbox run`: from the words to a running program and its exit status.

use std::io::Write;

use super::args::RunCommand;
use super::{OWN_ERROR, exec, explain, fail, print};
use crate::config::{self, Host, Options, RuleKind, RunSpec, Voice};
use crate::control::client::Sandbox;
use crate::control::detach::{self, Outcome, Side};
use crate::control::{Claim, Control, Verdict};
use crate::overlay::{self, Held, OverlayError, Store};
use crate::runtime::{self, Finished};

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
    if !command.detach || command.dry_run {
        return foreground(command);
    }
    match detach::split() {
        Ok(Side::Starter(Outcome::Started(id))) => print(format_args!("{id}\n")).err().unwrap_or(0),
        Ok(Side::Starter(Outcome::Refused(status, sentence))) => {
            fail(sentence);
            status
        }
        Ok(Side::Stayer(verdict)) => background(command, verdict),
        Err(error) => fail(format_args!("cannot go to the background: {error}")),
    }
}

/// Opens another container in a running sandbox.
fn further_container(sandbox: &Sandbox, command: RunCommand) -> i32 {
    match command.into_container() {
        Ok(wish) if wish.argv.is_empty() => {
            fail("no program to run: write sandbox run --id ID --container NAME -- PROG ARGS...")
        }
        Ok(wish) => exec::start(sandbox, wish),
        Err(flag) => fail(format_args!(
            "cannot give a container {flag} of its own: it shares the walls and limits of the sandbox {}; \
             leave it out, or run a sandbox of its own under another --id",
            sandbox.listed.id
        )),
    }
}

fn foreground(command: RunCommand) -> i32 {
    let (dry_run, id) = (command.dry_run, command.id.clone());
    let options = command.into_options();
    let mut host = Host::current();
    if dry_run {
        if let Err(error) = store(&Options { rules: Vec::new(), ..options.clone() }, &mut host) {
            return fail(error);
        }
        return match config::resolve(&options, &host) {
            Ok(spec) => print(explain::decisions(&spec)).err().unwrap_or(0),
            Err(error) => fail(error),
        };
    }
    let claim = match Claim::take(id.as_deref(), words(&options), false) {
        Ok(claim) => Some(claim),
        Err(error) if id.is_some() => return fail(error),
        Err(error) => {
            // Such a run is what one was before there were control sockets.
            if options.voice == Voice::Verbose {
                let _ = writeln!(std::io::stderr(), "sandbox: no verb will find this run: {error}");
            }
            None
        }
    };
    let mut control = claim.map(|claim| Control::new(claim, None));
    let done = attempt(&options, &mut host, id.is_some(), control.as_mut());
    end_in_foreground(control, done)
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
fn background(command: RunCommand, verdict: Verdict) -> i32 {
    let id = command.id.clone();
    let options = command.into_options();
    verdict.close_inherited(&options.descriptors);
    let mut host = Host::current();
    let claim = Claim::take(id.as_deref(), words(&options), true);
    let claim = claim.and_then(|claim| Ok((claim.make_output()?, claim)));
    let (output, claim) = match claim {
        Ok(claimed) => claimed,
        Err(error) => {
            verdict.refused(OWN_ERROR, &error.to_string());
            return OWN_ERROR;
        }
    };
    let mut control = Control::new(claim, Some(verdict));
    let done = detach::print_to(&output)
        .map_err(|error| (OWN_ERROR, format!("cannot redirect the output: {error}")))
        .and_then(|()| attempt(&options, &mut host, id.is_some(), Some(&mut control)));
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

/// Resolves the options, says what was decided where that was asked for, and runs the program. `named`:
/// the user has chosen the id.
fn attempt(
    options: &Options,
    host: &mut Host,
    named: bool,
    control: Option<&mut Control>,
) -> Result<(RunSpec, Finished), Failure> {
    let own = |error: &dyn std::fmt::Display| (OWN_ERROR, error.to_string());
    host.private.extend(control.iter().map(|control| control.base().to_owned()));
    let store = store(options, host).map_err(|error| own(&error))?;
    let spec = config::resolve(options, host).map_err(|error| own(&error))?;
    if spec.voice == Voice::Verbose {
        let _ = write!(std::io::stderr(), "{}", explain::decisions(&spec));
    }
    let held = held(&spec, store, named, control.as_deref()).map_err(|error| own(&error))?;
    let layers = held.as_ref().map_or(&[][..], Held::layers);
    let done = runtime::run(&spec, layers, control);
    let kept = held.and_then(Held::finish);
    match done {
        Ok(mut finished) => {
            finished.notes.extend(kept);
            Ok((spec, finished))
        }
        Err(error) => Err((error.status(), error.to_string())),
    }
}

/// Where the overlays of this run are to be kept, if it has any. No guest sees that place, nor the usual one.
pub(super) fn store(options: &Options, host: &mut Host) -> Result<Option<Store>, OverlayError> {
    if let Ok(Some(usual)) = Store::open(None, false) {
        host.stores.push(usual.path().to_owned());
    }
    let wanted = options.rules.iter().any(|rule| rule.kind == RuleKind::Overlay);
    let store = match (wanted, &options.overlay_dir) {
        (false, None) => None,
        (wanted, place) => Store::open(place.as_deref(), wanted)?,
    };
    host.stores.extend(store.iter().map(|store| store.path().to_owned()));
    Ok(store)
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
