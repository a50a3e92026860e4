//! Questions and answers without guests.

use std::sync::Arc;
use std::time::Duration;

use super::state::{Met, State};
use super::*;

fn asker(tid: i32) -> Asker {
    Asker { tid, pid: tid, guest_pid: tid, start: 1 }
}

fn subject(name: &str) -> Subject {
    Subject::Name { name: name.to_owned() }
}

fn attended() -> State {
    let mut state = State::default();
    state.attending = 1;
    state
}

fn wait(met: Met) -> (u64, u64, tokio::sync::oneshot::Receiver<Choice>, bool) {
    match met {
        Met::Wait { number, own, answer, is_new } => (number, own, answer, is_new),
        _ => panic!("there was an answer"),
    }
}

#[test]
fn equal_questions_are_one_and_an_answer_is_for_all_who_ask() {
    let mut state = attended();
    let (number, _, mut one, first) = wait(state.ask(&asker(-1), &subject("a"), None, false));
    let (same, _, mut two, second) = wait(state.ask(&asker(-2), &subject("a"), None, false));
    assert_eq!((number, first, second), (same, true, false));
    assert!(state.answer(number, Choice::Once).is_some());
    assert_eq!((one.try_recv(), two.try_recv()), (Ok(Choice::Once), Ok(Choice::Once)));
    assert!(state.answer(number, Choice::Once).is_none());
    // Once is once.
    let (next, ..) = wait(state.ask(&asker(-1), &subject("a"), None, false));
    assert!(next > number);
    state.answer(next, Choice::Never);
    assert!(matches!(
        state.ask(&asker(-9), &subject("a"), None, false),
        Met::Answer(Choice::Never)
    ));
}

#[test]
fn an_answer_that_did_not_arrive_is_kept_for_who_had_asked() {
    let mut state = attended();
    state.owe(subject("a"), &asker(-1), Choice::Once);
    assert!(matches!(state.ask(&asker(-2), &subject("a"), None, false), Met::Wait { .. }));
    assert!(matches!(state.ask(&asker(-1), &subject("a"), None, false), Met::Answer(Choice::Once)));
    assert!(matches!(state.ask(&asker(-1), &subject("a"), None, false), Met::Wait { .. }));
}

#[test]
fn a_question_goes_with_the_last_who_asks() {
    let mut state = attended();
    let (number, first, ..) = wait(state.ask(&asker(-1), &subject("a"), None, false));
    let (_, second, ..) = wait(state.ask(&asker(-2), &subject("a"), None, false));
    assert!(!state.leave(number, first));
    assert!(state.leave(number, second) && !state.leave(number, second));
    assert!(state.open.is_empty());
    assert_eq!(state.settled[0].1, Outcome::Withdrawn);
    assert!(state.tell(number) && !state.tell(number));
}

#[test]
fn what_is_too_much_or_asked_of_nobody_is_refused() {
    let mut state = attended();
    for number in 0..MOST_OPEN {
        let met = state.ask(&asker(-1), &subject(&number.to_string()), None, false);
        assert!(matches!(met, Met::Wait { .. }));
    }
    let met = state.ask(&asker(-1), &subject("more"), None, false);
    assert!(matches!(met, Met::Denied(Denial::TooMany)));
    // One that is asked already takes others in, up to a bound.
    let taken = (0..MOST_WAITING * 2)
        .filter(|_| matches!(state.ask(&asker(-1), &subject("1"), None, false), Met::Wait { .. }));
    assert_eq!(taken.count(), MOST_WAITING - MOST_OPEN);
    // However fast they are answered, new ones come at a pace.
    let mut state = attended();
    let mut asked = 0;
    for number in 0..1000 {
        if let Met::Wait { number, .. } =
            state.ask(&asker(-1), &subject(&number.to_string()), None, false)
        {
            asked += 1;
            state.answer(number, Choice::No);
        }
    }
    assert!((60..100).contains(&asked), "{asked}");
    let nobody = State::default().ask(&asker(-1), &subject("a"), None, false);
    assert!(matches!(nobody, Met::Denied(Denial::Nobody)));
    let expected = State::default().ask(&asker(-1), &subject("a"), None, true);
    assert!(matches!(expected, Met::Wait { .. }));
}

#[test]
fn whoever_leaves_gives_questions_back_or_ends_them() {
    let asking = Arc::new(Asking::new(About::NET, Duration::ZERO, None));
    let (one, two) = (asking.attend(), asking.attend());
    let (number, _, mut answer, _) = {
        let mut state = asking.lock();
        wait(state.ask(&asker(-1), &subject("a"), None, false))
    };
    drop(one);
    assert_eq!(asking.open().len(), 1);
    assert!(answer.try_recv().is_err());
    drop(two);
    assert!(asking.open().is_empty());
    assert_eq!(asking.outcome(number), Some(Outcome::Nobody));
    assert!(answer.try_recv().is_err());
}

#[test]
fn a_name_that_was_looked_up_once_is_reached_by_that_process() {
    let mut state = attended();
    state.admit_once("a", (7, 1));
    assert!(state.is_admitted("a", (7, 1)) && !state.is_admitted("b", (7, 1)));
    assert!(!state.is_admitted("a", (7, 2)) && !state.is_admitted("a", (0, 0)));
    state.admit_once("b", (0, 0));
    assert!(state.is_admitted("b", (7, 1)));
}
