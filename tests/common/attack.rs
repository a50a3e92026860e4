//! What the escape tests share: a victim outside the writable paths, attacks that must do their
//! damage natively and none inside, and single system calls by number.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LIMIT, Outcome, Workspace, copy_tree, guest, remove_tree, run};

/// The names of errno with which a call counts as refused. ENOSPC is what the kernel says where the
/// limit on namespaces (namespaces(7), /proc/sys/user) is none.
pub const REFUSALS: &[&str] =
    &["EPERM", "EACCES", "ENOSYS", "EROFS", "EXDEV", "EAFNOSUPPORT", "ENOSPC"];

/// A workspace, which the guest may write to, and beside it a victim, which it may not.
pub struct Attack {
    pub workspace: Workspace,
    pub victim: Workspace,
}

impl Attack {
    /// The victim has a file `victim` with a line of text, and a directory `directory`.
    pub fn new(test: &str) -> Attack {
        let attack = Attack {
            workspace: Workspace::new(test),
            victim: Workspace::new(&format!("{test}-victim")),
        };
        attack.victim.write("victim", "untouched\n");
        attack.victim.write("directory/inner", "untouched\n");
        attack
    }

    /// The file that must stay as it is.
    pub fn file(&self) -> PathBuf {
        self.victim.path().join("victim")
    }

    /// Runs a shell script that changes the victim (its path is `$V`, the workspace's `$W`, and the
    /// current directory is the workspace): natively it must, inside it must not.
    #[track_caller]
    pub fn must_not_change(&self, script: &str) -> Outcome {
        let changed = self.changed_by(&mut self.shell(self.workspace.command("sh"), script));
        assert!(changed.0, "the attack does nothing natively\n{}", changed.1.report());
        self.must_not_change_inside(script)
    }

    /// [`Attack::must_not_change`] for an attack that does not work natively for this user or on
    /// this host.
    #[track_caller]
    pub fn must_not_change_inside(&self, script: &str) -> Outcome {
        let mut command = self.workspace.sandbox();
        command.args(["--", "sh"]);
        self.must_survive(&mut self.shell(command, script))
    }

    /// Runs a command, of whatever exit status, that must leave the victim as it is. It must have
    /// run the attack: an error of sandbox itself is no defence.
    #[track_caller]
    pub fn must_survive(&self, command: &mut Command) -> Outcome {
        let (changed, outcome) = self.changed_by(command);
        assert!(!changed, "the victim was changed\n{}", outcome.report());
        assert_ne!(outcome.status, 125, "the attack was not run\n{}", outcome.report());
        outcome
    }

    fn shell(&self, mut command: Command, script: &str) -> Command {
        command.args(["-c", script]);
        command.env("V", self.victim.path()).env("W", self.workspace.path());
        command
    }

    /// Whether a command changes the victim; both directories are put back after it.
    #[track_caller]
    pub fn changed_by(&self, command: &mut Command) -> (bool, Outcome) {
        let both = [self.workspace.path(), self.victim.path()];
        for path in both {
            copy_tree(path, &path.with_extension("kept"));
        }
        let before = fingerprint(self.victim.path());
        let command = std::mem::replace(command, Command::new("true"));
        let outcome = run(command, b"", LIMIT);
        let changed = fingerprint(self.victim.path()) != before;
        for path in both {
            remove_tree(path);
            fs::rename(path.with_extension("kept"), path).expect("put a directory back");
        }
        (changed, outcome)
    }
}

/// All that can be seen of the files below a directory, except the times of reading and of
/// changes to the inode, which looking and copying move.
pub fn fingerprint(path: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    add_fingerprint(path, &mut found);
    found
}

fn add_fingerprint(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    let content = if metadata.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|entry| add_fingerprint(&entry.path(), found));
        String::new()
    } else if metadata.is_file() {
        format!("{:?}", fs::read(path))
    } else {
        format!("{:?} {:#x}", fs::read_link(path).ok(), metadata.rdev())
    };
    let owner = (metadata.uid(), metadata.gid(), metadata.nlink());
    let line = format!("{:o} {owner:?} {:?} {content}", metadata.mode(), metadata.mtime());
    found.insert(path.to_owned(), line);
}

/// The command line of the guest program `raw` for these calls: `NUMBER ARG..., NUMBER ARG...`
/// (tests/guests/raw.c says what an ARG can be).
pub fn raw(calls: &str) -> Vec<String> {
    let words = calls.replace(',', " , ");
    let program = guest("raw").to_str().expect("a path in UTF-8").to_owned();
    std::iter::once(program).chain(words.split_whitespace().map(str::to_owned)).collect()
}

/// Makes each call inside, one after the other in one process, and asserts that each is refused.
/// `calls` are pairs of a name for the message and what [`raw`] takes.
#[track_caller]
pub fn must_be_refused(workspace: &Workspace, options: &[&str], calls: &[(&str, String)]) {
    let all: Vec<&str> = calls.iter().map(|(_, call)| call.as_str()).collect();
    let outcome = workspace.inside_with(options, &raw(&all.join(" , ")));
    outcome.success();
    let answers: Vec<String> = outcome.out().lines().map(str::to_owned).collect();
    assert_eq!(answers.len(), calls.len(), "an answer to each call\n{}", outcome.report());
    for ((name, call), answer) in calls.iter().zip(&answers) {
        assert!(REFUSALS.contains(&answer.as_str()), "{name} ({call}) answers {answer}");
    }
}

/// Bytes as an argument of [`raw`].
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("h:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
