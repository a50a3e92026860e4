//! The one error of this module: a sentence for the operator.

use std::fmt;

/// Why no run could be described: one sentence that names operation, object, cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    /// An error that says `sentence` (no full stop, no newline at its end).
    pub fn new(sentence: impl Into<String>) -> Self {
        ConfigError(sentence.into())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Builds a [`ConfigError`] as `format!` builds a string.
macro_rules! refuse {
    ($($words:tt)*) => { $crate::config::ConfigError::new(format!($($words)*)) };
}
pub(crate) use refuse;
