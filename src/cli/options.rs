//! The options of a run, which clap makes of the table of keys.
//!
//! Owns how a row of that table becomes a flag. What flags mean is the table's business.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, PossibleValuesParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};

use crate::config::profile::{Form, Group, KEYS, Key, Request, Setting, Value};

/// What a run is allowed, as the command line says it.
#[derive(Debug, Default)]
pub(super) struct RunOptions {
    pub(super) request: Request,
}

const PROFILE: &str = "profile";
const TRUST: &str = "trust-project-profile";
const PROFILES: &str = "Profiles (sandbox profile list)";

/// The keys that are options of everything that is about a run; the others are of the command itself.
fn keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.group != Group::Command || key.hidden)
}

impl RunOptions {
    /// Adds what another part of the command line says, if it does.
    pub(super) fn add(&mut self, name: &str, value: Option<Value>) {
        let setting = value.and_then(|value| Some(Setting::flag(Key::named(name)?, value)));
        self.request.flags.extend(setting);
    }

    /// The last word that was given for a key.
    pub(super) fn word(&self, name: &str) -> Option<&OsString> {
        let mut flags = self.request.flags.iter().rev().filter(|it| it.key.name == name);
        flags.find_map(|setting| match &setting.value {
            Value::Word(word) => Some(word),
            Value::Switch(_) => None,
        })
    }
}

impl Args for RunOptions {
    fn augment_args(command: Command) -> Command {
        let profile = Arg::new(PROFILE)
            .long(PROFILE)
            .value_name("NAME|FILE")
            .value_parser(value_parser!(OsString))
            .action(ArgAction::Append)
            .help_heading(PROFILES)
            .help("Use this profile instead of the default ones; the last one is the strongest");
        let trust = Arg::new(TRUST)
            .long(TRUST)
            .action(ArgAction::SetTrue)
            .help_heading(PROFILES)
            .help("Let the project's sandbox.toml allow more than you do without it");
        command.args([profile, trust]).args(keys().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RunOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let profiles = matches.get_many(PROFILE).unwrap_or_default().cloned().collect();
        let mut flags = Vec::new();
        for key in keys() {
            flags.extend(values(key, matches)?.into_iter().map(|value| Setting::flag(key, value)));
        }
        let trusts_project = matches.get_flag(TRUST);
        Ok(RunOptions { request: Request { profiles, trusts_project, flags } })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A key as a flag.
fn argument(key: &'static Key) -> Arg {
    let argument = Arg::new(key.name).long(key.name).help(key.help).hide(key.hidden);
    let argument = match key.group {
        Group::Files => {
            argument.help_heading("Files (the most specific path wins, in whatever order)")
        }
        Group::Who => argument.help_heading("Environment and identity"),
        Group::Network => argument.help_heading("Network and descriptors"),
        Group::Limits => argument.help_heading("Limits"),
        Group::Command => argument,
    };
    if key.form == Form::Switch {
        // A profile may have switched it on.
        return argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .hide_possible_values(true)
            .value_parser(value_parser!(bool));
    }
    if key.form == Form::Choice {
        return argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name(key.value)
            .value_parser(OsStringValueParser::new());
    }
    let argument = argument
        .value_name(key.value)
        .action(if key.is_list() { ArgAction::Append } else { ArgAction::Set })
        // -2h is a word for a clock.
        .allow_hyphen_values(key.name == "time");
    match key.form {
        _ if key.choices.is_empty() && key.form == Form::Numbers => {
            let number = |word: OsString| match word.to_str().map(str::parse::<u32>) {
                Some(Ok(_)) => Ok(word),
                _ => Err("it is no number"),
            };
            argument.value_parser(clap::builder::TypedValueParser::try_map(
                OsStringValueParser::new(),
                number,
            ))
        }
        _ if key.choices.is_empty() => argument.value_parser(OsStringValueParser::new()),
        _ if key.is_list() => argument
            .value_delimiter(',')
            .value_parser(PossibleValuesParser::new(key.choices.iter().copied())),
        _ => argument
            .hide_possible_values(true)
            .value_parser(PossibleValuesParser::new(key.choices.iter().copied())),
    }
}

/// What the command line says of a key.
fn values(key: &Key, matches: &ArgMatches) -> Result<Vec<Value>, Error> {
    let wrong = |error: clap::parser::MatchesError| Error::raw(ErrorKind::InvalidValue, error);
    if key.form == Form::Switch {
        let on = matches.try_get_one::<bool>(key.name).map_err(wrong)?;
        return Ok(on.map(|on| Value::Switch(*on)).into_iter().collect());
    }
    let words = matches.try_get_raw(key.name).map_err(wrong)?;
    // A word with commas is one raw value, and several where these separate.
    if !key.choices.is_empty() {
        let words = matches.try_get_many::<String>(key.name).map_err(wrong)?;
        return Ok(words.into_iter().flatten().map(|word| Value::Word(word.into())).collect());
    }
    Ok(words.into_iter().flatten().map(|word| Value::Word(word.to_owned())).collect())
}
