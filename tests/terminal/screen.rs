//! A pane of a real tmux: what a screen shows after all escape sequences.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::{Workspace, comes_true, sandbox_program};
use crate::user::PATIENCE;

/// A tmux server of its own with one window of 80 by 24.
pub(crate) struct Screen {
    /// Holds the socket; its path must be short (unix(7): 107 bytes).
    directory: PathBuf,
}

impl Screen {
    /// A shell in a fresh window, in which `$S` is the program under test.
    pub(crate) fn new(workspace: &Workspace) -> Screen {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let directory = loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let name = format!("/tmp/tmux-test-{}-{serial}", std::process::id());
            match std::fs::create_dir(&name) {
                // Left by a test that was killed, whose number this process has now.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.unwrap();
                    break PathBuf::from(name);
                }
            }
        };
        let screen = Screen { directory };
        let mut server = workspace.command("tmux");
        server.arg("-S").arg(screen.socket()).args(["-f", "/dev/null", "-u"]);
        server.args(["new-session", "-d", "-x", "80", "-y", "24"]);
        server.args(["bash", "--norc", "--noprofile"]);
        server.env("PS1", "ready> ").env("S", sandbox_program()).env_remove("TMUX");
        server.env("HISTFILE", "/dev/null").env("SHELL", "/bin/sh");
        assert!(server.status().unwrap().success(), "tmux does not start");
        screen.shows("ready>");
        screen
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    fn tmux(&self, words: &[&str]) -> String {
        let output =
            Command::new("tmux").arg("-S").arg(self.socket()).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types text.
    pub(crate) fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
    }

    /// Presses keys by their names in tmux: `Enter`, `Escape`, `C-c`.
    pub(crate) fn presses(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a line.
    pub(crate) fn enters(&self, line: &str) {
        self.types(line);
        self.presses(&["Enter"]);
    }

    pub(crate) fn resizes(&self, columns: u16, rows: u16) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &rows]);
    }

    /// What is on the screen.
    pub(crate) fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen satisfies `condition`, described by `what`; returns it.
    #[track_caller]
    pub(crate) fn waits(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let found = comes_true(PATIENCE, || {
            text = self.text();
            condition(&text)
        });
        assert!(found, "the screen does not show {what}:\n{text}");
        text
    }

    /// Waits until `text` is on the screen.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) -> String {
        self.waits(text, |screen| screen.contains(text))
    }

    /// Waits until a line begins with `text`: with the prompt of a shell inside, which stands in the line that
    /// starts it, too.
    #[track_caller]
    pub(crate) fn shows_a_line(&self, text: &str) {
        self.waits(text, |screen| screen.lines().any(|line| line.starts_with(text)));
    }

    /// Waits until the last line that is not empty is the shell's prompt.
    #[track_caller]
    pub(crate) fn prompts(&self) -> String {
        self.waits("a prompt", |screen| {
            screen.trim_end().lines().last().is_some_and(|line| line.trim_end() == "ready>")
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
