//! "Continue" is no policy tool: over the whole table.

use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use sandbox::notify::{Answer, Dispatch, Outcome, Received, Trapped};
use sandbox::sentry::Kernel;
use sandbox::sentry::syscalls::{Class, Row, table};

use crate::stage::{FULL, Stage};
use crate::storms::{FEATURES, kernel};

/// Calls that are only watched: their memory decides nothing here, so the kernel may run them.
const OBSERVED: &[&str] = &["execve", "execveat", "seccomp", "prctl"];

/// Types of arguments that are no addresses, whatever a row calls them.
const REGISTERS: [&str; 12] = [
    "Fd",
    "Int",
    "UInt",
    "Long",
    "ULong",
    "Len",
    "Flags",
    "AtFlags",
    "DirFd",
    "Operation",
    "Pid",
    "PrctlOption",
];

/// The kernel, and which calls it let run natively.
struct Watched {
    kernel: Arc<Kernel>,
    served: Mutex<Vec<(u32, bool)>>,
}

impl Dispatch for Watched {
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome {
        let outcome = self.kernel.dispatch(trapped);
        let number = trapped.received().number;
        let note = |continued| self.served.lock().unwrap().push((number, continued));
        match outcome {
            Outcome::Now(answer) => {
                note(matches!(answer, Answer::Continue));
                Outcome::Now(answer)
            }
            Outcome::Later(future) => {
                let watched = Arc::clone(self);
                Outcome::Later(Box::pin(async move {
                    let answer = future.await;
                    let continued = matches!(answer, Answer::Continue);
                    watched.served.lock().unwrap().push((number, continued));
                    answer
                }))
            }
        }
    }

    fn undelivered(&self, _: &Received, _: Result<i64, Errno>) {}
}

fn traps(row: &Row) -> bool {
    let handled =
        |class: &Class| matches!(class, Class::Handled { when, .. } if when.intersects(FEATURES));
    handled(&row.class) || row.except.iter().any(|exception| handled(&exception.class))
}

/// The call for the guest program `raw`, with addresses where the row has addresses; `first` is the
/// value of its first argument.
fn call(row: &Row, first: u64) -> String {
    let rest = row.args.iter().skip(1).map(|arg| match arg.type_name {
        name if REGISTERS.contains(&name) => "16".to_owned(),
        _ => "z:4096".to_owned(),
    });
    let first = match row.args[0].type_name {
        name if REGISTERS.contains(&name) => first.to_string(),
        _ => "z:4096".to_owned(),
    };
    std::iter::once(row.number.to_string())
        .chain(std::iter::once(first))
        .chain(rest)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn no_handled_call_that_takes_an_address_continues_unless_it_is_only_watched() {
    let rows: Vec<&Row> = table::ROWS.iter().filter(|row| traps(row)).collect();
    assert!(rows.len() >= 5, "{}", rows.len());
    let mut calls = Vec::new();
    for row in &rows {
        // Every operation that a row could tell apart, and those that its exceptions name.
        let named = row.except.iter().flat_map(|exception| exception.tests).filter_map(|test| {
            match test.test {
                sandbox::notify::filter::Test::Is(value) if test.arg == 0 => Some(value),
                _ => None,
            }
        });
        calls.extend((1..12).chain(named).map(|first| call(row, first)));
    }
    let kernel = kernel();
    let watched = Arc::new(Watched { kernel: Arc::clone(&kernel), served: Mutex::default() });
    // raw takes 64 calls.
    for calls in calls.chunks(60) {
        kernel.log().write(sandbox::sentry::Level::Info, "something to read");
        let words = calls.join(" , ");
        let argv: Vec<&str> = std::iter::once("raw").chain(words.split(' ')).collect();
        let rules = Kernel::rules(FEATURES);
        let stage = Stage::with_rules(rules, FULL, &argv, Arc::clone(&watched));
        assert_eq!(stage.finish(), 0, "{words}");
    }
    let served = watched.served.lock().unwrap();
    for row in rows {
        let of_row = || served.iter().filter(|(number, _)| *number == row.number);
        assert!(of_row().count() > 0, "{} was not served", row.name);
        let addresses = row.args.iter().any(|arg| !REGISTERS.contains(&arg.type_name));
        if addresses && !OBSERVED.contains(&row.name) {
            assert!(of_row().all(|(_, continued)| !continued), "{} continues", row.name);
        }
    }
}
