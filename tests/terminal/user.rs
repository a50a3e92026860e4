//! The user: a pty with a shell on it, typing and looking.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use sandbox::sys::terminal::set_window_size;

use crate::common::{LIMIT, Workspace, sandbox_program};

/// The prompt of the user's own shell.
pub(crate) const PROMPT: &str = "ready> ";

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = LIMIT;

/// Somebody at a terminal.
pub(crate) struct User {
    /// `None` once the terminal was unplugged.
    terminal: Option<File>,
    session: Child,
    /// What was seen and not yet looked at.
    seen: Vec<u8>,
}

impl User {
    /// At an interactive shell with job control, in which `$S` is the program under test.
    pub(crate) fn at_a_shell(workspace: &Workspace) -> User {
        let shell = ["bash", "--norc", "--noprofile", "--noediting", "-i"];
        let mut user = User::running(workspace, &shell);
        user.wait_for(PROMPT);
        user
    }

    /// Watching a script run, likewise.
    pub(crate) fn watching(workspace: &Workspace, script: &str) -> User {
        User::running(workspace, &["sh", "-c", script])
    }

    fn running(workspace: &Workspace, command: &[&str]) -> User {
        // Other tests start programs at the same time: nothing here may leak into them.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let slave = options.open(ptsname_r(&master).unwrap()).unwrap();
        let terminal = File::from(master.as_fd().try_clone_to_owned().unwrap());
        resize(&terminal, 24, 80);
        let mut session: Command = workspace.command("setsid");
        let session = session
            .args(["--ctty", "--wait"])
            .args(command)
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .env("S", sandbox_program())
            .env_remove("HISTFILE")
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave)
            .process_group(0)
            .spawn()
            .unwrap();
        User { terminal: Some(terminal), session, seen: Vec::new() }
    }

    fn terminal(&self) -> &File {
        self.terminal.as_ref().unwrap()
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.terminal().write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line and waits for what it makes appear.
    #[track_caller]
    pub(crate) fn enters(&mut self, line: &str, answer: &str) -> String {
        self.types(line);
        self.types("\r");
        self.wait_for(answer)
    }

    /// Looks until `text` appears; returns what came before it.
    #[track_caller]
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
                panic!("no {text:?} in {:?}", String::from_utf8_lossy(tail));
            }
        }
    }

    /// Waits for the end of the session; returns all that was still seen.
    #[track_caller]
    pub(crate) fn waits_for_the_end(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.terminal.is_some() && self.look(deadline) {}
        assert!(Instant::now() < deadline, "the session does not end");
        self.session.wait().unwrap();
        String::from_utf8_lossy(&std::mem::take(&mut self.seen)).into_owned()
    }

    fn look(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap();
        let terminal = self.terminal.as_ref().unwrap();
        if poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 65536];
        // EIO: nobody has the other side open any more.
        let Ok(count) = self.terminal().read(&mut bytes) else { return false };
        self.seen.extend_from_slice(&bytes[..count]);
        count > 0
    }

    /// The terminal's attributes. The kernel keeps them with the slave and shows them on the master.
    pub(crate) fn modes(&self) -> Termios {
        tcgetattr(self.terminal()).unwrap()
    }

    pub(crate) fn sets_modes(&self, modes: &Termios) {
        tcsetattr(self.terminal(), SetArg::TCSANOW, modes).unwrap();
    }

    pub(crate) fn resizes(&self, rows: u16, columns: u16) {
        resize(self.terminal(), rows, columns);
    }

    /// Closes the terminal's window.
    pub(crate) fn unplugs(&mut self) {
        self.terminal = None;
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.terminal = None;
        let _ = killpg(Pid::from_raw(self.session.id() as i32), Signal::SIGKILL);
        let _ = self.session.wait();
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    set_window_size(terminal.as_fd(), &size).unwrap();
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
