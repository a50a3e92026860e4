//! What is known of questions and answers at a moment: plain data, changed under one lock.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::super::events::RateLimit;
use super::{
    Asker, Choice, Denial, MOST_OPEN, MOST_WAITING, Outcome, Question, Questions, Subject,
};

/// Answers that are remembered: of each kind, so that a guest cannot fill memory with questions.
const MOST_REMEMBERED: usize = 4096;
/// Answers that were given and not used yet; the oldest is forgotten.
const MOST_OWED: usize = 256;
/// Questions whose end is remembered for those who show them.
const MOST_SETTLED: usize = 256;
/// How long a name that somebody without a number has looked up once can be reached.
const ONCE: Duration = Duration::from_secs(60);

/// A question that waits for an answer.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) question: Question,
    waiting: Vec<(u64, oneshot::Sender<Choice>)>,
}

/// A name that a process may reach, since it was let look it up once; until when, if it is not known which it is.
type Once = HashMap<(String, (i32, u64)), Option<Instant>>;

#[derive(Debug)]
pub(super) struct State {
    next: u64,
    pub(super) open: Questions,
    /// Answers for the rest of the run.
    pub(super) remembered: HashMap<Subject, bool>,
    once: Once,
    owed: VecDeque<(Subject, Asker, Choice)>,
    /// With whether it was told.
    pub(super) settled: VecDeque<(u64, Outcome, bool)>,
    /// How many answer.
    pub(super) attending: usize,
    /// How fast new questions may come.
    pace: RateLimit,
}

impl Default for State {
    fn default() -> Self {
        State {
            next: 1,
            open: Questions::default(),
            remembered: HashMap::default(),
            once: Once::default(),
            owed: VecDeque::default(),
            settled: VecDeque::default(),
            attending: 0,
            // (One a second is more than anybody answers.)
            pace: RateLimit::new(1, 60),
        }
    }
}

/// What a question meets.
pub(super) enum Met {
    /// An answer.
    Answer(Choice),
    /// Its own answer is to be waited for: the number of the question, of who waits, and where it will come.
    /// `is_new`: nobody had asked it.
    Wait { number: u64, own: u64, answer: oneshot::Receiver<Choice>, is_new: bool },
    /// Nobody will answer.
    Denied(Denial),
}

impl State {
    /// Somebody asks. `expected`: somebody may still come who answers.
    pub(super) fn ask(
        &mut self,
        asker: &Asker,
        subject: &Subject,
        address: Option<&str>,
        expected: bool,
    ) -> Met {
        if let Some(allowed) = self.remembered.get(subject) {
            return Met::Answer(if *allowed { Choice::Always } else { Choice::Never });
        }
        if let Some(choice) = self.take_owed(subject, asker) {
            return Met::Answer(choice);
        }
        if self.attending == 0 && !expected {
            return Met::Denied(Denial::Nobody);
        }
        let asked = self.open.values_mut().find(|open| open.question.subject == *subject);
        if asked.is_none() {
            let is_full = self.open.len() >= MOST_OPEN;
            if is_full || self.pace.admit(Instant::now()).is_none() {
                return Met::Denied(Denial::TooMany);
            }
        }
        let waiting: usize = self.open.values().map(|open| open.waiting.len()).sum();
        if waiting >= MOST_WAITING {
            return Met::Denied(Denial::TooMany);
        }
        let own = self.next;
        self.next += 1;
        let (sender, answer) = oneshot::channel();
        let asked = self.open.values_mut().find(|open| open.question.subject == *subject);
        let (number, is_new) = match asked {
            Some(open) => {
                open.waiting.push((own, sender));
                (open.question.number, false)
            }
            None => {
                let question = Question {
                    number: own,
                    since: now(),
                    subject: subject.clone(),
                    address: address.map(str::to_owned),
                    guest_pid: asker.guest_pid,
                    comm: asker.comm(),
                };
                self.open.insert(own, Open { question, waiting: vec![(own, sender)] });
                (own, true)
            }
        };
        Met::Wait { number, own, answer, is_new }
    }

    /// Answers a question; gives what was asked. `None`: it is not open.
    pub(super) fn answer(&mut self, number: u64, choice: Choice) -> Option<Question> {
        let Open { question, waiting } = self.open.remove(&number)?;
        if choice.lasts() && self.remembered.len() < MOST_REMEMBERED {
            self.remembered.insert(question.subject.clone(), choice.allows());
        }
        self.close(number, Outcome::Answered(choice));
        for (_, waits) in waiting {
            // Whoever is about to leave finds it there.
            let _ = waits.send(choice);
        }
        Some(question)
    }

    /// One that waited does not any more. Whether it was the last, so that nobody asks now.
    pub(super) fn leave(&mut self, number: u64, own: u64) -> bool {
        let Some(open) = self.open.get_mut(&number) else { return false };
        open.waiting.retain(|(it, _)| *it != own);
        if !open.waiting.is_empty() {
            return false;
        }
        self.open.remove(&number);
        self.close(number, Outcome::Withdrawn);
        true
    }

    /// Ends all questions if nobody is there who answers: each that waits is told by the end of its channel. Gives whether
    /// that is so.
    pub(super) fn abandon_if_alone(&mut self) -> bool {
        let is_alone = self.attending == 0;
        if is_alone {
            self.abandon();
        }
        is_alone
    }

    /// Nobody is there any more who answers.
    pub(super) fn abandon(&mut self) {
        for number in std::mem::take(&mut self.open).into_keys() {
            self.close(number, Outcome::Nobody);
        }
    }

    fn close(&mut self, number: u64, outcome: Outcome) {
        if self.settled.len() >= MOST_SETTLED {
            self.settled.pop_front();
        }
        self.settled.push_back((number, outcome, false));
    }

    /// Whether nobody has been told yet that a question is closed; now somebody is.
    pub(super) fn tell(&mut self, number: u64) -> bool {
        let found = self.settled.iter_mut().find(|it| it.0 == number);
        found.is_some_and(|it| !std::mem::replace(&mut it.2, true))
    }

    /// An answer was given that did not reach the call that had asked.
    pub(super) fn owe(&mut self, subject: Subject, asker: &Asker, choice: Choice) {
        if asker.tid == 0 || choice.lasts() {
            return;
        }
        if self.owed.len() >= MOST_OWED {
            self.owed.pop_front();
        }
        self.owed.push_back((subject, asker.clone(), choice));
    }

    fn take_owed(&mut self, subject: &Subject, asker: &Asker) -> Option<Choice> {
        let at = self.owed.iter().position(|(it, who, _)| it == subject && who == asker)?;
        self.owed.remove(at).map(|(.., choice)| choice)
    }

    /// A process was let look up a name: it may reach what that stands for.
    pub(super) fn admit_once(&mut self, name: &str, process: (i32, u64)) {
        if self.once.len() >= MOST_REMEMBERED {
            self.once.clear();
        }
        let until = (process.0 == 0).then(|| Instant::now() + ONCE);
        self.once.insert((name.to_owned(), process), until);
    }

    /// Whether this process may reach what a name stands for, since it was let look it up.
    pub(super) fn is_admitted(&self, name: &str, process: (i32, u64)) -> bool {
        [process, (0, 0)].into_iter().any(|process| {
            let until = self.once.get(&(name.to_owned(), process));
            until.is_some_and(|until| until.is_none_or(|until| Instant::now() < until))
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
