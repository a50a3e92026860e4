//! What the user has said of a run in which is learned, for the profile.
//!
//! Owns which flags go there, how their values are written, and that no secret is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::super::environment::{Wish, because, parse_wish};
use super::super::error::refuse;
use super::super::glob::{escaped, is_pattern};
use super::super::paths::parse_pair;
use super::super::profile::{
    Form, Gathered, Group, Origin, Place, Request, Setting, Value, own_directory,
};
use super::super::{ConfigError, Host, absolute, quoted};
use super::text::{one, path_text};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// What the profile stands on.
    pub(super) inherit: Vec<String>,
    /// Keys with their values, in TOML; of a list, one element.
    pub(super) said: Vec<(&'static str, bool, String)>,
}

/// Flags that are about the run in which is learned alone.
const OF_THIS_RUN: [&str; 4] = ["overlay-dir", "record-files", "fake-fsync", "net-log"];

impl Carried {
    /// That of a run, for a profile that is written to `file`.
    pub(super) fn of(
        request: &Request,
        gathered: &Gathered,
        host: &Host,
        file: &Path,
        merged: Option<&Path>,
    ) -> Result<Carried, ConfigError> {
        let own = own_directory(host).and_then(|own| host.walk(&own).ok());
        let is_toml = file.extension() == Some(OsStr::new("toml"));
        let is_own = is_toml && own.is_some_and(|own| file.parent() == Some(&*own.path));
        let mut carried = Carried::default();
        for word in &request.profiles {
            let is_file = word.to_str().is_none_or(|it| it.contains('/') || it.ends_with(".toml"));
            let path = absolute(host, Path::new(word))?;
            match (is_file, word.to_str()) {
                // What it is merged into is no part of itself.
                (true, _) if merged == Some(path.as_path()) => {}
                (true, _) => carried.inherit.push(name(&path)?),
                (false, Some(name)) => carried.inherit.push(one(name)),
                (false, None) => {}
            }
        }
        let of_user = |place: &Place| *place != Place::BuiltIn("default");
        if request.profiles.is_empty() && gathered.places.iter().any(of_user) {
            carried.inherit.push(one("default"));
        }
        if let Some(project) = gathered.project.as_ref().filter(|_| request.trusts_project) {
            carried.inherit.push(name(project)?);
        }
        let flags = gathered.settings.iter().filter(|it| it.origin == Origin::CommandLine);
        let flags = flags.filter(|it| it.key.group != Group::Command && !it.key.hidden);
        for setting in flags.filter(|it| !OF_THIS_RUN.contains(&it.key.name)) {
            let text = value(setting, host, is_own)?;
            carried.said.push((setting.key.name, setting.key.is_list(), text));
        }
        Ok(carried)
    }
}

/// The value of a setting in TOML.
fn value(setting: &Setting, host: &Host, is_own: bool) -> Result<String, ConfigError> {
    let word = match &setting.value {
        Value::Switch(on) => return Ok(on.to_string()),
        Value::Word(word) => word,
    };
    let flag = format!("--{}", setting.key.name);
    Ok(match setting.key.form {
        Form::Path | Form::Paths => text(&absolute(host, Path::new(word))?, &flag)?,
        Form::Patterns => text(Path::new(&pattern(word, host, is_own)?), &flag)?,
        Form::Pairs => {
            let (source, target) = parse_pair(setting.key.name, word)?;
            let mut both = half(&pattern(source.as_os_str(), host, is_own)?);
            if let Some(target) = target {
                both.push(":");
                both.push(half(target.as_os_str()));
            }
            text(Path::new(&both), &flag)?
        }
        Form::Numbers => setting.text()?.to_owned(),
        _ if setting.key.name == "env" => one(&variable(word, setting)?),
        _ => one(setting.text()?),
    })
}

/// A path or a pattern that is about the same in the profile, wherever that is used. A pattern that begins nowhere
/// stays so in one of the user's own (`is_own`), where it is about all that it is about here; in another
/// file it would be about what is below that alone (`profile::expand`).
fn pattern(word: &OsStr, host: &Host, is_own: bool) -> Result<OsString, ConfigError> {
    let mut rest = word.as_bytes();
    if rest.is_empty() || rest.starts_with(b"/") {
        return Ok(word.to_owned());
    }
    let is_near = [&b"./"[..], b"../"].iter().any(|start| rest.starts_with(start));
    let floats = is_pattern(word) && !is_near;
    if floats && is_own {
        // A tilde at its beginning would be the home.
        let before = if rest.starts_with(b"~") { "**/" } else { "" };
        return Ok([OsStr::new(before), word].join(OsStr::new("")));
    }
    while let Some(after) = rest.strip_prefix(b"./") {
        rest = after;
    }
    let base: PathBuf = absolute(host, Path::new("."))?.components().collect();
    let mut whole = escaped(&base).into_vec();
    if !whole.ends_with(b"/") {
        whole.push(b'/');
    }
    if floats {
        whole.extend(b"**/");
    }
    if rest != b"." {
        whole.extend(rest);
    }
    Ok(OsString::from_vec(whole))
}

/// A file that is inherited: nothing in its path stands for anything else.
fn name(path: &Path) -> Result<String, ConfigError> {
    path.to_str().map(one).ok_or_else(|| no_text(path, "--profile"))
}

/// A path that the user has named.
fn text(path: &Path, flag: &str) -> Result<String, ConfigError> {
    path_text(path, None).ok_or_else(|| no_text(path, flag))
}

fn no_text(path: &Path, flag: &str) -> ConfigError {
    refuse!(
        "cannot write {flag} {} into a profile: it is not UTF-8, which a profile is; leave it out",
        quoted(path)
    )
}

/// A variable; of one that looks like a secret the name alone, which passes the caller's own.
fn variable(word: &OsStr, setting: &Setting) -> Result<String, ConfigError> {
    if let Wish::Set(name, value) = parse_wish(word)?
        && because(&name, &value).is_some()
        && let Some(name) = name.to_str()
    {
        return Ok(name.to_owned());
    }
    Ok(setting.text()?.to_owned())
}

/// A path, and no pattern, as one half of `PATH[:DST]`.
pub(in super::super) fn pair(path: &Path) -> OsString {
    half(&escaped(path))
}

/// A word as one half of that.
fn half(word: &OsStr) -> OsString {
    let mut text = Vec::new();
    for byte in word.as_bytes() {
        if *byte == b':' {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    OsString::from_vec(text)
}

/// The same, for a rule that is written down; none where it is no text.
pub(super) fn pair_text(path: &Path, home: Option<&PathBuf>) -> Option<String> {
    path_text(Path::new(&pair(path)), home.map(PathBuf::as_path))
}
