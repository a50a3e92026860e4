//! What a run needed becomes a profile (`sandbox learn`, docs/learn.md).
//!
//! Owns the run in which is learned (everything can be changed, and nothing of the host changes), the
//! comparison of what it did with what the same run may do without a rule, and the text of the profile.
//! Grants nothing that the defaults hide, and no whole home. It reads the host and changes nothing there.

mod carried;
mod fold;
mod headroom;
mod merge;
mod needs;
mod text;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::refuse;
use super::paths::{Kind, parse_pair};
use super::profile::{Gathered, Origin, Request, Setting};
use super::{
    ConfigError, Host, MountKind, Network, Options, Rule, RuleKind, RunSpec, Shown, View, Why,
    absolute, file_view, quoted, resolve,
};
use crate::sentry::Measured;
use crate::sentry::file_log::Report;

use carried::Carried;
pub(super) use carried::pair;
use fold::Learned;
use headroom::Bound;
pub(super) use merge::add;
use needs::Needs;

/// A run in which is learned.
#[derive(Debug)]
pub struct Learning {
    /// The wishes of that run.
    pub options: Options,
    /// Those of the run that the profile is for, without what is learned.
    base: Options,
    /// What the user has said on the command line, and profiles that were named.
    carried: Carried,
    /// Which elements of the list `ro`, in the profile to which is added, keep the working directory read-only:
    /// that is learned anew.
    was_read_only: Vec<usize>,
    /// The working directory is too much to be writable: it is read-only in the run that the profile is for.
    too_wide: bool,
}

/// What a run did.
pub struct Seen<'s> {
    /// The run.
    pub spec: &'s RunSpec,
    /// Which files it touched.
    pub report: &'s Report,
    /// What it used.
    pub measured: &'s Measured,
    /// Its exit status.
    pub status: i32,
}

/// What was learned.
#[derive(Debug)]
pub struct Lesson {
    program: String,
    status: i32,
    carried: Carried,
    /// Places that are to be writable.
    writable: Vec<Learned>,
    /// Places that are to be read-only, and why.
    read_only: Vec<(PathBuf, &'static str)>,
    /// Elements of the list `ro`, in the profile to which is added, that keep the working directory read-only and
    /// must not any more.
    reopened: Vec<usize>,
    /// Places that no rule of a profile can be about.
    impossible: Vec<Learned>,
    bounds: Vec<Bound>,
    needs: Needs,
    measured: Measured,
    /// It was to be used.
    wants_network: bool,
    /// The profile gives it.
    has_network: bool,
    home: Option<PathBuf>,
}

/// Plans the run in which is learned. `file` is where the profile will be written to; `merged` is the profile to
/// which is to be added, where there is one: it was gathered with the others.
///
/// # Errors
/// What cannot be learned from, or is no run to begin with.
pub fn prepare(
    request: &Request,
    gathered: &Gathered,
    argv: &[OsString],
    host: &Host,
    file: &Path,
    merged: Option<&Path>,
) -> Result<Learning, ConfigError> {
    let is_own = |setting: &Setting| match &setting.origin {
        Origin::File { path, .. } => merged == Some(&**path),
        _ => false,
    };
    if let Some(setting) = gathered.settings.iter().find(|it| it.key.name == "record-files") {
        return Err(refuse!(
            "cannot learn with --record-files {}: learning keeps a list of its own; record a run with the \
             profile that was learned",
            quoted(setting.word())
        ));
    }
    let (mut base, mut was_read_only, mut number) = (Vec::new(), Vec::new(), 0);
    for setting in &gathered.settings {
        let name = setting.key.name;
        if is_own(setting) && headroom::KEYS.contains(&name) {
            continue;
        }
        if is_own(setting) && name == "ro" {
            number += 1;
            if is_workdir(setting, gathered, host) {
                was_read_only.push(number - 1);
                continue;
            }
        }
        if !["detach", "dry-run", "id"].contains(&name) || setting.origin == Origin::CommandLine {
            base.push(setting.clone());
        }
    }
    let mut base = Options { argv: argv.to_vec(), ..Options::of(&base)? };
    let mut options = base.clone();
    options.learn = true;
    options.rules = learning_rules(&base, host)?;
    let too_wide = close_workdir(&mut base, host)?;
    let carried = Carried::of(request, gathered, host, file, merged)?;
    Ok(Learning { options, base, carried, was_read_only, too_wide })
}

/// Whether a rule is about the working directory.
fn is_workdir(setting: &Setting, gathered: &Gathered, host: &Host) -> bool {
    let of_run = gathered.options.workdir.clone().unwrap_or_else(|| ".".into());
    let place = |path: &Path| host.walk(&absolute(host, path).ok()?).ok();
    let named = parse_pair("--ro", setting.word()).ok().filter(|pair| pair.1.is_none());
    named.and_then(|pair| place(&pair.0)).is_some_and(|named| Some(named) == place(&of_run))
}

/// The rules of the run in which is learned: those of the run without, and whatever these open on the host is
/// changed for the sandbox alone, like all else.
fn learning_rules(base: &Options, host: &Host) -> Result<Vec<Rule>, ConfigError> {
    let (mut rules, mut opened) = (Vec::new(), Vec::new());
    for rule in &base.rules {
        if rule.kind != RuleKind::Writable {
            rules.push(rule.clone());
            continue;
        }
        let (source, target) = parse_pair(rule.kind.flag(), &rule.text)?;
        if target.is_some() {
            return Err(refuse!(
                "cannot learn with {}: it would show what can be changed on the host at another place, where \
                 no overlay can be put; leave it out, or show it read-only",
                rule.flag()
            ));
        }
        let place = absolute(host, &source)?;
        let is_directory = host.walk(&place).is_ok_and(|place| place.kind == Kind::Directory);
        if is_directory {
            let text = source.clone().into_os_string();
            rules.push(Rule { kind: RuleKind::Overlay, text, ..rule.clone() });
        }
        opened.push((rule, place));
    }
    rules.push(Rule::new(RuleKind::Overlay, "/"));
    // What is in an overlay anyway can be hidden there: what the user opens by name is to be seen at least.
    let options = Options { rules, ..base.clone() };
    let view = file_view(&options, host)?;
    let mut rules = options.rules;
    for (rule, place) in opened {
        let Ok(place) = host.walk(&place) else { continue };
        let seen = matches!(view.shown(&place.path), Shown::Host { .. });
        if !seen && place.kind != Kind::Missing {
            rules.push(Rule { kind: RuleKind::ReadOnly, ..rule.clone() });
        }
    }
    Ok(rules)
}

/// Makes the working directory of a run read-only if it is too much to be anything else.
fn close_workdir(base: &mut Options, host: &Host) -> Result<bool, ConfigError> {
    let Err(error) = file_view(base, host) else { return Ok(false) };
    let workdir = absolute(host, base.workdir.as_deref().unwrap_or(Path::new(".")))?;
    base.rules.push(Rule::new(RuleKind::ReadOnly, carried::pair(&workdir)));
    file_view(base, host).map(|_| true).map_err(|_| error)
}

impl Lesson {
    /// What a profile that was written leaves to the user, in a few words each.
    pub fn left_out(&self) -> Vec<String> {
        let count = |number: usize, what: &str, which: &str| match number {
            0 => None,
            1 => Some(format!("1 {what}{which}")),
            number => Some(format!("{number} {what}s{which}")),
        };
        let needs = &self.needs;
        let network = self.lacks_network().then(|| "the network".to_owned());
        [
            count(needs.hidden.len(), "hidden place", ""),
            count(needs.covered.len(), "path", " where the sandbox has a place of its own"),
            count(needs.too_wide.len(), "place", " too wide to be opened"),
            count(needs.kept.len(), "path", " that you keep as it is"),
            count(self.impossible.len(), "path", " that no profile can name"),
            network,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn lacks_network(&self) -> bool {
        self.wants_network && !self.has_network
    }
}

impl Learning {
    /// What comes of what was seen; `file` is where it is written to.
    ///
    /// # Errors
    /// The host has changed so much that there is no such run any more.
    pub fn conclude(
        self,
        seen: &Seen<'_>,
        host: &Host,
        file: &Path,
    ) -> Result<Lesson, ConfigError> {
        let Learning { base, carried, was_read_only, too_wide, .. } = self;
        let view = file_view(&base, host)?;
        let workdir = &seen.spec.workdir;
        let needs = Needs::of(seen, &view, host);
        let (writable, impossible) = sift(fold::fold(&needs, host), &base, host);
        let mut read_only = Vec::new();
        let opens = |mount: &super::Mount| {
            mount.why == Why::WorkingDirectory && matches!(mount.kind, MountKind::Writable { .. })
        };
        let is_open = view.at(workdir).is_some_and(opens);
        let is_closed = !was_read_only.is_empty() && (too_wide || !needs.writes_workdir);
        if too_wide && !is_closed {
            read_only
                .push((workdir.clone(), "the working directory, which is too much to be writable"));
        } else if is_open && !needs.writes_workdir && !is_closed {
            read_only
                .push((workdir.clone(), "the working directory, in which nothing was written"));
        }
        let reopened = if is_closed { Vec::new() } else { was_read_only };
        if is_within_reach(file, &view, &writable, &read_only, is_closed.then_some(workdir)) {
            read_only.push((file.to_owned(), "this file, so that no program widens its next run"));
        }
        let bounds = headroom::bounds(seen.measured, &base, host);
        let wants_network = !seen.measured.addresses.is_empty() || seen.measured.refused > 0;
        Ok(Lesson {
            has_network: base.network != Network::None,
            program: text::words(&base.argv),
            status: seen.status,
            carried,
            writable,
            read_only,
            reopened,
            impossible,
            bounds,
            needs,
            measured: seen.measured.clone(),
            wants_network,
            home: home(host),
        })
    }
}

/// Parts those that there can be rules about in a profile with which the run would start, from the others.
fn sift(all: Vec<Learned>, base: &Options, host: &Host) -> (Vec<Learned>, Vec<Learned>) {
    /// More are not tried one by one.
    const MOST: usize = 200;
    let can_be_named =
        |it: &Learned| it.path.to_str().is_some() && super::paths::check("--rw", &it.path).is_ok();
    let (named, mut impossible): (Vec<Learned>, Vec<Learned>) =
        all.into_iter().partition(can_be_named);
    let starts = |places: &[Learned]| {
        let rule = |it: &Learned| Rule::new(RuleKind::Writable, carried::pair(&it.path));
        let mut options = base.clone();
        // (What is to be made is not there yet.)
        options.rules.extend(places.iter().filter(|it| !it.is_made).map(rule));
        resolve(&options, host).is_ok()
    };
    if starts(&named) {
        return (named, impossible);
    }
    let mut tried = 0;
    let (writable, more): (Vec<Learned>, Vec<Learned>) = named.into_iter().partition(|it| {
        tried += 1;
        tried <= MOST && starts(std::slice::from_ref(it))
    });
    impossible.extend(more);
    (writable, impossible)
}

/// Whether the program could change the profile.
fn is_within_reach(
    file: &Path,
    view: &View,
    writable: &[Learned],
    read_only: &[(PathBuf, &str)],
    closed: Option<&PathBuf>,
) -> bool {
    let by_rule = writable.iter().map(|it| (&it.path, true));
    let closed = read_only.iter().map(|it| &it.0).chain(closed).map(|path| (path, false));
    let nearest = by_rule.chain(closed).filter(|(path, _)| file.starts_with(path));
    let nearest = nearest.max_by_key(|(path, _)| path.components().count());
    match (nearest, view.covering(file)) {
        (Some((path, open)), Some(mount)) if path.starts_with(&mount.target) => open,
        (Some((_, open)), None) => open,
        (_, Some(mount)) => matches!(mount.kind, MountKind::Writable { .. }),
        (None, None) => false,
    }
}

/// The caller's home, as paths in it are found.
fn home(host: &Host) -> Option<PathBuf> {
    let home = host.variable("HOME").map(Path::new).filter(|home| home.is_absolute())?;
    host.walk(home).ok().filter(|place| place.kind == Kind::Directory).map(|place| place.path)
}

#[cfg(test)]
mod tests;
