//! What every integration test uses: running a command under a limit, a fresh directory to run it
//! in, the same command inside and outside, guest programs, and a check that nothing is left over.
//!
//! Knows the command line of `sandbox` (DESIGN: `sandbox [OPTIONS] -- PROG ARGS...`) and none of the
//! crate's insides.
//!
//! Set from outside, by scripts/test: `SANDBOX_BIN` (the program under test), `SANDBOX_TEST_DIR`
//! (where workspaces are made), `SANDBOX_TEST_GUESTS` (where guest programs are, or are compiled
//! to), `SANDBOX_TEST_SOURCES` (a copy of the repository's files), `SANDBOX_TEST_KEEP` (workspaces
//! are not removed). By hand: `SANDBOX_TEST_OPTIONS` (flags that every run of a workspace gets besides, such
//! as `--root` for the escapes).

// Each integration binary compiles this module and uses its own part of it.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod attack;
pub mod guests;
pub mod leftovers;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub use leftovers::Leftovers;

/// How long a command of a test may take unless the test says otherwise: far more than any needs,
/// since two busy cores run all of them.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How long a process may hold a command's output open after the command has ended: what is killed with it may
/// take a while to be gone on a busy machine.
const GRACE: Duration = Duration::from_secs(30);

/// How a command ended and what it printed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit status; 128+N if it died by signal N.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The command line, for the message of a failure.
    pub command: String,
}

impl Outcome {
    /// Standard output as text; bytes that are not UTF-8 become U+FFFD.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text, likewise.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output without white space at its ends.
    pub fn line(&self) -> String {
        self.out().trim().to_owned()
    }

    /// Everything there is to know, for the message of a failure.
    pub fn report(&self) -> String {
        format!(
            "command: {}\nstatus: {}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command,
            self.status,
            self.out(),
            self.err()
        )
    }

    /// Asserts the exit status.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        assert_eq!(self.status, status, "wrong exit status\n{}", self.report());
        self
    }

    /// Asserts exit status 0.
    #[track_caller]
    pub fn success(&self) -> &Self {
        self.expect_status(0)
    }

    /// Asserts that the exit status is not 0.
    #[track_caller]
    pub fn failure(&self) -> &Self {
        assert_ne!(self.status, 0, "succeeded, and should not have\n{}", self.report());
        self
    }

    /// Asserts the whole of standard output.
    #[track_caller]
    pub fn expect_out(&self, text: &str) -> &Self {
        assert!(self.out() == text, "stdout is not {text:?}\n{}", self.report());
        self
    }

    /// Asserts the whole of standard error.
    #[track_caller]
    pub fn expect_err(&self, text: &str) -> &Self {
        assert!(self.err() == text, "stderr is not {text:?}\n{}", self.report());
        self
    }

    /// Asserts that standard output contains `text`.
    #[track_caller]
    pub fn out_has(&self, text: &str) -> &Self {
        assert!(self.out().contains(text), "no {text:?} on stdout\n{}", self.report());
        self
    }

    /// Asserts that standard output does not contain `text`.
    #[track_caller]
    pub fn out_lacks(&self, text: &str) -> &Self {
        assert!(!self.out().contains(text), "{text:?} on stdout\n{}", self.report());
        self
    }

    /// Asserts that standard error contains `text`.
    #[track_caller]
    pub fn err_has(&self, text: &str) -> &Self {
        assert!(self.err().contains(text), "no {text:?} on stderr\n{}", self.report());
        self
    }

    /// Asserts that standard error does not contain `text`.
    #[track_caller]
    pub fn err_lacks(&self, text: &str) -> &Self {
        assert!(!self.err().contains(text), "{text:?} on stderr\n{}", self.report());
        self
    }

    /// Asserts an error of sandbox itself: its status, one line on standard error that contains each
    /// of `words`, and nothing on standard output.
    #[track_caller]
    pub fn one_line_error(&self, status: i32, words: &[&str]) -> &Self {
        self.expect_status(status).expect_out("");
        let err = self.err();
        assert_eq!(err.trim_end().lines().count(), 1, "not one line\n{}", self.report());
        for word in words {
            self.err_has(word);
        }
        self
    }

    /// Asserts that both ended alike and printed the same.
    #[track_caller]
    pub fn same_as(&self, other: &Outcome) -> &Self {
        assert!(
            (self.status, &self.stdout, &self.stderr)
                == (other.status, &other.stdout, &other.stderr),
            "two outcomes differ\n{}\n=== and\n{}",
            other.report(),
            self.report()
        );
        self
    }
}

/// Runs a command with `stdin` as its standard input, in a process group of its own.
///
/// At the limit the whole group is killed and the test fails with what was printed until then. The
/// test fails too if a process holds the command's output open after it ended.
#[track_caller]
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> Outcome {
    let words = command_line(&command);
    command.stdin(Stdio::piped());
    finish(start(command), words, stdin, limit)
}

/// Starts a command whose outputs are pipes, in a process group of its own; `command` may have set
/// its standard input. For tests that do something while it runs; end with [`finish`].
#[track_caller]
pub fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("cannot start {}: {error}", command_line(&command)),
    }
}

/// Waits for what [`start`] started; `stdin` is written if its standard input is a pipe.
#[track_caller]
pub fn finish(child: Child, command: String, stdin: &[u8], limit: Duration) -> Outcome {
    finish_within(child, command, stdin, limit, GRACE)
}

/// [`finish`] where a process may hold the output open for so long.
#[track_caller]
pub fn finish_within(
    mut child: Child,
    command: String,
    stdin: &[u8],
    limit: Duration,
    grace: Duration,
) -> Outcome {
    let deadline = Instant::now() + limit;
    let group = Pid::from_raw(child.id() as i32);
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = stdin.to_vec();
        // The command may end without reading all of it: EPIPE is no failure of the test.
        thread::spawn(move || pipe.write_all(&bytes));
    }
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let ended = wait_until(&mut child, deadline);
    if ended.is_none() {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
    }
    // What the command printed has been written by now; the pipes end when the last holder is gone.
    let end = Instant::now() + grace;
    let (stdout, out_ended) = stdout.map_or((Vec::new(), true), |it| it.take(end));
    let (stderr, err_ended) = stderr.map_or((Vec::new(), true), |it| it.take(end));
    let status = ended.map_or(128 + 9, shell_status);
    let outcome = Outcome { status, stdout, stderr, command };
    assert!(ended.is_some(), "not finished after {limit:?}: killed\n{}", outcome.report());
    if !(out_ended && err_ended) {
        let _ = killpg(group, Signal::SIGKILL);
        panic!("a process left behind holds the output open\n{}", outcome.report());
    }
    outcome
}

/// The exit status as a shell's `$?` shows it.
fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits for a child without blocking past the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let mut nap = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(10));
    }
}

/// What a thread has read from a pipe so far, and whether the pipe has ended.
struct Collector(mpsc::Receiver<Vec<u8>>);

impl Collector {
    /// All that comes until the end of the pipe or until the deadline.
    fn take(self, deadline: Instant) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        loop {
            match self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(more) => bytes.extend(more),
                Err(error) => return (bytes, error == mpsc::RecvTimeoutError::Disconnected),
            }
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collector {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = pipe.read(&mut buffer) {
            if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    Collector(receiver)
}

/// The words of a command, for messages.
pub fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Waits until `condition` holds; fails with `what` if it does not within [`LIMIT`].
#[track_caller]
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(LIMIT, condition), "waited in vain for: {what}");
}

/// Whether `condition` holds within `limit`; returns as soon as it does.
pub fn comes_true(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The program under test.
pub fn sandbox_program() -> PathBuf {
    std::env::var_os("SANDBOX_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_sandbox")), PathBuf::from)
}

/// A fresh directory that a test's commands run in; removed when dropped.
pub struct Workspace {
    path: PathBuf,
    mark: String,
}

impl Workspace {
    /// A directory that a guest can see.
    pub fn new(test: &str) -> Workspace {
        Workspace::below(&visible_directory("SANDBOX_TEST_DIR", "work"), test)
    }

    /// A directory under /tmp, for tests of the private /tmp.
    pub fn in_tmp(test: &str) -> Workspace {
        Workspace::below(Path::new("/tmp"), test)
    }

    /// A directory below `parent`.
    pub fn below(parent: &Path, test: &str) -> Workspace {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let made = |error: std::io::Error| panic!("cannot create {}: {error}", parent.display());
        fs::create_dir_all(parent).unwrap_or_else(made);
        let (mark, path) = loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let mark = format!("sandbox-test-{}-{serial}-{test}", std::process::id());
            let path = parent.join(&mark);
            match fs::create_dir(&path) {
                // Left by a test that was killed, whose number this process has now.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                done => {
                    done.unwrap_or_else(made);
                    break (mark, path);
                }
            }
        };
        // The guest sees resolved paths, and a directory above may be a symlink.
        let path = path.canonicalize().expect("resolve a directory just made");
        Workspace { path, mark }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that only this workspace's processes carry in their environment, as
    /// `SANDBOX_TEST_MARK`.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Writes a file below the workspace, with the directories above it.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(relative);
        let parent = path.parent().expect("a file below the workspace");
        fs::create_dir_all(parent).expect("create a directory of the workspace");
        fs::write(&path, content).expect("write a file of the workspace");
        path
    }

    /// A file of the workspace as text; fails if it is not there.
    #[track_caller]
    pub fn read(&self, relative: &str) -> String {
        match fs::read(self.path.join(relative)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => panic!("cannot read {relative} of the workspace: {error}"),
        }
    }

    /// Whether something is there (a dangling symlink is).
    pub fn has(&self, relative: &str) -> bool {
        self.path.join(relative).symlink_metadata().is_ok()
    }

    /// `sandbox`, to be given options, `--` and a program; it runs in this directory.
    pub fn sandbox(&self) -> Command {
        let mut command = self.command(sandbox_program());
        let options = std::env::var("SANDBOX_TEST_OPTIONS").unwrap_or_default();
        command.args(options.split_whitespace());
        command
    }

    /// Any program, to run natively in this directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path).env("SANDBOX_TEST_MARK", &self.mark).env("LC_ALL", "C");
        command
    }

    /// Runs natively, in this directory.
    #[track_caller]
    pub fn native<S: AsRef<OsStr>>(&self, argv: &[S]) -> Outcome {
        let mut command = self.command(&argv[0]);
        command.args(&argv[1..]);
        run(command, b"", LIMIT)
    }

    /// Runs `sandbox -- ARGV`, in this directory.
    #[track_caller]
    pub fn inside<S: AsRef<OsStr>>(&self, argv: &[S]) -> Outcome {
        self.inside_with::<&str, S>(&[], argv)
    }

    /// Runs `sandbox OPTIONS -- ARGV`, in this directory.
    #[track_caller]
    pub fn inside_with<O: AsRef<OsStr>, S: AsRef<OsStr>>(
        &self,
        options: &[O],
        argv: &[S],
    ) -> Outcome {
        let mut command = self.sandbox();
        command.args(options).arg("--").args(argv);
        run(command, b"", LIMIT)
    }

    /// Runs `sandbox -- sh -c SCRIPT`.
    #[track_caller]
    pub fn inside_sh(&self, script: &str) -> Outcome {
        self.inside(&["sh", "-c", script])
    }

    /// Runs natively first, which must succeed; then inside, which must end alike and print the
    /// same. Both start from the same content of the workspace. Returns the outcome inside.
    #[track_caller]
    pub fn same<S: AsRef<OsStr>>(&self, argv: &[S]) -> Outcome {
        self.same_with::<&str, S>(&[], argv)
    }

    /// [`Workspace::same`] with options for the run inside.
    #[track_caller]
    pub fn same_with<O: AsRef<OsStr>, S: AsRef<OsStr>>(
        &self,
        options: &[O],
        argv: &[S],
    ) -> Outcome {
        let outside = self.native_and_undone(argv);
        outside.success();
        let inside = self.inside_with(options, argv);
        inside.same_as(&outside);
        inside
    }

    /// Runs natively and puts the content of the workspace back to what it was.
    #[track_caller]
    pub fn native_and_undone<S: AsRef<OsStr>>(&self, argv: &[S]) -> Outcome {
        let kept = self.path.with_extension("kept");
        copy_tree(&self.path, &kept);
        let outcome = self.native(argv);
        remove_tree(&self.path);
        fs::rename(&kept, &self.path).expect("put the workspace back");
        outcome
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if std::env::var_os("SANDBOX_TEST_KEEP").is_none() {
            remove_tree(&self.path);
        }
    }
}

#[track_caller]
fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success(), "cannot copy {}", from.display());
}

fn remove_tree(path: &Path) {
    if fs::remove_dir_all(path).is_err() && path.exists() {
        // A directory without write permission: make all of them writable first.
        let _ = Command::new("chmod").args(["-R", "u+rwx"]).arg(path).status();
        let _ = fs::remove_dir_all(path);
    }
}

/// Copies a program that will be executed. Another process does it: what this one has open for writing, a child
/// that another test starts at the same time has open, too, until it executes its own program, and nobody can
/// execute it meanwhile (ETXTBSY in execve(2)).
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("run cp");
    assert!(status.success(), "cannot copy {}", from.display());
}

/// A port of loopback that nobody has, for whoever binds it a moment later: one that the kernel gives to nobody
/// who asks for any (ip_local_port_range in ip(7)), and that no other test is given.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let least = range.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(32_768);
    let (first, count) = if least > 20_000 { (10_000, least - 10_000) } else { (61_000, 4_000) };
    // Tests of other processes begin elsewhere.
    let begin = std::process::id().wrapping_mul(97);
    loop {
        let at = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = u16::try_from(first + at).expect("a port");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The guest program tests/guests/NAME.c, compiled. Fails if it cannot be.
#[track_caller]
pub fn guest(name: &str) -> PathBuf {
    match try_guest(name) {
        Ok(program) => program,
        Err(error) => panic!("{error}"),
    }
}

/// [`guest`] for a program that not every host can compile (for example with `-m32`).
///
/// # Errors
/// What the compiler printed.
pub fn try_guest(name: &str) -> Result<PathBuf, String> {
    let source = repository().join("tests/guests").join(name).with_extension("c");
    guests::compile(&source, &visible_directory("SANDBOX_TEST_GUESTS", "guests"))
}

/// The repository, or a copy of its files that an ordinary user can read.
pub fn repository() -> PathBuf {
    std::env::var_os("SANDBOX_TEST_SOURCES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// A directory for files that a guest must see, so neither below /tmp nor below /var/tmp, which are
/// private inside: what `variable` says, else `name` in cargo's directory for tests.
fn visible_directory(variable: &str, name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os(variable) {
        return directory.into();
    }
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if built.starts_with("/tmp") || built.starts_with("/var/tmp") {
        let home =
            std::env::var_os("HOME").expect("HOME, since the repository is in a private place");
        return Path::new(&home).join(".cache/sandbox-test").join(name);
    }
    built.join(name)
}

/// Says that a test (or a part of it) cannot run here, for lack of `what`: `skipped: no WHAT (TEST)`.
///
/// Written past the test harness's capture, so that scripts/test can count it.
pub fn skip(what: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("?");
    let _ = std::io::stderr().write_all(format!("skipped: no {what} ({test})\n").as_bytes());
}

/// Whether a program is on the search path; otherwise says that the test is skipped for lack of it.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if !found {
        skip(program);
    }
    found
}

/// The programs of a server of PostgreSQL, which Debian keeps off the search path.
pub fn postgresql_programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let directories = versions.map(|version| version.path().join("bin"));
    directories.chain(std::env::split_paths(&path)).find(|bin| bin.join("initdb").is_file())
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
