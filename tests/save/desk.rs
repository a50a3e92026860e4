//! One program that is saved, and what comes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::leftovers::Leftovers;
use crate::common::{
    LIMIT, Outcome, Workspace, copy_program, guest, run, sandbox_program, wait_for,
};

/// How a program comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is saved and goes on.
    LeftRunning,
    /// It is saved, which ends it, and restored.
    Restored,
    /// It has been paused before.
    PausedAndRestored,
    /// What was restored, with memory mapped from the image, is saved once more, and restored once more.
    RestoredTwice,
    /// The same ten times in a row.
    TenTimes,
}

/// A user's sandboxes, of which one is called `it`.
pub(crate) struct Desk {
    pub(crate) workspace: Workspace,
    runtime: Workspace,
    before: Leftovers,
}

impl Desk {
    pub(crate) fn new(test: &str) -> Desk {
        let workspace = Workspace::new(test);
        let runtime = Workspace::new(&format!("{test}-run"));
        fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let before = Leftovers::before(&workspace);
        Desk { workspace, runtime, before }
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.sandbox();
        command.args(words).env("XDG_RUNTIME_DIR", self.runtime.path());
        command.env("XDG_STATE_HOME", self.runtime.path().join("state"));
        command
    }

    /// A native script that gets the path of `sandbox` as its last word.
    pub(crate) fn beside(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.command(words[0]);
        command.args(&words[1..]).arg(sandbox_program());
        command.env("XDG_RUNTIME_DIR", self.runtime.path());
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
        self.begin_with(&[], program, words);
    }

    /// The same with these options.
    #[track_caller]
    pub(crate) fn begin_with(&self, options: &[&str], program: &str, words: &str) {
        let own = self.workspace.path().join(program);
        copy_program(&guest(program), &own);
        let script = format!("exec > out 2>&1; exec ./{program} {words}");
        let run = ["run", "--detach", "--id", "it"];
        self.sandbox(&[&run, options, &["--", "sh", "-c", &script]].concat()).success();
        wait_for("the program", || self.workspace.has("up"));
    }

    /// The same for a command of the shell.
    #[track_caller]
    pub(crate) fn begin_command(&self, command: &str) {
        let script = format!("exec > out 2>&1; {command}");
        self.sandbox(&["run", "--detach", "--id", "it", "--", "sh", "-c", &script]).success();
        wait_for("the program", || self.workspace.has("up"));
    }

    /// Starts any program; it has made `up` when this returns.
    #[track_caller]
    pub(crate) fn start(&self, words: &[&str]) {
        let own = ["run", "--detach", "--id", "it", "--"];
        self.sandbox(&[&own[..], words].concat()).success();
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
            let lazy = matches!(way, Way::RestoredTwice | Way::TenTimes).then_some("--lazy");
            let words = ["restore", "image", "--detach", "--id", "it"];
            self.sandbox(&words.into_iter().chain(lazy).collect::<Vec<_>>()).success();
        }
        match way {
            Way::RestoredTwice => self.save(Way::Restored),
            Way::TenTimes => (1..10).for_each(|round| {
                self.save(if round % 2 == 0 { Way::Restored } else { Way::PausedAndRestored });
            }),
            _ => {}
        }
    }

    /// It ends well, and says so.
    #[track_caller]
    pub(crate) fn ends_well(&self, last: &str) {
        let status = self.sandbox(&["wait", "it"]).status;
        let out = self.workspace.read("out");
        assert!(status == 0 && out.ends_with(last), "status {status}:\n{out}");
    }

    /// Nothing has been left: no process, file, mount or state of a sandbox, once all have been waited for.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        self.sandbox(&["ps", "--json"]).success().expect_out("[]\n");
        let state = self.runtime.path().join("sandbox");
        let left = fs::read_dir(state).into_iter().flatten().flatten().map(|it| it.file_name());
        assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
        let files = fs::read_dir(self.workspace.path()).unwrap().flatten().map(|it| it.file_name());
        let partial = files.filter(|name| name.to_string_lossy().ends_with(".partial"));
        assert_eq!(partial.collect::<Vec<_>>(), [""; 0]);
        self.before.check();
    }

    pub(crate) fn touch(&self, name: &str) {
        self.workspace.write(Path::new(name).to_str().unwrap(), "");
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for id in ["it", "other"] {
            let _ = self.command(&["kill", id, "KILL"]).output();
            let _ = self.command(&["wait", id]).output();
        }
    }
}
