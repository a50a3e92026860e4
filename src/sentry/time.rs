//! The sandbox's clocks, as the sentry holds them.
//!
//! Owns which of the guest's programs have been told of them, and the calls that are being made
//! again with another timeout. What a clock shows is the timekeeper's affair.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::kernel::Kernel;
use super::randomness::Begin;
use super::remade::{InterruptedWait, Remade};
use super::sessions::Sessions;
use crate::timekeeping::{Namespace, NoVdso, Passed, Patch, SavedClocks, TimeSpec, Timekeeper};

/// The clocks of one sandbox and what the sentry remembers for them.
#[derive(Debug)]
pub struct Time {
    keeper: Timekeeper,
    remade: Remade,
    sessions: Sessions,
    /// All programs that ran when the clock was first set have been told.
    pub(super) told: OnceLock<()>,
    /// Guests are put together from an image: what is executed is none of their programs.
    grows: AtomicBool,
    /// See [`Time::trapped`]: once it is known.
    trapped: OnceLock<Option<u64>>,
    /// `--time` was given. Immutable.
    own: bool,
    /// The guest is root inside and may set its clock. Immutable.
    root: bool,
}

impl Time {
    /// Clocks that start now. `root`: the guest is root inside.
    pub fn new(spec: Option<TimeSpec>, namespace: Namespace, root: bool) -> Time {
        Time::with(Timekeeper::new(spec.as_ref(), namespace), spec.is_some(), root)
    }

    /// Clocks of the sandbox's own that go on from an image.
    ///
    /// # Errors
    /// What is wrong with what was saved, as the end of a sentence.
    pub fn resumed(
        spec: &TimeSpec,
        namespace: Namespace,
        root: bool,
        saved: &SavedClocks,
        passed: Passed,
    ) -> Result<Time, &'static str> {
        let keeper = Timekeeper::resumed(spec, namespace, saved, passed)?;
        let time = Time::with(keeper, true, root);
        // A thread may be in the midst of that code, wherever it has stopped.
        match time.code() {
            Ok(code) if code == *saved.code => Ok(time),
            Ok(_) => Err(
                "its programs read the clock by code of another version of sandbox, or of another \
                 kernel; restore it with that one",
            ),
            Err(NoVdso) => Err("the host's vDSO, through which programs read clocks, is not known"),
        }
    }

    /// The same clocks for a run that is to do the same whenever it is done ([`Timekeeper::repeating`]).
    pub fn repeating(self) -> Time {
        Time { keeper: self.keeper.repeating(), ..self }
    }

    fn with(keeper: Timekeeper, own: bool, root: bool) -> Time {
        Time {
            keeper,
            remade: Remade::default(),
            sessions: Sessions::default(),
            told: OnceLock::new(),
            grows: AtomicBool::new(false),
            trapped: OnceLock::new(),
            own,
            root,
        }
    }

    /// What an image keeps of clocks of the sandbox's own; `None`: they are the host's. `host`: the moment of the
    /// save, by the host's time of day.
    ///
    /// # Errors
    /// This host's vDSO is not known.
    pub fn saved(&self, host: i64) -> Result<Option<SavedClocks>, NoVdso> {
        if !self.own {
            return Ok(None);
        }
        Ok(Some(SavedClocks { code: self.code()?.into(), ..self.keeper.saved(host) }))
    }

    fn code(&self) -> Result<Vec<u8>, NoVdso> {
        Patch::new(&self.keeper, None).map(|patch| patch.code())
    }

    /// Guests are put together from an image, or are no more.
    pub fn grow(&self, grows: bool) {
        self.grows.store(grows, Ordering::SeqCst);
    }

    pub(super) fn is_growing(&self) -> bool {
        self.grows.load(Ordering::SeqCst)
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

    /// Where the set of trapped clocks lies in the vDSO of every program; `None`: nowhere.
    pub(super) fn trapped(&self) -> Option<u64> {
        *self.trapped.get_or_init(|| self.patch(None).ok()??.trapped())
    }
}

impl Kernel {
    /// Calls whose timeout the sentry has changed and that a stop has interrupted, by thread: those that go on by
    /// restart_syscall(2), if nothing has come of them since.
    pub fn interrupted_waits(&self) -> HashMap<i32, InterruptedWait> {
        self.time().remade().interrupted()
    }

    /// A thread that comes from an image goes on with such a wait.
    pub fn note_wait(&self, tid: i32, wait: InterruptedWait) {
        self.time().remade().note(tid, wait);
    }
}
