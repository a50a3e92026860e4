//! What a test holds: a sandbox, its orders, and what its program writes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use sandbox::sentry::ProcessInfo;

use crate::common::{LIMIT, Workspace, comes_true, guest};
use crate::supervisor::{CONTROL, INTERRUPTIBLE};

/// A running sandbox. Ended when dropped.
pub(crate) struct Sandbox {
    pub(crate) workspace: Workspace,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    orders: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Sandbox {
    /// Starts a program; one without a slash is from tests/guests.
    #[track_caller]
    pub(crate) fn start(argv: &[&str]) -> Sandbox {
        Sandbox::start_with(Workspace::new("pause"), &[], argv)
    }

    /// Starts it where signals interrupt calls that are being served.
    #[track_caller]
    pub(crate) fn start_interruptible(argv: &[&str]) -> Sandbox {
        Sandbox::start_with(Workspace::new("pause"), &[INTERRUPTIBLE], argv)
    }

    #[track_caller]
    pub(crate) fn start_with(workspace: Workspace, flags: &[&str], argv: &[&str]) -> Sandbox {
        let place = std::env::temp_dir().join(workspace.mark());
        let listener = UnixListener::bind(&place).expect("listen");
        let mut command: Command =
            workspace.command(std::env::current_exe().expect("this test's own program"));
        command.env(CONTROL, &place).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(flags.iter().map(|flag| (*flag, "1")));
        command.arg(program(argv[0])).args(&argv[1..]);
        let mut child = command.spawn().expect("start a supervisor");
        listener.set_nonblocking(true).expect("do not block");
        let mut orders = None;
        comes_true(LIMIT, || {
            orders = listener.accept().ok();
            orders.is_some() || child.try_wait().is_ok_and(|status| status.is_some())
        });
        std::fs::remove_file(&place).expect("remove a socket");
        let (orders, _) = orders.expect("the supervisor connects");
        orders.set_nonblocking(false).expect("block");
        orders.set_read_timeout(Some(LIMIT)).expect("a limit");
        Sandbox {
            workspace,
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("a pipe")),
            answers: BufReader::new(orders.try_clone().expect("a second descriptor")),
            child,
            orders,
        }
    }

    /// Gives an order and its answer, or the error.
    pub(crate) fn order(&mut self, order: &str) -> Result<String, String> {
        writeln!(self.orders, "{order}").expect("give an order");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        let answer = answer.trim_end();
        match answer.split_once(' ').unwrap_or((answer, "")) {
            ("ok", text) => Ok(text.to_owned()),
            ("error", text) => Err(text.to_owned()),
            // Its supervisor has ended.
            ("", _) => {
                let mut rest = String::new();
                let _ = self.stdout.read_to_string(&mut rest);
                panic!("{order} was not answered: {:?}, {rest:?}", self.child.wait());
            }
            _ => panic!("{order} was answered with {answer:?}"),
        }
    }

    /// Kills every process; the sandbox may be gone before it answers.
    pub(crate) fn kill_all(&mut self) {
        writeln!(self.orders, "signal-all {}", libc::SIGKILL).expect("give an order");
    }

    /// Gives how many tasks were stopped.
    #[track_caller]
    pub(crate) fn pause(&mut self) -> u64 {
        self.order("pause").expect("pause").parse().expect("a number")
    }

    #[track_caller]
    pub(crate) fn resume(&mut self) {
        self.order("resume").expect("resume");
    }

    #[track_caller]
    pub(crate) fn census(&mut self) -> Vec<ProcessInfo> {
        serde_json::from_str(&self.order("census").expect("a census")).expect("JSON")
    }

    /// Waits for a line of the program's.
    #[track_caller]
    pub(crate) fn expect_line(&mut self, wanted: &str) {
        let line = self.line();
        assert_eq!(line, wanted, "the rest: {:?}", self.rest_after(&line));
    }

    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read");
        line.trim_end().to_owned()
    }

    fn rest_after(&mut self, line: &str) -> String {
        let mut rest = String::new();
        // At the end of the output there is a rest; before it the program may still run.
        if line.is_empty() {
            let _ = self.stdout.read_to_string(&mut rest);
        }
        rest
    }

    /// Writes to the program's standard input.
    pub(crate) fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        stdin.write_all(text.as_bytes()).expect("write");
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters::open(&self.workspace.path().join("counters"))
    }

    /// Waits for its end and gives its status and what it wrote last.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (i32, String) {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("read");
        let mut status = None;
        comes_true(LIMIT, || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        (status.expect("it ends").code().unwrap_or(-1), rest)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { guest(name).to_string_lossy().into_owned() }
}

/// The file in which tests/guests/counters.c counts.
pub(crate) struct Counters(std::fs::File);

impl Counters {
    fn open(path: &Path) -> Counters {
        let file = std::fs::File::options().read(true).write(true).open(path);
        Counters(file.expect("open the counters"))
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<u64> {
        let mut bytes = vec![0; 2048 * 64];
        self.0.read_exact_at(&mut bytes, 0).expect("read the counters");
        let number = |slot: &[u8]| u64::from_ne_bytes(slot[..8].try_into().unwrap());
        bytes.chunks(64).skip(1).map(number).collect()
    }

    /// Ends the program.
    pub(crate) fn stop(&self) {
        self.0.write_all_at(&1u64.to_ne_bytes(), 0).expect("write");
    }

    /// Nothing moves for a moment.
    #[track_caller]
    pub(crate) fn expect_still(&self) {
        let before = self.all();
        // What cannot be waited for: that nothing happens.
        std::thread::sleep(Duration::from_millis(60));
        let after = self.all();
        let moved = before.iter().zip(&after).enumerate().find(|(_, (old, new))| old != new);
        assert!(moved.is_none(), "a counter moved during a pause: {moved:?}");
    }

    /// The first `count` counters move.
    #[track_caller]
    pub(crate) fn expect_moving(&self, count: usize) {
        let before = self.all();
        let all_move = || before.iter().zip(self.all()).take(count).all(|(old, new)| new > *old);
        assert!(comes_true(LIMIT, all_move), "a counter stands still");
    }
}
