//! Asking, as the handlers of calls do it: with an event for each question and each answer.

use std::sync::Arc;
use std::time::Instant;

use super::state::Met;
use super::{Asker, Asking, Choice, Denial, Granted, Outcome, Question, Subject, Waiting};
use crate::sentry::events::Event;
use crate::sentry::kernel::Kernel;

/// Why something was refused.
const NOBODY: &str = "nobody was there to be asked";
const SAID_NO: &str = "the answer was no";
const SAID_NEVER: &str = "the answer was never";
const TOO_MANY: &str = "too much was asked at a time";

impl Denial {
    /// Why, for the explanation at the end.
    pub fn reason(self) -> &'static str {
        match self {
            Denial::Said(Choice::Never) => SAID_NEVER,
            Denial::Said(_) => SAID_NO,
            Denial::Nobody => NOBODY,
            Denial::TooMany => TOO_MANY,
        }
    }
}

impl Kernel {
    /// Asks whether somebody may do something, and waits for the answer. To drop the future takes the question back.
    pub(in crate::sentry) async fn ask(
        self: &Arc<Self>,
        asking: &Arc<Asking>,
        asker: Asker,
        subject: Subject,
        address: Option<String>,
    ) -> Result<Granted, Denial> {
        let is_expected = Instant::now() < asking.expected;
        let met = asking.lock().ask(&asker, &subject, address.as_deref(), is_expected);
        let choice = match met {
            Met::Answer(choice) => choice,
            Met::Denied(denial) => return Err(denial),
            Met::Wait { number, own, answer, is_new } => {
                if is_new {
                    asking.changed.send_replace(());
                    self.tell_of_question(&asker, number, &subject);
                }
                let kernel = Arc::downgrade(self);
                let withdrawn = move |number, subject: &Subject| {
                    if let Some(kernel) = kernel.upgrade() {
                        kernel.tell_of_outcome(number, subject, Outcome::Withdrawn, "");
                    }
                };
                let mut waiting = Waiting {
                    asking: Arc::clone(asking),
                    number,
                    own,
                    subject: subject.clone(),
                    asker: asker.clone(),
                    answer,
                    withdrawn: Some(Box::new(withdrawn)),
                };
                match waiting.answer(self).await {
                    Some(choice) => choice,
                    None => return Err(Denial::Nobody),
                }
            }
        };
        if !choice.allows() {
            return Err(Denial::Said(choice));
        }
        Ok(Granted { asking: Arc::clone(asking), owed: Some((subject, asker)), choice })
    }

    /// Answers a question; to be `written`, too.
    ///
    /// # Errors
    /// There is no such question, or it could not be written, as a sentence: then it is not answered.
    pub fn answer(
        &self,
        number: u64,
        choice: Choice,
        written: bool,
        by: &str,
    ) -> Result<Question, String> {
        let asking = self.asking().ok_or("it asks nothing (--ask)")?;
        let gone = || format!("no question {number} is open");
        if written {
            let open = asking.open().into_iter().find(|it| it.number == number).ok_or_else(gone)?;
            if !choice.lasts() {
                return Err("only always and never can be written down".to_owned());
            }
            let scribe = asking.scribe.as_ref().ok_or(
                "answers are not written down in this run; name a profile with --ask-save",
            )?;
            scribe(&open.subject, choice.allows())?;
        }
        let question = asking.lock().answer(number, choice).ok_or_else(gone)?;
        asking.changed.send_replace(());
        self.tell_of_outcome(number, &question.subject, Outcome::Answered(choice), by);
        Ok(question)
    }

    fn tell_of_question(&self, asker: &Asker, number: u64, subject: &Subject) {
        let (tid, comm) = (asker.tid, asker.comm());
        self.emit(&Event::Asked { number, tid, comm, what: subject.to_string() });
    }

    fn tell_of_outcome(&self, number: u64, subject: &Subject, outcome: Outcome, by: &str) {
        self.emit(&Event::Answered {
            number,
            what: subject.to_string(),
            answer: outcome.word().to_owned(),
            by: by.to_owned(),
        });
    }
}

impl Waiting {
    /// Waits. `None`: nobody will answer.
    async fn answer(&mut self, kernel: &Kernel) -> Option<Choice> {
        let expected = tokio::time::Instant::from_std(self.asking.expected);
        let answer = tokio::select! {
            biased;
            answer = &mut self.answer => answer,
            () = tokio::time::sleep_until(expected) => {
                // Nobody has come.
                if self.asking.lock().abandon_if_alone() {
                    self.asking.changed.send_replace(());
                }
                (&mut self.answer).await
            }
        };
        let answer = answer.ok();
        if answer.is_none() && self.asking.lock().tell(self.number) {
            kernel.tell_of_outcome(self.number, &self.subject, Outcome::Nobody, "");
        }
        answer
    }
}
