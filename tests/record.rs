//! `--record-files`: what a run has read, written, executed and looked for in vain.

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{LIMIT, Workspace, have, run, skip};
use serde_json::Value;

struct Record {
    workspace: Workspace,
    json: Value,
}

impl Record {
    /// Runs a script of the shell; it and what it needs are in the workspace.
    #[track_caller]
    fn of(workspace: Workspace, script: &str) -> Record {
        workspace.inside_with(&["--record-files", "record.json"], &["sh", "-c", script]).success();
        let json = serde_json::from_str(&workspace.read("record.json")).unwrap();
        Record { workspace, json }
    }

    fn path(&self, name: &str) -> String {
        match name.starts_with('/') {
            true => name.to_owned(),
            false => self.workspace.path().join(name).to_str().unwrap().to_owned(),
        }
    }

    #[track_caller]
    fn line(&self, name: &str) -> &Value {
        let path = self.path(name);
        let mut lines = self.json["files"].as_array().unwrap().iter();
        lines.find(|it| it["path"] == path.as_str()).unwrap_or_else(|| {
            panic!("{path} is not in the record:\n{}", self.workspace.read("record.json"))
        })
    }

    #[track_caller]
    fn touched(&self, name: &str, expected: &[&str]) -> &Value {
        let line = self.line(name);
        let touched: Vec<&str> =
            line["touched"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        let has_all = expected.iter().all(|it| touched.contains(it));
        let others = touched.iter().filter(|it| !expected.contains(it) && **it != "inspected");
        assert!(has_all && others.count() == 0, "{name}: {touched:?}, not {expected:?}");
        line
    }

    fn is_missing(&self, name: &str) -> bool {
        let path = self.path(name);
        self.json["missing"].as_array().unwrap().iter().any(|it| it["path"] == path.as_str())
    }
}

/// As sha256sum(1) says it.
#[track_caller]
fn sum(workspace: &Workspace, name: &str) -> String {
    let out = workspace.native(&["sha256sum", name]).success().out();
    out.split(' ').next().unwrap().to_owned()
}

#[test]
fn each_file_is_listed_with_what_was_done_to_it() {
    let workspace = Workspace::new("record-each");
    workspace.write("input", "as it was\n");
    workspace.write("changed", "before\n");
    workspace.write("gone", "to be removed\n");
    workspace.write("old", "to be renamed\n");
    workspace.write("directory/inner", "in a directory\n");
    workspace.write("tool", "#!/bin/cat\ncontent\n");
    workspace.native(&["chmod", "+x", "tool"]).success();
    let (before, tool) = (sum(&workspace, "changed"), sum(&workspace, "tool"));
    let record = Record::of(
        workspace,
        "cat input > output; cat changed > /dev/null; echo more >> changed; rm gone; mv old new
         ls directory > /dev/null; ./tool > /dev/null; mkdir made; ln -s input made/link; cat made/link
         test -e nowhere; cat none/such 2> /dev/null; echo x > short; rm short; chmod 600 directory/inner
         cat output > /dev/null",
    );
    assert_eq!((&record.json["version"], &record.json["complete"]), (&1.into(), &true.into()));
    let of = |name: &str| sum(&record.workspace, name);
    let input = record.touched("input", &["read"]);
    assert_eq!((&input["sha256"], &input["size"]), (&of("input").into(), &10.into()));
    assert_eq!(input["kind"], "file");
    assert!(input.get("after").is_none());
    // What it has made is no input, although it was read later.
    let output = record.touched("output", &["read", "written", "created"]);
    assert!(output.get("sha256").is_none());
    assert_eq!(output["after"]["sha256"], of("output"));
    let changed = record.touched("changed", &["read", "written"]);
    assert_eq!(
        (&changed["sha256"], &changed["after"]["sha256"]),
        (&before.into(), &of("changed").into())
    );
    assert_eq!(record.touched("gone", &["removed"])["after"], Value::Null);
    assert_eq!(record.touched("old", &["removed"])["after"], Value::Null);
    assert_eq!(record.touched("new", &["written", "created"])["after"]["sha256"], of("new"));
    assert_eq!(record.touched("directory", &["listed"])["kind"], "directory");
    record.touched("directory/inner", &["changed"]);
    assert_eq!(record.touched("tool", &["executed", "read"])["sha256"], tool);
    record.touched("made", &["created"]);
    let link = record.touched("made/link", &["created"]);
    assert_eq!((&link["kind"], &link["target"]), (&"link".into(), &"input".into()));
    assert_eq!(record.touched("short", &["written", "created", "removed"])["after"], Value::Null);
    assert!(record.is_missing("nowhere") && record.is_missing("none/such"));
    assert!(!record.is_missing("output") && !record.is_missing("short"));
    // Programs, their interpreters, what they are linked to, and links on the way.
    let own = fs::canonicalize("/bin/sh").unwrap();
    let shell = record.line(own.to_str().unwrap());
    assert_eq!(shell["sha256"], of(own.to_str().unwrap()));
    let lines = record.json["files"].as_array().unwrap();
    let executed = |part: &str| {
        let is_so = |it: &&Value| {
            it["path"].as_str().unwrap().contains(part)
                && it["touched"].as_array().unwrap().contains(&"executed".into())
        };
        lines.iter().find(is_so).is_some()
    };
    assert!(executed("/cat") && executed("ld-"), "{lines:?}");
    assert!(lines.iter().any(|it| it["path"].as_str().unwrap().contains("libc.so")));
    let paths: Vec<&str> = lines.iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert!(paths.is_sorted());
}

#[test]
fn names_that_are_no_text_are_told_by_their_bytes() {
    let workspace = Workspace::new("record-bytes");
    let name = std::ffi::OsStr::from_bytes(b"odd\xff\n name");
    fs::write(workspace.path().join(name), "odd").unwrap();
    let record = Record::of(workspace, "cat odd* > /dev/null");
    let lines = record.json["files"].as_array().unwrap();
    let odd = lines.iter().find(|it| it.get("path_bytes").is_some()).unwrap();
    assert!(odd["path_bytes"].as_str().unwrap().ends_with("6f6464ff0a206e616d65"), "{odd}");
    assert_eq!(odd["size"], 3);
}

#[test]
fn a_program_that_runs_threads_and_makes_processes_is_recorded_whole() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("record-many");
    for number in 0..200 {
        workspace.write(&format!("in/{number}"), format!("{number}"));
    }
    workspace.write(
        "many.py",
        "import concurrent.futures as f, os\n\
         os.mkdir('out')\n\
         def copy(number):\n\
         \x20   with open(f'in/{number}') as old, open(f'out/{number}', 'w') as new: new.write(old.read())\n\
         with f.ThreadPoolExecutor(8) as pool: list(pool.map(copy, range(100)))\n\
         if not os.fork():\n\
         \x20   [copy(it) for it in range(100, 200)]; os._exit(0)\n\
         os.wait()\n",
    );
    let record = Record::of(workspace, "python3 many.py");
    for number in 0..200 {
        let input = record.touched(&format!("in/{number}"), &["read"]);
        let output = record.touched(&format!("out/{number}"), &["written", "created"]);
        assert_eq!(input["sha256"], output["after"]["sha256"], "{number}");
    }
}

#[test]
fn the_list_is_written_where_it_was_meant_to_be() {
    let workspace = Workspace::new("record-place");
    let inside = |options: &[&str], script: &str| {
        let mut command = workspace.sandbox();
        command.args(options).args(["--", "sh", "-c", script]);
        run(command, b"", LIMIT)
    };
    inside(&["--record-files", "none/record"], "touch ran")
        .one_line_error(125, &["none/record", "No such file or directory"]);
    assert!(!workspace.has("ran"));
    // The program puts something else in the directory's place.
    fs::create_dir(workspace.path().join("lists")).unwrap();
    fs::create_dir(workspace.path().join("elsewhere")).unwrap();
    inside(&["--record-files", "lists/record"], "mv lists kept; ln -s elsewhere lists").success();
    assert!(workspace.has("kept/record") && !workspace.has("elsewhere/record"));
    // A link of that name is replaced, not followed.
    workspace.write("victim", "untouched");
    inside(&["--record-files", "record"], "ln -s victim record").success();
    assert_eq!(workspace.read("victim"), "untouched");
    assert!(fs::symlink_metadata(workspace.path().join("record")).unwrap().is_file());
    // The status is the program's own.
    inside(&["--record-files", "record"], "exit 7").expect_status(7);
    // Nothing else is left.
    let names = fs::read_dir(workspace.path()).unwrap().flatten().map(|it| it.file_name());
    let hidden = names.filter(|it| it.as_bytes().starts_with(b".sandbox"));
    assert_eq!(hidden.count(), 0);
}

#[test]
fn what_is_moved_stays_what_it_is() {
    let workspace = Workspace::new("record-moved");
    workspace.write("tree/input", "old\n");
    let record = Record::of(
        workspace,
        "mkdir made; echo new > made/file; mv made moved; cat moved/file; mv tree there; cat there/input",
    );
    // It is no input, by whatever name.
    let file = record.line("moved/file");
    assert!(file.get("sha256").is_none() && file["after"].get("sha256").is_some(), "{file}");
    assert_eq!(record.line("there/input")["sha256"], sum(&record.workspace, "there/input"));
}

#[test]
fn files_without_an_end_keep_nobody_waiting() {
    let workspace = Workspace::new("record-endless");
    let record = Record::of(
        workspace,
        "truncate -s 1P hole || truncate -s 12T hole; mv hole whole; head -c 1 whole > /dev/null
         ln -s /proc kernel; head -c 1 kernel/self/pagemap > /dev/null; head -c 5 kernel/stat > /dev/null
         mkfifo fifo; ls -l fifo > /dev/null; head -c 1 /dev/zero > /dev/null",
    );
    let hole = record.line("whole");
    assert!(hole["after"]["size"].as_u64().unwrap() >= 12 << 40, "{hole}");
    assert!(hole["after"].get("sha256").is_none());
    assert_eq!(record.line("/proc/stat")["kind"], "kernel");
    assert_eq!(record.line("fifo")["kind"], "special");
}

#[test]
fn a_run_in_the_background_has_its_list_when_it_has_ended() {
    let workspace = Workspace::new("record-background");
    workspace.write("input", "input\n");
    let runtime = Workspace::new("record-background-run");
    fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let sandbox = |words: &[&str]| {
        let mut command = workspace.sandbox();
        command.args(words).env("XDG_RUNTIME_DIR", runtime.path());
        run(command, b"", LIMIT)
    };
    let own = ["run", "--detach", "--id", "it", "--record-files", "record.json"];
    sandbox(&[&own[..], &["--", "cat", "input"]].concat()).success();
    sandbox(&["wait", "it"]).success();
    let json: Value = serde_json::from_str(&workspace.read("record.json")).unwrap();
    let input = workspace.path().join("input");
    let lines = json["files"].as_array().unwrap();
    assert!(lines.iter().any(|it| it["path"] == input.to_str().unwrap()), "{json}");
}

#[test]
fn what_may_not_be_read_is_not_told_of() {
    let workspace = Workspace::new("record-hidden");
    workspace.write("secret", "hidden\n");
    if !Path::new("/etc/shadow").exists() {
        return skip("no /etc/shadow");
    }
    let options = ["--record-files", "record.json", "--hide", "secret"];
    workspace.inside_with(&options, &["sh", "-c", "cat secret /etc/shadow"]);
    let json: Value = serde_json::from_str(&workspace.read("record.json")).unwrap();
    let told = json["files"].as_array().unwrap().iter().any(|it| {
        let path = it["path"].as_str().unwrap();
        (path.ends_with("/secret") || path == "/etc/shadow") && it.get("sha256").is_some()
    });
    assert!(!told, "{json}");
}
