//! The user: a pty with a shell on it, typing and looking.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{posix_openpt, unlockpt};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, read, write};

use sandbox::sys::terminal as sys;

use crate::roles;

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct User {
    /// `None` once the terminal was unplugged.
    terminal: Option<OwnedFd>,
    session: Child,
    /// What was seen and not yet looked at.
    seen: Vec<u8>,
    pub(crate) place: PathBuf,
}

impl User {
    /// A user at an interactive shell with job control.
    pub(crate) fn at_a_shell() -> User {
        let shell = ["bash", "--norc", "--noprofile", "--noediting", "-i"];
        let mut user = User::running(&shell, &[]);
        user.wait_for("ready> ");
        user
    }

    /// A user who watches a script run (by a shell that leaves the terminal's modes alone).
    pub(crate) fn watching(script: &str, environment: &[(&str, &str)]) -> User {
        User::running(&["sh", "-c", script], environment)
    }

    fn running(command: &[&str], environment: &[(&str, &str)]) -> User {
        let place = new_directory();
        let box_ = place.join("box");
        let exe = std::env::current_exe().unwrap();
        let lines = format!(
            "#!/bin/sh\n{}=supervisor {}=\"$1\" exec {}\n",
            roles::ROLE,
            roles::GUEST,
            exe.display()
        );
        fs::write(&box_, lines).unwrap();
        fs::set_permissions(&box_, fs::Permissions::from_mode(0o755)).unwrap();
        mkfifo(&place.join("fifo"), Mode::S_IRWXU).unwrap();

        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        unlockpt(&master).unwrap();
        let slave = sys::open_slave(master.as_fd()).unwrap();
        let path = format!("{}:{}", place.display(), std::env::var("PATH").unwrap());
        let session = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .args(command)
            .env("PATH", path)
            .env("PS1", "ready> ")
            .env("TERM", "dumb")
            .env(roles::LOG, place.join("log"))
            .envs(environment.iter().copied())
            .current_dir(&place)
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave)
            .spawn()
            .unwrap();
        User { terminal: Some(master.into()), session, seen: Vec::new(), place }
    }

    fn terminal(&self) -> &OwnedFd {
        self.terminal.as_ref().unwrap()
    }

    pub(crate) fn types(&mut self, keys: &str) {
        assert_eq!(write(self.terminal(), keys.as_bytes()).unwrap(), keys.len());
    }

    /// Looks until `text` appears; returns what came before it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut looked = 0;
        loop {
            let from = looked.min(self.seen.len());
            if let Some(at) = find(&self.seen[from..], text.as_bytes()) {
                let before: Vec<u8> = self.seen.drain(..from + at + text.len()).collect();
                let before = &before[..before.len() - text.len()];
                return String::from_utf8_lossy(before).into_owned();
            }
            looked = self.seen.len().saturating_sub(text.len());
            if !self.look(deadline) {
                let tail = &self.seen[self.seen.len().saturating_sub(2000)..];
                panic!("no {text:?} in {:?}; log: {:?}", String::from_utf8_lossy(tail), self.log());
            }
        }
    }

    fn look(&mut self, deadline: Instant) -> bool {
        let mut bytes = [0; 65536];
        let terminal = self.terminal.as_ref().unwrap();
        if !is_readable(terminal, deadline) {
            return false;
        }
        let Ok(count) = read(terminal, &mut bytes) else { return false };
        self.seen.extend_from_slice(&bytes[..count]);
        true
    }

    /// The terminal's attributes. The kernel keeps them with the slave and shows them on the master.
    pub(crate) fn modes(&self) -> libc::termios {
        sys::attributes(self.terminal().as_fd()).unwrap()
    }

    pub(crate) fn is_raw(&self) -> bool {
        self.modes().c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// Waits until it is. (Bytes are carried before the supervisor has seen that it was continued.)
    #[track_caller]
    pub(crate) fn becomes_raw(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_raw() {
            assert!(Instant::now() < deadline, "the terminal does not become raw");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn resizes(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        sys::set_window_size(self.terminal().as_fd(), &size).unwrap();
    }

    pub(crate) fn unplugs(&mut self) {
        self.terminal = None;
    }

    /// What the supervisor noted so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.place.join("log")).unwrap_or_default()
    }

    pub(crate) fn supervisor(&self) -> i32 {
        let log = self.log();
        let line = log.lines().rfind(|line| line.starts_with("pid ")).unwrap();
        line[4..].parse().unwrap()
    }

    /// Opens the pipe `fifo` of this place; to be done before a guest writes to it.
    pub(crate) fn listens(&self) -> Signpost {
        Signpost::new(&self.place.join("fifo"))
    }

    /// Waits for the end of the session.
    pub(crate) fn waits_for_the_end(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        // Output must be looked at, or nothing ends.
        while self.terminal.is_some() && self.look(deadline) {}
        self.session.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.terminal = None;
        let _ = self.session.kill();
        let _ = self.session.wait();
        // A supervisor that is just ending may write to its log once more.
        while fs::remove_dir_all(&self.place)
            .is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty)
        {}
    }
}

/// A pipe through which a guest says something beside its terminal.
pub(crate) struct Signpost(fs::File, PathBuf);

impl Signpost {
    fn new(path: &Path) -> Signpost {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        Signpost(options.open(path).unwrap(), path.to_owned())
    }

    pub(crate) fn wait_for(&mut self, word: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = String::new();
        while !seen.contains(word) {
            if !is_readable(&self.0, deadline) {
                let log = fs::read_to_string(self.1.with_file_name("log")).unwrap_or_default();
                panic!("no {word:?} in {seen:?}; log: {log:?}");
            }
            let mut bytes = [0; 512];
            let count = self.0.read(&mut bytes).unwrap();
            seen += &String::from_utf8_lossy(&bytes[..count]);
        }
    }

    pub(crate) fn says(&mut self, line: &str) {
        self.0.write_all(line.as_bytes()).unwrap();
    }
}

fn is_readable(fd: &impl AsFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap();
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout).unwrap() > 0
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn new_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("terminal-relay-test-{}-{number}", std::process::id());
        let place = std::env::temp_dir().join(name);
        match fs::create_dir(&place) {
            // Left by a test that was killed, whose number this process has now.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => {
                made.unwrap();
                return place;
            }
        }
    }
}
