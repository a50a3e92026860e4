//! The engine: receives notifications, has them served, answers them.
//!
//! One thread at a time, the *leader*, blocks in RECV: the kernel wakes every thread that waits
//! there for each notification, so a second one would only be disturbed. The leader decodes, has
//! the call served and answers it on the same thread (handing a notification to another thread
//! costs three times the trap itself). A handler that is about to do something slow calls
//! [`hand_over`] first: a follower becomes the leader and the slow thread a follower once it is
//! done. A future that is not ready at its first poll is parked in the runtime; the leader goes on.
//!
//! Where call upon call waits while the leader serves another, a second thread serves those, the *helper*. It never
//! waits in RECV: it takes what is there already, and is no more when there is nothing for it.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;
use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::signal::{SigSet, Signal};

use super::gate::{BACKED_OUT, Gate};
use super::listener::Listener;
use super::notification::{Answer, Cancelled, Notification, Received, Sequel, Trapped};
use super::turns::{Turn, Turns};
use crate::sys::disguise;

/// Who serves notifications.
pub trait Dispatch: Send + Sync + 'static {
    /// Serves one call: with its answer at once, or with a future that gives it.
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome;

    /// A result did not reach the guest because a signal has cancelled the call, which may arrive
    /// again (without WAIT_KILLABLE_RECV only), or because its task has died meanwhile.
    fn undelivered(&self, received: &Received, result: Result<i64, Errno>);
}

/// What became of a dispatched call.
pub enum Outcome {
    /// Its answer.
    Now(Answer),
    /// A future that gives its answer.
    Later(BoxFuture<'static, Answer>),
}

/// The threads that receive, and what they share.
pub struct Engine<D> {
    shared: Arc<Shared<D>>,
}

struct Shared<D> {
    listener: Arc<Listener>,
    dispatch: Arc<D>,
    runtime: tokio::runtime::Handle,
    /// Only where signals can cancel calls.
    turns: Option<Arc<Turns>>,
    /// Backs calls out whose tasks are to stop.
    gate: Arc<Gate>,
    /// Held in RECV, so that the helper receives only what nobody else is about to.
    receiving: Mutex<()>,
    /// There is a processor for a helper. Immutable.
    may_help: bool,
    /// Innermost lock of the engine: held for a few instructions, never across a call out of it.
    crew: Mutex<Crew>,
    /// Signalled when leadership is free, help is wanted or the engine ends.
    changed: Condvar,
    /// Signalled when a thread has ended.
    left: Condvar,
}

/// Protected by `Shared::crew`.
#[derive(Default)]
struct Crew {
    /// Somebody leads, or has been woken to lead.
    led: bool,
    /// Whether there is a helper.
    help: Help,
    /// Threads that wait to lead or to help.
    followers: usize,
    /// No guest is left.
    ended: bool,
    /// Threads that have been made and have not ended.
    threads: usize,
}

/// Whether there is a helper.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Help {
    /// There is none.
    #[default]
    None,
    /// A follower is to become it.
    Wanted,
    /// There is one.
    Given,
}

/// What a thread of the crew does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Lead,
    Help,
}

/// More followers than this are not kept waiting for the next slow handler.
const IDLE_FOLLOWERS: usize = 2;

/// The leader looks at one in so many calls whether others wait already.
const LOOK: u32 = 4;
/// When it has found some so many times in a row, it has help.
const CROWDED: u32 = 4;
/// A helper that finds nothing for so long, in milliseconds, is not needed any more.
const PATIENCE: u8 = 20;
/// Nor is one that has been woken so many times in a row for what the leader took.
const IN_VAIN: u32 = 16;

thread_local! {
    /// Whether this thread is the leader.
    static LEADS: Cell<bool> = const { Cell::new(false) };
    /// The crew that a receiving thread belongs to; empty on other threads.
    static CREW: RefCell<Option<Arc<dyn Promote>>> = const { RefCell::new(None) };
}

/// The crew, for its threads.
trait Promote {
    /// Makes somebody else the leader.
    fn promote(self: Arc<Self>);

    /// Whether somebody receives, or is about to.
    fn is_led(&self) -> bool;
}

/// Lets another thread receive while this one does something slow. A handler calls it before
/// anything that can block: file input and output, copying much memory, waiting for a lock that is
/// held across such work. Calling it again in the same handler, or in a future, costs nothing.
///
/// `false`: there is no other thread and none can be made. Who is about to wait for another guest
/// must not: nobody would hear of what that one asks for.
pub fn hand_over() -> bool {
    let Some(crew) = CREW.with(|crew| crew.borrow().clone()) else { return true };
    if LEADS.replace(false) {
        Arc::clone(&crew).promote();
    }
    crew.is_led()
}

impl<D: Dispatch> Engine<D> {
    /// Starts receiving. Futures that have to wait are parked in `runtime`.
    pub fn start(
        listener: Arc<Listener>,
        dispatch: Arc<D>,
        runtime: tokio::runtime::Handle,
    ) -> std::io::Result<Engine<D>> {
        let shared = Arc::new(Shared {
            turns: (!listener.wait_killable()).then(Arc::default),
            gate: Arc::default(),
            listener,
            dispatch,
            runtime,
            receiving: Mutex::default(),
            may_help: std::thread::available_parallelism().is_ok_and(|it| it.get() > 1),
            crew: Mutex::new(Crew { led: true, ..Crew::default() }),
            changed: Condvar::new(),
            left: Condvar::new(),
        });
        Shared::spawn(&shared, Role::Lead)?;
        Ok(Engine { shared })
    }

    /// Waits until no guest is left and every thread has ended. Before Linux 6.11 the end of the
    /// last guest does not wake the leader: leave the thread to the end of the process there.
    pub fn join(self) {
        let mut crew = self.shared.lock();
        while crew.threads > 0 {
            crew = self.shared.left.wait(crew).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What backs calls out.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.shared.gate)
    }

    /// How many threads receive, serve or wait to receive.
    pub fn threads(&self) -> usize {
        self.shared.lock().threads
    }
}

impl<D: Dispatch> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a thread, which has this role at once. The caller has already noted that somebody has.
    fn spawn(shared: &Arc<Self>, role: Role) -> std::io::Result<()> {
        disguise::take_off();
        shared.lock().threads += 1;
        let own = Arc::clone(shared);
        let spawned = std::thread::Builder::new()
            .name("receive".into())
            .stack_size(512 << 10)
            .spawn(move || {
                Arc::clone(&own).work(role);
                own.leave();
            });
        // Nobody joins a single thread: one that ends gives its stack back at once.
        spawned.map(drop).inspect_err(|_| shared.leave())
    }

    fn leave(&self) {
        self.lock().threads -= 1;
        self.left.notify_all();
    }

    /// A thread's life: lead or help, and after that wait to do so again.
    fn work(self: Arc<Self>, mut role: Role) {
        let _runtime = self.runtime.enter();
        // A file that becomes too large for the caller's limit is an error of the handler's, not the end of all.
        let _ = SigSet::from_iter([Signal::SIGXFSZ]).thread_block();
        CREW.with(|crew| *crew.borrow_mut() = Some(Arc::clone(&self) as Arc<dyn Promote>));
        loop {
            LEADS.set(role == Role::Lead);
            match role {
                Role::Lead => self.lead(),
                Role::Help => self.help(),
            }
            let mut crew = self.lock();
            if crew.ended || crew.followers >= IDLE_FOLLOWERS {
                return;
            }
            crew.followers += 1;
            while crew.led && crew.help != Help::Wanted && !crew.ended {
                crew = self.changed.wait(crew).unwrap_or_else(PoisonError::into_inner);
            }
            crew.followers -= 1;
            if crew.ended {
                return;
            }
            if crew.led {
                (role, crew.help) = (Role::Help, Help::Given);
            } else {
                (role, crew.led) = (Role::Lead, true);
            }
        }
    }

    /// Receives and serves until leadership has been given away or no guest is left.
    fn lead(self: &Arc<Self>) {
        let (mut calls, mut crowded) = (0_u32, 0);
        while LEADS.get() {
            let turn = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
            let received = self.listener.receive();
            drop(turn);
            match received {
                Ok(Some(notification)) => {
                    calls = calls.wrapping_add(1);
                    if self.may_help && calls % LOOK == 0 {
                        let others = self.listener.is_ready(PollTimeout::ZERO);
                        crowded = if others { crowded + 1 } else { 0 };
                        if crowded >= CROWDED {
                            crowded = 0;
                            self.have_help();
                        }
                    }
                    self.serve_safely(notification);
                }
                Ok(None) => return self.end(),
                Err(errno) => {
                    tracing::error!(%errno, "the listener cannot be received from any more");
                    return self.end();
                }
            }
        }
    }

    /// Makes somebody the helper, if there is none.
    fn have_help(self: &Arc<Self>) {
        let mut crew = self.lock();
        if crew.help != Help::None || crew.ended {
            return;
        }
        if crew.followers > 0 {
            crew.help = Help::Wanted;
            drop(crew);
            self.changed.notify_one();
            return;
        }
        crew.help = Help::Given;
        drop(crew);
        if Shared::spawn(self, Role::Help).is_err() {
            // It goes on alone.
            self.lock().help = Help::None;
        }
    }

    /// Serves what waits while the leader is busy, as long as there is something.
    fn help(self: &Arc<Self>) {
        let mut in_vain = 0;
        while in_vain < IN_VAIN && self.listener.is_ready(PollTimeout::from(PATIENCE)) {
            let turn = match self.receiving.try_lock() {
                Ok(turn) => turn,
                Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
                // The leader is about to take it.
                Err(TryLockError::WouldBlock) => {
                    in_vain += 1;
                    std::thread::yield_now();
                    continue;
                }
            };
            if !self.listener.is_ready(PollTimeout::ZERO) {
                in_vain += 1;
                continue;
            }
            let received = self.listener.receive();
            drop(turn);
            // (If nobody is left the leader is told, too.)
            let Ok(Some(notification)) = received else { break };
            in_vain = 0;
            self.serve_safely(notification);
        }
        self.lock().help = Help::None;
    }

    /// A handler's bug costs its own call: the notification answers as it is dropped, and this thread, which the other
    /// guests need, goes on.
    fn serve_safely(self: &Arc<Self>, notification: Notification) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.serve(notification)));
    }

    fn end(&self) {
        let mut crew = self.lock();
        crew.ended = true;
        self.changed.notify_all();
    }

    fn serve(self: &Arc<Self>, notification: Notification) {
        let Some(turns) = &self.turns else { return self.dispatch(notification, None) };
        let tid = notification.trapped().received().tid;
        match turns.take(tid) {
            Ok(turn) => self.dispatch(notification, Some(turn)),
            Err(former) => {
                let (own, turns) = (Arc::clone(self), Arc::clone(turns));
                self.runtime.spawn(async move {
                    // Its sender is never dropped unsent while the engine runs.
                    let _ = former.await;
                    own.dispatch(notification, Some(turns.turn(tid)));
                });
            }
        }
    }

    fn dispatch(self: &Arc<Self>, notification: Notification, turn: Option<Turn>) {
        if self.gate.is_passing(notification.trapped().received().tid) {
            return self.deliver(notification, Answer::Continue, turn);
        }
        if self.gate.is_stopping(notification.trapped().received().tid) {
            return self.deliver(notification, BACKED_OUT, turn);
        }
        match self.dispatch.dispatch(notification.trapped()) {
            Outcome::Now(answer) => self.deliver(notification, answer, turn),
            Outcome::Later(mut future) => match poll_once(&mut future) {
                Poll::Ready(answer) => self.deliver(notification, answer, turn),
                Poll::Pending => self.park(notification, future, turn),
            },
        }
    }

    /// Leaves a call to the runtime until its future is ready or it is backed out.
    fn park(
        self: &Arc<Self>,
        notification: Notification,
        future: BoxFuture<'static, Answer>,
        turn: Option<Turn>,
    ) {
        let received = notification.trapped().received();
        let Some(mut parked) = self.gate.park(received.tid, received.id) else {
            drop(future);
            return self.deliver(notification, BACKED_OUT, turn);
        };
        let own = Arc::clone(self);
        self.runtime.spawn(async move {
            let answer = tokio::select! {
                biased;
                answer = future => answer,
                Ok(()) = &mut parked.back_out => BACKED_OUT,
            };
            drop(parked);
            own.deliver(notification, answer, turn);
        });
    }

    /// Answers; the next call of the same thread may be served when what became of this one is
    /// known.
    fn deliver(&self, notification: Notification, answer: Answer, turn: Option<Turn>) {
        let received = *notification.trapped().received();
        let (answer, sequel) = answer.split();
        let result = match answer {
            Answer::Return(value) => Some(Ok(value)),
            Answer::Fail(errno) => Some(Err(errno)),
            _ => None,
        };
        if notification.answer(answer) == Err(Cancelled)
            && !self.listener.wait_killable()
            && let Some(result) = result
        {
            self.dispatch.undelivered(&received, result);
        }
        drop(turn);
        if let Some(Sequel(sequel)) = sequel {
            sequel();
        }
    }
}

impl<D: Dispatch> Promote for Shared<D> {
    fn promote(self: Arc<Self>) {
        let waiting = {
            let mut crew = self.lock();
            let waiting = crew.followers > 0;
            crew.led = !waiting;
            waiting
        };
        if waiting {
            self.changed.notify_one();
        } else if let Err(error) = Shared::spawn(&self, Role::Lead) {
            // Without a second thread the slow handler holds the others up, until this thread or
            // one that is done earlier leads again.
            tracing::warn!(%error, "no thread could be added to receive");
            self.lock().led = false;
            self.changed.notify_one();
        }
    }

    fn is_led(&self) -> bool {
        let crew = self.lock();
        crew.led || crew.followers > 0
    }
}

/// The first poll: most futures are ready, and one that is not is polled again with a real waker
/// as soon as it is parked.
fn poll_once(future: &mut BoxFuture<'static, Answer>) -> Poll<Answer> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}
