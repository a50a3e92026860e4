//! The one thread that does all ptrace(2) work of a sandbox.
//!
//! ptrace is bound to a thread: only the one that has seized a guest thread hears of its stops and
//! may let it go. So one thread, made at the first need, owns every tracee. It waits for two things:
//! work that others send it, and SIGCHLD, by which the kernel tells that a tracee has changed. (For
//! that, SIGCHLD has to be blocked in every thread of the process: one that does not block it would
//! swallow it.)
//!
//! How to use it: [`Tracer::run`] runs a closure on the thread, with the [`Tracees`], and gives its
//! result. The closure must not wait for a tracee, since nobody would hear of it meanwhile: it seizes
//! a thread with [`Tracees::seize`] and a [`Handler`], which is called at each stop and decides
//! whether the thread goes on or is let go. A tracee without a handler is let go at its next stop.
//!
//! Pausing is beside that: while the tracees are *held* ([`Tracees::hold`]) every one that stops
//! stays stopped, whatever its handler would do; the handler is asked when the pause ends.
//!
//! A thread or process that a tracee makes is traced from its first instruction; unless the tracees
//! are held it is let go at once.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::progress::Progress;
use super::task::Status;
use crate::sys::process;
use crate::sys::ptrace::{self, Change, Running, Stop, Stopped};

mod stops;

/// Decides what becomes of one tracee. Lives on the tracer's thread.
pub trait Handler {
    /// The thread has stopped. An error: it is let go.
    fn on_stop(&mut self, stopped: Stopped) -> Next;
}

/// What becomes of a tracee that has stopped.
#[derive(Debug)]
pub enum Next {
    /// It was made to go on and stays traced.
    Runs(Running),
    /// It was let go, or it has been killed.
    Gone,
}

/// The thread, made at the first need.
#[derive(Debug, Default)]
pub struct Tracer {
    /// A leaf of the lock order; held while the thread is made.
    thread: Mutex<Option<Thread>>,
    /// Tells those who wait that a held tracee has stopped or ended.
    progress: Arc<Progress>,
}

type Work = Box<dyn FnOnce(&mut Tracees) + Send>;

#[derive(Debug, Clone)]
struct Thread {
    work: mpsc::Sender<Work>,
    wake: Arc<EventFd>,
}

impl Tracer {
    /// Runs `work` on the tracer's thread and gives its result. Blocks.
    pub fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tracees) -> R + Send + 'static,
    ) -> Result<R, Errno> {
        let thread = self.thread()?;
        let (sender, result) = mpsc::sync_channel(1);
        let work: Work = Box::new(move |tracees| {
            // Nobody waits for the result of somebody who has died.
            let _ = sender.send(work(tracees));
        });
        thread.work.send(work).map_err(|_| Errno::ESRCH)?;
        thread.wake.write(1)?;
        let begun = Instant::now();
        while ptrace::has_second_processor() && begun.elapsed() < ptrace::AWAKE {
            match result.try_recv() {
                Err(mpsc::TryRecvError::Empty) => std::hint::spin_loop(),
                done => return done.map_err(|_| Errno::ESRCH),
            }
        }
        result.recv().map_err(|_| Errno::ESRCH)
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    fn thread(&self) -> Result<Thread, Errno> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            return Ok(thread.clone());
        }
        let (sender, work) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let made = Thread { work: sender, wake: Arc::clone(&wake) };
        let progress = Arc::clone(&self.progress);
        std::thread::Builder::new()
            .name("trace".into())
            .spawn(move || {
                if let Err(errno) = live(&work, &wake, progress) {
                    tracing::error!(%errno, "the thread that stops guests cannot go on");
                }
            })
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        *thread = Some(made.clone());
        Ok(made)
    }
}

/// The thread's life.
fn live(work: &mpsc::Receiver<Work>, wake: &EventFd, progress: Arc<Progress>) -> Result<(), Errno> {
    SigSet::all().thread_block()?;
    // In a storm of forks there are hundreds of others that want a CPU.
    process::hurry();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let changes = SignalFd::with_flags(&SigSet::from_iter([Signal::SIGCHLD]), flags)?;
    let mut tracees = Tracees {
        all: HashMap::new(),
        taken: HashMap::new(),
        held: false,
        running: 0,
        asked: VecDeque::new(),
        places: 0,
        patience: None,
        progress,
    };
    loop {
        await_any([wake.as_fd(), changes.as_fd()], &tracees)?;
        // Emptied first: what comes afterwards wakes the thread once more.
        let _ = wake.read();
        while let Ok(Some(_)) = changes.read_signal() {}
        loop {
            match work.try_recv() {
                Ok(work) => work(&mut tracees),
                Err(mpsc::TryRecvError::Empty) => break,
                // The kernel is gone; what is still traced is let go by the end of the thread.
                Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
            }
        }
        while let Some(change) = tracees.next_change()? {
            tracees.changed(change);
        }
        tracees.lose_patience();
        tracees.publish();
    }
}

/// Waits for work or a change, as long as there is patience. During a pause the next one comes soon.
fn await_any(from: [BorrowedFd<'_>; 2], tracees: &Tracees) -> Result<(), Errno> {
    let mut fds = from.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let begun = Instant::now();
    while tracees.held && ptrace::has_second_processor() && begun.elapsed() < ptrace::AWAKE {
        if poll(&mut fds, PollTimeout::ZERO)? > 0 {
            return Ok(());
        }
    }
    match poll(&mut fds, tracees.patience()) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// One of those that are late, by process, which is of the process of `tid`.
fn late_one(tid: i32, late: &HashMap<i32, i32>) -> Option<i32> {
    if late.is_empty() { None } else { late.get(&Status::read(tid).ok()?.tgid).copied() }
}

/// A parent in vfork(2) is late as long as its child needs to execute a program. That is soon, unless other
/// threads of the parent are what the child waits for.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);

/// The guest threads that are traced. Owned by the tracer's thread.
pub struct Tracees {
    all: HashMap<i32, Tracee>,
    /// How those are kept that somebody has taken.
    taken: HashMap<i32, How>,
    /// Whether those that stop stay stopped.
    held: bool,
    /// How many of `all` have not stopped.
    running: usize,
    /// Those that were asked to stop, in that order, and maybe some that have stopped since.
    asked: VecDeque<i32>,
    /// How many there have been.
    places: u64,
    /// Until then those of processes of which one is late are kept.
    patience: Option<Instant>,
    progress: Arc<Progress>,
}

struct Tracee {
    state: State,
    how: How,
}

/// What is known of a tracee whatever its state.
struct How {
    handler: Option<Box<dyn Handler>>,
    /// Tracees are let go in this order.
    place: u64,
    /// It is let go when this one, of the same process, is; until then it stands still or runs on, traced.
    after: Option<i32>,
}

enum State {
    Running(Running),
    /// It runs until it stops because it was asked to.
    Stopping(Running),
    Stopped(Stopped),
}

impl State {
    /// Its tracer has not seen it stop.
    fn running(&self) -> Option<&Running> {
        match self {
            State::Running(running) | State::Stopping(running) => Some(running),
            State::Stopped(_) => None,
        }
    }
}

impl Tracees {
    /// Traces `tid`, which runs on until it stops by itself; `handler` is called then. EBUSY: another
    /// handler has it. EPERM: a guest traces it, it has ended, or it may not be traced.
    pub fn seize(&mut self, tid: i32, handler: Box<dyn Handler>) -> Result<(), Errno> {
        if let Some(tracee) = self.all.get_mut(&tid) {
            if tracee.how.handler.is_some() {
                return Err(Errno::EBUSY);
            }
            tracee.how.handler = Some(handler);
            return Ok(());
        }
        let running = ptrace::seize(tid)?;
        let how = How { handler: Some(handler), place: self.next_place(), after: None };
        self.add(tid, State::Running(running), how);
        Ok(())
    }

    /// From now on those that stop stay stopped, until [`Tracees::let_go`].
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// Seizes `tid`, if it is new. Gives whether it was.
    pub(super) fn trace(&mut self, tid: i32) -> Result<bool, Errno> {
        if self.has(tid) {
            return Ok(false);
        }
        let running = ptrace::seize(tid)?;
        let how = How { handler: None, place: self.next_place(), after: None };
        self.add(tid, State::Running(running), how);
        Ok(true)
    }

    /// Where the next one is placed: see [`Tracees::placed_since`].
    pub(super) fn places(&self) -> u64 {
        self.places
    }

    /// Those that were placed after that, in their order.
    pub(super) fn placed_since(&self, places: u64) -> Vec<i32> {
        self.in_order(|it| it.how.place > places)
    }

    /// Some of all, in their order.
    fn in_order(&self, of: impl Fn(&Tracee) -> bool) -> Vec<i32> {
        let some = self.all.iter().filter(|(_, it)| of(it));
        let mut some: Vec<(u64, i32)> = some.map(|(tid, it)| (it.how.place, *tid)).collect();
        some.sort_unstable();
        some.into_iter().map(|(_, tid)| tid).collect()
    }

    /// Lets `tid` go after all others.
    pub(super) fn place_last(&mut self, tid: i32) {
        let place = self.next_place();
        if let Some(tracee) = self.all.get_mut(&tid) {
            tracee.how.place = place;
        }
    }

    /// Whether `tid` is traced.
    pub(super) fn has(&self, tid: i32) -> bool {
        self.all.contains_key(&tid)
    }

    /// Those that have not stopped.
    pub(super) fn running(&self) -> Vec<i32> {
        let running = |tracee: &Tracee| tracee.state.running().is_some();
        self.all.iter().filter(|(_, it)| running(it)).map(|(tid, _)| *tid).collect()
    }

    /// Takes a held tracee that has stopped, for work that needs it whole; to be given back with
    /// [`Tracees::put`] by the same closure.
    pub fn take(&mut self, tid: i32) -> Option<Stopped> {
        match self.all.get(&tid)?.state {
            State::Stopped(_) => {}
            State::Running(_) | State::Stopping(_) => return None,
        }
        let Tracee { state: State::Stopped(stopped), how } = self.all.remove(&tid)? else {
            return None;
        };
        self.taken.insert(tid, how);
        Some(stopped)
    }

    /// Gives back what was taken.
    pub fn put(&mut self, stopped: Stopped) {
        if let Some(how) = self.taken.remove(&stopped.tid()) {
            self.add(stopped.tid(), State::Stopped(stopped), how);
        }
    }

    /// The registers of those that have stopped.
    pub fn registers(&self) -> impl Iterator<Item = (i32, libc::user_regs_struct)> + '_ {
        self.all.iter().filter_map(|(tid, tracee)| match &tracee.state {
            State::Stopped(stopped) => Some((*tid, stopped.registers().ok()?)),
            State::Running(_) | State::Stopping(_) => None,
        })
    }

    /// How many have stopped.
    pub(super) fn stopped(&self) -> usize {
        self.all.len() - self.running
    }

    /// Lets all go on. Those that have not stopped are let go as soon as they do.
    ///
    /// Parents come before their children: a child that ends sends SIGCHLD, which is kept only for a
    /// parent that is still traced (see [`Tracees::stop_all`]).
    pub(super) fn let_go(&mut self) {
        self.held = false;
        let late = self.late();
        for tid in self.in_order(|it| matches!(it.state, State::Stopped(_))) {
            if let Some(Tracee { state: State::Stopped(stopped), mut how }) = self.all.remove(&tid)
            {
                how.after = late_one(tid, &late);
                if how.after.is_some() {
                    // A signal that does nothing wakes a thread which runs, and another may take it away
                    // from that: its call would end with EINTR, and no stop would tell.
                    self.add(tid, State::Stopped(stopped), how);
                    self.patience = Some(Instant::now() + LONGEST_PATIENCE);
                } else {
                    self.decide(tid, stopped, how);
                }
            }
        }
    }

    /// How long is waited for those that are late until the others of their processes go on all the same.
    fn patience(&self) -> PollTimeout {
        let Some(until) = self.patience.filter(|_| !self.held) else { return PollTimeout::NONE };
        let left = until.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO)
    }

    /// Lets those go on that wait for one that has been late for too long.
    fn lose_patience(&mut self) {
        if self.held || self.patience.is_none_or(|until| Instant::now() < until) {
            return;
        }
        self.patience = None;
        for tid in self.waiting(|_| true) {
            self.decide_again(tid);
        }
    }

    /// Those that have stopped and wait for one that is late, in their order.
    fn waiting(&self, of: impl Fn(i32) -> bool) -> Vec<i32> {
        self.in_order(|it| matches!(it.state, State::Stopped(_)) && it.how.after.is_some_and(&of))
    }

    /// What becomes of one of those.
    fn decide_again(&mut self, tid: i32) {
        if let Some(Tracee { state: State::Stopped(stopped), how }) = self.all.remove(&tid) {
            self.decide(tid, stopped, how);
        }
    }

    /// Has held threads finish the call in which they have stopped and make a process or execute a
    /// program: until then the kernel still puts the result of that into their registers. Gives how many
    /// cannot, since they sit in vfork(2).
    pub(super) fn finish_calls(&mut self) -> usize {
        let in_call = |tracee: &Tracee| match &tracee.state {
            State::Stopped(it) => matches!(it.why(), Stop::Made(_) | Stop::Executed { .. }),
            State::Running(_) | State::Stopping(_) => false,
        };
        let all: Vec<i32> =
            self.all.iter().filter(|(_, it)| in_call(it)).map(|(tid, _)| *tid).collect();
        let (in_vfork, others): (Vec<i32>, Vec<i32>) =
            all.into_iter().partition(|tid| super::pause::sits_in_vfork(*tid));
        for tid in others {
            let Some(Tracee { state: State::Stopped(stopped), how }) = self.all.remove(&tid) else {
                continue;
            };
            // ESRCH: it has been killed; nobody waits for what was taken to have ended.
            if let Ok(mut stopped) = stopped.finish_call() {
                super::rewind::prepare(&mut stopped);
                self.add(tid, State::Stopped(stopped), how);
            }
        }
        in_vfork.len()
    }

    /// Those that are still to stop, by process: parents in vfork(2). While one is traced, signals that
    /// do nothing are kept for its process, and those of its threads that are not traced would see
    /// their calls end by them.
    fn late(&self) -> HashMap<i32, i32> {
        let is_late = |tid: &i32| self.all.get(tid).is_some_and(|it| it.how.after.is_none());
        let group = |tid: i32| Some((Status::read(tid).ok()?.tgid, tid));
        self.running().into_iter().filter(is_late).filter_map(group).collect()
    }

    fn next_place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    fn add(&mut self, tid: i32, state: State, how: How) {
        self.running += usize::from(state.running().is_some());
        self.all.insert(tid, Tracee { state, how });
    }

    fn remove(&mut self, tid: i32) -> Option<How> {
        let tracee = self.all.remove(&tid)?;
        self.running -= usize::from(tracee.state.running().is_some());
        Some(tracee.how)
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Ended(tid) => {
                self.remove(tid);
                self.release_after(tid);
            }
            Change::Stopped(mut stopped) => {
                let tid = stopped.tid();
                // (One that is not known was made by a tracee just now.)
                let mut how = self.remove(tid);
                match stopped.why() {
                    // Nothing tells of the end of the number that it had.
                    Stop::Executed { former } if former != tid => how = self.remove(former),
                    Stop::Made(made) if made > 0 => self.made(made),
                    _ => {}
                }
                let place = how.as_ref().map_or_else(|| self.next_place(), |how| how.place);
                let after = how.as_ref().and_then(|how| how.after);
                let how = How { handler: how.and_then(|how| how.handler), place, after };
                super::rewind::prepare(&mut stopped);
                if self.held {
                    self.add(tid, State::Stopped(stopped), how);
                } else {
                    self.decide(tid, stopped, how);
                }
            }
        }
    }

    /// A tracee has made `tid`. It may have stopped and been let go, or have ended, before that of its
    /// maker was told, and even its number may be another one's.
    fn made(&mut self, tid: i32) {
        let running = Running::made(tid);
        // It stops anyway, first of all; who is no tracee answers ESRCH.
        if !self.has(tid) && running.interrupt().is_ok() {
            let how = How { handler: None, place: self.next_place(), after: None };
            self.add(tid, State::Stopping(running), how);
        }
    }

    /// What becomes of a stopped tracee that is not held and not in `all`.
    fn decide(&mut self, tid: i32, stopped: Stopped, how: How) {
        let How { handler, place, after } = how;
        match handler {
            Some(mut handler) => match handler.on_stop(stopped) {
                Next::Runs(running) => {
                    let how = How { handler: Some(handler), place, after: None };
                    self.add(tid, State::Running(running), how);
                }
                Next::Gone => {}
            },
            // ESRCH, here and below: it has been killed; its end is told.
            None if after.is_some_and(|it| self.has(it)) => {
                if let Ok(running) = stopped.go_on() {
                    let how = How { handler: None, place, after };
                    self.add(tid, State::Running(running), how);
                }
            }
            None => {
                let _ = stopped.detach();
                self.release_after(tid);
            }
        }
    }

    /// Those that had to wait for the end of `tid`'s tracing are let go; what runs of them stops once more
    /// for it.
    fn release_after(&mut self, tid: i32) {
        if !self.held {
            let waiting = self.waiting(|it| it == tid);
            let late = if waiting.is_empty() { HashMap::new() } else { self.late() };
            for tid in waiting {
                let after = late_one(tid, &late);
                if let Some(tracee) = self.all.get_mut(&tid) {
                    tracee.how.after = after;
                }
                if after.is_none() {
                    self.decide_again(tid);
                }
            }
        }
        for tracee in self.all.values().filter(|tracee| tracee.how.after == Some(tid)) {
            if let Some(running) = tracee.state.running() {
                let _ = running.interrupt();
            }
        }
    }

    fn publish(&self) {
        self.progress.set(if self.held { self.running } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_to_be_made_and_is_no_tracee_is_not_waited_for() {
        let tracer = Tracer::default();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id() as i32;
        let had = tracer.run(move |tracees| {
            tracees.hold();
            tracees.made(pid);
            tracees.made(i32::MAX);
            (tracees.has(pid), tracees.running())
        });
        assert_eq!(had, Ok((false, Vec::new())));
        assert!(tracer.progress().wait(Duration::ZERO));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
