//! Rules about patterns: what they match when the run starts becomes rules about these places.
//!
//! A pattern that begins with `/`, `./` or `../` is about paths as the guest sees them. Any other is about
//! the end of a path in the working directory, the home directories and the places of `--ro`, `--rw` and
//! `--overlay`. Of two that match the same path, the one with more literal characters counts, then that of
//! the stronger source; a rule that names a path without a pattern comes before all of them.

use std::collections::HashSet;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::AccessFlags;

use super::super::error::refuse;
use super::super::glob::{fits, is_pattern, plain, unescaped};
use super::super::paths::{Found, Kind, check, parse_pair, quoted};
use super::super::{ConfigError, Mount, MountKind, Rule, RuleKind, Why, absolute};
use super::coming::Coming;
use super::exceptions::like;
use super::walk::{Match, Roots, Search, Thing};
use super::{Object, Objects, Plan};

/// Patterns of one run at most: each name is held against each of them.
const PATTERNS_MAX: usize = 1000;
/// Parts of a pattern at most: one bit each.
const PARTS_MAX: usize = 62;

/// A rule about a pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    parts: Vec<Part>,
    /// Bits of the parts that stand for any number of names.
    any: u64,
    /// The literal names that an absolute one begins with.
    pub(super) start: Option<PathBuf>,
    pub(super) kind: RuleKind,
    pub(super) flag: String,
    /// Literal characters, and those that stand for one other; then how strong the source is.
    pub(super) weight: (usize, usize, usize),
}

#[derive(Debug)]
enum Part {
    Any,
    Literal(Vec<u8>),
    Glob(Vec<u8>),
}

impl Pattern {
    /// `start` is what the first parts have been resolved to, if it begins at a certain place.
    fn new(rule: &Rule, start: Option<PathBuf>, rest: &[&[u8]]) -> Result<Pattern, ConfigError> {
        let flag = rule.flag();
        let mut parts = Vec::new();
        match &start {
            Some(start) => {
                let names = start.iter().skip(1);
                parts.extend(names.map(|name| Part::Literal(name.as_bytes().to_vec())));
            }
            None => parts.push(Part::Any),
        }
        for part in rest {
            let part = match (*part, unescaped(part)) {
                (b"**", _) => Part::Any,
                (b"..", _) => {
                    return Err(refuse!(
                        "cannot use {flag}: there is a .. behind a pattern; write the path without it"
                    ));
                }
                (_, Some(literal)) => Part::Literal(literal),
                (part, None) => Part::Glob(part.to_vec()),
            };
            parts.push(part);
        }
        if parts.len() > PARTS_MAX {
            return Err(refuse!(
                "cannot use {flag}: a pattern has {PARTS_MAX} names at most; begin it nearer to what \
                 it is about"
            ));
        }
        let any = parts.iter().enumerate().filter(|(_, part)| matches!(part, Part::Any));
        let any = any.fold(0, |bits, (at, _)| bits | 1 << at);
        let (mut literals, mut singles) = (0, 0);
        for part in &parts {
            match part {
                Part::Any => {}
                Part::Literal(name) => literals += name.len(),
                Part::Glob(text) => {
                    let (literal, single) = weight_of(text);
                    (literals, singles) = (literals + literal, singles + single);
                }
            }
        }
        let weight = (literals, singles, rule.rank);
        Ok(Pattern { parts, any, start, kind: rule.kind, flag, weight })
    }

    /// Where in the pattern one is before the first name.
    pub(super) fn before(&self) -> u64 {
        self.with_empty(1)
    }

    /// Where one is after another name.
    pub(super) fn after(&self, places: u64, name: &[u8]) -> u64 {
        let mut next = places & self.any;
        let mut left = places & !self.any & !self.whole();
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            let fitting = match &self.parts[at] {
                Part::Any => true,
                Part::Literal(literal) => literal == name,
                Part::Glob(text) => fits(text, name),
            };
            next |= u64::from(fitting) << (at + 1);
        }
        self.with_empty(next)
    }

    /// The place behind the whole pattern: what has come there is matched.
    pub(super) fn whole(&self) -> u64 {
        1 << self.parts.len()
    }

    /// A part that stands for any number of names stands for none, too.
    fn with_empty(&self, mut places: u64) -> u64 {
        loop {
            let more = places | (places & self.any) << 1;
            if more == places {
                return places;
            }
            places = more;
        }
    }
}

/// How many characters of one part are literal, and how many stand for exactly one other.
fn weight_of(text: &[u8]) -> (usize, usize) {
    let (mut literals, mut singles) = (0, 0);
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'*' => {}
            b'?' => singles += 1,
            b'\\' => {
                literals += 1;
                rest = after.get(1..).unwrap_or_default();
            }
            b'[' => {
                let from = usize::from(matches!(after.first(), Some(b'!' | b'^'))) + 1;
                let end = after.iter().skip(from).position(|byte| *byte == b']');
                match end {
                    Some(end) => {
                        singles += 1;
                        rest = &after[from + end + 1..];
                    }
                    None => literals += 1,
                }
            }
            _ => literals += 1,
        }
    }
    (literals, singles)
}

impl Plan<'_> {
    /// The path that a rule is about, if it is about one: a pattern is kept for later.
    pub(super) fn plain_path(&mut self, rule: &Rule) -> Result<Option<PathBuf>, ConfigError> {
        let (path, target) = match rule.kind {
            RuleKind::ReadOnly | RuleKind::Writable => parse_pair(rule.kind.flag(), &rule.text)?,
            _ => (PathBuf::from(&rule.text), None),
        };
        if !rule.kind.takes_patterns() {
            return Ok(Some(path));
        }
        // What was looked at as a path stays one.
        if rule.judged.is_some() || !is_pattern(path.as_os_str()) {
            return Ok(Some(plain(path)));
        }
        check(rule.kind.flag(), &path)?;
        // A file may have such a name, and who names it means that: what shows is that alone, what hides is
        // about both.
        let place = absolute(self.host, &path).map(|path| self.host.walk(&path));
        let literal = matches!(place, Ok(Ok(place)) if place.kind != Kind::Missing);
        let shows = matches!(rule.kind, RuleKind::ReadOnly | RuleKind::Writable);
        if shows && literal {
            return Ok(Some(path));
        }
        if target.is_some() {
            return Err(refuse!(
                "cannot use {}: what matches a pattern shows in its own place; leave the second path out, \
                 or name what is to be shown there",
                rule.flag()
            ));
        }
        let pattern = self.read_pattern(rule)?;
        if self.patterns.len() == PATTERNS_MAX {
            return Err(refuse!(
                "cannot use {}: there are more than {PATTERNS_MAX} patterns; name the directories that \
                 they are about",
                pattern.flag
            ));
        }
        self.patterns.push(pattern);
        Ok((literal && rule.kind != RuleKind::Allow).then_some(path))
    }

    fn read_pattern(&self, rule: &Rule) -> Result<Pattern, ConfigError> {
        let text = rule.text.as_bytes();
        let parts: Vec<&[u8]> = text
            .split(|byte| *byte == b'/')
            .filter(|part| ![&b""[..], b"."].contains(part))
            .collect();
        let anchored = ["/", "./", "../"].iter().any(|start| text.starts_with(start.as_bytes()));
        if !anchored {
            return Pattern::new(rule, None, &parts);
        }
        let literal = parts.iter().map_while(|part| unescaped(part));
        let mut start = PathBuf::from(if text.starts_with(b"/") { "/" } else { "." });
        let mut count = 0;
        for name in literal {
            start.push(std::ffi::OsString::from_vec(name));
            count += 1;
        }
        let start = match self.find(&rule.flag(), &start) {
            Ok(place) => place.path,
            // What leads nowhere has nothing in it.
            Err(_) if rule.may_be_in_vain() => absolute(self.host, &start)?,
            Err(error) => return Err(error),
        };
        Pattern::new(rule, Some(start), &parts[count..])
    }

    /// Finds what the patterns match, and makes objects and exceptions of it.
    pub(super) fn match_patterns(
        &mut self,
        workdir: &Path,
        objects: &mut Objects,
    ) -> Result<(), ConfigError> {
        if self.patterns.is_empty() {
            return Ok(());
        }
        let roots = self.roots(workdir);
        let search = Search::new(self.host, &self.view, &self.patterns, &roots, objects);
        let found = search.run()?;
        let unused: Vec<String> = search.unused().map(|pattern| pattern.flag.clone()).collect();
        self.idle.extend(unused.into_iter().map(|flag| format!("{flag} matches nothing")));
        let closes =
            |it: &Pattern| matches!(it.kind, RuleKind::Hide | RuleKind::Deny | RuleKind::ReadOnly);
        let before = self.patterns.iter().any(closes).then(|| self.view.clone());
        for found in found {
            let Pattern { kind, flag, .. } = &self.patterns[found.pattern];
            let (kind, why) = (*kind, Why::Derived(flag.clone()));
            match kind {
                RuleKind::Hide | RuleKind::Deny => {
                    self.hide_match(found, why, kind == RuleKind::Deny, workdir, objects);
                }
                kind => self.show_match(found, why, kind),
            }
        }
        if let Some(before) = before {
            let patterns = std::mem::take(&mut self.patterns);
            self.coming = Some(Arc::new(Coming::new(before, patterns, roots)));
        }
        Ok(())
    }

    /// Where patterns that begin nowhere begin.
    fn roots(&self, workdir: &Path) -> Roots {
        let flagged = self
            .view
            .mounts()
            .filter(|mount| matches!(mount.why, Why::Flag(_)) && mount.kind.source().is_some());
        let flagged = flagged.map(|mount| mount.target.clone());
        let all = flagged.chain(self.homes.iter().cloned()).chain([workdir.to_owned()]);
        let all: HashSet<PathBuf> = all.filter(|path| path != Path::new("/")).collect();
        let is_others = |path: &PathBuf| {
            let own = self.homes.contains(path) || path == workdir;
            self.judged.contains(path) && !own
        };
        let (others, own) = all.into_iter().partition(is_others);
        Roots { own, others }
    }

    fn hide_match(
        &self,
        found: Match,
        why: Why,
        denied: bool,
        workdir: &Path,
        objects: &mut Objects,
    ) {
        let (path, directory) = match found.thing {
            Thing::Directory => (found.host, true),
            Thing::Other => (found.host, false),
            // What it leads to is what could be read.
            Thing::Link => {
                let Ok(place) = self.host.walk(&found.host) else { return };
                let wide = |path: &Path| path.starts_with(&place.path);
                if place.kind == Kind::Missing
                    || wide(workdir)
                    || self.homes.iter().any(|home| wide(home))
                {
                    return;
                }
                (place.path, place.kind == Kind::Directory)
            }
        };
        objects.entry(path).or_insert(Object { directory, denied, by_default: false, why });
    }

    /// Shows what is matched: with the access that a rule gives, or what lies in something hidden with the one
    /// that it would have.
    fn show_match(&mut self, found: Match, why: Why, kind: RuleKind) {
        let directory = found.thing == Thing::Directory;
        let needed = if directory { AccessFlags::X_OK } else { AccessFlags::R_OK };
        let is_there = match self.host.look(&found.host) {
            Ok(Found::Directory) => directory,
            Ok(Found::File) => !directory,
            _ => false,
        };
        if is_there && self.host.access(&found.host, needed).is_ok() {
            let source = found.host.clone();
            let base = self.unhidden_above(&found.guest);
            let kind = match (kind, base.map(|mount| &mount.kind)) {
                (RuleKind::Allow, _) => like(base, found.host, directory),
                // It is so already.
                (RuleKind::ReadOnly, None | Some(MountKind::ReadOnly { .. }))
                | (RuleKind::Writable, Some(MountKind::Writable { .. })) => return,
                (RuleKind::ReadOnly, _) => MountKind::ReadOnly { source },
                _ => MountKind::Writable { source },
            };
            self.view.insert(Mount { target: found.guest, kind, why });
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.flag)
    }
}

/// Two rules about one path that cannot both hold.
pub(super) fn contradiction(one: &Pattern, other: &Pattern, path: &Path) -> ConfigError {
    refuse!(
        "cannot use {one} together with {other}: both match {}, and neither is more specific; name that \
         path in a rule of its own",
        quoted(path)
    )
}
