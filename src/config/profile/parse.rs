//! The text of a profile becomes settings, each with its line.
//!
//! Owns the form of the files: TOML without tables, whose keys are those of the table of keys, and
//! `description` and `inherit`. Every complaint names line and column, and shows nothing of the text
//! but names of keys: a project's file can lead to a file of the user's that is no profile.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::error::refuse;
use super::super::glob::is_pattern;
use super::super::{ConfigError, Host, Options, quoted};
use super::expand::{expand, expand_pattern};
use super::keys::{Form, KEYS, Key};
use super::setting::{Origin, Setting, Value};

/// Profiles that one inherits itself at most.
const INHERIT_MAX: usize = 64;

/// Keys about the profile itself.
const OWN_KEYS: [&str; 2] = ["description", "inherit"];

/// A profile, read.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// What it is for.
    pub(super) description: Option<String>,
    /// What it stands on, as it is written, weakest first, and where that is.
    pub(super) inherit: Vec<(String, Position)>,
    /// In the order of the file.
    pub(super) settings: Vec<Setting>,
}

/// A place in a text, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What is read, and for whom.
pub(super) struct Source<'s> {
    /// Its name, in an error.
    pub(super) name: &'s str,
    /// The origin of what stands in that line.
    pub(super) origin: &'s dyn Fn(usize) -> Origin,
    /// What relative paths are relative to; `None`: the working directory.
    pub(super) base: Option<&'s Path>,
    pub(super) host: &'s Host,
    pub(super) rank: usize,
}

impl Source<'_> {
    /// An error at a place of this source.
    pub(super) fn error(&self, at: Position, cause: &str) -> ConfigError {
        // Words of a parser may hold line ends, as the text does.
        let cause: String = cause.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let Position { line, column } = at;
        refuse!("cannot use the profile {}: line {line}, column {column}: {cause}", self.name)
    }
}

/// Reads a whole profile.
pub(super) fn parse(text: &str, source: &Source<'_>) -> Result<Profile, ConfigError> {
    let lines = Lines::of(text);
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        let cause = format!("this is no TOML: {}; correct it", error.message());
        source.error(lines.position(at), &cause)
    })?;
    let mut reader = Reader { source, lines, profile: Profile::default() };
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in entries {
        reader.entry(name.get_ref(), name.span(), value)?;
    }
    Ok(reader.profile)
}

struct Reader<'r> {
    source: &'r Source<'r>,
    lines: Lines<'r>,
    profile: Profile,
}

impl Reader<'_> {
    fn entry(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        match (name, value.get_ref()) {
            ("description", DeValue::String(words)) => {
                self.profile.description = Some(words.to_string());
                Ok(())
            }
            ("description", other) => Err(self.mistyped(name, "a string", value.span(), other)),
            ("inherit", _) => self.inherit(value),
            _ => match Key::named(name) {
                Some(key) => self.values(key, value),
                None => Err(self.error(span.start, &unknown(name))),
            },
        }
    }

    fn inherit(&mut self, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        for element in elements(value) {
            let DeValue::String(name) = element.get_ref() else {
                let (form, span) = ("a string or an array of strings", element.span());
                return Err(self.mistyped("inherit", form, span, element.get_ref()));
            };
            if self.profile.inherit.len() == INHERIT_MAX {
                let cause = format!("it inherits more than {INHERIT_MAX} profiles; leave some out");
                return Err(self.error(element.span().start, &cause));
            }
            let position = self.lines.position(element.span().start);
            self.profile.inherit.push((name.to_string(), position));
        }
        Ok(())
    }

    /// The value or values of a key.
    fn values(
        &mut self,
        key: &'static Key,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        if !key.is_list() {
            return self.value(key, value);
        }
        for element in elements(value) {
            self.value(key, element)?;
        }
        Ok(())
    }

    fn value(
        &mut self,
        key: &'static Key,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let at = value.span().start;
        let read = match (key.form, value.get_ref()) {
            (Form::Switch, DeValue::Boolean(on)) => Value::Switch(*on),
            (Form::Choice, DeValue::Boolean(on)) => Value::Word(on.to_string().into()),
            (Form::Number | Form::Numbers | Form::Choice, DeValue::Integer(number)) => {
                let number = i64::from_str_radix(number.as_str(), number.radix());
                let number = number.map_err(|_| self.error(at, "this number is too large"))?;
                Value::Word(number.to_string().into())
            }
            (Form::Word | Form::Words | Form::Number | Form::Choice, DeValue::String(word)) => {
                Value::Word(OsString::from(word.as_ref()))
            }
            (Form::Pairs, DeValue::String(word)) if is_pattern(OsStr::new(word.as_ref())) => {
                let Source { host, base, .. } = self.source;
                let word = expand_pattern(word, *base, host);
                Value::Word(word.map_err(|cause| self.error(at, &cause))?)
            }
            (Form::Path | Form::Paths | Form::Pairs, DeValue::String(word)) => {
                let Source { host, base, .. } = self.source;
                let word = expand(word, key.form == Form::Pairs, *base, host)
                    .map_err(|cause| self.error(at, &cause))?;
                Value::Word(word)
            }
            (Form::Patterns, DeValue::String(word)) => {
                let Source { host, base, .. } = self.source;
                let word = expand_pattern(word, *base, host);
                Value::Word(word.map_err(|cause| self.error(at, &cause))?)
            }
            (_, other) => {
                return Err(self.mistyped(key.name, key.form.words(), value.span(), other));
            }
        };
        let origin = (self.source.origin)(self.lines.line(at));
        let (rank, judged) = (self.source.rank, None);
        let setting = Setting { key, value: read, origin, rank, judged };
        key.set(&mut Options::default(), &setting)
            .map_err(|error| self.error(at, &error.to_string()))?;
        self.profile.settings.push(setting);
        Ok(())
    }

    fn mistyped(
        &self,
        name: &str,
        wanted: &str,
        span: Range<usize>,
        found: &DeValue<'_>,
    ) -> ConfigError {
        let cause = format!("{name} is {wanted}, and here is a value of type {}", found.type_str());
        self.error(span.start, &cause)
    }

    fn error(&self, at: usize, cause: &str) -> ConfigError {
        self.source.error(self.lines.position(at), cause)
    }
}

/// The elements of an array, or the one value that stands for an array of one.
fn elements<'v, 'i>(value: &'v Spanned<DeValue<'i>>) -> &'v [Spanned<DeValue<'i>>] {
    match value.get_ref() {
        DeValue::Array(elements) => elements,
        _ => std::slice::from_ref(value),
    }
}

impl Form {
    /// What a value of this form is, in TOML.
    pub(super) fn words(self) -> &'static str {
        match self {
            Form::Switch => "true or false",
            Form::Choice => "true or false, a string or an integer",
            Form::Word | Form::Path => "a string",
            Form::Number => "an integer, or a string with a unit",
            Form::Words | Form::Paths | Form::Patterns | Form::Pairs => {
                "a string or an array of strings"
            }
            Form::Numbers => "an integer or an array of integers",
        }
    }
}

fn unknown(name: &str) -> String {
    let known = KEYS.iter().filter(|key| !key.hidden).map(|key| key.name);
    let advice = match nearest(name, known.chain(OWN_KEYS)) {
        Some(near) => format!("the nearest one is {near}"),
        None => "sandbox profile show lists all keys".to_owned(),
    };
    format!("there is no key {}; {advice}", quoted(name))
}

/// The name that was likely meant.
pub(super) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let name: String = name.chars().take(64).collect();
    let alike = |known: &'n str| (strsim::jaro_winkler(&name, known), known);
    let best = known.into_iter().map(alike).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.7).map(|(_, known)| known)
}

/// Where the lines of a text begin.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Lines<'t> {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// Counts along the line, which may be long: for errors, not for every value.
    fn position(&self, at: usize) -> Position {
        let line = self.line(at);
        let start = self.starts[line - 1];
        let before = self.text.get(start..at).unwrap_or_default();
        Position { line, column: before.chars().count() + 1 }
    }
}
