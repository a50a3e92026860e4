//! The sandbox's clocks, as the sentry holds them.
//!
//! Owns which of the guest's programs have been told of them, and the calls that are being made
//! again with another timeout. What a clock shows is the timekeeper's affair.

use super::randomness::Begin;
use super::remake::Remade;
use super::sessions::Sessions;
use crate::timekeeping::{Namespace, NoVdso, Patch, TimeSpec, Timekeeper};

/// The clocks of one sandbox and what the sentry remembers for them.
#[derive(Debug)]
pub struct Time {
    keeper: Timekeeper,
    remade: Remade,
    sessions: Sessions,
    /// `--time` was given. Immutable.
    own: bool,
    /// The guest is root inside and may set its clock. Immutable.
    root: bool,
}

impl Time {
    /// Clocks that start now. `root`: the guest is root inside.
    pub fn new(spec: Option<TimeSpec>, namespace: Namespace, root: bool) -> Time {
        let keeper = Timekeeper::new(spec.as_ref(), namespace);
        Time {
            keeper,
            remade: Remade::default(),
            sessions: Sessions::default(),
            own: spec.is_some(),
            root,
        }
    }

    /// The same for a run that is to do the same whenever it is done ([`Timekeeper::repeating`]).
    pub fn repeating(self) -> Time {
        Time { keeper: self.keeper.repeating(), ..self }
    }

    /// The host's clocks.
    pub fn hosts() -> Time {
        Time::new(None, Namespace::default(), false)
    }

    /// The clocks.
    pub fn keeper(&self) -> &Timekeeper {
        &self.keeper
    }

    /// The calls that are being made again with another timeout.
    pub(super) fn remade(&self) -> &Remade {
        &self.remade
    }

    /// The threads that are traced for the time of one call.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Whether the guest may set its clock.
    pub(super) fn may_set(&self) -> bool {
        self.own && self.root
    }

    /// What a program that is executed now needs in its vDSO, and `begin` where it finds that; `None` in a run
    /// on the host's clock.
    ///
    /// # Errors
    /// This host's vDSO is not known.
    pub fn patch(&self, begin: Option<Begin>) -> Result<Option<Patch>, NoVdso> {
        let begin = begin.map(|it| (it.random, it.nanoseconds));
        self.own.then(|| Patch::new(&self.keeper, begin)).transpose()
    }
}
