//! `--allow`: what shows although something above it, or a pattern, hides or denies it.
//!
//! An exception is a mount of its own, with the access that its place would have without what it is an
//! exception of. It needs other rules to say anything: it opens nothing that they do not close.

use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use super::super::error::refuse;
use super::super::paths::{Found, check, quoted};
use super::super::view::translate;
use super::super::{ConfigError, Mount, MountKind, Rule, Shown, Why};
use super::{Objects, Plan, flag_of};

/// A denied directory of which something shows: what is in it can be reached by name, not listed.
pub(in crate::config) const DENIED_BUT: MountKind = MountKind::Tmpfs { mode: 0o111 };

/// Names in such a directory that are denied one by one; of a larger one, the others are just not there.
const SIBLINGS_MAX: usize = 1000;

/// A place of `--allow`.
pub(super) struct Exception {
    flag: String,
    /// It says nothing where there is nothing.
    may_be_in_vain: bool,
}

impl Plan<'_> {
    /// Adds a rule of `--allow`. What it shows is found when everything else is known.
    pub(super) fn add_exception(&mut self, rule: &Rule) -> Result<(), ConfigError> {
        let Some(path) = self.plain_path(rule)? else { return Ok(()) };
        let flag = rule.flag();
        check(rule.kind.flag(), &path)?;
        let target = match self.find(&flag, &path) {
            Ok(place) => place.path,
            Err(_) if rule.may_be_in_vain() => return Ok(()),
            Err(error) => return Err(error),
        };
        if target == Path::new("/") {
            return Err(refuse!(
                "cannot use {flag}: the root of the file system is never hidden; name what lies in \
                 something that is"
            ));
        }
        let decided = self.rank_at(&target);
        if decided.is_some_and(|rank| rank > rule.rank) {
            return Ok(());
        }
        match self.view.at(&target) {
            Some(other) if other.kind.hides() && decided.is_some_and(|rank| rank < rule.rank) => {
                self.view.remove(&target);
            }
            Some(other) if other.kind.hides() => {
                return Err(refuse!(
                    "cannot use {flag} together with {}: they contradict each other about {}; keep \
                     one of them",
                    flag_of(&other.why),
                    quoted(&target)
                ));
            }
            // It shows what a rule says.
            Some(_) => return Ok(()),
            None => {}
        }
        self.ranks.insert(target.clone(), rule.rank);
        let kind = MountKind::ReadOnly { source: target.clone() };
        self.view.insert(Mount { target: target.clone(), kind, why: Why::Derived(flag.clone()) });
        let may_be_in_vain = rule.may_be_in_vain();
        self.exceptions.insert(target, Exception { flag, may_be_in_vain });
        Ok(())
    }

    /// Adds one of a saved run: a part of an overlay around it, which changes nothing of the host.
    pub(super) fn except_again(&mut self, place: PathBuf) -> Result<(), ConfigError> {
        let words = quoted(&place);
        let why = Why::Derived(format!("--allow {words}"));
        check("--allow", &place)?;
        if !self.is_overlaid(&place) || self.view.at(&place).is_some() {
            return Err(refuse!(
                "cannot restore its file view: {words} shows as a part of an overlay, and there is none \
                 around it"
            ));
        }
        self.host.access(&place, AccessFlags::X_OK).map_err(|errno| {
            refuse!(
                "cannot restore its file view: you may not look into {words} ({}); ask its owner for \
                 access",
                errno.desc()
            )
        })?;
        let kind = MountKind::Overlay { source: place.clone(), skeleton: false };
        self.view.insert(Mount { target: place, kind, why });
        Ok(())
    }

    /// Gives every exception the access that it would have if nothing were hidden.
    pub(super) fn settle_exceptions(&mut self) -> Result<(), ConfigError> {
        let own = |exception: &Exception, mount: &Mount| matches!(&mount.why, Why::Derived(flag) if *flag == exception.flag);
        // What is the working directory by now is that.
        let view = &self.view;
        self.exceptions
            .retain(|place, exception| view.at(place).is_some_and(|mount| own(exception, mount)));
        let places: Vec<PathBuf> = self.exceptions.keys().cloned().collect();
        for place in places {
            match self.shown_without_hiding(&place) {
                Ok(kind) => {
                    let why = Why::Derived(self.exceptions[&place].flag.clone());
                    self.view.insert(Mount { target: place, kind, why });
                }
                Err(_) if self.exceptions[&place].may_be_in_vain => {
                    self.exceptions.remove(&place);
                    self.view.remove(&place);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What an exception at `place` shows.
    fn shown_without_hiding(&self, place: &Path) -> Result<MountKind, ConfigError> {
        let flag = &self.exceptions[place].flag;
        let words = quoted(place);
        let base = self.unhidden_above(place);
        let source = match base.map(|mount| (mount, mount.kind.source())) {
            None => place.to_owned(),
            Some((mount, Some(source))) => translate(place, &mount.target, source),
            Some((mount, None)) => {
                return Err(refuse!(
                    "cannot use {flag}: nothing of the host shows in {}, which is the sandbox's own; --ro \
                     {words} shows it",
                    quoted(&mount.target)
                ));
            }
        };
        let found = self.host.look(&source).unwrap_or(Found::Missing);
        let needed = match found {
            Found::Directory => AccessFlags::X_OK,
            Found::File => AccessFlags::R_OK,
            Found::Missing | Found::Link(_) => {
                return Err(refuse!(
                    "cannot use {flag}: {words} does not exist; correct the path or leave it out"
                ));
            }
        };
        self.host.access(&source, needed).map_err(|errno| {
            refuse!(
                "cannot use {flag}: you may not read {words} ({}); ask its owner for access or leave \
                 the flag out",
                errno.desc()
            )
        })?;
        Ok(like(base, source, found == Found::Directory))
    }

    /// The mount strictly above `place` that decides about it if nothing is hidden.
    pub(super) fn unhidden_above(&self, place: &Path) -> Option<&Mount> {
        let mut above = place.ancestors().skip(1).filter_map(|above| self.view.at(above));
        above.find(|mount| !mount.kind.hides() && !self.exceptions.contains_key(&mount.target))
    }

    /// What decides about the place of `mount`: itself, unless it is an exception.
    pub(super) fn unhidden<'p>(&'p self, mount: &'p Mount) -> Option<&'p Mount> {
        match self.exceptions.contains_key(&mount.target) {
            true => self.unhidden_above(&mount.target),
            false => Some(mount),
        }
    }

    /// Takes away exceptions of what is not hidden: a mount of its own is not without effect where a
    /// program can write (rename(2) between mounts is EXDEV).
    pub(super) fn drop_exceptions_of_nothing(&mut self, objects: &Objects) {
        let idle = |place: &PathBuf| {
            let base = self.unhidden_above(place);
            let from = base.map_or(Path::new("/"), |mount| &mount.target);
            let source = base.and_then(|mount| mount.kind.source()).unwrap_or(from);
            let between = place.ancestors().take_while(|above| *above != from);
            !between.into_iter().any(|above| {
                objects.contains_key(&translate(above, from, source))
                    || self.view.at(above).is_some_and(|mount| mount.kind.hides())
            })
        };
        let idle: Vec<PathBuf> = self.exceptions.keys().filter(|it| idle(it)).cloned().collect();
        for place in idle {
            self.view.remove(&place);
            if let Some(exception) = self.exceptions.remove(&place) {
                self.idle.push(format!("{} is no exception of anything", exception.flag));
            }
        }
    }

    /// Puts a denied directory in the view, of which something shows: the place of the latter can be
    /// reached, and each other name is denied.
    pub(super) fn deny_all_but(&mut self, mount: Mount) {
        let host = match self.view.shown_under(&mount.target) {
            Shown::Host { path, .. } => Some(path),
            _ => None,
        };
        let flag = flag_of(&mount.why);
        let target = mount.target.clone();
        self.view.insert(Mount { kind: DENIED_BUT, ..mount });
        if let Some(host) = host {
            self.deny_names(&flag, &target, &host);
        }
    }

    fn deny_names(&mut self, flag: &str, target: &Path, host: &Path) {
        let listing = self.host.names(host);
        if listing.names.len() > SIBLINGS_MAX {
            return;
        }
        for name in &listing.names {
            let (place, source) = (target.join(name), host.join(name));
            if self.view.at(&place).is_some() {
                continue;
            }
            let directory = self.host.look(&source) == Ok(Found::Directory);
            let opened = directory && self.view.has_below(&place);
            let kind = if opened { DENIED_BUT } else { MountKind::hiding(directory, true) };
            let why = Why::Derived(flag.to_owned());
            self.view.insert(Mount { target: place.clone(), kind, why });
            if opened {
                self.deny_names(flag, &place, &source);
            }
        }
    }
}

/// `source` with the access that `base` gives; of the host's tree as it is, without one.
pub(super) fn like(base: Option<&Mount>, source: PathBuf, directory: bool) -> MountKind {
    match base.map(|mount| &mount.kind) {
        Some(MountKind::Writable { .. }) => MountKind::Writable { source },
        Some(MountKind::Overlay { .. }) if directory => {
            MountKind::Overlay { source, skeleton: false }
        }
        _ => MountKind::ReadOnly { source },
    }
}
