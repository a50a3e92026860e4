//! Signals that arrive all the time while calls are served that must not be done twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use sandbox::notify::{Answer, Dispatch, Options, Outcome, Received, Trapped, hand_over};
use sandbox::sentry::{Features, Kernel, KernelArgs, Level};

use crate::common::{LIMIT, Workspace, comes_true};
use crate::stage::{FULL, OWN, REPORT, Served, Stage, native_rules, now};

const OLD: Options = Options { wait_killable: false, sync_wake_up: true, process_vm: true };

/// How often each call of a guest in a storm was executed.
type Executions = Arc<Mutex<HashMap<u64, u32>>>;

/// A handler that takes longer than the time between two signals and makes a directory, which works
/// once only.
fn make_directories(
    workspace: &Workspace,
    executed: &Executions,
) -> impl Fn(&Trapped) -> Outcome + use<> {
    let (directory, executed) = (workspace.path().to_owned(), Arc::clone(executed));
    move |trapped| {
        let number = trapped.received().args[0];
        assert_eq!(trapped.received().number, OWN);
        *executed.lock().unwrap().entry(number).or_default() += 1;
        let made = std::fs::create_dir(directory.join(number.to_string()));
        std::thread::sleep(Duration::from_micros(1500));
        match made {
            Ok(()) => now(number as i64 + 1),
            Err(_) => Outcome::Now(Answer::Fail(Errno::EEXIST)),
        }
    }
}

#[test]
fn signals_do_not_repeat_a_received_call() {
    let workspace = Workspace::new("storm");
    let executed = Executions::default();
    let dispatch = Served::by(make_directories(&workspace, &executed));
    let stage = Stage::start(FULL, &["traps", "storm", "300", "1000"], Arc::clone(&dispatch));
    assert_eq!(stage.finish(), 0);
    let executed = executed.lock().unwrap();
    assert_eq!(executed.len(), 300);
    assert!(executed.values().all(|count| *count == 1), "{executed:?}");
    assert!(dispatch.reports()[0] >= 300, "a storm: {} signals", dispatch.reports()[0]);
    assert!(dispatch.undelivered.lock().unwrap().is_empty());
}

/// The storm is real: without the flag, and with handlers that forget what they did, it does repeat
/// calls.
#[test]
fn without_the_flag_signals_do_repeat_calls() {
    let workspace = Workspace::new("storm-old");
    let executed = Executions::default();
    let dispatch = Served::by(make_directories(&workspace, &executed));
    let stage = Stage::start(OLD, &["traps", "storm", "300", "1000"], Arc::clone(&dispatch));
    // A directory is there already: the guest fails.
    assert_eq!(stage.finish(), 1);
    assert!(executed.lock().unwrap().values().any(|count| *count >= 2));
    assert!(!dispatch.undelivered.lock().unwrap().is_empty());
}

/// Keeps the results that did not arrive for the calls that are made again.
struct Keeping<F> {
    serve: F,
    kept: Mutex<HashMap<u64, Result<i64, Errno>>>,
    used: AtomicU64,
}

impl<F: Fn(&Trapped) -> Outcome + Send + Sync + 'static> Dispatch for Keeping<F> {
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome {
        if trapped.received().number == REPORT {
            return now(0);
        }
        match self.kept.lock().unwrap().remove(&trapped.received().args[0]) {
            Some(result) => {
                self.used.fetch_add(1, Ordering::Relaxed);
                Outcome::Now(result.into())
            }
            None => (self.serve)(trapped),
        }
    }

    fn undelivered(&self, received: &Received, result: Result<i64, Errno>) {
        self.kept.lock().unwrap().insert(received.args[0], result);
    }
}

/// The call that a signal repeats arrives while the first one is still being served, by a thread
/// that has handed over or by a parked future.
#[test]
fn without_the_flag_a_repeated_call_waits_for_the_first() {
    for parked in [false, true] {
        // The kernel itself loses an answer now and then (see the test of kept results), which
        // repeats that call in spite of turns; on a busy machine, in most storms. Without turns each storm repeats
        // dozens.
        assert!(comes_true(LIMIT, || a_storm_is_served_once(parked)), "parked: {parked}");
    }
}

/// Whether a guest got through a storm with each of its calls executed once.
fn a_storm_is_served_once(parked: bool) -> bool {
    let workspace = Workspace::new("storm-turns");
    let executed = Executions::default();
    let make = Arc::new(make_directories(&workspace, &executed));
    let serve = move |trapped: &Trapped| {
        if !parked {
            hand_over();
            return make(trapped);
        }
        let (make, trapped) = (Arc::clone(&make), trapped.clone());
        Outcome::Later(Box::pin(async move {
            let Outcome::Now(answer) = make(&trapped) else { panic!("it answers at once") };
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer
        }))
    };
    let (kept, used) = (Mutex::default(), AtomicU64::new(0));
    let keeping = Arc::new(Keeping { serve, kept, used });
    let stage = Stage::start(OLD, &["traps", "storm", "100", "1000"], Arc::clone(&keeping));
    let stormy = |used: u64| used > 10;
    stage.finish() == 0
        && stormy(keeping.used.load(Ordering::Relaxed))
        && executed.lock().unwrap().values().all(|count| *count == 1)
}

#[test]
fn go_programs_that_interrupt_themselves_get_on() {
    // As often as Go's runtime does it, with handlers that take twice as long.
    let serve = |trapped: &Trapped| {
        let number = trapped.received().args[0] as i64;
        Outcome::Later(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Answer::Return(number + 1)
        }))
    };
    let stage = Stage::start(FULL, &["traps", "storm", "20", "10000"], Served::by(serve));
    assert_eq!(stage.finish(), 0);
}

/// The real kernel with handlers that take longer, so that signals cancel many calls.
struct Slow {
    kernel: Arc<Kernel>,
    calls: AtomicU64,
    undelivered: AtomicU64,
    /// Bytes that the guest missed.
    lost: AtomicU64,
}

impl Dispatch for Slow {
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome {
        if trapped.received().number == REPORT {
            self.lost.store(trapped.received().args[0], Ordering::Relaxed);
            return now(0);
        }
        // Every third, so that a call that is repeated gets on.
        let slow = self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        let nap = Duration::from_micros(if slow { 700 } else { 0 });
        match self.kernel.dispatch(trapped) {
            Outcome::Now(answer) => {
                std::thread::sleep(nap);
                Outcome::Now(answer)
            }
            Outcome::Later(future) => Outcome::Later(Box::pin(async move {
                let answer = future.await;
                std::thread::sleep(nap);
                answer
            })),
        }
    }

    fn undelivered(&self, received: &Received, result: Result<i64, Errno>) {
        self.undelivered.fetch_add(1, Ordering::Relaxed);
        self.kernel.undelivered(received, result);
    }
}

/// What those kernels' filters trap. Not the clocks: their calls are the kernel's in any case, only
/// with other timeouts, and are tested in tests/time.
pub(crate) const FEATURES: Features = Features::ALWAYS.union(Features::EXEC_EVENTS);

/// A kernel for guests of tests. (Its init is this process: it is never killed.)
pub(crate) fn kernel() -> Arc<Kernel> {
    let own = std::process::id() as i32;
    let init = sandbox::sys::process::pidfd_open(own, false).unwrap();
    let banner = "a kernel log".into();
    let args = KernelArgs {
        features: FEATURES,
        init: Some(init),
        init_pid: 1,
        container: "main".to_owned(),
        banner,
        announce: false,
        time: sandbox::sentry::Time::hosts(),
    };
    Kernel::new(args).unwrap()
}

#[test]
fn without_the_flag_the_first_result_of_a_repeated_call_is_kept() {
    // The kernel itself loses an answer that comes while the guest is on its way out of the wait
    // (seccomp_do_user_notification takes notify_lock after the signal has ended the wait): SEND
    // succeeds then. Each piece has at most 7 bytes. (On a busy machine that way may take long.)
    let mut all = Vec::new();
    let few = comes_true(LIMIT, || {
        let (undelivered, lost) = cancelled_and_lost();
        all.push((undelivered, lost));
        undelivered > 100 && lost <= 7 * (1 + undelivered / 20)
    });
    assert!(few, "results cancelled and bytes lost: {all:?}");
}

/// How many results of a log's reader were cancelled, and how many bytes it has missed.
fn cancelled_and_lost() -> (u64, u64) {
    let kernel = kernel();
    for line in 0..400 {
        kernel.log().write(Level::Info, &format!("line {line}"));
    }
    let [calls, undelivered, lost] = [0; 3].map(AtomicU64::new);
    let slow = Arc::new(Slow { kernel, calls, undelivered, lost });
    // Trapped by its rule, not by the lack of one.
    let mut rules = native_rules();
    for rule in rules.iter_mut().filter(|rule| i64::from(rule.number) == libc::SYS_syslog) {
        rule.action = sandbox::notify::filter::Action::Notify;
    }
    let stage = Stage::with_rules(rules, OLD, &["traps", "log", "1000"], Arc::clone(&slow));
    // The guest compares the pieces with the whole: nothing comes twice.
    assert_eq!(stage.finish(), 0);
    (slow.undelivered.load(Ordering::Relaxed), slow.lost.load(Ordering::Relaxed))
}
