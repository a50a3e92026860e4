//! Who receives: one thread at a time, and never one that does something slow; and who helps a busy one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sandbox::notify::{Answer, Outcome, Trapped, hand_over};
use tokio::sync::watch;

use crate::common::{LIMIT, skip, wait_for};
use crate::stage::{FULL, OWN, Served, Stage, now, unexpected};

const CROWD: u64 = 100;

/// What the calls of a crowd wait for. own(0, i) waits and returns i, own(1) ends the wait, own(2)
/// tells whether some are still to come.
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicU64,
    crowd: u64,
}

impl Gate {
    fn for_crowd(crowd: u64) -> Arc<Gate> {
        let (open, opened) = (Mutex::new(false), Condvar::new());
        Arc::new(Gate { open, opened, waiting: AtomicU64::new(0), crowd })
    }

    /// Whether it was opened within `limit`.
    fn wait(&self, limit: Duration) -> bool {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let open = self.open.lock().unwrap();
        *self.opened.wait_timeout_while(open, limit, |open| !*open).unwrap().0
    }

    fn open(&self) -> Outcome {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
        now(0)
    }

    fn incomplete(&self) -> Outcome {
        now(i64::from(self.waiting.load(Ordering::SeqCst) < self.crowd))
    }
}

#[test]
fn a_hundred_parked_calls_hold_nobody_up() {
    let gate = watch::Sender::new(false);
    let waiting = AtomicU64::new(0);
    let stage = Stage::start(
        FULL,
        &["traps", "crowd", "100"],
        Served::by(move |trapped| {
            let number = trapped.received().args[0] as i64;
            match trapped.received().number - OWN {
                0 => {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    let mut gate = gate.subscribe();
                    Outcome::Later(Box::pin(async move {
                        gate.wait_for(|open| *open).await.unwrap();
                        Answer::Return(number)
                    }))
                }
                1 => {
                    gate.send_replace(true);
                    now(0)
                }
                2 => now(i64::from(waiting.load(Ordering::SeqCst) < CROWD)),
                _ => unexpected(trapped),
            }
        }),
    );
    assert_eq!(stage.finish(), 0);
}

#[test]
fn slow_handlers_that_hand_over_hold_nobody_up_and_leave_few_threads() {
    let gate = Gate::for_crowd(16);
    let serve = {
        let gate = Arc::clone(&gate);
        move |trapped: &Trapped| match trapped.received().number - OWN {
            0 => {
                hand_over();
                hand_over();
                assert!(gate.wait(LIMIT), "the others were held up");
                now(trapped.received().args[0] as i64)
            }
            1 => gate.open(),
            2 => gate.incomplete(),
            // Waits until the guest is killed.
            3 => Outcome::Later(Box::pin(std::future::pending())),
            _ => unexpected(trapped),
        }
    };
    let stage = Stage::start(FULL, &["traps", "crowd_and_stay", "16"], Served::by(serve));
    wait_for("the crowd", || *gate.open.lock().unwrap());
    // One leads; two more may wait for the next slow handler.
    wait_for("the end of superfluous threads", || stage.engine.threads() <= 3);
    wait_for("a receiver", || stage.receivers() == 1);
    for _ in 0..50 {
        assert!(stage.receivers() <= 1, "several threads wait in RECV");
        std::thread::yield_now();
    }
    nix::sys::signal::kill(stage.pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(stage.finish(), 128 + 9);
}

#[test]
fn a_slow_handler_that_does_not_hand_over_holds_the_others_up() {
    let gate = Gate::for_crowd(1);
    let held_up = Arc::new(AtomicU64::new(0));
    let serve = {
        let (gate, held_up) = (Arc::clone(&gate), Arc::clone(&held_up));
        move |trapped: &Trapped| match trapped.received().number - OWN {
            0 => {
                // The guest's other thread would open the gate as soon as it could.
                held_up
                    .fetch_add(u64::from(!gate.wait(Duration::from_millis(300))), Ordering::SeqCst);
                now(trapped.received().args[0] as i64)
            }
            1 => gate.open(),
            2 => gate.incomplete(),
            _ => unexpected(trapped),
        }
    };
    let stage = Stage::start(FULL, &["traps", "crowd", "1"], Served::by(serve));
    assert_eq!(stage.finish(), 0);
    assert_eq!(held_up.load(Ordering::SeqCst), 1);
}

#[test]
fn handing_over_again_and_again_loses_no_call() {
    let serve = |trapped: &Trapped| {
        hand_over();
        // Long enough for the follower to lead before this thread is done, and sometimes not. (On a busy machine
        // each is as long as others have the processor.)
        for _ in 0..trapped.received().args[0] % 50 {
            std::thread::yield_now();
        }
        now(trapped.received().args[0] as i64 + 1)
    };
    let mut stage = Stage::start(FULL, &["traps", "threads", "8", "600"], Served::by(serve));
    wait_for("the guest's end or a leak of threads", || {
        assert!(stage.engine.threads() <= 8 + 3, "{} threads", stage.engine.threads());
        stage.receivers();
        stage.has_ended()
    });
    assert_eq!(stage.finish(), 0);
}

#[test]
fn where_call_upon_call_waits_a_second_thread_serves_besides_and_receives_nothing_that_is_still_to_come()
 {
    if thread::available_parallelism().is_ok_and(|it| it.get() < 2) {
        return skip("a second processor");
    }
    let (serving, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let serve = {
        let (serving, most) = (Arc::clone(&serving), Arc::clone(&most));
        move |trapped: &Trapped| {
            most.fetch_max(serving.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(50) {
                std::hint::spin_loop();
            }
            serving.fetch_sub(1, Ordering::SeqCst);
            now(trapped.received().args[0] as i64 + 1)
        }
    };
    let mut stage = Stage::start(FULL, &["traps", "threads", "8", "2000"], Served::by(serve));
    wait_for("the guest's end or a leak of threads", || {
        assert!(stage.engine.threads() <= 3, "{} threads", stage.engine.threads());
        assert!(stage.receivers() <= 1, "several threads wait in RECV");
        stage.has_ended()
    });
    assert_eq!(stage.finish(), 0);
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn calls_that_come_one_by_one_are_served_by_one_thread() {
    let mut stage = Stage::start(FULL, &["traps", "echo", "5000"], Served::by(unexpected));
    wait_for("the guest's end", || {
        assert!(stage.engine.threads() <= 1, "{} threads", stage.engine.threads());
        stage.has_ended()
    });
    assert_eq!(stage.finish(), 0);
}

#[test]
fn handing_over_outside_of_a_handler_does_nothing() {
    hand_over();
    let stage = Stage::start(FULL, &["traps", "echo", "10"], Served::by(unexpected));
    hand_over();
    assert_eq!(stage.finish(), 0);
}
