//! Why something with an overlay came to nothing.

use std::fmt;

/// One sentence with operation, object, cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayError(String);

impl OverlayError {
    pub(super) fn new(sentence: impl Into<String>) -> Self {
        OverlayError(sentence.into())
    }
}

impl fmt::Display for OverlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OverlayError {}

/// Builds an [`OverlayError`] as `format!` builds a string.
macro_rules! refuse {
    ($($words:tt)*) => { $crate::overlay::OverlayError::new(format!($($words)*)) };
}
pub(super) use refuse;
