//! Guests that are killed at every stage of a notification.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use sandbox::notify::{
    Answer, Cancelled, Descriptor, GuestMemory, Listener, Options, Outcome, Trapped, hand_over,
};
use sandbox::sys::seccomp::Place;

use crate::common::wait_for;
use crate::stage::{FULL, Guest, OWN, Served, Stage, native_rules, now};

/// A guest that has made a call which nobody has received.
fn trapped_guest() -> (Guest, Arc<Listener>) {
    let (guest, listener) = Guest::start(&native_rules(), true, &["traps", "own", "0", "1"]);
    let listener = Listener::new(listener, FULL);
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, 60_000u16), Ok(1));
    (guest, listener)
}

fn end(guest: &mut Guest) {
    kill(guest.pid, Signal::SIGKILL).unwrap();
    assert_eq!(guest.wait(), 128 + 9);
}

#[test]
fn killed_before_the_call_is_received() {
    let (mut guest, listener) = trapped_guest();
    end(&mut guest);
    // Linux 6.11 and later; before, the wake-up is there and nothing behind it.
    assert!(matches!(listener.receive(), Ok(None)));
}

#[test]
fn killed_after_the_call_was_received() {
    let (mut guest, listener) = trapped_guest();
    let notification = listener.receive().unwrap().unwrap();
    assert!(notification.trapped().is_valid());
    end(&mut guest);
    let trapped = notification.trapped().clone();
    assert!(!trapped.is_valid());
    assert_eq!(GuestMemory::of(&trapped).read(1 << 20, &mut [0]), Err(Errno::ESRCH));
    assert_eq!(notification.answer(Answer::Return(0)), Err(Cancelled));
}

#[test]
fn a_descriptor_for_a_dead_guest_is_closed() {
    for sole in [true, false] {
        let (mut guest, listener) = trapped_guest();
        let notification = listener.receive().unwrap().unwrap();
        end(&mut guest);
        let (ours, theirs) = sandbox::sys::message::pair().unwrap();
        let answer = Answer::Descriptor(Descriptor {
            fd: theirs,
            place: Place::Lowest,
            cloexec: false,
            sole,
        });
        assert_eq!(notification.answer(answer), Err(Cancelled));
        assert_eq!(sandbox::sys::message::receive(ours.as_fd(), &mut [0]).unwrap().0, 0);
    }
}

/// Counts futures that have not been dropped.
struct Live(Arc<AtomicU64>);

impl Live {
    fn new(count: &Arc<AtomicU64>) -> Live {
        count.fetch_add(1, Ordering::Relaxed);
        Live(Arc::clone(count))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves five kinds of calls of victims: at once, after a while, never, slowly on the receiving
/// thread, with a descriptor.
fn serve_victims(live: Arc<AtomicU64>) -> impl Fn(&Trapped) -> Outcome {
    move |trapped| {
        let number = trapped.received().args[0];
        match trapped.received().number - OWN {
            0 => now(0),
            1 => {
                let live = Live::new(&live);
                Outcome::Later(Box::pin(async move {
                    tokio::time::sleep(Duration::from_micros(number % 7 * 300)).await;
                    drop(live);
                    Answer::Return(0)
                }))
            }
            2 => {
                let (live, trapped) = (Live::new(&live), trapped.clone());
                Outcome::Later(Box::pin(async move {
                    while trapped.is_valid() {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    drop(live);
                    Answer::Return(0)
                }))
            }
            3 => {
                hand_over();
                let _ = GuestMemory::of(trapped).read(0x1000, &mut [0; 64]);
                std::thread::sleep(Duration::from_micros(number % 5 * 100));
                now(0)
            }
            _ => Outcome::Now(Answer::Descriptor(Descriptor {
                fd: std::fs::File::open("/dev/null").unwrap().into(),
                place: Place::At(100),
                cloexec: true,
                sole: number % 2 == 0,
            })),
        }
    }
}

/// KINDS says how many of the calls of `serve_victims` they make: never getting an answer (2) is
/// what keeps a victim there until it is killed.
fn check_victims(options: Options, count: &str, kinds: &str) {
    let live = Arc::new(AtomicU64::new(0));
    let dispatch = Served::by(serve_victims(Arc::clone(&live)));
    let mut stage = Stage::start(options, &["traps", "victims", count, "4000", kinds], dispatch);
    wait_for("the end of the guest", || stage.has_ended());
    wait_for("the end of parked calls", || live.load(Ordering::Relaxed) == 0);
    wait_for("the end of superfluous threads", || stage.engine.threads() <= 3);
    assert_eq!(stage.finish(), 0);
}

#[test]
fn killed_at_any_time_while_calls_are_answered_at_once_or_later() {
    check_victims(FULL, "400", "2");
}

#[test]
fn killed_at_any_time_in_every_kind_of_call() {
    check_victims(FULL, "400", "5");
}

#[test]
fn killed_at_any_time_without_the_newer_flags() {
    let options = Options { wait_killable: false, sync_wake_up: false, process_vm: false };
    check_victims(options, "400", "5");
}
