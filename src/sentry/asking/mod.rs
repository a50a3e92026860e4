//! Asking whoever runs the sandbox about what no rule names (`--ask`).
//!
//! Owns the questions that are open, who may answer, and what was answered. A question lives as long as somebody
//! waits for its answer: a task that dies, handles a signal or is stopped takes its own back. Equal ones are one.
//! What is asked about, and what a yes does, is decided where the calls are served (`net`, `syscalls::asked`).
//! Where nobody is there to answer, the answer is no.

mod kernel;
mod state;
mod subject;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use state::{Open, State};
pub use subject::{Asker, Question, Subject};

use super::paths::Copies;

bitflags::bitflags! {
    /// What is asked about.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct About: u8 {
        /// Names and hosts.
        const NET = 1;
        /// Files.
        const FILES = 2;
    }
}

/// What somebody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Yes, to those who ask now.
    Once,
    /// Yes, as long as the run lasts.
    Always,
    /// No, to those who ask now.
    No,
    /// No, as long as the run lasts.
    Never,
}

impl Choice {
    /// Whether it is a yes.
    pub fn allows(self) -> bool {
        matches!(self, Choice::Once | Choice::Always)
    }

    /// Whether it holds for the rest of the run.
    pub fn lasts(self) -> bool {
        matches!(self, Choice::Always | Choice::Never)
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Choice::Once => "once",
            Choice::Always => "always",
            Choice::No => "no",
            Choice::Never => "never",
        }
    }

    /// The choice of that name.
    pub fn named(word: &str) -> Option<Choice> {
        [Choice::Once, Choice::Always, Choice::No, Choice::Never]
            .into_iter()
            .find(|it| it.word() == word)
    }
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was answered.
    Answered(Choice),
    /// Nobody was there any more who could have answered.
    Nobody,
    /// Whoever has asked does not wait any more.
    Withdrawn,
}

impl Outcome {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Answered(choice) => choice.word(),
            Outcome::Nobody => "nobody",
            Outcome::Withdrawn => "withdrawn",
        }
    }
}

/// Why the answer is no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// Somebody has said so.
    Said(Choice),
    /// There is nobody to be asked.
    Nobody,
    /// Too much is asked.
    TooMany,
}

/// Writes an answer that is to last longer than the run. The error is a sentence.
pub type Scribe = Box<dyn Fn(&Subject, bool) -> Result<(), String> + Send + Sync>;

/// Which files can be asked for.
pub trait Places: std::fmt::Debug + Send + Sync {
    /// The path on the host of what a guest knows by this path, if it is hidden from it, or can only be read and it
    /// `writes`, and nobody has said that it is to be so.
    fn of(&self, path: &Path, writes: bool) -> Option<PathBuf>;
}

/// The questions of a run.
pub struct Asking {
    /// Immutable.
    about: About,
    /// Immutable.
    scribe: Option<Scribe>,
    /// Until when somebody is expected to come who answers. Immutable.
    expected: Instant,
    /// Of files that guests were let read.
    pub(super) copies: Arc<Copies>,
    /// Files that guests were let change, by device and inode. A leaf of the lock order.
    changed_files: Mutex<HashSet<(u64, u64)>>,
    /// A leaf of the lock order.
    state: Mutex<State>,
    /// Tells whoever shows questions that some have come or gone.
    changed: watch::Sender<()>,
}

/// Questions that are open at a time; and that wait for one answer.
const MOST_OPEN: usize = 16;
const MOST_WAITING: usize = 256;

impl Asking {
    /// `patience`: for how long from now on a question waits for somebody to come who answers.
    pub fn new(about: About, patience: Duration, scribe: Option<Scribe>) -> Asking {
        let expected = Instant::now() + patience;
        Asking {
            about,
            scribe,
            expected,
            copies: Arc::default(),
            changed_files: Mutex::default(),
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Whether it is asked about this.
    pub fn is_about(&self, what: About) -> bool {
        self.about.contains(what)
    }

    /// Somebody answers from now on, until what is given is dropped.
    pub fn attend(self: &Arc<Self>) -> Attendance {
        self.lock().attending += 1;
        self.changed.send_replace(());
        Attendance(Arc::clone(self))
    }

    /// How many answer.
    pub fn attending(&self) -> usize {
        self.lock().attending
    }

    /// What is open, in the order in which it was asked.
    pub fn open(&self) -> Vec<Question> {
        self.lock().open.values().map(|open| open.question.clone()).collect()
    }

    /// What became of a question that is not open any more; `None`: that is too long ago.
    pub fn outcome(&self, number: u64) -> Option<Outcome> {
        self.lock().settled.iter().find(|it| it.0 == number).map(|it| it.1)
    }

    /// Becomes ready when questions come or go.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A guest was let change this file (device and inode), past its file view.
    pub(super) fn lets_change(&self, file: (u64, u64)) {
        self.changed_files.lock().unwrap_or_else(PoisonError::into_inner).insert(file);
    }

    /// These files.
    pub fn changed_files(&self) -> HashSet<(u64, u64)> {
        self.changed_files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether answers can be written down.
    pub fn writes(&self) -> bool {
        self.scribe.is_some()
    }

    /// What is known of this without another question: what somebody has said for the rest of the run.
    pub(super) fn known(&self, subject: &Subject) -> Option<bool> {
        self.lock().remembered.get(subject).copied()
    }

    /// A yes that was said before, and that nobody has to act on to use it up.
    pub(super) fn granted(self: &Arc<Self>, choice: Choice) -> Granted {
        Granted { asking: Arc::clone(self), owed: None, choice }
    }

    /// A process was let look up a name: it may reach what that stands for.
    pub(super) fn admit_once(&self, name: &str, asker: &Asker) {
        self.lock().admit_once(name, asker.process());
    }

    /// Whether this process was let look up a name.
    pub(super) fn is_admitted(&self, name: &str, asker: &Asker) -> bool {
        self.lock().is_admitted(name, asker.process())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking").field("about", &self.about).finish_non_exhaustive()
    }
}

/// Somebody who answers.
#[derive(Debug)]
pub struct Attendance(Arc<Asking>);

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.attending -= 1;
        state.abandon_if_alone();
        drop(state);
        self.0.changed.send_replace(());
    }
}

/// A yes that is being acted on. What was said once holds for one call that has been done to its end: one that is
/// begun anew (a stop, a signal) is not asked about again.
#[derive(Debug)]
pub struct Granted {
    asking: Arc<Asking>,
    owed: Option<(Subject, Asker)>,
    /// What was said.
    pub(super) choice: Choice,
}

impl Granted {
    /// It has been done.
    pub(super) fn settle(mut self) -> Choice {
        self.owed = None;
        self.choice
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some((subject, asker)) = self.owed.take() {
            self.asking.lock().owe(subject, &asker, self.choice);
        }
    }
}

/// One that waits for an answer.
struct Waiting {
    asking: Arc<Asking>,
    number: u64,
    /// Which of those that wait.
    own: u64,
    subject: Subject,
    asker: Asker,
    answer: oneshot::Receiver<Choice>,
    /// Told once the question is closed for want of anybody who waits.
    withdrawn: Option<Withdrawn>,
}

/// Tells of a question that was taken back.
type Withdrawn = Box<dyn FnOnce(u64, &Subject) + Send>;

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have come just now, and the next call of this thread is the same.
        if let Ok(choice) = self.answer.try_recv()
            && !choice.lasts()
        {
            let subject = self.subject.clone();
            return self.asking.lock().owe(subject, &self.asker, choice);
        }
        let is_last = self.asking.lock().leave(self.number, self.own);
        if is_last {
            self.asking.changed.send_replace(());
            if let Some(withdrawn) = self.withdrawn.take() {
                withdrawn(self.number, &self.subject);
            }
        }
    }
}

/// By number.
type Questions = BTreeMap<u64, Open>;
