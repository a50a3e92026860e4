//! Profiles as a user has them: files in the places where they are looked for, and what becomes of a run.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{LIMIT, Outcome, Workspace, is_root, run};

/// A home, and a project in it, of their own.
struct Desk {
    workspace: Workspace,
}

impl Desk {
    fn new(test: &str) -> Desk {
        let workspace = Workspace::new(test);
        fs::create_dir_all(workspace.path().join("home/project/part")).expect("make a project");
        fs::create_dir(workspace.path().join("run")).expect("make a directory of state");
        fs::set_permissions(workspace.path().join("run"), Permissions::from_mode(0o700))
            .expect("change a mode");
        Desk { workspace }
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.workspace.write(&format!("home/{file}"), text);
        fs::set_permissions(path, Permissions::from_mode(0o644)).expect("change a mode");
    }

    fn path(&self, file: &str) -> String {
        self.workspace.path().join("home").join(file).to_str().expect("UTF-8").to_owned()
    }

    fn command(&self) -> Command {
        let mut command = self.workspace.sandbox();
        command.current_dir(self.path("project")).env("HOME", self.path(""));
        command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_STATE_HOME");
        command.env("XDG_RUNTIME_DIR", self.workspace.path().join("run"));
        command
    }

    #[track_caller]
    fn sandbox(&self, words: &[&str]) -> Outcome {
        let mut command = self.command();
        command.args(words);
        run(command, b"", LIMIT)
    }

    /// `sandbox OPTIONS -- sh -c SCRIPT`
    #[track_caller]
    fn sh(&self, options: &[&str], script: &str) -> Outcome {
        self.sandbox(&[options, &["--", "sh", "-c", script]].concat())
    }
}

const PROJECT: &str = "project/sandbox.toml";
const DEFAULT: &str = ".config/sandbox/default.toml";

#[test]
fn without_any_file_nothing_is_said() {
    let desk = Desk::new("profile-none");
    desk.sh(&[], "echo x > x && cat x").success().expect_out("x\n").expect_err("");
    desk.sandbox(&["profile", "show"]).success().out_has("built-in default").out_lacks(".toml");
}

#[test]
fn a_project_narrows_and_what_would_widen_is_said_once() {
    let desk = Desk::new("profile-project");
    desk.put("elsewhere/file", "found");
    desk.put("project/notes", "my notes");
    let text =
        "hide = ['notes']\nro = ['part']\nrw = '../elsewhere'\nenv = 'A=1'\nfile-size = '1k'\n";
    desk.put(PROJECT, text);
    let script = "cat notes; touch part/x; touch ../elsewhere/x; echo \"A is ${A-unset}\"; touch y";
    let outcome = desk.sh(&[], script);
    outcome.success().out_has("A is unset").err_has("cat: notes: No such file or directory");
    outcome.err_has("part/x': Read-only").err_has("elsewhere/x': Read-only");
    outcome.err_has("rw = ").err_has("(line 3), env = A=1 (line 4); --trust-project-profile");
    let said = outcome.err().matches("left out of").count();
    assert_eq!(said, 1, "{}", outcome.report());
    outcome.err_lacks("file-size =").err_lacks("hide =");
    desk.sh(&["-q"], "true").success().expect_err("");

    // The same from a directory below it; and nothing of it from above.
    let mut command = desk.command();
    command.current_dir(desk.path("project/part")).args(["--", "cat", "../notes"]);
    run(command, b"", LIMIT).failure().err_has("No such file or directory");
    let mut command = desk.command();
    command.current_dir(desk.path("elsewhere")).args(["--", "cat", "../project/notes"]);
    run(command, b"", LIMIT).success().expect_out("my notes");

    // Trusted.
    let script = "cat notes || touch ../elsewhere/x && echo \"A is ${A-unset}\"";
    let outcome = desk.sh(&["--trust-project-profile"], script);
    outcome.success().expect_out("A is 1\n").err_lacks("left out");
    assert!(desk.workspace.has("home/elsewhere/x"));

    // Limits hold.
    desk.sh(&[], "head -c 2000 /dev/zero > big").failure();
    desk.sh(&["--file-size", "3k"], "head -c 2000 /dev/zero > big").success();
}

#[test]
fn files_of_others_are_refused_by_name() {
    let desk = Desk::new("profile-refused");
    let file = desk.path(PROJECT);
    let refused = |words: &[&str]| {
        let words = [&[file.as_str()], words].concat();
        desk.sh(&[], "true").one_line_error(125, &words);
    };
    desk.put(PROJECT, "pids = 100");
    fs::set_permissions(&file, Permissions::from_mode(0o646)).expect("change a mode");
    refused(&["others may write to it"]);
    fs::remove_file(&file).expect("remove a file");
    symlink(desk.path("project/part"), &file).expect("make a link");
    refused(&["symbolic link"]);
    fs::remove_file(&file).expect("remove a link");
    nix::unistd::mkfifo(Path::new(&file), nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    refused(&["not a regular file"]);
    fs::remove_file(&file).expect("remove a FIFO");
    if is_root() {
        desk.put(PROJECT, "pids = 100");
        std::os::unix::fs::chown(&file, Some(12345), None).expect("change an owner");
        refused(&["belongs to the user 12345"]);
    } else {
        common::skip("second user");
    }
}

#[test]
fn errors_have_line_and_column() {
    let desk = Desk::new("profile-errors");
    for (text, words) in [
        ("pids = 100\nnetwrk = 'host'\n", &["line 2, column 1", "netwrk", "net"][..]),
        ("memory = = '1g'\n", &["line 1, column", "TOML"]),
        ("\n\nmemory = 'much'\n", &["line 3, column 10", "much", "512m"]),
        ("inherit = 'agnet'\n", &["line 1, column 11", "agnet", "agent"]),
        ("inherit = './sandbox.toml'\n", &["stands on itself"]),
    ] {
        desk.put(PROJECT, text);
        let file = desk.path(PROJECT);
        desk.sh(&[], "true").one_line_error(125, &[&[file.as_str()], words].concat());
    }
    desk.sandbox(&["--profile", "buld", "--", "true"]).one_line_error(125, &["buld", "build"]);
    desk.sandbox(&["--profile", "./x", "--", "true"]).one_line_error(125, &["no file", "/x"]);
}

#[test]
fn show_tells_who_said_what() {
    let desk = Desk::new("profile-show");
    desk.put(DEFAULT, "# mine\nmemory = '1g'\nhide = '~/mail'\n");
    desk.put(".config/sandbox/mine.toml", "description = 'My own'\ninherit = 'build'\ncpus = 1\n");
    desk.put(PROJECT, "memory = '512m'\nnet = 'host'\n");
    let outcome = desk.sandbox(&["profile", "show", "--hide", "/srv"]);
    let line = |outcome: &Outcome, parts: &[&str]| {
        let out = outcome.out();
        let mut lines = out.lines();
        let found = lines.any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line with {parts:?}\n{}", outcome.report());
    };
    outcome.success().expect_err("");
    line(&outcome, &["memory", "512m", &format!("{}:1", desk.path(PROJECT))]);
    line(&outcome, &["hide", "/mail", &format!("{}:3", desk.path(DEFAULT))]);
    line(&outcome, &["hide", "/srv", "command line"]);
    line(&outcome, &["kmsg", "false", "default"]);
    line(&outcome, &["net", "host", "sandbox.toml:2"]);
    outcome.out_has("left out");
    let outcome = desk.sandbox(&["profile", "show", "mine"]);
    line(&outcome, &["pids", "4096", "built-in build"]);
    line(&outcome, &["cpus", "1", "mine.toml:3"]);
    outcome.out_lacks(DEFAULT);
    let outcome = desk.sandbox(&["profile", "show", "--json", "--env", "A=1"]);
    let json: serde_json::Value = serde_json::from_str(&outcome.success().out()).expect("JSON");
    let of = |key: &str| {
        let settings = json["settings"].as_array().expect("an array");
        settings.iter().find(|setting| setting["key"] == key).expect("the key").clone()
    };
    assert_eq!(of("memory")["from"]["line"], 1);
    assert_eq!(of("env")["from"]["kind"], "command line");
    assert_eq!(of("kmsg")["from"]["kind"], "default");
    assert_eq!(json["left_out"][0]["key"], "net");
    let outcome = desk.sandbox(&["profile", "list"]);
    for parts in [&["mine", "My own"][..], &["build", "built in"], &["agent"], &["job"], &["debug"]]
    {
        line(&outcome, parts);
    }
}

#[test]
fn flags_win_and_profiles_add_up() {
    let desk = Desk::new("profile-flags");
    desk.put(DEFAULT, "hostname = 'mine'\nenv = ['A=1', 'B=1']\nhide = '~/mail'\nkmsg = true\n");
    desk.put("mail/letter", "dear");
    let script = "uname -n; echo $A$B; cat ~/mail/letter; (: < /dev/kmsg) 2>/dev/null && echo log";
    desk.sh(&[], script).out_has("mine\n11\n").out_has("log").out_lacks("dear");
    let mail = desk.path("mail");
    let options = ["--hostname", "box", "--env", "A=2", "--ro", &mail, "--kmsg=false"];
    desk.sh(&options, script).expect_out("box\n21\ndear");
    // A profile that is named takes the default one's place, and the last one is the strongest.
    desk.put("project/one.toml", "hostname = 'one'\nenv = 'A=one'\n");
    desk.put("project/two.toml", "hostname = 'two'\nenv = 'B=two'\n");
    let both = ["--profile", "./one.toml", "--profile", "two.toml"];
    desk.sh(&both, script).expect_out("two\nonetwo\ndear");
    // What hides is explained with the file that says so.
    let letter = desk.path("mail/letter");
    desk.sandbox(&["why", &letter]).expect_status(1).out_has("default.toml:3");
    let outcome = desk.sandbox(&["--dry-run", "--", "true"]);
    outcome.success().out_has("default.toml:3").out_has("profiles");
}

#[test]
fn built_in_profiles_do_what_they_are_for() {
    let desk = Desk::new("profile-built-in");
    desk.put(".cache/tool/file", "old");
    desk.put("project/.git/config", "[core]\n");
    let script = "ls ~/.cache && touch ~/.cache/new && echo cached";
    desk.sh(&["--profile", "build"], script).success().expect_out("cached\n").expect_err("");
    assert!(!desk.workspace.has("home/.cache/new"));
    // What is built is looked at, and kept or dropped.
    desk.put("project/old", "old");
    let script = "echo built > out; rm old; mkdir -p ~/bin; echo tool > ~/bin/tool";
    let outcome = desk.sh(&["--id", "it", "--profile", "build"], script);
    outcome
        .success()
        .err_has("the overlay has changes (3 added, 1 deleted), and the host has none");
    outcome.err_has("sandbox commit it applies them");
    assert!(desk.workspace.has("home/project/old") && !desk.workspace.has("home/project/out"));
    desk.sandbox(&["diff", "it"]).expect_status(1).out_has("home/bin/tool").out_has("D ");
    desk.sandbox(&["commit", "it"]).success();
    assert!(!desk.workspace.has("home/project/old") && desk.workspace.has("home/bin/tool"));
    let mut command = desk.command();
    command.env("MY_VARIABLE", "1").args(["--profile", "agent", "--", "sh", "-c"]);
    command.arg("echo ${MY_VARIABLE-none}; touch file; echo x >> .git/config");
    run(command, b"", LIMIT).failure().expect_out("none\n").err_has("Read-only");
    assert!(desk.workspace.has("home/project/file"));
    let outcome = desk.sh(&["--profile", "debug"], ": < /dev/kmsg && echo log");
    outcome.success().expect_out("log\n").err_has("built-in debug").err_has("program");
    let outcome = desk.sh(&["--profile", "job"], "echo done > result");
    let id = outcome.success().line();
    desk.sandbox(&["wait", &id]).success();
    assert_eq!(desk.workspace.read("home/project/result"), "done\n");
    desk.sh(&["--profile", "job", "--detach=false"], "echo here").success().expect_out("here\n");
}

#[test]
fn what_a_guest_writes_into_the_file_opens_nothing() {
    let desk = Desk::new("profile-guest");
    let script = "echo \"rw = '/'\nro = '/root'\nnet = 'host'\nenv = 'PATH=.'\" > sandbox.toml";
    desk.sh(&[], script).success();
    let outcome = desk.sh(&[], "ls -A /sys/class/net; touch /var/x");
    outcome.failure().expect_out("lo\n").err_has("left out of");
}
