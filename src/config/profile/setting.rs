//! One thing that a run is told, and who told it.
//!
//! Flags and profiles both become these; nothing below knows which it was but by the origin.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::error::refuse;
use super::super::{ConfigError, quoted};
use super::keys::Key;

/// A key and a value for it; of a list, one element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// What it is about.
    pub key: &'static Key,
    /// What it is to be.
    pub value: Value,
    /// Who says so.
    pub origin: Origin,
    /// How strong its source is: of two that cannot both hold, the higher counts.
    pub(crate) rank: usize,
    /// The place that it is about, where it was taken for what that was when it was looked at: it must still be.
    pub(crate) judged: Option<PathBuf>,
}

/// What a key is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// On or off.
    Switch(bool),
    /// The word that stands behind the flag.
    Word(OsString),
}

/// Who said something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A profile that comes with the program.
    BuiltIn(&'static str),
    /// A file.
    File {
        /// Its path, as it was found.
        path: Arc<Path>,
        /// Which line, from 1 on.
        line: usize,
    },
    /// A flag.
    CommandLine,
}

/// Stronger than every file.
const COMMAND_LINE: usize = usize::MAX;

impl Setting {
    /// A flag of the command line.
    pub fn flag(key: &'static Key, value: Value) -> Setting {
        Setting { key, value, origin: Origin::CommandLine, rank: COMMAND_LINE, judged: None }
    }

    /// Its word; of a switch, none.
    pub fn word(&self) -> &OsStr {
        match &self.value {
            Value::Switch(_) => OsStr::new(""),
            Value::Word(word) => word,
        }
    }

    /// It is a switch that is on.
    pub fn is_on(&self) -> bool {
        self.value == Value::Switch(true)
    }

    /// Its word where only text can be meant.
    pub(crate) fn text(&self) -> Result<&str, ConfigError> {
        let word = self.word();
        word.to_str().ok_or_else(|| {
            refuse!(
                "cannot use --{} {}: it is not UTF-8; write it in plain letters and digits",
                self.key.name,
                quoted(word)
            )
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Switch(on) => write!(f, "{on}"),
            Value::Word(word) => f.write_str(&quoted(word)),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn(name) => write!(f, "built-in {name}"),
            Origin::File { path, line } => write!(f, "{}:{line}", quoted(path.as_os_str())),
            Origin::CommandLine => f.write_str("command line"),
        }
    }
}
