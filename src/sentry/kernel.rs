//! The root of the state. In what order its locks are taken: ARCHITECTURE.md, "Lock order".

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;
use tokio::sync::watch;

use super::accounting::Accounting;
use super::asking::{Asking, Places};
use super::carried::Carried;
use super::census::Keepers;
use super::credentials::Beliefs;
use super::events::{Event, Events};
use super::features::Features;
use super::file_log::FileLog;
use super::kernel_error::KernelError;
use super::log::{KernelLog, Level};
use super::net::publish::{Breaker, Published};
use super::net::{Meter, Network};
use super::paths::{Content, NoRules, Paths, Rules};
use super::pause::Pause;
use super::refusals::Refusals;
use super::repeatable::Repeatable;
use super::starts::Starts;
use super::syscalls::Row;
use super::task_set::TaskSet;
use super::time::Time;
use crate::notify::Received;
use crate::notify::filter::Rule;
use crate::sys::process;

/// The container that a run's own program is in, unless the user names it.
pub const FIRST_CONTAINER: &str = "main";

/// What a kernel is made of.
#[derive(Debug)]
pub struct KernelArgs {
    /// Decides which rows trap. Must contain [`Features::ALWAYS`].
    pub features: Features,
    /// Stands for the guest's init: ending it ends every guest.
    pub init: Option<OwnedFd>,
    /// The guest's init, as the host numbers it. Valid as long as nobody has reaped it.
    pub init_pid: i32,
    /// The name of the container that the run's own program is in.
    pub container: String,
    /// What the log says first.
    pub banner: String,
    /// Print events on stderr as they happen.
    pub announce: bool,
    /// The sandbox's clocks.
    pub time: Time,
}

/// The kernel of one sandbox. Made once, started once.
#[derive(Debug)]
pub struct Kernel {
    /// Immutable.
    features: Features,
    /// Immutable.
    init: OwnedFd,
    /// Immutable.
    init_pid: i32,
    /// Immutable.
    container: String,
    lifecycle: Mutex<Lifecycle>,
    /// The wait status with which everything was killed from outside; the first one counts.
    killed: OnceLock<i32>,
    /// The program's wait status, once it has ended.
    exit: watch::Sender<Option<i32>>,
    tasks: TaskSet,
    /// The filters that guests have loaded. Protected by itself, a leaf of the lock order.
    filters: super::filter_log::FilterLog,
    carried: Arc<Carried>,
    credentials: Beliefs,
    pub(super) lazy: OnceLock<Arc<super::lazy::Lazy>>,
    /// With [`Features::FILE_LOG`].
    file_log: Option<FileLog>,
    overlays: super::overlays::Overlays,
    /// With [`Features::ROOT`].
    beliefs: Option<super::beliefs::FileBeliefs>,
    /// With [`Features::PATTERNS`] or [`Features::TWINS`].
    paths: OnceLock<Paths>,
    pub(super) repeatable: Repeatable,
    /// With [`Features::NETWORK`]; set before the first guest is served.
    network: OnceLock<Arc<Network>>,
    /// Bounds what the network carries, where that is limited; set before the first guest is served.
    meter: OnceLock<Arc<Meter>>,
    /// Set before the first guest is served.
    published: OnceLock<Vec<Published>>,
    /// With `--ask`; set before the first guest is served.
    asking: OnceLock<Arc<Asking>>,
    /// With [`Features::ASK_FILES`]: what follows paths, and which files can be asked for.
    askable: OnceLock<(Paths, Arc<dyn Places>)>,
    /// Breaks their connections off; set when they lead inside.
    breaker: OnceLock<Breaker>,
    pub(super) keepers: Keepers,
    pub(super) later: super::later::LaterPrograms,
    /// Where files may be changed, in a run without a file view. Set once, before anything runs.
    grounds: OnceLock<super::grounds::Grounds>,
    pub(super) accounting: Accounting,
    pub(super) pausing: Pause,
    pub(super) starts: Starts,
    log: KernelLog,
    events: Events,
    refusals: Refusals,
    time: Time,
    /// How often each row trapped.
    pub(super) traps: TrapCounts,
    pub(super) undelivered: Undelivered,
}

/// Protected by `Kernel::lifecycle`.
#[derive(Debug)]
enum Lifecycle {
    Created,
    /// The program is remembered after its end: `None` where the host gave no descriptor.
    Started(Option<OwnedFd>),
}

impl Kernel {
    /// Checks the arguments and makes a kernel without tasks.
    pub fn new(args: KernelArgs) -> Result<Arc<Kernel>, KernelError> {
        if !args.features.contains(Features::ALWAYS) {
            return Err(KernelError::FeaturesWithoutAlways);
        }
        let init = args.init.ok_or(KernelError::NoInit)?;
        let log = KernelLog::new();
        log.write(Level::Info, &args.banner);
        // Init keeps the run's own program, as keepers do those that are started later.
        let keepers = Keepers::default();
        keepers.add(args.init_pid, &args.container);
        Ok(Arc::new(Kernel {
            features: args.features,
            init,
            init_pid: args.init_pid,
            container: args.container,
            lifecycle: Mutex::new(Lifecycle::Created),
            killed: OnceLock::new(),
            exit: watch::Sender::new(None),
            tasks: TaskSet::default(),
            filters: super::filter_log::FilterLog::default(),
            carried: Arc::default(),
            credentials: Beliefs::default(),
            lazy: OnceLock::new(),
            file_log: args
                .features
                .contains(Features::FILE_LOG)
                .then(|| FileLog::new(!args.features.contains(Features::LEARN))),
            overlays: super::overlays::Overlays::default(),
            beliefs: args.features.contains(Features::ROOT).then(Default::default),
            paths: OnceLock::new(),
            repeatable: Repeatable::default(),
            network: OnceLock::new(),
            meter: OnceLock::new(),
            published: OnceLock::new(),
            asking: OnceLock::new(),
            askable: OnceLock::new(),
            breaker: OnceLock::new(),
            keepers,
            later: super::later::LaterPrograms::default(),
            grounds: OnceLock::new(),
            accounting: Accounting::new(args.init_pid),
            pausing: Pause::default(),
            starts: Starts::default(),
            log,
            events: Events::new(args.announce),
            time: args.time,
            refusals: Refusals::default(),
            traps: TrapCounts::new(),
            undelivered: Undelivered::default(),
        }))
    }

    /// The program runs; `program` stands for its process. Exactly once.
    pub fn start(&self, program: Option<OwnedFd>) -> Result<(), KernelError> {
        let mut lifecycle = self.lock();
        if matches!(*lifecycle, Lifecycle::Started(_)) {
            return Err(KernelError::AlreadyStarted);
        }
        *lifecycle = Lifecycle::Started(program);
        drop(lifecycle);
        self.note_activity();
        Ok(())
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: i32) -> Result<(), KernelError> {
        match &*self.lock() {
            Lifecycle::Started(Some(program)) if self.exit.borrow().is_none() => {
                process::pidfd_send_signal(program.as_fd(), signal).map_err(KernelError::Signal)
            }
            _ => Err(KernelError::NoTasks),
        }
    }

    /// Ends every guest at once, keepers and init too, and does not wait for their ends. If the program
    /// has not ended yet, this wait status becomes that of the run. Blocks: it reads /proc.
    pub fn kill(&self, status: i32) -> Result<(), KernelError> {
        // The last chance to see what they have used: nobody waits for them.
        let _ = self.cpu_time();
        // Set first: whoever sees init gone knows why.
        let _ = self.killed.set(status);
        match process::pidfd_send_signal(self.init.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(KernelError::Signal(errno)),
        }
    }

    /// The program of the run, as the host numbers it, while it is there.
    pub fn program(&self) -> Option<i32> {
        match &*self.lock() {
            Lifecycle::Started(program) => {
                program.as_ref().and_then(|program| process::pid_of(program.as_fd()))
            }
            Lifecycle::Created => None,
        }
    }

    /// Where guests may change files, from now on, where no mounts decide it.
    pub fn confine(&self, grounds: super::grounds::Grounds) {
        let _ = self.grounds.set(grounds);
    }

    /// See [`Kernel::confine`].
    pub(super) fn grounds(&self) -> Option<&super::grounds::Grounds> {
        self.grounds.get()
    }

    /// Rules are about names that may come to be, or files get their content later. Once, before there are guests.
    pub fn perform_paths(&self, rules: Option<Arc<dyn Rules>>, content: Option<Arc<dyn Content>>) {
        let apart = self.features().contains(Features::ROOT);
        let rules = rules.unwrap_or_else(|| Arc::new(NoRules));
        let _ = self.paths.set(Paths::new(rules, content, apart));
    }

    /// What fetches content of files, where they get it later.
    pub fn content(&self) -> Option<&Arc<dyn Content>> {
        self.paths.get().and_then(Paths::content)
    }

    /// What performs calls on paths, if that is the sentry.
    pub(super) fn paths(&self) -> Option<&Paths> {
        self.paths.get()
    }

    /// Which files lie in overlays of the run.
    pub(super) fn overlays(&self) -> &super::overlays::Overlays {
        &self.overlays
    }

    /// Guests reach what this lets them. Once, before there are any.
    pub fn connect(&self, network: Arc<Network>) {
        let _ = self.network.set(network);
    }

    /// What some hosts can be reached by, if that is so.
    pub fn network(&self) -> Option<&Arc<Network>> {
        self.network.get()
    }

    /// What no rule names is asked about. Once, before there are guests. `places`: of files, these.
    pub fn ask_through(&self, asking: Arc<Asking>, places: Option<Arc<dyn Places>>) {
        let _ = self.asking.set(asking);
        if let Some(places) = places {
            let _ = self.askable.set((Paths::new(Arc::new(NoRules), None, false), places));
        }
    }

    /// The questions of the run, if anything is asked about.
    pub fn asking(&self) -> Option<&Arc<Asking>> {
        self.asking.get()
    }

    /// What is needed to ask about files, if that is done.
    pub(super) fn askable(&self) -> Option<&(Paths, Arc<dyn Places>)> {
        self.askable.get()
    }

    /// What the network carries, through published ports too, is limited by this. Once, before there are guests.
    pub fn limit_network(&self, meter: Arc<Meter>) {
        let _ = self.meter.set(meter);
    }

    /// What limits that, if it is limited.
    pub fn meter(&self) -> Option<&Meter> {
        self.meter.get().map(|it| &**it)
    }

    /// These ports of the host lead inside. Once, before there are guests.
    pub fn publish(&self, published: Vec<Published>) {
        let _ = self.published.set(published);
    }

    /// Which ports of the host lead inside.
    pub fn published(&self) -> &[Published] {
        self.published.get().map_or(&[], Vec::as_slice)
    }

    /// From here on connections that come to them lead inside.
    pub fn lead_inside(&self, breaker: Breaker) {
        let _ = self.breaker.set(breaker);
    }

    /// Resets the connections that lead inside, for both of their sides, and lets nobody in any more. Blocks.
    pub fn break_connections_off(&self) {
        self.breaker.get().into_iter().for_each(Breaker::break_off);
    }

    /// What guests believe of files, if they take themselves for root.
    pub(super) fn beliefs(&self) -> Option<&super::beliefs::FileBeliefs> {
        self.beliefs.as_ref()
    }

    /// What files the guests touch, if that is recorded.
    pub fn file_log(&self) -> Option<&FileLog> {
        self.file_log.as_ref()
    }

    /// The wait status of the first [`Kernel::kill`], if there was one.
    pub fn killed(&self) -> Option<i32> {
        self.killed.get().copied()
    }

    /// The program has ended with this wait status.
    pub fn exited(&self, status: i32) {
        self.exit.send_replace(Some(status));
        self.log.write(Level::Info, "the program ended");
    }

    /// Waits for the end of the program and gives its wait status. Then every guest has ended and none
    /// can be made any more: init is gone, and a pid namespace without init takes no process
    /// (pid_namespaces(7), ENOMEM).
    pub async fn wait_exited(&self) -> i32 {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(status) = *exit.borrow_and_update() {
                return status;
            }
            // The sender lives as long as `self`.
            if exit.changed().await.is_err() {
                return 0;
            }
        }
    }

    /// What the filter of this kernel's guests does, row by row.
    pub fn rules(features: Features) -> Vec<Rule> {
        super::syscalls::table::ROWS.iter().map(|row| row.rule(features)).collect()
    }

    /// The features of this run.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The container that the run's own program is in.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The guest's init, as the host numbers it.
    pub fn init_pid(&self) -> i32 {
        self.init_pid
    }

    /// Guest threads of which something is remembered.
    pub fn tasks(&self) -> &TaskSet {
        &self.tasks
    }

    /// The seccomp filters that guests have loaded.
    pub fn filters(&self) -> &super::filter_log::FilterLog {
        &self.filters
    }

    /// The CPU time that guests have brought along from an image.
    pub fn carried(&self) -> &Arc<Carried> {
        &self.carried
    }

    /// Who the guests of a run with [`Features::ROOT`] believe to be.
    pub fn credentials(&self) -> &Beliefs {
        &self.credentials
    }

    /// The guest's kernel log.
    pub fn log(&self) -> &KernelLog {
        &self.log
    }

    /// The sandbox's clocks.
    pub fn time(&self) -> &Time {
        &self.time
    }

    /// What was refused.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Records an event.
    pub fn emit(&self, event: &Event) {
        self.events.emit(&self.log, event);
    }

    /// Records an event of which there may be too many ([`Events::emit_of_many`]).
    pub fn emit_of_many(&self, event: impl FnOnce() -> Event) {
        self.events.emit_of_many(&self.log, event);
    }

    /// What has happened lately, and what will.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// How often each row trapped, of those that did: (name, count).
    pub fn trap_counts(&self) -> Vec<(&'static str, u64)> {
        self.traps.all()
    }

    fn lock(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counter a syscall number.
#[derive(Debug)]
pub(super) struct TrapCounts(Vec<AtomicU64>);

impl TrapCounts {
    fn new() -> Self {
        let last = super::syscalls::table::ROWS.iter().map(|row| row.number).max().unwrap_or(0);
        TrapCounts((0..=last).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn count(&self, row: &Row) {
        if let Some(counter) = self.0.get(row.number as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn all(&self) -> Vec<(&'static str, u64)> {
        super::syscalls::table::ROWS
            .iter()
            .filter_map(|row| {
                let count = self.0.get(row.number as usize)?.load(Ordering::Relaxed);
                (count > 0).then_some((row.name, count))
            })
            .collect()
    }
}

/// Results of calls that were served but cancelled before the answer arrived.
///
/// Without WAIT_KILLABLE_RECV (Linux before 5.19) a signal cancels a notification, and the
/// restarted call arrives as a new one. What a handler has done must not be done twice: the kept
/// result answers the same call of the same thread. A thread has one call at a time, so one result
/// each is enough; any other call of the thread forgets it.
#[derive(Debug, Default)]
pub(super) struct Undelivered {
    /// A leaf of the lock order.
    results: Mutex<HashMap<i32, Kept>>,
}

/// A call and its result.
type Kept = (Identity, Result<i64, Errno>);

/// What makes a restarted call the same one: number, arguments, place.
type Identity = (u32, [u64; 6], u64);

/// Threads may die with a result kept; beyond this many the rest is forgotten.
const MOST_KEPT: usize = 1024;

impl Undelivered {
    pub(super) fn keep(&self, received: &Received, result: Result<i64, Errno>) {
        // The call was cancelled before its handler could use the guest's memory (GuestMemory says
        // so in this way): nothing was done.
        if result == Err(Errno::ESRCH) {
            return;
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if results.len() >= MOST_KEPT {
            results.clear();
        }
        results.insert(received.tid, (Self::identity(received), result));
    }

    pub(super) fn take(&self, received: &Received) -> Option<Result<i64, Errno>> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, result) = results.remove(&received.tid)?;
        (identity == Self::identity(received)).then_some(result)
    }

    fn identity(received: &Received) -> Identity {
        (received.number, received.args, received.instruction_pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pidfd() -> OwnedFd {
        process::pidfd_open(std::process::id() as i32, false).unwrap()
    }

    fn args(features: Features, init: Option<OwnedFd>) -> KernelArgs {
        KernelArgs {
            features,
            init,
            init_pid: 1,
            container: FIRST_CONTAINER.to_owned(),
            banner: String::from("test"),
            announce: false,
            time: Time::hosts(),
        }
    }

    fn kernel() -> Arc<Kernel> {
        Kernel::new(args(Features::ALWAYS, Some(own_pidfd()))).unwrap()
    }

    #[test]
    fn missing_and_impossible_arguments_are_named() {
        let without_init = Kernel::new(args(Features::ALWAYS, None));
        assert_eq!(without_init.unwrap_err(), KernelError::NoInit);
        let without_always = Kernel::new(args(Features::EXEC_EVENTS, Some(own_pidfd())));
        assert_eq!(without_always.unwrap_err(), KernelError::FeaturesWithoutAlways);
    }

    #[test]
    fn starts_once_and_signals_only_a_running_program() {
        let kernel = kernel();
        assert_eq!(kernel.signal(0), Err(KernelError::NoTasks));
        kernel.start(Some(own_pidfd())).unwrap();
        assert_eq!(kernel.start(None), Err(KernelError::AlreadyStarted));
        assert_eq!(kernel.signal(0), Ok(()));
        kernel.exited(0);
        assert_eq!(kernel.signal(0), Err(KernelError::NoTasks));
        assert_eq!(kernel.signal(0).unwrap_err().to_string(), "kernel contains no tasks");
    }

    #[test]
    fn kill_ends_the_guests_init_and_is_content_when_it_has_ended() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let init = Some(process::pidfd_open(child.id() as i32, false).unwrap());
        let kernel = Kernel::new(args(Features::ALWAYS, init)).unwrap();
        assert_eq!(kernel.killed(), None);
        assert_eq!(kernel.kill(0x0300), Ok(()));
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(kernel.kill(libc::SIGKILL), Ok(()));
        assert_eq!(kernel.killed(), Some(0x0300));
    }

    #[tokio::test]
    async fn wait_exited_gives_the_status_before_and_after_the_end() {
        let kernel = kernel();
        let waiting = tokio::spawn({
            let kernel = Arc::clone(&kernel);
            async move { kernel.wait_exited().await }
        });
        tokio::task::yield_now().await;
        kernel.exited(0x0700);
        assert_eq!(waiting.await.unwrap(), 0x0700);
        assert_eq!(kernel.wait_exited().await, 0x0700);
    }

    #[test]
    fn a_kept_result_answers_only_the_same_call_of_the_same_thread() {
        let kept = Undelivered::default();
        let call = Received {
            id: 1,
            tid: 10,
            arch: 0,
            number: 83,
            instruction_pointer: 0x1000,
            args: [1, 2, 3, 4, 5, 6],
        };
        kept.keep(&call, Ok(0));
        assert_eq!(kept.take(&Received { tid: 11, ..call }), None);
        assert_eq!(kept.take(&Received { id: 2, ..call }), Some(Ok(0)));
        assert_eq!(kept.take(&call), None);
        kept.keep(&call, Err(Errno::EEXIST));
        assert_eq!(kept.take(&Received { args: [9; 6], ..call }), None);
        assert_eq!(kept.take(&call), None);
        kept.keep(&call, Err(Errno::ESRCH));
        assert_eq!(kept.take(&call), None);
    }
}
