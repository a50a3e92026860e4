//! Why a save or a restore came to nothing: one sentence with object, cause and remedy.

use std::fmt;

use crate::save::hand::HandError;

/// Why nothing was saved. The guests go on.
#[derive(Debug)]
pub enum SaveError {
    /// Something cannot be saved: which, and what to do.
    Refused(String),
    /// Something cannot be saved that a program is likely to end by itself soon, such as what it is about to
    /// read.
    Passing(String),
    /// Something failed.
    Failed(String),
}

/// Why nothing was restored. Nothing is left behind.
#[derive(Debug)]
pub enum RestoreError {
    /// The image cannot be restored here: why, and what to do.
    Refused(String),
    /// Something could not be made again: which, and why.
    Failed(String),
}

macro_rules! common {
    ($($error:ident: $($kind:ident)|+;)*) => {$(
        impl $error {
            /// It cannot be done, by name.
            pub fn refused(what: impl Into<String>) -> Self {
                $error::Refused(what.into())
            }

            /// `what` failed because of `why`.
            pub fn failed(what: impl fmt::Display, why: impl fmt::Display) -> Self {
                $error::Failed(format!("{what}: {why}"))
            }

            /// Makes an error of a hand one of `who`.
            pub fn of(who: impl fmt::Display) -> impl FnOnce(HandError) -> Self {
                move |error| $error::Failed(format!("{who}: {error}"))
            }
        }

        impl fmt::Display for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($error::$kind(what))|+ => f.write_str(what),
                }
            }
        }

        impl std::error::Error for $error {}
    )*};
}
common! {
    SaveError: Refused | Passing | Failed;
    RestoreError: Refused | Failed;
}

impl SaveError {
    /// It cannot be done now, by name; in a moment it may be.
    pub fn passing(what: impl Into<String>) -> Self {
        SaveError::Passing(what.into())
    }
}
