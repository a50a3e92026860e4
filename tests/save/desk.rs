//! One program that is saved, and what comes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::{LIMIT, Outcome, Workspace, guest, run, wait_for};

/// How a program comes to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is saved and goes on.
    LeftRunning,
    /// It is saved, which ends it, and restored.
    Restored,
    /// It has been paused before.
    PausedAndRestored,
}

/// A user's sandboxes, of which one is called `it`.
pub(crate) struct Desk {
    pub(crate) workspace: Workspace,
    runtime: Workspace,
}

impl Desk {
    pub(crate) fn new(test: &str) -> Desk {
        let workspace = Workspace::new(test);
        let runtime = Workspace::new(&format!("{test}-run"));
        fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Desk { workspace, runtime }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.sandbox();
        command.args(words).env("XDG_RUNTIME_DIR", self.runtime.path());
        command
    }

    #[track_caller]
    pub(crate) fn sandbox(&self, words: &[&str]) -> Outcome {
        run(self.command(words), b"", LIMIT)
    }

    /// Starts a guest program with these words, and its output in `out`; it has made `up` when this
    /// returns.
    #[track_caller]
    pub(crate) fn begin(&self, program: &str, words: &str) {
        let own = self.workspace.path().join(program);
        fs::copy(guest(program), own).unwrap();
        let script = format!("exec ./{program} {words} > out 2>&1");
        self.sandbox(&["run", "--detach", "--id", "it", "--", "sh", "-c", &script]).success();
        wait_for("the program", || self.workspace.has("up"));
    }

    /// Saves what runs, and has it go on in this way.
    #[track_caller]
    pub(crate) fn save(&self, way: Way) {
        if way == Way::PausedAndRestored {
            self.sandbox(&["pause", "it"]).success();
            self.sandbox(&["resume", "it"]).success();
        }
        if way == Way::LeftRunning {
            self.sandbox(&["save", "it", "-o", "image", "--leave-running"]).success();
        } else {
            self.sandbox(&["save", "it", "-o", "image"]).success();
            self.sandbox(&["wait", "it"]).expect_status(137);
            self.sandbox(&["restore", "image", "--detach", "--id", "it"]).success();
        }
    }

    /// It ends well, and says so.
    #[track_caller]
    pub(crate) fn ends_well(&self, last: &str) {
        let status = self.sandbox(&["wait", "it"]).status;
        let out = self.workspace.read("out");
        assert!(status == 0 && out.ends_with(last), "status {status}:\n{out}");
    }

    pub(crate) fn touch(&self, name: &str) {
        self.workspace.write(Path::new(name).to_str().unwrap(), "");
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.command(&["kill", "it", "KILL"]).output();
        let _ = self.command(&["wait", "it"]).output();
    }
}
