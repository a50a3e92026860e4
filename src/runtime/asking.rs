//! Questions for the user at the terminal (`--ask`): shown one after the other, each answered by a key.
//!
//! Owns the words and the keys. Which questions there are and what an answer does is the kernel's business; how they
//! get on the screen is that of `terminal`.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::job::Job;
use super::{Error, Supervisor};
use crate::config::RunSpec;
use crate::launch::Order;
use crate::sentry::Kernel;
use crate::sentry::asking::{Asking, Attendance, Choice, Outcome, Question, Scribe};
use crate::sys::ready::watch_readable;

/// Where the user is asked.
pub(super) struct Desk {
    asking: Arc<Asking>,
    changes: watch::Receiver<()>,
    /// As long as there is a terminal.
    attendance: Option<Attendance>,
    /// Readable when the user has typed.
    typed: Option<AsyncFd<OwnedFd>>,
    /// The number of the question on the screen.
    shown: Option<u64>,
    /// Its answer is to be written down.
    writes: bool,
    /// Nothing is shown before the run is in the foreground again, since nobody could bring it there.
    waits: bool,
}

/// How long from its start on a run waits for somebody to come who answers, if it has an id that a person knows.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has a run ask what it is to ask.
pub(super) fn begin(spec: &RunSpec, kernel: &Kernel, scribe: Option<Scribe>) {
    let asks = &spec.asks;
    if !asks.about.is_empty() {
        let patience = if asks.awaited { PATIENCE } else { Duration::ZERO };
        let asking = Asking::new(asks.about, patience, scribe);
        kernel.ask_through(Arc::new(asking), asks.places.clone());
    }
}

/// Waits until the user is to be asked, or has typed.
pub(super) async fn asked(desk: &mut Option<Desk>) {
    match desk {
        Some(desk) => desk.ready().await,
        None => std::future::pending().await,
    }
}

impl Supervisor<'_> {
    /// Has the user asked what is to be asked.
    pub(super) fn attend(&mut self) -> Result<(), Error> {
        let Some(desk) = &mut self.desk else { return Ok(()) };
        if let Some(order) = desk.attend(&self.kernel, &mut self.job) {
            self.behind.order(order)?;
        }
        Ok(())
    }

    /// The terminal was somebody else's for a while.
    pub(super) fn show_anew(&mut self) -> Result<(), Error> {
        self.desk.iter_mut().for_each(Desk::is_covered);
        self.attend()
    }
}

/// Ctrl-C.
const INTERRUPT: u8 = 3;

impl Desk {
    /// `None`: nothing is asked, or there is no terminal.
    pub(super) fn new(kernel: &Kernel, has_terminal: bool) -> Option<Desk> {
        let asking = Arc::clone(kernel.asking().filter(|_| has_terminal)?);
        let (changes, attendance) = (asking.changes(), Some(asking.attend()));
        Some(Desk {
            asking,
            changes,
            attendance,
            typed: None,
            shown: None,
            writes: false,
            waits: false,
        })
    }

    /// Waits until there is something to do.
    pub(super) async fn ready(&mut self) {
        let typed = async {
            match &self.typed {
                Some(typed) => typed.readable().await.map(|mut it| it.clear_ready()),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.changes.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            typed = typed => {
                if typed.is_err() {
                    self.typed = None;
                }
            }
        }
    }

    /// The screen is the guest's again, or the shell's: what was shown on it has to be shown anew.
    pub(super) fn is_covered(&mut self) {
        (self.shown, self.writes, self.waits) = (None, false, false);
    }

    /// Takes what was typed, and shows what is to be answered. Gives an order to the program's keeper.
    pub(super) fn attend(&mut self, kernel: &Kernel, job: &mut Job) -> Option<Order> {
        if !job.is_carrying() {
            // It is about to be, unless it is gone.
            if self.typed.take().is_some() {
                self.attendance = None;
            }
            return None;
        }
        if self.typed.is_none() {
            self.typed = job.asked().and_then(|asked| watch_readable(asked).ok());
        }
        for (question, key) in job.answers() {
            self.take(kernel, job, question, key);
        }
        let open = self.asking.open();
        let was_shown = self.shown;
        if let Some(number) = self.shown
            && !open.iter().any(|question| question.number == number)
        {
            let outcome = self.asking.outcome(number).map_or("gone", |outcome| outcome.word());
            job.resume_screen(format!("{outcome}\r\n"));
            self.shown = None;
        }
        match open.first() {
            Some(question) if self.shown.is_none() && !self.waits => self.show(question, job),
            None if was_shown.is_some() && job.is_drawn_on() => Some(Order::Group(libc::SIGWINCH)),
            _ => None,
        }
    }

    /// The run has ended: the line of a question that is still on the screen ends, too.
    pub(super) fn close(self, job: &mut Job) {
        if self.shown.is_some() {
            job.show_more(format!("{}\r\n", Outcome::Withdrawn.word()));
        }
    }

    /// A key was typed for a question, which may not be the one on the screen any more.
    fn take(&mut self, kernel: &Kernel, job: &mut Job, number: u64, key: u8) {
        if self.shown != Some(number) {
            return;
        }
        let choice = match key.to_ascii_lowercase() {
            b'o' if !self.writes => Choice::Once,
            b'a' => Choice::Always,
            b'n' => Choice::Never,
            INTERRUPT => Choice::No,
            b's' if self.asking.writes() && !self.writes => {
                self.writes = true;
                job.show_more("write it: a always, n never, ^C not now? ".to_owned());
                return;
            }
            _ => return,
        };
        let writes = std::mem::take(&mut self.writes) && choice.lasts();
        if let Err(sentence) = kernel.answer(number, choice, writes, "terminal")
            && writes
        {
            job.show_more(format!("\r\nsandbox: {sentence}\r\n{}", self.keys()));
        }
    }

    fn keys(&self) -> String {
        let writes = if self.asking.writes() { "s write it down, " } else { "" };
        format!("sandbox: o once, a always, n never (in this run), {writes}^C not now? ")
    }

    fn show(&mut self, question: &Question, job: &mut Job) -> Option<Order> {
        let words = format!("sandbox: {question}\r\n{}", self.keys());
        match job.ask(question.number, words) {
            Some(true) => {
                (self.shown, self.writes) = (Some(question.number), false);
                None
            }
            // Somebody else may answer; if not, the job waits to be brought to the foreground, as one that reads from
            // its terminal (SIGTTIN in signal(7)).
            Some(false) if self.asking.attending() > 1 => None,
            Some(false) => {
                let order = job.wait_for_foreground();
                if order.is_none() {
                    self.attendance = None;
                    self.waits = true;
                } else {
                    // Shown when the change is looked at.
                    self.changes.mark_changed();
                }
                order
            }
            None => None,
        }
    }
}
