//! A user with sandboxes of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;

use crate::common::{LIMIT, Outcome, Workspace, run, start, wait_for};

/// Commands that see the same sandboxes. When it is dropped, those that still run are killed.
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

    /// The user's runtime directory.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.runtime.path().to_owned()
    }

    /// Where the state of sandbox `id` lies.
    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.runtime().join("sandbox").join(id)
    }

    /// `sandbox WORDS`, not started yet.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.sandbox();
        command.args(words).env("XDG_RUNTIME_DIR", self.runtime());
        command
    }

    /// `sandbox WORDS`
    #[track_caller]
    pub(crate) fn sandbox(&self, words: &[&str]) -> Outcome {
        run(self.command(words), b"", LIMIT)
    }

    /// `sandbox WORDS`, not waited for.
    pub(crate) fn begin(&self, words: &[&str]) -> Child {
        start(self.command(words))
    }

    /// Starts a shell script in a detached sandbox; it has made `up-ID`, if it does, when this returns. (By
    /// `: > up-ID`: touch(1) would be one process more for a moment longer.)
    #[track_caller]
    pub(crate) fn detach(&self, id: &str, script: &str) {
        let words = ["run", "--detach", "--id", id, "--", "sh", "-c", script];
        self.sandbox(&words).success().expect_out(&format!("{id}\n")).expect_err("");
        let up = format!("up-{id}");
        if script.contains(&up) {
            wait_for("the program", || self.workspace.has(&up));
        }
    }

    /// One that does nothing until it is told to end, with status 7.
    #[track_caller]
    pub(crate) fn detach_idle(&self, id: &str) {
        let script = format!("trap 'exit 7' TERM; sleep 1000 & : > up-{id}; wait");
        self.detach(id, &script);
        self.becomes_idle(id, "main");
    }

    /// Waits until all that runs in a container is its program and `sleep 1000`.
    #[track_caller]
    pub(crate) fn becomes_idle(&self, id: &str, container: &str) {
        wait_for("the program's child", || {
            let all = self.processes(id);
            let own: Vec<_> = all.iter().filter(|it| it["container"] == container).collect();
            own.len() == 2 && own.iter().any(|it| it["command"] == "sleep 1000")
        });
    }

    /// The processes of `id`.
    #[track_caller]
    pub(crate) fn processes(&self, id: &str) -> Vec<Value> {
        let listed = self.sandbox(&["ps", id, "--json"]);
        serde_json::from_str(listed.success().out().trim()).expect("a JSON list")
    }

    /// What `sandbox ps --json` lists.
    #[track_caller]
    pub(crate) fn ps(&self) -> Vec<Value> {
        let listed = self.sandbox(&["ps", "--json"]);
        serde_json::from_str(listed.success().out().trim()).expect("a JSON list")
    }

    /// What it says of `id`.
    #[track_caller]
    pub(crate) fn listed(&self, id: &str) -> Option<Value> {
        self.ps().into_iter().find(|row| row["id"] == id)
    }

    /// The supervisor of `id`.
    #[track_caller]
    pub(crate) fn supervisor(&self, id: &str) -> i32 {
        let row = self.listed(id).expect("the sandbox is listed");
        i32::try_from(row["pid"].as_i64().unwrap()).unwrap()
    }

    /// Asserts that no sandbox is known and no state is left.
    #[track_caller]
    pub(crate) fn expect_nothing(&self) {
        assert!(self.ps().is_empty(), "{:?}", self.ps());
        let left: Vec<_> = fs::read_dir(self.runtime()).unwrap().collect();
        assert!(left.is_empty(), "left in the runtime directory: {left:?}");
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let listed = self.command(&["ps", "--json"]).output();
        let rows = listed.ok().and_then(|it| serde_json::from_slice::<Vec<Value>>(&it.stdout).ok());
        for row in rows.into_iter().flatten() {
            let id = row["id"].as_str().unwrap_or_default();
            for words in [["kill", id, "KILL"].as_slice(), &["wait", id]] {
                let _ = self.command(words).output();
            }
        }
    }
}

/// The letter of a process's state (proc_pid_stat(5)).
pub(crate) fn process_state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Whether a `sandbox wait` (or another that has asked) has come to wait for its reply: it has a
/// socket and sleeps.
pub(crate) fn has_asked(child: &Child) -> bool {
    let pid = child.id() as i32;
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link.to_string_lossy().starts_with("socket:"))
        && process_state(pid) == Some('S')
}
