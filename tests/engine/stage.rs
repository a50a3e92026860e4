//! Guests under an engine of the test's own: a program from tests/guests whose calls with numbers
//! that Linux does not know arrive at a [`Dispatch`] of the test, while all others run natively.

#![allow(dead_code, unreachable_pub)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sandbox::notify::filter::{Action, Rule, generate};
use sandbox::notify::{Answer, Dispatch, Engine, Listener, Options, Outcome, Received, Trapped};
use sandbox::sentry::syscalls::table::ROWS;
use sandbox::sys::seccomp::sock_filter;
use sandbox::sys::{files, message, seccomp, spawn};

use crate::common::{LIMIT, comes_true, guest};

/// `echo(a, b)`, which every [`Served`] answers with [`echo`].
pub const ECHO: u32 = 1000;
/// `report(value)`: kept in [`Served::reports`].
pub const REPORT: u32 = 1001;
/// The first number that has the test's own meaning.
pub const OWN: u32 = 1002;

/// What `echo(a, b)` returns.
pub fn echo(args: &[u64; 6]) -> i64 {
    (args[0].wrapping_mul(7).wrapping_add(args[1]) & 0x7fff_ffff) as i64
}

/// What the engine may use: everything, or without some of it.
pub const FULL: Options = Options { wait_killable: true, sync_wake_up: true, process_vm: true };

/// Serves ECHO and REPORT itself and everything else with `serve`.
pub struct Served<F> {
    serve: F,
    pub reports: Mutex<Vec<u64>>,
    pub undelivered: Mutex<Vec<(Received, Result<i64, Errno>)>>,
}

impl<F: Fn(&Trapped) -> Outcome + Send + Sync + 'static> Served<F> {
    pub fn by(serve: F) -> Arc<Self> {
        Arc::new(Served { serve, reports: Mutex::default(), undelivered: Mutex::default() })
    }

    pub fn reports(&self) -> Vec<u64> {
        self.reports.lock().unwrap().clone()
    }
}

impl<F: Fn(&Trapped) -> Outcome + Send + Sync + 'static> Dispatch for Served<F> {
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome {
        let received = trapped.received();
        match received.number {
            ECHO => now(echo(&received.args)),
            REPORT => {
                self.reports.lock().unwrap().push(received.args[0]);
                now(0)
            }
            _ => (self.serve)(trapped),
        }
    }

    fn undelivered(&self, received: &Received, result: Result<i64, Errno>) {
        self.undelivered.lock().unwrap().push((*received, result));
    }
}

/// The answer `value`, at once.
pub fn now(value: i64) -> Outcome {
    Outcome::Now(Answer::Return(value))
}

/// The answer to a call that no test means to make.
pub fn unexpected(trapped: &Trapped) -> Outcome {
    panic!("an unexpected call: {:?}", trapped.received())
}

/// A guest, the engine that serves it, and the runtime in which its calls are parked.
pub struct Stage<D> {
    pub dispatch: Arc<D>,
    pub listener: Arc<Listener>,
    pub engine: Engine<D>,
    guest: Guest,
    runtime: Runtime,
}

impl<D: Dispatch> Stage<D> {
    /// Starts tests/guests/NAME.c; `argv` begins with its name.
    #[track_caller]
    pub fn start(options: Options, argv: &[&str], dispatch: Arc<D>) -> Stage<D> {
        Stage::new(Runtime::start(), native_rules(), options, argv, dispatch)
    }

    /// Starts it under a filter made of `rules`.
    #[track_caller]
    pub fn with_rules(
        rules: Vec<Rule>,
        options: Options,
        argv: &[&str],
        dispatch: Arc<D>,
    ) -> Stage<D> {
        Stage::new(Runtime::start(), rules, options, argv, dispatch)
    }

    /// Starts it with a runtime of the caller's.
    #[track_caller]
    pub fn start_in(
        handle: tokio::runtime::Handle,
        options: Options,
        argv: &[&str],
        dispatch: Arc<D>,
    ) -> Stage<D> {
        let runtime = Runtime { handle, stop: None, thread: None };
        Stage::new(runtime, native_rules(), options, argv, dispatch)
    }

    #[track_caller]
    fn new(
        runtime: Runtime,
        rules: Vec<Rule>,
        options: Options,
        argv: &[&str],
        dispatch: Arc<D>,
    ) -> Stage<D> {
        let (guest, listener) = Guest::start(&rules, options.wait_killable, argv);
        let listener = Listener::new(listener, options);
        let handle = runtime.handle.clone();
        let engine = Engine::start(Arc::clone(&listener), Arc::clone(&dispatch), handle)
            .expect("start the engine");
        Stage { dispatch, listener, engine, guest, runtime }
    }

    pub fn pid(&self) -> Pid {
        self.guest.pid
    }

    /// Whether the guest has ended.
    #[track_caller]
    pub fn has_ended(&mut self) -> bool {
        self.guest.try_wait()
    }

    /// Waits for the guest and for the engine and gives the guest's exit status (128+N: signal N).
    #[track_caller]
    pub fn finish(mut self) -> i32 {
        let status = self.guest.wait();
        let engine = self.engine;
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            engine.join();
            let _ = ended.send(());
        });
        // (Only Linux 6.11 wakes a receiver when the last guest ends.)
        assert!(end.recv_timeout(LIMIT).is_ok(), "the engine did not end with the last guest");
        status
    }

    /// How many threads of this process wait in RECV for this guest.
    pub fn receivers(&self) -> usize {
        let wanted = format!("16 {:#x} 0xc0502100 ", self.listener.as_fd().as_raw_fd());
        let tasks = std::fs::read_dir("/proc/self/task").expect("list own threads");
        tasks
            .flatten()
            .filter(|task| {
                let call = std::fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
                call.starts_with(&wanted)
            })
            .count()
    }
}

/// Rules under which every call that has a row is native and all others trap.
pub fn native_rules() -> Vec<Rule> {
    let native = |number| Rule { number, action: Action::Allow, exceptions: Vec::new() };
    ROWS.iter().map(|row| native(row.number)).collect()
}

/// A process under a filter with a listener. Killed when dropped.
pub struct Guest {
    pub pid: Pid,
    ended: Option<i32>,
}

struct Start {
    program: Vec<sock_filter>,
    wait_killable: bool,
    socket: OwnedFd,
    /// Its standard output: only what it says of failures is of interest.
    null: OwnedFd,
    path: CString,
    argv: spawn::StringArray,
    envp: spawn::StringArray,
}

impl Guest {
    #[track_caller]
    pub fn start(rules: &[Rule], wait_killable: bool, argv: &[&str]) -> (Guest, OwnedFd) {
        let (ours, theirs) = message::pair().expect("a pair of sockets");
        let string = |text: &str| CString::new(text).expect("no NUL in a word");
        let start = Start {
            program: generate(rules).expect("a filter"),
            wait_killable,
            socket: theirs,
            null: std::fs::File::options().write(true).open("/dev/null").expect("open").into(),
            path: CString::new(guest(argv[0]).as_os_str().as_bytes()).expect("no NUL in a path"),
            argv: spawn::StringArray::new(argv.iter().map(|word| string(word)).collect()),
            envp: spawn::StringArray::new(Vec::new()),
        };
        let (pid, _) = spawn::spawn(0, &start, become_guest).expect("make a process");
        let guest = Guest { pid: Pid::from_raw(pid), ended: None };
        drop(start);
        let mut byte = [0];
        match message::receive(ours.as_fd(), &mut byte) {
            Ok((1, Some(listener))) => (guest, listener),
            other => panic!("the guest sent no listener: {other:?}"),
        }
    }

    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let ended = comes_true(LIMIT, || self.try_wait());
        assert!(ended, "the guest did not end");
        self.ended.expect("the status of a guest that has ended")
    }

    fn try_wait(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).expect("wait") {
                WaitStatus::Exited(_, status) => Some(status),
                WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
                _ => None,
            };
        }
        self.ended.is_some()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Runs in the child, between clone and exec.
fn become_guest(start: &Start) -> ! {
    let _ = spawn::die_with_parent(libc::SIGKILL);
    let _ = files::place(start.null.as_raw_fd(), 1);
    let _ = spawn::no_new_privileges();
    if let Ok(listener) = seccomp::load_with_listener(&start.program, start.wait_killable) {
        let _ = message::send(start.socket.as_fd(), b"l", Some(listener.as_fd()));
        drop(listener);
        spawn::execute(&start.path, &start.argv, &start.envp);
    }
    spawn::exit_now(127)
}

/// A runtime that runs on a thread of its own until it is dropped.
pub struct Runtime {
    pub handle: tokio::runtime::Handle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub fn start() -> Runtime {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("start a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        Runtime { handle, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
